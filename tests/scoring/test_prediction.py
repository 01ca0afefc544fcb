"""Predicting at scale: shards of records, runs that go on, what is written, and one score whatever the way."""

import csv
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from anomalyclip_hf.data import load_anomaly_dataset
from anomalyclip_hf.evaluation import evaluate_model
from anomalyclip_hf.scoring import calibrate, overlay, predict_dataset, predict_files, thresholds, writing
from anomalyclip_hf.scoring.engine import score_images
from anomalyclip_hf.scoring.rows import PipelineScorer


class Detector:
    """Scores an image by its mean, and counts what it is asked; `stop` is called with the number of each image."""

    def __init__(self, stop=lambda number: None):
        self.stop, self.number, self.alive, self.most = stop, 0, weakref.WeakSet(), 0

    def __call__(self, images, image_threshold=0.4, pixel_threshold=0.5, **kwargs):
        results = []
        for image in images:
            self.stop(self.number)
            self.number += 1
            result = Result(np.asarray(image.convert("L"), np.float32) / 255)
            self.alive.add(result)
            self.most = max(self.most, len(self.alive))
            score = float(result["anomaly_map"].mean())
            label = "anomalous" if score >= image_threshold else "normal"
            results.append(result)
            result |= {"score": score, "label": label, "mask": result["anomaly_map"] >= pixel_threshold}
        return results


class Result(dict):
    """A result that can be watched."""

    __hash__ = object.__hash__

    def __init__(self, anomaly_map):
        super().__init__(anomaly_map=anomaly_map)


@pytest.fixture
def make_files(tmp_path):
    """Function `(count)` -> a folder of so many gray images; the score of number i is i / 250."""

    def make(count):
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        for index in range(count):
            Image.new("L", (4, 3), index % 250).save(folder / f"{index:04}.png")
        return folder

    return make


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def kept(out):
    """What the files hold that a reader finds, whatever became of the run: every line is whole."""
    return [record for path in sorted(out.glob("predictions*.jsonl")) for record in lines(path)]


def numbers(records):
    return [int(os.path.basename(record["path"])[:4]) for record in records]


def killed(number):
    if number == 8:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_memory_does_not_grow_with_the_number_of_files(make_files, tmp_path, monkeypatch, num_workers):
    monkeypatch.setattr(writing, "SHARD_SIZE", 20)
    folder, out, detector = make_files(300), tmp_path / "out", Detector()
    (folder / "0007.png").write_text("no image")
    held, add = [], writing.RecordWriter._add

    def watched(self, *entry):
        add(self, *entry)
        held.append(sum(map(len, self._lines.values())))

    monkeypatch.setattr(writing.RecordWriter, "_add", watched)
    settings = {"batch_size": 4, "overlays": "none", "save_maps": "npy", "num_workers": num_workers}
    summary = predict_files([folder], out, detector, progress=False, **settings)
    assert detector.number == 299 and detector.most <= 12 and max(held) < 40
    assert numbers(lines(out / "predictions.jsonl")) == [index for index in range(300) if index != 7]
    assert {path.name for path in out.iterdir()} == {
        "maps",
        "predict_settings.json",
        "predictions.jsonl",
        "skipped.jsonl",
    }
    assert (summary.num_scored, summary.num_skipped, summary.exit_status) == (299, 1, 1)
    assert summary.skipped == lines(out / "skipped.jsonl")


