"""The one reader of images: any file, bytes, PIL image, array or tensor becomes an upright 8-bit PIL image.

Importing this needs numpy and PIL only.
"""

import io
import logging
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .dicom import read_dicom
from .formats import FORMATS, deep_color, is_dicom, open_page, open_refused
from .metadata import METADATA_KEYS, UPRIGHT, orientation_of, tame_metadata
from .pixels import (
    WINDOWED,
    ImageReadError,
    Window,
    channels_last,
    check_window,
    is_deep,
    pixels_of,
    to_array,
    to_uint8,
)
from .tiff import read_tiff

# PIL names no file, and what is wrong with metadata is of no use here. Set once: threads share the filters.
for _noisy in ("PIL.TiffImagePlugin", "tifffile", "pydicom"):
    logging.getLogger(_noisy).setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", "", UserWarning, r"PIL\.(Tiff|Jpeg|Png)ImagePlugin|pydicom\..*")
_PAGE = re.compile(r"(.+)#page=(\d{1,6})", re.DOTALL)


def describe_source(source: Any) -> str:
    """Name an image source for messages: its path where it has one."""
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        return name if len(name) <= 4096 else f"{name[:80]}... ({len(name)} letters)"
    if isinstance(source, Mapping) and source.get("path"):
        return str(source["path"])
    stated = getattr(source, "filename", None) or getattr(source, "name", None)
    return str(stated) if stated else f"<{type(source).__name__} without a path>"


def images_of(inputs: Any) -> Iterable[Any] | None:
    """The images of what holds several, in their order; None of a single one.

    Args:
        inputs: an image of any kind; or a list, an iterator, a `datasets` column, a pandas series, an array of paths,
            or an array or tensor of images, `(B, H, W, C)` or `(B, C, H, W)`.

    Returns:
        a list, or an iterator where images are made or read one by one.
    """
    ndim = getattr(inputs, "ndim", None)
    if isinstance(inputs, list | tuple) or ndim == 4:
        return list(inputs)
    if isinstance(inputs, np.ndarray):
        return inputs.tolist() if inputs.dtype.kind in "OU" and ndim == 1 else None
    one = (str, bytes, bytearray, memoryview, os.PathLike, Mapping, Image.Image, type(None))
    if isinstance(inputs, one) or hasattr(inputs, "read") or hasattr(inputs, "detach"):
        return None
    if hasattr(inputs, "__iter__"):
        return iter(inputs)
    indexed = hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__")
    return (inputs[place] for place in range(len(inputs))) if indexed else None


def split_page(path: str) -> tuple[str, int]:
    """A path and the page that it asks for, from 1: "scan.tif#page=2" is ("scan.tif", 2), others are of page 1."""
    found = _PAGE.fullmatch(path)
    return (path, 1) if found is None or os.path.lexists(path) else (found[1], int(found[2]))


def open_image(
    source: Any, window: Window = None, channels: Sequence[int] | None = None, is_mask: bool = False
) -> Image.Image:
    """Open an image file: pixels as stored, not yet read nor rotated. Metadata that can't be read is ignored.

    DICOM, and TIFFs that PIL can't hold (many channels, colors as floats), come in 8 bits, by the window.

    Args:
        source: path ("scan.tif#page=2" for another page than the first), bytes, binary file, `{"bytes", "path"}` or
            PIL image (returned as it is).
        window, channels: as of [`load_image`].
        is_mask: gray of DICOM is left as it is stored: neither windowed nor inverted.

    Raises:
        ImageReadError: the file is missing, empty, of no format of `FORMATS`, or damaged.
    """
    if isinstance(source, Image.Image):
        return source
    try:
        stream, page = _stream_of(source)
        if is_dicom(stream):
            return read_dicom(stream, page, window, is_mask)
        try:
            image = open_page(stream, page)
        except FileNotFoundError:
            raise
        except Exception as refusal:
            image, stream = open_refused(stream, page, window, channels, refusal)
        if image.format == "TIFF" and _is_beyond_pil(image):
            image = read_tiff(stream, page, window, channels)
        if _has_deep_colors(image):
            image = deep_color(image, stream, page, window)
        if is_deep(image) and getattr(image, "tag_v2", {}).get(262) == 0:  # white is least: PIL turns 8 bits alone
            image = ImageOps.invert(to_pil_image(image, "it", window))
            image.format = "TIFF"
    except Exception as error:  # PIL raises many kinds for broken files
        raise unreadable(source, error) from error
    tame_metadata(image)
    return image


