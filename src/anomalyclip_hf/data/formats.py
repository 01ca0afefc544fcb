"""Files that PIL alone does not read: pages, what it refuses, and colors of 16 bits, of which it reads half.

Importing this needs numpy and PIL only.
"""

import io
import os
import struct
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from .dicom import count_frames
from .metadata import tame_metadata
from .pixels import WINDOWED, ImageReadError, Window, bit_depth_of, to_uint8
from .tiff import frame_of_page, read_tiff, tiff_pages

# No EPS, PDF or the like: whatever the file is called, no other program is started to read it.
FORMATS = ("PNG", "JPEG", "MPO", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF")
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # of the common kind, of the big one
# Tags of a TIFF that say where and how its pixels lie.
_TIFF_PIXELS = {*range(254, 267), 273, 274, *range(277, 280), 284, 292, 293, 317, *range(320, 326), 332, 334}
_TIFF_PIXELS |= {*range(338, 343), 347, *range(512, 534)}
_METADATA_MARKS = (b"Exif", b"EXIF", b"XMP ", b"MPF\0", b"http://ns.adobe.com/xap/1.0/\0", b"application/rdf+xml")
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")


def list_pages(path: str | os.PathLike) -> list[str]:
    """The pages of an image file as paths that can be read: "scan.tif#page=1", ...; the path itself if there is one.

    Only TIFF and DICOM have pages; of animations the first frame is read. Reduced copies and masks within a TIFF are
    none. What can't be read is one page, whose reader will say why.
    """
    path = os.fspath(path)
    try:
        if is_dicom(path):
            number = count_frames(path)
        elif path.lower().endswith((".tif", ".tiff")):
            number = len(tiff_pages(path))
        else:
            number = 1
    except Exception:
        number = 1
    return [path] if number <= 1 else [f"{path}#page={page}" for page in range(1, number + 1)]


def first_bytes(source: Any, number: int) -> bytes:
    """The first bytes of a path or a binary file, which is put back to where it was; none of what is no file."""
    if isinstance(source, (str, os.PathLike)):
        if not os.path.isfile(source):
            return b""
        with open(source, "rb") as file:
            return file.read(number)
    place = source.tell()
    source.seek(0)
    start = source.read(number)
    source.seek(place)
    return start


def is_dicom(source: Any) -> bool:
    """Whether a path or a binary file holds "DICM" at byte 128."""
    return first_bytes(source, 132)[128:] == b"DICM"


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def open_page(stream: Any, page: int) -> Image.Image:
    """Open a page, from 1, of a path or a binary file by PIL."""
    if hasattr(stream, "seek"):
        stream.seek(0)
    image: Image.Image = Image.open(stream, formats=_formats())
    if page != 1:
        if image.format != "TIFF":
            raise ImageReadError(f"it has 1 pages, but page {page} is asked for")
        image.seek(frame_of_page(stream, page))
    return image


def open_refused(
    stream: Any, page: int, window: Window, channels: Sequence[int] | None, refusal: Exception
) -> tuple[Image.Image, Any]:
    """Open a path or a binary file that PIL refuses, perhaps for its metadata alone, or as a kind of TIFF.

    Args:
        stream, page: as of [`open_page`].
        window, channels: as of `load_image`.
        refusal: what PIL raised, and what is raised again where nothing helps.

    Returns:
        the image, and what its pixels are read from.
    """
    content = _without_metadata(stream)
    try:
        if content is None:
            raise refusal
        stream = io.BytesIO(content)
        return open_page(stream, page), stream
    except Exception:
        if first_bytes(stream, 4) not in TIFF_STARTS:
            raise
        return read_tiff(stream, page, window, channels, refusal), stream


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
    elif content[:4] in TIFF_STARTS[:2]:
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


def deep_color(image: Image.Image, stream: Any, page: int | None, window: Window) -> Image.Image:
    """An image of 16 bits a channel, of which PIL reads the upper byte: with the lower one too where there is a
    window, or where the upper holds less than 7 bits (12-bit data would be as good as black).

    `info["bit_depth"]` says what was found. `page` None is the frame that the image stands at.
    """
    if hasattr(stream, "seek"):
        stream.seek(0)
    again = io.BytesIO(stream.read()) if hasattr(stream, "read") else stream
    other: Any = open_page(again, page or 1)
    with other:
        if page is None and image.tell():
            other.seek(image.tell())
        # First of all: whatever looks into a PNG's metadata reads its pixels.
        other.tile, gray = _swapped_tiles(other), other.tile[0].args == "LA;16B"
        tame_metadata(other)
        tame_metadata(image)
        image.load()
        upper = np.asarray(image)[..., :3]
        if upper.max() >= 64 and window is None:
            image.info["bit_depth"] = 16
            return image
        lower = np.asarray(other)
        values = upper.astype(np.uint16) << 8 | (lower[..., 1:2] if gray else lower[..., :3])
    deep = Image.fromarray(to_uint8(values, "it", window))
    if "A" in image.mode:
        deep.putalpha(image.getchannel("A"))
    deep.getexif().update(image.getexif())
    deep.info["bit_depth"] = bit_depth_of(values)
    if window is not None:
        deep.info[WINDOWED] = True
    return deep


def _swapped_tiles(image: Any) -> list:
    """The tiles of an image of 16 bits a channel that PIL reads as 8, such that its lower bytes are read.

    Colors are read in the other byte order. Gray with alpha has none in PIL: its four bytes are read as four channels.
    """
    modes = [tile.args if isinstance(tile.args, str) else tile.args[0] for tile in image.tile]
    native = "L" if sys.byteorder == "little" else "B"
    swapped = [
        "RGBA" if mode == "LA;16B" else mode[:-1] + {"B": "L", "L": "B"}[mode[-1].replace("N", native)]
        for mode in modes
    ]
    return [
        tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:]))
        for tile, mode in zip(image.tile, swapped, strict=True)
    ]