def test_a_killed_run_goes_on_where_it_was(make_files, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "SHARD_SIZE", 3)
    folder, out = make_files(12), tmp_path / "out"
    (folder / "0001.png").write_text("no image")
    settings = {"progress": False, "save_maps": "npy", "vmax": 0.5}
    # A process of its own, not a fork: engines that other tests loaded have threads.
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; from test_prediction import *; writing.SHARD_SIZE = 3;"
        f"predict_files([{str(folder)!r}], {str(out)!r}, Detector(killed), **{settings!r})"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    records = kept(out)
    assert len(records) >= 6 and all(
        (out / record[field]).is_file() for record in records for field in ("overlay", "map")
    )
    with pytest.raises(ValueError, match=r"vmax was 0\.5 and is 1\.0.*leave out resume=True"):
        predict_files([folder], out, Detector(), resume=True, progress=False, save_maps="npy")
    with pytest.raises(ValueError, match=r"inputs was .* and is \["):
        predict_files([folder / "0000.png"], out, Detector(), resume=True, **settings)
    assert kept(out) == records

    def interrupted(number):
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # and stopped again
        predict_files([folder], out, Detector(interrupted), resume=True, **settings)
    assert len(kept(out)) == len(records) + 2
    Image.new("L", (4, 3), 1).save(folder / "0001.png")  # mended
    Image.new("L", (4, 3), 4).save(folder / "0003b.png")  # new
    detector = Detector()
    summary = predict_files([folder], out, detector, resume=True, **settings)
    assert detector.number == 13 - len(records) - 2 and summary.num_scored == 13 and not summary.num_skipped
    whole = predict_files([folder], tmp_path / "whole", Detector(), **settings)
    assert summary.predictions == whole.predictions and not (out / "skipped.jsonl").exists()
    names = [
        {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} for folder in (out, tmp_path / "whole")
    ]
    assert names[0] == names[1]
    # Of a finished run nothing is left to do; what has gone since has no record.
    (folder / "0005.png").unlink()
    detector = Detector()
    assert predict_files([folder], out, detector, resume=True, **settings).num_scored == 12 and not detector.number
    assert not list(out.rglob("0005.png.*"))
    assert predict_files([folder], out, Detector(), progress=False).num_scored == 12  # and without, all is new
    assert not (out / "maps" / "0000.png.npy").exists()


def test_merging_that_was_cut_short_is_done_again(make_files, tmp_path):
    folder, out = make_files(5), tmp_path / "out"
    whole = predict_files([folder], out, Detector(), progress=False).predictions
    for number, index in enumerate((0, 3)):  # shards that were not yet removed
        line = json.dumps({"index": index, **whole[index]})
        (out / f"predictions-00000-{number:07}.jsonl").write_text(line + "\n")
    assert predict_files([folder], out, Detector(killed), resume=True, progress=False).predictions == whole
    (out / "predict_settings.json").unlink()
    with pytest.raises(ValueError, match="can't be read"):
        predict_files([folder], out, Detector(), resume=True, progress=False)


