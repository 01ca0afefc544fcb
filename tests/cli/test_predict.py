"""scripts/predict.py: what it writes, what it skips, how it exits."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from transformers import pipeline

from anomalyclip_hf.cli import run_command
from anomalyclip_hf.scoring.inputs import find_images
from anomalyclip_hf.scoring.pictures import overlay
from anomalyclip_hf.scoring.prediction import predict_files
from draw import draw


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("predict")


@pytest.fixture
def photos(tmp_path, make_image):
    """Two folders with files of the same name, one deeper, of different sizes."""
    files = {"a/000.png": (50, 40), "b/000.png": (30, 60), "b/deep/000.jpg": (64, 42), "b/deep/000.png": (44, 44)}
    for seed, (name, size) in enumerate(files.items()):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image(*size, seed=seed).save(path)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"no image")
    return tmp_path / "photos"


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_gives_scores_overlays_and_maps(script, photos, tiny_checkpoint, tmp_path, capsys):
    before, out = snapshot(photos), tmp_path / "out"
    arguments = [str(photos), "--model", tiny_checkpoint, "--output_dir", str(out), "--batch_size", "3", "--save_maps"]
    assert script.main([*arguments, "--threshold", "0.5", "--device", "cpu"]) == 0
    assert snapshot(photos) == before
    assert "4 images scored, 0 inputs skipped" in capsys.readouterr().out

    detector = pipeline("zero-shot-anomaly-detection", model=tiny_checkpoint)
    records = read_lines(out / "predictions.jsonl")
    assert [Path(r["path"]).relative_to(photos).as_posix() for r in records] == [
        "a/000.png", "b/000.png", "b/deep/000.jpg", "b/deep/000.png",
    ]  # fmt: skip
    for record in records:
        image = Image.open(record["path"])
        expected = detector(image)
        assert record["score"] == pytest.approx(expected["score"], abs=1e-5)
        assert record["label"] == ("anomalous" if expected["score"] >= 0.5 else "normal")
        raw = Image.open(out / record["map"])
        assert raw.mode.startswith("I;16") and raw.size == image.size
        values = np.asarray(raw) / 65535
        np.testing.assert_allclose(values, expected["anomaly_map"], atol=2e-5)
        picture = np.asarray(Image.open(out / record["overlay"]))
        assert np.abs(picture.astype(int) - np.asarray(overlay(image, expected["anomaly_map"])).astype(int)).max() <= 1
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == {
        "predictions.jsonl",
        "predict_settings.json",
        "legend.png",
        *(r["overlay"] for r in records),
        *(r["map"] for r in records),
    }


def test_maps_as_arrays_and_no_label_without_a_threshold(script, photos, tiny_checkpoint, tmp_path):
    out, photo = tmp_path / "out", str(photos / "a" / "000.png")
    assert script.main([photo, "--model", tiny_checkpoint, "--output_dir", str(out), "--save_maps", "npy"]) == 0
    (record,) = read_lines(out / "predictions.jsonl")
    assert "label" not in record
    array = np.load(out / record["map"])
    assert array.dtype == np.float32 and array.shape == (40, 50)
    np.testing.assert_array_equal(
        array, pipeline("zero-shot-anomaly-detection", model=tiny_checkpoint)(photo)["anomaly_map"]
    )


def test_unreadable_files_are_reported_and_skipped(script, photos, tiny_checkpoint, tmp_path, capsys):
    good = (photos / "a" / "000.png").read_bytes()
    (photos / "a" / "cut.png").write_bytes(good[: len(good) // 2])
    (photos / "a" / "empty.jpg").write_bytes(b"")
    (photos / "a" / "text.png").write_text("hello")
    out = tmp_path / "out"
    arguments = [str(photos / "a"), str(tmp_path / "nowhere"), "--model", tiny_checkpoint, "--output_dir", str(out)]
    assert script.main([*arguments, "--batch_size", "2"]) == 1
    assert [r["path"] for r in read_lines(out / "predictions.jsonl")] == [str(photos / "a" / "000.png")]
    skipped = {Path(r["path"]).name: r["error"] for r in read_lines(out / "skipped.jsonl")}
    assert set(skipped) == {"cut.png", "empty.jpg", "text.png", "nowhere"}
    assert "cannot read image" in skipped["cut.png"] and skipped["nowhere"] == "no such file or folder"
    captured = capsys.readouterr()
    assert "1 image scored, 4 inputs skipped" in captured.out and "skipped" in captured.err

    for name in ("cut.png", "empty.jpg", "text.png"):
        (photos / "a" / name).unlink()
    assert script.main([str(photos / "a"), "--model", tiny_checkpoint, "--output_dir", str(out)]) == 0
    assert not (out / "skipped.jsonl").exists()  # of the earlier run


def test_another_run_replaces_the_files_of_the_one_before_and_says_so(photos, tiny_checkpoint, tmp_path, capsys):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    common = ["--model", tiny_checkpoint, "--output-dir", str(out), "--threshold", "0.5", "--pixel-threshold", "0.5"]
    assert run_command("predict", [str(photos), *common, "--save-maps", "npy", "--masks"]) == 0
    assert "replaced" not in capsys.readouterr().err
    (out / "overlays" / "b" / "mine.txt").write_text("of the user")
    (out / "maps" / "a").rename(elsewhere)  # files behind a link are no longer inside
    (out / "maps" / "a").symlink_to(elsewhere)
    before = snapshot(out)
    # Nothing to score: a name mistyped costs nothing.
    assert run_command("predict", [str(tmp_path / "nowhere"), *common]) == 2
    assert snapshot(out) == before and "replaced" not in capsys.readouterr().err
    assert run_command("predict", [str(photos / "a"), *common, "--overlays", "none"]) == 0
    assert f"note: replaced the results of an earlier run in {out}\n" in capsys.readouterr().err
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    assert files == {"predictions.jsonl", "predict_settings.json", "overlays/b/mine.txt"}
    assert [path.name for path in elsewhere.iterdir()] == ["000.png.npy"] and not (out / "predicted_masks").exists()
    assert run_command("predict", [str(photos / "a"), *common, "--overlays", "none", "--resume"]) == 0
    assert "replaced" not in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["{empty}"], ["{bad}"], ["{good}", "--model", "{empty}"]])
def test_nothing_done_is_status_2(script, photos, tiny_checkpoint, tmp_path, arguments, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_text("hello")
    places = {"empty": tmp_path / "empty", "bad": tmp_path / "bad.png", "good": photos}
    filled = ["--model", tiny_checkpoint, *(argument.format(**places) for argument in arguments)]
    assert script.main([*filled, "--output_dir", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.strip()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--batch_size", "0"], ["--threshold", "1.5"], ["--vmin", "1"]])
def test_wrong_arguments_are_status_2(script, photos, tiny_checkpoint, tmp_path, arguments, capsys):
    common = [str(photos), "--model", tiny_checkpoint, "--output_dir", str(tmp_path / "out")]
    assert script.main([*common, *arguments]) == 2
    assert f"{arguments[0].replace('_', '-')} " in capsys.readouterr().err


def test_results_are_never_inputs_nor_the_other_way_round(photos, tiny_checkpoint):
    detector = pipeline("zero-shot-anomaly-detection", model=tiny_checkpoint)
    before = snapshot(photos)
    for _ in range(2):  # the second run meets the results of the first inside the folder it searches
        summary = predict_files([photos], photos / "results", detector, progress=False, save_maps="png")
        assert len(summary.predictions) == 4 and not summary.skipped
    after = snapshot(photos)
    assert {path: after[path] for path in before} == before
    for source, out in (
        (photos / "results" / "legend.png", photos / "results"),
        (photos, photos),
        (photos / "a", photos),
    ):
        with pytest.raises(ValueError, match="lies in the output folder"):
            predict_files([source], out, detector, progress=False)
    with pytest.raises(ValueError, match=r"holds images of its own \(000.png\)"):
        predict_files([photos], photos / "a", detector, progress=False)
    assert snapshot(photos) == after


def test_names_never_collide(tmp_path, make_image):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for name in ("000.png", "000.PNG", "000.jpg"):
            make_image(8, 8).save(tmp_path / folder / name)
    one, two = tmp_path / "one", tmp_path / "two"
    found = find_images([one, two, one / "000.png", two / "000.jpg"])
    files, skipped = found.files, found.skipped
    names = [name.lower() for _, name in files]
    assert len(files) == len(set(names)) == 6 and not skipped
    assert {path for path, _ in files} == set(one.iterdir()) | set(two.iterdir())


def test_masks_are_no_photographs(script, tiny_checkpoint, tmp_path, capsys):
    cookies, out = Path(__file__).parents[1] / "fixtures" / "photos" / "cookies", tmp_path / "out"
    found = find_images([cookies])
    files, skipped, left_out = found.files, found.skipped, found.left_out
    assert {path.parent.name for path, _ in files} == {"good", "defect"} and not skipped
    assert len(files) == 24 and sorted(left_out) == sorted((cookies / "masks").iterdir()) and len(left_out) == 12
    mask = left_out[0]
    found = find_images([cookies / "defect", cookies, mask])  # named explicitly
    files, left_out = found.files, found.left_out
    assert len(files) == 25 and (mask, mask.name) in files and len(left_out) == 11 and mask not in left_out
    assert len(find_images([cookies / "masks"]).files) == 12

    for name in ("part/good/000.png", "part/ground_truth/cut/000.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / name)
    line = [str(tmp_path / "part"), "--model", tiny_checkpoint, "--output_dir", str(out)]
    assert script.main(line) == 0
    assert "1 image scored, 0 inputs skipped, 1 mask left out (000.png)" in capsys.readouterr().out


def test_the_doors_of_evaluation_are_open_too(script, photos, tiny_checkpoint, tmp_path, capsys):
    table, out = tmp_path / "parts.csv", tmp_path / "out"
    table.write_text("picture,state\na/000.png,ok\nb/deep/000.jpg,broken\n")
    (photos / "b" / "000.png").write_text("not in the table")
    flags = [
        "--data_dir",
        str(photos),
        "--image_column",
        "picture",
        "--label_column",
        "state",
        "--normal_labels",
        "ok",
    ]
    line = ["--source", str(table), *flags, "--model", tiny_checkpoint, "--output_dir", str(out)]
    assert script.main(line) == 0
    records = read_lines(out / "predictions.jsonl")
    assert {Path(record["path"]) for record in records} == {photos / "a" / "000.png", photos / "b/deep/000.jpg"}
    assert {record["overlay"] for record in records} == {"overlays/a/000.png.png", "overlays/b/deep/000.jpg.png"}
    detector = pipeline("zero-shot-anomaly-detection", model=tiny_checkpoint)
    for record in records:
        assert record["score"] == pytest.approx(detector(record["path"])["score"], abs=1e-5)
    for wrong in ([], [str(photos), "--source", str(table)], [str(photos), "--image_column", "x"]):
        assert script.main(wrong) == 2
    assert script.main(["--source", str(tmp_path / "nowhere.csv"), "--model", tiny_checkpoint]) == 2
    assert "nowhere.csv" in capsys.readouterr().err


def test_synthetic_is_what_the_checkout_draws(script, tiny_checkpoint, tmp_path, monkeypatch):
    line = ["--source", "synthetic", "--model", tiny_checkpoint, "--output_dir", str(tmp_path / "out")]
    assert run_command("predict", line, draw=lambda split: draw(split, num_images=4, size=32)) == 0
    paths = [record["path"] for record in read_lines(tmp_path / "out" / "predictions.jsonl")]
    assert paths == list(draw("test", num_images=4, size=32)["path"])


def plain_detector(images, **kwargs):
    return [{"score": 0.5, "anomaly_map": np.zeros(image.size[::-1], np.float32)} for image in images]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_what_was_done_is_kept_where_a_run_is_stopped(photos, tmp_path, stop):
    out = tmp_path / "out"

    def detector(images, **kwargs):
        if images[0].size == (30, 60):
            assert (out / "overlays/a/000.png.png").is_file()  # of the image before
            raise stop
        return plain_detector(images)

    with pytest.raises(stop):
        predict_files([photos], out, detector, progress=False)
    files = {path.name: path for path in out.rglob("*") if path.is_file()}
    shard = files.pop("predictions-00000-0000000.jsonl")
    assert set(files) == {"000.png.png", "legend.png", "predict_settings.json"}
    (record,) = read_lines(shard)
    assert Path(record["path"]).name == "000.png" and record["score"] == 0.5
    Image.open(files["000.png.png"]).load()
    # The next run replaces the records, a torn line among them.
    precious = tmp_path / "precious.png"
    precious.write_text("x")
    for name in ("overlays/old.png", "other.txt"):
        (out / name).write_text("x")
    old = [{"path": "x", "overlay": name} for name in ("overlays/old.png", "overlays/../../precious.png", "other.txt")]
    lines = "".join(f"{json.dumps(entry)}\n" for entry in [*old, 5, {"overlay": str(precious)}])
    (out / "predictions.jsonl").write_text(lines + '{"pa')
    summary = predict_files([photos], out, plain_detector, progress=False)
    assert [path.name for path in out.glob("predictions*.jsonl")] == ["predictions.jsonl"]
    assert summary.num_scored == 4 == len(read_lines(out / "predictions.jsonl")) and summary.exit_status == 0
    assert summary.predictions == read_lines(out / "predictions.jsonl")
    assert precious.exists() and (out / "other.txt").exists() and not (out / "overlays" / "old.png").exists()


def test_a_fault_hits_one_image_only(photos, tmp_path, monkeypatch):
    def detector(images, **kwargs):
        if any(image.size == (30, 60) for image in images):
            raise RuntimeError("boom")
        results = plain_detector(images)
        for image, result in zip(images, results, strict=True):
            if image.size == (64, 42):
                result["anomaly_map"] = np.full(image.size[::-1], np.nan)  # drawing refuses it
        return results

    save, out = Image.Image.save, tmp_path / "out"

    def refusing(self, path, *args, **kwargs):
        if self.size == (44, 44):
            raise OSError(36, "File name too long")
        return save(self, path, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", refusing)
    summary = predict_files([photos], out, detector, batch_size=4, progress=False)
    assert [Path(record["path"]).parts[-2:] for record in read_lines(out / "predictions.jsonl")] == [("a", "000.png")]
    errors = {Path(entry["path"]).relative_to(photos).as_posix(): entry["error"] for entry in summary.skipped}
    assert errors["b/000.png"] == "RuntimeError: boom" and "NaN" in errors["b/deep/000.jpg"]
    assert "File name too long" in errors["b/deep/000.png"] and len(errors) == 3 and summary.exit_status == 1
    assert read_lines(out / "skipped.jsonl") == summary.skipped
    assert [path.name for path in out.rglob("*") if path.is_file() and path.parent != out] == ["000.png.png"]


def test_whatever_a_decoder_raises_is_a_skipped_file(photos, tmp_path, monkeypatch):
    from anomalyclip_hf.scoring import prediction

    faults = iter([MemoryError(), Image.DecompressionBombError("bomb"), struct.error("bad tag"), None])

    def read(path, **options):
        if fault := next(faults):
            raise fault
        return Image.open(path)

    monkeypatch.setattr(prediction, "read_image", read)
    summary = predict_files([photos], tmp_path / "out", plain_detector, progress=False)
    errors = [entry["error"] for entry in summary.skipped]
    assert errors == ["MemoryError", "DecompressionBombError: bomb", "error: bad tag"] and summary.num_scored == 1


@pytest.mark.parametrize(("sizes", "status", "scored"), [([(30, 60)], 1, 3), (None, 2, 0)])
def test_a_full_disk_skips_one_image_or_ends_the_run(
    script, photos, tiny_checkpoint, tmp_path, monkeypatch, capsys, sizes, status, scored
):
    save, out = Image.Image.save, tmp_path / "out"

    def full(self, path, *args, **kwargs):
        if sizes is None or self.size in sizes:
            raise OSError(28, "No space left on device")
        return save(self, path, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", full)
    assert script.main([str(photos), "--model", tiny_checkpoint, "--output_dir", str(out)]) == status
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == "error: [Errno 28] No space left on device" if status == 2 else told.startswith("skipped ")
    records = read_lines(out / "predictions.jsonl") if scored else []
    skipped = [line for path in out.glob("skipped*.jsonl") for line in read_lines(path)]
    assert len(records) == scored and len(skipped) == (1 if scored else 3)
    assert all((out / record["overlay"]).is_file() for record in records)


def test_records_that_can_not_be_written_end_the_run(photos, tmp_path, monkeypatch):
    from anomalyclip_hf.scoring import writing

    def full(record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "json_line", full)
    with pytest.raises(OSError, match="No space left"):
        predict_files([photos], tmp_path / "out", plain_detector, progress=False)


def test_what_this_package_wrote_is_no_photograph(script, tiny_checkpoint, tmp_path, make_image, capsys):
    data = tmp_path / "data"
    for name in ("good/0.png", "bad/1.png"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        make_image(20, 20).save(data / name)
    line = [str(data), "--model", tiny_checkpoint, "--save_maps", "--output_dir"]
    for out in (data / "results", data / "results", tmp_path / "elsewhere"):
        assert script.main([*line, str(out)]) == 0
        assert [Path(record["path"]).name for record in read_lines(out / "predictions.jsonl")] == ["1.png", "0.png"]
    shown = capsys.readouterr().out.splitlines()
    assert "not used" not in shown[0] + shown[1] and "results of this package (" in shown[2]
    assert "legend.png" in shown[2]
    assert len(find_images([data / "results" / "legend.png"]).files) == 1  # named explicitly


def test_masks_beside_their_images_are_left_out(tmp_path, make_image):
    masks = ["bad/1_mask.png", "bad/1_gt.png", "bad/3.mask.png", "bad/mask_1.png", "truth/bad/1.png"]
    for name in ("good/0.png", "bad/1.png", "bad/3.png", "good/white_mask.png", *masks):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        make_image(8, 8).save(tmp_path / name)
    found = find_images([tmp_path, tmp_path / "bad" / "1_gt.png"])
    names = {name for _, name in found.files}
    assert names == {"good/0.png", "bad/1.png", "bad/3.png", "good/white_mask.png", "1_gt.png"}
    assert {path.relative_to(tmp_path).as_posix() for path in found.left_out} == set(masks) - {"bad/1_gt.png"}
    if os.name == "nt":
        return
    for name in (b"masks/b\xe9/1.png", b"b\xe9/1.png"):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            make_image(8, 8).save(file, format="png")
    found = find_images([tmp_path])
    assert len(found.files) == 5 and len(found.left_out) == len(masks) + 1


def test_very_large_images_are_drawn_small_and_scored_as_they_are(tiny_checkpoint, tmp_path, make_image, monkeypatch):
    from anomalyclip_hf.scoring import prediction

    monkeypatch.setattr(prediction, "MAP_SIDE", 100)
    make_image(300, 150).save(tmp_path / "large.png")
    detector = pipeline("zero-shot-anomaly-detection", model=tiny_checkpoint)
    out = tmp_path / "out"
    summary = predict_files([tmp_path / "large.png"], out, detector, save_maps="npy", progress=False)
    (record,) = summary.predictions
    expected = detector(str(tmp_path / "large.png"))
    assert record["score"] == pytest.approx(expected["score"], abs=1e-6) and record["map_size"] == [50, 100]
    assert Image.open(out / record["overlay"]).size == (100, 50)
    small = np.asarray(Image.fromarray(expected["anomaly_map"]).resize((100, 50), Image.Resampling.BOX))
    np.testing.assert_allclose(np.load(out / record["map"]), small, atol=5e-3)


def test_linked_folders_are_followed_and_circles_end(tmp_path, make_image):
    for name in ("store/a.png", "in/b.png"):
        (tmp_path / name).parent.mkdir()
        make_image(9, 7).save(tmp_path / name)
    (tmp_path / "in" / "linked").symlink_to("../store")
    (tmp_path / "in" / "again").symlink_to("../store")
    (tmp_path / "store" / "back").symlink_to("../in")
    (tmp_path / "in" / "nowhere.png").symlink_to("absent")
    (tmp_path / "in" / "one more name.png").symlink_to("b.png")  # has a record of its own
    os.mkfifo(tmp_path / "in" / "pipe.png")
    (tmp_path / "in" / "notes.heic").write_text("x")
    summary = predict_files([tmp_path / "in"], tmp_path / "out", plain_detector, progress=False)
    assert sorted(Path(record["path"]).name for record in summary.predictions) == [
        "a.png",
        "b.png",
        "one more name.png",
    ]
    errors = {Path(entry["path"]).name: entry["error"] for entry in summary.skipped}
    assert set(errors) == {"nowhere.png", "pipe.png"} and errors["pipe.png"] == "it is no regular file"
    unused = {path.name: reason for reason, paths in summary.unused.items() for path in paths}
    assert len(unused) == 3 and {"notes.heic", "back"} < set(unused) and "links" in unused["back"]


@pytest.mark.skipif(os.name == "nt", reason="needs names that are not text")
def test_odd_file_names(tmp_path, make_image, capsys):
    (tmp_path / "in").mkdir()
    long = [letter * 240 + ".png" for letter in "ab"] + ["a" * 239 + "b.png"]
    odd = [b"caf\xe9.png", *(n.encode() for n in ("mü \n x.png", "a\u2028b.png", "$x_{.png", "\x1b[0m.png", *long))]
    for name in odd:
        with open(os.path.join(os.fsencode(tmp_path / "in"), name), "wb") as file:
            make_image(9, 7).save(file, format="png")
    out = tmp_path / "out"
    summary = predict_files([tmp_path / "in"], out, plain_detector, progress=False, save_maps="png")
    assert summary.num_scored == len(odd) and not summary.skipped
    records = read_lines(out / "predictions.jsonl")  # as UTF-8, line by line
    assert sorted(os.path.basename(os.fsencode(record["path"])) for record in records) == sorted(odd)
    for kind in ("overlay", "map"):
        names = [record[kind] for record in records]
        assert len(set(names)) == len(odd) and all(name.isprintable() and len(name) < 160 for name in names)
        assert all((out / name).is_file() for name in names)


def test_names_are_skipped_in_one_line(script, tiny_checkpoint, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a\nb.png").write_text("no image")
    line = [str(tmp_path / "in"), "--model", tiny_checkpoint, "--output_dir", str(tmp_path / "out")]
    assert script.main(line) == 2
    assert "/a\\nb.png: " in next(row for row in capsys.readouterr().err.splitlines() if row.startswith("skipped "))


def test_errors_advise_options(script, photos, tiny_checkpoint, tmp_path, capsys):
    line = ["--model", tiny_checkpoint, "--output_dir", str(tmp_path / "out")]
    assert script.main(["--source", "mvtec", *line]) == 2
    assert "give the folder as --data-dir FOLDER" in capsys.readouterr().err
    assert script.main([str(photos), *line, "--batch_size", "0"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: --batch-size 0, expected 1 or more"


def test_a_repository_is_streamed(script, tiny_checkpoint, tmp_path, make_image, capsys):
    datasets = pytest.importorskip("datasets")
    images = [make_image(30 + index, 40, seed=index) for index in range(3)]
    columns = datasets.Dataset.from_dict({"image": images, "part": ["a", "b", "c"]})
    columns = columns.cast_column("image", datasets.Image())
    (tmp_path / "parts" / "data").mkdir(parents=True)
    columns.to_parquet(tmp_path / "parts" / "data" / "test-00000-of-00001.parquet")
    line = ["--model", tiny_checkpoint, "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    assert script.main(["--source", str(tmp_path / "parts"), "--streaming", *line, "--format", "csv,jsonl"]) == 0
    records = read_lines(tmp_path / "out" / "predictions.jsonl")
    detector = pipeline("zero-shot-anomaly-detection", model=tiny_checkpoint)
    assert [record["score"] for record in records] == pytest.approx(
        [result["score"] for result in detector(images)], abs=1e-6
    )
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == 4
    assert script.main([str(tmp_path / "parts"), "--streaming", *line]) == 2
    assert "--streaming belong to --source" in capsys.readouterr().err


def test_options_that_lack_their_threshold_say_which(script, photos, tiny_checkpoint, tmp_path, capsys):
    line = [str(photos), "--model", tiny_checkpoint, "--output_dir", str(tmp_path / "out")]
    for options, told in (
        (["--overlays", "anomalous"], "--overlays anomalous but the model has no threshold: give --threshold"),
        (["--masks"], "--masks but the model has no threshold of pixels: give --pixel-threshold"),
        (["--format", "xlsx"], "--format xlsx, expected some of jsonl, parquet, csv"),
        (["--tile-size", "64"], "--tile-size 64 with --resize square; only --resize tile has tiles"),
        (["--roi", "[[0, 0], [1,"], "--roi [[0, 0], [1, is neither a path nor a polygon"),
    ):
        assert script.main([*line, *options]) == 2
        assert told in capsys.readouterr().err
    line += ["--overlays", "anomalous", "--threshold", "1", "--masks", "--pixel-threshold", "0.5"]
    assert script.main(line) == 0 and not (tmp_path / "out" / "overlays").exists()
    assert script.main([*line, "--resume"]) == 0
    assert script.main([*line, "--resume", "--threshold", "0.5"]) == 2
    assert "--threshold was 1.0 and is 0.5" in capsys.readouterr().err


def test_a_submission_to_mvtec_ad2(tiny_checkpoint, tmp_path, make_image, capsys):
    images = {}
    for seed, name in enumerate(("can/test_private/000", "can/test_private/001", "rice/test_private/000")):
        path = tmp_path / "mvtec_ad_2" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image(50 + seed, 40, seed=seed).save(path)
        images[name] = path
    line = f"--source mvtec_ad2 --data-dir {tmp_path / 'mvtec_ad_2'} --split test_private --model {tiny_checkpoint}"
    line += f" --pixel-threshold 0.5 --output-dir {tmp_path / 'out'} --submission {tmp_path / 'sent'}"
    assert run_command("predict", line.split()) == 0
    assert "3 maps and masks written to" in capsys.readouterr().out
    kinds = {"anomaly_images": ".tiff", "anomaly_images_thresholded": ".png"}
    expected = {f"{kind}/{name}{suffix}" for kind, suffix in kinds.items() for name in images}
    assert {str(path.relative_to(tmp_path / "sent")) for path in (tmp_path / "sent").rglob("*.*")} == expected
    detector = pipeline("zero-shot-anomaly-detection", model=tiny_checkpoint)
    for name, path in images.items():
        result = detector(Image.open(path), pixel_threshold=0.5)
        found = tifffile.imread(tmp_path / "sent" / "anomaly_images" / f"{name}.tiff")
        mask = np.asarray(Image.open(tmp_path / "sent" / "anomaly_images_thresholded" / f"{name}.png"))
        assert found.dtype == np.float16 and found.shape == Image.open(path).size[::-1]
        assert np.abs(found.astype(np.float32) - np.asarray(result["anomaly_map"])).max() < 5e-4
        assert mask.dtype == np.uint8 and (mask == 255 * (np.asarray(result["mask"]) > 0)).all()


def test_the_report_shows_images_without_overlays_and_goes_with_its_run(script, photos, tiny_checkpoint, tmp_path):
    out = tmp_path / "out"
    line = [str(photos), "--model", tiny_checkpoint, "--output_dir", str(out)]
    assert script.main([*line, "--report", "--overlays", "none"]) == 0
    text = (out / "report.html").read_text()
    assert text.count("<figure") == text.count('<a href="../photos/') == 4 and "no picture" not in text
    Image.new("L", (8, 8)).save(photos / "new.png")
    assert script.main([*line, "--resume", "--overlays", "none"]) == 0
    assert (out / "report.html").read_text().count("<figure") == 5  # of the run as it is now
    assert script.main(line) == 0 and not (out / "report.html").exists()  # it was of the former run
