"""The one reader of images: any file, bytes, PIL image, array or tensor becomes an upright 8-bit PIL image.

Importing this needs numpy and PIL only.
"""

import io
import os
import struct
import sys
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

# No EPS, PDF or the like: whatever the file is called, no other program is started to read it.
FORMATS = ("PNG", "JPEG", "MPO", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF")
BIT_DEPTHS = (8, 10, 12, 14, 16)
ORIENTATION_TAG = 274
# EXIF orientation -> what puts the stored pixels upright; the last four swap width and height.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# PIL names no file, and what is wrong with metadata is of no use here. Set once: threads share the filters.
warnings.filterwarnings("ignore", "", UserWarning, r"PIL\.(Tiff|Jpeg|Png)ImagePlugin")
_METADATA_KEYS = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
_METADATA_MARKS = (b"Exif", b"EXIF", b"XMP ", b"MPF\0", b"http://ns.adobe.com/xap/1.0/\0", b"application/rdf+xml")
# Tags of a TIFF that say where and how its pixels lie.
_TIFF_PIXELS = {*range(254, 267), 273, 274, *range(277, 280), 284, 292, 293, 317, *range(320, 326), 332, 334}
_TIFF_PIXELS |= {*range(338, 343), 347, *range(512, 534)}
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")


class ImageReadError(ValueError):
    """An image or a mask that cannot be read; the message names the file and the reason."""


def describe_source(source: Any) -> str:
    """Name an image source for messages: its path where it has one."""
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        return name if len(name) <= 4096 else f"{name[:80]}... ({len(name)} letters)"
    if isinstance(source, Mapping) and source.get("path"):
        return str(source["path"])
    stated = getattr(source, "filename", None) or getattr(source, "name", None)
    return str(stated) if stated else f"<{type(source).__name__} without a path>"


def open_image(source: Any) -> Image.Image:
    """Open an image file: pixels as stored, not yet read nor rotated. Metadata that can't be read is ignored.

    Args:
        source: path, bytes, binary file, `{"bytes", "path"}` or PIL image (returned as it is).

    Raises:
        ImageReadError: the file is missing, empty, of no format of `FORMATS`, or damaged.
    """
    if isinstance(source, Image.Image):
        return source
    try:
        stream = _stream_of(source)
        try:
            image: Image.Image = Image.open(stream, formats=_formats())
        except FileNotFoundError:
            raise
        except Exception:  # perhaps of the metadata alone
            content = _without_metadata(stream)
            if content is None:
                raise
            stream = io.BytesIO(content)
            image = Image.open(stream, formats=_formats())
        if _swapped_tiles(image):
            image = _deep_color(image, stream)
    except Exception as error:  # PIL raises many kinds for broken files
        raise unreadable(source, error) from error
    _tame_metadata(image)
    return image


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation that still is to be applied to an image, 1 to 8; 1 where there is none."""
    return _stated_orientation(image) or 1


def states_orientation(image: Image.Image) -> bool:
    """Whether the metadata of an image hold an orientation, be it 1."""
    return _stated_orientation(image) is not None


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(W, H) of an opened image once it is upright. PIL states the size of a TIFF so before it has read its pixels."""
    return image.size[::-1] if orientation_of(image) >= 5 and image.format != "TIFF" else image.size


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
            _tame_metadata(image)
            image.load()
        if not image.width or not image.height:
            raise ImageReadError(f"{image.width}x{image.height} pixels, it is empty")
    except Exception as error:
        raise ImageReadError(f"{name}: {_reason(error)}".removeprefix(": ")) from error
    orientation = orientation_of(image)
    if orientation == 1:
        return image
    turned = image.transpose(UPRIGHT[orientation])
    for key in _METADATA_KEYS:
        turned.info.pop(key, None)
    return turned


def load_image(source: Any) -> Image.Image:
    """Read any image as an upright 8-bit PIL image.

    Args:
        source: path, bytes, binary file, `{"bytes", "path"}`, or what [`to_pil_image`] takes.

    Returns:
        `PIL.Image.Image`, (W, H) as displayed, of any mode with 8 bits a channel or less.

    Raises:
        ImageReadError: it can't be read; the message names the file and the reason.
        TypeError: it is nothing that could be an image.
    """
    if not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview, Mapping)) and not _is_file(source):
        return to_pil_image(source)
    image = open_image(source)
    try:
        with image:
            return to_pil_image(upright(image), "it")
    except Exception as error:
        raise unreadable(source, error) from error


