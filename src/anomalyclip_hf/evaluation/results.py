"""What a run leaves behind: results.json, results.md, scores.parquet and report.html, the paper's numbers beside ours.

All metrics are shares in [0, 1] in JSON and in memory, and percentages in tables.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.files import atomic_path, one_line
from .metrics import ASKED_METRICS
from .model_card import prompts_checksum
from .report import write_report
from .tables import class_table, method_table, reasons_of
from .visualization import contact_sheet, fit_scale

if TYPE_CHECKING:
    from .. import AnomalyCLIPModel
    from .visualization import Sample

MAX_ROWS = 24  # of samples.png
TITLE = "AnomalyCLIP evaluation"
SHORT_METRICS = ("image_auroc", "image_ap", "pixel_auroc", "aupro")
PACKAGES = ("anomalyclip_hf", "torch", "transformers", "datasets", "accelerate", "numpy", "scipy", "pillow")
MODEL_FIELDS = (
    "base_model_name_or_path",
    "image_size",
    "feature_layers",
    "dpam_layers",
    "dpam_attention",
    "temperature",
)
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
    return {
        "model": model.name_or_path,
        "dtype": str(model.dtype).removeprefix("torch."),
        "prompts": getattr(model, "prompts_source", None) or model.name_or_path,
        "prompts_sha256": prompts_checksum(model),
        **{name: getattr(model.config, name) for name in MODEL_FIELDS},
    }


def to_json(result: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a result that results.json holds: all but scores and curves, which have files of their own."""
    datasets = {
        name: {key: value for key, value in entry.items() if key not in ("scores", "curves")}
        for name, entry in result["datasets"].items()
    }
    return _without_nan({**result, "datasets": datasets})


def _without_nan(value: Any) -> Any:
    """A copy of plain data with None for NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _without_nan(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_markdown(result: Mapping[str, Any]) -> str:
    """The tables of a run as Markdown: a summary of all data sets and methods, the model, each data set by class."""
    parts = [method_table(result["datasets"]).to_markdown()]
    if model := result.get("model"):
        names = {"Model": "model", "Base model": "base_model_name_or_path", "Prompts": "prompts"}
        names["SHA-256 of the prompts"] = "prompts_sha256"
        parts.append("\n".join(f"- {title}: {one_line(model[key])}" for title, key in names.items() if model.get(key)))
    for name, entry in result["datasets"].items():
        parts.append(f"## {name}\n\n{class_table(entry).to_markdown()}")
        parts += [f"- {note}" for note in entry.get("notes", [])]
        parts += [f"- undefined: {why}" for why in reasons_of(entry)]
    return "\n\n".join(parts) + "\n"


def short_table(result: Mapping[str, Any]) -> str:
    """The summary with few columns, for a terminal; the authors' AUPRO beside the paper's, others if asked for."""
    published = any(entry.get("paper") for entry in result["datasets"].values())
    found = {metric for entry in result["datasets"].values() for metric in entry["mean"]}
    metrics = [*SHORT_METRICS, *(["aupro_authors"] if published else [])]
    metrics += [metric for metric in ASKED_METRICS if metric in found]
    return method_table(result["datasets"], metrics).to_markdown()


def write_results(
    result: Mapping[str, Any],
    output_dir: str | os.PathLike,
    samples: Mapping[str, Sequence[Sample]] | None = None,
    *,
    pixel_threshold: float | None = None,
    not_drawn: list[str] | None = None,
) -> dict[str, Path]:
    """Write `FILES` (samples.png where there are samples), each complete or not at all, the numbers first.

    Args:
        result: of `evaluate_sources`.
        output_dir: folder, made if absent.
        samples: pictures of the report, by heading.
        pixel_threshold: adds predicted masks to the pictures.
        not_drawn: gets the name of a report or sheet that fails, and why; None raises instead.

    Returns:
        file name to path.
    """
    paths = {name: Path(output_dir, name) for name in FILES}
    write_numbers(result, paths["results.json"])
    with atomic_path(paths["results.md"]) as temporary:
        temporary.write_text(to_markdown(result), encoding="utf-8", errors="backslashreplace")
    write_scores(result, paths["scores.parquet"])
    shown = [sample for group in (samples or {}).values() for sample in group]
    vmin, vmax = fit_scale(sample.anomaly_map for sample in shown) if shown else (0.0, 1.0)
    drawing: dict[str, Any] = {"vmin": vmin, "vmax": vmax, "pixel_threshold": pixel_threshold, "title": TITLE}
    drawings: dict[str, Callable[..., None]] = {"report.html": partial(write_report, result, samples=samples)}
    if shown:
        drawings["samples.png"] = partial(contact_sheet, shown[:MAX_ROWS])
    for name, draw in drawings.items():
        try:
            draw(path=paths[name], **drawing)
        except Exception as error:
            if not_drawn is None:
                raise
            not_drawn.append(f"{name} ({type(error).__name__}: {error})")
    return paths


def write_numbers(result: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write results.json."""
    text = json.dumps(to_json(result), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_scores(result: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write one row per data set, method and image: dataset, method, class_name, path, defect_type, label, score."""
    import pyarrow as pa
    from pyarrow import parquet

    texts = ("class_name", "path", "defect_type")
    fields = [(name, pa.string()) for name in ("dataset", "method", *texts)]
    rows = []
    for name, entry in result["datasets"].items():
        scores = entry["scores"]
        for method, values in scores["scores"].items():
            for place, score in enumerate(values):
                row = {"dataset": name, "method": method, "label": scores["label"][place], "score": score}
                rows.append(row | {key: _in_unicode(scores[key][place]) for key in texts})
    schema = pa.schema([*fields, ("label", pa.int8()), ("score", pa.float64())])
    with atomic_path(path) as temporary:
        parquet.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)


def _in_unicode(text: str | None) -> str | None:
    """A name from data; where it is no Unicode, with escapes."""
    return text and str(text).encode(errors="backslashreplace").decode()
