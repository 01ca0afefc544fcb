"""Evaluation: scores of a labelled data set on disk, metrics of each class from them, and their mean (section 7).

Work is shared between processes by whole batches, so that each image is scored in the same company, once, whatever
their number: several processes give the numbers of one. What was scored is on disk (`records.py`), so that an
interrupted run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from ..data.files import MAP_FORMATS, check_name, remove_leftovers, safe_name, save_map
from ..prompts_anomalyclip import backbone_fingerprint
from ..scoring.engine import FullDisk, Record, explain, own_share, score_images
from ..scoring.rows import prepare_row
from .baselines import OWN, MethodScorer, score_methods
from .published import add_paper
from .records import ClassRecords, RecordWriter, class_folder, open_folder
from .results import describe_model, versions, write_results
from .samples import make_samples
from .summary import add_rates, judge_class, summarize_classes

if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from .. import AnomalyCLIPModel, AnomalyCLIPProcessor

COLUMNS = ("image", "mask", "label", "class_name", "defect_type", "path")
EXACT_PIXELS = 2**22


@dataclass(frozen=True)
class EvaluationSettings:
    """How a data set is judged.

    Args:
        batch_size: images per forward, 1 or more.
        num_workers: processes that decode images.
        sigma: smoothing of maps in pixels at the model's input size; the processor's own where None.
        map_size: None judges pixels at the model's input size, as the authors do (masks are resized to it);
            "original" at each image's own size; a number at that many pixels square.
        exact: True judges pixels exactly, from whole maps kept on disk class by class (1 MB an image and method at
            518 pixels); False counts them in bins (25 MB a method whatever the number of images, within 1e-4); None
            is exact for small classes, of at most `EXACT_PIXELS` pixels.
        fpr_limit: highest false-positive rate of AUPRO.
        num_bins: bins of the counts.
        save_maps: None, "png" (16 bit, 65535 is 1.0) or "npy" (float32).
        save_every: batches between two writes of records.

    Raises:
        ValueError: a field out of its range.
    """

    batch_size: int = 8
    num_workers: int = 0
    sigma: float | None = None
    map_size: int | str | None = None
    exact: bool | None = None
    fpr_limit: float = 0.3
    num_bins: int = 2**20
    save_maps: str | None = None
    save_every: int = 50

    def __post_init__(self):
        for name in ("batch_size", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}, expected 1 or more")
        size = self.map_size
        if not (size in (None, "original") or (isinstance(size, int) and size >= 1)):
            raise ValueError(f"map_size={size!r}, expected None (the model's input), 'original' or a number of pixels")
        if self.save_maps is not None and self.save_maps not in MAP_FORMATS:
            raise ValueError(f"save_maps={self.save_maps!r}, expected {' or '.join(map(repr, MAP_FORMATS))}")


def evaluate_model(
    model: AnomalyCLIPModel,
    processor: AnomalyCLIPProcessor,
    dataset: datasets.Dataset,
    *,
    methods: Sequence[str] = (OWN,),
    tokenizer: PreTrainedTokenizerBase | None = None,
    accelerator: Accelerator | None = None,
    output_dir: str | os.PathLike | None = None,
    resume: bool = False,
    name: str = "data",
    show_progress: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Judge a model on a labelled data set.

    Args:
        model ([`AnomalyCLIPModel`]), processor ([`AnomalyCLIPProcessor`]).
        dataset (`datasets.Dataset`): from `load_anomaly_dataset`.
        methods: what to judge in one run (see `baselines`); the first one is the result proper.
        tokenizer (*optional*): of the backbone, for baselines; looked for beside the model where absent.
        accelerator (`Accelerator`, *optional*): shares the work between its processes, which all get the result; they
            need a common disk.
        output_dir (*optional*): folder for records and maps; records lie in a temporary folder where absent.
        resume (`bool`): go on from the records of the same run in `output_dir`.
        name (`str`): of the data set, for folders and the progress bar; no path.
        **settings: fields of [`EvaluationSettings`]: `batch_size`, `num_workers`, `sigma`, `map_size`, `exact`,
            `save_maps`, ...

    Returns:
        `mean` (metric to mean over the classes where it is defined), `mean_num_classes` (how many those are),
        `classes` (class to metrics, with `reasons` for NaN), `notes`, counts, `unreadable` (`path` and `error` of each
        image left out because it or its mask can't be read or scored), `methods` (the same of every method),
        `scores` (columns per image) and `curves` (of the first method, per class). Metrics are in [0, 1]. Where maps
        could not be written, `unsaved_maps` says which and why.

    Raises:
        ValueError: no such method or setting, a data set without the columns needed, a name that is a path, no image
            that can be scored.
        OSError: records can't be written, or `FullDisk` sees a full disk.
    """
    chosen = EvaluationSettings(**settings)
    if output_dir is not None:
        check_name(name, "the data set's name")
    table = _read_columns(dataset)
    if chosen.save_maps and output_dir is None:
        raise ValueError(f"save_maps={chosen.save_maps!r} needs output_dir, the folder that maps are written to")
    device = accelerator.device if accelerator is not None else model.device
    scorer = MethodScorer(model.to(device).eval(), methods, tokenizer)
    is_main = accelerator is None or accelerator.is_main_process
    maps = _MapWriter(Path(output_dir, "maps", name)) if output_dir is not None and chosen.save_maps else None
    classes: dict[str, list[int]] = {}
    for index, class_name in enumerate(table["class_name"]):
        classes.setdefault(class_name, []).append(index)
    with _records_folder(output_dir, name, accelerator) as folder:
        if is_main:
            open_folder(folder, _run_key(scorer, processor, table, chosen), resume)
        _wait(accelerator)
        found = {one: ClassRecords(class_folder(folder, one), list(scorer.methods)) for one in classes}
        unfinished = [one for one, records in found.items() if records.load_metrics() is None]
        _wait(accelerator)  # all have read before anyone writes
        with tqdm(total=len(dataset), desc=name, unit="image", disable=not (show_progress and is_main)) as bar:
            bar.update(sum(len(records.indices) + len(records.errors) for records in found.values()))
            for one in unfinished:
                records = found[one]
                writer = RecordWriter(
                    records.folder,
                    records.methods,
                    exact=_is_exact(chosen, len(classes[one]), model.config.image_size),
                    num_bins=chosen.num_bins,
                    fpr_limit=chosen.fpr_limit,
                    shard_size=chosen.save_every * chosen.batch_size,
                )
                remaining = [index for index in classes[one] if index not in {*records.indices, *records.errors}]
                for record in _score(dataset, remaining, scorer, processor, chosen, accelerator):
                    writer.add(record)
                    if maps is not None and record.error is None:
                        maps.write(next(iter(record.result[1].values())), _map_name(record.index, table, chosen))
                    bar.update(1 if accelerator is None else min(accelerator.num_processes, len(dataset) - bar.n))
                writer.flush()
                _wait(accelerator)
                if is_main:
                    records.read()
                    records.save_metrics(judge_class(records, table["label"], chosen.fpr_limit))
        _wait(accelerator)
        for records in found.values():
            records.read()
        parts = {one: (records, records.load_metrics() or {}) for one, records in found.items()}
        _wait(accelerator)  # the folder may be a temporary one
    if not any(records.indices for records in found.values()):
        errors = [error for records in found.values() for error in records.errors.values()]
        raise ValueError(f"{name}: none of its {len(dataset)} images can be scored; the first: {errors[0]}")
    summary = summarize_classes(parts, table, {key: method.title for key, method in scorer.methods.items()})
    if failed := _gather([] if maps is None else maps.failed, accelerator):
        summary["unsaved_maps"] = failed
    return summary