def unreadable(source: Any, error: Exception, what: str = "image") -> ImageReadError:
    """The error that names a source and why it can't be read."""
    start = f"cannot read {what} {describe_source(source)}: "
    return ImageReadError(
        start + str(error).removeprefix(start) if isinstance(error, ImageReadError) else start + _reason(error)
    )


def to_pil_image(image: Any, name: str = "image") -> Image.Image:
    """Turn an image of any common kind into an upright 8-bit PIL image.

    Values of more than 8 bits are scaled by the bit depth that the image itself makes use of, see [`bit_depth_of`].

    Args:
        image: PIL image of any mode (EXIF rotation is applied), or an array or tensor of shape `(H, W)`, `(H, W, C)`
            or `(C, H, W)` with 1, 3 or 4 channels: bool, integers of 8 to 16 bits, or floats in [0, 1].
        name (`str`): what to call it in errors.

    Raises:
        ValueError: if it is empty, has NaN or values out of range, or an unknown shape.
        TypeError: if it is no image.
    """
    if isinstance(image, Image.Image):
        if _swapped_tiles(image) and (stream := getattr(image, "fp", None) or getattr(image, "filename", None)):
            image = _deep_color(image, stream)  # opened by the user, its pixels not read yet
        image = upright(image, name)
        if not is_deep(image):
            return image
        image = _pixels_of(image)
    image = to_array(image, name)
    return Image.fromarray(to_uint8(channels_last(image, name), name))


def is_deep(image: Image.Image) -> bool:
    """Whether a PIL image has one channel of integers above 8 bits, or of floats."""
    return image.mode in ("F", "I") or image.mode.startswith("I;16")


def to_array(image: Any, name: str) -> np.ndarray:
    """An array or a tensor (of any device and dtype) as an array."""
    if type(image).__module__.partition(".")[0] == "torch":  # not imported for this: most images are no tensors
        image = image.detach().cpu()
        image = image.float().numpy() if str(image.dtype) == "torch.bfloat16" else image.numpy()
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{name} is a {type(image).__name__}, expected a PIL image, an array or a tensor")
    return image


def channels_last(array: np.ndarray, name: str) -> np.ndarray:
    """An array as `(H, W)` or `(H, W, C)` with 3 or 4 channels."""
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise ImageReadError(
            f"{name} has shape {array.shape}, expected (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4"
        )
    return array


def bit_depth_of(image: Image.Image | np.ndarray) -> int:
    """Bits per channel that an image makes use of: the least of 8, 10, 12, 14 and 16 that hold its highest value.

    Cameras of 10, 12 and 14 bits write files of 16, whose highest value says so; read in the full range of 16 bits,
    12-bit data would be as good as black. 8 for images of 8 bits and of floats. Of 16-bit colors, which PIL reads as 8
    bits, only [`open_image`] knows.
    """
    if isinstance(image, Image.Image):
        if not is_deep(image) or image.mode == "F":
            return image.info.get("bit_depth", 8)
        image = _pixels_of(image)
    highest = int(image.max()) if np.issubdtype(image.dtype, np.integer) and image.size else 0
    return next((depth for depth in BIT_DEPTHS if highest < 1 << depth), 16)


