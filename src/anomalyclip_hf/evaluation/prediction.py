"""Scoring files, folders and data sets: one JSON line and one heat map for each image, unreadable ones reported."""

import json
import math
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

from ..data.file_tree import IMAGE_SUFFIXES, is_mask_folder
from ..data.files import MAP_FORMATS, atomic_path, is_disk_full, json_line, remove_leftovers, safe_name, save_map
from ..pipeline_anomalyclip import read_image
from .visualization import colorize, overlay, resize_map

PREDICTIONS, SKIPPED, LEGEND = "predictions.jsonl", "skipped.jsonl", "legend.png"
MAP_SIDE = 4096  # pixels: longer sides of maps and overlays are reduced to it
_NAME_CHARACTERS = "".join(map(chr, (letter for letter in range(32, 127) if chr(letter) not in '/\\:*?"<>|')))


@dataclass
class PredictionSummary:
    """What [`predict_files`] or [`predict_dataset`] did; its records lie in the output folder.

    Args:
        output (`Path`): the output folder.
        num_scored (`int`): lines of predictions.jsonl.
        skipped (`list[dict]`): `path` and `error` of each input that could not be used.
        left_out (`list[Path]`): images in mask folders of the folders given, which are no photographs.
        unused (`list[Path]`): other files of the folders given, which are no images by their names.
    """

    output: Path
    num_scored: int = 0
    skipped: list[dict[str, str]] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)
    unused: list[Path] = field(default_factory=list)

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


class _Item(NamedTuple):
    """An image to score: its path in the records, the name of its results, and what reads it."""

    path: str
    name: str
    read: Callable[[], Image.Image]


def find_images(
    inputs: Iterable[str | os.PathLike], output_dir: str | os.PathLike | None = None
) -> tuple[list[tuple[Path, str]], list[dict[str, str]], list[Path]]:
    """List image files, each once, with a name for its results that no other has.

    Args:
        inputs: files, taken whatever they are called, and folders, searched through for image extensions; linked
            folders in them are followed. Hidden files and folders are left out, and so are folders of masks below them
            (`is_mask_folder`).
        output_dir (*optional*): where results go; left out of the search, so that they are never taken for inputs.

    Returns:
        pairs of path and name (relative to the folder given, such as "cut/000.png"), the inputs that hold nothing, and
        the images in folders of masks.

    Raises:
        ValueError: if an input lies in output_dir, or output_dir holds images of its own.
    """
    found = _search(inputs, output_dir)
    return found.files, found.skipped, found.left_out


@dataclass
class _Found:
    files: list[tuple[Path, str]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)
    unused: list[Path] = field(default_factory=list)


def _search(inputs: Iterable[str | os.PathLike], output_dir: str | os.PathLike | None) -> _Found:
    output = os.path.realpath(output_dir) if output_dir is not None else None
    result = _Found()
    found: dict[str, tuple[Path, str]] = {}
    masks: list[Path] = []
    taken: set[str] = set()
    sources = [Path(source) for source in inputs]
    _check_apart(sources, output)
    for source in sources:
        if source.is_dir():
            paths: list[Path] = []
            for path in _walk(source, output, result.skipped):
                (paths if path.suffix.lower() in IMAGE_SUFFIXES else result.unused).append(path)
            files = [(path, path.relative_to(source).as_posix()) for path in paths if not _is_mask(path, source)]
            own_masks = [path for path in paths if _is_mask(path, source)]
            masks += own_masks
            if not files:
                beside = f" beside {len(own_masks)} in folders of masks" if own_masks else ""
                result.skipped.append({"path": str(source), "error": f"the folder holds no image files{beside}"})
        elif os.path.lexists(source):
            files = [(source, source.name)]
        else:
            result.skipped.append({"path": str(source), "error": "no such file or folder"})
            continue
        for path, name in files:
            if (real := os.path.realpath(path)) not in found:
                found[real] = (path, _unique(name, taken))
    result.files = list(found.values())
    result.left_out = list({real: path for path in masks if (real := os.path.realpath(path)) not in found}.values())
    return result


def _is_mask(path: Path, source: Path) -> bool:
    return any(map(is_mask_folder, path.relative_to(source).parts[:-1]))


