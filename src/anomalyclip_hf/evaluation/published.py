"""Published results of AnomalyCLIP (tables 1 and 2 of the paper, and the authors' log), to stand beside ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..data.layouts import find_layout


@dataclass(frozen=True)
class ClassResults:
    """Published results in percent; None where none was published.

    The paper's AUPRO was computed the authors' way, so that is what it is compared with.
    """

    image_auroc: float | None = None
    image_ap: float | None = None
    pixel_auroc: float | None = None
    aupro_authors: float | None = None

    def as_shares(self) -> dict[str, float]:
        """Metric to value in [0, 1], of those that were published."""
        values = {metric: getattr(self, metric) for metric in PUBLISHED_METRICS}
        return {metric: value / 100.0 for metric, value in values.items() if value is not None}


@dataclass(frozen=True)
class PaperResults(ClassResults):
    """Results of the paper, in percent.

    Args:
        trained_on (`str`): the data set the prompts were learned on.
        per_class (`Mapping[str, ClassResults]`): the authors' released log, empty where there is none.
        log_mean (`ClassResults`, *optional*): the mean that log prints; it differs from the paper in places.
    """

    trained_on: str = "mvtec"
    per_class: Mapping[str, ClassResults] = field(default_factory=dict)
    log_mean: ClassResults | None = None


PUBLISHED_METRICS = ("image_auroc", "image_ap", "pixel_auroc", "aupro_authors")

# pixel AUROC, AUPRO, image AUROC, image AP, as the authors' log prints them.
_MVTEC_LOG = {
    "carpet": (98.8, 90.0, 100.0, 100.0),
    "bottle": (90.4, 80.8, 88.7, 96.8),
    "hazelnut": (97.2, 92.5, 97.2, 98.5),
    "leather": (98.6, 92.2, 99.8, 99.9),
    "cable": (78.9, 64.0, 70.3, 81.7),
    "capsule": (95.8, 87.6, 89.5, 97.8),
    "grid": (97.3, 75.4, 97.8, 99.3),
    "pill": (91.8, 88.1, 81.1, 95.3),
    "transistor": (70.8, 58.2, 93.9, 92.1),
    "metal_nut": (74.6, 71.1, 92.4, 98.2),
    "screw": (97.5, 88.0, 82.1, 92.9),
    "toothbrush": (91.9, 88.5, 85.3, 93.9),
    "zipper": (91.3, 65.4, 98.4, 99.5),
    "tile": (94.7, 87.4, 100.0, 100.0),
    "wood": (96.4, 91.5, 96.9, 99.2),
}


def _from_log(pixel_auroc: float, pixel_aupro: float, image_auroc: float, image_ap: float) -> ClassResults:
    return ClassResults(image_auroc, image_ap, pixel_auroc, pixel_aupro)


# name of a data set as in `data.LAYOUTS` -> its results
PUBLISHED: dict[str, PaperResults] = {
    "mvtec": PaperResults(
        *(91.5, 96.2, 91.1, 81.4),
        trained_on="visa",
        per_class={name: _from_log(*row) for name, row in _MVTEC_LOG.items()},
        log_mean=_from_log(91.1, 81.4, 91.6, 96.4),
    ),
    "visa": PaperResults(82.1, 85.4, 95.5, 87.0),
    "mpdd": PaperResults(77.0, 82.0, 96.5, 88.7),
    "btad": PaperResults(88.3, 87.3, 94.2, 74.8),
    "sdd": PaperResults(84.7, 80.0, 90.6, 67.8),
    "dagm": PaperResults(97.5, 92.3, 95.6, 91.0),
    "dtd_synthetic": PaperResults(93.5, 97.0, 97.9, 92.3),
    "headct": PaperResults(93.4, 91.6, None, None),
    "brainmri": PaperResults(90.3, 92.2, None, None),
    "br35h": PaperResults(94.6, 94.7, None, None),
    "covid19": PaperResults(80.1, 58.7, None, None),
    "isic": PaperResults(None, None, 89.7, 78.4),
    "colondb": PaperResults(None, None, 81.9, 71.3),
    "clinicdb": PaperResults(None, None, 82.9, 67.8),
    "kvasir": PaperResults(None, None, 78.9, 45.6),
    "endo": PaperResults(None, None, 84.1, 63.6),
    "tn3k": PaperResults(None, None, 81.5, 50.4),
}


def paper_results(name: str) -> dict[str, Any] | None:
    """Published numbers of a data set as shares: `mean`, `classes` and `log_mean` from the authors' released log.

    Args:
        name (`str`): of the data set, as in `LAYOUTS`.

    Returns:
        None where nothing was published.
    """
    layout = find_layout(name)
    found = PUBLISHED.get(name if layout is None else layout.name)
    if found is None:
        return None
    return {
        "trained_on": found.trained_on,
        "mean": found.as_shares(),
        "log_mean": None if found.log_mean is None else found.log_mean.as_shares(),
        "classes": {one: values.as_shares() for one, values in found.per_class.items()},
    }


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
    if layout is None or (paper := paper_results(name)) is None:
        return
    # A part of the classes has another mean than all of them.
    paper["all_classes"] = set(entry["classes"]) == set(layout.classes) or not paper["classes"]
    paper["difference"] = difference(entry["mean"], paper["mean"]) if paper["all_classes"] else {}
    if not paper["all_classes"]:
        text = f"the paper's mean is over {len(layout.classes)} classes, these are {len(entry['classes'])}"
        entry["notes"].append(f"{text}: no difference of means is given")
    entry["paper"] = paper
