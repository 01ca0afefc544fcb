"""What the page does, apart from its layout: files in; records, pictures, thresholds and a zip out.

A model is loaded once and shared; what belongs to a session (profile, references, thresholds) is given with each call.
"""

from __future__ import annotations

import functools
import threading
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.files import atomic_path, json_line
from ..data.reader import load_image
from ..options_anomalyclip import READING
from ..scoring.inputs import LEGEND, find_images
from ..scoring.pictures import to_rgb
from ..scoring.prediction import predict_files
from ..scoring.regions import mark_regions
from ..scoring.rows import processor_for
from ..scoring.thresholds import calibrate
from ..scoring.writing import FOLDERS, PREDICTIONS, SKIPPED, make_record

_ONE_AT_A_TIME = threading.RLock()  # models are shared, and a call changes them while it lasts


@dataclass(frozen=True)
class Scored:
    """What a session has scored.

    Args:
        folder: what `predict_files` has written, with maps as `.npy`.
        records: name of an image -> its record there.
        skipped: `path` and `error` of what can't be used.
        options: those of the profile.
    """

    folder: Path
    records: dict[str, dict[str, Any]]
    skipped: list[dict[str, str]]
    options: dict[str, Any]
    counted: dict[float, dict[str, int]] = field(default_factory=dict)  # regions of each at the last pixel threshold


class Setting(NamedTuple):
    """What images are scored with.

    Args:
        model: folder or Hub repository of a model, prompts or an export; "demo" is the embedded one.
        profile: name of one of the model's; none if empty.
        references: 0 to 32 files of good images to compare with.
    """

    model: str = "demo"
    profile: str | None = None
    references: Sequence[str] = ()


@functools.lru_cache(maxsize=2)
def _load(name: str) -> Any:
    from transformers import pipeline

    from .. import AnomalyCLIPModel, demo_checkpoint
    from ..export import ExportedModel
    from ..export.engines import is_exported

    name = demo_checkpoint() if name == "demo" else name
    model: Any = ExportedModel(name) if is_exported(name) else AnomalyCLIPModel.from_pretrained(name)
    return pipeline("zero-shot-anomaly-detection", model=model)


@contextmanager
def using(setting: Setting) -> Iterator[Any]:
    """The pipeline of a setting, loaded once for all sessions; other calls wait, and find its model as it was.

    Raises:
        OSError, ValueError: there is no such model or profile, or references can't be used.
    """
    with _ONE_AT_A_TIME:
        detector = _load(setting.model.strip() or "demo")
        model, own = detector.model, detector.model.references
        try:
            model.set_profile(setting.profile or None)
            if setting.references:
                processor = processor_for(model, detector.image_processor)
                model.set_references(list(setting.references), processor=processor)
            yield detector
        finally:
            model.set_profile(None)
            model.references = own


def score_images(paths: Sequence[str], folder: str | Path, setting: Setting) -> Scored:
    """Score files as `anomalyclip predict` does; what can't be used is named in `skipped`.

    Args:
        paths: image files.
        folder: new, for maps and heat maps.
        setting: what they are scored with.

    Raises:
        ValueError: there is no image, none can be read, or what [`using`] refuses.
    """
    if not paths:
        raise ValueError("There are no images yet: upload some, or choose an example.")
    with using(setting) as detector:
        options = getattr(detector.model.profile, "options", {})
        # A pixel threshold makes it skip what the region of interest does not fit.
        summary = predict_files(paths, folder, detector, save_maps="npy", pixel_threshold=1.0)
    records = {record["map"].removeprefix("maps/").removesuffix(".npy"): record for record in summary.read()}
    skipped = [
        {**one, "path": (name := Path(one["path"]).name), "error": one["error"].replace(one["path"], name)}
        for one in summary.skipped
    ]
    if not records:
        raise ValueError(f"None of these images can be used. {tell_skipped(skipped)}")
    return Scored(Path(folder), records, skipped, options)


def tell_skipped(skipped: Sequence[dict[str, str]]) -> str:
    """What could not be used, and why; empty where all could."""
    told = (one["error"] if one["path"] in one["error"] else "{path}: {error}".format(**one) for one in skipped)
    return f"Skipped: {'; '.join(told)}." if skipped else ""


def share_above(scores: Sequence[float], image_threshold: float) -> float:
    """Share of the images that a threshold calls anomalous, in [0, 1]; 0 where there are none."""
    return float(np.mean(np.asarray(scores) >= image_threshold)) if len(scores) else 0.0


def judge(
    scored: Scored, name: str, image_threshold: float, pixel_threshold: float
) -> tuple[dict[str, Any], np.ndarray]:
    """The record that `anomalyclip predict` writes with these thresholds, and the mask `(H, W)` bool."""
    record = scored.records[name]
    size = record["width"], record["height"]
    anomaly_map = np.load(scored.folder / record["map"])
    marking = {key: scored.options[key] for key in ("min_area", "roi") if key in scored.options}
    mask, regions = mark_regions(anomaly_map, pixel_threshold, image_size=size, **marking)
    label = _label(record["score"], image_threshold)
    result = {"score": record["score"], "label": label, "anomaly_map": anomaly_map, "regions": regions}
    return make_record(
        name, size, result, {"overlay": record["overlay"], "mask": f"{FOLDERS['mask']}/{name}.png"}
    ), mask


