"""Plots of a run: ROC, PR and PRO curves, score histograms, training curves.

matplotlib is loaded when a plot is drawn. The format follows the suffix of the path: .png, .svg or .pdf; a buffer gets
SVG.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..data.files import atomic_path, one_line
from ..scoring.ranking import Values, to_numpy
from .metrics import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Target: TypeAlias = "str | os.PathLike | io.BytesIO"
# Okabe and Ito's colors, which color-blind readers can tell apart; line styles tell the eighth line from the first.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
NORMAL_COLOR, ANOMALOUS_COLOR = COLORS[0], COLORS[1]
NUM_BINS = 40  # of a histogram
# A "$" in a name is no mathematics.
OWN_STYLE = {"savefig.dpi": 150, "svg.fonttype": "none", "svg.hashsalt": "0", "text.parse_math": False}
STYLE: list[str | dict[str, Any]] = ["seaborn-v0_8-whitegrid", "seaborn-v0_8-paper", OWN_STYLE]

_AXES = {
    "roc": ("ROC", "false-positive rate", "true-positive rate"),
    "pr": ("Precision and recall", "recall", "precision"),
    "pro": ("Per-region overlap", "false-positive rate", "mean region overlap"),
}


def plot_metric_curves(curves: Mapping[str, Mapping[str, Curve]], path: Target, fpr_limit: float = 0.3) -> None:
    """Plot ROC, PR and PRO curves side by side, one line per class or run.

    Args:
        curves: line name to `{"roc": Curve, "pr": Curve, "pro": Curve}`, as `curves_of` returns;
            kinds that no line has get no panel.
        path: file to write.
        fpr_limit: shaded in the PRO panel as the part that AUPRO measures.
    """
    kinds = [kind for kind in _AXES if any(kind in lines for lines in curves.values())]
    if not kinds:
        raise ValueError("curves holds none of roc, pr, pro: they are empty where a class has no anomaly")
    with _drawing(path, len(kinds), 1, (3.6, 3.5)) as (figure, axes):
        for axis, kind in zip(axes, kinds, strict=True):
            heading, x_name, y_name = _AXES[kind]
            for number, (name, lines) in enumerate(curves.items()):
                if kind in lines:
                    axis.plot(*lines[kind], label=_label(name), **_line(number))
            if kind == "roc":
                axis.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":", zorder=0)
            if kind == "pro":
                axis.axvspan(0, fpr_limit, color="#000000", alpha=0.06, linewidth=0, zorder=0)
                heading += " (shaded: AUPRO)"
            axis.set(title=heading, xlabel=x_name, ylabel=y_name, xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), aspect=1)
        if len(curves) > 1:
            _outside_legend(figure, axes[0])


def plot_score_histograms(scores: Values, labels: Values, path: Target, classes: Sequence[str]) -> None:
    """Plot how the scores of normal and anomalous images lie, one panel per class on one common axis.

    Args:
        scores: `(N,)` float scores.
        labels: `(N,)` 0 or 1.
        path: file to write.
        classes: `(N,)` class of each image.
    """
    scores, labels, names = to_numpy(scores).astype(np.float64), to_numpy(labels), np.asarray(list(classes))
    if len(scores) == 0 or not scores.shape == labels.shape == names.shape == (len(scores),):
        shapes = f"{scores.shape}, {labels.shape} and {names.shape}"
        raise ValueError(f"scores, labels and classes have the shapes {shapes}: expected (N,) of each, N > 0")
    panels = sorted(set(names.tolist()))
    columns = min(len(panels), 4)
    edges = np.linspace(scores.min(), scores.max() if scores.max() > scores.min() else scores.min() + 1, NUM_BINS + 1)
    with _drawing(path, columns, -(-len(panels) // columns), (3.0 if columns > 1 else 5.0, 2.2)) as (figure, axes):
        for axis, name in zip(axes, panels, strict=False):
            for label, color, text in ((0, NORMAL_COLOR, "normal"), (1, ANOMALOUS_COLOR, "anomalous")):
                chosen = scores[(names == name) & (labels == label)]
                style: dict[str, Any] = {"facecolor": color, "edgecolor": color, "hatch": "///" if label else None}
                axis.hist(chosen, edges.tolist(), label=text, histtype="stepfilled", linewidth=1.0, alpha=0.5, **style)
            axis.set(title=_label(name, 26), xlabel="anomaly score", ylabel="images", xlim=(edges[0], edges[-1]))
            axis.locator_params(axis="y", integer=True)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        _outside_legend(figure, axes[0])


def plot_curves(history: Sequence[Mapping[str, Any]], path: Target, x: str = "epoch") -> None:
    """Plot the course of a training: losses in one panel, everything else (validation metrics) in another.

    Args:
        history: one dict of numbers per step or epoch; keys may be missing from some of them.
        path: file to write.
        x: key of the horizontal axis; the position in `history` where absent.
    """
    skipped = {x, "epoch", "step", "lr", "learning_rate", "seconds"}
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {"loss": {}, "validation": {}}
    for place, entry in enumerate(history):
        for key, value in entry.items():
            if key not in skipped and isinstance(value, (int, float)) and not isinstance(value, bool):
                series = panels["loss" if "loss" in key else "validation"].setdefault(key, [])
                series.append((float(entry.get(x, place)), float(value)))
    panels = {heading: lines for heading, lines in panels.items() if lines}
    if not panels:
        raise ValueError(f"none of the {len(history)} entries of history has numbers to plot")
    with _drawing(path, len(panels), 1, (4.6, 3.2)) as (figure, axes):
        figure.suptitle("Training of the prompts")
        for axis, (heading, lines) in zip(axes, panels.items(), strict=True):
            for number, (key, points) in enumerate(lines.items()):
                marker = "o" if len(points) <= 30 else None
                axis.plot(*zip(*points, strict=True), label=key, marker=marker, **_line(number))
            axis.set(title=heading, xlabel=x)
            axis.locator_params(axis="x", integer=True)
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def _label(name: str, length: int = 40) -> str:
    """A name from data as matplotlib shows it whole: one line, not too long, no "_" first (that would hide it)."""
    text = one_line(name)
    if len(text) > length:
        text = f"{text[: length // 2]}…{text[-(length // 2 - 1) :]}"
    return f" {text}" if text.startswith("_") else text


def _line(number: int) -> dict[str, Any]:
    style = STYLES[number // len(COLORS) % len(STYLES)]
    return {"color": COLORS[number % len(COLORS)], "linestyle": style}


def _outside_legend(figure: Figure, axis: Axes) -> None:
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 6))


@contextmanager
def _drawing(path: Target, columns: int, rows: int, panel: tuple[float, float]) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with panels of a size in inches, written when the block ends."""
    # The object interface: pyplot would keep figures alive and pick a display.
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of scripts that the font lacks
        figure = Figure(figsize=(columns * panel[0], rows * panel[1]), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False).ravel().tolist()
        if isinstance(path, io.BytesIO):
            figure.savefig(path, format="svg")
            return
        with atomic_path(path) as temporary:
            figure.savefig(temporary)
