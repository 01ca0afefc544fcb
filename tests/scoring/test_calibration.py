import json
import warnings

import numpy as np
import pytest

from anomalyclip_hf.evaluation.streaming import StreamingPixelMetrics
from anomalyclip_hf.scoring import calibration
from anomalyclip_hf.scoring.calibration import calibrate_from_labels, calibrate_from_normal


def test_number_of_images_needed():
    # The classical tables: 1 - 0.95 ** 59 = 0.9515 is the first above 0.95.
    assert calibration.num_normal_needed(0.05, 0.95) == 59
    assert calibration.num_normal_needed(0.01, 0.95) == 299
    assert calibration.num_normal_needed(0.10, 0.90) == 22
    assert calibration.num_normal_needed(0.5, 0.75) == 2


def test_normal_threshold_is_just_above_the_right_score():
    scores = np.random.default_rng(0).permutation(59).astype(np.float32)
    result = calibrate_from_normal(scores)
    assert result.threshold == pytest.approx(58 * (1 + 1e-5), rel=1e-12)  # no probabilities: a share of the score
    assert result.achieved_confidence == pytest.approx(1 - 0.95**59, abs=1e-12) and result.is_guaranteed
    # 93 is the least number of samples for which the second highest suffices (0.95**93 + 93 * 0.05 * 0.95**92 < 0.05).
    assert calibrate_from_normal(np.arange(93.0)).num_above == 1
    assert calibrate_from_normal(np.arange(92.0)).num_above == 0
    assert json.loads(json.dumps(result.to_dict()))["num_needed"] == 59


def test_normal_threshold_keeps_its_promise():
    rng = np.random.default_rng(1)
    kept, loose = 0, 0
    for _ in range(400):
        result = calibrate_from_normal(rng.random(120), false_alarm_rate=0.1, confidence=0.9)
        rate = 1.0 - result.threshold  # of uniform scores
        kept += rate <= 0.1
        loose += rate <= 0.05
    assert kept >= 0.87 * 400  # 0.9 promised, less three standard errors
    assert loose < 0.5 * 400  # and it is not just the highest score


def test_too_few_normal_images_are_reported_with_the_number_needed():
    with pytest.warns(UserWarning, match="at least 59 are needed"):
        result = calibrate_from_normal([0.1, 0.3, 0.2])
    assert not result.is_guaranteed and result.num_above == 0
    assert result.threshold > 0.3
    assert result.achieved_confidence == pytest.approx(1 - 0.95**3)


def test_pixel_threshold_marks_at_most_the_given_share():
    rng = np.random.default_rng(2)
    maps = rng.random((60, 10, 20)).astype(np.float32)
    result = calibration.calibrate_pixels_from_normal(maps, pixel_rate=0.02)
    marked = (maps >= result.threshold).sum(axis=(1, 2))
    assert marked.max() == 4  # 2% of 200 pixels, reached by the worst image
    strict = calibration.calibrate_pixels_from_normal(maps, pixel_rate=0.0)
    assert strict.threshold > maps.max() and result.num_samples == 60


def test_label_threshold_for_f1_and_for_recall():
    scores, labels = [0.1, 0.2, 0.3, 0.6, 0.7, 0.9], [0, 1, 0, 1, 0, 1]
    best = calibrate_from_labels(scores, labels)
    # >= 0.6: 2 of 3 found, 1 alarm: F1 4/6; >= 0.2: 3 found, 2 alarms: F1 6/8.
    assert (best.f1, best.precision, best.recall) == (0.75, 0.6, 1.0)
    assert best.threshold == pytest.approx(0.15) and best.false_alarm_rate == pytest.approx(2 / 3)
    some = calibrate_from_labels(scores, labels, objective="recall", recall=2 / 3)
    assert some.threshold == pytest.approx(0.45) and some.recall == pytest.approx(2 / 3)
    assert calibrate_from_labels(scores, labels, objective="recall", recall=0.7).recall == 1.0
    assert calibrate_from_labels([0.5, 0.4], [0, 1]).threshold == pytest.approx(0.4 - 0.24e-5, abs=1e-8)
    # A normal sample nearer than rounding counts as the false alarm that it can be.
    near = calibrate_from_labels([0.1, 0.4, 0.4 + 1e-7], [0, 0, 1])
    assert (near.recall, near.precision, near.false_alarm_rate) == (1.0, 0.5, 0.5)
    assert near.threshold == 0.25


@pytest.mark.parametrize("margin", [calibration.MARGIN, calibration.HALF_MARGIN])
@pytest.mark.parametrize("score", [0.0, 1e-30, 1e-6, 0.3, 0.5, 0.97, 1 - 1e-4])
def test_shift_of_a_score_is_a_difference_of_logits(score, margin):
    for signed in (margin, -margin):
        moved = calibration.shift_score(score, signed)
        if 0 < score < 0.98:
            logits = [np.log(value) - np.log1p(-value) for value in (score, moved)]
            assert logits[1] - logits[0] == pytest.approx(signed, rel=0.02)
        assert np.sign(np.float32(moved) - np.float32(score)) == np.sign(signed)


def test_saturated_scores_promise_nothing():
    scores = np.full(60, 1 - 2.0**-24)  # the largest float32 below 1: rounding makes it 1
    with pytest.warns(UserWarning, match="promises nothing"):
        result = calibrate_from_normal(scores)
    assert (result.threshold, result.achieved_confidence, result.is_guaranteed) == (1.0, 0.0, False)


def test_pixel_labels_exact_and_streamed():
    rng = np.random.default_rng(3)
    masks = rng.random((2, 20, 30)) > 0.8
    maps = (rng.random(masks.shape) + masks).astype(np.float32)
    exact = calibration.calibrate_pixels_from_labels(maps, masks, objective="recall", recall=0.9)
    assert (maps[masks] >= exact.threshold).mean() == exact.recall >= 0.9
    above = calibration.shift_score(exact.threshold, 3e-5)
    assert (maps[masks] > above).mean() < 0.9
    streaming = StreamingPixelMetrics()
    streaming.update(maps, masks)
    streamed = calibration.calibrate_from_ranking(streaming.ranking(), "recall", 0.9)
    assert streamed.threshold == pytest.approx(exact.threshold, rel=1e-3)
    assert streamed.false_alarm_rate == pytest.approx(exact.false_alarm_rate, abs=2e-3)


def test_bad_input_is_refused():
    for call, message in [
        (lambda: calibrate_from_normal([]), "at least one score"),
        (lambda: calibrate_from_normal([0.1, np.nan]), "scores has NaN"),
        (lambda: calibrate_from_normal([0.1], false_alarm_rate=0.0), "false_alarm_rate=0.0"),
        (lambda: calibrate_from_normal([0.1], confidence=1.0), "confidence=1.0"),
        (lambda: calibration.calibrate_pixels_from_normal([]), "no map"),
        (lambda: calibration.calibrate_pixels_from_normal([[[0.1]]], pixel_rate=1.0), "pixel_rate=1.0"),
        (lambda: calibrate_from_labels([0.1, 0.2], [0, 0]), "calibrate_from_normal"),
        (lambda: calibrate_from_labels([0.1, 0.2], [0, 1], objective="auroc"), "objective='auroc'"),
        (lambda: calibrate_from_labels([0.1, 0.2], [0, 1], objective="recall"), "recall=None"),
        (lambda: calibrate_from_labels([0.1, 0.2], [0, 1], recall=0.5), "recall=0.5"),
    ]:
        with pytest.raises(ValueError, match=message), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
