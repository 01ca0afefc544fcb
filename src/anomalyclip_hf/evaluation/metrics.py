"""Exact metrics of anomaly detection as plain functions.

Scores and maps may lie anywhere: higher means more anomalous. Ties are handled exactly, NaN and infinite scores are
refused, and a metric that the input does not define (one class only, no anomalous region) is NaN with an
`UndefinedMetricWarning` that says why. Regions of AUPRO are connected with 8 neighbors: pixels that touch by a corner
belong together.

Memory: the exact pixel metrics hold one float32 copy of the maps they are given (VisA: at most 0.25 GB a class, judged
class by class). For any number of images in a few megabytes use `StreamingPixelMetrics`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .ranking import (
    Curve,
    F1Max,
    Ranking,
    UndefinedMetricWarning,
    auroc,
    average_precision,
    best_f1,
    curves_of,
    rank_exactly,
    summarize_pixels,
    warn_undefined,
    why_undefined,
)

__all__ = [
    "Curve",
    "F1Max",
    "UndefinedMetricWarning",
    "aupro",
    "aupro_authors",
    "f1_max",
    "image_ap",
    "image_auroc",
    "image_curves",
    "image_metrics",
    "pixel_ap",
    "pixel_auroc",
    "pixel_curves",
    "pixel_f1_max",
    "pixel_metrics",
]


def image_auroc(scores: Any, labels: Any) -> float:
    """Area under the ROC curve of image scores.

    Args:
        scores: `(N,)` float anomaly scores, finite.
        labels: `(N,)` 0 or False (normal), 1 or True (anomalous).

    Raises:
        ValueError: NaN or infinite scores, other labels, different lengths, no sample.
    """
    return _image_value("image_auroc", scores, labels)


def image_ap(scores: Any, labels: Any) -> float:
    """Average precision of image scores (arguments as `image_auroc`)."""
    return _image_value("image_ap", scores, labels)


def f1_max(scores: Any, labels: Any) -> F1Max:
    """Best F1 over all thresholds and the highest threshold that reaches it (arguments as `image_auroc`)."""
    ranking = rank_images(scores, labels)
    reason = why_undefined(ranking)
    if reason:
        warn_undefined({"f1_max": reason})
        return F1Max(math.nan, math.nan)
    return best_f1(ranking)


def image_metrics(scores: Any, labels: Any) -> dict[str, Any]:
    """All image metrics from one sort (arguments as `image_auroc`).

    Returns:
        dict with `image_auroc`, `image_ap`, `image_f1_max`, `image_f1_max_threshold`, `num_images`,
        `num_anomalous_images`, and `reasons` (metric name to why it is NaN).
    """
    ranking = rank_images(scores, labels)
    reason = why_undefined(ranking)
    best = F1Max(math.nan, math.nan) if reason else best_f1(ranking)
    result: dict[str, Any] = {
        "image_auroc": math.nan if reason else auroc(ranking),
        "image_ap": math.nan if reason else average_precision(ranking),
        "image_f1_max": best.f1,
        "image_f1_max_threshold": best.threshold,
        "num_images": ranking.num_anomalous + ranking.num_normal,
        "num_anomalous_images": ranking.num_anomalous,
        "reasons": dict.fromkeys(("image_auroc", "image_ap", "image_f1_max"), reason) if reason else {},
    }
    warn_undefined(result["reasons"])
    return result


def image_curves(scores: Any, labels: Any, max_points: int = 1000) -> dict[str, Curve]:
    """ROC and PR curves of image scores, thinned to `max_points`; empty where undefined."""
    return curves_of(rank_images(scores, labels), max_points)


def pixel_metrics(maps: Any, masks: Any, fpr_limit: float = 0.3, with_curves: bool = False) -> dict[str, Any]:
    """All pixel metrics, exactly, from one sort.

    Args:
        maps: `(N, H, W)` float array or tensor, or a sequence of `(H, W)` maps of any sizes; finite, higher is more
            anomalous. float64 stays float64, all else is judged in float32.
        masks: as `maps`, bool or 0 and 1; 1 is anomalous.
        fpr_limit: highest false-positive rate of AUPRO, in (0, 1].
        with_curves: add `curves` with the ROC, PR and PRO curves, thinned to 1000 points.

    Returns:
        dict with `pixel_auroc`, `pixel_ap`, `pixel_f1_max`, `pixel_f1_max_threshold`, `aupro`, `aupro_authors`,
        `num_pixels`, `num_anomalous_pixels`, `num_regions`, and `reasons` (metric name to why it is NaN).

    Raises:
        ValueError: NaN or infinite scores, masks with other values, shapes that do not match, no image.
    """
    check_fpr_limit(fpr_limit)
    result = summarize_pixels(rank_pixels(maps, masks), fpr_limit, with_curves)
    warn_undefined(result["reasons"])
    return result


def pixel_auroc(maps: Any, masks: Any) -> float:
    """Area under the ROC curve of all pixels (arguments as `pixel_metrics`)."""
    return _pixel_value("pixel_auroc", maps, masks)["pixel_auroc"]


def pixel_ap(maps: Any, masks: Any) -> float:
    """Average precision of all pixels (arguments as `pixel_metrics`)."""
    return _pixel_value("pixel_ap", maps, masks)["pixel_ap"]


def pixel_f1_max(maps: Any, masks: Any) -> F1Max:
    """Best F1 over all pixels with its threshold (arguments as `pixel_metrics`)."""
    result = _pixel_value("pixel_f1_max", maps, masks)
    return F1Max(result["pixel_f1_max"], result["pixel_f1_max_threshold"])


def aupro(maps: Any, masks: Any, fpr_limit: float = 0.3) -> float:
    """Exact area under the per-region-overlap curve up to `fpr_limit`, divided by it (arguments as `pixel_metrics`).

    Every distinct score is a threshold; the curve is joined by straight lines and cut at `fpr_limit` exactly. Regions
    are 8-connected and count alike whatever their size.
    """
    return _pixel_value("aupro", maps, masks, fpr_limit)["aupro"]


def aupro_authors(maps: Any, masks: Any, fpr_limit: float = 0.3) -> float:
    """AUPRO as the authors' program reads it, for comparison with the paper (arguments as `pixel_metrics`).

    200 thresholds evenly over the score range; of those with FPR below `fpr_limit`, FPR is stretched by its own lowest
    and highest value to [0, 1]. It reads about a point below the exact value; prefer `aupro`.
    """
    return _pixel_value("aupro_authors", maps, masks, fpr_limit)["aupro_authors"]


def pixel_curves(maps: Any, masks: Any, max_points: int = 1000) -> dict[str, Curve]:
    """ROC, PR and PRO curves of all pixels, thinned to `max_points`; empty where undefined."""
    return curves_of(rank_pixels(maps, masks), max_points)


def label_regions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the 8-connected regions of a mask.

    Args:
        mask: `(H, W)` bool.

    Returns:
        `(P,)` int32, the region (from 0) of each anomalous pixel in row-major order, and `(R,)` int64 region sizes.
    """
    from scipy import ndimage

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return np.zeros(0, np.int32), np.zeros(0, np.int64)
    # Cropping to the anomalous rows and columns keeps row-major order and saves most of the work.
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    labels, count = ndimage.label(box, structure=np.ones((3, 3), dtype=int))
    region = labels[box] - 1
    return region, np.bincount(region, minlength=count)


