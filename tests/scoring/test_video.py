"""Videos: records of frames, smoothing, the timeline, the annotated video, and what ends a video early."""

import json
import math
import sys

import av
import numpy as np
import pytest
from PIL import Image

from anomalyclip_hf.scoring.video import Timeline, VideoReader, draw_bar, is_video, predict_video

RATE, NUMBER = 10, 20


def frame(number: int) -> np.ndarray:
    """Gray; a bright square from the eleventh frame on."""
    pixels = np.full((60, 81, 3), 60, np.uint8)
    if number >= 10:
        pixels[10:30, 40:70] = 250
    return pixels


@pytest.fixture
def clip(tmp_path):
    return write(tmp_path / "clip.mp4")


def write(path, number=NUMBER, container=None):
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream("libx264", rate=RATE, options={"bf": "0", "g": "1", "qp": "4"})
        stream.width, stream.height, stream.pix_fmt = 82, 60, "yuv444p"
        for index in range(number):
            wide = np.concatenate([frame(index), frame(index)[:, -1:]], axis=1)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(wide, format="rgb24")))
        file.mux(stream.encode(None))
    return path


class Detector:
    """Scores by the share of bright pixels, and shows where they are."""

    def __init__(self, stop_at=None, error=None):
        self.calls, self.stop_at, self.error = [], stop_at, error

    def __call__(self, images, batch_size, image_threshold=None):
        if self.stop_at is not None and sum(self.calls) >= self.stop_at:
            raise self.error
        self.calls.append(len(images))
        results = []
        for image in images:
            bright = np.asarray(image.convert("L")) > 150
            score = 0.1 + 0.8 * bool(bright.any())
            label = "anomalous" if score >= (image_threshold or 0.5) else "normal"
            results.append({"score": score, "label": label, "anomaly_map": bright.astype(np.float32) * 0.9})
        return results


