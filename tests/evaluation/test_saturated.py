import itertools
import json

import numpy as np
import pytest
from PIL import Image

from anomalyclip_hf.data import load_anomaly_dataset
from anomalyclip_hf.data.images import ImageReadError
from anomalyclip_hf.evaluation import evaluate_model
from anomalyclip_hf.evaluation.metrics import aupro
from anomalyclip_hf.evaluation.saturated import area_under_spro, read_regions
from evaluation_tools import make_tree


def by_force(maps, regions, limit):
    """The definition at every distinct score, joined by straight lines."""
    points = [(0.0, 0.0)]
    outside = [
        ~np.any([mask for mask, _ in own], axis=0) if own else np.ones(m.shape, bool)
        for m, own in zip(maps, regions, strict=True)
    ]
    normal = sum(one.sum() for one in outside)
    for threshold in np.unique(np.concatenate([m.ravel() for m in maps]))[::-1]:
        alarms = sum(((m >= threshold) & out).sum() for m, out in zip(maps, outside, strict=True))
        found = [
            min(((m >= threshold) & mask).sum() / min(s, mask.sum()), 1.0)
            for m, own in zip(maps, regions, strict=True)
            for mask, s in own
        ]
        points.append((alarms / normal, np.mean(found)))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            area += (end - x0) * (y0 + y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return area / limit


def box(top, bottom, left, right):
    mask = np.zeros((12, 14), bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("digits", [6, 1])  # with and without ties
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_area_under_spro_equals_brute_force(limit, digits):
    rng = np.random.default_rng(1)
    regions = [[(box(0, 3, 0, 5), 4), (box(1, 5, 3, 8), 7.5)], [], [(box(6, 9, 6, 9), 100), (box(0, 1, 0, 1), 1)]]
    maps = [np.round(rng.normal(size=(12, 14)) + sum(m for m, _ in own), digits) for own in regions]
    assert area_under_spro(maps, regions, limit) == pytest.approx(by_force(maps, regions, limit), abs=1e-12)


def test_with_saturation_at_the_area_it_is_pro():
    rng = np.random.default_rng(2)
    masks = [box(2, 5, 2, 6), box(7, 9, 1, 3)]
    maps = [rng.normal(size=(12, 14)).astype(np.float32) + mask for mask in masks]
    regions = [[(mask, 1e9)] for mask in masks]
    assert area_under_spro(maps, regions, 0.3) == pytest.approx(aupro(maps, masks, 0.3), abs=1e-12)


def test_a_region_found_in_part_is_found():
    scores = np.zeros((12, 14))
    scores[0, :2] = 1.0  # 2 of the 15 pixels of the region, no false alarm
    assert area_under_spro([scores], [[(box(0, 3, 0, 5), 2)]], 0.05) > 0.99
    assert area_under_spro([scores], [[(box(0, 3, 0, 5), 15)]], 0.05) == pytest.approx(2 / 15 + 0.5 * 0.05 * 13 / 15)


@pytest.mark.parametrize(
    ("maps", "regions", "message"),
    [
        ([np.zeros((12, 14))], [], "1 maps but regions of 0 images"),
        ([np.zeros((12, 14))], [[]], "no anomalous pixel"),
        ([np.zeros((12, 14))], [[(box(0, 1, 0, 1), 0)]], "1 pixels with saturation=0"),
        ([np.zeros((12, 14))], [[(box(0, 0, 0, 0), 3)]], "0 pixels with saturation=3"),
        ([np.full((12, 14), np.nan)], [[(box(0, 1, 0, 1), 1)]], "NaN"),
        ([np.zeros((3, 3))], [[(box(0, 1, 0, 1), 1)]], r"\(12, 14\)"),
    ],
)
def test_what_has_no_value_is_refused(maps, regions, message):
    with pytest.raises(ValueError, match=message):
        area_under_spro(maps, regions)


def test_regions_are_read_with_their_saturation(tmp_path):
    rules = [
        {"defect_name": "a", "pixel_value": 255, "saturation_threshold": 4, "relative_saturation": False},
        {"defect_name": "b", "pixel_value": 254, "saturation_threshold": 0.5, "relative_saturation": True},
    ]
    config, folder = tmp_path / "defects_config.json", tmp_path / "000"
    config.write_text(json.dumps(rules))
    folder.mkdir()
    for number, (mask, value) in enumerate(((box(0, 3, 0, 5), 255), (box(2, 6, 2, 5), 254))):
        Image.fromarray(mask.astype(np.uint8) * value).save(folder / f"{number:03d}.png")
    (first, whole), (second, half) = read_regions(folder, config)
    assert (first == box(0, 3, 0, 5)).all() and whole == 4
    assert (second == box(2, 6, 2, 5)).all() and half == 6
    Image.fromarray(box(0, 1, 0, 1).astype(np.uint8) * 9).save(folder / "002.png")
    with pytest.raises(ImageReadError, match=r"002\.png: values \[9\].*\[254, 255\]"):
        read_regions(folder, config)
    config.write_text("[1]")
    with pytest.raises(ValueError, match="is no list of pixel_value"):
        read_regions(folder, config)


def test_regions_keep_their_share_when_they_are_resized(tmp_path):
    config = tmp_path / "defects_config.json"
    config.write_text(json.dumps([{"pixel_value": 7, "saturation_threshold": 4, "relative_saturation": False}]))
    (tmp_path / "000").mkdir()
    for name, mask in (("0", box(0, 4, 0, 4)), ("1", box(11, 12, 13, 14))):
        Image.fromarray(mask.astype(np.uint8) * 7).save(tmp_path / "000" / f"{name}.png")
    (half, saturation), (tiny, own) = read_regions(tmp_path / "000", config, (6, 7))
    assert half.shape == (6, 7) and half.sum() == 4 and saturation == 1  # a quarter of its pixels, as before
    assert tiny.sum() == 1 and own == 1


@pytest.mark.parametrize("exact", [True, False])
def test_evaluation_of_mvtec_loco_has_spro(tiny_model, tiny_processor, tmp_path, exact):
    tree = make_tree(tmp_path, ("pushpins",))
    truth = tree / "pushpins" / "ground_truth" / "scratch"
    for mask in list(truth.iterdir()):
        folder = truth / mask.name.removesuffix("_mask.png")
        folder.mkdir()
        mask.rename(folder / "000.png")
    rule = {"pixel_value": 255, "saturation_threshold": 0.5, "relative_saturation": True}
    config = tree / "pushpins" / "defects_config.json"
    config.write_text(json.dumps([rule]))
    dataset = load_anomaly_dataset("mvtec_loco", data_dir=tree)
    settings = {"exact": exact, "map_size": "original", "show_progress": False}
    entry = evaluate_model(
        tiny_model, tiny_processor, dataset, output_dir=tmp_path / "out", save_maps="npy", **settings
    )
    found = entry["classes"]["pushpins"]
    if not exact:
        assert np.isnan(found["spro"]) and "--exact" in found["reasons"]["spro"]
        return
    maps = [np.load(file) for file in sorted((tmp_path / "out/maps").rglob("*.npy"), key=lambda file: file.name)]
    masks = [None if row["mask"] is None else np.asarray(row["mask"]) > 0 for row in dataset]
    regions = [[] if mask is None else [(mask, 0.5 * mask.sum())] for mask in masks]
    assert found["spro"] == entry["mean"]["spro"] == pytest.approx(by_force(maps, regions, 0.05), abs=1e-9)
    config.write_text("{}")
    found = evaluate_model(tiny_model, tiny_processor, dataset, **settings)["classes"]["pushpins"]
    assert np.isnan(found["spro"]) and "255" in found["reasons"]["spro"] and 0 <= found["aupro"] <= 1
