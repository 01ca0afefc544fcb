"""The counts every threshold metric is made of, and the metrics made of them.

All metrics of a score (AUROC, AP, F1-max, PRO) change only at the scores of *anomalous* samples: between two of
them only false alarms are added, which moves the curves sideways. `Ranking` holds the counts at those scores, whether
they come from exact sorting (`metrics.py`) or from a histogram (`streaming.py`).
"""

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class UndefinedMetricWarning(UserWarning):
    """A metric has no value for this input (one class only, no region) and is returned as NaN."""


class F1Max(NamedTuple):
    """Best F1 over all thresholds, and the highest threshold that reaches it (`score >= threshold` is anomalous)."""

    f1: float
    threshold: float


class Curve(NamedTuple):
    """Points of a curve, both `(K,)` float64 in [0, 1]: ROC (FPR, TPR), PR (recall, precision), PRO (FPR, PRO)."""

    x: np.ndarray
    y: np.ndarray


@dataclass
class Ranking:
    """Counts at each distinct score of an anomalous sample, highest score first.

    Args:
        thresholds: `(K,)` distinct scores of anomalous samples, falling.
        hits: `(K,)` int64, anomalous samples with score >= threshold.
        alarms_above: `(K,)` int64, normal samples with score > threshold.
        alarms: `(K,)` int64, normal samples with score >= threshold.
        num_anomalous, num_normal: totals of samples.
        lowest, highest: range of all scores, in the dtype of the scores.
        count_alarms: number of normal samples with score > t, for an array of t.
        overlap: `(K,)` float64, mean over regions of the part with score >= threshold; None without regions.
        num_regions: connected anomalous regions.
    """

    thresholds: np.ndarray
    hits: np.ndarray
    alarms_above: np.ndarray
    alarms: np.ndarray
    num_anomalous: int
    num_normal: int
    lowest: Any
    highest: Any
    count_alarms: Callable[[np.ndarray], np.ndarray]
    overlap: np.ndarray | None = None
    num_regions: int = 0


def rank_exactly(normal: np.ndarray, anomalous: np.ndarray, weights: np.ndarray | None = None) -> Ranking:
    """Rank by sorting, ties included. Sorts `normal` in place.

    Args:
        normal: `(N,)` float32 or float64 scores of normal samples, finite; overwritten.
        anomalous: `(P,)` scores of anomalous samples, same dtype.
        weights: `(P,)` float64, 1 / size of the sample's region; adds `overlap`.
    """
    normal.sort()
    order = np.argsort(anomalous)[::-1]
    scores = anomalous[order]
    # The last sample of each group of equal scores.
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else np.zeros(0, np.int64)
    thresholds = scores[ends]
    overlap = None
    if weights is not None and len(scores):
        covered = np.cumsum(weights[order])
        overlap = covered[ends] / covered[-1]
    extremes = [part for part in (normal[:1], normal[-1:], scores[-1:], scores[:1]) if len(part)]
    return Ranking(
        thresholds=thresholds,
        hits=ends + 1,
        alarms_above=len(normal) - np.searchsorted(normal, thresholds, side="right"),
        alarms=len(normal) - np.searchsorted(normal, thresholds, side="left"),
        num_anomalous=len(anomalous),
        num_normal=len(normal),
        lowest=min(part[0] for part in extremes),
        highest=max(part[0] for part in extremes),
        count_alarms=lambda values: len(normal) - np.searchsorted(normal, values, side="right"),
        overlap=overlap,
        num_regions=0 if weights is None else round(float(np.sum(weights))),
    )


def auroc(ranking: Ranking) -> float:
    """Area under the ROC curve: the chance that an anomalous sample outscores a normal one, ties counting half."""
    gained = np.diff(ranking.hits, prepend=0).astype(np.float64)
    outscored = 2.0 * ranking.num_normal - ranking.alarms_above - ranking.alarms
    return float(np.dot(gained, outscored) / (2.0 * ranking.num_anomalous * ranking.num_normal))


