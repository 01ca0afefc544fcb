"""Evaluation: scores of a labelled data set on disk, metrics of each class from them, and their mean (section 7).

Each step is a function of what the one before it left: `score_class` writes records, `summary.judge_method` makes the
metrics of a method of them, `summarize_classes` the result of a data set, `write_results` tables and a report.

Work is shared between processes by whole batches, so that each image is scored in the same company, once, whatever
their number: several processes give the numbers of one. What was scored is on disk (`records.py`), so that an
interrupted run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from ..data.files import MAP_SUFFIXES, check_name, remove_leftovers, safe_name, save_map
from ..scoring.engine import FullDisk, OneProcess, Record, explain, own_share, score_images
from ..scoring.mutual import MutualJudge, blocks_of, judge_block
from ..scoring.rows import digest_model, prepare_row, processor_for, resizing_of
from .baselines import MUTUAL, OWN, Method, MethodScorer, other_processors, score_methods
from .published import add_paper
from .records import ClassRecords, RecordWriter, class_folder, open_folder
from .report import make_samples
from .results import describe_model, versions, write_results
from .settings import EXACT_PIXELS, EvaluationSettings
from .summary import add_rates, judge_class, summarize_classes

if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator
    from PIL import Image
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from .. import AnomalyCLIPModel, AnomalyCLIPProcessor
    from ..sharing.references import References

__all__ = ["COLUMNS", "EXACT_PIXELS", "EvaluationSettings", "evaluate_model", "evaluate_sources", "score_class"]
COLUMNS = ("image", "mask", "label", "class_name", "defect_type", "path")


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
    """Judge a model on a labelled data set, whole images of it.

    Where a profile is set on the model, its prompts, references, thresholds, smoothing, rule of scores and way of
    resizing are used, while its region of interest, `min_area`, `window` and `channels` are not.

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
    chosen = EvaluationSettings(**settings).with_those_of(model)
    processor = processor_for(model, processor)
    if processor.resize != "square" and chosen.map_size is None:
        chosen = replace(chosen, map_size="original")
    if output_dir is not None:
        check_name(name, "the data set's name")
    elif chosen.save_maps:
        raise ValueError(f"save_maps={chosen.save_maps!r} needs output_dir, the folder that maps are written to")
    table = _read_columns(dataset)
    processes = accelerator or OneProcess()
    model = model.to(accelerator.device if accelerator else model.device).eval()
    scorer = MethodScorer(model, methods, tokenizer, chosen.draws)
    if processor.resize != "square" and (bad := [n for n, one in scorer.methods.items() if one.mutual or one.resize]):
        raise ValueError(f"{', '.join(bad)} can't be judged beside images that aren't squares: leave resize='square'")
    write_map = _MapWriter(Path(output_dir or "", "maps", name), table, chosen.save_maps)
    with _records_folder(output_dir, name, processes) as folder:
        if processes.is_main_process:
            open_folder(folder, _run_key(scorer, processor, table, chosen), resume)
        processes.wait_for_everyone()
        quiet = not (show_progress and processes.is_main_process)
        with tqdm(total=len(dataset), desc=name, unit="image", disable=quiet) as bar:
            found = _judge_classes(dataset, table, folder, scorer, processor, chosen, processes, bar, write_map)
        judged = {one: records.load_metrics() or {} for one, records in found.items()}
        processes.wait_for_everyone()  # the folder may be a temporary one
    if not any(records.indices for records in found.values()):
        errors = [error for records in found.values() for error in records.errors.values()]
        raise ValueError(f"{name}: none of its {len(dataset)} images can be scored; the first: {errors[0]}")
    summary = summarize_classes(found, judged, table, scorer.reported)
    if any(method.references for method in scorer.methods.values()):
        summary["notes"].append(
            f"references: good images of each class itself, drawn {chosen.draws} times and not judged then; ± is the "
            "standard deviation over draws"
        )
    if MUTUAL in methods:
        summary["notes"].append(f"{MUTUAL}: images of a class judge one another, so these are no zero-shot figures")
    failed = write_map.failed
    if processes.num_processes > 1:
        from accelerate.utils import gather_object

        failed = gather_object(failed)
    return summary | ({"unsaved_maps": failed} if failed else {})


