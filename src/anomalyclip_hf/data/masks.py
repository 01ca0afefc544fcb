"""Reading of images and masks: every mode, bit depth and EXIF rotation, alike for both.

`read_image` gives an 8-bit RGB image, `read_mask` a mask of 0 and 255.
Both take a path, bytes, a binary file, the `{"bytes", "path"}` of a `datasets.Image` column, an array or a PIL image,
and name the file when it cannot be read. Importing this needs numpy and PIL only.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION_TAG = 274
# EXIF orientation -> what puts the stored pixels upright; the last four swap width and height.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)


class ImageReadError(ValueError):
    """An image or a mask that cannot be read; the message names the file and the reason."""


@dataclass(frozen=True)
class MaskRule:
    """How the pixels of a mask file become 0 and 255.

    A pixel is anomalous where its largest color channel exceeds the threshold. A mask whose color is the same
    everywhere is read from its alpha channel. Masks above 255 are compared with 257 times the threshold.

    Args:
        threshold (`int`, 0 to 254, defaults to 0): largest 8-bit value that still is background.
        jpeg_threshold (`int`, 0 to 254, defaults to 127): the same for JPEG files, whose ringing is not truth.
    """

    threshold: int = 0
    jpeg_threshold: int = 127

    def __post_init__(self):
        for name in ("threshold", "jpeg_threshold"):
            value = getattr(self, name)
            if not 0 <= value <= 254:
                raise ValueError(f"MaskRule.{name}={value} must lie in 0 .. 254, in 8-bit units")


def describe_source(source: Any) -> str:
    """Name an image source for messages: its path where it has one."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, Mapping) and source.get("path"):
        return str(source["path"])
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return str(name) if name else f"<{type(source).__name__} without a path>"


def open_image(source: Any) -> Image.Image:
    """Open an image without changing it: pixels as stored, header read, not yet rotated.

    Args:
        source: path, bytes, binary file, `{"bytes", "path"}`, uint8/uint16/bool/float array (H, W[, C]) or PIL image.

    Raises:
        ImageReadError: the file is missing, empty or not an image.
    """
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source)
    name, stream = describe_source(source), source
    try:
        if isinstance(source, Mapping):
            stream = source.get("bytes") if source.get("bytes") is not None else source.get("path")
            if stream is None:
                raise ImageReadError('an image needs "bytes" or "path", but both are missing')
        if isinstance(stream, str) and "://" in stream:
            from datasets.utils.file_utils import xopen

            with xopen(stream, "rb") as file:
                stream = file.read()
        if isinstance(stream, (bytes, bytearray, memoryview)):
            if len(stream) == 0:
                raise ImageReadError(f"cannot read image {name}: it is empty (0 bytes)")
            stream = io.BytesIO(stream)
        elif isinstance(stream, (str, os.PathLike)) and os.path.isfile(stream) and os.path.getsize(stream) == 0:
            raise ImageReadError(f"cannot read image {name}: it is empty (0 bytes)")
        return Image.open(stream)
    except ImageReadError:
        raise
    except Exception as error:  # PIL raises many kinds for broken files
        raise ImageReadError(f"cannot read image {name}: {_reason(error)}") from error


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation of an opened image, 1 to 8; 1 where there is none."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # broken metadata must not hide sound pixels
        return 1
    return int(value) if value in _UPRIGHT else 1


def read_image(source: Any) -> Image.Image:
    """Read any image as upright 8-bit RGB.

    16-bit gray is scaled by 1/257, never clipped, floats in [0, 1] by 255; alpha is dropped, as CLIP does.

    Args:
        source: path, bytes, binary file, `{"bytes", "path"}`, array or PIL image.

    Returns:
        `PIL.Image.Image`, mode RGB, (W, H) as displayed.

    Raises:
        ImageReadError: missing, empty, truncated or not an image, or values outside the ranges above.
    """
    image = open_image(source)
    try:
        image.load()
        upright = _turn(image, orientation_of(image))
        if upright.mode == "RGB":
            return upright
        if upright.mode.startswith("I") or upright.mode == "F":
            upright = Image.fromarray(_to_8_bit(np.asarray(upright)))
        elif upright.mode == "P" and "transparency" in upright.info:
            upright = upright.convert("RGBA")
        return upright.convert("RGB")
    except Exception as error:
        raise ImageReadError(f"cannot read image {describe_source(source)}: {_reason(error)}") from error


