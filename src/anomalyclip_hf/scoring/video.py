"""Videos and cameras: a record for each frame, a score over time as a picture, and the video with its heat maps.

Frames are decoded, scored and drawn one batch after the other, so that memory does not grow with the length. Reading
and writing is PyAV's: pip install 'anomalyclip_hf[video]'.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ..configuration_anomalyclip import check_fields
from ..data.files import atomic_path, json_line
from .engine import explain, score_images
from .pictures import DISTANCE_VMAX, colorize, overlay
from .prediction import EXAMPLES, PredictionSummary
from .regions import read_roi
from .rows import compares
from .settings import PredictionSettings
from .writing import PREDICTIONS, SKIPPED, make_record

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"),
    *(".wmv", ".mts", ".m2ts", ".flv", ".ogv", ".3gp"),
)
TIMELINE, ANNOTATED = "timeline.png", "annotated.mp4"
CODECS = ("libx264", "libopenh264", "mpeg4")  # the first that the wheel of PyAV can write
POINTS = 10_000  # of the timeline: beyond, neighbours are merged into the higher score
CLOCK = Fraction(1, 1000)  # seconds: unit of time of the video that is written


class VideoError(ValueError):
    """A video, or a camera, that can't be read or written."""


class Frame(NamedTuple):
    """A frame of a video: its number from 0, seconds from the first one, and its pixels, upright RGB."""

    number: int
    time: float
    image: Image.Image


class VideoReader:
    """Frames of a video file, a stream's address or a camera, in order; an iterator.

    Args:
        source: path or address; for a camera its number or device, as "0" or "/dev/video0" (Video4Linux).
        camera: whether `source` is a camera.
        every: yields each n-th frame, 1 or more.

    Attributes:
        error: why there may be frames missing at the end; None where all were read.

    Raises:
        VideoError: (a `ValueError`) PyAV is not installed, the file can't be opened, or it has no video stream.
    """

    def __init__(self, source: str | os.PathLike, camera: bool = False, every: int = 1):
        if every < 1:
            raise ValueError(f"every={every}, expected 1 (each frame) or more")
        self._av = _import_av()
        self.name, self.every = os.fspath(source), every
        self.error: str | None = None
        target, form = self.name, "v4l2" if camera else None
        if camera:
            target = f"/dev/video{target}" if target.isdigit() else target
        elif "://" not in target and not os.path.isfile(target):
            raise VideoError(f"cannot read video {target}: no such file")
        try:
            self._container = self._av.open(target, format=form)
        except (self._av.FFmpegError, OSError) as error:
            raise VideoError(f"cannot read video {target}: {_reason(error)}") from error
        if not self._container.streams.video:
            self._container.close()
            raise VideoError(f"cannot read video {target}: it has no video stream")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.rate = Fraction(self._stream.average_rate or 25)

    def __iter__(self) -> Iterator[Frame]:
        number, start = -1, None
        try:
            for number, frame in enumerate(self._container.decode(self._stream)):
                time = float(number / self.rate) if frame.time is None else float(frame.time)
                start = time if start is None else start
                if number % self.every == 0:
                    image = frame.to_image()
                    # Phones store what they film as the sensor lies, and by how much to turn it.
                    turn = getattr(frame, "rotation", 0)
                    yield Frame(number, time - start, image.rotate(turn, expand=True) if turn else image)
        except self._av.FFmpegError as error:
            self.error = f"it is cut off or damaged after {number + 1} frames: {_reason(error)}"
        else:
            if (stated := self._stream.frames) - (number + 1) > 2:
                self.error = f"it is cut off after {number + 1} of {stated} frames"

    def close(self) -> None:
        """Let go of the file or the camera."""
        self._container.close()