def average_precision(ranking: Ranking) -> float:
    """Average precision: precision summed over the steps of recall, without interpolation."""
    gained = np.diff(ranking.hits, prepend=0)
    return float(np.dot(gained, ranking.hits / (ranking.hits + ranking.alarms)) / ranking.num_anomalous)


def best_f1(ranking: Ranking) -> F1Max:
    """Best F1 over all thresholds, with the highest threshold that reaches it."""
    f1 = 2.0 * ranking.hits / (ranking.hits + ranking.alarms + ranking.num_anomalous)
    best = int(np.argmax(f1))
    return F1Max(float(f1[best]), float(ranking.thresholds[best]))


def area_under_pro(ranking: Ranking, fpr_limit: float = 0.3) -> float:
    """Area under per-region overlap against FPR from 0 to `fpr_limit`, divided by `fpr_limit`."""
    fpr, overlap = pro_curve(ranking)
    last = int(np.searchsorted(fpr, fpr_limit, side="right"))
    x, y = fpr[:last], overlap[:last]
    if x[-1] < fpr_limit:
        slope = (overlap[last] - y[-1]) / (fpr[last] - x[-1])
        x = np.append(x, fpr_limit)
        y = np.append(y, y[-1] + slope * (fpr_limit - fpr[last - 1]))
    return _trapezoid(x, y) / fpr_limit


def area_under_pro_authors(ranking: Ranking, fpr_limit: float = 0.3, num_thresholds: int = 200) -> float:
    """AUPRO as the authors' program computes it; NaN where the thresholds leave fewer than two rates of alarms."""
    step = (ranking.highest - ranking.lowest) / num_thresholds
    if not step > 0 or ranking.overlap is None:
        return math.nan
    thresholds = np.arange(ranking.lowest, ranking.highest, step)
    fpr = ranking.count_alarms(thresholds) / ranking.num_normal
    above = len(ranking.thresholds) - np.searchsorted(ranking.thresholds[::-1], thresholds, side="right")
    overlap = np.append(0.0, ranking.overlap)[above]
    kept = fpr < fpr_limit
    fpr, overlap = fpr[kept], overlap[kept]
    if len(fpr) < 2 or fpr.max() == fpr.min():
        return math.nan
    fpr = (fpr - fpr.min()) / (fpr.max() - fpr.min())
    return _trapezoid(fpr[::-1], overlap[::-1])


def roc_curve(ranking: Ranking) -> Curve:
    """Points (FPR, TPR) from (0, 0) to (1, 1)."""
    return _stairs(ranking, ranking.hits / ranking.num_anomalous)


def pro_curve(ranking: Ranking) -> Curve:
    """Points (FPR, mean region overlap) from (0, 0) to (1, 1)."""
    if ranking.overlap is None:
        raise ValueError("the PRO curve needs region overlaps, but this ranking has none: rank with region weights")
    return _stairs(ranking, ranking.overlap)


def pr_curve(ranking: Ranking) -> Curve:
    """Points (recall, precision), recall rising."""
    precision = ranking.hits / (ranking.hits + ranking.alarms)
    return Curve(np.append(0.0, ranking.hits / ranking.num_anomalous), np.append(precision[:1], precision))


def thin(curve: Curve, max_points: int = 1000) -> Curve:
    """Keep at most about `max_points` points, evenly spaced along the curve, ends included (for plots and reports)."""
    if len(curve.x) <= max_points:
        return curve
    length = np.cumsum(np.abs(np.diff(curve.x, prepend=curve.x[0])) + np.abs(np.diff(curve.y, prepend=curve.y[0])))
    kept = np.unique(np.searchsorted(length, np.linspace(0.0, length[-1], max_points)))
    kept = np.unique(np.concatenate([[0], kept, [len(curve.x) - 1]]))
    return Curve(curve.x[kept], curve.y[kept])


