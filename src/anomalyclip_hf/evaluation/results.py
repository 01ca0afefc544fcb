"""What a run leaves behind: results.json, results.md, scores.parquet and report.html, the paper's numbers beside ours.

All metrics are shares in [0, 1] in JSON and in memory, and percentages in tables.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.files import atomic_path, is_disk_full, one_line
from ..data.layouts import ClassResults, find_layout
from .model_card import prompts_checksum
from .report import METRIC_NAMES, format_percent, write_report
from .tally import METRICS
from .visualization import contact_sheet, fit_scale

if TYPE_CHECKING:
    from .. import AnomalyCLIPModel, AnomalyCLIPProcessor
    from .visualization import Sample

MAX_ROWS = 24  # of samples.png
SHORT_METRICS = ("image_auroc", "image_ap", "pixel_auroc", "aupro")
# The paper's AUPRO was computed the authors' way, so that is what it is compared with.
PAPER_METRICS = {
    "image_auroc": "image_auroc",
    "image_ap": "image_ap",
    "pixel_auroc": "pixel_auroc",
    "pixel_aupro": "aupro_authors",
}
PACKAGES = ("anomalyclip_hf", "torch", "transformers", "datasets", "accelerate", "numpy", "scipy", "pillow")
FILES = ("results.json", "results.md", "scores.parquet", "report.html", "samples.png")


def mean_over_classes(classes: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, int]]:
    """Mean of each metric over the classes that define it (NaN where none does), and the number of those classes."""
    mean, counts = {}, {}
    for metric in METRICS:
        defined = [value for values in classes.values() if not math.isnan(value := values.get(metric, math.nan))]
        mean[metric] = math.fsum(defined) / len(defined) if defined else math.nan
        counts[metric] = len(defined)
    return mean, counts


def paper_results(name: str) -> dict[str, Any] | None:
    """Published numbers of a data set as shares: `mean`, `classes` and `log_mean` from the authors' released log.

    Args:
        name (`str`): of the data set, as in `LAYOUTS`. None is answered where nothing was published.
    """
    layout = find_layout(name)
    if layout is None or layout.paper_results is None:
        return None
    found = layout.paper_results
    return {
        "trained_on": found.trained_on,
        "mean": _as_shares(found),
        "log_mean": None if found.log_mean is None else _as_shares(found.log_mean),
        "classes": {one: _as_shares(values) for one, values in found.per_class.items()},
    }


def _as_shares(found: ClassResults) -> dict[str, float]:
    pairs = ((ours, getattr(found, theirs)) for theirs, ours in PAPER_METRICS.items())
    return {ours: value / 100.0 for ours, value in pairs if value is not None}


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float]:
    """Ours less theirs, for the metrics that both have."""
    return {
        metric: ours[metric] - value
        for metric, value in theirs.items()
        if metric in ours and not math.isnan(ours[metric])
    }


def add_paper(entry: dict[str, Any], name: str) -> None:
    """Give a data set its title and, where something was published, those numbers with the difference of the means."""
    layout = find_layout(name)
    entry["title"] = name if layout is None else layout.title
    if (paper := paper_results(name)) is not None:
        # A part of the classes has another mean than all of them.
        complete = layout is not None and set(entry["classes"]) == set(layout.classes)
        paper["all_classes"] = complete or not paper["classes"]
        paper["difference"] = difference(entry["mean"], paper["mean"]) if paper["all_classes"] else {}
        if not paper["all_classes"] and layout is not None:
            text = f"the paper's mean is over {len(layout.classes)} classes, these are {len(entry['classes'])}"
            entry["notes"].append(f"{text}: no difference of means is given")
        entry["paper"] = paper


def add_rates(entry: dict[str, Any], threshold: float | None) -> None:
    """Say of a data set what the model's image threshold does: recall and the share of false alarms."""
    if threshold is None:
        return
    scores = entry["scores"]
    found: dict[str, float] = {"threshold": threshold}
    values = next(iter(scores["scores"].values()))
    for name, wanted in (("recall", 1), ("false_alarm_rate", 0)):
        called = [value >= threshold for value, label in zip(values, scores["label"], strict=True) if label == wanted]
        if called:
            found[name] = sum(called) / len(called)
    entry["at_image_threshold"] = found


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def describe_model(model: AnomalyCLIPModel) -> dict[str, Any]:
    """What of a model decides the numbers, as plain values."""
    fields = (
        "base_model_name_or_path",
        "image_size",
        "feature_layers",
        "dpam_layers",
        "dpam_attention",
        "temperature",
    )
    found: dict[str, Any] = {"model": model.name_or_path, "dtype": str(model.dtype).removeprefix("torch.")}
    found["prompts"] = getattr(model, "prompts_source", None) or model.name_or_path
    found["prompts_sha256"] = prompts_checksum(model)
    return found | {name: getattr(model.config, name) for name in fields}


