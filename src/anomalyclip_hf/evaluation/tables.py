"""The tables of a run, in percent: built here once, shown in results.md, in the terminal and in report.html."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ..data.files import one_line
from .metrics import METRICS
from .published import PUBLISHED_METRICS, difference


class Table(NamedTuple):
    """Rows of text.

    Args:
        rows: all of one length, the heading first.
        num_text: leading columns of words; the numbers after them stand right.
        num_footer: last rows that sum up those above.
    """

    rows: list[list[str]]
    num_text: int = 1
    num_footer: int = 0

    def to_markdown(self) -> str:
        """The table as aligned Markdown."""
        rows = [[one_line(cell).replace("|", "\\|") for cell in row] for row in self.rows]
        for row in rows[len(rows) - self.num_footer :]:
            row[0] = f"**{row[0]}**"
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        is_text = [column < self.num_text for column in range(len(widths))]
        rule = ["-" * width if text else "-" * (width - 1) + ":" for width, text in zip(widths, is_text, strict=True)]
        lines = []
        for row in [rows[0], rule, *rows[1:]]:
            cells = zip(row, widths, is_text, strict=True)
            lines.append(" | ".join(cell.ljust(width) if text else cell.rjust(width) for cell, width, text in cells))
        return "\n".join(f"| {line} |" for line in lines)


def percent(value: float | None, sign: str = "") -> str:
    """A share in [0, 1] as a percentage with one decimal, an en dash where it is missing or undefined; `sign="+"` is
    for differences."""
    return "–" if value is None or not math.isfinite(value) else f"{100.0 * float(value):{sign}.1f}"


def method_table(entries: Mapping[str, Mapping[str, Any]], metrics: Sequence[str] | None = None) -> Table:
    """A row for each data set and method: means over classes, the paper's below ours, and the difference; ± is the
    standard deviation over draws of references.

    `entries` are results of data sets by name, `metrics` keys of `METRICS`: those that a data set has where None.
    """
    means = [method["mean"] for entry in entries.values() for method in entry.get("methods", {}).values()]
    shown = _metrics_of(means) if metrics is None else list(metrics)
    rows = [["data set", "method", *(METRICS[metric].title for metric in shown)]]
    for name, entry in entries.items():
        for method in entry.get("methods", {}).values():
            cells, spread = _cells(method["mean"], shown), method.get("spread")
            if spread:
                cells = [
                    one if other == "–" else f"{one} ± {other}"
                    for one, other in zip(cells, _cells(spread, shown), strict=True)
                ]
            rows.append([name, method["title"], *cells])
        if paper := entry.get("paper"):
            rows.append([name, f"paper (trained on {paper['trained_on']})", *_cells(paper["mean"], shown)])
            if paper["difference"]:
                rows.append([name, "difference", *_cells(paper["difference"], shown, "+")])
    return Table(rows, num_text=2)


def class_table(entry: Mapping[str, Any]) -> Table:
    """A row for each class and their mean, with the numbers of the authors' log and the differences from it."""
    paper = entry.get("paper") or {}
    shown = _metrics_of(entry["classes"].values())
    logged = PUBLISHED_METRICS if paper.get("classes") else ()
    rows = [["class", *(METRICS[metric].title for metric in shown)]]
    rows[0] += [f"{sign} {METRICS[metric].title}" for sign in ("log:", "±") for metric in logged]

    def add(name: str, ours: Mapping[str, float], theirs: Mapping[str, float]) -> None:
        compared = [*_cells(theirs, logged), *_cells(difference(ours, theirs), logged, "+")]
        rows.append([name, *_cells(ours, shown), *compared])

    for name, values in entry["classes"].items():
        add(name, values, paper.get("classes", {}).get(name, {}))
    if "mean" in entry:
        add("mean", entry["mean"], (paper["log_mean"] or paper["mean"]) if paper.get("all_classes") else {})
    return Table(rows, num_footer=int("mean" in entry))


def reasons_of(entry: Mapping[str, Any]) -> list[str]:
    """Why metrics of a data set's classes are undefined, each reason once."""
    return sorted({why for values in entry["classes"].values() for why in values.get("reasons", {}).values()})


def _metrics_of(found: Collection[Mapping[str, float]]) -> list[str]:
    return [metric for metric in METRICS if any(metric in values for values in found)]


def _cells(values: Mapping[str, float], metrics: Sequence[str], sign: str = "") -> list[str]:
    return [percent(values.get(metric), sign) for metric in metrics]
