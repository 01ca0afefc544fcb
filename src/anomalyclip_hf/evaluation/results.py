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

from ..data.files import atomic_path, one_line
from .metrics import METRICS
from .model_card import prompts_checksum
from .published import PUBLISHED_METRICS, difference
from .report import format_percent, write_report
from .visualization import contact_sheet, fit_scale

if TYPE_CHECKING:
    from .. import AnomalyCLIPModel
    from .visualization import Sample

MAX_ROWS = 24  # of samples.png
SHORT_METRICS = ("image_auroc", "image_ap", "pixel_auroc", "aupro")
PACKAGES = ("anomalyclip_hf", "torch", "transformers", "datasets", "accelerate", "numpy", "scipy", "pillow")
FILES = ("results.json", "results.md", "scores.parquet", "report.html", "samples.png")


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


def to_json(result: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a result that results.json holds: all but scores and curves, which have files of their own."""
    datasets = {
        name: {key: value for key, value in entry.items() if key not in ("scores", "curves")}
        for name, entry in result["datasets"].items()
    }
    return without_nan({**result, "datasets": datasets})


def to_markdown(result: Mapping[str, Any]) -> str:
    """The tables of a run as Markdown: a summary of all data sets and methods, the model, each data set by class."""
    parts = [summary_table(result)]
    if model := result.get("model"):
        names = {"Model": "model", "Base model": "base_model_name_or_path", "Prompts": "prompts"}
        facts = [f"{title}: {one_line(model[key])}" for title, key in names.items() if model.get(key)]
        parts.append("\n".join(f"- {fact}" for fact in [*facts, f"SHA-256 of the prompts: {model['prompts_sha256']}"]))
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
    rows = [["data set", "method", *(METRICS[metric].title for metric in shown)]]
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
    heading = ["class", *(metric.title for metric in METRICS.values())]
    if published:
        heading += [f"log: {METRICS[one].title}" for one in PUBLISHED_METRICS]
        heading += [f"± {METRICS[one].title}" for one in PUBLISHED_METRICS]
    rows = [heading]

    def add(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
        row = [name, *_cells(ours, list(METRICS))]
        if published:
            compared = PUBLISHED_METRICS
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
            if not_drawn is None:
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
