"""Thresholds from numbers: scores or maps of normal samples alone, or of labelled ones.

A sample is called anomalous where `score >= threshold`. The same image scores a little differently in another batch
size or on another machine. Thresholds therefore keep a margin from the scores that they were chosen by, in the
difference of the two logits whose softmax is the score.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from .ranking import (
    Array,
    Maps,
    Ranking,
    Values,
    best_f1,
    check_finite,
    rank_images,
    rank_pixels,
    to_numpy,
    why_undefined,
)

# Differences of logits that rounding alone can make: computed in float32, and in bfloat16 or float16.
MARGIN, HALF_MARGIN = 1e-5, 2e-2
METHODS = ("normal", "f1", "recall")


@dataclass(frozen=True)
class NormalCalibration:
    """A threshold from normal samples alone.

    Args:
        threshold: call a sample anomalous where `score >= threshold`.
        false_alarm_rate: wanted bound on the share of normal samples called anomalous.
        confidence: wanted probability, over the choice of the calibration samples, that the bound holds.
        achieved_confidence: probability reached with this many samples; below `confidence` where there are too few, 0
            where scores are too near 1 for any threshold to lie above them.
        num_samples: normal samples given.
        num_needed: least number of samples that reaches `confidence`.
        num_above: calibration samples at or above the threshold.
    """

    threshold: float
    false_alarm_rate: float
    confidence: float
    achieved_confidence: float
    num_samples: int
    num_needed: int
    num_above: int

    @property
    def is_guaranteed(self) -> bool:
        """Whether the wanted confidence was reached."""
        return self.achieved_confidence >= self.confidence - 1e-12

    @property
    def doubt(self) -> str:
        """Why the wanted confidence was not reached, in words; empty where it was."""
        if not self.achieved_confidence:
            return (
                "normal samples score so near 1, from which on samples are anomalous, that no threshold lies above "
                "them: it promises nothing. Train on images that are more like these"
            )
        if self.is_guaranteed:
            return ""
        return (
            f"{self.num_samples} normal samples are too few for a false-alarm rate of {self.false_alarm_rate:g} at "
            f"confidence {self.confidence:g}: at least {self.num_needed} are needed. The highest score is used; it "
            f"holds with confidence {self.achieved_confidence:.3g}"
        )

    def to_dict(self) -> dict[str, float | bool]:
        """Plain numbers, for JSON."""
        return asdict(self) | {"is_guaranteed": self.is_guaranteed}


@dataclass(frozen=True)
class LabelCalibration:
    """A threshold from labelled samples, with what it gives on them.

    Args:
        threshold: call a sample anomalous where `score >= threshold`.
        objective: `"f1"` or `"recall"`.
        f1, precision, recall, false_alarm_rate: at this threshold on the calibration samples, in [0, 1].
        num_normal, num_anomalous: samples given.
    """

    threshold: float
    objective: str
    f1: float
    precision: float
    recall: float
    false_alarm_rate: float
    num_normal: int
    num_anomalous: int

    def to_dict(self) -> dict[str, float | str]:
        """Plain numbers, for JSON."""
        return asdict(self)


def check_method(method: str, recall: float | None, name: str = "method", known: Sequence[str] = METHODS) -> None:
    """Refuse an unknown way of calibration, and a recall without its method or the other way round.

    Args:
        method: one of the known ones.
        recall: in (0, 1] for "recall", else None.
        name: of the argument, for the error.
        known: the methods there are.
    """
    if method not in known:
        raise ValueError(f"{name}={method!r}, expected one of {', '.join(known)}")
    if (method == "recall") != (recall is not None) or not 0.0 < (recall or 1.0) <= 1.0:
        raise ValueError(f"recall={recall} with {name}={method!r}: give a recall in (0, 1] for 'recall' alone")


def num_normal_needed(false_alarm_rate: float = 0.05, confidence: float = 0.95) -> int:
    """Least number of normal samples with which `calibrate_from_normal` can hold its promise (59 by default)."""
    for name, value in (("false_alarm_rate", false_alarm_rate), ("confidence", confidence)):
        if not 0.0 < value < 1.0:
            raise ValueError(f"{name}={value} but a value strictly between 0 and 1 is expected")
    return math.ceil(math.log1p(-confidence) / math.log1p(-false_alarm_rate) - 1e-9)


def calibrate_from_normal(
    scores: Values,
    false_alarm_rate: float = 0.05,
    confidence: float = 0.95,
    margin: float = MARGIN,
    warn: bool = True,
) -> NormalCalibration:
    """Choose a threshold from the scores of normal samples.

    With probability `confidence`, at most `false_alarm_rate` of new normal samples score at or above the threshold.
    The promise is free of any assumption on the distribution, except that calibration samples and new ones come from
    the same one, independently: the threshold lies just above the k-th smallest score, whose rank among all normal
    samples follows a beta distribution, with the smallest k that suffices. Just above means by `margin`, which only
    lowers the share of false alarms, so that rounding turns no sample over. It never lies above 1.

    Args:
        scores: `(N,)` float scores of normal samples, finite; probabilities as a rule.
        false_alarm_rate: in (0, 1).
        confidence: in (0, 1).
        margin: difference of logits, 0 or more; `MARGIN` for scores computed in float32, `HALF_MARGIN` in half
            precision. For scores that are no probabilities, a share of the score.
        warn: whether to warn of a [`~NormalCalibration.doubt`].

    Raises:
        ValueError: no score, NaN or infinite scores, a rate outside (0, 1).

    With fewer than `num_normal_needed(false_alarm_rate, confidence)` samples no threshold can hold the promise: the
    one just above the highest score is returned with the confidence that it has, and a warning.
    """
    from scipy.stats import binom

    values = to_numpy(scores)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"scores have shape {values.shape} but (N,) with at least one score is expected")
    values = np.sort(values.astype(np.float64))
    check_finite(values[0], values[-1], "scores")
    count = len(values)
    # P(share of normal samples above the k-th smallest <= rate) = P(Binomial(count, 1 - rate) <= k - 1).
    certainty = binom.cdf(np.arange(count), count, 1.0 - false_alarm_rate)
    rank = min(int(np.searchsorted(certainty, confidence - 1e-12)) + 1, count)
    threshold, achieved = shift_score(values[rank - 1], margin), float(certainty[rank - 1])
    if values[0] >= 0.0 and values[-1] <= 1.0 <= threshold:
        threshold, achieved = 1.0, 0.0
    result = NormalCalibration(
        threshold=threshold,
        false_alarm_rate=float(false_alarm_rate),
        confidence=float(confidence),
        achieved_confidence=achieved,
        num_samples=count,
        num_needed=num_normal_needed(false_alarm_rate, confidence),
        num_above=int(np.count_nonzero(values >= threshold)),
    )
    if warn and result.doubt:
        warnings.warn(result.doubt, stacklevel=2)
    return result


def calibrate_pixels_from_normal(
    maps: Maps,
    pixel_rate: float = 0.01,
    false_alarm_rate: float = 0.05,
    confidence: float = 0.95,
    margin: float = MARGIN,
) -> NormalCalibration:
    """Choose a pixel threshold from the maps of normal images.

    With probability `confidence`, at most `false_alarm_rate` of new normal images have more than `pixel_rate` of their
    pixels marked. The images are the independent samples (neighboring pixels are not), so that their number counts.

    Args:
        maps: `(N, H, W)` or a sequence of `(H, W)` maps of normal images.
        pixel_rate: share of an image's pixels that may be marked, in [0, 1).
        false_alarm_rate, confidence, margin: as in `calibrate_from_normal`.
    """
    if len(maps) == 0:
        raise ValueError("no map given: at least one normal image is needed")
    levels = [pixel_level(one, pixel_rate, f"maps[{index}]") for index, one in enumerate(maps)]
    return calibrate_from_normal(levels, false_alarm_rate, confidence, margin)


def pixel_level(anomaly_map: Array, pixel_rate: float, name: str = "anomaly_map") -> float:
    """Level of a map such that any threshold above it marks at most `pixel_rate` of the pixels."""
    if not 0.0 <= pixel_rate < 1.0:
        raise ValueError(f"pixel_rate={pixel_rate} but a share in [0, 1) is expected")
    values = to_numpy(anomaly_map).ravel()
    check_finite(values.min(), values.max(), name)
    # The (m + 1)-th largest value: above it lie at most m pixels.
    place = len(values) - 1 - int(pixel_rate * len(values))
    return float(np.partition(values, place)[place])


def calibrate_from_labels(
    scores: Values, labels: Values, objective: str = "f1", recall: float | None = None, margin: float = MARGIN
) -> LabelCalibration:
    """Choose a threshold from labelled samples: the best F1, or the highest threshold that reaches a wanted recall.

    The threshold is put halfway to the next lower score, and at least `margin` below the score that it was chosen by,
    so that rounding takes no anomalous sample away. Where normal samples score within that margin, they are counted
    as the false alarms that they are.

    Args:
        scores: `(N,)` float scores, finite.
        labels: `(N,)` 0 (normal) or 1 (anomalous), both present.
        objective: `"f1"` or `"recall"`.
        recall: wanted recall in (0, 1], for `objective="recall"` only.
        margin: as in `calibrate_from_normal`.

    Raises:
        ValueError: one class only, another objective, a recall missing or out of range, bad scores or labels.
    """
    result = calibrate_from_ranking(rank_images(scores, labels), objective, recall, unit="image", margin=margin)
    values = np.sort(to_numpy(scores).astype(np.float64))
    place = int(np.searchsorted(values, result.threshold))  # the lowest score called anomalous
    halfway = float(values[place - 1 : place + 1].mean()) if place else result.threshold
    return replace(result, threshold=min(result.threshold, halfway))


def calibrate_pixels_from_labels(
    maps: Maps, masks: Maps, objective: str = "f1", recall: float | None = None
) -> LabelCalibration:
    """Choose a pixel threshold from maps and masks (as `rank_pixels`), objective as in `calibrate_from_labels`."""
    return calibrate_from_ranking(rank_pixels(maps, masks, with_regions=False), objective, recall, unit="pixel")


def calibrate_from_ranking(
    ranking: Ranking,
    objective: str = "f1",
    recall: float | None = None,
    unit: str = "pixel",
    margin: float = MARGIN,
) -> LabelCalibration:
    """As `calibrate_from_labels`, from counts, such as those of `PixelHistogram.ranking()`.

    The threshold lies `margin` below a score; `unit`, "image" or "pixel", names the samples in errors.
    """
    check_method(objective, recall, "objective", METHODS[1:])
    if reason := why_undefined(ranking, unit=unit):
        raise ValueError(f"{reason}. Give both classes, or use calibrate_from_normal with normal samples alone")
    if recall is None:
        place = int(np.flatnonzero(ranking.thresholds == best_f1(ranking).threshold)[0])
    else:
        place = int(np.searchsorted(ranking.hits, math.ceil(recall * ranking.num_anomalous - 1e-9)))
    threshold = shift_score(ranking.thresholds[place], -margin)
    # Samples within the margin are called anomalous too, and counted so.
    hits = int(ranking.hits[np.count_nonzero(ranking.thresholds >= threshold) - 1])
    alarms = int(ranking.count_alarms(np.nextafter([threshold], -np.inf))[0])
    return LabelCalibration(
        threshold=threshold,
        objective=objective,
        f1=2.0 * hits / (hits + alarms + ranking.num_anomalous),
        precision=hits / (hits + alarms),
        recall=hits / ranking.num_anomalous,
        false_alarm_rate=alarms / ranking.num_normal,
        num_normal=ranking.num_normal,
        num_anomalous=ranking.num_anomalous,
    )


def shift_score(score: float, margin: float) -> float:
    """A score moved up by `margin`, or down by a negative one, past the next two float32 numbers at least.

    Args:
        score: a probability, moved in its logit; any other number is moved by a share of itself.
        margin: difference of logits.
    """
    score = float(score)
    if 0.0 <= score <= 1.0:
        moved = score * math.exp(margin) / (1.0 + score * math.expm1(margin))
    else:
        moved = score + abs(score) * margin
    end = np.float32(math.copysign(math.inf, margin))
    # Near 0 and 1 the steps of float32 are wider than the margin.
    step = float(np.nextafter(np.nextafter(np.float32(score), end), end))
    return max(moved, step) if margin >= 0 else min(moved, step)