def upright(image: Image.Image, name: str = "") -> Image.Image:
    """Read the pixels of an opened image and apply its EXIF orientation, once: the result states none.

    Raises:
        ImageReadError: if the pixels can't be read or there are none; the message starts with the name.
    """
    try:
        try:
            image.load()
        except Exception:  # TIFF looks into the metadata when it reads pixels
            if not hasattr(image, "tag_v2"):
                raise
            tame_metadata(image)
            image.load()
        if not image.width or not image.height:
            raise ImageReadError(f"{image.width}x{image.height} pixels, it is empty")
    except Exception as error:
        raise ImageReadError(f"{name}: {_reason(error)}".removeprefix(": ")) from error
    orientation = orientation_of(image)
    if orientation == 1:
        return image
    turned = image.transpose(UPRIGHT[orientation])
    for key in METADATA_KEYS:
        turned.info.pop(key, None)
    return turned


def load_image(source: Any, window: Window = None, channels: Sequence[int] | None = None) -> Image.Image:
    """Read any image as an upright 8-bit PIL image.

    Args:
        source: path ("scan.tif#page=2" for another page than the first), bytes, binary file, `{"bytes", "path"}`, or
            what [`to_pil_image`] takes.
        window (*optional*): None: values of more than 8 bits are scaled by the bit depth that the image makes use of,
            floats from [0, 1], DICOM by its own VOI LUT. `(low, high)`: stored values (of DICOM: after its modality
            LUT) that become black and white. "percentile": the 1st and 99th percentile of each image.
        channels (*optional*): numbers from 0 of the three channels to take of images that have neither 1, 3 nor 4.

    Returns:
        `PIL.Image.Image`, (W, H) as displayed, of any mode with 8 bits a channel or less.

    Raises:
        ImageReadError: it can't be read; the message names the file and the reason.
        TypeError: it is nothing that could be an image.
    """
    if not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview, Mapping)) and not is_file(source):
        return to_pil_image(source, window=window, channels=channels)
    window = check_window(window)
    image = open_image(source, window, channels)
    try:
        with image:
            return to_pil_image(upright(image), "it", window)
    except Exception as error:
        raise unreadable(source, error) from error


def unreadable(source: Any, error: Exception, what: str = "image") -> ImageReadError:
    """The error that names a source and why it can't be read."""
    start = f"cannot read {what} {describe_source(source)}: "
    return ImageReadError(
        start + str(error).removeprefix(start) if isinstance(error, ImageReadError) else start + _reason(error)
    )