def check_fpr_limit(fpr_limit: float) -> None:
    """Refuse a limit outside (0, 1]."""
    if not 0.0 < fpr_limit <= 1.0:
        raise ValueError(f"fpr_limit={fpr_limit} but a false-positive rate in (0, 1] is expected; the paper uses 0.3")


def pair_maps(maps: Any, masks: Any) -> list[tuple[Any, Any]]:
    """Match maps with masks by position, refusing lengths that differ, no image, and missing masks."""
    if len(maps) != len(masks):
        raise ValueError(f"{len(maps)} maps but {len(masks)} masks: give one mask for each map")
    if len(maps) == 0:
        raise ValueError("no map given: at least one image is needed")
    for index, mask in enumerate(masks):
        if mask is None:
            raise ValueError(
                f"masks[{index}] is None: give zeros for a normal image, leave out an anomalous one without a mask"
            )
    return list(zip(maps, masks, strict=True))


def check_pair(anomaly_map: Any, mask: Any, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a map as `(H, W)` float32 or float64 and its mask as `(H, W)` bool, or say what is wrong with them."""
    scores, truth = to_numpy(anomaly_map), to_numpy(mask)
    scores = scores[0] if scores.ndim == 3 and scores.shape[0] == 1 else scores
    truth = truth[0] if truth.ndim == 3 and truth.shape[0] == 1 else truth
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"maps[{index}] has shape {scores.shape} but (H, W) with at least one pixel is expected")
    if truth.shape != scores.shape:
        raise ValueError(f"masks[{index}] has shape {truth.shape} but maps[{index}] has {scores.shape}: resize one")
    if scores.dtype != np.float64:
        scores = scores.astype(np.float32, copy=False)
    return scores, _as_truth(truth, f"masks[{index}]")


def to_numpy(values: Any) -> np.ndarray:
    """Turn an array, list or tensor (any device, bfloat16 too) into a NumPy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        return values.numpy()
    return np.asarray(values)


def check_finite(lowest: float, highest: float, name: str) -> None:
    """Refuse NaN and infinite scores, given their smallest and largest (NaN if any is NaN)."""
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        found = "NaN" if math.isnan(lowest) or math.isnan(highest) else "infinite values"
        raise ValueError(f"{name} has {found} but finite scores are expected: check the image and the model")


def _as_truth(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype == bool:
        return values
    truth = values == 1
    if np.count_nonzero(truth) + np.count_nonzero(values == 0) != values.size:
        strange = values[~truth & (values != 0)].ravel()[0]
        raise ValueError(f"{name} has the value {strange} but only 0 and 1 are expected: binarize it first")
    return truth


def rank_images(scores: Any, labels: Any) -> Ranking:
    """Check scores and labels and count them (arguments as `image_auroc`)."""
    scores, labels = to_numpy(scores), to_numpy(labels)
    if scores.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"scores have shape {scores.shape} and labels {labels.shape} but both should be (N,)")
    if len(scores) == 0:
        raise ValueError("no score given: at least one image is needed")
    scores = scores.astype(np.float64)
    check_finite(scores.min(), scores.max(), "scores")
    truth = _as_truth(labels, "labels")
    return rank_exactly(scores[~truth], scores[truth])


def rank_pixels(maps: Any, masks: Any, with_regions: bool = True) -> Ranking:
    """Split all pixels into normal and anomalous ones, number the regions, and count (as `pixel_metrics`)."""
    pairs = [check_pair(*pair, index) for index, pair in enumerate(pair_maps(maps, masks))]
    counts = [int(np.count_nonzero(mask)) for _, mask in pairs]
    total = sum(mask.size for _, mask in pairs)
    dtype = np.result_type(*{scores.dtype for scores, _ in pairs})
    normal, anomalous = np.empty(total - sum(counts), dtype), np.empty(sum(counts), dtype)
    weights = np.empty(sum(counts)) if with_regions else None
    at_normal = at_anomalous = 0
    for index, ((scores, mask), count) in enumerate(zip(pairs, counts, strict=True)):
        check_finite(scores.min(), scores.max(), f"maps[{index}]")
        end_normal, end_anomalous = at_normal + mask.size - count, at_anomalous + count
        normal[at_normal:end_normal] = scores[~mask] if count else scores.ravel()
        if count:
            anomalous[at_anomalous:end_anomalous] = scores[mask]
            if weights is not None:
                region, sizes = label_regions(mask)
                weights[at_anomalous:end_anomalous] = (1.0 / sizes)[region]
        at_normal, at_anomalous = end_normal, end_anomalous
    return rank_exactly(normal, anomalous, weights)


def _image_value(name: str, scores: Any, labels: Any) -> float:
    ranking = rank_images(scores, labels)
    reason = why_undefined(ranking)
    if reason:
        warn_undefined({name: reason}, stacklevel=4)
        return math.nan
    return {"image_auroc": auroc, "image_ap": average_precision}[name](ranking)


def _pixel_value(name: str, maps: Sequence[Any], masks: Sequence[Any], fpr_limit: float = 0.3) -> dict[str, Any]:
    check_fpr_limit(fpr_limit)
    ranking = rank_pixels(maps, masks, with_regions=name.startswith("aupro"))
    result = summarize_pixels(ranking, fpr_limit, names=[name])
    warn_undefined(result["reasons"], stacklevel=4)
    return result
