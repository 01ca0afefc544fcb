"""Pictures for a report, of images that a model got wrong and of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..scoring.engine import score_images
from ..scoring.pictures import to_rgb
from ..scoring.rows import PreparedRow, prepare_row
from .baselines import MethodScorer, score_methods
from .visualization import Sample, resize_mask

if TYPE_CHECKING:
    import datasets

    from .. import AnomalyCLIPProcessor

MAX_SHOWN = 1024  # pixels of the longer side: pictures of a report are all kept until it is written


def make_samples(
    scorer: MethodScorer,
    processor: AnomalyCLIPProcessor,
    sources: Mapping[str, datasets.Dataset],
    result: Mapping[str, Any],
    count: int = 6,
    sigma: float | None = None,
) -> tuple[dict[str, list[Sample]], list[str]]:
    """Pictures for a report: of each data set the worst misses, the worst false alarms, a few more anomalous images.

    They are scored once more, by the scorer's one method, since maps are not kept.

    Args:
        result: of `evaluate_sources`.
        count: pictures of each kind and data set.

    Returns:
        heading to samples, and what failed and why, a line each.
    """
    (method,) = scorer.methods
    score = partial(score_methods, scorer, processor, sigma=sigma)
    groups: dict[str, list[Sample]] = {}
    failed: list[str] = []
    for name, dataset in sources.items():
        scores = result["datasets"][name]["scores"]
        for heading, places in choose_images(scores["scores"][method], scores["label"], count).items():
            records = score_images(
                dataset,
                partial(_prepare_sample, processor=processor),
                lambda items: score([item[0] for item in items]),
                indices=[scores["index"][place] for place in places],
            )
            for place, record in zip(places, records, strict=True):
                if record.error is not None:
                    failed.append(f"{scores['path'][place]} ({record.error})")
                    continue
                found, maps = record.result
                sample = replace(record.item[1], anomaly_map=maps[method], score=found[method])
                groups.setdefault(f"{name}: {heading}", []).append(sample)
    return groups, failed


def choose_images(scores: Sequence[float], labels: Sequence[int | None], count: int) -> dict[str, list[int]]:
    """Heading to positions of the images shown below it, worst first."""
    rising = [(place, labels[place]) for place in np.argsort(scores, kind="stable").tolist()]
    anomalous = [place for place, label in rising if label == 1]
    normal = [place for place, label in reversed(rising) if label == 0]
    others = sorted(anomalous[count:])
    return {
        "worst misses": anomalous[:count],
        "worst false alarms": normal[:count],
        "other anomalous images": others[:: max(1, len(others) // count)][:count] if count else [],
    }


def _prepare_sample(row: Mapping[str, Any], processor: AnomalyCLIPProcessor) -> tuple[PreparedRow, Sample]:
    """A row as the model takes it, and as a report shows it."""
    parts = (row["class_name"], row["defect_type"], Path(str(row["path"])).name)
    image = row["image"]
    if max(image.size) > MAX_SHOWN:
        image = to_rgb(image)
        image.thumbnail((MAX_SHOWN, MAX_SHOWN))
    mask = None if row["mask"] is None else resize_mask(row["mask"], image.size)
    title = " / ".join(str(part) for part in parts if part)
    return prepare_row(row, processor), Sample(image, np.zeros((1, 1)), mask, row["label"], title=title)