def without_nan(value: Any) -> Any:
    """A copy of plain data with None for NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): without_nan(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def restore_nan(part: dict[str, Any]) -> dict[str, Any]:
    """Undo `without_nan` for the metrics of a class."""
    for values in part["metrics"].values():
        values |= {key: math.nan for key, value in values.items() if value is None}
    return part


def to_json(result: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a result that results.json holds: all but scores and curves, which have files of their own."""
    datasets = {
        name: {key: value for key, value in entry.items() if key not in ("scores", "curves")}
        for name, entry in result["datasets"].items()
    }
    return without_nan({**result, "datasets": datasets})


def to_markdown(result: Mapping[str, Any]) -> str:
    """The tables of a run as Markdown: a summary of all data sets and methods, then each data set by class."""
    parts = [summary_table(result)]
    for name, entry in result["datasets"].items():
        parts.append(f"## {name}\n\n{class_table(entry)}")
        parts += [f"- {note}" for note in entry.get("notes", [])]
        reasons = {why for values in entry["classes"].values() for why in values.get("reasons", {}).values()}
        parts += [f"- undefined: {why}" for why in sorted(reasons)]
    return "\n\n".join(parts) + "\n"


def short_table(result: Mapping[str, Any]) -> str:
    """The summary with few columns, for a terminal or a README; the authors' AUPRO only beside the paper's."""
    published = any(entry.get("paper") for entry in result["datasets"].values())
    return summary_table(result, [*SHORT_METRICS, "aupro_authors"] if published else SHORT_METRICS)


def summary_table(result: Mapping[str, Any], metrics: Sequence[str] | None = None) -> str:
    """One row per data set and method, in percent, means over classes; the paper's row and the difference below."""
    entries = result["datasets"]
    shown = list(metrics or METRICS)
    rows = [["data set", "method", *(METRIC_NAMES[metric] for metric in shown)]]
    for name, entry in entries.items():
        rows += [[name, method["title"], *_cells(method["mean"], shown)] for method in entry["methods"].values()]
        if paper := entry.get("paper"):
            rows.append([name, f"paper (trained on {paper['trained_on']})", *_cells(paper["mean"], shown)])
            if paper["difference"]:
                rows.append([name, "difference", *_signed(paper["difference"], shown)])
    return _table(rows, 2)


