"""Contact sheets of judged images: image, truth, map and overlay side by side, all on the one scale of a run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ..data.contact_sheet import GAP, INK, PAPER, SheetRow, font, inside, outline_mask, sheet_width
from ..data.contact_sheet import contact_sheet as write_sheet
from ..data.files import one_line
from ..data.paint import binary_mask
from ..scoring.pictures import colorize, draw_legend, overlay, resize_map, to_rgb
from ..scoring.ranking import Array, to_numpy

SCALE = (0.01, 0.999)  # quantiles of a run's pixels that get the first and the last color
COLUMNS = ("image", "truth", "map", "overlay", "predicted mask")


@dataclass
class Sample:
    """One judged image, for contact sheets and reports.

    Args:
        image: PIL image, any mode.
        anomaly_map: `(h, w)` float, any size; higher is more anomalous.
        mask: truth, as of `binary_mask`; None where there is none.
        label: 0 normal, 1 anomalous, None unknown.
        score: anomaly score of the image.
        title: what to write beside it (class, defect, file name).
    """

    image: Image.Image
    anomaly_map: Array
    mask: Array | Image.Image | None = None
    label: int | None = None
    score: float | None = None
    title: str = ""


def fit_scale(maps: Iterable[Array], lower: float = SCALE[0]) -> tuple[float, float]:
    """Find `vmin` and `vmax` of a whole run: quantiles, `lower` and 0.999, of (a regular sample of) all maps' pixels.

    Raises:
        ValueError: no map, NaN or infinite values.
    """
    values = [pixels[:: max(1, pixels.size // 4096)] for pixels in (to_numpy(one).ravel() for one in maps)]
    if not values:
        raise ValueError("no map given: a scale is fitted over the maps of a run")
    pixels = np.concatenate(values).astype(np.float64)
    if not np.isfinite(pixels).all():
        raise ValueError(
            "maps have NaN or infinite values but finite ones are expected: check the images and the model"
        )
    vmin, vmax = (float(value) for value in np.quantile(pixels, [lower, SCALE[1]]))
    return (vmin, vmax) if vmax > vmin else (vmin, vmin + 1e-6)


def contact_sheet(
    rows: Sequence[Sample],
    path: str | os.PathLike,
    vmin: float = 0.0,
    vmax: float = 1.0,
    pixel_threshold: float | None = None,
    cell_size: int = 192,
    title: str = "",
) -> None:
    """Write a sheet with a row per image: image, truth outline, map, overlay and, with a threshold, predicted mask.

    Args:
        rows: samples, one scale for all.
        path: file to write, in any format of Pillow by its suffix.
        vmin, vmax: the scale of the run, shown below.
        pixel_threshold: map values from here on are predicted anomalous; None leaves that column out.
        cell_size: side of a picture in pixels, 64 or more.
        title: heading.

    Raises:
        ValueError: no row, a map that is not `(H, W)`.
    """
    names = COLUMNS if pixel_threshold is not None else COLUMNS[:-1]
    strips = [
        SheetRow(picture_row(sample, cell_size, vmin, vmax, pixel_threshold), caption(sample)) for sample in rows
    ]
    footer = draw_legend(vmin, vmax, max(200, sheet_width(len(names), cell_size) - 2 * GAP - 40))
    write_sheet(strips, path, columns=names, cell_size=cell_size, title=title, footer=footer)


def picture_row(
    sample: Sample,
    size: int = 192,
    vmin: float = 0.0,
    vmax: float = 1.0,
    pixel_threshold: float | None = None,
) -> list[Image.Image]:
    """Draw the `COLUMNS` of one sample, fitted into `size` pixels: the last only where a threshold is given."""
    image = to_rgb(sample.image)
    shown = inside(image.size, size)
    image = image.resize(shown, Image.Resampling.LANCZOS)
    anomaly_map = resize_map(sample.anomaly_map, shown)
    if sample.mask is not None:
        mask = binary_mask(sample.mask, "mask").resize(shown, Image.Resampling.NEAREST)
        truth = outline_mask(image, mask)
    else:
        truth = image.copy()
        _tag(truth, {None: "truth unknown", 0: "normal"}.get(sample.label, "mask missing"))
    pictures = [
        image,
        truth,
        colorize(anomaly_map, vmin, vmax),
        overlay(image, anomaly_map, vmin, vmax),
    ]
    if pixel_threshold is not None:
        pictures.append(Image.fromarray((anomaly_map >= pixel_threshold).astype(np.uint8) * 255))
    return [picture.convert("RGB") for picture in pictures]


def caption(sample: Sample) -> str:
    """One line for a sample: its title, its label and its score."""
    parts = [one_line(sample.title)] if sample.title else []
    if sample.label is not None:
        parts.append("anomalous" if sample.label else "normal")
    if sample.score is not None:
        parts.append(f"score {sample.score:.3f}")
    return "  |  ".join(parts)


def _tag(cell: Image.Image, text: str) -> None:
    draw = ImageDraw.Draw(cell)
    left, top, right, bottom = draw.textbbox((6, 5), text, font=font(12))
    draw.rectangle((left - 4, top - 3, right + 4, bottom + 3), fill=INK)
    draw.text((6, 5), text, fill=PAPER, font=font(12))
