"""A self-contained HTML report of a run: one file, pictures inlined, nothing fetched from a network."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.files import atomic_path
from ..scoring.pictures import colorize
from .metrics import Curve, thin
from .plots import plot_curves, plot_metric_curves, plot_score_histograms
from .tables import class_table, method_table, reasons_of
from .visualization import COLUMNS, Sample, caption, picture_row

TEMPLATE = Path(__file__).parent.parent / "assets" / "report.html"
MAX_POINTS = 120  # of a curve


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
        result: of `evaluate_sources`; the `classes` of each of its `datasets` will do, what is missing is left out.
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
    groups = {
        heading: [
            (caption(sample), [_inline(one) for one in picture_row(sample, 176, vmin, vmax, pixel_threshold)])
            for sample in chosen
        ]
        for heading, chosen in (samples or {}).items()
    }
    facts = {**result.get("model", {}), **result.get("settings", {}), **result.get("versions", {})}
    bar = colorize(np.linspace(0.0, 1.0, 256)[None].repeat(2, 0))
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        settings={name: f"{fact:.6g}" if isinstance(fact, float) else fact for name, fact in facts.items()},
        datasets=[_section(name, entry) for name, entry in result["datasets"].items()],
        columns=columns,
        groups=groups,
        scale={"vmin": f"{vmin:.3g}", "vmax": f"{vmax:.3g}", "bar": _inline(bar, "png")},
        threshold=None if pixel_threshold is None else f"{pixel_threshold:.3g}",
        training=_draw(plot_curves, history) if history else None,
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def _section(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of a data set."""
    plots = {}
    if scores := entry.get("scores"):
        values = next(iter(scores["scores"].values()))
        columns = zip(values, scores["label"], scores["class_name"], strict=True)
        if known := [row for row in columns if row[1] is not None]:
            values, labels, names = zip(*known, strict=True)
            plots["Scores of normal and anomalous images"] = _draw(
                plot_score_histograms, values, labels, classes=names
            )
    curves = {
        one: {kind: thin(Curve(*map(np.asarray, points)), MAX_POINTS) for kind, points in kinds.items()}
        for one, kinds in (entry.get("curves") or {}).items()
    }
    if any(curves.values()):
        plots["Curves over all pixels"] = _draw(plot_metric_curves, curves)
    return {
        "name": name,
        "classes": class_table(entry),
        "methods": method_table({name: entry}),
        "notes": entry.get("notes", []),
        "reasons": reasons_of(entry),
        "plots": plots,
    }


def _draw(plot: Callable[..., None], *data: Any, **options: Any) -> str:
    """A plot as an address that holds it."""
    buffer = io.BytesIO()
    plot(*data, buffer, **options)
    return _address(buffer.getvalue(), "svg+xml")


def _inline(image: Image.Image, kind: str = "webp") -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, quality=80)
    return _address(buffer.getvalue(), kind)


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
