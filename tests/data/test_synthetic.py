import re

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation
from sklearn.metrics import roc_auc_score

from anomalyclip_hf.data import synthetic
from anomalyclip_hf.data._assembled import draw_part
from anomalyclip_hf.data._painter import Painter
from anomalyclip_hf.data._textures import Canvas
from anomalyclip_hf.data.synthetic import (
    ASSEMBLED_CLASSES,
    CLASSES,
    DEFECTS,
    HELD_OUT_CLASSES,
    HELD_OUT_DEFECTS,
    OBJECTS,
    TEXTURES,
    TRAIN_CLASSES,
    TRAIN_DEFECTS,
    draw_anomaly_on,
    draw_arrays,
    draw_dataset,
    draw_sample,
)

HELD_OUT_MEANS = [116.2, 212.6, 159.2, 90.5, 124.9, 157.7, 115.0, 112.3]


@pytest.fixture(scope="module")
def drawn():
    return draw_arrays(420, seed=11, difficulty=0.5)


def test_counts_and_held_out_names():
    assert len(TEXTURES) >= 24 and len(OBJECTS) >= 18 and len(DEFECTS) >= 14
    assert set(TRAIN_CLASSES) | set(HELD_OUT_CLASSES) == set(CLASSES)
    assert not set(TRAIN_CLASSES) & set(HELD_OUT_CLASSES)
    assert len(HELD_OUT_CLASSES) == 8 and sum(name in TEXTURES for name in HELD_OUT_CLASSES) == 4
    assert set(DEFECTS) - set(TRAIN_DEFECTS) == set(HELD_OUT_DEFECTS) == {"mold"}


