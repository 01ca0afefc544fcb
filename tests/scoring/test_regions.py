"""Regions of hand-made maps: boxes, areas, outlines, holes, borders, and what lies outside a region of interest."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.measure import grid_points_in_poly
from transformers import pipeline

from anomalyclip_hf.scoring.annotations import join_outlines
from anomalyclip_hf.scoring.regions import find_regions, fit_roi, mark_regions, polygon_area


def pixels_in(polygon, shape) -> np.ndarray:
    """Pixels whose centers lie inside a polygon by the even-odd rule, as bool (H, W)."""
    inside = np.zeros(shape, bool)
    for outline in polygon:
        inside ^= grid_points_in_poly(shape, np.array(outline)[:, ::-1] - 0.5)
    return inside


@pytest.fixture
def two_blobs() -> np.ndarray:
    """12 x 20: a block of 3 x 4 pixels (0.6, one of 0.9) and a block of 2 x 2 (0.95), 0.1 elsewhere."""
    values = np.full((12, 20), 0.1, np.float32)
    values[2:5, 3:7], values[3, 4] = 0.6, 0.9
    values[8:10, 15:17] = 0.95
    return values


def test_two_blobs_have_their_own_numbers(two_blobs):
    small, large = find_regions(two_blobs, 0.5)
    assert (small["box"], small["area"], small["centroid"]) == ([15, 8, 17, 10], 4, [16.0, 9.0])
    assert (large["box"], large["area"], large["centroid"]) == ([3, 2, 7, 5], 12, [5.0, 3.5])
    assert small["peak"] == small["mean"] == pytest.approx(0.95) and small["share"] == 4 / 240
    assert large["peak"] == pytest.approx(0.9) and large["mean"] == pytest.approx((11 * 0.6 + 0.9) / 12)
    # The outline passes through the middles between pixels: corners are cut by a quarter of a pixel's diagonal.
    (outline,) = large["polygon"]
    assert outline[0] == outline[-1] and polygon_area(outline) == pytest.approx(12 - 4 / 8)
    assert {tuple(point) for point in outline} == {
        (3.5, 2.0), (6.5, 2.0), (7.0, 2.5), (7.0, 4.5), (6.5, 5.0), (3.5, 5.0), (3.0, 4.5), (3.0, 2.5),
    }  # fmt: skip
    assert find_regions(two_blobs, 0.96) == []
    (everything,) = find_regions(two_blobs, 0.0)
    assert everything["area"] == 240 and everything["share"] == 1.0 and everything["box"] == [0, 0, 20, 12]


def test_a_threshold_is_reached_by_its_own_value():
    values = np.full((3, 3), 0.3, np.float32)
    assert find_regions(values, float(values[0, 0]))[0]["area"] == 9


def test_smaller_regions_are_left_out_of_list_and_mask(two_blobs):
    assert [region["area"] for region in find_regions(two_blobs, 0.5, min_area=4)] == [4, 12]
    mask, regions = mark_regions(two_blobs, 0.5, min_area=5)
    assert [region["area"] for region in regions] == [12]
    assert mask.sum() == 12 and mask[2:5, 3:7].all()
    mask, regions = mark_regions(two_blobs, 0.5, min_area=13)
    assert not mask.any() and regions == []


@pytest.mark.parametrize("place", [(0, 0), (0, 3), (4, 0), (5, 7), (2, 2)])
def test_one_pixel_anywhere_is_a_polygon_with_an_area(place):
    values = np.zeros((6, 8), np.float32)
    values[place] = 1.0
    (region,) = find_regions(values, 0.5)
    y, x = place
    assert region["box"] == [x, y, x + 1, y + 1] and region["centroid"] == [x + 0.5, y + 0.5]
    (outline,) = region["polygon"]
    assert outline[0] == outline[-1] and len(outline) == 5 and polygon_area(outline) == 0.5
    assert (pixels_in([outline], values.shape) == (values > 0)).all()


def test_pixels_that_touch_at_a_corner_are_one_region():
    assert [region["area"] for region in find_regions(np.eye(5, dtype=np.float32), 0.5)] == [5]


def test_holes_follow_the_outer_outline():
    values = np.zeros((10, 10), np.float32)
    values[1:9, 1:9] = 1.0
    values[3:5, 3:5] = values[6, 6] = 0.0
    (region,) = find_regions(values, 0.5)
    outer, *holes = region["polygon"]
    assert region["area"] == 64 - 5 and len(holes) == 2
    assert polygon_area(outer) == 63.5 and [polygon_area(hole) for hole in holes] == [3.5, 0.5]
    assert (pixels_in(region["polygon"], values.shape) == (values > 0)).all()
    joined = join_outlines(region["polygon"])
    assert joined[0] == joined[-1] and polygon_area(joined) == 63.5 - 3.5 - 0.5
    assert (pixels_in([joined], values.shape) == (values > 0)).all()


def test_outlines_hold_the_pixels_of_their_region_and_no_others():
    generator = np.random.default_rng(0)
    for share in (0.3, 0.5, 0.7):
        values = generator.random((24, 31)).astype(np.float32)
        mask, regions = mark_regions(values, share, min_area=2)
        inside = np.sum([pixels_in(region["polygon"], values.shape) for region in regions], axis=0)
        assert (inside == mask).all() and sum(region["area"] for region in regions) == mask.sum()
        peaks = [region["peak"] for region in regions]
        assert peaks == sorted(peaks, reverse=True)


def test_smooth_outlines_need_few_points():
    y, x = np.mgrid[:200, :200]
    (region,) = find_regions(((x - 99.5) ** 2 + (y - 99.5) ** 2 < 80**2).astype(np.float32), 0.5)
    (outline,) = region["polygon"]
    assert len(outline) < 240 and polygon_area(outline) == pytest.approx(region["area"], rel=0.01)


def test_outside_a_region_of_interest_nothing_counts(two_blobs, tmp_path):
    polygon = [[0, 0], [6, 0], [6, 12], [0, 12]]
    mask, (region,) = mark_regions(two_blobs, 0.5, roi=polygon)
    assert region["box"] == [3, 2, 6, 5] and region["area"] == 9 == mask.sum() and region["share"] == 9 / 72
    drawn = np.zeros((12, 20), np.uint8)
    drawn[:, :6] = 1  # not black is inside
    Image.fromarray(drawn).save(tmp_path / "roi.png")
    Image.fromarray(drawn * 255).resize((40, 24), Image.Resampling.NEAREST).save(tmp_path / "double.png")
    loud = drawn * 250 + np.random.default_rng(0).integers(0, 5, drawn.shape).astype(np.uint8)
    Image.fromarray(np.kron(loud, np.ones((8, 8), np.uint8))).save(tmp_path / "roi.jpg", quality=60)
    kinds = [tmp_path / "roi.png", str(tmp_path / "double.png"), tmp_path / "roi.jpg", Image.fromarray(drawn)]
    for roi in [*kinds, drawn > 0, drawn, torch.from_numpy(drawn.astype(np.float32)), tuple(map(tuple, polygon))]:
        np.testing.assert_array_equal(fit_roi(roi, (20, 12)), drawn > 0)
        assert mark_regions(two_blobs, 0.5, roi=roi)[1] == [region]


def test_a_polygon_holds_the_pixels_whose_centers_lie_inside():
    generator = np.random.default_rng(1)
    for _ in range(20):
        polygon = generator.uniform(-10, 50, (7, 2)).tolist()  # it may cross itself, and leave the image
        np.testing.assert_array_equal(fit_roi(polygon, (40, 30)), pixels_in([polygon], (30, 40)))
    stripe = [[2, 3], [8, 3], [8, 5], [2, 5], [2, 3]]
    expected = np.zeros((9, 10), bool)
    expected[3:5, 2:8] = True
    np.testing.assert_array_equal(fit_roi(stripe, (10, 9)), expected)


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        ([[0, 0], [1, 1]], "expected a mask or three or more"),
        ([[0, 0], [1, 1], [2]], "expected a mask or three or more"),
        ([[0, 0], [9, 0], [9, float("nan")]], "expected a mask or three or more"),
        ("nowhere.png", "interest can't be read: cannot read image nowhere.png: no such file"),
        (np.zeros((12, 20), bool), "is black: nothing lies inside"),
        (np.ones((12, 12), bool), "12x12 but its image is 20x12"),
        ([[50, 50], [60, 50], [60, 60]], "no pixel of the image of 20x12 pixels lies inside"),
        (3.5, "roi is a float"),
    ],
)
def test_a_region_of_interest_that_is_none_is_refused(two_blobs, roi, message):
    with pytest.raises(ValueError, match=message):
        find_regions(two_blobs, 0.5, roi=roi)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.zeros((2, 2, 3), np.float32), {}, r"\(2, 2, 3\), expected \(H, W\)"),
        (np.full((2, 2), np.nan), {}, "finite"),
        (np.zeros((2, 2)), {"pixel_threshold": 1.5}, "pixel_threshold=1.5"),
        (np.zeros((2, 2)), {"min_area": 0}, "min_area=0, expected a whole number in 1"),
    ],
)
def test_what_has_no_regions_is_refused(values, options, message):
    with pytest.raises(ValueError, match=message):
        find_regions(values, **{"pixel_threshold": 0.5, **options})


def test_the_processor_and_the_pipeline_give_regions(tiny_checkpoint, tiny_processor, make_image, tmp_path):
    detector, image = pipeline("zero-shot-anomaly-detection", model=tiny_checkpoint), make_image(50, 40)
    plain = detector(image)
    assert set(plain) == {"score", "anomaly_map"}
    threshold = float(np.quantile(plain["anomaly_map"], 0.8))
    result = detector(image, pixel_threshold=threshold)
    assert result["regions"] == find_regions(plain["anomaly_map"], threshold) != []
    areas = [region["area"] for region in result["regions"]]
    assert sum(areas) == result["mask"].sum()
    roi = np.zeros((40, 50), bool)
    roi[:, 25:] = True
    Image.fromarray(roi).save(tmp_path / "roi.png")
    half = detector(image, pixel_threshold=threshold, roi=tmp_path / "roi.png", min_area=2)
    np.testing.assert_array_equal(half["mask"], mark_regions(plain["anomaly_map"], threshold, 2, roi)[0])
    assert not half["mask"][:, :25].any() and half["score"] == plain["score"]
    np.testing.assert_array_equal(half["anomaly_map"], plain["anomaly_map"])
    assert detector(image, pixel_threshold=threshold, min_area=max(areas) + 1)["regions"] == []
    own = pipeline("zero-shot-anomaly-detection", model=tiny_checkpoint, roi=roi, pixel_threshold=threshold)
    assert own(image)["regions"] == find_regions(plain["anomaly_map"], threshold, roi=roi)
    for options, error in (({"min_area": 0.5}, ValueError), ({"roi": [1]}, ValueError), ({"area": 2}, TypeError)):
        with pytest.raises(error, match=next(iter(options))):
            detector(image, **options)


def test_a_smaller_map_gives_regions_in_pixels_of_the_image(two_blobs, tiny_processor):
    (small, large) = mark_regions(two_blobs, 0.5, image_size=(60, 24))[1]
    assert (small["box"], small["area"], small["centroid"]) == ([45, 16, 51, 20], 24, [48.0, 18.0])
    assert (large["box"], large["area"], large["share"]) == ([9, 4, 21, 10], 72, 12 / 240)
    assert polygon_area(large["polygon"][0]) == pytest.approx((12 - 4 / 8) * 6)
    assert [one["area"] for one in mark_regions(two_blobs, 0.5, 25, image_size=(60, 24))[1]] == [72]
    right = [[30, 0], [60, 0], [60, 24], [30, 24]]
    drawn = np.zeros((24, 60), bool)
    drawn[:, 30:] = True
    for roi in (right, drawn):
        assert [one["area"] for one in mark_regions(two_blobs, 0.5, roi=roi, image_size=(60, 24))[1]] == [24]
    outputs = {"logits": torch.zeros(1, 2), "anomaly_maps": torch.from_numpy(two_blobs)[None]}
    options = {"sigma": 0, "pixel_threshold": 0.5, "image_sizes": [(24, 60)]}
    (result,) = tiny_processor.post_process_anomaly_detection(outputs, target_sizes=[(12, 20)], **options)
    assert result["regions"] == [small, large] and result["mask"].shape == (12, 20)