def _label(score: float, image_threshold: float) -> str:
    return "anomalous" if score >= image_threshold else "normal"


def table_rows(scored: Scored, image_threshold: float, pixel_threshold: float) -> list[list[Any]]:
    """Name, score, label and number of regions of each image; another image threshold takes no time."""
    counts = scored.counted.get(pixel_threshold)
    if counts is None:
        counts = {name: len(judge(scored, name, 1.0, pixel_threshold)[0]["regions"]) for name in scored.records}
        scored.counted.clear()
        scored.counted[pixel_threshold] = counts
    scores = {name: record["score"] for name, record in scored.records.items()}
    return [[name, round(one, 4), _label(one, image_threshold), counts[name]] for name, one in scores.items()]


def draw_regions(scored: Scored, record: dict[str, Any]) -> Image.Image:
    """The image of a record of [`judge`] at its own size, with its regions outlined and numbered."""
    reading = {key: scored.options[key] for key in READING if key in scored.options}
    image = to_rgb(load_image(scored.records[record["path"]]["path"], **reading)).copy()
    draw, width = ImageDraw.Draw(image), max(1, max(image.size) // 200)
    size = max(12, max(image.size) // 20)
    font = ImageFont.load_default(size)
    for number, region in enumerate(record["regions"], 1):
        for color, thick in (("black", 3 * width), ("cyan", width)):  # seen on light and on dark ground
            for outline in region["polygon"]:
                draw.line([tuple(point) for point in outline], fill=color, width=thick)
        place = region["box"][0], max(0, region["box"][1] - 1.2 * size)
        draw.text(place, str(number), fill="cyan", font=font, stroke_width=2 * width, stroke_fill="black")
    return image


def results_zip(scored: Scored, image_threshold: float, pixel_threshold: float, path: str | Path) -> Path:
    """Write records, heat maps and masks, at the images' own size, as one zip; whole or not at all."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        lines = []
        for name in scored.records:
            record, mask = judge(scored, name, image_threshold, pixel_threshold)
            lines.append(json_line(record))
            archive.write(scored.folder / record["overlay"], record["overlay"])
            with archive.open(record["mask"], "w") as file:
                Image.fromarray(mask).convert("L").save(file, "PNG")
        archive.writestr(PREDICTIONS, "".join(lines))
        archive.writestr(SKIPPED, "".join(map(json_line, scored.skipped)))
        archive.write(scored.folder / LEGEND, LEGEND)
    return Path(path)


def calibrate_page(
    paths: Sequence[str], setting: Setting, false_alarm_rate: float = 0.05, confidence: float = 0.95
) -> tuple[float, float, str]:
    """Choose thresholds from good images for one session: the model and its profile stay as they are.

    Args:
        paths: image files, none of them among the references.
        setting: what they are scored with.
        false_alarm_rate, confidence: in (0, 1), see `calibrate_from_normal`.

    Returns:
        `image_threshold` and `pixel_threshold` in [0, 1], and in words what they promise.

    Raises:
        ValueError: there is no image, none can be read, or what [`using`] refuses.
    """
    if not paths:
        raise ValueError("There are no good images to calibrate with: upload some.")
    files, skipped = [str(path) for path, _ in find_images(paths).files], list[str]()
    with using(setting) as detector, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the promise says it
        owner = detector.model.profile or detector.model.config
        before = dict(vars(owner))
        try:
            found = calibrate(
                detector.model,
                detector.image_processor,
                files,
                false_alarm_rate=false_alarm_rate,
                confidence=confidence,
                skipped=skipped,
            )
            image, pixel = owner.image_threshold, owner.pixel_threshold
        finally:
            vars(owner).update(before)
    count, achieved = len(files) - len(skipped), min(one["achieved_confidence"] for one in found.values())
    text = f"Thresholds {image:.4f} (image) and {pixel:.4f} (pixel) from {count} good images. "
    text += _promise(found["image"], achieved) + (f" Left out: {'; '.join(skipped)}." if skipped else "")
    return image, pixel, text


def _promise(facts: dict[str, Any], achieved: float) -> str:
    rate, confidence, count = facts["false_alarm_rate"], facts["confidence"], facts["num_samples"]
    if not achieved:
        return "Good images score up to 1, so that no threshold promises anything: this model doesn't fit them."
    called = "of new good images will be called anomalous"
    if facts["is_guaranteed"]:
        return (
            f"With {achieved:.1%} confidence, at most {rate:.0%} {called}, and as few have over 1% of pixels marked."
        )
    allowed = 1 - (1 - confidence) ** (1 / count)
    return (
        f"That at most {rate:.0%} {called} has only {achieved:.1%} confidence: {confidence:.0%} takes "
        f"{facts['num_needed']} good images. What {count} allow at {confidence:.0%} confidence: at most {allowed:.1%}."
    )