def test_tables_hold_the_same_records(make_files, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    folder, out = make_files(4), tmp_path / "out"

    class WithRegions(Detector):
        def __call__(self, images, **options):
            results = super().__call__(images, **options)
            results[0]["regions"] = [{"box": [0, 0, 1, 1], "peak": results[0]["score"]}]
            return results

    settings = {"formats": ["csv", "parquet"], "overlays": "anomalous", "threshold": 0.01, "progress": False}
    summary = predict_files([folder], out, WithRegions(), **settings)
    records = summary.predictions
    with open(out / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = pq.read_table(out / "predictions.parquet").to_pylist()
    for record, row, cells in zip(records, rows, table, strict=True):
        assert (
            float(row["score"]) == cells["score"] == record["score"] and row["path"] == cells["path"] == record["path"]
        )
        assert json.loads(row["regions"]) == json.loads(cells["regions"]) == record["regions"]
        assert cells["overlay"] == record.get("overlay") and row["overlay"] == record.get("overlay", "")
    Image.new("L", (4, 3), 0).save(folder / "0009.png")  # tables that are there stay those of the records
    without = {**settings, "formats": ["jsonl"], "resume": True}
    assert predict_files([folder], out, WithRegions(), **without).num_scored == 5
    assert pq.read_table(out / "predictions.parquet")["path"].to_pylist()[-1].endswith("0009.png")
    assert "0009.png" in (out / "predictions.csv").read_text()
    assert [record["label"] for record in records] == ["normal"] * 3 + ["anomalous"]
    assert [path.name for path in (out / "overlays").iterdir()] == ["0003.png.png"]
    with pytest.raises(ValueError, match="formats='xlsx', expected some of jsonl, parquet, csv"):
        predict_files([folder], out, Detector(), formats=["xlsx"])


def test_masks_and_overlays_need_their_thresholds(tiny_checkpoint, tmp_path, make_image):
    make_image(60, 40).save(tmp_path / "a.png")
    detector = pipeline("zero-shot-anomaly-detection", model=tiny_checkpoint)
    with pytest.raises(ValueError, match="give image_threshold="):
        predict_files([tmp_path / "a.png"], tmp_path / "out", detector, overlays="anomalous")
    with pytest.raises(ValueError, match="give pixel_threshold="):
        predict_files([tmp_path / "a.png"], tmp_path / "out", detector, masks=True)
    with pytest.raises(TypeError, match="unknown arguments"):
        predict_files([tmp_path / "a.png"], tmp_path / "out", detector, colour=1)
    assert not (tmp_path / "out").exists()
    expected = detector(str(tmp_path / "a.png"), sigma=1.0)
    level = float(np.median(expected["anomaly_map"]))
    settings = {"masks": True, "pixel_threshold": level, "sigma": 1.0, "overlays": "none", "progress": False}
    summary = predict_files([tmp_path / "a.png"], tmp_path / "out", detector, **settings)
    (record,) = summary.predictions
    assert set(record) == {"path", "score", "width", "height", "regions", "mask"}
    mask = Image.open(tmp_path / "out" / record["mask"])
    assert mask.size == (60, 40) and mask.mode == "L"
    np.testing.assert_array_equal(np.asarray(mask) > 0, expected["anomaly_map"] >= level)


def test_an_image_scores_the_same_by_every_way(
    tiny_checkpoint, tiny_model, tiny_processor, tmp_path, make_image, monkeypatch
):
    for index, mode in enumerate(["RGB", "L", "RGBA", "P", "RGB", "CMYK", "1"]):
        (tmp_path / "part" / "test" / "good").mkdir(parents=True, exist_ok=True)
        image = make_image(40 + 9 * index, 70 - 8 * index, seed=index)
        if mode == "RGBA":
            image.putalpha(make_image(*image.size, seed=99).convert("L"))
        suffix = "tif" if mode == "CMYK" else "png"
        image.convert(mode).save(tmp_path / "part" / "test" / "good" / f"{index}.{suffix}")
    dataset = load_anomaly_dataset(tmp_path / "part")
    detector = pipeline("zero-shot-anomaly-detection", model=tiny_checkpoint)
    prepare = pickle.loads(pickle.dumps(PipelineScorer(detector).prepare))  # as spawned workers get it
    assert set(prepare(dataset[0]["image"])) == {"pixel_values", "target_size"}
    ways = {"pipeline": [result["score"] for result in detector(list(dataset["path"]), batch_size=3)]}
    shared = {"batch_size": 4, "num_workers": 1}
    summary = predict_files(dataset["path"], tmp_path / "out", detector, **shared, progress=False)
    ways["files"] = [record["score"] for record in summary.predictions]
    summary = predict_dataset(dataset, tmp_path / "out2", detector, batch_size=2, progress=False)
    ways["data set"] = [record["score"] for record in summary.predictions]
    stream = load_anomaly_dataset(tmp_path / "part", streaming=True)
    summary = predict_dataset(stream, tmp_path / "out3", detector, **shared, progress=False)
    ways["stream"] = [record["score"] for record in summary.predictions]
    ways["evaluate"] = evaluate_model(tiny_model, tiny_processor, dataset, show_progress=False, **shared)["scores"][
        "scores"
    ]["anomalyclip"]
    choose = thresholds.calibrate_from_normal
    seen = []
    monkeypatch.setattr(
        thresholds, "calibrate_from_normal", lambda scores, *more: seen.append(scores) or choose(scores, *more)
    )
    with pytest.warns(UserWarning, match="too few"):
        calibrate(tiny_model, tiny_processor, dataset, show_progress=False, **shared)
    ways["calibrate"] = seen[0]
    for way, scores in ways.items():
        np.testing.assert_allclose(scores, ways["pipeline"], atol=1e-6, rtol=0, err_msg=way)


def test_records_need_score_and_map(tiny_checkpoint):
    for options, given in (({}, {"outputs": "score"}), ({"outputs": "maps"}, {})):
        detector = pipeline("zero-shot-anomaly-detection", model=tiny_checkpoint, **options)
        with pytest.raises(ValueError, match="records need score and map"):
            PipelineScorer(detector, **given)


def test_options_of_a_call_are_parsed_once(tiny_checkpoint, make_files, tmp_path, monkeypatch):
    folder = make_files(3)
    detector = pipeline("zero-shot-anomaly-detection", model=tiny_checkpoint)
    compared = detector.model.make_references([Image.new("L", (4, 3), 9)])
    expected = detector(str(folder / "0002.png"), references=compared, min_area=2, pixel_threshold=0.1)
    parsed, parse = [], detector._sanitize_parameters
    monkeypatch.setattr(detector, "_sanitize_parameters", lambda **given: parsed.append(given) or parse(**given))
    options = {"references": compared, "reference_weight": 0.1, "min_area": 2, "pixel_threshold": 0.1}
    summary = predict_files([folder], tmp_path / "out", detector, overlays="none", progress=False, **options)
    assert len(parsed) == 1 and summary.predictions[2]["score"] == pytest.approx(expected["score"], abs=1e-6)
    assert summary.predictions[2]["regions"] == expected["regions"]


@pytest.mark.parametrize("options", [{"resize": "fit"}, {"resize": "tile", "tile_size": 40, "overlap": 0.1}])
def test_images_that_are_no_squares_score_as_in_the_pipeline(tiny_checkpoint, make_image, tmp_path, options):
    path = tmp_path / "wide.png"
    make_image(90, 60).save(path)
    detector = pipeline("zero-shot-anomaly-detection", model=tiny_checkpoint)
    expected = detector(str(path), **options)
    settings = {"overlays": "none", "save_maps": "npy", "progress": False, **options}
    (record,) = predict_files([path], tmp_path / "out", detector, **settings).predictions
    assert record["score"] == pytest.approx(expected["score"], abs=1e-6)
    np.testing.assert_allclose(np.load(tmp_path / "out" / record["map"]), expected["anomaly_map"], atol=1e-6)


def test_a_stream_goes_on_too(make_files, tmp_path):
    folder = make_files(6)
    (folder / "0002.png").write_text("no image")
    stream = load_anomaly_dataset(_rows(folder), streaming=True)

    def interrupted(number):
        if number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_dataset(stream, tmp_path / "out", Detector(interrupted), progress=False)
    assert numbers(kept(tmp_path / "out")) == [0, 1, 3]
    detector = Detector()
    summary = predict_dataset(stream, tmp_path / "out", detector, resume=True, progress=False)
    assert numbers(summary.predictions) == [0, 1, 3, 4, 5] and detector.number == 2 and summary.num_skipped == 1
    assert all((tmp_path / "out" / record["overlay"]).is_file() for record in summary.predictions)
    with pytest.raises(ValueError, match="is done"):
        predict_dataset(stream, tmp_path / "out", Detector(), resume=True, progress=False)


def _rows(folder):
    import datasets

    paths = [str(path) for path in sorted(folder.iterdir())]
    columns = {"image": paths, "label": [0] * len(paths), "path": paths}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).to_iterable_dataset()


def double(row):
    return torch.tensor([row * 2.0])


@pytest.mark.slow
def test_workers_may_be_spawned(monkeypatch):
    multiprocessing.set_start_method("spawn", force=True)
    try:
        records = list(
            score_images(list(range(5)), double, lambda items: [item.item() for item in items], num_workers=2)
        )
    finally:
        multiprocessing.set_start_method(None, force=True)
    assert [record.result for record in records] == [0.0, 2.0, 4.0, 6.0, 8.0]


def test_distances_have_a_scale_on_which_they_are_seen(tiny_model, tiny_processor, make_image, tmp_path):
    good, shown = make_image(), make_image(seed=5)
    shown.save(tmp_path / "a.png")
    detector = pipeline("zero-shot-anomaly-detection", model=tiny_model, image_processor=tiny_processor)
    settings = {}
    for name, options in (
        ("plain", {}),
        ("given", {"references": [good], "vmax": 0.25}),
        ("own", {"references": [good]}),
    ):
        predict_files([tmp_path / "a.png"], tmp_path / name, detector, progress=False, **options)
        settings[name] = json.loads((tmp_path / name / "predict_settings.json").read_text())["vmax"]
    assert settings == {"plain": 1.0, "given": 0.25, "own": 0.5}
    expected = overlay(shown, detector(shown, references=[good])["anomaly_map"], vmax=0.5)
    drawn = Image.open(tmp_path / "own" / "overlays" / "a.png.png")
    assert np.abs(np.asarray(drawn, int) - np.asarray(expected, int)).max() <= 1
