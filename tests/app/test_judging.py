"""What the page does, by value: the same as the command and the pipeline, and nothing of one session in another."""

import json
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from anomalyclip_hf import AnomalyCLIPModel, Profile
from anomalyclip_hf.app.judging import (
    Setting,
    calibrate_page,
    draw_regions,
    judge,
    results_zip,
    score_images,
    share_above,
    table_rows,
    tell_skipped,
    using,
)
from anomalyclip_hf.scoring.prediction import predict_files


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint, tmp_path_factory):
    """The tiny checkpoint with a profile."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = AnomalyCLIPModel.from_pretrained(tiny_checkpoint)
    model.save_pretrained(folder)
    model.default_processor().save_pretrained(folder)
    roi = [[0, 0], [30, 0], [30, 40], [0, 40]]
    Profile("left", image_threshold=0.25, pixel_threshold=0.5, min_area=3, roi=roi).save(folder)
    return str(folder)


@pytest.fixture
def photos(tmp_path, make_image):
    """Files of three images of other sizes, of one name in two folders, and of one that is corrupt."""
    paths = [tmp_path / "in" / name for name in ("a.png", "b/a.png", "c.jpg", "broken.png")]
    for seed, path in enumerate(paths[:3]):
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image(50 + seed, 40, seed).save(path)
    paths[3].write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return [str(path) for path in paths]


def test_a_zip_holds_what_predict_writes(checkpoint, photos, tmp_path):
    setting = Setting(checkpoint, "left")
    scored = score_images(photos, tmp_path / "page", setting)
    level = float(np.median(np.load(scored.folder / scored.records["a.png"]["map"])))
    threshold = float(np.median([record["score"] for record in scored.records.values()]))
    with using(setting) as detector:
        options = {"image_threshold": threshold, "pixel_threshold": level, "masks": True}
        summary = predict_files(photos, tmp_path / "command", detector, **options)
    wanted = [{**record, "path": name} for record, name in zip(summary.read(), scored.records, strict=True)]
    with zipfile.ZipFile(results_zip(scored, threshold, level, tmp_path / "results.zip")) as archive:
        records = [json.loads(line) for line in archive.read("predictions.jsonl").splitlines()]
        assert records == wanted and list(scored.records) == ["a.png", "a-2.png", "c.jpg"]
        assert any(record["regions"] for record in records)
        assert {record["label"] for record in records} == {"normal", "anomalous"}
        rows = [[one["path"], round(one["score"], 4), one["label"], len(one["regions"])] for one in records]
        assert table_rows(scored, threshold, level) == table_rows(scored, threshold, level) == rows
        assert [row[3] for row in table_rows(scored, threshold, 1.0)] == [0, 0, 0]
        for record in records:
            for kind in ("overlay", "mask"):
                with archive.open(record[kind]) as file, Image.open(file) as packed:
                    written = Image.open(summary.output / record[kind])
                    assert packed.size == (record["width"], record["height"])
                    assert np.array_equal(np.asarray(packed), np.asarray(written))
        skipped = [json.loads(line) for line in archive.read("skipped.jsonl").splitlines()]
    assert skipped == scored.skipped and skipped[0]["path"] == "broken.png"
    assert tell_skipped(skipped).startswith("Skipped: cannot read image broken.png: not an image")


def test_regions_are_drawn_on_the_image_at_its_own_size(checkpoint, photos, tmp_path):
    scored = score_images(photos[:1], tmp_path / "page", Setting(checkpoint))
    level = float(np.quantile(np.load(scored.folder / scored.records["a.png"]["map"]), 0.8))
    image = np.asarray(Image.open(photos[0]).convert("RGB"))
    drawn = [np.asarray(draw_regions(scored, judge(scored, "a.png", 0.5, one)[0])) for one in (level, 1.0)]
    assert drawn[0].shape == image.shape and (drawn[0] != image).any()
    assert np.array_equal(drawn[1], image)  # nothing is marked there


def test_share_above_counts_scores_at_the_threshold():
    assert share_above([0.1, 0.5, 0.9, 0.5], 0.5) == 0.75
    assert share_above([0.1, 0.5], 0.51) == 0.0 and share_above([], 0.5) == 0.0


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (59, "With 95.2% confidence, at most 5% of new good images will be called anomalous, and as few"),
        (12, r"has only 46.0% confidence: 95% takes 59 good images. What 12 allow at 95% confidence: at most 22.1%."),
    ],
)
def test_calibration_says_what_so_many_images_promise(checkpoint, make_image, tmp_path, count, told):
    paths = [str(tmp_path / f"{seed}.png") for seed in range(count)]
    for seed, path in enumerate(paths):
        make_image(50, 40, seed).save(path)
    setting = Setting(checkpoint, "left")
    image, _, text = calibrate_page(paths, setting)
    assert told in text and f"from {count} good images" in text
    scores = [record["score"] for record in score_images(paths, tmp_path / "page", setting).records.values()]
    assert max(scores) < image < max(scores) + 1e-3
    with using(setting) as detector:  # it was for one session
        assert (detector.model.profile.image_threshold, detector.model.profile.calibration) == (0.25, None)


def test_calls_of_two_sessions_leave_the_shared_model_as_it_was(checkpoint, photos, tmp_path):
    first = score_images(photos[:2], tmp_path / "1", Setting(checkpoint))
    other = score_images(photos[:2], tmp_path / "2", Setting(checkpoint, "left", photos[2:3]))
    again = score_images(photos[:2], tmp_path / "3", Setting(checkpoint))
    scores = [[record["score"] for record in one.records.values()] for one in (first, other, again)]
    assert scores[0] == scores[2] != scores[1]
    assert (first.options, other.options["min_area"]) == ({}, 3)
    with using(Setting(checkpoint)) as detector:
        expected = detector(photos[:2], references=photos[2:3])
    assert scores[1] == pytest.approx([one["score"] for one in expected], abs=1e-6)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "/no/such/folder"}, "/no/such/folder"),
        ({"profile": "cup"}, "has no profile 'cup'; known are: left"),
        ({"references": ["broken.png"]}, "broken.png"),
    ],
)
def test_what_cannot_be_used_is_named(checkpoint, photos, tmp_path, change, told):
    setting = Setting(**{"model": checkpoint, **change})
    with pytest.raises((OSError, ValueError), match=re.escape(told)):
        score_images(photos, tmp_path / "page", setting)
    with using(Setting(checkpoint)) as detector:
        assert detector.model.profile is None and detector.model.references is None


def test_without_an_image_nothing_is_scored(checkpoint, photos, tmp_path):
    with pytest.raises(ValueError, match="There are no images yet"):
        score_images([], tmp_path / "page", Setting(checkpoint))
    with pytest.raises(ValueError, match=r"None of these images can be used. Skipped: cannot read image broken.png"):
        score_images(photos[3:], tmp_path / "page", Setting(checkpoint))
    with pytest.raises(ValueError, match="There are no good images"):
        calibrate_page([], Setting(checkpoint))
