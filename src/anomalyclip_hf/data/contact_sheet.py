"""A sheet of samples with their masks outlined, to see at a glance whether images and masks belong together."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .indexing import NORMAL_KIND
from .masks import ImageReadError, fit_mask

OUTLINE = (255, 0, 200)
TILE, CAPTION, GAP, COLUMNS, MAX_TILES = 200, 28, 6, 6, 48


def write_contact_sheet(parts: Mapping[str, Any], path: str | os.PathLike, max_tiles: int = MAX_TILES) -> None:
    """Draw samples of every class and defect type, masks outlined, and write the sheet.

    Args:
        parts: split -> data set of the one schema.
        path: .png or .jpg.
        max_tiles (`int`): samples shown at most.

    Raises:
        ValueError: nothing can be shown.
    """
    chosen = _choose(parts, max_tiles)
    if not chosen:
        raise ValueError("the source has no images: there is nothing to put on a contact sheet")
    rows = -(-len(chosen) // COLUMNS)
    columns = min(COLUMNS, len(chosen))
    sheet = Image.new("RGB", (columns * (TILE + GAP) + GAP, rows * (TILE + CAPTION + GAP) + GAP), (24, 24, 24))
    for place, (split, index) in enumerate(chosen):
        tile = _tile(parts[split], index)
        sheet.paste(tile, (GAP + place % COLUMNS * (TILE + GAP), GAP + place // COLUMNS * (TILE + CAPTION + GAP)))
    save_image(sheet, path)


def outline_mask(image: Image.Image, mask: Image.Image, width: int = 2) -> Image.Image:
    """Draw the border of a mask around, not over, what it marks.

    Args:
        image, mask (`PIL.Image.Image`): RGB and L, of one size.
        width (`int`, pixels): of the line.
    """
    outer = mask.filter(ImageFilter.MaxFilter(2 * width + 1))
    return Image.composite(Image.new("RGB", image.size, OUTLINE), image, ImageChops.subtract(outer, mask))


def save_image(image: Image.Image, path: str | os.PathLike) -> None:
    """Write an image whole or not at all; the suffix chooses the format."""
    path = os.fspath(path)
    folder, suffix = os.path.dirname(path) or ".", os.path.splitext(path)[1] or ".png"
    if suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"contact sheet {path!r}: suffix {suffix!r} is no image format, expected .png or .jpg")
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=suffix, dir=folder)
    os.close(handle)
    try:
        image.save(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path if os.path.splitext(path)[1] else path + suffix)
    except BaseException:
        os.unlink(temporary)
        raise


def _choose(parts: Mapping[str, Any], max_tiles: int) -> list[tuple[str, int]]:
    """Samples to show: each class and defect type in turn, so that all are seen before any is seen twice."""
    groups: dict[tuple, list[tuple[str, int]]] = defaultdict(list)
    for split, dataset in parts.items():
        names = zip(dataset["class_name"], dataset["defect_type"], strict=True)
        for index, (name, kind) in enumerate(names):
            groups[(name, kind == NORMAL_KIND, kind)].append((split, index))
    chosen: list[tuple[tuple, tuple[str, int]]] = []
    quota = max(1, max_tiles // max(1, len(groups)))
    for turn in range(quota):
        for key, members in sorted(groups.items()):
            take = min(quota, len(members))
            if turn < take and len(chosen) < max_tiles:
                chosen.append((key, members[turn * len(members) // take]))
    return [place for _, place in sorted(chosen)]


def _tile(dataset, index: int) -> Image.Image:
    tile = Image.new("RGB", (TILE, TILE + CAPTION), (24, 24, 24))
    lines = [f"row {index}", "unreadable"]
    try:
        sample = dataset[index]
        image, mask = sample["image"], sample["mask"]
        size = _inside(image.size)
        small = image.resize(size, Image.Resampling.BICUBIC)
        if mask is not None:
            reduced = fit_mask(mask, image.size).resize(size, Image.Resampling.BOX)
            small = outline_mask(small, reduced.point(lambda value: 255 if value else 0))
        tile.paste(small, ((TILE - size[0]) // 2, (TILE - size[1]) // 2))
        note = "" if mask is not None or sample["label"] != 1 else " (no mask)"
        lines = [f"{sample['class_name']} / {sample['defect_type'] or '?'}{note}", os.path.basename(sample["path"])]
    except ImageReadError as error:
        lines[1] = str(error)[-34:]
    draw = ImageDraw.Draw(tile)
    for number, line in enumerate(lines):
        text = line.encode("ascii", "replace").decode()
        draw.text((2, TILE + 2 + 12 * number), text[:34], fill=(235, 235, 235))
    return tile


def _inside(size: tuple[int, int]) -> tuple[int, int]:
    scale = TILE / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
