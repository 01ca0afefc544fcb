"""Predicting: a JSON line and a heat map for each image of files, folders and data sets, unreadable ones reported."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..configuration_anomalyclip import check_fields
from ..data.files import MAP_FORMATS, atomic_path, json_line, remove_leftovers, save_map
from ..pipeline_anomalyclip import read_image
from .engine import FullDisk, explain, score_images
from .inputs import LEGEND, check_apart, find_images, relative_names, unique_name
from .mutual import BLOCK_SIZE, MutualJudge, score_images_mutually
from .pictures import draw_legend, overlay, resize_map

if TYPE_CHECKING:
    import datasets

PREDICTIONS, SKIPPED = "predictions.jsonl", "skipped.jsonl"
MAP_SIDE = 4096  # pixels: longer sides of maps and overlays are reduced to it


@dataclass
class PredictionSummary:
    """What [`predict_files`] or [`predict_dataset`] did; its records lie in the output folder.

    Args:
        output (`Path`): the output folder.
        num_scored (`int`): lines of predictions.jsonl.
        skipped (`list[dict]`): `path` and `error` of each input that could not be used.
        left_out (`list[Path]`): masks in the folders given, which are no photographs.
        unused (`dict[str, list[Path]]`): other files and folders in them that are set aside, by reason.
    """

    output: Path
    num_scored: int = 0
    skipped: list[dict[str, str]] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)
    unused: dict[str, list[Path]] = field(default_factory=dict)

    @property
    def predictions(self) -> list[dict[str, Any]]:
        """The lines of predictions.jsonl, read from there."""
        if not self.num_scored:
            return []
        return [json.loads(line) for line in (self.output / PREDICTIONS).read_text(encoding="utf-8").splitlines()]

    @property
    def exit_status(self) -> int:
        """0 = everything was scored, 1 = something was skipped, 2 = nothing was scored."""
        return 2 if not self.num_scored else 1 if self.skipped else 0


def predict_files(
    inputs: Iterable[str | os.PathLike],
    output_dir: str | os.PathLike,
    detector: Callable[..., Any],
    batch_size: int = 1,
    threshold: float | None = None,
    save_maps: str | None = None,
    vmin: float = 0.0,
    vmax: float = 1.0,
    alpha: float = 0.5,
    progress: bool = True,
    num_workers: int = 0,
    mutual: bool = False,
    block_size: int = BLOCK_SIZE,
) -> PredictionSummary:
    """Score images and write `predictions.jsonl`, heat maps in `overlays/` and, if asked, raw maps in `maps/`.

    Every file appears complete or not at all. A record is appended when the files of its image are in place, so an
    interrupted run keeps what it did; results of an earlier run in the same folder are replaced. What fails for one
    image (reading, scoring, drawing, writing) is noted in `skipped.jsonl`, and the rest goes on. Maps and overlays of
    images with a side of more than `MAP_SIDE` pixels are reduced to that; their records give `map_size`, (height,
    width).
    All heat maps of a run have one color scale, shown in `legend.png`.

    Args:
        inputs: files and folders.
        output_dir (`str` or `os.PathLike`): made if absent.
        detector ([`ZeroShotAnomalyDetectionPipeline`]): what scores a list of PIL images.
        batch_size (`int`, 1 or more).
        threshold (`float` in [0, 1], *optional*): score from which the label is "anomalous"; the model's if absent.
        save_maps (`str`, *optional*): `"npy"` (float32) or `"png"` (16 bit, 65535 = 1), at the image's own size.
        vmin, vmax (`float`): map values that get the first and the last color.
        alpha (`float` in [0, 1]): how much the map covers the image.
        progress (`bool`): show a progress bar.
        num_workers (`int`): processes that decode images; 0 decodes in this one.
        mutual (`bool`): images judge one another (see `mutual`), within blocks of at most `block_size`; records then
            say `"method": "mutual"`.

    Raises:
        ValueError: if an argument is out of range, or an input lies in the output folder.
        OSError: if the records can't be written, or `FullDisk` sees a full disk.
    """
    found = find_images(inputs, output_dir)
    summary = PredictionSummary(Path(output_dir), 0, found.skipped, found.left_out, found.unused)
    images = [(str(path), name) for path, name in found.files]
    settings: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "progress": progress}
    settings |= {"mutual": mutual, "block_size": block_size}
    settings |= {"threshold": threshold, "save_maps": save_maps, "vmin": vmin, "vmax": vmax, "alpha": alpha}
    return _predict(images, [path for path, _ in found.files], detector, summary, **settings)


def predict_dataset(
    dataset: datasets.Dataset, output_dir: str | os.PathLike, detector: Callable[..., Any], **settings: Any
) -> PredictionSummary:
    """Score the images of a data set, as [`predict_files`] does those of folders.

    Args:
        dataset (`datasets.Dataset`): from `load_anomaly_dataset`; its masks are not read.
        output_dir, detector, **settings: as in [`predict_files`].

    Raises:
        ValueError: if an argument is out of range, or an image lies in the output folder.
    """
    taken: set[str] = set()
    paths = [str(path) for path in dataset["path"]]
    check_apart([Path(path) for path in paths if os.path.exists(path)], output_dir)
    images = [(path, unique_name(name, taken)) for path, name in zip(paths, relative_names(paths), strict=True)]
    rows = dataset.select_columns(["image"])
    return _predict(images, rows, detector, PredictionSummary(Path(output_dir)), **settings)


def _predict(
    images: Sequence[tuple[str, str]],
    source: Any,
    detector: Callable[..., Any],
    summary: PredictionSummary,
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    threshold: float | None = None,
    save_maps: str | None = None,
    vmin: float = 0.0,
    vmax: float = 1.0,
    alpha: float = 0.5,
    progress: bool = True,
    mutual: bool = False,
    block_size: int = BLOCK_SIZE,
) -> PredictionSummary:
    """Score the rows of a source, whose paths and names for results are `images`."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}, expected 1 or more")
    check_fields({"image_threshold": threshold})
    if save_maps is not None and save_maps not in MAP_FORMATS:
        raise ValueError(f"save_maps={save_maps!r}, expected one of {MAP_FORMATS}")
    if not (vmin < vmax and math.isfinite(vmin) and math.isfinite(vmax)):
        raise ValueError(f"vmin={vmin}, vmax={vmax}, expected finite values, vmin < vmax")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}, expected a share in [0, 1]")
    settings = {"image_threshold": threshold} if threshold is not None else {}

    def score(pictures: list[_Picture]) -> list[dict[str, Any]]:
        return detector([picture.scored for picture in pictures], batch_size=len(pictures), **settings)

    prepare = partial(_prepare, processor=getattr(detector, "image_processor", None))
    writer = _Writer(summary, save_maps, (vmin, vmax, alpha))
    loading: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers}
    if mutual:
        engine: Any = detector
        judge = MutualJudge(engine.model, engine.image_processor, threshold)

        def describe(pictures: list[_Picture]) -> Tensor:
            return judge.describe([picture.scored for picture in pictures])

        def finish(picture: _Picture, values: Tensor) -> dict[str, Any]:
            return judge.finish(picture.shown.size, values)

        loading |= {"device": engine.model.device, "block_size": block_size}
        records = score_images_mutually(source, prepare, describe, finish, **loading)
    else:
        records = score_images(source, prepare, score, **loading)
    for record in tqdm(records, total=len(images), unit="image", disable=not progress):
        path, name = images[record.index]
        if record.error is None:
            writer.write(path, name, record.item, record.result)
        else:
            writer.skip(path, record.error)
    return summary


