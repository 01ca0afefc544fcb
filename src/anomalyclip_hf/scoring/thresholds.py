"""Thresholds of a model: chosen from images, kept in its configuration, where they travel with the prompts."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers.utils import IMAGE_PROCESSOR_NAME

from ..configuration_anomalyclip import check_fields
from ..data.files import write_json, write_text
from ..data.reader import load_image
from ..options_anomalyclip import READING, WITH_REFERENCES
from .calibration import (
    HALF_MARGIN,
    MARGIN,
    LabelCalibration,
    NormalCalibration,
    calibrate_from_labels,
    calibrate_from_normal,
    calibrate_from_ranking,
    check_method,
    pixel_level,
)
from .engine import score_images
from .histogram import PixelHistogram
from .prediction import MAP_SIDE, size_of_map
from .profiles import Profile
from .regions import fit_roi
from .rows import PreparedRow, prepare_row, processor_for, resizing_of, rule_of, score_rows

if TYPE_CHECKING:
    import datasets

    from .. import AnomalyCLIPModel, AnomalyCLIPProcessor

ImageInput: TypeAlias = str | os.PathLike | Image.Image | np.ndarray
_EXPECTED = "a data set of load_anomaly_dataset(...), or a list of normal images (PIL images, arrays or paths)"


def calibrate(
    model: AnomalyCLIPModel,
    processor: AnomalyCLIPProcessor,
    dataset: datasets.Dataset | Sequence[ImageInput],
    method: str = "normal",
    *,
    false_alarm_rate: float = 0.05,
    confidence: float = 0.95,
    pixel_rate: float = 0.01,
    objective: str = "f1",
    recall: float | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
    show_progress: bool = True,
    skipped: list[str] | None = None,
) -> dict[str, Any]:
    """Choose `image_threshold` and `pixel_threshold` and put them into `model.config`.

    They then travel with the prompts, and the pipeline gives `label` and `mask`. They hold for the processor's own
    `resize`, `tile_size` and `overlap`: save it with them. Maps are smoothed as the processor does it, and judged at
    the size of the masks that predicting writes; by `"f1"` and `"recall"` at the model's input size, as evaluation
    does it, where the processor makes squares. Thresholds keep a margin
    from the scores that they were chosen by, since an image scores a little differently in another batch size: 1e-5 in
    the difference of the two logits where the model computes in float32, 2e-2 in half precision. They are never above
    1.

    Where a profile is set on the model, they are the profile's, with what they promise; pixels outside its region of
    interest don't count, and a list of images is read with its `window` and `channels` (a data set, as it was loaded).
    The promise on pixels also holds with `min_area`, which only takes marked pixels away.

    Args:
        model, processor: an [`AnomalyCLIPModel`] and its processor.
        dataset: from `load_anomaly_dataset`, or a list of normal images (PIL images, arrays or paths); images like
            those to come, none of them from the test set. What can't be read is left out, with a warning.
        method: `"normal"`: from its normal images alone, see `calibrate_from_normal`; `"f1"` or `"recall"`: from all
            labelled ones, see `calibrate_from_labels`; `"labels"`: as `objective` says.
        false_alarm_rate, confidence, pixel_rate: for `"normal"`, see `calibrate_pixels_from_normal`.
        objective: "f1" or "recall", for `"labels"`.
        recall: wanted recall in (0, 1], for `"recall"` alone.
        batch_size, num_workers: as in `score_images`.
        show_progress: show a progress bar.
        skipped: a list that gets why each image was left out, in place of the warning.

    Returns:
        `{"image": ..., "pixel": ...}` as plain numbers; `"pixel"` is None where labels come without a mask.

    Raises:
        ValueError: no such method, no normal image, no readable one, or one class only where labels are used.
        TypeError: the data set is none of the above.
    """
    method = objective if method == "labels" else method
    check_method(method, recall)
    profile, margin = getattr(model, "profile", None), choose_margin(model)
    found = _score_chosen(
        model, processor, dataset, method, pixel_rate, batch_size, num_workers=num_workers, show_progress=show_progress
    )
    if found.errors and skipped is None:
        left_out = f"{len(found.errors)} of {found.num_chosen} images could not be read and are left out"
        warnings.warn(f"{left_out}; the first: {found.errors[0]}", stacklevel=2)
    elif skipped is not None:
        skipped += found.errors
    image: NormalCalibration | LabelCalibration
    pixel: NormalCalibration | LabelCalibration | None
    if method == "normal":
        image = calibrate_from_normal(found.scores, false_alarm_rate, confidence, margin, False)
        # Smoothing can leave [0, 1] by a rounding error.
        pixel = calibrate_from_normal(np.clip(found.levels, 0.0, 1.0), false_alarm_rate, confidence, margin, False)
        doubts = {"image": image.doubt, "pixel": pixel.doubt}
        for doubt in filter(None, dict.fromkeys(doubts.values())):
            names = " and ".join(name for name, own in doubts.items() if own == doubt)
            warnings.warn(f"{names} threshold: {doubt}", stacklevel=2)
    else:
        image = calibrate_from_labels(found.scores, found.labels, method, recall, margin)
        has_masks = found.pixels.num_images > 0 and found.pixels.num_regions > 0
        pixel = calibrate_from_ranking(found.pixels.ranking(), method, recall, margin=margin) if has_masks else None
    for name, chosen in (("image_threshold", image), ("pixel_threshold", pixel)):
        setattr(profile or model.config, name, None if chosen is None else min(max(chosen.threshold, 0.0), 1.0))
    facts = {"image": image.to_dict(), "pixel": None if pixel is None else pixel.to_dict()}
    if profile is None:
        model.config.thresholds_for = model.config.score_rule + WITH_REFERENCES * (model.references is not None)
    else:
        asked = {"method": method, "num_images": len(found.scores)}
        profile.calibration = asked | ({"pixel_rate": pixel_rate} if method == "normal" else {}) | facts
    return facts


@dataclass
class _Scored:
    """What thresholds are chosen from: scores and labels of images, and of their pixels what a method looks at."""

    num_chosen: int
    scores: list[float] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    levels: list[float] = field(default_factory=list)  # of normal maps, see `pixel_level`
    pixels: PixelHistogram = field(default_factory=PixelHistogram)  # of labelled maps
    errors: list[str] = field(default_factory=list)


def _score_chosen(
    model: AnomalyCLIPModel,
    processor: AnomalyCLIPProcessor,
    dataset: datasets.Dataset | Sequence[ImageInput],
    method: str,
    pixel_rate: float,
    batch_size: int,
    num_workers: int,
    show_progress: bool,
) -> _Scored:
    """Score the images that a method looks at; arguments and errors are those of [`calibrate`]."""
    wanted, known = (0,) if method == "normal" else (0, 1), _labels_of(dataset)
    chosen = [index for index, label in enumerate(known) if label in wanted]
    if not chosen:
        raise ValueError(f"the data set has {len(known)} images but none with label {' or '.join(map(str, wanted))}")
    profile, found = getattr(model, "profile", None), _Scored(len(chosen))
    sigma, reading = getattr(profile, "sigma", None), {name: getattr(profile, name, None) for name in READING}
    processor = processor_for(model, processor)
    forward, rules = partial(model.eval().__call__, return_dict=True), [rule_of(model)]
    as_masks = method == "normal" and processor.resize == "square"

    def score_batch(rows: Sequence[PreparedRow]) -> list[list[tuple[float, np.ndarray]]]:
        sizes = [size_of_map(row.view.size, MAP_SIDE) for row in rows] if as_masks else None
        return score_rows(forward, processor, [row.view.to(model.device) for row in rows], rules, sigma, sizes)

    records = score_images(
        dataset,
        partial(_prepare, processor=processor, reading=reading),
        score_batch,
        batch_size=batch_size,
        num_workers=num_workers,
        indices=chosen,
        pin_memory=model.device.type == "cuda",
    )
    for record in tqdm(records, total=len(chosen), desc="calibration", unit="image", disable=not show_progress):
        try:
            if record.error is not None:
                raise ValueError(record.error)
            ((score, anomaly_map),) = record.result
            inside = _inside(profile, record.item.view.size, anomaly_map.shape)
        except ValueError as error:
            found.errors.append(str(error))
            continue
        found.scores.append(score)
        found.labels.append(record.item.label)
        if method == "normal":
            found.levels.append(pixel_level(anomaly_map[inside], pixel_rate))
        elif record.item.mask is not None:
            # What lies outside counts as normal of the lowest score, which neither F1 nor recall looks at.
            found.pixels.update([np.where(inside, anomaly_map, 0.0)], [record.item.mask & inside])
    if not found.scores:
        raise ValueError(f"none of the {len(chosen)} images can be read; the first: {found.errors[0]}")
    return found


def _inside(profile: Profile | None, image_size: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Which pixels of a map count: those in the region of interest of an image of (height, width) pixels."""
    if profile is None or profile.roi is None:
        return np.ones(shape, bool)
    inside = Image.fromarray(fit_roi(profile.roi, image_size[::-1]).astype(np.uint8))
    return np.asarray(inside.resize(shape[::-1], Image.Resampling.NEAREST)) > 0