def test_a_seed_draws_the_same_picture_and_another_seed_another():
    first, again, other = (draw_sample(seed=seed, difficulty=1.0) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    assert (first.class_name, first.caption) == (again.class_name, again.caption)
    assert first.image.shape == other.image.shape and np.mean(first.image != other.image) > 0.5


@pytest.mark.parametrize("class_name", CLASSES)
def test_every_class_draws_a_pair_that_differs_at_the_defect_only(class_name):
    for seed in (1, 2):
        good = draw_sample(class_name, anomalous=False, seed=seed, difficulty=0.0)
        bad = draw_sample(class_name, anomalous=True, seed=seed, difficulty=0.0)
        assert (good.label, good.defect_type, good.mask.any()) == (0, "good", False)
        assert good.caption == good.normal_caption and bad.caption == bad.anomalous_caption
        assert bad.label == 1 and bad.defect_type in TRAIN_DEFECTS and bad.class_name == class_name
        assert bad.image.dtype == np.uint8 and bad.mask.dtype == bool
        change = np.abs(bad.image.astype(int) - good.image.astype(int)).max(2)
        # the clean camera blurs by at most two pixels, and a soft rim of two may lie around the mask
        assert change[~binary_dilation(bad.mask, np.ones((3, 3)), iterations=5)].max(initial=0) == 0
        assert change[bad.mask].mean() > 8


@pytest.mark.parametrize("class_name", ASSEMBLED_CLASSES)
def test_assembled_things_differ_from_one_another(class_name):
    assert class_name in TRAIN_CLASSES
    drawn = draw_arrays(24, classes=(class_name,), seed=3, difficulty=0.3)["images"][::2].astype(float)
    far = [np.abs(a - b).mean() for k, a in enumerate(drawn) for b in drawn[:k]]
    assert min(far) > 3 and np.median(far) > 25
    assert np.std([image.std() for image in drawn]) > 5


def test_parts_of_one_picture_are_alike():
    canvas = Canvas(np.random.default_rng(8), 96, 96)
    painter = Painter(canvas, 0.0)
    painter.image = painter.background = np.zeros((96, 96, 3), np.float32)
    for cx in (-24, 24):
        painter.place(cx, 0, 18, 0.0)
        draw_part(painter)
    left, right = painter.fg[:, :48], painter.fg[:, 48:]
    np.testing.assert_allclose(left, right, atol=1e-3)
    assert 0.05 < left.mean() < 0.6


def test_what_is_held_out_is_drawn_as_ever():
    """Figures on held-out drawings of seed 2026 compare across versions only while the drawings stay the same."""
    drawn = draw_arrays(8, classes=HELD_OUT_CLASSES, defects=DEFECTS, size=64, seed=2026, difficulty=0.5)
    assert drawn["images"].mean((1, 2, 3)).round(1).tolist() == HELD_OUT_MEANS


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_defect_draws(defect):
    names = ("woven_fabric", "cookie", "zipper", "coin")
    kinds = [draw_sample(name, defect, anomalous=True, seed=3, difficulty=0.5).defect_type for name in names]
    assert kinds.count(defect) >= 2


def test_masks_lie_within_bounds(drawn):
    share = drawn["masks"].mean((1, 2))
    assert share[drawn["labels"] == 0].max() == 0
    damaged = share[drawn["labels"] == 1]
    assert damaged.min() > 0.001 and damaged.max() <= 0.3 and 0.01 < np.median(damaged) < 0.08
    assert (damaged < 0.008).mean() > 0.05 and (damaged > 0.08).mean() > 0.05


def test_difficulty_makes_defects_fainter_and_smaller():
    easy, hard = (draw_arrays(120, seed=2, difficulty=level, paired=True) for level in (0.0, 1.0))
    change = []
    for drawn in (easy, hard):
        pairs = drawn["images"].astype(float)
        change.append(np.mean([np.abs(pairs[k] - pairs[k - 1])[drawn["masks"][k]].mean() for k in range(1, 120, 2)]))
    assert change[1] < 0.8 * change[0]
    assert hard["masks"].mean() < 0.9 * easy["masks"].mean()


@pytest.mark.parametrize("statistic", ["mean", "saturation"])
def test_simple_statistics_do_not_tell_damaged_from_flawless(drawn, statistic):
    images = drawn["images"].astype(float)
    values = images.mean((1, 2, 3)) if statistic == "mean" else np.ptp(images, axis=3).mean((1, 2))
    assert 0.45 <= roc_auc_score(drawn["labels"], values) <= 0.6


def test_training_captions_never_name_what_is_held_out(drawn):
    text = " ".join(drawn["normal_captions"] + drawn["anomalous_captions"]).lower()
    for word in ("tile", "cork", "sponge", "terrazzo", "coin", "button", "macaroni", "pasta", "chest", "mold"):
        assert not re.search(rf"\b{word}", text), word
    assert not set(drawn["class_names"]) & set(HELD_OUT_CLASSES)
    assert not set(drawn["defect_types"]) & set(HELD_OUT_DEFECTS)
    assert 0.1 < np.mean([" object" in caption for caption in drawn["captions"]]) < 0.5
    assert sum("damaged object" in caption for caption in drawn["anomalous_captions"]) > 10


def test_captions_are_a_pair_and_read_well(drawn):
    for good, bad in zip(drawn["normal_captions"], drawn["anomalous_captions"], strict=True):
        assert good != bad
        assert "{" not in good + bad and "_" not in good + bad
        assert not re.search(r"\ba [aeio]", good + " " + bad), (good, bad)


def test_arrays_are_balanced_and_labels_agree_with_captions(drawn):
    assert drawn["images"].shape == (420, 96, 96, 3) and drawn["labels"].sum() == 210
    for label in (0, 1):
        names = np.array(drawn["class_names"])[drawn["labels"] == label]
        counts = [int((names == name).sum()) for name in TRAIN_CLASSES]
        assert max(counts) - min(counts) <= 1 and min(counts) >= 3
    for k in range(420):
        pair = (drawn["normal_captions"][k], drawn["anomalous_captions"][k])
        assert drawn["captions"][k] == pair[drawn["labels"][k]]
        assert (drawn["defect_types"][k] == "good") == (drawn["labels"][k] == 0)


def test_paired_arrays_show_one_scene_twice():
    drawn = draw_arrays(6, classes=("satin_steel",), seed=1, difficulty=0.0, paired=True)
    for k in (0, 2, 4):
        same = (drawn["images"][k] == drawn["images"][k + 1]).all(2)
        assert same[~binary_dilation(drawn["masks"][k + 1], np.ones((3, 3)), iterations=5)].all() and not same.all()
        assert drawn["normal_captions"][k] == drawn["normal_captions"][k + 1]


@pytest.mark.slow
def test_processes_draw_what_one_draws():
    one, two = (draw_arrays(70, size=32, seed=4, num_workers=workers) for workers in (0, 2))
    np.testing.assert_array_equal(one["images"], two["images"])
    assert one["captions"] == two["captions"]


def test_dataset_has_the_schema_and_null_masks_for_normal_images():
    dataset = draw_dataset(34, size=48, seed=1)
    assert set(dataset.column_names) == {"image", "mask", "label", "class_name", "defect_type", "path"}
    assert sum(dataset["label"]) == 17
    assert set(dataset["class_name"]) == set(HELD_OUT_CLASSES)
    assert len(set(dataset["path"])) == 34
    for row in dataset:
        assert row["image"].size == (48, 48)
        assert (row["mask"] is None) == (row["label"] == 0)
        if row["mask"] is not None:
            assert set(np.unique(np.asarray(row["mask"]))) == {0, 255}


@pytest.mark.parametrize("shape", [(50, 83), (120, 40, 3), (33, 33, 4), (64, 64, 1)])
def test_anomaly_on_odd_sizes_and_gray(shape):
    image = np.random.default_rng(0).integers(90, 140, shape, dtype=np.uint8)
    damaged, mask, kind = draw_anomaly_on(image, seed=2, difficulty=0.2)
    assert damaged.shape == (*shape[:2], 3) and damaged.dtype == np.uint8 and kind in TRAIN_DEFECTS
    assert 0.001 < mask.mean() < 0.35
    original = np.broadcast_to(image.reshape(*shape[:2], -1)[..., :3], damaged.shape)
    outside = ~binary_dilation(mask, np.ones((3, 3)), iterations=3)
    np.testing.assert_array_equal(damaged[outside], original[outside])


def test_anomaly_on_a_constant_image_and_on_a_path(tmp_path):
    Image.new("L", (60, 40), 128).save(tmp_path / "plain.png")
    damaged, mask, _ = draw_anomaly_on(tmp_path / "plain.png", seed=0)
    assert damaged.shape == (40, 60, 3) and (damaged[mask] != 128).any()


def test_anomaly_on_files_that_are_no_8_bit_pictures(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"cannot read image .*broken\.png"):
        draw_anomaly_on(tmp_path / "broken.png")
    with pytest.raises(ValueError, match=r"mode 'I;16'.*8 bits"):
        draw_anomaly_on(Image.fromarray(np.zeros((64, 64), np.uint16)))


def test_anomaly_is_put_on_the_object_of_a_plain_background():
    image = np.full((96, 96, 3), 20, np.uint8)
    y, x = np.mgrid[:96, :96]
    disc = (x - 30) ** 2 + (y - 60) ** 2 < 20**2
    image[disc] = (200, 150, 90)
    near = binary_dilation(disc, iterations=4)
    for seed, defect in enumerate(("stain", "scratch", "hole", "dent", "burn", "lesion")):
        _, mask, kind = draw_anomaly_on(image, seed=seed, defect=defect, difficulty=0.3)
        assert kind == defect and mask.any() and not mask[~near].any()


def test_the_foreground_is_the_whole_picture_without_a_plain_background():
    noise = np.random.default_rng(0).random((64, 64, 3)).astype(np.float32)
    assert synthetic._foreground(noise)[0].all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_sample("spoon"), "class_name='spoon'.*cookie"),
        (lambda: draw_sample(defect="rust"), "defect='rust'.*scratch"),
        (lambda: draw_sample(size=8), "size=8.*32"),
        (lambda: draw_sample(size=64.0), "size=64.0.*integer"),
        (lambda: draw_sample(seed=-1), "seed=-1"),
        (lambda: draw_sample(difficulty=1.5), r"difficulty=1.5.*0 to 1"),
        (lambda: draw_sample(difficulty=float("nan")), "difficulty=nan"),
        (lambda: draw_sample(anomalous="yes"), "anomalous='yes'.*True, False or None"),
        (lambda: draw_arrays(0), "num_images=0"),
        (lambda: draw_arrays(4, classes="cookie"), "classes='cookie'.*list"),
        (lambda: draw_arrays(4, defects=()), r"defects=\(\)"),
        (lambda: draw_arrays(4, num_workers=-1), "num_workers=-1"),
        (lambda: draw_dataset(4, classes=("cup",)), "classes='cup'"),
        (lambda: draw_anomaly_on(np.zeros((64, 64), np.float32)), "dtype float32.*uint8"),
        (lambda: draw_anomaly_on(np.zeros((8, 64), np.uint8)), r"shape \(8, 64\)"),
        (lambda: draw_anomaly_on(np.zeros((64, 64, 3), np.uint8), defect="x"), "defect='x'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
