"""The counts that thresholds and metrics are made of.

All metrics of a score (AUROC, AP, F1-max, PRO) change only at the scores of *anomalous* samples: between two of
them only false alarms are added, which moves the curves sideways. `Ranking` holds the counts at those scores, whether
they come from exact sorting or from a histogram (`histogram.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import torch

Array: TypeAlias = "np.ndarray | torch.Tensor"
Values: TypeAlias = "Sequence[float] | Array"  # (N,)
Maps: TypeAlias = "Sequence[Array] | Array"  # (N, H, W), or N of (H, W)


class F1Max(NamedTuple):
    """Best F1 over all thresholds, and the highest threshold that reaches it (`score >= threshold` is anomalous)."""

    f1: float
    threshold: float


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
    lowest: np.floating
    highest: np.floating
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


def best_f1(ranking: Ranking) -> F1Max:
    """Best F1 over all thresholds, with the highest threshold that reaches it."""
    f1 = 2.0 * ranking.hits / (ranking.hits + ranking.alarms + ranking.num_anomalous)
    best = int(np.argmax(f1))
    return F1Max(float(f1[best]), float(ranking.thresholds[best]))


def why_undefined(ranking: Ranking, needs_regions: bool = False, unit: str = "image") -> str | None:
    """Say why the metrics of this ranking have no value, or None where they have one."""
    if ranking.num_anomalous == 0:
        return f"no anomalous {unit}: all {ranking.num_normal} are normal" + (", no region" if needs_regions else "")
    if ranking.num_normal == 0:
        return f"no normal {unit}: all {ranking.num_anomalous} are anomalous"
    return None


def rank_images(scores: Values, labels: Values) -> Ranking:
    """Count images by sorting their scores.

    Args:
        scores: `(N,)` float anomaly scores, finite.
        labels: `(N,)` 0 or False (normal), 1 or True (anomalous).

    Raises:
        ValueError: NaN or infinite scores, other labels, different lengths, no sample.
    """
    scores, labels = to_numpy(scores), to_numpy(labels)
    if scores.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"scores have shape {scores.shape} and labels {labels.shape} but both should be (N,)")
    if len(scores) == 0:
        raise ValueError("no score given: at least one image is needed")
    scores = scores.astype(np.float64)
    check_finite(scores.min(), scores.max(), "scores")
    truth = _as_truth(labels, "labels")
    return rank_exactly(scores[~truth], scores[truth])


def rank_pixels(maps: Maps, masks: Maps, with_regions: bool = True) -> Ranking:
    """Split all pixels into normal and anomalous ones, number the regions, and count.

    Args:
        maps, masks: `(N, H, W)`, or sequences of `(H, W)` of any sizes; masks are bool or 0 and 1.
        with_regions: add `overlap`, of the 8-connected regions of the masks.

    Raises:
        ValueError: NaN or infinite scores, masks with other values, shapes that do not match, no image.
    """
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


def pair_maps(maps: Maps, masks: Maps) -> list[tuple[Array, Array]]:
    """Match maps with masks by position, refusing lengths that differ, no image, and missing masks."""
    if len(maps) != len(masks):
        raise ValueError(f"{len(maps)} maps but {len(masks)} masks: give one mask for each map")
    if len(maps) == 0:
        raise ValueError("no map given: at least one image is needed")
    if missing := [index for index, mask in enumerate(masks) if mask is None]:
        raise ValueError(
            f"masks[{missing[0]}] is None: give zeros for a normal image, leave out an anomalous one without a mask"
        )
    return list(zip(maps, masks, strict=True))


def check_pair(anomaly_map: Array, mask: Array, index: int) -> tuple[np.ndarray, np.ndarray]:
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


def to_numpy(values: Sequence | Array) -> np.ndarray:
    """Return an array, list or tensor (any device, bfloat16 too) as a NumPy array."""
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
