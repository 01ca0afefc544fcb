"""`anomalyclip predict`: score images."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.file_tree import examples
from ..data.files import count_of, one_line
from ..data.options import ProfileOptions, ResizingOptions, SourceOptions, option
from ..options_anomalyclip import READING, SCORE
from ..scoring.settings import PredictionSettings
from .loading import BackboneOptions, ComparingOptions, load_model
from .running import dashed, naming

if TYPE_CHECKING:
    from .. import AnomalyCLIPModel
    from ..scoring.prediction import PredictionSummary

# Fields that say nothing of videos.
OF_IMAGES = (*READING, "coco", "label_studio", "report", "masks", "save_maps", "resume", "mutual")


@dataclass
class Settings(PredictionSettings, BackboneOptions, ComparingOptions, ResizingOptions, ProfileOptions, SourceOptions):
    """Score images: files, folders or a data set in; records and heat maps out.

    anomalyclip predict part.png photos/ --model MODEL --output-dir results

    Of videos among the files, and of --camera, each frame has a record; a folder of the video's name holds them, a
    timeline and the video with heat maps. --coco, --report, --format and the like are of images.

    Masks (in folders masks, ground_truth, ..., or 1_mask.png beside 1.png) and results of this package in the folders
    given are left out; files that are named are always scored. What can't be used is listed in skipped.jsonl. Exit
    status: 0 every image was scored, 1 some were skipped, 2 nothing was done, 130 and 143 interrupted and terminated
    (what was finished is kept in predictions-*.jsonl; --resume goes on, another run into the same folder replaces it).

    Several processes, on one machine or many with a common disk, share the images:

    accelerate launch --num_processes 16 --num_machines 2 --machine_rank RANK --main_process_ip HOST
    --main_process_port 29500 -m anomalyclip_hf predict photos/ --model MODEL --output-dir results
    """

    inputs: list[str] | None = option(
        None, "Image files, and folders searched for images.", argument=True, rule="path"
    )
    output_dir: str = option("predictions", "Folder for results.", short="o", rule="folder")
    threshold: float | None = option(
        None, "Score in [0, 1] from which an image is anomalous; the model's own.", rule=SCORE
    )
    pixel_threshold: float | None = option(
        None, "Map value in [0, 1] from which a pixel is anomalous; the model's own.", group="Regions"
    )
    coco: str | None = option(None, "File for the regions as COCO JSON.", group="Regions", rule="file")
    label_studio: str | None = option(
        None, "File for the regions as tasks of Label Studio.", group="Regions", rule="file"
    )
    submission: str | None = option(
        None,
        "Folder for maps and masks as MVTec AD 2's server takes them; implies --masks --save-maps tiff.",
        rule="folder",
    )
    device: str | None = option(None, "Such as cpu or cuda:0; an accelerator if there is one.")
    format: list[str] = option(
        ["jsonl"], "Records as jsonl, parquet, csv, or several, with commas; jsonl always.", group="Results"
    )
    report: bool = option(
        False, "Write report.html too: pictures, worst first, and a filter by score.", group="Results"
    )
    camera: str | None = option(
        None, "Number or device of a camera, or a stream's address; until Ctrl-C.", group="Video"
    )
    every: int = option(1, "Score each n-th frame.", group="Video")
    smooth: float = option(1.0, "Seconds that the score is smoothed over.", group="Video")
    source: str | None = option(
        None, "Name, folder, table, meta.json or repository, in place of files.", group="Data set", rule="source"
    )
    split: str = option("test", "One split of it, or all.", group="Data set")
    streaming: bool = option(False, "Read a repository as it comes, without downloading it first.", group="Data set")

    def __post_init__(self):
        self.formats = [one.strip() for text in self.format for one in text.split(",")]
        with naming(formats="format"):
            super().__post_init__()
        super(PredictionSettings, self).__post_init__()  # of the options that follow
        if self.submission and self.save_maps not in (None, "tiff"):
            raise ValueError(
                f"save_maps={self.save_maps!r} but submission=... sends maps as tiff: leave one of them out"
            )
        if self.submission:
            self.masks, self.save_maps = True, "tiff"
        if self.mutual and (self.references or self.score_rule):
            raise ValueError("--mutual has a score of its own; give it without --references and --score-rule")
        if bool(self.inputs or self.camera is not None) == bool(self.source):
            raise ValueError("give files, folders and --camera, or --source: one of the two")
        given = [name for name in self.source_options() if name not in READING]
        given += ["streaming"] if self.streaming else []
        if not self.source and given:
            names = ", ".join(map(dashed, given))
            raise ValueError(f"{names} belong to --source; give --source in place of the files")

    def call_options(self) -> dict[str, Any]:
        """Options of the pipeline's call."""
        given = {"image_threshold": self.threshold, "pixel_threshold": self.pixel_threshold}
        return given | {"score_rule": self.score_rule} | self.resizing() | self.region_options()


