"""Scoring files, folders and data sets: one JSON line and one heat map for each image, unreadable ones reported."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

from ..data.file_tree import IMAGE_SUFFIXES, is_mask_folder
from ..pipeline_anomalyclip import read_image
from .files import MAP_FORMATS, atomic_path, save_map
from .visualization import colorize, overlay

PREDICTIONS, SKIPPED, LEGEND = "predictions.jsonl", "skipped.jsonl", "legend.png"


@dataclass
class PredictionSummary:
    """What [`predict_files`] or [`predict_dataset`] did.

    Args:
        predictions (`list[dict]`): the lines of predictions.jsonl.
        skipped (`list[dict]`): `path` and `error` of each input that could not be used.
        left_out (`list[Path]`): images in mask folders of the folders given, which are no photographs.
    """

    predictions: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """0 = everything was scored, 1 = something was skipped, 2 = nothing was scored."""
        return 2 if not self.predictions else 1 if self.skipped else 0


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
        inputs: files, taken whatever they are called, and folders, searched through for image extensions. Hidden files
            and folders are left out, and so are folders of masks below them (`is_mask_folder`).
        output_dir (*optional*): where results go; left out of the search, so that they are never taken for inputs.

    Returns:
        pairs of path and name (relative to the folder given, such as "cut/000.png"), the inputs that hold nothing, and
        the images in folders of masks.

    Raises:
        ValueError: if an input lies in output_dir, or output_dir holds images of its own.
    """
    output = Path(output_dir).resolve() if output_dir is not None else None
    found: dict[Path, tuple[Path, str]] = {}
    taken: set[str] = set()
    skipped: list[dict[str, str]] = []
    masks: list[Path] = []
    sources = [Path(source) for source in inputs]
    _check_apart(sources, output)
    for source in sources:
        if source.is_dir():
            paths = list(_walk(source, output, skipped))
            files = [(path, path.relative_to(source).as_posix()) for path in paths if not _is_mask(path, source)]
            own_masks = [path for path in paths if _is_mask(path, source)]
            masks += own_masks
            if not files:
                beside = f" beside {len(own_masks)} in folders of masks" if own_masks else ""
                skipped.append({"path": str(source), "error": f"the folder holds no image files{beside}"})
        elif source.exists():
            files = [(source, source.name)]
        else:
            skipped.append({"path": str(source), "error": "no such file or folder"})
            continue
        for path, name in files:
            if path.resolve() not in found:
                found[path.resolve()] = (path, _unique(name, taken))
    left_out = {path.resolve(): path for path in masks if path.resolve() not in found}
    return list(found.values()), skipped, list(left_out.values())


def _is_mask(path: Path, source: Path) -> bool:
    return any(map(is_mask_folder, path.relative_to(source).parts[:-1]))