def evaluate_sources(
    model: AnomalyCLIPModel,
    processor: AnomalyCLIPProcessor,
    sources: Mapping[str, datasets.Dataset],
    *,
    methods: Sequence[str] = (OWN,),
    tokenizer: PreTrainedTokenizerBase | None = None,
    accelerator: Accelerator | None = None,
    output_dir: str | os.PathLike | None = None,
    resume: bool = False,
    show_progress: bool = True,
    num_pictures: int = 6,
    thresholds: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Judge a model on several data sets, and write what `results.write_results` writes into `output_dir`.

    Args:
        sources: name to data set; names of `LAYOUTS` get the paper's numbers beside ours.
        num_pictures: misses, false alarms and samples of each data set in the report.
        thresholds: how the model's thresholds were chosen, for the record; its `warning` is noted at the data sets
            named in `judged_images_of`.
        others: as in [`evaluate_model`].

    Returns:
        `datasets` (name to the result of [`evaluate_model`], with `title` and `paper`), `model`, `versions`,
        `settings` and, where there is such a thing, `not_drawn`: pictures and maps that failed, and why.
    """
    if not sources:
        raise ValueError("sources is empty, expected at least one data set")
    is_main = accelerator is None or accelerator.is_main_process
    if output_dir is not None and is_main:
        remove_leftovers(output_dir, "records", "maps")
    shared: dict[str, Any] = {"methods": methods, "tokenizer": tokenizer, "accelerator": accelerator, **settings}
    shared |= {"output_dir": output_dir, "resume": resume, "show_progress": show_progress}
    entries: dict[str, dict[str, Any]] = {}
    for name, dataset in sources.items():
        entries[name] = evaluate_model(model, processor, dataset, name=name, **shared)
        add_paper(entries[name], name)
        add_rates(entries[name], model.config.image_threshold)
    chosen = EvaluationSettings(**settings)
    sigma = getattr(processor, "sigma", None) if chosen.sigma is None else chosen.sigma
    result: dict[str, Any] = {
        "datasets": entries,
        "model": describe_model(model),
        "versions": versions(),
        "settings": {**asdict(chosen), "sigma": sigma, "methods": list(methods)},
    }
    if thresholds is not None:
        result["thresholds"] = dict(thresholds)
        for name in thresholds.get("judged_images_of", ()):
            entries[name]["notes"].append(thresholds["warning"])
    if output_dir is not None and is_main:
        pictures, not_drawn = make_samples(
            model, processor, sources, result, num_pictures, methods[0], tokenizer, chosen.sigma
        )
        threshold = model.config.pixel_threshold
        write_results(result, output_dir, pictures, pixel_threshold=threshold, not_drawn=not_drawn)
        not_drawn += [line for entry in entries.values() for line in entry.get("unsaved_maps", ())]
        if not_drawn:
            result["not_drawn"] = not_drawn
    _wait(accelerator)
    return result


def _score(
    dataset: datasets.Dataset,
    indices: list[int],
    scorer: MethodScorer,
    processor: AnomalyCLIPProcessor,
    settings: EvaluationSettings,
    accelerator: Accelerator | None,
) -> Iterator[Record]:
    """Score this process's share of the images of one class."""
    process = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    return score_images(
        dataset,
        partial(prepare_row, processor=processor, map_size=settings.map_size),
        partial(score_methods, scorer, processor, sigma=settings.sigma, map_size=settings.map_size),
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        indices=own_share(indices, settings.batch_size, *process),
    )


def _read_columns(dataset: datasets.Dataset) -> dict[str, list]:
    """All columns but the pictures."""
    names = getattr(dataset, "column_names", None)
    if names is None or not hasattr(dataset, "__len__"):
        raise ValueError(
            f"dataset is a {type(dataset).__name__}, expected what load_anomaly_dataset(...) gives without streaming: "
            "classes are judged one after another, which a stream does not allow"
        )
    if missing := [name for name in COLUMNS if name not in names]:
        raise ValueError(f"the data set lacks the columns {missing}; load it with load_anomaly_dataset")
    if len(dataset) == 0:
        raise ValueError("the data set is empty: nothing to evaluate")
    table = {name: list(dataset[name]) for name in COLUMNS[2:]}
    table["label"] = [label if label in (0, 1) else None for label in table["label"]]
    table["class_name"] = [str(name) for name in table["class_name"]]
    return table


def _is_exact(settings: EvaluationSettings, num_images: int, input_size: int) -> bool:
    side = settings.map_size or input_size
    if settings.exact is not None:
        return settings.exact
    return isinstance(side, int) and num_images * side**2 <= EXACT_PIXELS


class _MapWriter:
    """Writes maps below a folder; `failed` lists those that could not be written, and why."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.failed: list[str] = []
        self._full_disk = FullDisk()

    def write(self, anomaly_map: np.ndarray, name: str) -> None:
        try:
            save_map(anomaly_map, self.folder / name)
        except Exception as error:
            self.failed.append(f"map {name} ({explain(error)})")
            self._full_disk.note(error)
        else:
            self._full_disk.clear()


def _gather(lines: list[str], accelerator: Accelerator | None) -> list[str]:
    """The lines of all processes."""
    if accelerator is None or accelerator.num_processes == 1:
        return lines
    from accelerate.utils import gather_object

    return gather_object(lines)


def _map_name(index: int, table: Mapping[str, list], settings: EvaluationSettings) -> str:
    """Where the map of an image lies below `maps/<data set>`: `<class>/<defect>/<index>_<stem>.png`."""
    stem = Path(str(table["path"][index])).stem or "image"
    kind = safe_name(str(table["defect_type"][index] or "unknown"))
    return f"{safe_name(table['class_name'][index])}/{kind}/{index:06d}_{safe_name(stem)}.{settings.save_maps}"


@contextmanager
def _records_folder(
    output_dir: str | os.PathLike | None, name: str, accelerator: Accelerator | None
) -> Iterator[Path]:
    """The folder of a data set's records, a temporary one where there is no folder for results."""
    if output_dir is not None:
        yield Path(output_dir, "records", name)
        return
    with tempfile.TemporaryDirectory(prefix="anomalyclip-") as folder:
        if accelerator is None or accelerator.num_processes == 1:
            yield Path(folder)
            return
        from accelerate.utils import broadcast_object_list

        yield Path(broadcast_object_list([folder])[0])


def _wait(accelerator: Accelerator | None) -> None:
    if accelerator is not None:
        accelerator.wait_for_everyone()


def _run_key(
    scorer: MethodScorer, processor: AnomalyCLIPProcessor, table: dict[str, list], settings: EvaluationSettings
) -> str:
    """Digest of all that decides the numbers, so that the records of another run are never taken up."""
    model = scorer.model
    judged = asdict(replace(settings, num_workers=0, save_every=1))
    facts = [judged, table, list(scorer.methods), processor.to_dict(), str(model.dtype)]
    ignored = ("_name_or_path", "transformers_version", "image_threshold", "pixel_threshold", "thresholds_for")
    facts.append({key: value for key, value in model.config.to_dict().items() if key not in ignored})
    if model.references is not None:
        facts.append([model.references.weight, model.references.layers])
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    fingerprint = backbone_fingerprint(model)
    learned = [] if model.config.vision_only else [p.detach() for p in model.prompt_learner.parameters()]
    if model.references is not None:
        learned.append(model.references.features)
    for tensor in [*learned, *([] if fingerprint is None else [fingerprint])]:
        digest.update(tensor.cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
