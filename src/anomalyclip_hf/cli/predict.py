"""`anomalyclip predict`: score images."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..data.file_tree import examples
from ..data.files import one_line
from ..data.options import ProfileOptions, ResizingOptions, SourceOptions, option
from ..export.engines import is_exported
from ..options_anomalyclip import READING
from .loading import load_exported
from .running import naming
from .video import join_states, predict_videos

if TYPE_CHECKING:
    from ..scoring.prediction import PredictionSummary

DTYPES = ("auto", "float32", "bfloat16", "float16")
# Fields of the settings that `predict_files` takes under the same name: its own, and options of the pipeline's call.
SHARED = (
    "batch_size",
    "num_workers",
    "overlays",
    "masks",
    "save_maps",
    "vmin",
    "vmax",
    "resume",
    "mutual",
    "block_size",
)
# Fields that say nothing of videos.
OF_IMAGES = (*READING, "coco", "label_studio", "report", "masks", "save_maps", "resume", "mutual")
CALL_OPTIONS = ("threshold", "pixel_threshold", *READING)


@dataclass
class Settings(ResizingOptions, ProfileOptions, SourceOptions):
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

    inputs: list[str] | None = option(None, "Image files, and folders searched for images.", argument=True)
    model: str = option("demo", "Folder or Hub repository; 'demo' is the embedded one, for trying out.", short="m")
    output_dir: str = option("predictions", "Folder for results.", short="o")
    batch_size: int = option(1, "Images per forward, 1 or more.")
    num_workers: int = option(0, "Processes that decode and resize images.")
    threshold: float | None = option(None, "Score in [0, 1] from which an image is anomalous; the model's own.")
    pixel_threshold: float | None = option(
        None, "Map value in [0, 1] from which a pixel is anomalous; the model's own.", group="Regions"
    )
    coco: str | None = option(None, "File for the regions as COCO JSON.", group="Regions")
    label_studio: str | None = option(None, "File for the regions as tasks of Label Studio.", group="Regions")
    submission: str | None = option(
        None, "Folder for maps and masks as MVTec AD 2's server takes them; implies --masks --save-maps tiff."
    )
    references: str | None = option(
        None, "Folder of 1 to 32 images of good parts to compare with, or a file of save_references.", group="Score"
    )
    reference_weight: float | None = option(
        None, "Of the prompts' own map and score beside references; 0.1.", group="Score"
    )
    score_rule: str | None = option(
        None, "Score of an image: global (of the image), max (of its map) or mean (of both).", group="Score"
    )
    mutual: bool = option(
        False, "Let unlabelled images judge one another: patches that few of the others know are odd.", group="Score"
    )
    block_size: int = option(200, "Images that judge one another, for --mutual.", group="Score")
    device: str | None = option(None, "Such as cpu or cuda:0; an accelerator if there is one.")
    dtype: str = option("auto", f"Of the weights: {', '.join(DTYPES)}.")
    resume: bool = option(
        False, "Go on with the run in the output folder, whatever ended it; skipped images are tried again."
    )
    format: list[str] = option(
        ["jsonl"], "Records as jsonl, parquet, csv, or several, with commas; jsonl always.", group="Results"
    )
    overlays: str = option("all", "Heat maps of which images: all, anomalous or none.", group="Results")
    masks: bool = option(False, "Write masks too, as PNG: 255 from the threshold of pixels on.", group="Results")
    save_maps: str | None = option(
        None, "Keep raw maps too: png16 (65535 is 1.0; png is the same), npy or tiff.", bare="png16", group="Results"
    )
    report: bool = option(
        False, "Write report.html too: pictures, worst first, and a filter by score.", group="Results"
    )
    vmin: float = option(0.0, "Map value of the first color, for the whole run.", group="Results")
    vmax: float = option(1.0, "Map value of the last color, for the whole run.", group="Results")
    camera: str | None = option(
        None, "Number or device of a camera, or a stream's address; until Ctrl-C.", group="Video"
    )
    every: int = option(1, "Score each n-th frame.", group="Video")
    smooth: float = option(1.0, "Seconds that the score is smoothed over.", group="Video")
    source: str | None = option(
        None, "Name, folder, table, meta.json or repository, in place of files.", group="Data set"
    )
    split: str = option("test", "One split of it, or all.", group="Data set")
    streaming: bool = option(False, "Read a repository as it comes, without downloading it first.", group="Data set")

    def __post_init__(self):
        super().__post_init__()
        if self.submission:
            self.masks, self.save_maps = True, "tiff"
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r}, expected one of {', '.join(DTYPES)}")
        if self.mutual and (self.references or self.score_rule):
            raise ValueError("--mutual has a score of its own; give it without --references and --score-rule")
        if bool(self.inputs or self.camera is not None) == bool(self.source):
            raise ValueError("give files, folders and --camera, or --source: one of the two")
        given = [name for name in self.source_options() if name not in READING]
        given += ["streaming"] if self.streaming else []
        if not self.source and given:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"{names} belong to --source; give --source in place of the files")


def run(settings: Settings, draw: Callable | None = None) -> int:
    """Score the images of a command; see [`Settings`] for the exit status.

    Args:
        settings ([`Settings`]).
        draw (callable, *optional*): gives the data set that `--source synthetic` stands for, from a split's name.
    """
    from accelerate import PartialState
    from transformers import pipeline

    from .. import AnomalyCLIPModel, demo_checkpoint
    from ..data import load_anomaly_dataset
    from ..scoring.annotations import write_coco, write_label_studio, write_submission
    from ..scoring.prediction import predict_dataset, predict_files
    from ..scoring.video import is_video

    videos = [one for one in settings.inputs or [] if is_video(one) and not os.path.isdir(one)]
    images_given = [one for one in settings.inputs or [] if one not in videos]
    unused = [] if settings.source or images_given else [name for name in OF_IMAGES if getattr(settings, name)]
    if unused:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise ValueError(f"{names}: only for images, and there is none; videos have records, a timeline and a video")
    name = demo_checkpoint() if settings.model == "demo" else settings.model
    state = PartialState(cpu=settings.device == "cpu")
    if settings.source:
        source = draw("test") if draw and settings.source == "synthetic" else settings.source
        given = {**settings.source_options(), "streaming": settings.streaming}
        images = load_anomaly_dataset(source, split=settings.split, **given)
    # Loaded here: the pipeline would try two ways and show the tracebacks of both.
    if is_exported(name):
        model = load_exported(name, [] if settings.dtype == "auto" else ["dtype"])
    else:
        model = AnomalyCLIPModel.from_pretrained(name, dtype=settings.dtype)
    device = state.device if settings.device is None and state.num_processes > 1 else settings.device
    if settings.profile:
        model.set_profile(settings.profile)
    thresholds = [settings.pixel_threshold, getattr(model.profile, "pixel_threshold", None)]
    if (settings.coco or settings.label_studio) and not any(
        one is not None for one in (*thresholds, model.config.pixel_threshold)
    ):
        raise ValueError("this model has no pixel threshold, so no regions; calibrate it, or give pixel_threshold=...")
    given = {name: getattr(settings, name) for name in ("references", "reference_weight", "score_rule")}
    given |= settings.resizing()  # references are prepared like the images
    detector = pipeline("zero-shot-anomaly-detection", model=model, device=device, **given)
    arguments = {field: getattr(settings, field) for field in SHARED + CALL_OPTIONS}
    arguments |= settings.resizing() | settings.region_options()
    arguments["formats"] = [one.strip() for text in settings.format for one in text.split(",")]
    states = []
    if (videos or settings.camera is not None) and state.is_main_process:
        given = {name: getattr(settings, name) for name in ("batch_size", "vmin", "vmax", "every", "smooth")}
        given |= settings.resizing() | settings.region_options()
        given |= {"image_threshold": settings.threshold, "pixel_threshold": settings.pixel_threshold}
        with naming(image_threshold="threshold"):
            states = [predict_videos(videos, settings.camera, settings.output_dir, detector, **given)]
    if not (settings.source or images_given):
        return states[0] if states else 0
    with naming(image_threshold="threshold", formats="format"):
        if settings.source:
            summary = predict_dataset(images, settings.output_dir, detector, accelerator=state, **arguments)
        else:
            summary = predict_files(images_given, settings.output_dir, detector, accelerator=state, **arguments)
    if not state.is_main_process:
        return 0
    for write, path in ((write_coco, settings.coco), (write_label_studio, settings.label_studio)):
        if path:
            print(f"{write(summary.read(), path)} regions written to {path}")
    if settings.submission:
        count = write_submission(summary.read(), settings.output_dir, settings.submission)
        print(f"{count} maps and masks written to {settings.submission}")
    if settings.report and summary.num_scored:
        from ..evaluation.report import write_prediction_report

        write_prediction_report(settings.output_dir)
    _report(summary, settings.output_dir)
    return join_states([*states, summary.exit_status])


def _report(summary: PredictionSummary, output_dir: str) -> None:
    for entry in summary.skipped:
        print(f"skipped {one_line(entry['path'])}: {one_line(entry['error'])}", file=sys.stderr)
    if more := summary.num_skipped - len(summary.skipped):
        print(f"skipped {more} more: see {os.path.join(output_dir, 'skipped.jsonl')}", file=sys.stderr)
    parts = [f"{summary.num_scored} images scored, {summary.num_skipped} inputs skipped"]
    if summary.left_out:
        parts.append(f", {len(summary.left_out)} masks left out ({examples([one.name for one in summary.left_out])})")
    if summary.unused:
        reasons = (
            f"{len(paths)} {reason} ({examples([path.name for path in paths])})"
            for reason, paths in summary.unused.items()
        )
        parts.append(f", {sum(map(len, summary.unused.values()))} files not used: {'; '.join(reasons)}")
    if summary.num_scored:
        parts.append(f"; results in {os.path.join(output_dir, '')}")
    print(one_line("".join(parts)))