def run(settings: Settings, draw: Callable | None = None) -> int:
    """Score the images of a command; see [`Settings`] for the exit status.

    Args:
        settings ([`Settings`]).
        draw (callable, *optional*): gives the data set that `--source synthetic` stands for, from a split's name.
    """
    from accelerate import PartialState
    from transformers import pipeline

    from ..data import load_anomaly_dataset
    from ..image_processing_anomalyclip import with_resizing
    from ..scoring.prediction import predict_dataset, predict_files
    from ..scoring.rows import processor_for
    from ..scoring.video import is_video

    videos = [one for one in settings.inputs or [] if is_video(one) and not os.path.isdir(one)]
    inputs: Any = [one for one in settings.inputs or [] if one not in videos]
    unused = [] if settings.source or inputs else [name for name in OF_IMAGES if getattr(settings, name)]
    if unused:
        names = ", ".join(map(dashed, unused))
        raise ValueError(f"{names}: only for images, and there is none; videos have records, a timeline and a video")
    state = PartialState(cpu=settings.device == "cpu")
    predict: Callable[..., PredictionSummary] = predict_files
    if settings.source:
        source = draw("test") if draw and settings.source == "synthetic" else settings.source
        given = {**settings.source_options(), "streaming": settings.streaming}
        inputs, predict = load_anomaly_dataset(source, split=settings.split, **given), predict_dataset
    # Loaded here: the pipeline would try two ways and show the tracebacks of both.
    model = load_model(settings)
    if settings.profile:
        model.set_profile(settings.profile)
    _check_regions(settings, model)
    processor = processor_for(model, model.default_processor())
    processor = with_resizing(processor, settings.resizing(), model.config.vision_config.patch_size)
    detector = pipeline(
        "zero-shot-anomaly-detection",
        model=model,
        device=state.device if settings.device is None and state.num_processes > 1 else settings.device,
        references=settings.make_references(model, processor),
        reference_weight=settings.reference_weight,
    )
    states = []
    with naming(image_threshold="threshold"):
        if (videos or settings.camera is not None) and state.is_main_process:
            states = [_score_videos(settings, videos, detector)]
        if not settings.source and not inputs:
            return states[0] if states else 0
        given = {field.name: getattr(settings, field.name) for field in fields(PredictionSettings)}
        given |= settings.call_options() | {name: getattr(settings, name) for name in READING}
        summary = predict(inputs, settings.output_dir, detector, accelerator=state, **given)
    if not state.is_main_process:
        return 0
    _write_more(settings, summary)
    _report(summary, settings.output_dir)
    return _join([*states, summary.exit_status])


def _check_regions(settings: Settings, model: AnomalyCLIPModel) -> None:
    thresholds = (settings.pixel_threshold, getattr(model.profile, "pixel_threshold", None))
    has_one = any(one is not None for one in (*thresholds, model.config.pixel_threshold))
    if (settings.coco or settings.label_studio or settings.submission) and not has_one:
        raise ValueError(
            "this model has no pixel threshold, so no regions and masks; calibrate it, or give pixel_threshold=..."
        )


