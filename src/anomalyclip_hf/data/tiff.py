"""TIFFs, by tifffile: their pages, and those that PIL can't hold.

Importing this needs numpy and PIL only.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from .metadata import ORIENTATION_TAG
from .pixels import WINDOWED, ImageReadError, Window, bit_depth_of, three_channels, to_uint8


def tiff_pages(source: Any) -> list[int]:
    """Which frames of a TIFF, a path or a binary file, are pages: the first, and others but reduced copies and masks.

    Raises:
        ImageReadError: tifffile, which comes with scikit-image, is not installed.
    """
    with _open(source) as file:
        return [page.index for page in file.pages if page.index == 0 or not page.subfiletype & 0b101]


def frame_of_page(source: Any, page: int) -> int:
    """The frame of a page, from 1."""
    frames = tiff_pages(source)
    if not 1 <= page <= len(frames):
        raise ImageReadError(f"it has {len(frames)} pages, but page {page} is asked for")
    return frames[page - 1]


def read_tiff(source: Any, page: int, window: Window, channels: Any, refusal: Exception | None = None) -> Image.Image:
    """A page of a TIFF by tifffile, where PIL refuses it: in 8 bits, gray that PIL can hold as it is stored."""
    try:
        frame = 0 if page == 1 else frame_of_page(source, page)
        with _open(source) as file:
            stored = file.pages[frame]
            # Damaged sizes would be looked for piece by piece, without end.
            pixels = int(stored.imagewidth) * int(stored.imagelength) * int(stored.imagedepth)
            if pixels > 2 * (Image.MAX_IMAGE_PIXELS or pixels) or len(stored.dataoffsets) < math.prod(stored.chunked):
                raise ImageReadError(f"it states {stored.shape} values, but is damaged or too large")
            values, planes, tag = stored.asarray(), stored.axes.startswith("S"), stored.tags.get(ORIENTATION_TAG)
    except Exception as error:  # tifffile raises many kinds
        if refusal is None or "imagecodecs" in str(error) or isinstance(error, ImageReadError):
            raise
        raise refusal from error
    image = image_of_values(np.moveaxis(values, 0, -1) if planes else values, window, channels)
    if tag is not None and tag.value in range(2, 9):
        image.getexif()[ORIENTATION_TAG] = int(tag.value)
    return image


def _open(source: Any) -> Any:
    try:
        import tifffile
    except ImportError as error:
        raise ImageReadError(
            "pages and kinds of TIFF such as its are read by tifffile: pip install tifffile"
        ) from error
    if hasattr(source, "seek"):
        source.seek(0)
    return tifffile.TiffFile(source)


def image_of_values(values: np.ndarray, window: Window, channels: Sequence[int] | None = None) -> Image.Image:
    """Stored values as an image: gray of integers and floats as it is, others in 8 bits."""
    values = three_channels(values, "it", channels)
    if values.ndim == 2 and window is None and values.dtype.kind in "uif" and values.dtype != np.uint8:
        kind = np.float32 if values.dtype.kind == "f" else np.uint16 if values.dtype == np.uint16 else np.int32
        return Image.fromarray(values.astype(kind))
    image = Image.fromarray(to_uint8(values, "it", window))
    if values.dtype.kind in "ui" and values.dtype.itemsize > 1:
        image.info["bit_depth"] = bit_depth_of(values)
    if window is not None:
        image.info[WINDOWED] = True
    return image
