"""Metrics of an evaluation, made of its records: of a class, and of a data set over its classes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .baselines import OWN
from .metrics import METRICS, UndefinedMetricWarning, asked_metrics, image_metrics, pixel_metrics
from .records import ClassRecords
from .saturated import judge_saturated
from .settings import EvaluationSettings
from .streaming import StreamingPixelMetrics

TOO_FEW = "the class has too few images for this method"


def judge_class(records: ClassRecords, table: Mapping[str, list], settings: EvaluationSettings) -> dict[str, Any]:
    """Metrics of a class from its records: `metrics` by method, and `curves` of the first method."""
    metrics = {name: judge_method(records, name, table, settings) for name in records.methods}
    curves, *_ = (found.pop("curves") for found in metrics.values())
    return {"metrics": metrics, "curves": {kind: [axis.tolist() for axis in line] for kind, line in curves.items()}}


def judge_method(
    records: ClassRecords, method: str, table: Mapping[str, list], settings: EvaluationSettings
) -> dict[str, Any]:
    """The metrics of one method on one class: keys of `METRICS` to values in [0, 1] or NaN, `reasons` for NaN,
    `curves` and counts. `table` has `label` (None where unknown) and `path` of the whole data set."""
    scores = zip(records.indices, records.scores[method], strict=True)
    known = [(score, table["label"][index]) for index, score in scores if score is not None]
    judged = [(score, label) for score, label in known if label is not None]
    pixels = records.pixels(method)
    # The model's thresholds say nothing of other methods.
    at_image, at_pixel = (settings.image_threshold, settings.pixel_threshold) if method == OWN else (None, None)
    asked: dict[str, Any] = {"threshold": at_pixel, "fpr_limits": settings.fpr_limits or ()}
    image_names = asked_metrics("image", at_image)
    pixel_names = asked_metrics("pixel", **asked, fpr_limit=settings.fpr_limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)  # the reasons are in the result
        if judged:
            image = image_metrics(*zip(*judged, strict=True), threshold=at_image)
        else:
            why = TOO_FEW if records.indices else "no image could be read"
            image = _undefined(image_names, "no image has a label" if known else why)
        if pixels is None:
            pixel = _undefined(pixel_names, "no image has a mask") | {"num_judged_maps": 0}
        elif isinstance(pixels, StreamingPixelMetrics):
            pixel = pixels.compute(with_curves=True, **asked)
            pixel["num_judged_maps"] = pixel.pop("num_images")
        else:
            pixel = pixel_metrics(*pixels, settings.fpr_limit, with_curves=True, **asked)
            pixel["num_judged_maps"] = len(pixels[0])
    anomalous = image.setdefault("num_anomalous_images", 0)
    if anomalous and not pixel.get("num_anomalous_pixels"):
        reason = f"none of the {anomalous} anomalous images has a mask with an anomalous pixel"
        pixel["reasons"] = dict.fromkeys(pixel_names, reason)
    paths = [str(table["path"][index]) for index in records.judged(method)]
    saturated = judge_saturated(pixels[0] if isinstance(pixels, tuple) else None, paths)
    pixel = {**pixel, **saturated, "reasons": pixel["reasons"] | saturated.get("reasons", {})}
    result = {"curves": {}, **image, **pixel, "num_images": len(known)}
    return result | {"reasons": image["reasons"] | pixel["reasons"]}


def _undefined(names: Sequence[str], reason: str) -> dict[str, Any]:
    return dict.fromkeys(names, math.nan) | {"reasons": dict.fromkeys(names, reason)}


def summarize_classes(
    records: Mapping[str, ClassRecords],
    judged: Mapping[str, Mapping[str, Any]],
    table: Mapping[str, list],
    reported: Mapping[str, tuple[str, Sequence[str]]],
) -> dict[str, Any]:
    """What `evaluate_model` returns of a data set, from the records and metrics of its classes, its columns but the
    pictures, and `reported` of [`MethodScorer`]."""
    methods: dict[str, dict[str, Any]] = {}
    for name, (title, draws) in reported.items():
        drawn = [{one: found["metrics"][draw] for one, found in judged.items()} for draw in draws]
        classes = drawn[0]
        if len(drawn) > 1:
            title = f"{title}, {len(drawn)} draws"
            classes = {
                one: values | mean_over_classes({str(place): draw[one] for place, draw in enumerate(drawn)})[0]
                for one, values in classes.items()
            }
        mean, counts = mean_over_classes(classes)
        methods[name] = {"title": title, "mean": mean, "mean_num_classes": counts, "classes": classes}
        if len(drawn) > 1:
            means = [mean_over_classes(one)[0] for one in drawn]
            methods[name]["spread"] = {metric: float(np.std([one[metric] for one in means])) for metric in mean}
    first = {key: value for key, value in next(iter(methods.values())).items() if key != "title"}
    order = [index for one in records.values() for index in one.indices]
    scores: dict[str, Any] = {key: [values[index] for index in order] for key, values in table.items()}
    scores["index"] = order
    scores["scores"] = {
        name: [score for one in records.values() for score in one.scores[name]]
        for _, several in reported.values()
        for name in several
    }
    labels, num_images = scores["label"], len(table["label"])
    errors = [(index, error) for one in records.values() for index, error in one.errors.items()]
    # Every normal image's pixels are judged, and those of anomalous ones that have a mask.
    with_mask = sum(values["num_judged_maps"] for values in first["classes"].values()) - labels.count(0)
    notes = [
        f"{metric}: mean over {count} of {len(judged)} classes, undefined in the others"
        for metric, count in first["mean_num_classes"].items()
        if 0 < count < len(judged)
    ]
    for one in methods.values():
        few = [name for name, values in one["classes"].items() if TOO_FEW in values["reasons"].values()]
        notes += [f"{one['title']}: too few images of {', '.join(few)}"] if few else []
    if errors:
        shown = "; ".join(error for _, error in errors[:5]) + ("; ..." if len(errors) > 5 else "")
        notes.append(f"{len(errors)} of {num_images} images could not be read and are left out: {shown}")
    return {
        **first,
        "num_images": len(labels),
        "num_anomalous_images": labels.count(1),
        "num_unlabeled_images": labels.count(None),
        "num_anomalous_images_without_mask": max(labels.count(1) - with_mask, 0),
        "num_unreadable_images": len(errors),
        "unreadable": [{"path": str(table["path"][index]), "error": error} for index, error in errors],
        "notes": notes,
        "methods": methods,
        "scores": scores,
        "curves": {name: found["curves"] for name, found in judged.items()},
    }


def mean_over_classes(classes: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, int]]:
    """Mean of each metric over the classes that define it (NaN where none does), and the number of those classes."""
    mean, counts = {}, {}
    for metric in (name for name in METRICS if any(name in values for values in classes.values())):
        defined = [value for values in classes.values() if not math.isnan(value := values.get(metric, math.nan))]
        mean[metric] = math.fsum(defined) / len(defined) if defined else math.nan
        counts[metric] = len(defined)
    return mean, counts


def add_rates(entry: dict[str, Any], threshold: float | None) -> None:
    """Note what the model's image threshold does on a data set: recall and the share of false alarms."""
    if threshold is None:
        return
    scores = entry["scores"]
    pairs = list(zip(next(iter(scores["scores"].values())), scores["label"], strict=True))
    found = entry["at_image_threshold"] = {"threshold": threshold}
    for name, wanted in (("recall", 1), ("false_alarm_rate", 0)):
        if called := [score >= threshold for score, label in pairs if label == wanted]:
            found[name] = sum(called) / len(called)
