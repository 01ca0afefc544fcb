"""What a run leaves behind: results.json, results.md, scores.parquet and report.html, the paper's numbers beside ours.

All metrics are shares in [0, 1] in JSON and in memory, and percentages in tables.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.files import atomic_path, one_line, write_text
from .metrics import ASKED_METRICS
from .model_card import prompts_checksum
from .report import write_report
from .tables import class_table, method_table, reasons_of

if TYPE_CHECKING:
    from .. import AnomalyCLIPModel
    from .visualization import Sample

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
        **({"profile": model.profile.name} if model.profile is not None else {}),
    }


def to_json(result: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a result that results.json holds: all but scores and curves, which have files of their own, and None
    for NaN, which JSON does not have."""
    datasets = {
        name: {key: value for key, value in entry.items() if key not in ("scores", "curves")}
        for name, entry in result["datasets"].items()
    }
    text = json.dumps({**result, "datasets": datasets}, default=lambda value: value.item())
    return json.loads(text, parse_constant=lambda name: None)


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
    pixel_threshold: float | None = None,
) -> list[str]:
    """Write results.json, results.md, scores.parquet and report.html, each complete or not at all, the numbers first.

    Args:
        result: of `evaluate_sources`.
        samples: pictures of the report, by heading.
        pixel_threshold: adds predicted masks to the pictures.

    Returns:
        the report and why it failed, if it did.
    """
    folder = Path(output_dir)
    text = json.dumps(to_json(result), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for name, content in (("results.json", text), ("results.md", to_markdown(result))):
        write_text(folder / name, content)
    write_scores(result, folder / "scores.parquet")
    try:
        write_report(result, folder / "report.html", samples, pixel_threshold)
    except Exception as error:  # when the numbers are safe
        return [f"report.html ({type(error).__name__}: {error})"]
    return []


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