def _judge_classes(
    dataset: datasets.Dataset,
    table: Mapping[str, list],
    folder: Path,
    scorer: MethodScorer,
    processor: AnomalyCLIPProcessor,
    settings: EvaluationSettings,
    processes: Accelerator | OneProcess,
    bar: tqdm,
    write_map: Callable[[Record], None],
) -> dict[str, ClassRecords]:
    """Score what has no record in the folder yet, and keep the metrics of each class; its records by its name."""
    classes: dict[str, list[int]] = {}
    for index, class_name in enumerate(table["class_name"]):
        classes.setdefault(class_name, []).append(index)
    found = {one: ClassRecords(class_folder(folder, one), list(scorer.methods)) for one in classes}
    unfinished = [one for one, records in found.items() if records.load_metrics() is None]
    processes.wait_for_everyone()  # all have read before anyone writes
    bar.update(sum(len(records.indices) + len(records.errors) for records in found.values()))

    def note(record: Record) -> None:
        bar.update(min(processes.num_processes, len(dataset) - bar.n))
        write_map(record)

    for one in unfinished:
        good = [index for index in classes[one] if table["label"][index] == 0]
        score_class(dataset, classes[one], good, found[one], scorer, processor, settings, processes, note)
        processes.wait_for_everyone()
        if processes.is_main_process:
            found[one].read()
            found[one].save_metrics(judge_class(found[one], table, settings))
    processes.wait_for_everyone()
    for records in found.values():
        records.read()
    return found


def score_class(
    dataset: datasets.Dataset,
    indices: Sequence[int],
    good: Sequence[int],
    records: ClassRecords,
    scorer: MethodScorer,
    processor: AnomalyCLIPProcessor,
    settings: EvaluationSettings,
    processes: Accelerator | OneProcess,
    note: Callable[[Record], None],
) -> None:
    """Score a process's share of the images of one class that have no record yet, and write their records.

    Positions are those of the class's images in the data set, and of its `good` ones, which references are drawn from;
    `note` is called with each record.
    """
    done = {*records.indices, *records.errors}
    remaining = [index for index in indices if index not in done]
    if not remaining:
        return
    exact = settings.is_exact(len(indices), scorer.model.config.image_size)
    writer = RecordWriter(records.folder, records.methods, settings, exact)
    others = other_processors(scorer, processor)
    prepare = partial(prepare_row, processor=processor, map_size=settings.map_size)
    loading: dict[str, Any] = {"batch_size": settings.batch_size, "num_workers": settings.num_workers}
    scorer.references, drawn = draw_references(scorer.model, processor, dataset, good, scorer.methods)
    judge = MutualJudge(scorer.model, processor, sigma=settings.sigma)
    known: dict[int, Tensor] = {}
    if MUTUAL in scorer.methods:  # of whole blocks, in each process
        for positions in blocks_of(indices):
            judged = judge_block(
                dataset,
                prepare,
                lambda rows: judge.describe([row.view.pixel_values for row in rows]),
                positions,
                scorer.model.device,
                **loading,
            )
            known |= {one.index: one.result for one in judged if one.error is None}
    for record in score_images(
        dataset,
        partial(prepare, others=others),
        partial(score_methods, scorer, processor, sigma=settings.sigma, map_size=settings.map_size, others=others),
        indices=own_share(remaining, settings.batch_size, processes.process_index, processes.num_processes),
        pin_memory=scorer.model.device.type == "cuda",
        **loading,
    ):
        if record.error is None:
            scores, maps = record.result
            for name in [name for name, chosen in drawn.items() if record.index in chosen]:
                del scores[name], maps[name]
            if record.index in known:
                found = judge.finish(next(iter(maps.values())).shape, known[record.index])
                scores[MUTUAL], maps[MUTUAL] = found["score"], found["anomaly_map"]
        writer.add(record)
        note(record)
    writer.flush()


def draw_references(
    model: AnomalyCLIPModel,
    processor: AnomalyCLIPProcessor,
    dataset: datasets.Dataset,
    good: Sequence[int],
    methods: Mapping[str, Method],
) -> tuple[dict[str, References], dict[str, set[int]]]:
    """Draw references from the good images of a class.

    Each draw has an order of its own, decided by its number alone: the references of a smaller number are among those
    of a larger one. Images that can't be read are passed over.

    Args:
        good: positions of the normal images of the class.

    Returns:
        name to references, and to their positions; of the methods that leave good images to be judged.
    """
    found: dict[str, References] = {}
    drawn: dict[str, set[int]] = {}
    weight = None if model.references is None else model.references.weight
    for name, method in methods.items():
        order = np.random.default_rng([method.draw]).permutation(good).tolist()
        if 0 < method.references < len(good):
            chosen = dict(islice(_readable(dataset, order), method.references))
            images = list(chosen.values())
            found[name] = model.make_references(images, processor=processor, reference_weight=weight, batch_size=1)
            drawn[name] = set(chosen)
    return found, drawn


