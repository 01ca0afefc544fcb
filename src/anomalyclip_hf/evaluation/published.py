"""Published results of AnomalyCLIP (tables 1 and 2 of the paper, and the authors' log), to stand beside ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..data.layouts import find_layout


class ClassResults(NamedTuple):
    """Published results in percent; None where none was published.

    The paper's AUPRO was computed the authors' way, so that is what it is compared with.
    """

    image_auroc: float | None = None
    image_ap: float | None = None
    pixel_auroc: float | None = None
    aupro_authors: float | None = None

    def as_shares(self) -> dict[str, float]:
        """Metric to value in [0, 1], of those that were published."""
        return {metric: value / 100.0 for metric, value in self._asdict().items() if value is not None}


PUBLISHED_METRICS = ClassResults._fields

# The authors' released log of MVTec AD, and the mean that it prints, which differs from the paper in places.
MVTEC_LOG = {
    "carpet": ClassResults(100.0, 100.0, 98.8, 90.0),
    "bottle": ClassResults(88.7, 96.8, 90.4, 80.8),
    "hazelnut": ClassResults(97.2, 98.5, 97.2, 92.5),
    "leather": ClassResults(99.8, 99.9, 98.6, 92.2),
    "cable": ClassResults(70.3, 81.7, 78.9, 64.0),
    "capsule": ClassResults(89.5, 97.8, 95.8, 87.6),
    "grid": ClassResults(97.8, 99.3, 97.3, 75.4),
    "pill": ClassResults(81.1, 95.3, 91.8, 88.1),
    "transistor": ClassResults(93.9, 92.1, 70.8, 58.2),
    "metal_nut": ClassResults(92.4, 98.2, 74.6, 71.1),
    "screw": ClassResults(82.1, 92.9, 97.5, 88.0),
    "toothbrush": ClassResults(85.3, 93.9, 91.9, 88.5),
    "zipper": ClassResults(98.4, 99.5, 91.3, 65.4),
    "tile": ClassResults(100.0, 100.0, 94.7, 87.4),
    "wood": ClassResults(96.9, 99.2, 96.4, 91.5),
}
MVTEC_LOG_MEAN = ClassResults(91.6, 96.4, 91.1, 81.4)

# name of a data set as in `data.LAYOUTS` -> its results in the paper
PUBLISHED = {
    "mvtec": ClassResults(91.5, 96.2, 91.1, 81.4),
    "visa": ClassResults(82.1, 85.4, 95.5, 87.0),
    "mpdd": ClassResults(77.0, 82.0, 96.5, 88.7),
    "btad": ClassResults(88.3, 87.3, 94.2, 74.8),
    "sdd": ClassResults(84.7, 80.0, 90.6, 67.8),
    "dagm": ClassResults(97.5, 92.3, 95.6, 91.0),
    "dtd_synthetic": ClassResults(93.5, 97.0, 97.9, 92.3),
    "headct": ClassResults(93.4, 91.6),
    "brainmri": ClassResults(90.3, 92.2),
    "br35h": ClassResults(94.6, 94.7),
    "covid19": ClassResults(80.1, 58.7),
    "isic": ClassResults(None, None, 89.7, 78.4),
    "colondb": ClassResults(None, None, 81.9, 71.3),
    "clinicdb": ClassResults(None, None, 82.9, 67.8),
    "kvasir": ClassResults(None, None, 78.9, 45.6),
    "endo": ClassResults(None, None, 84.1, 63.6),
    "tn3k": ClassResults(None, None, 81.5, 50.4),
}


def paper_results(name: str) -> dict[str, Any] | None:
    """Published numbers of a data set of `LAYOUTS` as shares: `mean`, `classes` and `log_mean` from the authors'
    released log; None where nothing was published."""
    layout = find_layout(name)
    key = name if layout is None else layout.name
    if key not in PUBLISHED:
        return None
    logged = key == "mvtec"
    return {
        "trained_on": "visa" if key == "mvtec" else "mvtec",
        "mean": PUBLISHED[key].as_shares(),
        "log_mean": MVTEC_LOG_MEAN.as_shares() if logged else None,
        "classes": {one: values.as_shares() for one, values in MVTEC_LOG.items()} if logged else {},
    }


def difference(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
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
    paper["all_classes"] = len(entry["classes"]) == len(layout.classes)
    paper["difference"] = difference(entry["mean"], paper["mean"]) if paper["all_classes"] else {}
    if not paper["all_classes"]:
        text = f"the paper's mean is over {len(layout.classes)} classes, these are {len(entry['classes'])}"
        entry["notes"].append(f"{text}: no difference of means is given")
    entry["paper"] = paper