def _check_apart(sources: list[Path], output: str | None) -> None:
    if output is None:
        return
    for source in sources:
        real = Path(os.path.realpath(source))
        if Path(output) in (real, *real.parents):
            raise ValueError(f"{source} lies in the output folder {output}; choose another output folder")
    if os.path.isdir(output):
        images = [path.name for path in Path(output).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
        if own := sorted(name for name in images if name != LEGEND and name[0] != "."):
            raise ValueError(f"the output folder {output} holds images of its own ({own[0]}); choose another one")


def _walk(folder: Path, output: str | None, skipped: list[dict[str, str]]) -> Iterator[Path]:
    """All files that are not hidden; linked folders are followed, and every folder is met once, so that links that
    run in a circle end."""
    met = {os.path.realpath(folder)}

    def report(error: OSError) -> None:
        skipped.append({"path": str(error.filename), "error": f"can't be listed ({error.strerror})"})

    def is_new(path: str) -> bool:
        real = os.path.realpath(path)
        new = real != output and real not in met
        met.add(real)
        return new

    for root, folders, files in os.walk(folder, onerror=report, followlinks=True):
        folders[:] = [name for name in sorted(folders) if name[0] != "." and is_new(os.path.join(root, name))]
        yield from (Path(root, name) for name in sorted(files) if name[0] != ".")


def _unique(name: str, taken: set[str]) -> str:
    """The name, made safe part by part, and numbered if taken; capitals and ways to write an accent make no
    difference, as on some file systems."""
    name = "/".join(safe_name(part, also=_NAME_CHARACTERS) for part in name.split("/"))
    candidate, number = name, 1
    while (key := unicodedata.normalize("NFC", candidate).casefold()) in taken:
        number += 1
        path = Path(name)
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}").as_posix()
    taken.add(key)
    return candidate


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

    Raises:
        ValueError: if an argument is out of range, or an input lies in the output folder.
        OSError: if the disk is full, or the output folder can't be written to.
    """
    found = _search(inputs, output_dir)
    items = [_Item(str(path), name, partial(_read_file, path)) for path, name in found.files]
    summary = PredictionSummary(Path(output_dir), 0, found.skipped, found.left_out, found.unused)
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "threshold": threshold,
        "save_maps": save_maps,
        "progress": progress,
    }
    return _predict(items, detector, summary, **settings, vmin=vmin, vmax=vmax, alpha=alpha)


def predict_dataset(
    dataset: Any, output_dir: str | os.PathLike, detector: Callable[..., Any], **settings: Any
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
    _check_apart([Path(path) for path in paths if os.path.exists(path)], os.path.realpath(output_dir))
    images = dataset.select_columns(["image"])
    items = [
        _Item(path, _unique(name, taken), partial(lambda place: read_image(images[place]["image"]), index))
        for index, (path, name) in enumerate(zip(paths, _relative_names(paths), strict=True))
    ]
    return _predict(items, detector, PredictionSummary(Path(output_dir)), **settings)


def _relative_names(paths: Sequence[str]) -> list[str]:
    """The paths from the folder that all of them lie in; safe to write below another folder, whatever they hold."""
    split = [[p for p in Path(path.replace("://", "/")).parts if p not in ("/", "\\", "..")] for path in paths]
    folders = [parts[:-1] for parts in split]
    shared = 0
    while folders and all(len(parts) > shared and parts[shared] == folders[0][shared] for parts in folders):
        shared += 1
    return ["/".join(parts[shared:]) or "image" for parts in split]


def _read_file(path: Path) -> Image.Image:
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise ValueError("it is no regular file")
    return read_image(path)


def _predict(
    items: Sequence[_Item],
    detector: Callable[..., Any],
    summary: PredictionSummary,
    *,
    batch_size: int = 1,
    threshold: float | None = None,
    save_maps: str | None = None,
    vmin: float = 0.0,
    vmax: float = 1.0,
    alpha: float = 0.5,
    progress: bool = True,
) -> PredictionSummary:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}, expected 1 or more")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold}, expected a score in [0, 1]")
    if save_maps is not None and save_maps not in MAP_FORMATS:
        raise ValueError(f"save_maps={save_maps!r}, expected one of {MAP_FORMATS}")
    if not (vmin < vmax and math.isfinite(vmin) and math.isfinite(vmax)):
        raise ValueError(f"vmin={vmin}, vmax={vmax}, expected finite values, vmin < vmax")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}, expected a share in [0, 1]")
    settings = {"image_threshold": threshold} if threshold is not None else {}
    writer = _Writer(summary, save_maps, (vmin, vmax, alpha))
    with tqdm(total=len(items), unit="image", disable=not progress) as bar:
        for start in range(0, len(items), batch_size):
            batch = items[start : start + batch_size]
            for item, picture, result in _score(_read(batch, detector, writer), detector, settings, writer):
                writer.write(item, picture, result)
            bar.update(len(batch))
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
        if self.output.is_dir():  # a folder is not made for inputs of which none can be scored
            self._open()

    def write(self, item: _Item, picture: _Picture, result: dict[str, Any]) -> None:
        """Draw and write one image; a fault of this image alone is noted in its place.

        Raises:
            OSError: the disk is full, or the output folder can't be written to.
        """
        record = {"path": item.path, "score": result["score"]}
        if "label" in result:
            record["label"] = result["label"]
        record["overlay"] = f"overlays/{item.name}.png"
        if self.save_maps is not None:
            record["map"] = f"maps/{item.name}.{self.save_maps}"
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
        except Exception as error:
            if is_disk_full(error):
                raise
            self.skip(item, error)
            return
        if not self.summary.num_scored:
            with atomic_path(self.output / LEGEND) as temporary:
                draw_legend(*self.look[:2]).save(temporary)
        self._append(PREDICTIONS, record)
        self.summary.num_scored += 1

    def skip(self, item: _Item, error: Exception) -> None:
        """Note an input that can't be used, and why."""
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        entry = {"path": item.path, "error": text.removesuffix(": ")}
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


