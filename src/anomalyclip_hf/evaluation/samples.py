"""Pictures for a report, of images that a model got wrong and of others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..scoring.engine import score_images
from ..scoring.rows import PreparedRow, prepare_row
from .baselines import OWN, MethodScorer, score_methods
from .visualization import Sample, reduce_image, resize_mask, worst_false_alarms, worst_misses

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from .. import AnomalyCLIPModel, AnomalyCLIPProcessor


def make_samples(
    model: AnomalyCLIPModel,
    processor: AnomalyCLIPProcessor,
    sources: Mapping[str, datasets.Dataset],
    result: Mapping[str, Any],
    count: int = 6,
    method: str = OWN,
    tokenizer: PreTrainedTokenizerBase | None = None,
    sigma: float | None = None,
) -> tuple[dict[str, list[Sample]], list[str]]:
    """Pictures for a report: of each data set the worst misses, the worst false alarms, a few more anomalous images.

    They are scored once more, since maps are not kept. Arguments as in `evaluate_sources`, whose `result` it takes.

    Returns:
        heading to samples, and what failed and why, a line each.
    """
    scorer = MethodScorer(model.eval(), [method], tokenizer)
    score = partial(score_methods, scorer, processor, sigma=sigma)
    groups: dict[str, list[Sample]] = {}
    failed: list[str] = []
    for name, dataset in sources.items():
        scores = result["datasets"][name]["scores"]
        values, labels = scores["scores"][method], [-1 if label is None else label for label in scores["label"]]
        misses = worst_misses(values, labels, count)
        others = [place for place, label in enumerate(labels) if label == 1 and place not in misses]
        places = {
            "worst misses": misses,
            "worst false alarms": worst_false_alarms(values, labels, count),
            "other anomalous images": others[:: max(1, len(others) // count)][:count] if count else [],
        }
        for heading, some in places.items():
            records = score_images(
                dataset,
                partial(_prepare_sample, processor=processor),
                lambda items: score([item[0] for item in items]),
                indices=[scores["index"][place] for place in some],
            )
            for place, record in zip(some, records, strict=True):
                if record.error is not None:
                    failed.append(f"{scores['path'][place]} ({record.error})")
                    continue
                found, maps = record.result
                sample = replace(record.item[1], anomaly_map=maps[method], score=found[method])
                groups.setdefault(f"{name}: {heading}", []).append(sample)
    return groups, failed


def _prepare_sample(row: Mapping[str, Any], processor: AnomalyCLIPProcessor) -> tuple[PreparedRow, Sample]:
    """A row as the model takes it, and as a report shows it."""
    parts = (row["class_name"], row["defect_type"], Path(str(row["path"])).name)
    image = reduce_image(row["image"])
    mask = None if row["mask"] is None else resize_mask(row["mask"], image.size)
    title = " / ".join(str(part) for part in parts if part)
    return prepare_row(row, processor), Sample(image, None, mask, row["label"], title=title)