def save_thresholds(
    checkpoint: str | os.PathLike,
    image_threshold: float | None,
    pixel_threshold: float | None,
    processor: AnomalyCLIPProcessor | None = None,
    thresholds_for: str = "global",
) -> None:
    """Write thresholds into the `config.json` of a checkpoint folder (prompts alone or a full one), and its card.

    Args:
        checkpoint: the folder.
        image_threshold, pixel_threshold: scores in [0, 1], or None.
        processor: whose `resize`, `tile_size` and `overlap` the thresholds hold for; they are written into the
            checkpoint's own processor, so that both are used together.
        thresholds_for: the score that they were chosen for, as the configuration's field of that name.

    Raises:
        FileNotFoundError: there is no `config.json`.
        ValueError: a threshold that is no number in [0, 1].
    """
    path = Path(checkpoint) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the folder of a saved checkpoint, not a repository")
    config = json.loads(path.read_text(encoding="utf-8"))
    thresholds = {"image_threshold": image_threshold, "pixel_threshold": pixel_threshold}
    check_fields({**thresholds, "thresholds_for": thresholds_for})
    config |= {"score_rule": thresholds_for.removesuffix(WITH_REFERENCES), "thresholds_for": thresholds_for}
    config |= {name: None if value is None else float(value) for name, value in thresholds.items()}
    write_json(path, config)
    if processor is not None:
        _save_resizing(path.parent, processor)
    card = path.with_name("README.md")
    if card.is_file():
        text = _with_thresholds(card.read_text(encoding="utf-8"), image_threshold, pixel_threshold)
        write_text(card, text)