def _readable(dataset: datasets.Dataset, order: Sequence[int]) -> Iterator[tuple[int, Image.Image]]:
    for index in order:
        try:
            yield index, dataset[index]["image"]
        except Exception:  # decoders raise anything; the scoring loop reports it
            continue


def evaluate_sources(
    model: AnomalyCLIPModel,
    processor: AnomalyCLIPProcessor,
    sources: Mapping[str, datasets.Dataset],
    *,
    methods: Sequence[str] = (OWN,),
    tokenizer: PreTrainedTokenizerBase | None = None,
    accelerator: Accelerator | None = None,
    output_dir: str | os.PathLike | None = None,
    num_pictures: int = 6,
    thresholds: Mapping[str, Any] | None = None,
    resume: bool = False,
    show_progress: bool = True,
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
    processes = accelerator or OneProcess()
    if output_dir is not None and processes.is_main_process:
        remove_leftovers(output_dir, "records", "maps")
    chosen = EvaluationSettings(**settings).with_those_of(model)
    processor = processor_for(model, processor)
    shared: dict[str, Any] = {"methods": methods, "tokenizer": tokenizer, "accelerator": accelerator, **asdict(chosen)}
    shared |= {"output_dir": output_dir, "resume": resume, "show_progress": show_progress}
    entries: dict[str, dict[str, Any]] = {}
    for name, dataset in sources.items():
        entries[name] = evaluate_model(model, processor, dataset, name=name, **shared)
        add_paper(entries[name], name)
        add_rates(entries[name], chosen.image_threshold)
    sigma = getattr(processor, "sigma", None) if chosen.sigma is None else chosen.sigma
    result: dict[str, Any] = {
        "datasets": entries,
        "model": describe_model(model),
        "versions": versions(),
        "settings": {**asdict(chosen), "sigma": sigma, "methods": list(methods), **resizing_of(processor)},
    }
    if thresholds is not None:
        result["thresholds"] = dict(thresholds)
        for name in thresholds.get("judged_images_of", ()):
            entries[name]["notes"].append(thresholds["warning"])
    if output_dir is not None and processes.is_main_process:
        scorer = MethodScorer(model.eval(), methods[:1], tokenizer)
        pictures, not_drawn = make_samples(scorer, processor, sources, result, num_pictures, chosen.sigma)
        not_drawn += write_results(result, output_dir, pictures, chosen.pixel_threshold)
        not_drawn += [line for entry in entries.values() for line in entry.get("unsaved_maps", ())]
        if not_drawn:
            result["not_drawn"] = not_drawn
    processes.wait_for_everyone()
    return result


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


class _MapWriter:
    """Writes maps of the first method, if they are wanted (`kind` of `MAP_SUFFIXES`); `failed` lists those that could
    not be written."""

    def __init__(self, folder: Path, table: Mapping[str, list], kind: str | None):
        self.folder, self.table, self.kind = folder, table, kind
        self.failed: list[str] = []
        self._full_disk = FullDisk()

    def __call__(self, record: Record) -> None:
        """Write the map of an image as `<class>/<defect>/<index>_<stem>`."""
        if self.kind is None or record.error is not None:
            return
        class_name, defect, path = (str(self.table[name][record.index] or "") for name in COLUMNS[3:])
        name = f"{record.index:06d}_{safe_name(Path(path).stem or 'image')}{MAP_SUFFIXES[self.kind]}"
        name = f"{safe_name(class_name)}/{safe_name(defect or 'unknown')}/{name}"
        try:
            save_map(next(iter(record.result[1].values())), self.folder / name)
        except Exception as error:
            self.failed.append(f"map {name} ({explain(error)})")
            self._full_disk.note(error)
        else:
            self._full_disk.clear()


@contextmanager
def _records_folder(
    output_dir: str | os.PathLike | None, name: str, processes: Accelerator | OneProcess
) -> Iterator[Path]:
    """The folder of a data set's records, a temporary one where there is no folder for results."""
    if output_dir is not None:
        yield Path(output_dir, "records", name)
        return
    with tempfile.TemporaryDirectory(prefix="anomalyclip-") as folder:
        if processes.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            folder = broadcast_object_list([folder])[0]
        yield Path(folder)


def _run_key(
    scorer: MethodScorer, processor: AnomalyCLIPProcessor, table: dict[str, list], settings: EvaluationSettings
) -> str:
    """Digest of all that decides the numbers, so that the records of another run are never taken up."""
    judged = asdict(replace(settings, num_workers=0, save_every=1))
    facts = ["records 2", judged, table, list(scorer.methods), digest_model(scorer.model, processor)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