def _check_apart(sources: list[Path], output: Path | None) -> None:
    if output is None:
        return
    for source in sources:
        if output in (source.resolve(), *source.resolve().parents):
            raise ValueError(f"{source} lies in the output folder {output}; choose another output folder")
    if output.is_dir():
        images = [path.name for path in output.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
        if own := sorted(name for name in images if name != LEGEND and name[0] != "."):
            raise ValueError(f"the output folder {output} holds images of its own ({own[0]}); choose another one")


def _walk(folder: Path, output: Path | None, skipped: list[dict[str, str]]) -> Iterator[Path]:
    def report(error: OSError) -> None:
        skipped.append({"path": str(error.filename), "error": f"can't be listed ({error.strerror})"})

    for root, folders, files in os.walk(folder, onerror=report):
        folders[:] = sorted(name for name in folders if name[0] != "." and Path(root, name).resolve() != output)
        for name in sorted(files):
            if name[0] != "." and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(root, name)


def _unique(name: str, taken: set[str]) -> str:
    """The name, numbered if taken; capitals don't make a difference, as on some file systems."""
    candidate, number = name, 1
    while candidate.lower() in taken:
        number += 1
        path = Path(name)
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}").as_posix()
    taken.add(candidate.lower())
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

    Every file appears complete or not at all. All heat maps of a run have one color scale, shown in `legend.png`.

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
    """
    files, skipped, left_out = find_images(inputs, output_dir)
    items = [_Item(str(path), name, partial(read_image, path)) for path, name in files]
    summary = PredictionSummary(skipped=skipped, left_out=left_out)
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "threshold": threshold,
        "save_maps": save_maps,
        "progress": progress,
    }
    return _predict(items, Path(output_dir), detector, summary, **settings, vmin=vmin, vmax=vmax, alpha=alpha)


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
    output, taken = Path(output_dir), set[str]()
    paths = [str(path) for path in dataset["path"]]
    _check_apart([Path(path) for path in paths if os.path.exists(path)], output.resolve())
    images = dataset.select_columns(["image"])
    items = [
        _Item(path, _unique(name, taken), partial(lambda place: images[place]["image"], index))
        for index, (path, name) in enumerate(zip(paths, _relative_names(paths), strict=True))
    ]
    return _predict(items, output, detector, PredictionSummary(), **settings)


def _relative_names(paths: Sequence[str]) -> list[str]:
    """The paths from the folder that all of them lie in; safe to write below another folder, whatever they hold."""
    split = [[p for p in Path(path.replace("://", "/")).parts if p not in ("/", "\\", "..")] for path in paths]
    folders = [parts[:-1] for parts in split]
    shared = 0
    while folders and all(len(parts) > shared and parts[shared] == folders[0][shared] for parts in folders):
        shared += 1
    return ["/".join(parts[shared:]) or "image" for parts in split]


def _predict(
    items: Sequence[_Item],
    output: Path,
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
    if not vmin < vmax:
        raise ValueError(f"vmin={vmin}, vmax={vmax}, expected vmin < vmax")
    settings = {"image_threshold": threshold} if threshold is not None else {}
    try:
        _predict_batches(
            items, output, detector, summary, settings, batch_size, save_maps, (vmin, vmax, alpha), progress
        )
    finally:  # also what was scored before an interruption
        if summary.predictions:
            with atomic_path(output / LEGEND) as temporary:
                draw_legend(vmin, vmax).save(temporary)
        if summary.predictions or output.is_dir():
            _write_lines(output / PREDICTIONS, summary.predictions)
            _write_lines(output / SKIPPED, summary.skipped)
    return summary


def _predict_batches(
    items: Sequence[_Item],
    output: Path,
    detector: Any,
    summary: PredictionSummary,
    settings: dict[str, float],
    batch_size: int,
    save_maps: str | None,
    look: tuple[float, float, float],
    progress: bool,
) -> None:
    """Score items batch by batch, write overlays and maps, and note everything in `summary`; `look` is the overlays'
    lowest and highest value and opacity."""
    with tqdm(total=len(items), unit="image", disable=not progress) as bar:
        for start in range(0, len(items), batch_size):
            batch = _read(items[start : start + batch_size], summary.skipped)
            images = [image for _, image in batch]
            results = detector(images, batch_size=batch_size, **settings) if images else []
            for (item, image), result in zip(batch, results, strict=True):
                record = {"path": item.path, "score": result["score"]}
                if "label" in result:
                    record["label"] = result["label"]
                picture = overlay(image, result["anomaly_map"], *look)
                with atomic_path(output / "overlays" / f"{item.name}.png") as temporary:
                    picture.save(temporary)
                record["overlay"] = f"overlays/{item.name}.png"
                if save_maps is not None:
                    record["map"] = f"maps/{item.name}.{save_maps}"
                    save_map(result["anomaly_map"], output / record["map"])
                summary.predictions.append(record)
            bar.update(min(batch_size, len(items) - start))


def _read(items: Sequence[_Item], skipped: list[dict[str, str]]) -> list[tuple[_Item, Image.Image]]:
    readable = []
    for item in items:
        try:
            readable.append((item, item.read()))
        except (ValueError, MemoryError) as error:
            skipped.append({"path": item.path, "error": str(error)})
    return readable


def _write_lines(path: Path, records: list[dict]) -> None:
    """One JSON object a line; no file where there is nothing to say."""
    if not records:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary:
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


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