def to_pil_image(
    image: Any, name: str = "image", window: Window = None, channels: Sequence[int] | None = None
) -> Image.Image:
    """Turn an image of any common kind into an upright 8-bit PIL image.

    Values of more than 8 bits are scaled by the bit depth that the image itself makes use of, see [`bit_depth_of`].

    Args:
        image: PIL image of any mode (EXIF rotation is applied), or an array or tensor of shape `(H, W)`, `(H, W, C)`
            or `(C, H, W)` with 1, 3 or 4 channels: bool, integers of 8 to 16 bits, or floats in [0, 1].
        name (`str`): what to call it in errors.
        window, channels: as of [`load_image`].

    Raises:
        ValueError: if it is empty, has NaN or values out of range, or an unknown shape.
        TypeError: if it is no image.
    """
    if isinstance(image, Image.Image):
        if _has_deep_colors(image) and (stream := getattr(image, "fp", None) or getattr(image, "filename", None)):
            # Opened by the user, its pixels not read yet.
            image = deep_color(image, stream, None, window)
        image = upright(image, name)
        if not is_deep(image):
            if window is None or WINDOWED in image.info:
                return image
            has_alpha = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
            image = image.convert("RGBA" if has_alpha else "L" if image.mode in ("1", "L") else "RGB")
        image = pixels_of(image)
    image = channels_last(to_array(image, name), name, channels)
    scaled = Image.fromarray(to_uint8(image, name, window))
    if window is not None:
        scaled.info[WINDOWED] = True
    return scaled


def fit_size(size: tuple[int, int], side: int, patch_size: int | None) -> tuple[int, int]:
    """Width and height in pixels at which the longer side is `side`, and both are multiples of the patch size.

    Args:
        size (`tuple[int, int]`): width and height of the image in pixels.
        side (`int`): of the model's input in pixels.
        patch_size (`int`, *optional*): of the model; a square needs none.

    Raises:
        ValueError: no patch size for an image that is no square.
    """
    if size[0] == size[1]:
        return side, side
    if patch_size is None:
        raise ValueError(
            f"patch_size=None, expected the model's patch size in pixels: an image or tile of {size[0]}x{size[1]} "
            "pixels keeps the ratio of its sides; give the processor patch_size=model.config.vision_config.patch_size"
        )
    width, height = (max(1, round(one * side / max(size) / patch_size)) * patch_size for one in size)
    return width, height


def is_file(source: Any) -> bool:
    return callable(getattr(source, "read", None))


def _stream_of(source: Any) -> tuple[Any, int]:
    """What PIL opens, a path or a binary file, and the page of it, from 1."""
    path, page = source.get("path") if isinstance(source, Mapping) else source, 1
    if isinstance(path, (str, os.PathLike)):
        path, page = split_page(os.fsdecode(path))
        source = source if isinstance(source, Mapping) and source.get("bytes") is not None else path
    if isinstance(source, Mapping):
        source = source["bytes"] if source.get("bytes") is not None else source.get("path")
        if source is None:
            raise ImageReadError('an image needs "bytes" or "path", but both are missing')
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise ImageReadError("it is empty (0 bytes)")
        return io.BytesIO(source), page
    if isinstance(source, (str, os.PathLike)):
        if os.path.isfile(source) and os.path.getsize(source) == 0:
            raise ImageReadError("it is empty (0 bytes)")
        return source, page
    if not is_file(source):
        raise ImageReadError(f"a {type(source).__name__} is no image, path, bytes or binary file")
    return (source if hasattr(source, "seek") else io.BytesIO(source.read())), page


def _is_beyond_pil(image: Any) -> bool:
    """Whether PIL, which opened a TIFF, would read something else: many channels, signed bytes, deep planes."""
    tags = image.tag_v2
    bits, kind = tags.get(258, (1,))[0], tags.get(339, (1,))[0]
    return tags.get(277, 1) > 4 or (bits == 8 and kind == 2) or (bits > 8 and tags.get(284) == 2)


def _has_deep_colors(image: Image.Image) -> bool:
    """Whether an image, not read yet, has colors of 16 bits a channel, of which PIL reads the upper byte alone."""
    codings = [tile.args for tile in getattr(image, "tile", ()) if tile.args]
    modes = [coding if isinstance(coding, str) else coding[0] for coding in codings]
    return bool(modes) and all(isinstance(mode, str) and mode[:2] in ("RG", "LA") and ";16" in mode for mode in modes)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    if "cannot identify image file" in text:
        return f"not an image, or its header is damaged (read are {', '.join(FORMATS)} and DICOM)"
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    return text or type(error).__name__