def read_mask(source: Any, rule: MaskRule | None = None, turn: int | None = None) -> Image.Image:
    """Read any mask as upright 0/255 grayscale: palette, RGBA, 1-bit, 16-bit, gray or colored.

    Args:
        source: path, bytes, binary file, `{"bytes", "path"}`, array or PIL image.
        rule (`MaskRule`, *optional*): what counts as anomalous; above 0 by default.
        turn (`int`, 1 to 8, *optional*): orientation to apply instead of the file's own, see `mask_turn`.

    Returns:
        `PIL.Image.Image`, mode L, values 0 and 255 only.

    Raises:
        ImageReadError: missing, empty, truncated, not an image, or NaN.
    """
    rule = rule or MaskRule()
    image = open_image(source)
    try:
        image.load()
        own = orientation_of(image)
        threshold = rule.jpeg_threshold if image.format in ("JPEG", "MPO") else rule.threshold
        mask = Image.fromarray(_foreground(image, threshold).astype(np.uint8) * 255)
        return _turn(mask, own if own != 1 or turn is None else turn)
    except Exception as error:
        raise ImageReadError(f"cannot read mask {describe_source(source)}: {_reason(error)}") from error


def mask_turn(image: Any, mask: Any) -> int:
    """Orientation that lays a mask on its upright image, from the headers of both files.

    A mask with an EXIF orientation of its own obeys it. One without was drawn either on the stored pixels, then it
    turns with the image, or on the image as displayed, then it stays: its size decides, and where both fit, it turns.

    Args:
        image, mask: anything `open_image` takes.

    Returns:
        `int`, 1 to 8; 1 where nothing has to be turned or a header cannot be read.
    """
    try:
        opened = open_image(image)
        turn = orientation_of(opened)
        if turn == 1:
            return 1
        drawn = open_image(mask)
    except ImageReadError:
        return 1
    if orientation_of(drawn) != 1:
        return orientation_of(drawn)
    displayed = opened.size[::-1] if turn in _SWAPS_SIDES else opened.size
    return 1 if drawn.size == displayed and drawn.size != opened.size else turn


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


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    if orientation == 1:
        return image
    turned = image.transpose(_UPRIGHT[orientation])
    for key in ("exif", "xmp", "XML:com.adobe.xmp"):  # or the orientation would be applied again
        turned.info.pop(key, None)
    return turned


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)) or 0 in array.shape:
        raise ImageReadError(f"an image array must be (H, W), (H, W, 3) or (H, W, 4) and not empty, got {array.shape}")
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        try:
            scaled = _to_8_bit(array)
        except ValueError as error:
            raise ImageReadError(f"cannot read an image from an array: {error}") from error
        deep = np.uint16 if array.dtype == np.uint16 else np.int32
        if array.ndim == 3:
            array = scaled
        else:  # kept as it is, since a mask of ones would be scaled to nothing
            array = array.astype(np.float32 if np.issubdtype(array.dtype, np.floating) else deep)
    return Image.fromarray(array)


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Scale to 0 .. 255: uint16 by its full range, other integers too unless all are below 256, floats from [0, 1]."""
    from ..processing_anomalyclip import _to_uint8  # here, since it imports torch, which few images need

    return _to_uint8(values, "the image")


def _foreground(image: Image.Image, threshold: int) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if image.mode == "F" and not np.isfinite(values).all():
            raise ValueError("it holds NaN or infinite values")
        return values > (257 * threshold if values.max() > 255 and image.mode != "F" else threshold)
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L")) > threshold
    has_alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    pixels = np.asarray(image.convert("RGBA" if has_alpha else "RGB"))
    color = pixels[..., :3].max(axis=-1)
    uniform = bool((pixels[..., :3] == pixels[:1, :1, :3]).all())
    if has_alpha and uniform and pixels[..., 3].min() != pixels[..., 3].max():
        return pixels[..., 3] > threshold
    return color > threshold


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    text = str(error)
    if "cannot identify image file" in text:
        return "not an image, or its header is damaged"
    return text or type(error).__name__