class _Picture(NamedTuple):
    """An image as it is scored and as it is drawn: the same but for very large ones."""

    scored: Image.Image
    shown: Image.Image
    is_reduced: bool


class _Writer:
    """Writes results and records as they come: the record of an image last, when its files are in place."""

    def __init__(self, summary: PredictionSummary, save_maps: str | None, look: tuple[float, float, float]):
        self.summary, self.save_maps, self.look = summary, save_maps, look
        self.output = summary.output
        self.is_open = False
        self.full_disk = FullDisk()
        if self.output.is_dir():  # a folder is not made for inputs of which none can be scored
            self._open()

    def write(self, path: str, name: str, picture: _Picture, result: dict[str, Any]) -> None:
        """Draw and write one image; a fault of this image alone is noted in its place.

        Raises:
            OSError: the records can't be written, or images before met a full disk too.
        """
        record = {"path": path, "score": result["score"]}
        if "method" in result:
            record["method"] = result["method"]
        if "label" in result:
            record["label"] = result["label"]
        record["overlay"] = f"overlays/{name}.png"
        if self.save_maps is not None:
            record["map"] = f"maps/{name}.{self.save_maps}"
        if not self.is_open:
            self._open()
        try:
            anomaly_map = result["anomaly_map"]
            if picture.is_reduced:
                anomaly_map = resize_map(anomaly_map, picture.shown.size)
                record["map_size"] = list(anomaly_map.shape)
            drawn = overlay(picture.shown, anomaly_map, *self.look)
            if self.save_maps is not None:
                save_map(anomaly_map, self.output / record["map"])
            with atomic_path(self.output / record["overlay"]) as temporary:
                drawn.save(temporary)
            if not self.summary.num_scored:
                with atomic_path(self.output / LEGEND) as temporary:
                    draw_legend(*self.look[:2]).save(temporary)
        except Exception as error:
            for key in ("overlay", "map"):
                if key in record:
                    (self.output / record[key]).unlink(missing_ok=True)
            self.skip(path, explain(error))
            self.full_disk.note(error)
            return
        self.full_disk.clear()
        self._append(PREDICTIONS, record)
        self.summary.num_scored += 1

    def skip(self, path: str, error: str) -> None:
        """Note an input that can't be used, and why."""
        entry = {"path": path, "error": error}
        self.summary.skipped.append(entry)
        if self.is_open:
            self._append(SKIPPED, entry)

    def _open(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.output, "overlays", "maps")
        _remove_pictures(self.output)
        for name in (PREDICTIONS, SKIPPED):  # of an earlier run
            (self.output / name).unlink(missing_ok=True)
        self.is_open = True
        for entry in self.summary.skipped:
            self._append(SKIPPED, entry)

    def _append(self, name: str, record: dict[str, Any]) -> None:
        with open(self.output / name, "a", encoding="utf-8") as file:
            file.write(json_line(record))