def to_uint8(array: np.ndarray, name: str) -> np.ndarray:
    """Scale values to 0 .. 255: integers by their bit depth (`bit_depth_of`), floats from [0, 1]."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):  # also true of NaN
            raise ImageReadError(
                f"{name} holds floats from {low:g} to {high:g}, expected [0, 1] without NaN; rescale it"
            )
        return np.rint(array * 255).astype(np.uint8)
    if np.issubdtype(array.dtype, np.integer):
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > 65535:
            raise ImageReadError(f"{name} holds integers from {low} to {high}, expected 8 or 16 bit unsigned values")
        most = (1 << bit_depth_of(array)) - 1
        table = ((np.arange(most + 1) * 510 + most) // (2 * most)).astype(np.uint8)  # round(255 value / most)
        return table[array.astype(np.uint16, copy=False)]
    raise ImageReadError(f"{name} has dtype {array.dtype}, expected bool, uint8, uint16 or float")


def painted(image: Image.Image, threshold: int = 0) -> np.ndarray:
    """Which pixels of a mask are anomalous, as bool (H, W) on the stored pixels.

    Those whose largest color channel exceeds the threshold. Where the transparent pixels have a color (paint on
    transparent white), alpha has to exceed it too; where one color, be it black, is drawn on nothing, alpha decides.

    Args:
        image: opened PIL image of any mode.
        threshold (`int`, 0 to 254): largest 8-bit value that is background; scaled to the bit depth of deeper masks.

    Raises:
        ImageReadError: if it holds NaN or infinite values.
    """
    if is_deep(image):
        values = _pixels_of(image)
        if image.mode == "F":
            if not np.isfinite(values).all():
                raise ImageReadError("it holds NaN or infinite values")
            return values > threshold
        inside = values > threshold * ((1 << bit_depth_of(values)) - 1) / 255
        clear = image.info.get("transparency")
        return inside & (values != clear) if isinstance(clear, int) else inside
    has_alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if image.mode in ("1", "L") and not has_alpha:
        return np.asarray(image.convert("L")) > threshold
    pixels = np.asarray(image.convert("RGBA" if has_alpha else "RGB"))
    return painted_channels(pixels, threshold)


def painted_channels(pixels: np.ndarray, threshold: float = 0) -> np.ndarray:
    """As [`painted`], of an array (H, W, 3) or (H, W, 4)."""
    colors, inside = pixels[..., :3], pixels[..., :3].max(axis=-1) > threshold
    if pixels.shape[-1] == 3:
        return inside
    alpha = pixels[..., 3]
    if alpha.min() == alpha.max():  # it says nothing of single pixels
        nothing = alpha.max() == 0 and bool((colors == colors[:1, :1]).all())
        return np.zeros_like(inside) if nothing else inside
    seen = alpha > threshold
    if seen.all():
        return inside
    if np.median(colors[~seen].max(axis=-1)) <= threshold:  # transparent black is background by its color already
        return inside if inside.any() else seen
    shown = colors[seen]
    return seen if bool((shown == shown[:1]).all()) else inside & seen


def binary_mask(mask: Any, name: str, threshold: int = 0) -> Image.Image:
    """A mask of any kind as an 8-bit image of 0 and 255, made binary before it is resized, as the authors do.

    Args:
        mask: PIL image, array or tensor; anomalous is what is above 0 in any color, or above 0.5 in floats.
        name (`str`): what to call it in errors.
        threshold (`int`, 0 to 254): of PIL images, as of [`painted`].
    """
    if isinstance(mask, Image.Image):
        inside = painted(upright(mask, name), threshold)
    else:
        mask = channels_last(to_array(mask, name), name)
        if np.isnan(mask).any():
            raise ValueError(f"{name} holds NaN, expected 0 where normal and more where anomalous")
        level = 0.5 if np.issubdtype(mask.dtype, np.floating) and mask.max() <= 1 else 0
        inside = painted_channels(mask, level) if mask.ndim == 3 else mask > level
    return Image.fromarray(inside.astype(np.uint8) * 255)


def fit_mask(mask: Image.Image, size: tuple[int, int], name: str = "mask") -> Image.Image:
    """Bring a mask to its image's size, where only the scale differs (aspect ratios within 1 %).

    Args:
        mask (`PIL.Image.Image`): mode L.
        size (`tuple[int, int]`): (W, H) of the image.
        name (`str`): file name for the message.

    Raises:
        ImageReadError: the aspect ratios differ, so the mask belongs to another image or to a crop.
    """
    if mask.size == tuple(size):
        return mask
    ratio = (mask.size[0] * size[1]) / (mask.size[1] * size[0])
    if abs(ratio - 1) > 0.01:
        raise ImageReadError(
            f"mask {name} is {mask.size[0]}x{mask.size[1]} but its image is {size[0]}x{size[1]} (width x height): "
            "the shapes differ, so it is not the same picture; check the pairing of images and masks"
        )
    return mask.resize(size, Image.Resampling.NEAREST)


def _pixels_of(image: Image.Image, rows: int = 256) -> np.ndarray:
    """As `np.asarray(image)` of one channel, in strips: at once it would take three times the image's memory."""
    image.load()
    (width, height), first = image.size, np.asarray(image.crop((0, 0, 1, 1)))
    pixels = np.empty((height, width), first.dtype)
    for top in range(0, height, rows):
        pixels[top : top + rows] = np.asarray(image.crop((0, top, width, min(top + rows, height))))
    return pixels


def _is_file(source: Any) -> bool:
    return callable(getattr(source, "read", None))


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _stream_of(source: Any) -> Any:
    """What PIL opens: a path or a binary file."""
    if isinstance(source, Mapping):
        source = source["bytes"] if source.get("bytes") is not None else source.get("path")
        if source is None:
            raise ImageReadError('an image needs "bytes" or "path", but both are missing')
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise ImageReadError("it is empty (0 bytes)")
        return io.BytesIO(source)
    if isinstance(source, (str, os.PathLike)):
        if os.path.isfile(source) and os.path.getsize(source) == 0:
            raise ImageReadError("it is empty (0 bytes)")
        return source
    if not _is_file(source):
        raise ImageReadError(f"a {type(source).__name__} is no image, path, bytes or binary file")
    return source if hasattr(source, "seek") else io.BytesIO(source.read())


