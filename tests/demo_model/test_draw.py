"""The drawn benchmark: its splits, and the folder that it can be written to."""

import sys

import numpy as np
import pytest

from anomalyclip_hf import load_anomaly_dataset
from draw import SPLITS, draw, main
from drawing.synthetic import DEFECTS, HELD_OUT_CLASSES, TRAIN_CLASSES, TRAIN_DEFECTS, draw_dataset


def rows(dataset):
    return [(row["path"], row["image"].tobytes(), row["mask"] and row["mask"].tobytes()) for row in dataset]


def test_test_is_the_fixed_held_out_set():
    expected = draw_dataset(6, classes=HELD_OUT_CLASSES, defects=DEFECTS, seed=2026, difficulty=0.5, size=128)
    assert rows(draw(num_images=6)) == rows(expected)
    assert SPLITS["test"]["num_images"] == 400


def test_splits_keep_apart_what_is_held_out():
    train, validation = (draw(split, num_images=24, size=32) for split in ("train", "validation"))
    assert set(train["class_name"]) <= set(TRAIN_CLASSES) and set(train["defect_type"]) <= {"good", *TRAIN_DEFECTS}
    assert set(validation["class_name"]) == set(HELD_OUT_CLASSES)
    assert set(draw("train", ["coin"], num_images=2, size=32)["class_name"]) == {"coin"}
    for seed in ({}, {"seed": 5}):
        judged, calibration = (draw(split, num_images=8, size=32, **seed) for split in ("test", "calibration"))
        assert not {image for _, image, _ in rows(judged)} & {image for _, image, _ in rows(calibration)}


def test_an_unknown_option_is_refused_by_name():
    with pytest.raises(ValueError, match="takes no mask_column: expected num_images"):
        draw(mask_column="mask")


def test_the_command_writes_a_source_like_any_other(tmp_path, monkeypatch, capsys):
    line = ["draw.py", str(tmp_path / "drawn"), "--num_images", "4", "--size", "48", "--seed", "3"]
    monkeypatch.setattr(sys, "argv", line)
    assert main() == 0
    found, expected = load_anomaly_dataset(tmp_path / "drawn"), draw(num_images=4, size=48, seed=3)
    for row, drawn in zip(found, expected, strict=True):
        assert [row[key] for key in ("label", "class_name", "defect_type")] == [
            drawn[key] for key in ("label", "class_name", "defect_type")
        ]
        np.testing.assert_array_equal(row["image"], drawn["image"])
        assert (row["mask"] is None) == (drawn["mask"] is None)
        if drawn["mask"] is not None:
            np.testing.assert_array_equal(row["mask"], drawn["mask"])
    assert main() == 2  # the folder is there already
    assert "error:" in capsys.readouterr().err
