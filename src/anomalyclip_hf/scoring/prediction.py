"""Predicting: a record and a heat map for each image of files, folders and data sets, unreadable ones reported."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from tqdm.auto import tqdm

from ..configuration_anomalyclip import check_fields
from ..data.addresses import read_image
from ..data.contact_sheet import inside
from ..data.images import read_image as read_cell
from ..options_anomalyclip import READING, THRESHOLDS
from ..pipeline_anomalyclip import COMPARING
from .engine import OneProcess, Record, own_share, score_images
from .inputs import check_apart, find_images, relative_names, unique_name
from .mutual import MutualJudge, score_images_mutually
from .pictures import DISTANCE_VMAX, resize_map
from .regions import read_roi
from .rows import PipelinePreparer, PipelineScorer, compares, digest_model
from .settings import TABLES, PredictionSettings
from .writing import (
    PREDICTIONS,
    SETTINGS,
    SKIPPED,
    RecordWriter,
    begin_run,
    end_run,
    read_done,
    read_records,
)

if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator, PartialState

MAP_SIDE = 4096  # pixels: longer sides of maps and overlays are reduced to it
EXAMPLES = 20  # skipped inputs that a summary names


@dataclass
class PredictionSummary:
    """What [`predict_files`], [`predict_dataset`] or [`predict_video`] did; its records lie in the output folder.

    Args:
        output (`Path`): the output folder.
        num_scored (`int`): lines of predictions.jsonl.
        num_skipped (`int`): inputs that could not be used.
        skipped (`list[dict]`): `path` and `error` of the first `EXAMPLES` of them; skipped.jsonl has all.
        left_out (`list[Path]`): masks in the folders given, which are no photographs.
        unused (`dict[str, list[Path]]`): other files and folders in them that are set aside, by reason.
        num_replaced (`int`): records of an earlier run in the output folder, which were removed with their files.
        peak (`tuple[float, float]`, *optional*): of a video, seconds and smoothed score where that is highest.
    """

    output: Path
    num_scored: int = 0
    num_skipped: int = 0
    skipped: list[dict[str, str]] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)
    unused: dict[str, list[Path]] = field(default_factory=dict)
    num_replaced: int = 0
    peak: tuple[float, float] | None = None

    @property
    def predictions(self) -> list[dict[str, Any]]:
        """The lines of predictions.jsonl, read from there."""
        return list(self.read())

    def read(self) -> Iterator[dict[str, Any]]:
        """The lines of predictions.jsonl, one by one."""
        return read_records(self.output) if self.num_scored else iter(())

    @property
    def exit_status(self) -> int:
        """0 = everything was scored, 1 = something was skipped, 2 = nothing was scored."""
        return 2 if not self.num_scored else 1 if self.num_skipped else 0


def predict_files(
    inputs: Iterable[str | os.PathLike],
    output_dir: str | os.PathLike,
    detector: Callable[..., Any],
    *,
    accelerator: Accelerator | PartialState | None = None,
    **settings: Any,
) -> PredictionSummary:
    """Score images and write `predictions.jsonl`, heat maps in `overlays/`, and, if asked, `maps/` and
    `predicted_masks/`.

    Every file appears complete or not at all. Records are put on disk every few seconds, each after the files of its
    image, in files `predictions-*.jsonl` that are merged at the end: an interrupted run keeps what it did, and
    `resume=True` goes on with it; otherwise results of an earlier run in the same folder are replaced. What fails for
    one image (reading, scoring, drawing, writing) is noted in `skipped.jsonl`, and the rest goes on. Memory does not
    grow with the number of images but for their paths. Overlays of images with a side of more than `MAP_SIDE` pixels
    are reduced to that; with `resize="square"` their maps and masks are too, and their records give `map_size`,
    (height, width). All heat maps of a run have one color scale, shown in `legend.png`.

    Args:
        inputs: files and folders.
        output_dir (`str` or `os.PathLike`): made if absent.
        detector ([`ZeroShotAnomalyDetectionPipeline`]): or what is called as it is with a list of PIL images.
        accelerator (`Accelerator` or `PartialState`, *optional*): shares the work between its processes, which need a
            common disk and all get the summary.
        **settings: fields of [`PredictionSettings`], and options of the detector's call, such as `image_threshold` (or
            `threshold`), `pixel_threshold` and `sigma`.

    Raises:
        TypeError: an unknown option.
        ValueError: if an argument is out of range, an input lies in the output folder, or the run to go on with had
            other settings.
        OSError: if the records can't be written, or `FullDisk` sees a full disk.
    """
    inputs = list(inputs)
    found = find_images(inputs, output_dir)
    images = [(str(path), name) for path, name in found.files]
    run = _Run(detector, Path(output_dir), settings, accelerator, {"inputs": [str(one) for one in inputs]})
    summary = run.score([path for path, _ in images], images, found.skipped)
    summary.left_out, summary.unused = found.left_out, found.unused
    return summary


def predict_dataset(
    dataset: datasets.Dataset | datasets.IterableDataset,
    output_dir: str | os.PathLike,
    detector: Callable[..., Any],
    *,
    accelerator: Accelerator | PartialState | None = None,
    **settings: Any,
) -> PredictionSummary:
    """Score the images of a data set, as [`predict_files`] does those of folders.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): from `load_anomaly_dataset`; its masks are not
            read. The window and channels that it was loaded with hold where neither the call nor a profile gives
            some. Of a stream, each process reads all rows and decodes its own.
        output_dir, detector, accelerator, **settings: as in [`predict_files`].

    Raises:
        ValueError: if an argument is out of range, or an image lies in the output folder.
    """
    import datasets

    run = _Run(detector, Path(output_dir), settings, accelerator, {})
    loaded_with = {name: getattr((dataset.features or {}).get("image"), name, None) for name in READING}
    run.reading = {name: value for name, value in loaded_with.items() if value is not None} | run.reading
    run.facts |= run.reading
    rows = dataset.select_columns(["image", "path"]).cast_column("image", datasets.Image(decode=False))
    if not hasattr(dataset, "__len__"):
        return run.score(rows, None)
    taken: set[str] = set()
    paths = [str(path) for path in dataset["path"]]
    check_apart([Path(path) for path in paths if os.path.exists(path)], output_dir)
    images = [(path, unique_name(name, taken)) for path, name in zip(paths, relative_names(paths), strict=True)]
    return run.score(rows, images)


class _Run:
    """One prediction: its settings, and what each of its processes does."""

    def __init__(
        self,
        detector: Any,
        output: Path,
        settings: Mapping[str, Any],
        accelerator: Accelerator | PartialState | None,
        facts: Mapping[str, Any],
    ):
        known = {one.name for one in fields(PredictionSettings)}
        self.settings = PredictionSettings(**{key: value for key, value in settings.items() if key in known})
        # Options of the detector's call, all of them: they are passed on as they are.
        options = {key: value for key, value in settings.items() if key not in known and value is not None}
        if "threshold" in options:
            options["image_threshold"] = options.pop("threshold")
        if "roi" in options:
            options["roi"] = read_roi(options["roi"])
        self.options, self.detector, self.output = options, detector, output
        self.processes = accelerator or OneProcess()
        # A pipeline's images are prepared in the workers; another detector is called with images.
        self.scorer = PipelineScorer(detector, **options) if hasattr(detector, "preprocess") else None
        self.prepare = None if self.scorer is None else self.scorer.prepare
        self.reading: dict[str, Any] = {} if self.prepare is None else self.prepare.reading
        model = getattr(detector, "model", None)
        profile = getattr(model, "profile", None)
        of_profile = {} if profile is None else profile.options
        stored = {name: getattr(getattr(model, "config", None), name, None) for name in THRESHOLDS}
        if self.settings.mutual:
            self._check_mutual()
            stored, of_profile = dict.fromkeys(stored), {}  # no threshold but one of this call can be for its scores
        thresholds = {name: value for name, value in {**stored, **of_profile, **options}.items() if name in stored}
        check_fields(thresholds)
        if self.settings.overlays == "anomalous" and thresholds["image_threshold"] is None:
            raise ValueError("overlays='anomalous' but the model has no threshold: give image_threshold=...")
        if self.settings.masks and thresholds["pixel_threshold"] is None:
            raise ValueError("masks=True but the model has no threshold of pixels: give pixel_threshold=...")
        if self.settings.vmax is None:
            has_distances = self.settings.mutual or compares(detector, options)
            self.settings = replace(self.settings, vmax=DISTANCE_VMAX if has_distances else 1.0)
        self.facts = {**facts, **self.settings.facts(), **of_profile, **options, **thresholds}
        for name in COMPARING:  # told with the model
            self.facts.pop(name, None)

    def _check_mutual(self) -> None:
        if self.prepare is None or self.prepare.keeps_size:
            raise ValueError(
                "mutual=True compares images of one grid of patches: it needs a pipeline, resize='square'"
            )
        if self.settings.resume or self.processes.num_processes > 1:
            raise ValueError("mutual=True judges whole blocks of images: leave out resume=True, and use one process")

    def score(
        self, source: Any, images: Sequence[tuple[str, str]] | None, skipped: Sequence[Mapping[str, str]] = ()
    ) -> PredictionSummary:
        """Score the rows of a source.

        Args:
            source: files, rows of a data set, or a stream of them.
            images: path, and name for results, of each; None for a stream.
            skipped: `path` and `error` of what is known not to be usable.
        """
        made = not self.output.exists()
        if images is not None and not images:  # results of an earlier run stay
            return PredictionSummary(self.output, 0, len(skipped), [dict(one) for one in skipped])
        num_replaced = 0
        if self.processes.is_main_process:
            self.facts["model"] = self._describe_model()
            num_replaced = begin_run(self.output, self.facts, images, self.settings.resume)
        self.processes.wait_for_everyone()
        writer = RecordWriter(self.output, self.settings, self.processes.process_index)
        try:
            for one in skipped if self.processes.is_main_process else ():
                writer.skip(-1, one["path"], one["error"])
            for record in self._records(source, images):
                self._write(writer, record, images)
        finally:
            writer.close()
        self.processes.wait_for_everyone()
        if self.processes.is_main_process:
            end_run(self.output, [one for one in self.settings.formats if one in TABLES])
        self.processes.wait_for_everyone()
        summary = self._summarize()
        summary.num_replaced = num_replaced
        if made and not summary.num_scored and summary.num_skipped <= EXAMPLES and self.processes.num_processes == 1:
            for name in (SETTINGS, SKIPPED):  # a folder is not kept for inputs of which none can be scored
                (self.output / name).unlink(missing_ok=True)
            if not any(self.output.iterdir()):
                self.output.rmdir()
        return summary

    def _records(self, source: Any, images: Sequence[tuple[str, str]] | None) -> Iterator[Record]:
        """Score this process's share of what has no record yet."""
        done = read_done(self.output) if self.settings.resume else set()
        process, num_processes = self.processes.process_index, self.processes.num_processes
        batch_size = self.settings.batch_size
        share: dict[str, Any] = {"batch_size": batch_size, "num_workers": self.settings.num_workers}
        share["pin_memory"] = getattr(getattr(self.detector, "device", None), "type", "cpu") == "cuda"
        if images is None:
            share["wanted"] = partial(_is_wanted, done, batch_size, process, num_processes)
        else:
            remaining = [index for index in range(len(images)) if index not in done]
            share["indices"] = own_share(remaining, batch_size, process, num_processes)
        keep_image = self.settings.overlays != "none"
        prepare = partial(_prepare, prepare=self.prepare, reading=self.reading, keep_image=keep_image, side=MAP_SIDE)
        if not self.settings.mutual:
            records = score_images(source, prepare, self._score, **share)
        elif images is None:
            raise ValueError("mutual=True needs to know how many images there are: leave out streaming")
        else:
            judge = MutualJudge(
                self.detector.model, self.detector.image_processor, self.options.get("image_threshold")
            )
            records = score_images_mutually(
                source,
                prepare,
                lambda pictures: judge.describe([one.inputs["pixel_values"][0] for one in pictures]),
                lambda picture, values: judge.finish(picture.size[::-1], values),
                device=self.detector.model.device,
                block_size=self.settings.block_size,
                **share,
            )
        total = None if images is None else len(images)
        with tqdm(total=total, unit="image", disable=not (self.settings.progress and process == 0)) as bar:
            bar.update(len(done))
            for record in records:
                yield record
                bar.update(num_processes if total is None else min(num_processes, total - bar.n))

    def _score(self, pictures: list[_Picture]) -> list[dict[str, Any]]:
        inputs = [picture.inputs for picture in pictures]
        if self.scorer is not None:
            return self.scorer(inputs, [picture.image_size[::-1] for picture in pictures])
        return self.detector(inputs, batch_size=len(inputs), **self.options)

    def _write(self, writer: RecordWriter, record: Record, images: Sequence[tuple[str, str]] | None) -> None:
        if images is None:
            path = str(record.path or f"{record.index:06d}")
            name = unique_name(f"{record.index:06d}_{Path(relative_names([path])[0]).name}", set())
        else:
            path, name = images[record.index]
        if record.error is not None:
            writer.skip(record.index, path, record.error)
            return
        picture, result = record.item, record.result
        if picture.size != picture.image_size and self.prepare is None:  # it may have been scored at any size
            result = {**result, "anomaly_map": resize_map(result["anomaly_map"], picture.size)}
        writer.write(record.index, path, name, result, picture.image, picture.image_size)

    def _summarize(self) -> PredictionSummary:
        summary = PredictionSummary(self.output)
        if (self.output / PREDICTIONS).is_file():
            summary.num_scored = sum(1 for _ in read_records(self.output))
        if (self.output / SKIPPED).is_file():
            entries = read_records(self.output, SKIPPED)
            summary.skipped = list(itertools.islice(entries, EXAMPLES))
            summary.num_skipped = len(summary.skipped) + sum(1 for _ in entries)
        return summary

    def _describe_model(self) -> str:
        if self.scorer is None:
            return type(self.detector).__name__
        model, references = self.detector.model, self.scorer.during.get("references")
        return f"{model.name_or_path} {digest_model(model, self.detector.image_processor, references)[:16]}"


