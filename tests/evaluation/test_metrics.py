import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score

from anomalyclip_hf.evaluation import metrics
from anomalyclip_hf.evaluation.metrics import UndefinedMetricWarning
from anomalyclip_hf.scoring.ranking import label_regions, rank_images, rank_pixels


def regions_by_flood(mask):
    """Lists of pixels of each 8-connected region, by flood fill."""
    left = {tuple(place) for place in np.argwhere(mask)}
    regions = []
    while left:
        stack, region = [left.pop()], []
        while stack:
            row, column = stack.pop()
            region.append((row, column))
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            stack.extend(near)
        regions.append(region)
    return regions


def pro_by_force(maps, masks):
    """(FPR, mean region overlap) at every distinct score of all pixels, in float64, threshold by threshold."""
    regions = [(index, region) for index, mask in enumerate(masks) for region in regions_by_flood(mask)]
    points = [(0.0, 0.0)]
    for threshold in np.unique(np.concatenate([m.ravel() for m in maps]))[::-1]:
        alarms = sum(int(((m >= threshold) & ~t).sum()) for m, t in zip(maps, masks, strict=True))
        normal = sum(int((~t).sum()) for t in masks)
        overlaps = [np.mean([maps[i][place] >= threshold for place in region]) for i, region in regions]
        points.append((alarms / normal, float(np.mean(overlaps))))
    return points


def aupro_by_force(maps, masks, limit=0.3):
    area = 0.0
    points = pro_by_force(maps, masks)
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit or x1 == x0:
            continue
        end = min(x1, limit)
        y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        area += (end - x0) * (y0 + y_end) / 2
    return area / limit


def authors_by_force(maps, masks, limit=0.3):
    """The authors' procedure: 200 thresholds over the range, strict comparison, FPR stretched by its own extremes."""
    low, high = maps.min(), maps.max()
    rates, overlaps = [], []
    for threshold in np.arange(low, high, (high - low) / 200):
        found = maps > threshold
        rates.append((found & ~masks).sum() / (~masks).sum())
        parts = [[found[i][p] for p in region] for i, mask in enumerate(masks) for region in regions_by_flood(mask)]
        overlaps.append(np.mean([np.mean(part) for part in parts]))
    rates, overlaps = np.array(rates), np.array(overlaps)
    kept = rates < limit
    rates, overlaps = rates[kept], overlaps[kept]
    rates = (rates - rates.min()) / (rates.max() - rates.min())
    return abs(
        sum((b - a) * (p + q) / 2 for a, b, p, q in zip(rates, rates[1:], overlaps, overlaps[1:], strict=False))
    )


def case(name):
    """Small maps (3, 9, 11), not square, and masks with regions that touch at edges and corners."""
    rng = np.random.default_rng(7)
    masks = np.zeros((3, 9, 11), dtype=bool)
    masks[0, 1:3, 1:4] = True
    masks[0, 3, 4] = True  # touches the region above by a corner: one region
    masks[0, 7, 8:11] = True
    masks[1, 0, 0] = masks[1, 8, 10] = masks[1, 4, 5] = masks[1, 5, 4] = True
    scores = rng.normal(size=masks.shape) + 1.0 * masks
    if name == "ties":
        scores = np.round(scores)
    if name == "all equal":
        scores = np.full(masks.shape, 0.25)
    if name == "perfect":
        scores = masks.astype(float)
    if name == "inverted":
        scores = -masks.astype(float)
    if name == "far":
        scores = 1e4 + 1e-2 * np.round(scores, 1)
    return scores.astype(np.float32), masks