def records(folder, name="predictions.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def decoded(path):
    with av.open(str(path)) as file:
        return [(float(one.time), np.asarray(one.to_image())) for one in file.decode(video=0)]


def test_a_record_for_each_frame(clip, tmp_path):
    output, detector = tmp_path / "out", Detector()
    summary = predict_video(clip, output, detector, batch_size=8, smooth=0.2, image_threshold=0.5)
    found = records(output)
    assert (detector.calls, summary.num_scored, summary.exit_status) == ([8, 8, 4], 20, 0)
    assert [one["frame"] for one in found] == list(range(20))
    assert [one["path"] for one in found[:1]] == [f"{clip}#frame=0"]
    np.testing.assert_allclose([one["time"] for one in found], np.arange(20) / RATE, atol=1e-6)
    assert [one["label"] for one in found] == ["normal"] * 10 + ["anomalous"] * 10
    np.testing.assert_allclose([one["score"] for one in found], [0.1] * 10 + [0.9] * 10)
    smoothed = [0.1] * 10 + [0.9 - 0.8 * math.exp(-0.1 * (k + 1) / 0.2) for k in range(10)]
    np.testing.assert_allclose([one["smoothed"] for one in found], smoothed, atol=1e-9)
    assert summary.peak == pytest.approx((1.9, smoothed[-1]))
    assert Image.open(output / "timeline.png").size == (1200, 384)
    shown = decoded(output / "annotated.mp4")
    np.testing.assert_allclose([time for time, _ in shown], np.arange(20) / RATE, atol=2e-3)
    before, after = shown[5][1].astype(int), shown[15][1].astype(int)
    assert before.shape == (60, 82, 3)
    assert np.ptp(before[15:25, 45:65], axis=-1).max() < 60 < np.ptp(after[15:25, 45:65], axis=-1).min()
    assert before[58, 15:35].max() < 60 < 100 < after[58, 5:35].max(axis=-1).min()  # the bar of 0.1 and of 0.7
    assert sorted(path.name for path in output.iterdir()) == ["annotated.mp4", "predictions.jsonl", "timeline.png"]


def test_every_nth_frame(clip, tmp_path):
    predict_video(clip, tmp_path / "out", Detector(), every=5)
    expected = [(0, 0.0), (5, 0.5), (10, 1.0), (15, 1.5)]
    assert [(one["frame"], one["time"]) for one in records(tmp_path / "out")] == expected
    assert len(decoded(tmp_path / "out" / "annotated.mp4")) == 4


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_finishes_the_files(clip, tmp_path, interruption):
    output = tmp_path / "out"
    (output).mkdir()
    (output / "annotated.mp4").write_bytes(b"of an earlier run")
    with pytest.raises(interruption):
        predict_video(clip, output, Detector(12, interruption()), batch_size=4)
    assert [one["frame"] for one in records(output)] == list(range(12))
    assert len(decoded(output / "annotated.mp4")) == 12
    assert Image.open(output / "timeline.png").size == (1200, 384)
    assert not list(output.glob(".*"))


def test_a_video_that_is_cut_off_keeps_what_was_decoded(tmp_path):
    path = write(tmp_path / "clip.mp4", container={"movflags": "faststart"})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - (len(content) - content.find(b"mdat")) // 2])
    summary = predict_video(path, tmp_path / "out", Detector())
    assert (5 < summary.num_scored < 15, summary.exit_status) == (True, 1)
    (entry,) = records(tmp_path / "out", "skipped.jsonl")
    assert entry["path"] == str(path)
    assert entry["error"].startswith("it is cut off")


def test_what_is_no_video(tmp_path, monkeypatch):
    with av.open(str(tmp_path / "sound.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 8000
        file.mux(stream.encode(sound))
        file.mux(stream.encode(None))
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name, message in (
        ("sound.mp4", "it has no video stream"),
        ("text.mp4", "Invalid data"),
        ("empty.mp4", r"empty\.mp4: \w"),
        ("missing.mp4", "no such file"),
    ):
        with pytest.raises(ValueError, match=f"cannot read video .*{message}"):
            predict_video(tmp_path / name, tmp_path / "out", Detector())
        assert not (tmp_path / "out").exists()
    for options in ({"every": 0}, {"smooth": -1}, {"batch_size": 0}, {"image_threshold": 2}):
        with pytest.raises(ValueError, match=next(iter(options))):
            predict_video(tmp_path / "text.mp4", tmp_path / "out", Detector(), **options)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"pip install 'anomalyclip_hf\[video\]'"):
        VideoReader(tmp_path / "text.mp4")


@pytest.mark.parametrize("scale", [{"vmin": 2.0}, {"vmin": 0.5, "vmax": 0.5}, {"vmax": float("nan")}])
def test_a_scale_without_length_is_refused_before_anything_is_written(clip, tmp_path, scale):
    with pytest.raises(ValueError, match="expected finite values, vmin < vmax"):
        predict_video(clip, tmp_path / "out", Detector(), **scale)
    assert not (tmp_path / "out").exists()


def test_a_frame_that_fails_is_skipped(clip, tmp_path):
    class Fails(Detector):
        def __call__(self, images, batch_size, **options):
            if any(np.asarray(image).mean() > 70 for image in images):
                raise ValueError("too bright")
            return super().__call__(images, batch_size, **options)

    summary = predict_video(clip, tmp_path / "out", Fails(), batch_size=3)
    assert (summary.num_scored, summary.exit_status) == (10, 1)
    skipped = records(tmp_path / "out", "skipped.jsonl")
    assert skipped[0] == {"path": f"{clip}#frame=10", "error": "too bright"}
    assert len(skipped) == 10


def test_memory_of_a_timeline_is_bounded():
    timeline = Timeline(0)
    for number in range(50_000):
        timeline.add(number / 25, 0.9 if number == 777 else 0.2)
    assert len(timeline.points) < 10_000
    assert max(score for _, score, _ in timeline.points) == 0.9
    assert timeline.peak == (777 / 25, 0.9)


def test_bar_and_names():
    drawn = np.asarray(draw_bar(Image.new("RGB", (100, 96)), 0.5, 1.0, threshold=0.75))
    lit = drawn[94].max(axis=-1) > 0
    assert lit[:50].all() and lit[73:76].any() and lit.sum() <= 53
    assert is_video("a/B.MP4") and not is_video("a.png")