def _read(items: Sequence[_Item], detector: Any, writer: _Writer) -> list[tuple[_Item, _Picture]]:
    readable = []
    for item in items:
        try:
            readable.append((item, _prepare(item.read(), detector)))
        except Exception as error:  # decoders raise anything
            writer.skip(item, error)
    return readable


def _prepare(image: Image.Image, detector: Any) -> _Picture:
    """Reduce a very large image, so that memory is bounded; the score stays what it is.

    The model gets the image at its input size, by the processor's own filter, and the map is drawn on a copy whose
    longer side has `MAP_SIDE` pixels.
    """
    if max(image.size) <= MAP_SIDE:
        return _Picture(image, image, False)
    scale = MAP_SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image if image.mode == "RGB" else image.convert("RGB")
    shown = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    processor = getattr(detector, "image_processor", None)
    if processor is None or not processor.do_resize:
        return _Picture(shown, shown, True)
    side = processor.size
    return _Picture(image.resize((side["width"], side["height"]), processor.resample), shown, True)


def _score(
    batch: list[tuple[_Item, _Picture]], detector: Callable[..., Any], settings: dict[str, float], writer: _Writer
) -> Iterator[tuple[_Item, _Picture, dict[str, Any]]]:
    """Score a batch; where that fails, image by image, so that a fault hits the one that has it."""
    if not batch:
        return
    try:
        results = detector([picture.scored for _, picture in batch], batch_size=len(batch), **settings)
    except Exception as error:
        if len(batch) == 1:
            writer.skip(batch[0][0], error)
            return
        for one in batch:
            yield from _score([one], detector, settings, writer)
        return
    for (item, picture), result in zip(batch, results, strict=True):
        yield item, picture, result


def draw_legend(vmin: float, vmax: float, width: int = 320) -> Image.Image:
    """The color scale of a run with its two ends and its middle written below."""
    legend = Image.new("RGB", (width + 40, 52), "white")
    legend.paste(colorize(np.linspace(vmin, vmax, width)[None].repeat(20, axis=0), vmin, vmax), (20, 8))
    draw = ImageDraw.Draw(legend)
    for share, text in ((0.0, f"{vmin:g} normal"), (0.5, f"{(vmin + vmax) / 2:g}"), (1.0, f"{vmax:g} anomalous")):
        x = 20 + share * width - share * draw.textlength(text)
        draw.text((x, 32), text, fill="black")
    return legend


__all__ = ["PredictionSummary", "draw_legend", "find_images", "predict_dataset", "predict_files"]