CASES = ["continuous", "ties", "all equal", "perfect", "inverted", "far"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:aupro_authors undefined")
def test_pixel_metrics_equal_scikit_learn(name):
    maps, masks = case(name)
    truth, scores = masks.ravel(), maps.ravel()
    result = metrics.pixel_metrics(maps, masks)
    assert result["pixel_auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
    assert result["pixel_ap"] == pytest.approx(average_precision_score(truth, scores), abs=1e-9)
    precision, recall, thresholds = precision_recall_curve(truth, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    assert result["pixel_f1_max"] == pytest.approx(f1.max(), abs=1e-9)
    best = thresholds[np.flatnonzero(f1[:-1] >= f1.max() - 1e-12)[-1]]
    assert result["pixel_f1_max_threshold"] == pytest.approx(float(best), abs=1e-9)
    assert set(result["reasons"]) <= {"aupro_authors"}  # their 200 thresholds cannot split two-valued maps


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_aupro_equals_brute_force(name, limit):
    maps, masks = case(name)
    assert metrics.aupro(maps, masks, limit) == pytest.approx(aupro_by_force(maps, masks, limit), abs=1e-12)


def test_aupro_by_hand():
    # 2 regions of 1 and 4 pixels, 10 normal pixels; scores fall in the order: big region half, one normal, the rest.
    mask = np.array([[1, 0, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]], dtype=bool)
    scores = np.array([[5, 7, 9, 9, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]], dtype=np.float32)
    # PRO: 0.25 at FPR 0; 0.25 at 0.1; then 0.75, then 1.0 at 0.1. Up to 0.3: 0.1 * 0.25 + 0.2 * 1.0 = 0.225.
    assert metrics.aupro([scores], [mask]) == pytest.approx(0.225 / 0.3, abs=1e-12)
    # All equal: a straight line from (0, 0) to (1, 1): (0.3 ** 2 / 2) / 0.3.
    assert metrics.aupro([scores * 0], [mask]) == pytest.approx(0.15, abs=1e-12)


def test_regions_touching_at_corners_are_one():
    _, masks = case("ties")
    region, sizes = label_regions(masks[0])
    assert sizes.tolist() == [7, 3]
    assert region.tolist() == [0] * 7 + [1] * 3
    assert sorted(label_regions(masks[1])[1].tolist()) == [1, 1, 2]
    assert len(label_regions(masks[2])[1]) == 0
    assert metrics.pixel_metrics(*case("ties"))["num_regions"] == 5


@pytest.mark.parametrize("name", ["continuous", "ties"])
def test_aupro_authors_equals_their_procedure(name):
    maps, masks = case(name)
    assert metrics.aupro_authors(maps, masks) == pytest.approx(authors_by_force(maps, masks), abs=1e-9)


def test_single_functions_agree_with_the_joint_one():
    maps, masks = case("continuous")
    result = metrics.pixel_metrics(maps, masks, fpr_limit=0.2)
    assert metrics.pixel_auroc(maps, masks) == result["pixel_auroc"]
    assert metrics.pixel_ap(maps, masks) == result["pixel_ap"]
    assert tuple(metrics.pixel_f1_max(maps, masks)) == (result["pixel_f1_max"], result["pixel_f1_max_threshold"])
    assert metrics.aupro(maps, masks, 0.2) == result["aupro"]
    assert metrics.aupro_authors(maps, masks, 0.2) == result["aupro_authors"]


def test_inputs_of_other_kinds_give_the_same():
    maps, masks = case("ties")
    expected = metrics.pixel_metrics(maps, masks)
    assert metrics.pixel_metrics(torch.from_numpy(maps), torch.from_numpy(masks).long()) == expected
    assert metrics.pixel_metrics(torch.from_numpy(maps).bfloat16(), masks.astype(np.float32)) == expected
    assert metrics.pixel_metrics([m[None] for m in maps.astype(np.float16)], list(masks[:, None])) == expected
    ragged = metrics.pixel_metrics(
        [maps[0], maps[1][:5], maps[1][5:], maps[2]], [masks[0], masks[1][:5], masks[1][5:], masks[2]]
    )
    assert ragged["pixel_auroc"] == expected["pixel_auroc"]


def test_float64_maps_are_not_rounded():
    maps = np.array([[[1.0, 1.0 + 1e-12]]])
    assert metrics.pixel_auroc(maps, [[[0, 1]]]) == 1.0


def test_image_metrics_equal_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    scores = np.round(rng.normal(size=200) + labels, 1)
    result = metrics.image_metrics(scores, labels)
    assert result["image_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert result["image_ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-9)
    predicted = scores >= result["image_f1_max_threshold"]
    f1 = 2 * (predicted & (labels == 1)).sum() / (predicted.sum() + labels.sum())
    assert result["image_f1_max"] == pytest.approx(f1, abs=1e-12)
    assert metrics.image_auroc(scores, labels) == result["image_auroc"]
    assert metrics.image_ap(list(scores), list(labels)) == result["image_ap"]
    assert metrics.f1_max(scores, labels == 1) == (result["image_f1_max"], result["image_f1_max_threshold"])


@pytest.mark.parametrize("label, reason", [(0, "no anomalous image"), (1, "no normal image")])
def test_one_class_is_nan_with_a_reason(label, reason):
    with pytest.warns(UndefinedMetricWarning, match=reason):
        result = metrics.image_metrics([0.1, 0.2], [label, label])
    assert math.isnan(result["image_auroc"]) and math.isnan(result["image_ap"]) and math.isnan(result["image_f1_max"])
    assert set(result["reasons"]) == {"image_auroc", "image_ap", "image_f1_max"}
    assert reason in result["reasons"]["image_ap"]
    with pytest.warns(UndefinedMetricWarning, match=reason):
        assert math.isnan(metrics.f1_max([0.1, 0.2], [label, label]).threshold)


@pytest.mark.filterwarnings("ignore:pixel_auroc, pixel_ap")
def test_pixels_without_region_are_nan_with_a_reason():
    with pytest.warns(UndefinedMetricWarning, match="no region"):
        result = metrics.pixel_metrics(np.ones((1, 4, 4)), np.zeros((1, 4, 4)), with_curves=True)
    assert all(math.isnan(result[name]) for name in ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro"))
    assert set(result["reasons"]) == {"pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro", "aupro_authors"}
    assert result["curves"] == {} and result["num_anomalous_pixels"] == 0


def test_authors_way_on_equal_maps_is_nan_but_the_exact_one_is_not():
    maps, masks = case("all equal")
    with pytest.warns(UndefinedMetricWarning, match="200 thresholds"):
        result = metrics.pixel_metrics(maps, masks)
    assert math.isnan(result["aupro_authors"]) and result["aupro"] == pytest.approx(0.15)
    assert set(result["reasons"]) == {"aupro_authors"}


def test_bad_input_is_refused():
    maps, masks = case("ties")
    broken = maps.copy()
    broken[1, 2, 3] = np.nan
    for call, message in [
        (lambda: metrics.pixel_metrics(broken, masks), r"maps\[1\] has NaN"),
        (lambda: metrics.pixel_metrics(np.where(np.isnan(broken), np.inf, broken), masks), r"maps\[1\] has infinite"),
        (lambda: metrics.image_auroc([0.1, math.nan], [0, 1]), "scores has NaN"),
        (lambda: metrics.image_auroc([0.1, 0.2], [0, 2]), "labels has the value 2"),
        (lambda: metrics.image_auroc([0.1, 0.2], [0]), "labels"),
        (lambda: metrics.image_auroc([], []), "at least one"),
        (lambda: metrics.pixel_metrics(maps, masks * 255), r"masks\[0\] has the value 255"),
        (lambda: metrics.pixel_metrics(maps, masks[:2]), "3 maps but 2 masks"),
        (lambda: metrics.pixel_metrics(maps, masks[:, :5]), r"\(5, 11\)"),
        (lambda: metrics.pixel_metrics(list(maps), [masks[0], None, masks[2]]), r"masks\[1\] is None"),
        (lambda: metrics.pixel_metrics(maps, masks, fpr_limit=0), "fpr_limit=0"),
        (lambda: metrics.pixel_metrics([], []), "no map"),
        (lambda: metrics.pixel_metrics(maps[0], masks[0]), r"shape \(11,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_curves_hold_the_areas():
    maps, masks = case("continuous")
    result = metrics.pixel_metrics(maps, masks, with_curves=True, fpr_limit=1.0)
    curves = result["curves"]
    for name, expected in (("roc", "pixel_auroc"), ("pro", "aupro")):
        x, y = curves[name]
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
        assert np.all(np.diff(x) >= 0) and np.all(np.diff(y) >= 0)
        assert float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2)) == pytest.approx(result[expected], abs=1e-9)
    recall, precision = curves["pr"]
    assert recall[-1] == 1.0 and precision[0] == 1.0
    x, y = metrics.curves_of(rank_pixels(maps, masks), max_points=5)["roc"]
    assert len(x) <= 7 and (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(metrics.curves_of(rank_images([0.1, 0.9], [0, 1]))) == {"roc", "pr"}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("threshold", [-5.0, 0.25, 0.7, 1.0, 1e5])
@pytest.mark.filterwarnings("ignore:aupro_authors undefined")
def test_f1_at_a_threshold_equals_scikit_learn(name, threshold):
    maps, masks = case(name)
    for at in (threshold, float(maps.ravel()[17]), float(np.nextafter(maps.ravel()[17], np.float32(np.inf)))):
        expected = f1_score(masks.ravel(), maps.ravel().astype(np.float64) >= at)
        assert metrics.pixel_metrics(maps, masks, threshold=at)["pixel_f1"] == pytest.approx(expected, abs=1e-12)
        labels, scores = masks[0].ravel()[:40], maps[0].ravel()[:40]
        expected = f1_score(labels, scores.astype(np.float64) >= at)
        assert metrics.image_metrics(scores, labels, threshold=at)["image_f1"] == pytest.approx(expected, abs=1e-12)


def test_a_threshold_between_two_float32_scores():
    # 0.1 is no float32: the nearest is above it, the next lower is below.
    scores = np.array([[np.float32(0.1), np.nextafter(np.float32(0.1), np.float32(0))]])
    assert metrics.pixel_metrics([scores], [[[1, 0]]], threshold=0.1)["pixel_f1"] == 1.0


def test_aupro_at_several_limits():
    maps, masks = case("continuous")
    result = metrics.pixel_metrics(maps, masks, fpr_limits=(0.05, 0.3, 1.0))
    assert {key for key in result if key.startswith("aupro")} == {"aupro", "aupro_authors", "aupro_0.05", "aupro_1"}
    for key, limit in (("aupro", 0.3), ("aupro_0.05", 0.05), ("aupro_1", 1.0)):
        assert result[key] == metrics.aupro(maps, masks, limit)
    with pytest.raises(ValueError, match=r"fpr_limits=\[0\.2\], expected some of 0\.01, 0\.05, 0\.1, 0\.3, 1\.0"):
        metrics.pixel_metrics(maps, masks, fpr_limits=(0.05, 0.2))