def _swapped_tiles(image: Image.Image) -> list:
    """The tiles of an image of 16 bits a channel that PIL reads as 8, such that its lower bytes are read; else none.

    Colors are read in the other byte order. Gray with alpha has none in PIL: its four bytes are read as four channels.
    """
    tiles = getattr(image, "tile", [])
    modes = [tile.args if isinstance(tile.args, str) else tile.args[0] for tile in tiles if tile.args]
    if not modes or not all(isinstance(mode, str) and mode[:2] in ("RG", "LA") and ";16" in mode for mode in modes):
        return []
    native = "L" if sys.byteorder == "little" else "B"
    swapped = [
        "RGBA" if mode == "LA;16B" else mode[:-1] + {"B": "L", "L": "B"}[mode[-1].replace("N", native)]
        for mode in modes
    ]
    return [
        tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:]))
        for tile, mode in zip(tiles, swapped, strict=True)
    ]


def _deep_color(image: Image.Image, stream: Any) -> Image.Image:
    """An image of 16 bits a channel, of which PIL reads the upper byte: with the lower one too where the upper holds
    less than 7 bits (12-bit data would be as good as black). `info["bit_depth"]` says what was found."""
    if hasattr(stream, "seek"):
        stream.seek(0)
    with Image.open(stream if not hasattr(stream, "read") else io.BytesIO(stream.read()), formats=_formats()) as other:
        # First of all: whatever looks into a PNG's metadata reads its pixels.
        other.tile, gray = _swapped_tiles(other), other.tile[0].args == "LA;16B"
        _tame_metadata(other)
        _tame_metadata(image)
        image.load()
        upper = np.asarray(image)[..., :3]
        if upper.max() >= 64:
            image.info["bit_depth"] = 16
            return image
        lower = np.asarray(other)
        values = upper.astype(np.uint16) << 8 | (lower[..., 1:2] if gray else lower[..., :3])
    deep = Image.fromarray(to_uint8(values, "it"))
    if "A" in image.mode:
        deep.putalpha(image.getchannel("A"))
    deep.getexif().update(image.getexif())
    deep.info["bit_depth"] = bit_depth_of(values)
    return deep


def _stated_orientation(image: Image.Image) -> int | None:
    try:
        value = image.getexif().get(ORIENTATION_TAG)
        return int(value) if value == 1 or value in UPRIGHT else None
    except Exception:  # broken metadata must not hide sound pixels
        return None


def _tame_metadata(image: Image.Image) -> None:
    """Leave nothing of the metadata in an opened image but its orientation, so that no one trips over the rest."""
    orientation, kept = _stated_orientation(image), Image.Exif()
    if orientation is not None:
        kept[ORIENTATION_TAG] = orientation
    for key in _METADATA_KEYS:
        image.info.pop(key, None)
    image.getexif = lambda: kept  # type: ignore[method-assign]


def _without_metadata(stream: Any) -> bytes | None:
    """The content of a file with its metadata taken out or under names no one looks for; None where it has none."""
    if isinstance(stream, (str, os.PathLike)):
        with open(stream, "rb") as file:
            content = file.read()
    else:
        stream.seek(0)
        content = stream.read()
    changed = content
    if content.startswith(_PNG_START):
        changed, place = content[:8], 8
        while place + 12 <= len(content):
            end = place + 12 + int.from_bytes(content[place : place + 4], "big")
            changed += b"" if content[place + 4 : place + 8] in _PNG_METADATA else content[place:end]
            place = end
    elif content[:4] in (b"II*\0", b"MM\0*"):
        changed = _plain_tiff(content)
    else:
        for mark in _METADATA_MARKS:
            changed = changed.replace(mark, b"x" * len(mark))
    return None if changed == content else changed


def _plain_tiff(content: bytes) -> bytes:
    """A TIFF whose first directory says nothing but how its pixels lie: other entries become a byte each."""
    order, changed = ("<" if content[:2] == b"II" else ">"), bytearray(content)
    (start,) = struct.unpack_from(f"{order}I", content, 4)
    (number,) = struct.unpack_from(f"{order}H", content, start)
    for place in range(start + 2, min(start + 2 + 12 * number, len(content) - 11), 12):
        if struct.unpack_from(f"{order}H", content, place)[0] not in _TIFF_PIXELS:
            struct.pack_into(f"{order}HI", changed, place + 2, 1, 1)
    return bytes(changed)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    if "cannot identify image file" in text:
        return f"not an image, or its header is damaged (read are {', '.join(FORMATS)})"
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    return text or type(error).__name__
