"""Sheets of labelled pictures, and the outline of a mask on its image."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from PIL.PngImagePlugin import PngInfo

from .files import SHEET_NOTE, atomic_path, one_line

OUTLINE = (0, 229, 255)  # cyan: the one bright color that the heat maps' inferno does not have
INK, PAPER, MUTED = (32, 32, 36), (255, 255, 255), (110, 110, 118)
GAP, LINE = 8, 18  # pixels between pictures, and height of a line of text


@dataclass(frozen=True)
class SheetRow:
    """A row of a sheet.

    Args:
        pictures: PIL images of at most the sheet's cell size.
        title (`str`): written above them.
        labels: written below each, of one or several lines.
    """

    pictures: Sequence[Image.Image]
    title: str = ""
    labels: Sequence[str] = ()

    @property
    def lines(self) -> int:
        """Lines of text below the pictures."""
        return max((label.count("\n") + 1 for label in self.labels), default=0)


def contact_sheet(
    rows: Sequence[SheetRow],
    path: str | os.PathLike,
    *,
    columns: Sequence[str] = (),
    cell_size: int = 192,
    title: str = "",
    footer: Image.Image | None = None,
) -> None:
    """Write a sheet with rows of pictures, whole or not at all; the file says that it is one (`SHEET_NOTE`).

    Args:
        rows: at least one.
        path: file to write, in any format of Pillow by its suffix.
        columns: names of the columns.
        cell_size: side of a picture in pixels, 64 or more.
        title: heading.
        footer: picture below the rows, `sheet_width` less a gap on each side wide; such as a scale of colors.

    Raises:
        ValueError: there is no row, or the suffix is of no format.
    """
    if not rows:
        raise ValueError("rows is empty but at least one sample is expected")
    if cell_size < 64:
        raise ValueError(f"cell_size={cell_size} but 64 or more is expected")
    width = sheet_width(max([len(columns), *(len(row.pictures) for row in rows)]), cell_size)
    top = GAP + (LINE + 10 if title else 0) + (LINE + 4 if columns else 0)
    heights = [
        LINE * (bool(row.title) + row.lines) + max(picture.height for picture in row.pictures) + GAP for row in rows
    ]
    sheet = Image.new("RGB", (width, top + sum(heights) + (footer.height + GAP if footer else 0)), PAPER)
    draw = ImageDraw.Draw(sheet)
    places = [GAP + column * (cell_size + GAP) for column in range(width // (cell_size + GAP))]
    if title:
        draw.text((GAP, GAP), fit_text(title, width - 2 * GAP, 18), fill=INK, font=font(18))
    for x, name in zip(places, columns, strict=False):
        draw.text((x, top - LINE - 4), name, fill=MUTED, font=font(13))
    y = top
    for row, height in zip(rows, heights, strict=True):
        under = y + height - GAP - LINE * row.lines
        if row.title:
            draw.text((GAP, y), fit_text(row.title, width - 2 * GAP, 13), fill=INK, font=font(13))
        for x, picture in zip(places, row.pictures, strict=False):
            sheet.paste(picture, (x, y + LINE * bool(row.title)))
        for x, label in zip(places, row.labels, strict=False):
            for number, line in enumerate(label.split("\n")):
                draw.text((x, under + LINE * number), fit_text(line, cell_size, 12), fill=MUTED, font=font(12))
        y += height
    if footer is not None:
        sheet.paste(footer, (GAP, y))
    note = PngInfo()
    note.add_text("Software", SHEET_NOTE)
    with atomic_path(path) as temporary:
        sheet.save(temporary, pnginfo=note, comment=SHEET_NOTE)


def sheet_width(pictures: int, cell_size: int) -> int:
    """Width of a sheet in pixels, of so many pictures beside each other."""
    return GAP + pictures * (cell_size + GAP)


def outline_mask(image: Image.Image, mask: Image.Image, width: int = 2) -> Image.Image:
    """Draw the border of a mask around, not over, what it marks, with a dark rim to stand out.

    Args:
        image, mask (`PIL.Image.Image`): RGB and L (0 and 255), of one size.
        width (`int`, pixels): of the line.
    """
    border = ImageChops.subtract(mask.filter(ImageFilter.MaxFilter(2 * width + 1)), mask)
    rim = ImageChops.subtract(border.filter(ImageFilter.MaxFilter(3)), border)
    dark = Image.composite(image.point(lambda value: value // 3), image, rim)
    return Image.composite(Image.new("RGB", image.size, OUTLINE), dark, border)


def inside(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(W, H) in pixels of a picture of a size, once its longer side is `side`."""
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


@functools.cache
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font at a size in pixels."""
    return ImageFont.load_default(size=size)


def fit_text(text: str, width: int, size: int) -> str:
    """Cut a text in its middle until it fits into `width` pixels, as one printable line."""
    text = one_line(text)
    shown, kept = text, len(text)
    while kept > 4 and font(size).getlength(shown) > width:
        kept -= 1
        shown = f"{text[: kept // 2]} ... {text[-(kept - kept // 2) :]}"
    return shown
