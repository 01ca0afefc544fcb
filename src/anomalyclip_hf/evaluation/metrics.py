"""Exact metrics of anomaly detection as plain functions, and the one table of their names.

Scores and maps may lie anywhere: higher means more anomalous. Ties are handled exactly, NaN and infinite scores are
refused, and a metric that the input does not define (one class only, no anomalous region) is NaN with an
`UndefinedMetricWarning` that says why. Regions of AUPRO are connected with 8 neighbors: pixels that touch by a corner
belong together.

Memory: the exact pixel metrics hold one float32 copy of the maps they are given (VisA: at most 0.25 GB a class, judged
class by class). For any number of images in a few megabytes use `StreamingPixelMetrics`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from ..scoring.ranking import F1Max, Maps, Ranking, Values, best_f1, rank_images, rank_pixels, why_undefined


class UndefinedMetricWarning(UserWarning):
    """A metric has no value for this input (one class only, no region) and is returned as NaN."""


class Curve(NamedTuple):
    """Points of a curve, both `(K,)` float64 in [0, 1]: ROC (FPR, TPR), PR (recall, precision), PRO (FPR, PRO)."""

    x: np.ndarray
    y: np.ndarray


class Metric(NamedTuple):
    """A row of [`METRICS`].

    Args:
        title: how tables call it.
        compute: takes a `Ranking` and the highest false-positive rate of AUPRO, or the threshold of F1 at one;
            returns a float or an [`F1Max`].
        hub_type: what the Hub calls it; None for those that model cards leave out.
        card_title: how model cards call it where it differs.
    """

    title: str
    compute: Callable[[Ranking, float], float | F1Max]
    hub_type: str | None = None
    card_title: str | None = None


def auroc(ranking: Ranking) -> float:
    """Area under the ROC curve: the chance that an anomalous sample outscores a normal one, ties counting half."""
    gained = np.diff(ranking.hits, prepend=0).astype(np.float64)
    outscored = 2.0 * ranking.num_normal - ranking.alarms_above - ranking.alarms
    return float(np.dot(gained, outscored) / (2.0 * ranking.num_anomalous * ranking.num_normal))


def average_precision(ranking: Ranking) -> float:
    """Average precision: precision summed over the steps of recall, without interpolation."""
    gained = np.diff(ranking.hits, prepend=0)
    return float(np.dot(gained, ranking.hits / (ranking.hits + ranking.alarms)) / ranking.num_anomalous)


def area_under_pro(ranking: Ranking, fpr_limit: float = 0.3) -> float:
    """Area under per-region overlap against FPR from 0 to `fpr_limit`, divided by `fpr_limit`."""
    fpr, overlap = _pro_curve(ranking)
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


def f1_at(ranking: Ranking, threshold: float) -> float:
    """F1 where `score >= threshold` is anomalous, of a threshold fixed beforehand (of pixels: MVTec AD 2's SegF1)."""
    kind = ranking.highest.dtype.type
    lowest = kind(threshold)  # the lowest score that is called anomalous, as the scores are stored
    if lowest < threshold:
        lowest = np.nextafter(lowest, kind(np.inf))
    below = np.nextafter(lowest, kind(-np.inf))
    called = int(np.searchsorted(-ranking.thresholds, -lowest, side="right"))
    hits = int(ranking.hits[called - 1]) if called else 0
    alarms = ranking.num_normal if below < ranking.lowest else float(ranking.count_alarms(np.array([below]))[0])
    return 2.0 * hits / (hits + alarms + ranking.num_anomalous)


FPR_LIMITS = (0.01, 0.05, 0.1, 0.3, 1.0)  # that AUPRO may be asked for beside its own
METRICS: dict[str, Metric] = {
    "image_auroc": Metric("image AUROC", lambda ranking, limit: auroc(ranking), "roc_auc"),
    "image_ap": Metric("image AP", lambda ranking, limit: average_precision(ranking), "average_precision"),
    "image_f1_max": Metric("image F1-max", lambda ranking, limit: best_f1(ranking), "f1"),
    "pixel_auroc": Metric("pixel AUROC", lambda ranking, limit: auroc(ranking), "roc_auc"),
    "pixel_ap": Metric("pixel AP", lambda ranking, limit: average_precision(ranking), "average_precision"),
    "pixel_f1_max": Metric("pixel F1-max", lambda ranking, limit: best_f1(ranking), "f1"),
    "aupro": Metric("AUPRO", area_under_pro, "aupro", "pixel AUPRO"),
    "aupro_authors": Metric("AUPRO, authors' way", area_under_pro_authors),
}
IMAGE_METRICS = tuple(name for name in METRICS if name.startswith("image_"))
PIXEL_METRICS = tuple(name for name in METRICS if name not in IMAGE_METRICS)


def _area_at(limit: float) -> Metric:
    title = f"AUPRO at {limit:g}"
    return Metric(title, lambda ranking, _: area_under_pro(ranking, limit), "aupro", f"pixel {title}")


# Those that are computed where they are asked for.
METRICS |= {f"aupro_{limit:g}": _area_at(limit) for limit in FPR_LIMITS}
METRICS |= {"image_f1": Metric("image F1", f1_at, "f1"), "pixel_f1": Metric("pixel F1 (SegF1)", f1_at, "f1")}
METRICS["spro"] = Metric("sPRO at 0.05", lambda ranking, _: area_under_pro(ranking, 0.05))  # of saturated regions
ASKED_METRICS = tuple(name for name in METRICS if name not in (*IMAGE_METRICS, *PIXEL_METRICS))


def asked_metrics(
    unit: str, threshold: float | None = None, fpr_limits: Iterable[float] = (), fpr_limit: float = 0.3
) -> tuple[str, ...]:
    """Names of the metrics of a unit, "image" or "pixel": the usual ones, F1 at a threshold, and an AUPRO for each of
    `fpr_limits` (of `FPR_LIMITS`) but `fpr_limit`, which is that of `aupro` itself."""
    limits = [] if unit == "image" else [limit for limit in fpr_limits if limit != fpr_limit]
    areas = [f"aupro_{limit:g}" for limit in limits]
    if unknown := [limit for limit, name in zip(limits, areas, strict=True) if name not in METRICS]:
        raise ValueError(f"fpr_limits={unknown}, expected some of {', '.join(map(str, FPR_LIMITS))}")
    usual = IMAGE_METRICS if unit == "image" else PIXEL_METRICS
    return (*usual, *areas, *(() if threshold is None else (f"{unit}_f1",)))


def summarize(
    ranking: Ranking, names: Iterable[str], fpr_limit: float = 0.3, threshold: float = math.nan
) -> dict[str, Any]:
    """Metrics (keys of `METRICS`) of a ranking, undefined ones NaN: name to value, `<name>_threshold` beside an F1-max
    and `reasons` (name to why it is NaN)."""
    check_fpr_limit(fpr_limit)
    result: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name in names:
        unit = "image" if name.startswith("image_") else "pixel"
        reason = why_undefined(ranking, needs_regions=name.startswith("aupro"), unit=unit)
        at = threshold if name.endswith("_f1") else fpr_limit
        value = math.nan if reason else METRICS[name].compute(ranking, at)
        if name.endswith("f1_max"):
            result[name], result[f"{name}_threshold"] = value if isinstance(value, F1Max) else (math.nan, math.nan)
        else:
            result[name] = value
        if reason is None and math.isnan(result[name]):
            reason = f"fewer than two false-positive rates below {fpr_limit} at 200 thresholds over the score range"
        if reason:
            reasons[name] = reason
    return result | {"reasons": reasons}


def summarize_pixels(
    ranking: Ranking,
    fpr_limit: float = 0.3,
    with_curves: bool = False,
    *,
    fpr_limits: Iterable[float] = (),
    threshold: float | None = None,
) -> dict[str, Any]:
    """The result of [`pixel_metrics`] from counts, with a warning for what is undefined."""
    names = asked_metrics("pixel", threshold, fpr_limits, fpr_limit)
    result = summarize(ranking, names, fpr_limit, math.nan if threshold is None else threshold)
    result["num_pixels"] = ranking.num_anomalous + ranking.num_normal
    result["num_anomalous_pixels"] = ranking.num_anomalous
    result["num_regions"] = ranking.num_regions
    if with_curves:
        result["curves"] = curves_of(ranking)
    _warn_undefined(result["reasons"], stacklevel=4)
    return result


def image_auroc(scores: Values, labels: Values) -> float:
    """Area under the ROC curve of image scores.

    Args:
        scores: `(N,)` float anomaly scores, finite.
        labels: `(N,)` 0 or False (normal), 1 or True (anomalous).

    Raises:
        ValueError: NaN or infinite scores, other labels, different lengths, no sample.
    """
    return _single("image_auroc", rank_images(scores, labels))[0]


def image_ap(scores: Values, labels: Values) -> float:
    """Average precision of image scores (arguments as `image_auroc`)."""
    return _single("image_ap", rank_images(scores, labels))[0]


def f1_max(scores: Values, labels: Values) -> F1Max:
    """Best F1 over all thresholds and the highest threshold that reaches it (arguments as `image_auroc`)."""
    return F1Max(*_single("image_f1_max", rank_images(scores, labels)))


def image_metrics(scores: Values, labels: Values, *, threshold: float | None = None) -> dict[str, Any]:
    """All image metrics from one sort (arguments as `image_auroc`, and a threshold fixed beforehand).

    Returns:
        dict with `image_auroc`, `image_ap`, `image_f1_max`, `image_f1_max_threshold`, `num_images`,
        `num_anomalous_images`, `reasons` (metric name to why it is NaN) and, with a threshold, `image_f1` at it.
    """
    ranking = rank_images(scores, labels)
    names = asked_metrics("image", threshold)
    result = summarize(ranking, names, threshold=math.nan if threshold is None else threshold)
    _warn_undefined(result["reasons"])
    num_images = ranking.num_anomalous + ranking.num_normal
    return result | {"num_images": num_images, "num_anomalous_images": ranking.num_anomalous}


def pixel_metrics(
    maps: Maps,
    masks: Maps,
    fpr_limit: float = 0.3,
    with_curves: bool = False,
    *,
    fpr_limits: Iterable[float] = (),
    threshold: float | None = None,
) -> dict[str, Any]:
    """All pixel metrics, exactly, from one sort.

    Args:
        maps: `(N, H, W)` float array or tensor, or a sequence of `(H, W)` maps of any sizes; finite, higher is more
            anomalous. float64 stays float64, all else is judged in float32.
        masks: as `maps`, bool or 0 and 1; 1 is anomalous.
        fpr_limit: highest false-positive rate of AUPRO, in (0, 1].
        with_curves: add `curves` with the ROC, PR and PRO curves, thinned to 1000 points.
        fpr_limits: more limits, of `FPR_LIMITS`: each adds `aupro_<limit>`.
        threshold: adds `pixel_f1`, F1 where a map is at or above it.

    Returns:
        dict with `pixel_auroc`, `pixel_ap`, `pixel_f1_max`, `pixel_f1_max_threshold`, `aupro`, `aupro_authors`,
        `num_pixels`, `num_anomalous_pixels`, `num_regions`, and `reasons` (metric name to why it is NaN).

    Raises:
        ValueError: NaN or infinite scores, masks with other values, shapes that do not match, no image.
    """
    return summarize_pixels(
        rank_pixels(maps, masks), fpr_limit, with_curves, fpr_limits=fpr_limits, threshold=threshold
    )


def pixel_auroc(maps: Maps, masks: Maps) -> float:
    """Area under the ROC curve of all pixels (arguments as `pixel_metrics`)."""
    return _single("pixel_auroc", rank_pixels(maps, masks, with_regions=False))[0]


def pixel_ap(maps: Maps, masks: Maps) -> float:
    """Average precision of all pixels (arguments as `pixel_metrics`)."""
    return _single("pixel_ap", rank_pixels(maps, masks, with_regions=False))[0]


def pixel_f1_max(maps: Maps, masks: Maps) -> F1Max:
    """Best F1 over all pixels with its threshold (arguments as `pixel_metrics`)."""
    return F1Max(*_single("pixel_f1_max", rank_pixels(maps, masks, with_regions=False)))


def aupro(maps: Maps, masks: Maps, fpr_limit: float = 0.3) -> float:
    """Exact area under the per-region-overlap curve up to `fpr_limit`, divided by it (arguments as `pixel_metrics`).

    Every distinct score is a threshold; the curve is joined by straight lines and cut at `fpr_limit` exactly. Regions
    are 8-connected and count alike whatever their size.
    """
    return _single("aupro", rank_pixels(maps, masks), fpr_limit)[0]


def aupro_authors(maps: Maps, masks: Maps, fpr_limit: float = 0.3) -> float:
    """AUPRO as the authors' program reads it, for comparison with the paper (arguments as `pixel_metrics`).

    200 thresholds evenly over the score range; of those with FPR below `fpr_limit`, FPR is stretched by its own lowest
    and highest value to [0, 1]. It reads about a point below the exact value; prefer `aupro`.
    """
    return _single("aupro_authors", rank_pixels(maps, masks), fpr_limit)[0]


def thin(curve: Curve, max_points: int = 1000) -> Curve:
    """Keep at most about `max_points` points, evenly spaced along the curve, ends included (for plots and reports)."""
    if len(curve.x) <= max_points:
        return curve
    length = np.cumsum(np.abs(np.diff(curve.x, prepend=curve.x[0])) + np.abs(np.diff(curve.y, prepend=curve.y[0])))
    kept = np.unique(np.searchsorted(length, np.linspace(0.0, length[-1], max_points)))
    kept = np.unique(np.concatenate([[0], kept, [len(curve.x) - 1]]))
    return Curve(curve.x[kept], curve.y[kept])


def check_fpr_limit(fpr_limit: float) -> None:
    """Refuse a limit outside (0, 1]."""
    if not 0.0 < fpr_limit <= 1.0:
        raise ValueError(f"fpr_limit={fpr_limit} but a false-positive rate in (0, 1] is expected; the paper uses 0.3")


def _single(name: str, ranking: Ranking, fpr_limit: float = 0.3) -> list[float]:
    """One metric, with its threshold where it has one."""
    result = summarize(ranking, [name], fpr_limit)
    _warn_undefined(result.pop("reasons"), stacklevel=4)
    return list(result.values())


def _warn_undefined(reasons: dict[str, str], stacklevel: int = 3) -> None:
    """Warn once per reason, naming the metrics returned as NaN."""
    for reason in dict.fromkeys(reasons.values()):
        names = ", ".join(name for name, why in reasons.items() if why == reason)
        warnings.warn(f"{names} undefined, returned as NaN: {reason}", UndefinedMetricWarning, stacklevel=stacklevel)


def curves_of(ranking: Ranking, max_points: int = 1000) -> dict[str, Curve]:
    """ROC, PR and (with regions) PRO curves for plotting; empty where undefined."""
    if why_undefined(ranking):
        return {}
    precision = ranking.hits / (ranking.hits + ranking.alarms)
    recall = ranking.hits / ranking.num_anomalous
    curves = {
        "roc": _stairs(ranking, recall),
        "pr": Curve(np.append(0.0, recall), np.append(precision[:1], precision)),
    }
    if ranking.overlap is not None:
        curves["pro"] = _pro_curve(ranking)
    return {name: thin(curve, max_points) for name, curve in curves.items()}


def _pro_curve(ranking: Ranking) -> Curve:
    """Points (FPR, mean region overlap) from (0, 0) to (1, 1)."""
    if ranking.overlap is None:
        raise ValueError("the PRO curve needs region overlaps, but this ranking has none: rank with region weights")
    return _stairs(ranking, ranking.overlap)


def _stairs(ranking: Ranking, height: np.ndarray) -> Curve:
    """Walk the curve: to each threshold sideways, then through it (a slope where normal samples tie with it)."""
    x = np.stack([ranking.alarms_above, ranking.alarms], axis=1).ravel() / ranking.num_normal
    y = np.stack([np.append(0.0, height[:-1]), height], axis=1).ravel()
    return Curve(np.concatenate([[0.0], x, [1.0]]), np.concatenate([[0.0], y, [1.0]]))


def _trapezoid(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.dot(np.diff(x), (y[1:] + y[:-1]) / 2.0))