def class_table(entry: Mapping[str, Any]) -> str:
    """One row per class, in percent, with the numbers of the authors' log and the difference where there are any."""
    paper = entry.get("paper") or {}
    published = paper.get("classes", {})
    heading = ["class", *METRIC_NAMES.values()]
    if published:
        heading += [f"log: {METRIC_NAMES[one]}" for one in PAPER_METRICS.values()]
        heading += [f"± {METRIC_NAMES[one]}" for one in PAPER_METRICS.values()]
    rows = [heading]

    def add(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
        row = [name, *_cells(ours, METRICS)]
        if published:
            compared = list(PAPER_METRICS.values())
            row += [*_cells(theirs, compared), *_signed(difference(ours, theirs), compared)]
        rows.append(row)

    for name, values in entry["classes"].items():
        add(name, values, published.get(name, {}))
    complete = paper.get("all_classes", False)
    add("**mean**", entry["mean"], (paper.get("log_mean") or paper.get("mean", {})) if complete else {})
    return _table(rows, 1)


def _cells(values: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    return [format_percent(values.get(metric)) for metric in metrics]


def _signed(values: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    return [f"{100.0 * values[metric]:+.1f}" if metric in values else "–" for metric in metrics]


def _table(rows: list[list[str]], num_text: int) -> str:
    rows = [[one_line(cell).replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(cells: list[str]) -> str:
        padded = [
            cell.ljust(width) if column < num_text else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if column < num_text else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([line(rows[0]), line(rule), *(line(row) for row in rows[1:])])


def write_results(
    result: Mapping[str, Any],
    output_dir: str | os.PathLike,
    samples: Mapping[str, Sequence[Sample]] | None = None,
    *,
    title: str = "AnomalyCLIP evaluation",
    scale: tuple[float, float] | None = None,
    pixel_threshold: float | None = None,
    not_drawn: list[str] | None = None,
) -> dict[str, Path]:
    """Write `FILES` (samples.png where there are samples), each complete or not at all, the numbers first.

    Args:
        result: of `evaluate_sources`.
        output_dir: folder, made if absent.
        samples: pictures of the report, by heading.
        title: of the report.
        scale: ends of the one color scale of all maps; fitted to those shown where None.
        pixel_threshold: adds predicted masks to the pictures.
        not_drawn: gets the name of a report or sheet that fails, and why; None raises instead.

    Returns:
        file name to path.
    """
    paths = {name: Path(output_dir, name) for name in FILES}
    with atomic_path(paths["results.json"]) as temporary:
        text = json.dumps(to_json(result), indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    with atomic_path(paths["results.md"]) as temporary:
        temporary.write_text(to_markdown(result), encoding="utf-8", errors="backslashreplace")
    write_scores(result, paths["scores.parquet"])
    shown = [sample for group in (samples or {}).values() for sample in group]
    if scale is None:
        scale = fit_scale(sample.anomaly_map for sample in shown) if shown else (0.0, 1.0)
    drawing: dict[str, Any] = {"vmin": scale[0], "vmax": scale[1], "pixel_threshold": pixel_threshold}
    report = {
        "settings": {**result.get("model", {}), **result.get("settings", {}), **result.get("versions", {})},
        "datasets": {name: _report_entry(entry) for name, entry in result["datasets"].items()},
    }
    drawings: dict[str, Callable[[Path], None]] = {
        "report.html": lambda path: write_report(report, path, samples=samples, title=title, **drawing)
    }
    if shown:
        drawings["samples.png"] = lambda path: contact_sheet(shown[:MAX_ROWS], path, title=title, **drawing)
    for name, draw in drawings.items():
        try:
            draw(paths[name])
        except Exception as error:
            if not_drawn is None or is_disk_full(error):
                raise
            not_drawn.append(f"{name} ({type(error).__name__}: {error})")
    return paths


def write_scores(result: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write one row per data set, method and image: dataset, method, class_name, path, defect_type, label, score."""
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, list] = {"dataset": [], "method": [], "class_name": [], "path": []}
    columns |= {"defect_type": [], "label": [], "score": []}
    for name, entry in result["datasets"].items():
        scores = entry["scores"]
        for method, values in scores["scores"].items():
            columns["dataset"] += [name] * len(values)
            columns["method"] += [method] * len(values)
            columns["score"] += values
            columns["label"] += scores["label"]
            for key in ("class_name", "path", "defect_type"):  # names that are no Unicode are written with escapes
                columns[key] += [text and str(text).encode(errors="backslashreplace").decode() for text in scores[key]]
    types = {"label": pa.int8(), "score": pa.float64()}
    arrays = {key: pa.array(values, types.get(key, pa.string())) for key, values in columns.items()}
    with atomic_path(path) as temporary:
        parquet.write_table(pa.table(arrays), temporary)


def _report_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    scores = entry.get("scores") or {"label": []}
    known = [place for place, label in enumerate(scores["label"]) if label is not None]
    shown: dict[str, Any] = {"classes": entry["classes"], "mean": entry["mean"], "curves": entry.get("curves")}
    if len(entry["methods"]) > 1:
        shown["methods"] = {method["title"]: method["mean"] for method in entry["methods"].values()}
    if entry.get("paper"):
        shown["published"] = entry["paper"]["mean"]
    if known:
        values = next(iter(scores["scores"].values()))
        shown["scores"] = {
            "score": [values[place] for place in known],
            "label": [scores["label"][place] for place in known],
            "class_name": [scores["class_name"][place] for place in known],
        }
    return shown