def _save_resizing(folder: Path, processor: AnomalyCLIPProcessor) -> None:
    wanted, path = resizing_of(processor), folder / IMAGE_PROCESSOR_NAME
    if not path.is_file():
        if processor.resize != "square":
            processor.save_pretrained(folder)
        return
    stored = json.loads(path.read_text(encoding="utf-8"))
    if wanted != {"resize": stored.get("resize", "square")}:
        write_json(path, stored | wanted)


def _with_thresholds(card: str, image_threshold: float | None, pixel_threshold: float | None) -> str:
    """A card that `make_model_card` wrote, with other thresholds; one without that section as it is."""
    from jinja2 import Template

    section = re.compile(r"^## Thresholds\n.*?(?=^## )", re.DOTALL | re.MULTILINE)
    template = Path(__file__).parent.parent / "assets" / "model_card.md"
    found = section.search(template.read_text(encoding="utf-8"))
    assert found is not None  # the template is ours
    text = Template(found[0]).render(image_threshold=image_threshold, pixel_threshold=pixel_threshold)
    return section.sub(lambda _: text.rstrip("\n") + "\n\n", card, count=1)


def choose_margin(model: AnomalyCLIPModel) -> float:
    """How far thresholds keep from scores, as a difference of logits: by the model's least precise weights."""
    if not getattr(model, "is_exact", True):  # exported, in bfloat16 or int8
        return HALF_MARGIN
    halves = (torch.bfloat16, torch.float16)
    computed_in_half = torch.is_autocast_enabled(model.device.type)
    return HALF_MARGIN if computed_in_half or any(p.dtype in halves for p in model.parameters()) else MARGIN


def _prepare(
    row: Mapping[str, Any] | ImageInput, processor: AnomalyCLIPProcessor, reading: Mapping[str, Any]
) -> PreparedRow:
    """Prepare a row of a data set, or one of a list of normal images, which are read here."""
    if not isinstance(row, Mapping):
        row = {"image": load_image(row, **reading), "mask": None, "label": 0}
    return prepare_row(row, processor)


def _labels_of(dataset: datasets.Dataset | Sequence[ImageInput]) -> list[int | None]:
    """Labels of a data set; those of a list of images are 0."""
    if isinstance(dataset, (list, tuple)):
        for place, image in enumerate(dataset):
            if not isinstance(image, ImageInput):
                raise TypeError(f"dataset[{place}] is a {type(image).__name__}, expected {_EXPECTED}")
        return [0] * len(dataset)
    if not hasattr(dataset, "column_names") or not hasattr(dataset, "__len__") or isinstance(dataset, Mapping):
        raise TypeError(f"dataset is a {type(dataset).__name__}, expected {_EXPECTED}")
    return list(dataset["label"])  # type: ignore[call-overload]
