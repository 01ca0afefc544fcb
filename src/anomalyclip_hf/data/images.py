"""Reading of images and masks: every mode, bit depth and EXIF rotation, alike for both; all of `data` reads here.

`read_image` gives an 8-bit RGB image, `read_mask` a mask of 0 and 255.
Both take a path, bytes, a binary file, the `{"bytes", "path"}` of a `datasets.Image` column, an array or a PIL image,
and name the file when it cannot be read. Importing this needs numpy and PIL only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from . import reader
from .metadata import UPRIGHT, orientation_of, stated_orientation
from .paint import binary_mask, painted
from .paint import fit_mask as fit_mask
from .reader import ImageReadError as ImageReadError
from .reader import describe_source, unreadable

JPEG_BACKGROUND = 127  # what of a mask in a JPEG file is none, in 8-bit units: its ringing is not truth


def states_orientation(image: Image.Image) -> bool:
    """Whether the metadata of an image hold an orientation, be it 1."""
    return stated_orientation(image) is not None


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(W, H) of an opened image once it is upright. PIL states the size of a TIFF so before it has read its pixels."""
    return image.size[::-1] if orientation_of(image) >= 5 and image.format != "TIFF" else image.size


def open_image(
    source: Any, window: reader.Window = None, channels: Sequence[int] | None = None, is_mask: bool = False
) -> Image.Image:
    """Open an image without changing it: pixels as stored, header read, not yet rotated.

    Args:
        source: path, bytes, binary file, `{"bytes", "path"}` or PIL image.
        window, channels (*optional*): as of `read_image`.
        is_mask: as of `reader.open_image`.

    Raises:
        ImageReadError: the file is missing, empty or not an image.
    """
    return reader.open_image(_fetched(source), window, channels, is_mask)


def _fetched(source: Any) -> Any:
    """The source itself, but the bytes of a file of another file system, such as of a stream from the Hub."""
    path = source.get("path") if isinstance(source, Mapping) and source.get("bytes") is None else source
    if not (isinstance(path, str) and "://" in path):
        return source
    from datasets.utils.file_utils import xopen

    try:
        with xopen(path, "rb") as file:
            return {"bytes": file.read(), "path": path}
    except Exception as error:  # of any file system there is
        raise unreadable(path, error) from error


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
    try:
        image = reader.load_image(_fetched(source), window, channels)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:
        raise unreadable(source, error) from error


def read_mask(source: Any, threshold: int | None = None, turn: int | None = None) -> Image.Image:
    """Read any mask as upright 0/255 grayscale: palette, RGBA, 1-bit, 16-bit, gray or colored.

    A pixel is anomalous where its largest color channel exceeds the threshold and it is not transparent. A mask of one
    color on nothing is read from its alpha channel. In masks above 8 bits the threshold is scaled to their bit depth,
    and to floats that reach up to 1.

    Args:
        source: path, bytes, binary file, `{"bytes", "path"}`, array or PIL image; a folder holds several of one
            image, which are united.
        threshold (`int`, 0 to 254, *optional*): largest 8-bit value that is background still; 0, in JPEG files 127,
            by default.
        turn (`int`, 1 to 8, *optional*): orientation to apply instead of the file's own, see `mask_turn`.

    Returns:
        `PIL.Image.Image`, mode L, values 0 and 255 only.

    Raises:
        ImageReadError: missing, empty, truncated, not an image, or NaN, or masks of a folder that differ in size.
    """
    if (files := mask_files(source)) != [source]:
        masks = [read_mask(file, threshold, turn) for file in files]
        if len(sizes := {f"{mask.width}x{mask.height}" for mask in masks}) > 1:
            found = ", ".join(sorted(sizes))
            raise ImageReadError(
                f"cannot read mask {describe_source(source)}: masks of one size expected, found {found}"
            )
        return reduce(ImageChops.lighter, masks)
    if isinstance(source, np.ndarray):
        try:
            return binary_mask(source, "the array", threshold or 0)
        except ValueError as error:
            raise unreadable(source, error, "mask") from error
    image = open_image(source, is_mask=True)
    try:
        if threshold is None:
            threshold = JPEG_BACKGROUND if image.format in ("JPEG", "MPO") else 0
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
