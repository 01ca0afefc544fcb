"""Reading of images and masks: every mode, bit depth and EXIF rotation, alike for both; all of `data` reads here.

`read_image` gives an 8-bit RGB image, `read_mask` a mask of 0 and 255.
Both take a path, bytes, a binary file, the `{"bytes", "path"}` of a `datasets.Image` column, an array or a PIL image,
and name the file when it cannot be read. Importing this needs numpy and PIL only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from .. import images_anomalyclip as reader
from ..images_anomalyclip import UPRIGHT, describe_source, orientation_of, stated_orientation, unreadable
from ..images_anomalyclip import ImageReadError as ImageReadError
from .paint import fit_mask as fit_mask
from .paint import painted


@dataclass(frozen=True)
class MaskRule:
    """How the pixels of a mask file become 0 and 255.

    A pixel is anomalous where its largest color channel exceeds the threshold and it is not transparent. A mask of one
    color on nothing is read from its alpha channel. In masks above 8 bits the threshold is scaled to their bit depth.

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


def states_orientation(image: Image.Image) -> bool:
    """Whether the metadata of an image hold an orientation, be it 1."""
    return stated_orientation(image) is not None


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(W, H) of an opened image once it is upright. PIL states the size of a TIFF so before it has read its pixels."""
    return image.size[::-1] if orientation_of(image) >= 5 and image.format != "TIFF" else image.size


def open_image(source: Any, window: reader.Window = None, channels: Sequence[int] | None = None) -> Image.Image:
    """Open an image without changing it: pixels as stored, header read, not yet rotated.

    Args:
        source: path, bytes, binary file, `{"bytes", "path"}`, uint8/uint16/bool/float array (H, W[, C]) or PIL image.
        window, channels (*optional*): as of `read_image`.

    Raises:
        ImageReadError: the file is missing, empty or not an image.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    path = source.get("path") if isinstance(source, Mapping) and source.get("bytes") is None else source
    if isinstance(path, str) and "://" in path:
        from datasets.utils.file_utils import xopen

        try:
            with xopen(path, "rb") as file:
                source = {"bytes": file.read(), "path": path}
        except Exception as error:  # of any file system there is
            raise unreadable(path, error) from error
    return reader.open_image(source, window, channels)


def read_image(source: Any, window: reader.Window = None, channels: Sequence[int] | None = None) -> Image.Image:
    """Read any image as upright 8-bit RGB.

    Values of more than 8 bits are scaled by the bit depth they make use of (`bit_depth_of`), never clipped; floats in
    [0, 1] by 255; alpha is dropped, as CLIP does.

    Args:
        source: path, bytes, binary file, `{"bytes", "path"}`, array or PIL image.
        window (*optional*): "percentile", or the two stored values that become black and white, see `load_image`.
        channels (*optional*): the three to take of images that have neither 1, 3 nor 4.

    Returns:
        `PIL.Image.Image`, mode RGB, (W, H) as displayed.

    Raises:
        ImageReadError: missing, empty, truncated or not an image, or values outside the ranges above.
    """
    window = reader.check_window(window)
    is_array = isinstance(source, np.ndarray)
    image = source if is_array else open_image(source, window, channels)
    try:
        image_8_bit = reader.to_pil_image(image, "it", window, channels)
        if image_8_bit.mode == "P" and "transparency" in image_8_bit.info:
            image_8_bit = image_8_bit.convert("RGBA")
        return image_8_bit if image_8_bit.mode == "RGB" else image_8_bit.convert("RGB")
    except Exception as error:
        raise unreadable(source, error) from error
    finally:
        if not is_array:
            _close(image, source)


def read_mask(source: Any, rule: MaskRule | None = None, turn: int | None = None) -> Image.Image:
    """Read any mask as upright 0/255 grayscale: palette, RGBA, 1-bit, 16-bit, gray or colored.

    Args:
        source: path, bytes, binary file, `{"bytes", "path"}`, array or PIL image; a folder holds several masks of one
            image, which are united.
        rule (`MaskRule`, *optional*): what counts as anomalous; above 0 by default.
        turn (`int`, 1 to 8, *optional*): orientation to apply instead of the file's own, see `mask_turn`.

    Returns:
        `PIL.Image.Image`, mode L, values 0 and 255 only.

    Raises:
        ImageReadError: missing, empty, truncated, not an image, or NaN, or masks of a folder that differ in size.
    """
    rule = rule or MaskRule()
    if (files := mask_files(source)) != [source]:
        masks = [read_mask(file, rule, turn) for file in files]
        if len(sizes := {f"{mask.width}x{mask.height}" for mask in masks}) > 1:
            found = ", ".join(sorted(sizes))
            raise ImageReadError(
                f"cannot read mask {describe_source(source)}: masks of one size expected, found {found}"
            )
        return reduce(ImageChops.lighter, masks)
    image = open_image(source)
    try:
        threshold = rule.jpeg_threshold if image.format in ("JPEG", "MPO") else rule.threshold
        own = states_orientation(image)
        image.load()  # turns a TIFF
        orientation = orientation_of(image) if own or turn is None else turn
        mask = Image.fromarray(painted(image, threshold).astype(np.uint8) * 255)
        return mask if orientation == 1 else mask.transpose(UPRIGHT[orientation])
    except Exception as error:
        raise unreadable(source, error, "mask") from error
    finally:
        _close(image, source)


def mask_files(source: Any) -> list[Any]:
    """The files of a mask: the image files of a folder, by name; of all else the source itself, as of an empty one."""
    path = source.get("path") if isinstance(source, Mapping) and source.get("bytes") is None else source
    if not (isinstance(path, (str, os.PathLike)) and os.path.isdir(path)):
        return [source]
    from .file_tree import IMAGE_SUFFIXES

    names = sorted(name for name in os.listdir(path) if name.lower().endswith(IMAGE_SUFFIXES) and name[0] != ".")
    return [os.path.join(path, name) for name in names] or [source]


def read_bytes(cell: Mapping[str, Any]) -> bytes:
    """The bytes of an image file, from the `{"bytes", "path"}` of a `datasets.Image` column.

    Raises:
        ImageReadError: the file cannot be read.
    """
    if cell["bytes"] is not None:
        return cell["bytes"]
    try:
        with open(reader.split_page(cell["path"])[0], "rb") as file:
            return file.read()
    except OSError as error:
        raise unreadable(cell, error) from error


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
        try:
            turn, displayed = orientation_of(opened), upright_size(opened)
        finally:
            _close(opened, image)
        if turn == 1:
            return 1
        drawn = open_image(mask_files(mask)[0])
    except ImageReadError:
        return 1
    try:
        if states_orientation(drawn):
            return orientation_of(drawn)
        stored = displayed[::-1] if turn >= 5 else displayed
        return 1 if drawn.size == displayed and drawn.size != stored else turn
    finally:
        _close(drawn, mask)


def _close(image: Image.Image, source: Any) -> None:
    """Let go of the file that `open_image` opened; the pixels stay."""
    if image is not source:
        with image:
            pass


def _from_array(array: np.ndarray) -> Image.Image:
    """An array as an image; one channel of more than 8 bits stays, since a mask of ones would be scaled to nothing."""
    array = reader.channels_last(array, "the array")
    scaled = reader.to_uint8(array, "the array")
    if array.ndim == 3 or array.dtype in (bool, np.uint8):
        return Image.fromarray(scaled)
    if np.issubdtype(array.dtype, np.floating):
        return Image.fromarray(array.astype(np.float32))
    return Image.fromarray(array.astype(np.uint16 if array.dtype == np.uint16 else np.int32))