def _remove_pictures(output: Path) -> None:
    """Remove the overlays and maps that the records of an earlier run name, which would have no record any more."""
    try:
        lines = (output / PREDICTIONS).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        try:
            record = json.loads(line)
            names = [str(record[key]) for key in ("overlay", "map") if key in record]
        except (ValueError, TypeError):  # cut off, or no record
            continue
        for name in names:
            parts = name.split("/")
            if parts[0] in ("overlays", "maps") and ".." not in parts and (output / name).is_file():
                (output / name).unlink()


def _prepare(row: Any, processor: Any) -> _Picture:
    """Read a file, or a row of a data set, and reduce a very large image, so that memory is bounded.

    The score stays what it is: the model gets the image at its input size, by the processor's own filter. The map is
    drawn on a copy whose longer side has `MAP_SIDE` pixels.
    """
    if isinstance(row, Path) and row.exists() and not row.is_file():  # opening a pipe would wait for ever
        raise ValueError("it is no regular file")
    image = read_image(row if isinstance(row, Path) else row["image"])
    if max(image.size) <= MAP_SIDE:
        return _Picture(image, image, False)
    scale = MAP_SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image if image.mode == "RGB" else image.convert("RGB")
    shown = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    if processor is None or not processor.do_resize:
        return _Picture(shown, shown, True)
    side = processor.size
    return _Picture(image.resize((side["width"], side["height"]), processor.resample), shown, True)
