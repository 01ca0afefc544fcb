"""What references buy: data sets judged with few good images of their own, which are then not judged."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.files import atomic_path
from .evaluator import evaluate_model
from .metrics import METRICS
from .results import SHORT_METRICS, to_json

if TYPE_CHECKING:
    import datasets

    from .. import AnomalyCLIPModel, AnomalyCLIPProcessor


def evaluate_shots(
    model: AnomalyCLIPModel,
    processor: AnomalyCLIPProcessor,
    sources: Mapping[str, datasets.Dataset],
    result: dict[str, Any],
    output_dir: str | os.PathLike,
    shots: Sequence[int],
    draws: int = 3,
    seed: int = 0,
    **settings: Any,
) -> None:
    """Judge data sets with references drawn from the good images of each class, and add `shots` to a result.

    Args:
        model, processor, sources: as of `evaluate_sources`.
        result: what that returned; gets `shots`, a list of one row for each data set and number of references:
            `dataset`, `shots`, `draws`, and `mean` and `spread` (the standard deviation over draws) of each metric's
            mean over classes; classes that have too few good images are left out and named in `too_few`.
        output_dir: whose results.json is written again.
        shots, draws: numbers of references, and how often each of them is drawn; the references of a smaller number
            are among those of a larger one.
        seed: of the first draw.
        **settings: of `evaluate_model`.
    """
    rows = []
    for name, dataset in sources.items():
        found: dict[str, list[int]] = {}
        for index, one in enumerate(dataset["class_name"]):
            found.setdefault(str(one), []).append(index)
        labels, metrics = dataset["label"], list(result["datasets"][name]["mean"])
        paths, damaged = dataset["path"], {one["path"] for one in result["datasets"][name]["unreadable"]}
        for number in shots:
            drawn, too_few = [], set()
            for draw in range(draws if number else 1):
                classes = []
                for one, members in found.items():
                    good = [index for index in members if labels[index] == 0 and str(paths[index]) not in damaged]
                    if len(good) <= number:
                        too_few.add(one)
                        continue
                    chosen = np.random.default_rng([seed + draw]).permutation(good)[:number].tolist()
                    judged = dataset.select([index for index in members if index not in chosen])
                    images = [row["image"] for row in dataset.select(chosen)] if chosen else None
                    classes.append(_judge(model, processor, judged, images, f"{name}, {number} references", settings))
                drawn.append({metric: _mean([one.get(metric, math.nan) for one in classes]) for metric in metrics})
            row = {"dataset": name, "shots": number, "draws": len(drawn), "too_few": sorted(too_few)}
            row["mean"] = {metric: _mean([one[metric] for one in drawn]) for metric in metrics}
            row["spread"] = {metric: float(np.std([one[metric] for one in drawn])) for metric in metrics}
            rows.append(row)
    result["shots"] = rows
    accelerator = settings.get("accelerator")
    if accelerator is None or accelerator.is_main_process:
        with atomic_path(Path(output_dir, "results.json")) as temporary:
            text = json.dumps(to_json(result), indent=2, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def _judge(model, processor, dataset, images: list | None, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of one class with references; the model's own are put back."""
    before = model.references
    weight = None if before is None else before.weight
    try:
        given = {"processor": processor, "reference_weight": weight}
        model.references = None if images is None else model.make_references(images, **given)
        settings = {**settings, "save_maps": None}
        return evaluate_model(model, processor, dataset, name=name, **settings)["mean"]
    finally:
        model.references = before


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def shots_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of the rows, in percent: mean ± spread over draws."""
    lines = [["data set", "references", *(METRICS[metric].title for metric in SHORT_METRICS)]]
    for row in rows:
        cells = [f"{100 * row['mean'][one]:.1f} ± {100 * row['spread'][one]:.1f}" for one in SHORT_METRICS]
        lines.append([row["dataset"], str(row["shots"]), *cells])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