def _score_videos(settings: Settings, videos: Sequence[str], detector: Callable[..., Any]) -> int:
    """Score videos, each into a folder of its name, and a camera; one that can't be read does not end the others."""
    from ..scoring.inputs import unique_name
    from ..scoring.video import VideoError, predict_video
    from ..scoring.writing import PREDICTIONS

    given = {name: getattr(settings, name) for name in ("batch_size", "vmin", "vmax", "every", "smooth")}
    taken: set[str] = set()
    states = []
    sources = [(one, Path(one).name, False) for one in videos]
    if (camera := settings.camera) is not None:
        sources.append((camera, "camera", "://" not in camera))
    for source, name, is_camera in sources:
        output = Path(settings.output_dir, unique_name(name, taken))
        try:
            former = os.path.isfile(output / PREDICTIONS)
            summary = predict_video(source, output, detector, camera=is_camera, **given, **settings.call_options())
        except VideoError as error:
            _print_skipped([{"path": source, "error": str(error)}])
            states.append(2)
            continue
        _tell_replaced(former, output)
        _print_skipped(summary.skipped)
        peak = f", highest score {summary.peak[1]:.3f} at {summary.peak[0]:.2f} s" if summary.peak else ""
        told = f"{count_of(summary.num_scored, 'frame')} scored{peak}; results in {os.path.join(output, '')}"
        print(one_line(f"{source}: {told}"))
        states.append(summary.exit_status)
    return _join(states)


def _join(states: Sequence[int]) -> int:
    """The exit status of several: 0 or 2 where all of them are, otherwise 1."""
    return states[0] if len(set(states)) == 1 else 1


def _write_more(settings: Settings, summary: PredictionSummary) -> None:
    """What else is made of the records."""
    from ..scoring.annotations import write_coco, write_label_studio, write_submission

    for write, path in ((write_coco, settings.coco), (write_label_studio, settings.label_studio)):
        if path:
            print(f"{count_of(write(summary.read(), path), 'region')} written to {path}")
    if settings.submission:
        count = write_submission(summary.read(), settings.output_dir, settings.submission)
        print(f"{count} maps and masks written to {settings.submission}")
    former = settings.resume and os.path.isfile(os.path.join(settings.output_dir, "report.html"))  # of fewer images
    if (settings.report or former) and summary.num_scored:
        from ..evaluation.report import write_prediction_report

        write_prediction_report(settings.output_dir)


def _print_skipped(entries: Sequence[Mapping[str, str]]) -> None:
    for entry in entries:
        print(f"skipped {one_line(entry['path'])}: {one_line(entry['error'])}", file=sys.stderr)


def _tell_replaced(former: int, output_dir: str | Path) -> None:
    if former:
        print(one_line(f"note: replaced the results of an earlier run in {output_dir}"), file=sys.stderr)


def _report(summary: PredictionSummary, output_dir: str) -> None:
    _tell_replaced(summary.num_replaced, output_dir)
    _print_skipped(summary.skipped)
    if more := summary.num_skipped - len(summary.skipped):
        print(f"skipped {more} more: see {os.path.join(output_dir, 'skipped.jsonl')}", file=sys.stderr)
    scored, skipped = count_of(summary.num_scored, "image"), count_of(summary.num_skipped, "input")
    parts = [f"{scored} scored, {skipped} skipped"]
    if summary.left_out:
        masks = [path.name for path in summary.left_out]
        parts.append(f", {count_of(len(masks), 'mask')} left out ({examples(masks)})")
    if summary.unused:
        reasons = (
            f"{len(paths)} {reason} ({examples([path.name for path in paths])})"
            for reason, paths in summary.unused.items()
        )
        unused = count_of(sum(map(len, summary.unused.values())), "file")
        parts.append(f", {unused} not used: {'; '.join(reasons)}")
    if summary.num_scored:
        parts.append(f"; results in {os.path.join(output_dir, '')}")
    print(one_line("".join(parts)))