def why_undefined(ranking: Ranking, needs_regions: bool = False, unit: str = "image") -> str | None:
    """Say why the metrics of this ranking have no value, or None where they have one."""
    if ranking.num_anomalous == 0:
        return f"no anomalous {unit}: all {ranking.num_normal} are normal" + (", no region" if needs_regions else "")
    if ranking.num_normal == 0:
        return f"no normal {unit}: all {ranking.num_anomalous} are anomalous"
    return None


def warn_undefined(reasons: dict[str, str], stacklevel: int = 3) -> None:
    """Warn once per reason, naming the metrics returned as NaN."""
    for reason in dict.fromkeys(reasons.values()):
        names = ", ".join(name for name, why in reasons.items() if why == reason)
        warnings.warn(f"{names} undefined, returned as NaN: {reason}", UndefinedMetricWarning, stacklevel=stacklevel)


def summarize_pixels(
    ranking: Ranking, fpr_limit: float = 0.3, with_curves: bool = False, names: Iterable[str] | None = None
) -> dict[str, Any]:
    """Pixel metrics of a ranking as a dict, undefined ones NaN with an entry in `reasons`.

    Args:
        ranking: counts of pixels, with `overlap` where there are regions.
        fpr_limit: highest false-positive rate of AUPRO, in (0, 1].
        with_curves: add `curves`, thinned ROC, PR and PRO curves.
        names: which of `pixel_auroc`, `pixel_ap`, `pixel_f1_max`, `aupro`, `aupro_authors`; default all.
    """
    result: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name in PIXEL_METRICS if names is None else names:
        reason = why_undefined(ranking, needs_regions=name.startswith("aupro"), unit="pixel")
        value = math.nan if reason else PIXEL_METRICS[name](ranking, fpr_limit)
        if isinstance(value, F1Max):
            result[name], result[f"{name}_threshold"] = value
            continue
        if reason is None and math.isnan(value):
            reason = f"fewer than two false-positive rates below {fpr_limit} at 200 thresholds over the score range"
        if reason:
            reasons[name] = reason
        result[name] = value
        if name == "pixel_f1_max":
            result["pixel_f1_max_threshold"] = math.nan
    result["num_pixels"] = ranking.num_anomalous + ranking.num_normal
    result["num_anomalous_pixels"] = ranking.num_anomalous
    result["num_regions"] = ranking.num_regions
    result["reasons"] = reasons
    if with_curves:
        result["curves"] = curves_of(ranking)
    return result


def curves_of(ranking: Ranking, max_points: int = 1000) -> dict[str, Curve]:
    """ROC, PR and (with regions) PRO curves for plotting; empty where undefined."""
    if why_undefined(ranking):
        return {}
    curves = {"roc": roc_curve(ranking), "pr": pr_curve(ranking)}
    if ranking.overlap is not None:
        curves["pro"] = pro_curve(ranking)
    return {name: thin(curve, max_points) for name, curve in curves.items()}


PIXEL_METRICS: dict[str, Callable[[Ranking, float], Any]] = {
    "pixel_auroc": lambda ranking, fpr_limit: auroc(ranking),
    "pixel_ap": lambda ranking, fpr_limit: average_precision(ranking),
    "pixel_f1_max": lambda ranking, fpr_limit: best_f1(ranking),
    "aupro": area_under_pro,
    "aupro_authors": area_under_pro_authors,
}


def _stairs(ranking: Ranking, height: np.ndarray) -> Curve:
    """Walk the curve: to each threshold sideways, then through it (a slope where normal samples tie with it)."""
    x = np.stack([ranking.alarms_above, ranking.alarms], axis=1).ravel() / ranking.num_normal
    y = np.stack([np.append(0.0, height[:-1]), height], axis=1).ravel()
    return Curve(np.concatenate([[0.0], x, [1.0]]), np.concatenate([[0.0], y, [1.0]]))


def _trapezoid(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.dot(np.diff(x), (y[1:] + y[:-1]) / 2.0))