class _Picture(NamedTuple):
    """An image as it is scored and as it is drawn.

    Args:
        inputs: what the detector scores: tensors, or the image itself.
        image_size: (width, height) in pixels.
        size: (width, height) of its map: the image's own, but for very large ones that are made square.
        image: to draw on, of at most `MAP_SIDE` pixels; None where nothing is drawn.
    """

    inputs: Any
    image_size: tuple[int, int]
    size: tuple[int, int]
    image: Image.Image | None


def _prepare(
    row: Any, prepare: PipelinePreparer | None, reading: Mapping[str, Any], keep_image: bool, side: int
) -> _Picture:
    """Read a file, or a row of a data set, and reduce a very large image, so that memory is bounded.

    The score stays what it is: the model gets the image at its input size, by the processor's own filter. The map is
    drawn on a copy whose longer side has `side` pixels.
    """
    if isinstance(row, str) and os.path.exists(row) and not os.path.isfile(row):  # opening a pipe would wait for ever
        raise ValueError("it is no regular file")
    image = read_image(Path(row), **reading) if isinstance(row, str) else read_cell(row["image"], **reading)
    shown = image
    if (reduced := size_of_map(image.size, side)) != image.size:
        image = image if image.mode == "RGB" else image.convert("RGB")
        shown = image.resize(reduced, Image.Resampling.BILINEAR, reducing_gap=2.0)
    size = shown.size
    inputs: Any = shown
    if prepare is not None:
        inputs = prepare(image)
        if prepare.keeps_size:
            size = image.size
        else:
            inputs["target_size"] = torch.tensor([size[::-1]])
    return _Picture(inputs, image.size, size, shown if keep_image else None)


def size_of_map(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Sides of the map and the mask of an image of a size: its own, or reduced so that the longer one is `side`."""
    return size if max(size) <= side else inside(size, side)


def _is_wanted(done: set[int], batch_size: int, process: int, num_processes: int, index: int) -> bool:
    """Whether a process scores a row of a stream: processes share whole batches, as in `own_share`."""
    return index not in done and index // batch_size % num_processes == process
