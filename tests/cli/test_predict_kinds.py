"""`anomalyclip predict` of what cameras give: windows, channels, pages, videos."""

import json
import os
import shutil
import signal
import threading

import av
import numpy as np
import pytest
import tifffile
from PIL import Image
from transformers import pipeline

from anomalyclip_hf import AnomalyCLIPModel
from anomalyclip_hf.cli import run_command
from anomalyclip_hf.data import load_anomaly_dataset
from anomalyclip_hf.scoring import predict_dataset
from anomalyclip_hf.scoring.profiles import Profile


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def clip(path, number=6, side=64):
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for index in range(number):
            pixels = np.full((side, side, 3), 20 * (index % 10), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))
    return path


def test_windows_and_channels_give_files_and_data_sets_the_same_scores(tiny_checkpoint, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("parts/good/a.tif", "parts/bad/b.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        bands = rng.integers(0, 4096, (40, 48, 6)).astype(np.uint16)
        tifffile.imwrite(tmp_path / name, bands, photometric="minisblack", planarconfig="contig")
    shared = ["--model", tiny_checkpoint, "--window", "500", "3000", "--channels", "5", "0", "2"]
    assert run_command("predict", [str(tmp_path / "parts"), *shared, "--output-dir", str(tmp_path / "a")]) == 0
    assert run_command("predict", ["--source", str(tmp_path / "parts"), *shared, "-o", str(tmp_path / "b")]) == 0
    scores = [{one["path"]: one["score"] for one in records(tmp_path / k / "predictions.jsonl")} for k in "ab"]
    assert len(scores[0]) == 2
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    capsys.readouterr()
    assert run_command("predict", [str(tmp_path / "parts"), *shared[:2], "-o", str(tmp_path / "c")]) == 2
    assert "--channels 2 1 0" in capsys.readouterr().err
    assert run_command("predict", [str(tmp_path / "parts"), *shared[:2], "--window", "9", "1"]) == 2
    assert "--window" in capsys.readouterr().err


def test_videos_and_images_and_what_is_neither(tiny_checkpoint, tmp_path, capsys):
    Image.new("RGB", (40, 40), "gray").save(tmp_path / "a.png")
    (tmp_path / "b.mp4").write_text("no video")
    inputs = [str(tmp_path / "a.png"), str(clip(tmp_path / "c.mp4")), str(tmp_path / "b.mp4")]
    out = tmp_path / "out"
    assert run_command("predict", [*inputs, "--model", tiny_checkpoint, "-o", str(out), "--every", "2"]) == 1
    told = capsys.readouterr()
    assert "c.mp4: 3 frames scored, highest score" in told.out and "1 image scored" in told.out
    assert "skipped" in told.err and "b.mp4" in told.err
    assert [one["frame"] for one in records(out / "c.mp4" / "predictions.jsonl")] == [0, 2, 4]
    assert len(records(out / "predictions.jsonl")) == 1
    assert run_command("predict", [inputs[2], "--model", tiny_checkpoint, "-o", str(out / "d")]) == 2
    camera = ["--camera", "97", "--model", tiny_checkpoint, "-o", str(out / "d")]
    assert run_command("predict", camera) == 2
    assert "cannot read video /dev/video97" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_leaves_a_whole_video_and_whole_records(tiny_checkpoint, tmp_path, number, status, ctrl_c):
    path, out = clip(tmp_path / "long.mp4", 400), tmp_path / "out"
    written, ended = out / "long.mp4" / "predictions.jsonl", threading.Event()

    def interrupt():
        while not ended.wait(0.02):
            if written.exists() and written.read_bytes().count(b"\n") > 5:
                os.kill(os.getpid(), number)
                return

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        assert run_command("predict", [str(path), "--model", tiny_checkpoint, "-o", str(out)]) == status
    finally:
        ended.set()
        thread.join()
    frames = [one["frame"] for one in records(written)]
    assert frames == list(range(len(frames)))
    assert 5 < len(frames) < 400
    with av.open(str(written.with_name("annotated.mp4"))) as file:
        assert sum(1 for _ in file.decode(video=0)) - len(frames) in (0, 1)
    assert Image.open(written.with_name("timeline.png")).size == (1200, 384)
    assert not list(written.parent.glob(".*"))


def test_an_image_is_read_as_its_profile_says_wherever_it_comes_from(tiny_checkpoint, tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "parts"
    folder.mkdir()
    for index in range(2):
        tifffile.imwrite(folder / f"{index}.tif", rng.integers(700, 3000, (60, 50)).astype(np.uint16))
    model = AnomalyCLIPModel.from_pretrained(tiny_checkpoint)
    model.set_profile(Profile("deep", window=(800, 1800), sigma=2.0, pixel_threshold=0.3, min_area=7))
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    model.save_profiles(tmp_path / "model", ["deep"])
    detector = pipeline("zero-shot-anomaly-detection", model=model)
    wanted = {str(path): detector(str(path)) for path in sorted(folder.iterdir())}

    def check(out):
        found = {one["path"]: one for one in records(out / "predictions.jsonl")}
        assert list(found) == list(wanted)
        for path, one in found.items():
            assert one["score"] == pytest.approx(wanted[path]["score"], abs=1e-6)
            assert [region["area"] for region in one["regions"]] == [
                region["area"] for region in wanted[path]["regions"]
            ]

    shared = ["--model", str(tmp_path / "model"), "--profile", "deep", "--device", "cpu"]
    assert run_command("predict", [str(folder), *shared, "-o", str(tmp_path / "a")]) == 0
    assert run_command("predict", ["--source", str(folder), *shared, "-o", str(tmp_path / "b")]) == 0
    check(tmp_path / "a")
    check(tmp_path / "b")
    model.set_profile(None)
    dataset = load_anomaly_dataset(str(folder), window=(800, 1800))
    options = {"sigma": 2.0, "pixel_threshold": 0.3, "min_area": 7}
    predict_dataset(dataset, tmp_path / "c", detector, **options)
    check(tmp_path / "c")
    predict_dataset(dataset.to_iterable_dataset(), tmp_path / "d", detector, **options)
    check(tmp_path / "d")
    with pytest.raises(ValueError, match="window was"):  # a run is gone on with the same reading alone
        predict_dataset(load_anomaly_dataset(str(folder)), tmp_path / "c", detector, resume=True, **options)


def test_options_reach_videos_and_those_of_images_alone_are_refused(tiny_checkpoint, tmp_path, capsys):
    line = [str(clip(tmp_path / "c.mp4", number=2)), "--model", tiny_checkpoint, "-o", str(tmp_path / "out")]
    line += ["--device", "cpu"]
    assert run_command("predict", [*line, "--report", "--coco", str(tmp_path / "c.json")]) == 2
    assert "--coco, --report: only for images" in capsys.readouterr().err and not (tmp_path / "out").exists()
    roi = [[0, 0], [16, 0], [16, 8], [0, 8]]
    assert run_command("predict", [*line, "--pixel-threshold", "0", "--roi", json.dumps(roi)]) == 0
    for one in records(tmp_path / "out" / "c.mp4" / "predictions.jsonl"):
        assert (one["width"], one["height"]) == (64, 64)
        assert [(region["box"], region["area"]) for region in one["regions"]] == [([0, 0, 16, 8], 128)]
    assert run_command("predict", [*line, "--pixel-threshold", "2"]) == 2
    assert "--pixel-threshold 2.0, expected" in capsys.readouterr().err
