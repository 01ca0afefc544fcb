"""`anomalyclip predict`: score images."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..data.file_tree import examples
from ..data.files import one_line
from ..data.options import SourceOptions, option
from .running import naming

if TYPE_CHECKING:
    from ..scoring.prediction import PredictionSummary

DTYPES = ("auto", "float32", "bfloat16", "float16")
MAP_FORMATS = ("png", "npy")


@dataclass
class Settings(SourceOptions):
    """Score images: files, folders or a data set in; records and heat maps out.

    anomalyclip predict part.png photos/ --model MODEL --output-dir results

    Masks (in folders masks, ground_truth, ..., or 1_mask.png beside 1.png) and results of this package in the folders
    given are left out; files that are named are always scored. What can't be used is listed in skipped.jsonl. Exit
    status: 0 every image was scored, 1 some were skipped, 2 nothing was done, 130 and 143 interrupted and terminated
    (what was finished is kept; another run into the same folder replaces it).
    """

    inputs: list[str] | None = option(None, "Image files, and folders searched for images.", argument=True)
    model: str = option("demo", "Folder or Hub repository; 'demo' is the embedded one, for trying out.", short="m")
    output_dir: str = option("predictions", "Folder for results.", short="o")
    batch_size: int = option(1, "Images per forward, 1 or more.")
    num_workers: int = option(0, "Processes that decode images.")
    threshold: float | None = option(None, "Score in [0, 1] from which an image is anomalous; the model's own.")
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
    save_maps: str | None = option(None, f"Keep raw maps too: {' or '.join(MAP_FORMATS)}.", bare="png")
    vmin: float = option(0.0, "Map value of the first color, for the whole run.")
    vmax: float = option(1.0, "Map value of the last color, for the whole run.")
    source: str | None = option(
        None, "Name, folder, table, meta.json or repository, in place of files.", group="Data set"
    )
    split: str = option("test", "One split of it, or all.", group="Data set")

    def __post_init__(self):
        super().__post_init__()
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r}, expected one of {', '.join(DTYPES)}")
        if self.mutual and (self.references or self.score_rule):
            raise ValueError("--mutual has a score of its own; give it without --references and --score-rule")
        if bool(self.inputs) == bool(self.source):
            raise ValueError("give files and folders, or --source: one of the two")
        if self.inputs and (given := self.source_options()):
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"{names} belong to --source; give --source in place of the files")


def run(settings: Settings, draw: Callable | None = None) -> int:
    """Score the images of a command; see [`Settings`] for the exit status.

    Args:
        settings ([`Settings`]).
        draw (callable, *optional*): gives the data set that `--source synthetic` stands for, from a split's name.
    """
    from transformers import pipeline

    from .. import AnomalyCLIPModel, demo_checkpoint
    from ..data import load_anomaly_dataset
    from ..data.loading import refuse_drawn
    from ..scoring.prediction import predict_dataset, predict_files

    name = demo_checkpoint() if settings.model == "demo" else settings.model
    if settings.source:
        source = (draw or refuse_drawn)("test") if settings.source == "synthetic" else settings.source
        images = load_anomaly_dataset(source, split=settings.split, **settings.source_options())
    # Loaded here: the pipeline would try two ways and show the tracebacks of both.
    model = AnomalyCLIPModel.from_pretrained(name, dtype=settings.dtype)
    given = {name: getattr(settings, name) for name in ("references", "reference_weight", "score_rule")}
    detector = pipeline("zero-shot-anomaly-detection", model=model, device=settings.device, **given)
    shared = ("batch_size", "num_workers", "threshold", "save_maps", "vmin", "vmax", "mutual", "block_size")
    arguments = {field: getattr(settings, field) for field in shared}
    with naming(image_threshold="threshold"):
        if settings.source:
            summary = predict_dataset(images, settings.output_dir, detector, **arguments)
        else:
            summary = predict_files(settings.inputs or [], settings.output_dir, detector, **arguments)
    _report(summary, settings.output_dir)
    return summary.exit_status


def _report(summary: PredictionSummary, output_dir: str) -> None:
    for entry in summary.skipped:
        print(f"skipped {one_line(entry['path'])}: {one_line(entry['error'])}", file=sys.stderr)
    parts = [f"{summary.num_scored} images scored, {len(summary.skipped)} inputs skipped"]
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