class VideoWriter:
    """Writes pictures as a video, h264 or MPEG-4 in mp4. Its file is whole once `close` was called.

    Args:
        path: file to write.
        size: (W, H) of the pictures; odd sides lose their last row or column.
        rate: frames per second, for players; each picture has its own time.
    """

    def __init__(self, path: str | os.PathLike, size: tuple[int, int], rate: Fraction):
        self._av = _import_av()
        self.size = (size[0] // 2 * 2, size[1] // 2 * 2)
        if min(self.size) == 0:
            raise VideoError(f"frames of {size[0]}x{size[1]} pixels can't be written as a video")
        self._container = self._av.open(os.fspath(path), "w", format="mp4")
        self._stream: Any = self._container.add_stream(_pick_codec(self._av), rate=rate.limit_denominator(1000))
        self._stream.width, self._stream.height = self.size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = CLOCK
        self._last = -1

    def write(self, picture: Image.Image, time: float) -> None:
        """Add a picture that is shown from a time on, in seconds."""
        is_odd = picture.width - self.size[0] in (0, 1) and picture.height - self.size[1] in (0, 1)
        picture = picture.crop((0, 0, *self.size)) if is_odd else picture.resize(self.size)
        frame = self._av.VideoFrame.from_image(picture.convert("RGB"))
        self._last = max(self._last + 1, round(time / CLOCK))
        frame.pts, frame.time_base = self._last, CLOCK
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what the encoder still holds, and the end of the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()


class Timeline:
    """Scores over time, smoothed as they come, and a picture of them.

    Args:
        seconds: time constant of the exponential smoothing: after a jump, the smoothed score has gone 63 % of the way
            in this time, whatever the frame rate. 0 smooths nothing. It looks at the past only, as a camera's must.
    """

    def __init__(self, seconds: float = 1.0):
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"smooth={seconds}, expected seconds, 0 or more")
        self.seconds = seconds
        self.points: list[tuple[float, float, float]] = []  # time, score, smoothed score
        self.peak: tuple[float, float] | None = None
        self._last: tuple[float, float] | None = None

    def add(self, time: float, score: float) -> float:
        """Note a score; returns it smoothed."""
        smoothed = score
        if self._last is not None and self.seconds > 0:
            before, former = self._last
            smoothed = score + (former - score) * math.exp(-max(0.0, time - before) / self.seconds)
        self._last = (time, smoothed)
        if self.peak is None or smoothed > self.peak[1]:
            self.peak = (time, smoothed)
        self.points.append((time, score, smoothed))
        if len(self.points) >= POINTS:
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points = [(one[0], max(one[1], two[1]), max(one[2], two[2])) for one, two in pairs]
        return smoothed

    def draw(self, path: str | os.PathLike, title: str = "", threshold: float | None = None) -> None:
        """Write the picture: the score of each frame, the smoothed one, its peak, and the threshold."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        times, scores, smoothed = np.array(self.points).T
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.plot(
            times, scores, color="0.6", linewidth=0.8, marker="." if len(times) < 200 else "", label="each frame"
        )
        axes.plot(times, smoothed, color="#b5367a", linewidth=2, label=f"smoothed over {self.seconds:g} s")
        if threshold is not None:
            axes.axhline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {threshold:g}")
        if self.peak is not None:
            label = f"highest {self.peak[1]:.3f} at {self.peak[0]:.2f} s"
            axes.plot(*self.peak, "v", color="#b5367a", clip_on=False, label=label)
        axes.set(xlabel="seconds", ylabel="anomaly score", ylim=(0, 1))
        axes.set_xlim(times[0], max(times[-1], times[0] + 0.1))
        axes.set_title(title.replace("$", r"\$"), fontsize=10, loc="left")
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
        axes.grid(alpha=0.3)
        figure.savefig(os.fspath(path), dpi=120, format="png")


def predict_video(
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    detector: Callable[..., Any],
    *,
    camera: bool = False,
    every: int = 1,
    smooth: float = 1.0,
    batch_size: int = 1,
    vmin: float = 0.0,
    vmax: float | None = None,
    **options: Any,
) -> PredictionSummary:
    """Score the frames of a video or a camera.

    Writes `predictions.jsonl`, frame by frame: frame, time in seconds from the first frame, smoothed score, and what
    the record of an image has; `skipped.jsonl`; and, at the end, `timeline.png` and `annotated.mp4`, which
    has heat maps and a bar as long as the smoothed score. Ctrl-C and
    SIGTERM end it as the end of the video does: the files are finished, then the interruption goes on. A video that is
    cut off keeps what was decoded, and says so in `skipped.jsonl`. Results of an earlier run in the same folder are
    replaced.

    Args:
        source: path, address (rtsp://...), or, with `camera`, number or device of a camera.
        output_dir: made if absent.
        detector ([`ZeroShotAnomalyDetectionPipeline`]): or what is called as it is with a list of PIL images.
        camera (`bool`): the source is a camera, opened by Video4Linux.
        every (`int`): score each n-th frame.
        smooth (`float`, seconds): time constant of the smoothed score, see [`Timeline`].
        batch_size (`int`): frames per forward.
        vmin, vmax (`float`): map values that get the first and the last color, as of [`PredictionSettings`].
        **options: of the detector's call, such as `image_threshold` or `sigma`.

    Returns:
        a summary whose `skipped` names frames that could not be scored, and a video that is cut off.

    Raises:
        VideoError: (a `ValueError`) the source can't be opened or has no video stream or no frame.
        ValueError: an argument is out of range.
        OSError: the results can't be written.
    """
    options = {name: value for name, value in options.items() if value is not None}
    if "roi" in options:
        options["roi"] = read_roi(options["roi"])
    check_fields({name: value for name, value in options.items() if name != "roi"})
    threshold = options.get("image_threshold")
    if threshold is None:
        model = getattr(detector, "model", None)
        chosen = getattr(getattr(model, "profile", None), "image_threshold", None)
        threshold = getattr(getattr(model, "config", None), "image_threshold", None) if chosen is None else chosen
    if vmax is None:
        vmax = DISTANCE_VMAX if compares(detector, options) else 1.0
    PredictionSettings(batch_size=batch_size, vmin=vmin, vmax=vmax)  # refuses what is out of range
    timeline = Timeline(smooth)
    with closing(VideoReader(source, camera, every)) as reader:
        results = _Results(Path(output_dir), reader, timeline, (vmin, vmax), threshold)

        def score(frames: list[Frame]) -> list[dict[str, Any]]:
            return detector([frame.image for frame in frames], batch_size=len(frames), **options)

        try:
            for record in score_images(reader, lambda frame: frame, score, batch_size=batch_size):
                results.write(record.item, record.result, record.error)
            if reader.error is not None:
                results.skip(reader.name, reader.error)
        finally:
            results.finish()
    if not results.summary.num_scored and not results.summary.num_skipped:
        raise VideoError(f"cannot read video {reader.name}: it holds no frame")
    return results.summary


class _Results:
    """Writes what comes of a video into a folder, in place of what an earlier run left there."""

    def __init__(
        self,
        output: Path,
        reader: VideoReader,
        timeline: Timeline,
        scale: tuple[float, float],
        threshold: float | None,
    ):
        self.summary, self.reader, self.timeline = PredictionSummary(output), reader, timeline
        self.scale, self.threshold = scale, threshold
        self._video: VideoWriter | None = None
        self._files = ExitStack()
        output.mkdir(parents=True, exist_ok=True)
        for name in (PREDICTIONS, SKIPPED, TIMELINE, ANNOTATED):
            (output / name).unlink(missing_ok=True)

    def write(self, frame: Frame, result: dict[str, Any] | None, error: str | None) -> None:
        """Note and draw one frame."""
        path = f"{self.reader.name}#frame={frame.number}"
        if result is None:
            self.skip(path, str(error))
            return
        smoothed = self.timeline.add(frame.time, result["score"])
        record = {"path": path, "frame": frame.number, "time": round(frame.time, 6), "smoothed": smoothed}
        record |= make_record(path, frame.image.size, result, {})
        drawn = overlay(frame.image, result["anomaly_map"], *self.scale)
        self._video_of(drawn.size).write(draw_bar(drawn, smoothed, frame.time, self.threshold), frame.time)
        self._append(PREDICTIONS, record)
        self.summary.num_scored += 1

    def skip(self, path: str, error: str) -> None:
        """Note what can't be used, and why."""
        entry = {"path": path, "error": error}
        if len(self.summary.skipped) < EXAMPLES:
            self.summary.skipped.append(entry)
        self._append(SKIPPED, entry)
        self.summary.num_skipped += 1

    def finish(self) -> None:
        """Draw the timeline, and put the video in place."""
        self.summary.peak = self.timeline.peak
        try:
            if self.timeline.points:
                with atomic_path(self.summary.output / TIMELINE) as temporary:
                    self.timeline.draw(temporary, os.path.basename(self.reader.name), self.threshold)
        finally:
            self._files.close()

    def _video_of(self, size: tuple[int, int]) -> VideoWriter:
        if self._video is None:
            with ExitStack() as files:
                temporary = files.enter_context(atomic_path(self.summary.output / ANNOTATED))
                self._video = VideoWriter(temporary, size, self.reader.rate / self.reader.every)
                files.callback(self._video.close)  # before the file is put in place
                self._files = files.pop_all()
        return self._video

    def _append(self, name: str, record: dict[str, Any]) -> None:
        with open(self.summary.output / name, "a", encoding="utf-8") as file:
            file.write(json_line(record))


def draw_bar(picture: Image.Image, score: float, time: float, threshold: float | None = None) -> Image.Image:
    """A copy of a picture with a bar as long as a score along its lower edge, the score and the time written above.

    Args:
        picture: RGB.
        score, threshold: in [0, 1]; a tick marks the threshold.
        time: seconds.
    """
    drawn = picture.convert("RGB")
    width, height = drawn.size
    draw, thick = ImageDraw.Draw(drawn), max(4, height // 24)
    top = height - thick
    draw.rectangle((0, top, width, height), fill=(0, 0, 0))
    share = min(1.0, max(0.0, score))
    if (long := round(share * width)) > 0:
        color = colorize(np.array([[0.15 + 0.75 * share]])).getpixel((0, 0))
        draw.rectangle((0, top, long - 1, height), fill=color)
    if threshold is not None:
        draw.line(
            [(round(threshold * (width - 1)), top), (round(threshold * (width - 1)), height)], fill="white", width=2
        )
    size = max(10, height // 24)
    draw.text((4, top - size - 4), f"{score:.3f}  {time:.2f} s", fill="white", font_size=size, stroke_width=1,
              stroke_fill="black")  # fmt: skip
    return drawn


def is_video(path: str | os.PathLike) -> bool:
    """Whether a path is that of a video, by its suffix."""
    return os.fspath(path).lower().endswith(VIDEO_SUFFIXES)


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise VideoError("videos and cameras are read by PyAV: pip install 'anomalyclip_hf[video]'") from error
    return av


def _pick_codec(av: Any) -> str:
    for name in CODECS:
        try:
            return av.codec.Codec(name, "w").name
        except Exception:  # of another kind in each version
            continue
    raise VideoError(f"this PyAV writes none of {', '.join(CODECS)}; install its wheel: pip install av")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or explain(error)
