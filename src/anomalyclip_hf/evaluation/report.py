"""A self-contained HTML report of a run: one file, pictures inlined, nothing fetched from a network."""

import base64
import io
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.files import atomic_path
from ..scoring.pictures import colorize
from .metrics import METRICS, Curve, thin
from .plots import plot_curves, plot_metric_curves, plot_score_histograms
from .visualization import COLUMNS, Sample, caption, picture_row

TEMPLATE = Path(__file__).parent.parent / "assets" / "report.html"


def write_report(
    result: Mapping[str, Any],
    path: str | os.PathLike,
    samples: Mapping[str, Sequence[Sample]] | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    vmin: float = 0.0,
    vmax: float = 1.0,
    pixel_threshold: float | None = None,
    title: str = "Anomaly detection report",
) -> None:
    """Write the report of a run.

    Args:
        result: `{"settings": {name: value}, "datasets": {name: entry}}`. An entry holds `classes` (class name to a
            dict of metrics in [0, 1], with `reasons` for NaN), and may hold `mean` and `published` (metric to value),
            `methods` (title to means, for comparison),
            `curves` (class name to `{"roc" | "pr" | "pro": (x, y)}`) and `scores` (`{"score": ..., "label": ...,
            "class_name": ...}`, each `(N,)`). Missing metrics are left out of the table.
        path: HTML file to write.
        samples: heading to samples, such as `{"Worst misses": [...], "Worst false alarms": [...]}`.
        history: of a training, drawn as curves (see `plots.plot_curves`).
        vmin, vmax: one scale for all maps.
        pixel_threshold: adds the predicted masks.
        title: heading of the page.

    Raises:
        ValueError: `result` has no data set.
    """
    import jinja2

    if not result.get("datasets"):
        raise ValueError(f"result has no entry in 'datasets' (its keys: {sorted(result)}): give an evaluator's result")
    columns = COLUMNS if pixel_threshold is not None else COLUMNS[:-1]
    groups = [
        {"title": heading, "rows": [_sample_row(sample, columns, vmin, vmax, pixel_threshold) for sample in chosen]}
        for heading, chosen in (samples or {}).items()
    ]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        settings={name: _plain(value) for name, value in result.get("settings", {}).items()},
        datasets=[_dataset_section(name, entry) for name, entry in result["datasets"].items()],
        columns=columns,
        groups=groups,
        scale={"vmin": f"{vmin:.3g}", "vmax": f"{vmax:.3g}", "bar": _picture(_color_bar(), "png")},
        threshold=None if pixel_threshold is None else f"{pixel_threshold:.3g}",
        training=_plot(lambda file: plot_curves(history, file)) if history else None,
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def format_percent(value: Any) -> str:
    """A metric in [0, 1] as a percentage with one decimal, an en dash where it is missing or undefined."""
    return f"{100.0 * float(value):.1f}" if _is_number(value) else "–"


def _dataset_section(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    classes = entry.get("classes", {})
    metrics = [key for key in METRICS if any(key in values for values in classes.values())]
    body = [(one, [_cell(values, key) for key in metrics]) for one, values in classes.items()]
    footer: list[tuple[str, list[str]]] = []
    mean, published = entry.get("mean"), entry.get("published")
    if mean:
        footer.append(("mean", [format_percent(mean.get(key)) for key in metrics]))
    if mean and published:
        footer.append(("published", [format_percent(published.get(key)) for key in metrics]))
        footer.append(("difference", [_difference(mean.get(key), published.get(key)) for key in metrics]))
    comparison = [
        (one, [format_percent(means.get(key)) for key in metrics]) for one, means in entry.get("methods", {}).items()
    ]
    reasons = {why for values in classes.values() for why in values.get("reasons", {}).values()}
    plots = []
    scores, curves = entry.get("scores"), entry.get("curves")
    if scores:
        names = scores.get("class_name")
        text = "Scores of normal and anomalous images"
        plots.append((text, _plot(lambda file: plot_score_histograms(scores["score"], scores["label"], file, names))))
    if curves and any(curves.values()):
        lines = {
            one: {kind: thin(Curve(*(np.asarray(axis) for axis in points)), 120) for kind, points in kinds.items()}
            for one, kinds in curves.items()
        }
        plots.append(("Curves over all pixels", _plot(lambda file: plot_metric_curves(lines, file))))
    headings = [METRICS[key].title for key in metrics]
    return {
        "name": name,
        "headings": headings,
        "body": body,
        "footer": footer,
        "reasons": sorted(reasons),
        "comparison": comparison,
        "plots": plots,
    }


def _cell(values: Mapping[str, Any], key: str) -> tuple[str, str]:
    return format_percent(values.get(key)), values.get("reasons", {}).get(key, "")


def _difference(ours: Any, theirs: Any) -> str:
    return f"{100.0 * (ours - theirs):+.1f}" if _is_number(ours) and _is_number(theirs) else "–"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and math.isfinite(float(value))


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _sample_row(
    sample: Sample, columns: Sequence[str], vmin: float, vmax: float, threshold: float | None
) -> dict[str, Any]:
    pictures = picture_row(sample, 176, vmin, vmax, threshold)
    return {
        "caption": caption(sample),
        "cells": [
            {"alt": f"{name} of {sample.title or 'the sample'}", "data": _picture(picture, "webp")}
            for name, picture in zip(columns, pictures, strict=True)
        ],
    }


def _color_bar() -> Image.Image:
    return colorize(np.linspace(0.0, 1.0, 256)[None].repeat(2, 0))


def _picture(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, quality=80)
    return _data_uri(buffer.getvalue(), f"image/{kind}")


def _plot(draw: Callable[[Path], None]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plot.svg"
        draw(file)
        return _data_uri(file.read_bytes(), "image/svg+xml")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
