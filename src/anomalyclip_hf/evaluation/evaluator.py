"""The evaluator: scores a labelled data set class by class, and gives metrics per class and their mean (section 7).

Work is shared between processes by whole batches, so that each image is scored in the same company, once, whatever
their number: several processes give the numbers of one. Long runs can be interrupted: with a folder for progress,
finished classes are kept, and within a class what was counted so far.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..data.files import MAP_FORMATS, check_name, remove_leftovers, safe_name, save_map
from ..data.loader import collate_samples, make_loader
from .baselines import OWN, MethodScorer
from .progress import Progress, run_key
from .results import add_paper, add_rates, describe_model, mean_over_classes, versions, write_results
from .tally import ClassTally
from .visualization import Sample, resize_mask, to_rgb, worst_false_alarms, worst_misses

if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator

    from .. import AnomalyCLIPModel, AnomalyCLIPProcessor

COLUMNS = ("image", "mask", "label", "class_name", "defect_type", "path")
EXACT_PIXELS = 2**22
MAX_SHOWN = 1024  # longer side of pictures in a report, in pixels


@dataclass(frozen=True)
class EvaluationSettings:
    """How a data set is judged.

    Args:
        batch_size: images per forward, 1 or more.
        num_workers: processes that decode images.
        sigma: smoothing of maps in pixels at the model's input size; the processor's own where None.
        map_size: None judges pixels at the model's input size, as the authors do (masks are resized to it);
            "original" at each image's own size; a number at that many pixels square.
        exact: True judges pixels exactly, from whole maps kept in memory class by class (1 MB an image and method at
            518 pixels); False counts them in bins (25 MB a method whatever the number of images, within 1e-4); None
            is exact for small classes, of at most `EXACT_PIXELS` pixels.
        fpr_limit: highest false-positive rate of AUPRO.
        num_bins: bins of the counts.
        save_maps: None, "png" (16 bit, 65535 is 1.0) or "npy" (float32).
        save_every: batches between two saves of progress.

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
    tokenizer: Any = None,
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
        accelerator (`Accelerator`, *optional*): shares the work between its processes, which all get the result.
        output_dir (*optional*): folder for progress and maps.
        resume (`bool`): take up progress of the same run in `output_dir`.
        name (`str`): of the data set, for folders and the progress bar; no path.
        **settings: fields of [`EvaluationSettings`]: `batch_size`, `num_workers`, `sigma`, `map_size`, `exact`,
            `save_maps`, ...

    Returns:
        `mean` (metric to mean over the classes where it is defined), `mean_num_classes` (how many those are),
        `classes` (class to metrics, with `reasons` for NaN), `notes`, counts, `unreadable` (`path` and `error` of each
        image left out because it or its mask can't be read), `methods` (the same of every method),
        `scores` (columns per image) and `curves` (of the first method, per class). Metrics are in [0, 1].

    Raises:
        ValueError: no such method or setting, a data set without the columns needed, a name that is a path, NaN
            scores, no readable image.
    """
    chosen = EvaluationSettings(**settings)
    if output_dir is not None:
        check_name(name, "the data set's name")
    table = _read_columns(dataset)
    if chosen.save_maps and output_dir is None:
        raise ValueError(f"save_maps={chosen.save_maps!r} needs output_dir, the folder that maps are written to")
    device = accelerator.device if accelerator is not None else model.device
    scorer = MethodScorer(model.to(device).eval(), methods, tokenizer)
    run = _Run(scorer, processor, dataset, table, chosen, accelerator, output_dir, name)
    run.progress.prepare(resume)
    parts: dict[str, dict[str, Any]] = {}
    total = len(table["class_name"])
    with tqdm(total=total, desc=name, unit="image", disable=not (show_progress and run.is_main)) as bar:
        for class_name, indices in _classes(table).items():
            part = run.progress.load_class(class_name) if resume else None
            part = part or run.judge_class(class_name, indices, bar, resume)
            parts[class_name] = part
            bar.update(sum(len(one["indices"]) + len(one["unreadable"]) for one in parts.values()) - bar.n)
    if not any(part["indices"] for part in parts.values()):
        errors = [error for part in parts.values() for _, error in part["unreadable"]]
        raise ValueError(f"{name}: none of its {total} images can be read; the first: {errors[0]}")
    return _summarize(parts, table, scorer)


def evaluate_sources(
    model: AnomalyCLIPModel,
    processor: AnomalyCLIPProcessor,
    sources: Mapping[str, datasets.Dataset],
    *,
    methods: Sequence[str] = (OWN,),
    tokenizer: Any = None,
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
        `settings` and, where there is such a thing, `not_drawn`: pictures that failed, and why.
    """
    if not sources:
        raise ValueError("sources is empty, expected at least one data set")
    is_main = accelerator is None or accelerator.is_main_process
    if output_dir is not None and is_main:
        remove_leftovers(output_dir, "progress", "maps")
    entries: dict[str, dict[str, Any]] = {}
    for name, dataset in sources.items():
        entries[name] = evaluate_model(
            model,
            processor,
            dataset,
            methods=methods,
            tokenizer=tokenizer,
            accelerator=accelerator,
            output_dir=output_dir,
            resume=resume,
            name=name,
            show_progress=show_progress,
            **settings,
        )
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
        not_drawn: list[str] = []
        pictures = make_samples(
            model, processor, sources, result, num_pictures, methods[0], tokenizer, chosen, not_drawn
        )
        threshold = model.config.pixel_threshold
        write_results(result, output_dir, pictures, pixel_threshold=threshold, not_drawn=not_drawn)
        if not_drawn:
            result["not_drawn"] = not_drawn
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return result


class _Run:
    """One data set being judged by one process."""

    def __init__(self, scorer, processor, dataset, table, settings, accelerator, output_dir, name):
        self.scorer, self.processor, self.dataset, self.table = scorer, processor, dataset, table
        self.settings, self.accelerator = settings, accelerator
        self.rank = accelerator.process_index if accelerator is not None else 0
        self.world = accelerator.num_processes if accelerator is not None else 1
        self.is_main = self.rank == 0
        self.maps_dir = Path(output_dir, "maps", name) if output_dir is not None and settings.save_maps else None
        folder = Path(output_dir, "progress", name) if output_dir is not None else None
        judged = asdict(replace(settings, num_workers=0, save_every=1))
        self.progress = Progress(folder, run_key(scorer, processor, table, judged), accelerator)

    def judge_class(self, class_name: str, indices: list[int], bar: tqdm, resume: bool) -> dict[str, Any]:
        """Score the images of a class and compute its metrics; every process gets them."""
        size = self.settings.batch_size
        batches = [indices[start : start + size] for start in range(0, len(indices), size)][self.rank :: self.world]
        tally = self._new_tally(len(indices))
        done = self.progress.load_tally(tally, class_name) if resume else 0
        remaining = batches[done:]
        start = bar.n
        for number, (own, batch) in enumerate(zip(remaining, self._load(remaining), strict=True), start=done + 1):
            self._add(tally, own, batch, class_name)
            bar.update(min(len(own) * self.world, start + len(indices) - bar.n))
            if number % self.settings.save_every == 0 and number < len(batches):
                self.progress.save_tally(tally, class_name, number)
        part = self._gather(tally, len(indices))
        self.progress.save_class(class_name, part)
        return part

    def _new_tally(self, num_images: int) -> ClassTally:
        settings = self.settings
        exact = settings.exact
        if exact is None:
            side = settings.map_size or self.scorer.model.config.image_size
            exact = isinstance(side, int) and num_images * side**2 <= EXACT_PIXELS
        return ClassTally(list(self.scorer.methods), exact, settings.num_bins, settings.fpr_limit)

    def _load(self, batches: list[list[int]]) -> Iterator[dict[str, Any]]:
        if not batches:
            return iter(())
        return iter(
            make_loader(
                self.dataset,
                self.processor,
                self.settings.batch_size,
                self.settings.num_workers,
                sampler=[index for batch in batches for index in batch],
                keep_masks=self.settings.map_size is not None,
                skip_unreadable=True,
            )
        )

    def _add(self, tally: ClassTally, indices: list[int], batch: dict[str, Any], class_name: str) -> None:
        unreadable = dict(batch["unreadable"])
        tally.unreadable |= {indices[place]: error for place, error in unreadable.items()}
        indices = [index for place, index in enumerate(indices) if place not in unreadable]
        if not indices:
            return
        scores, maps = score_batch(self.scorer, self.processor, batch, class_name, self.settings)
        tally.add(indices, scores, maps, truth_of(batch, self.settings.map_size))
        if self.maps_dir is not None:
            first = next(iter(maps.values()))
            for index, anomaly_map in zip(indices, first, strict=True):
                row = {key: values[index] for key, values in self.table.items()}
                save_map(anomaly_map, self.maps_dir / map_name(index, row, self.settings.save_maps))

    def _gather(self, tally: ClassTally, num_images: int) -> dict[str, Any]:
        if self.world == 1:
            return self._compute(tally)
        from accelerate.utils import broadcast_object_list, gather_object

        states = gather_object([tally.state()])
        part: list[Any] = [None]
        if self.is_main:
            joined = self._new_tally(num_images)
            for state in states:
                joined.merge(state)
            part = [self._compute(joined)]
        return broadcast_object_list(part)[0]

    def _compute(self, tally: ClassTally) -> dict[str, Any]:
        tally.sort()
        metrics, curves = {}, {}
        for number, method in enumerate(tally.methods):
            found = tally.compute(method, self.table["label"], with_curves=number == 0)
            lines = found.pop("curves", {})
            if number == 0:
                curves = {kind: [np.asarray(axis).tolist() for axis in line] for kind, line in lines.items()}
            metrics[method] = found
        unreadable = [list(pair) for pair in tally.unreadable.items()]
        found = {"indices": tally.indices, "unreadable": unreadable, "scores": tally.scores}
        return found | {"metrics": metrics, "curves": curves}


def score_batch(
    scorer: MethodScorer,
    processor: AnomalyCLIPProcessor,
    batch: Mapping[str, Any],
    class_name: str,
    settings: EvaluationSettings,
) -> tuple[dict[str, list[float]], dict[str, list[np.ndarray]]]:
    """Scores and maps, method by method, of a batch of `make_loader` that holds one class."""
    device = scorer.model.device
    outputs = scorer.score(batch["pixel_values"].to(device), class_name)
    size = settings.map_size
    targets = None if size is None else batch["original_sizes"]
    if isinstance(size, int):
        targets = [(size, size)] * len(batch["labels"])
    scores, maps = {}, {}
    for name, output in outputs.items():
        found = processor.post_process_anomaly_detection(output, target_sizes=targets, sigma=settings.sigma)
        scores[name] = [one["score"] for one in found]
        if not all(map(math.isfinite, scores[name])):
            raise ValueError(f"{name} gives NaN scores for {batch['path']}: check the weights and the dtype")
        maps[name] = [one["anomaly_map"].cpu().numpy() for one in found]
    return scores, maps


def truth_of(batch: Mapping[str, Any], map_size: int | str | None) -> list[np.ndarray | None]:
    """Masks `(H, W)` bool of a batch at the size pixels are judged at; None where the truth is unknown."""
    known = batch["has_mask"].tolist()
    if map_size is None:
        masks = (batch["masks"] > 0.5).numpy()
        return [mask if has else None for mask, has in zip(masks, known, strict=True)]
    truths: list[np.ndarray | None] = []
    for mask, has in zip(batch["original_masks"], known, strict=True):
        if has and isinstance(map_size, int):
            mask = mask.resize((map_size, map_size), resample=Image.Resampling.BILINEAR)
        truths.append(np.asarray(mask) > 127.5 if has else None)
    return truths


def make_samples(
    model: AnomalyCLIPModel,
    processor: AnomalyCLIPProcessor,
    sources: Mapping[str, datasets.Dataset],
    result: Mapping[str, Any],
    count: int = 6,
    method: str = OWN,
    tokenizer: Any = None,
    settings: EvaluationSettings | None = None,
    not_drawn: list[str] | None = None,
) -> dict[str, list[Sample]]:
    """Pictures for a report: of each data set the worst misses, the worst false alarms, a few more anomalous images.

    They are scored once more, since maps are not kept. Arguments as in [`evaluate_sources`], whose `result` it takes;
    an image that fails is noted in `not_drawn`, or raises where that is None.
    """
    settings = replace(settings or EvaluationSettings(), map_size=None)
    scorer = MethodScorer(model.eval(), [method], tokenizer)
    groups = {}
    for name, dataset in sources.items():
        scores = result["datasets"][name]["scores"]
        values, labels = scores["scores"][method], [-1 if label is None else label for label in scores["label"]]
        misses = worst_misses(values, labels, count)
        others = [place for place, label in enumerate(labels) if label == 1 and place not in misses]
        chosen = {
            "worst misses": misses,
            "worst false alarms": worst_false_alarms(values, labels, count),
            "other anomalous images": others[:: max(1, len(others) // count)][:count] if count else [],
        }
        for heading, places in chosen.items():
            samples = []
            for place in places:
                try:
                    samples.append(_make_sample(scorer, processor, dataset[scores["index"][place]], settings))
                except Exception as error:
                    if not_drawn is None:
                        raise
                    not_drawn.append(f"{scores['path'][place]} ({type(error).__name__}: {error})")
            if samples:
                groups[f"{name}: {heading}"] = samples
    return groups


def _make_sample(scorer: MethodScorer, processor: Any, row: dict[str, Any], settings: EvaluationSettings) -> Sample:
    batch = collate_samples([row], processor)
    scores, maps = score_batch(scorer, processor, batch, str(row["class_name"]), settings)
    name = next(iter(scores))
    title = " / ".join(
        str(part) for part in (row["class_name"], row["defect_type"], Path(str(row["path"])).name) if part
    )
    image = row["image"]
    if max(image.size) > MAX_SHOWN:  # pictures of a report are small, and all of them are kept until it is written
        image = to_rgb(image)
        image.thumbnail((MAX_SHOWN, MAX_SHOWN))
    mask = None if row["mask"] is None else resize_mask(row["mask"], image.size)
    return Sample(image, maps[name][0], mask, row["label"], scores[name][0], title)


def map_name(index: int, row: Mapping[str, Any], suffix: str | None) -> str:
    """Where the map of an image lies below `maps/<data set>`: `<class>/<defect>/<index>_<stem>.png`."""
    stem = Path(str(row["path"])).stem or "image"
    kind = safe_name(str(row["defect_type"] or "unknown"))
    return f"{safe_name(row['class_name'])}/{kind}/{index:06d}_{safe_name(stem)}.{suffix}"


def _read_columns(dataset: Any) -> dict[str, list]:
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


def _classes(table: dict[str, list]) -> dict[str, list[int]]:
    classes: dict[str, list[int]] = {}
    for index, name in enumerate(table["class_name"]):
        classes.setdefault(name, []).append(index)
    return classes


def _summarize(parts: dict[str, dict[str, Any]], table: dict[str, list], scorer: MethodScorer) -> dict[str, Any]:
    methods: dict[str, dict[str, Any]] = {}
    for name, method in scorer.methods.items():
        classes = {class_name: part["metrics"][name] for class_name, part in parts.items()}
        mean, counts = mean_over_classes(classes)
        methods[name] = {"title": method.title, "mean": mean, "mean_num_classes": counts, "classes": classes}
    first = next(iter(methods))
    order = [index for part in parts.values() for index in part["indices"]]
    scores: dict[str, Any] = {key: [values[index] for index in order] for key, values in table.items()}
    scores["index"] = order
    scores["scores"] = {name: [s for part in parts.values() for s in part["scores"][name]] for name in methods}
    labels = scores["label"]
    unreadable = [
        {"path": str(table["path"][index]), "error": error}
        for part in parts.values()
        for index, error in part["unreadable"]
    ]
    without = sum(1 for label in labels if label == 1) - _num_judged(parts, first, labels)
    notes = [
        f"{metric}: mean over {count} of {len(parts)} classes, undefined in the others"
        for metric, count in methods[first]["mean_num_classes"].items()
        if 0 < count < len(parts)
    ]
    if unreadable:
        shown = "; ".join(one["error"] for one in unreadable[:5]) + ("; ..." if len(unreadable) > 5 else "")
        notes.append(f"{len(unreadable)} of {len(table['label'])} images could not be read and are left out: {shown}")
    return {
        "mean": methods[first]["mean"],
        "mean_num_classes": methods[first]["mean_num_classes"],
        "classes": methods[first]["classes"],
        "num_images": len(labels),
        "num_anomalous_images": sum(label == 1 for label in labels),
        "num_unlabeled_images": sum(label is None for label in labels),
        "num_anomalous_images_without_mask": max(without, 0),
        "num_unreadable_images": len(unreadable),
        "unreadable": unreadable,
        "notes": notes,
        "methods": methods,
        "scores": scores,
        "curves": {name: part["curves"] for name, part in parts.items()},
    }


def _num_judged(parts: dict[str, dict[str, Any]], method: str, labels: list) -> int:
    """Anomalous images whose pixels were judged (every normal image's are)."""
    judged = sum(part["metrics"][method]["num_judged_maps"] for part in parts.values())
    return judged - sum(label == 0 for label in labels)
