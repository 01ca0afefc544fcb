"""Labelled images drawn procedurally: surfaces, objects and scans, flawless or with a defect and its exact mask.

Nothing here is copied from a photograph. The same seed draws the same picture; `anomalous=False` and `True` with one
seed draw the same scene, pose, light and noise without and with its defect.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._assembled import draw_mixed_surface
from ._captions import caption_pair
from ._damage import Damage, finish_mask
from ._defects import (
    BOARD_DEFECTS,
    DEFECT_TABLE,
    HELD_OUT_DEFECTS,
    MEDICAL_DEFECTS,
)
from ._objects import OBJECT_TABLE, draw_object
from ._painter import Scene
from ._photography import photograph
from ._scans import MEDICAL, SCAN_TABLE, draw_scan
from ._textures import HELD_OUT_TEXTURES, TEXTURE_TABLE, Canvas, draw_texture

if TYPE_CHECKING:
    import datasets
    from PIL import Image


TEXTURES: tuple[str, ...] = tuple(TEXTURE_TABLE) + ("mixed_surface",)
OBJECTS: tuple[str, ...] = tuple(OBJECT_TABLE) + tuple(SCAN_TABLE)
CLASSES: tuple[str, ...] = TEXTURES + OBJECTS
HELD_OUT_CLASSES: tuple[str, ...] = HELD_OUT_TEXTURES + ("coin", "button", "pasta", "chest_xray")
TRAIN_CLASSES: tuple[str, ...] = tuple(name for name in CLASSES if name not in HELD_OUT_CLASSES)
DEFECTS: tuple[str, ...] = tuple(DEFECT_TABLE)
ASSEMBLED_CLASSES: tuple[str, ...] = ("part", "food", "tray", "phantom", "mixed_surface")  # no two of a kind
TRAIN_DEFECTS: tuple[str, ...] = tuple(name for name in DEFECTS if name not in HELD_OUT_DEFECTS)

_MIN_SIZE, _ATTEMPTS = 32, 18
_SCENE, _DEFECT, _PHOTO, _CAPTION = 1, 2, 3, 4  # independent random streams of one seed


@dataclass
class SyntheticSample:
    """A drawn picture: image uint8 (H, W, 3), mask bool (H, W) of the defect, label 0 normal or 1 anomalous."""

    image: np.ndarray
    mask: np.ndarray
    label: int
    class_name: str
    defect_type: str
    caption: str
    normal_caption: str
    anomalous_caption: str


def _check_number(field: str, value: Any, low: float, high: float, kind: type = int) -> None:
    number = isinstance(value, (int, np.integer) if kind is int else (int, float, np.integer, np.floating))
    if not number or isinstance(value, bool) or not low <= value <= high:
        what = "an integer" if kind is int else "a number"
        raise ValueError(f"{field}={value!r}, but {what} from {low:g} to {high:g} is expected")


def _check_name(field: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{field}={value!r} is not drawn here; choose one of: {', '.join(known)}")


def _check_names(field: str, values: Any, known: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(values, str) or not values:
        raise ValueError(f"{field}={values!r}, but a non-empty list of names is expected")
    for value in values:
        _check_name(field, value, known)
    return tuple(values)


def _check_common(size: Any, seed: Any, difficulty: Any) -> None:
    _check_number("size", size, _MIN_SIZE, 2048)
    _check_number("seed", seed, 0, 2**63 - 1)
    _check_number("difficulty", difficulty, 0, 1, float)


@lru_cache(maxsize=1)  # a pair shows one scene, without and with its defect
def _draw_scene(class_name: str, seed: int, size: int, difficulty: float) -> Scene:
    canvas = Canvas(_stream(seed, _SCENE), size, size)
    if class_name in SCAN_TABLE:
        return draw_scan(canvas, class_name, difficulty)
    if class_name in OBJECT_TABLE:
        return draw_object(canvas, class_name, difficulty)
    if class_name in TEXTURE_TABLE:
        noun, (image, color) = TEXTURE_TABLE[class_name][1], draw_texture(canvas, class_name, difficulty)
    else:
        noun, (image, color) = "surface", draw_mixed_surface(canvas, difficulty)
    return Scene(image, image * 0.2, np.ones((size, size), np.float32), noun, color)


def _suited(class_name: str, defects: tuple[str, ...]) -> tuple[str, ...]:
    """The wanted defects that such a class can plausibly show (all of them if none does)."""
    plausible: tuple[str, ...] = DEFECTS
    if class_name in MEDICAL:
        plausible = MEDICAL_DEFECTS
    elif class_name == "bare_board":
        plausible = BOARD_DEFECTS[:5]
    elif class_name == "circuit_board":
        plausible = BOARD_DEFECTS
    elif class_name in OBJECT_TABLE:  # a missing chunk shows the outline, which only objects have
        plausible = DEFECTS + ("broken", "broken", "missing_part")
    return tuple(name for name in plausible if name in defects) or defects


def _damage(
    scene: Scene, rng: np.random.Generator, first: str, others: tuple[str, ...], difficulty: float
) -> tuple[np.ndarray, np.ndarray, str]:
    """Draws a defect that can be seen, redrawing stronger ones until it can."""
    strength = rng.uniform(0.65 - 0.55 * difficulty, 1.0)
    area = float(np.exp(rng.uniform(np.log(0.012 - 0.009 * difficulty), np.log(0.15))))
    unit = min(scene.image.shape[:2]) / 96.0
    for attempt in range(_ATTEMPTS):
        name = first if attempt < 6 else str(rng.choice(others))
        push = attempt / _ATTEMPTS
        damage = Damage(scene, rng, min(1.0, strength + push), max(area, 0.02 * push))
        image, region = DEFECT_TABLE[name][0](damage)
        image = np.clip(image, 0, 1).astype(np.float32)
        if scene.scan and np.ptp(scene.image, axis=2).max() < 1e-3:  # a gray scan has no colors
            image = np.repeat(image.mean(2, keepdims=True), 3, axis=2)
        before, after = scene.image, image
        if name == "bend":  # moved grain alone shows nothing
            before, after = damage.blur(before, 1.2), damage.blur(after, 1.2)
        mask = finish_mask(before, after, region, unit)
        share = float(mask.mean())
        if not 0.0012 < share < 0.3:
            continue
        change = (after - before)[mask]
        seen = float(np.maximum(np.abs(change.mean(1)), 0.5 * np.abs(change).max(1)).mean())
        if seen < 0.045 + 0.35 * damage.noise:
            continue
        return _keep_inside(scene.image, image, mask, unit), mask, name
    return _patch(scene, rng, unit)


def _keep_inside(before: np.ndarray, after: np.ndarray, mask: np.ndarray, unit: float) -> np.ndarray:
    """Takes back the imperceptible change outside the mask, but for a soft rim."""
    from scipy.ndimage import binary_dilation

    near = binary_dilation(mask, np.ones((3, 3), bool), iterations=max(1, round(1.5 * unit)))
    return np.where(near[..., None], after, before)


def _patch(scene: Scene, rng: np.random.Generator, unit: float) -> tuple[np.ndarray, np.ndarray, str]:
    """The last resort: a plain spot of a contrasting tone, which shows on any scene."""
    damage = Damage(scene, rng, 1.0, 0.02)
    damage.full = True
    alpha = damage.inside(damage.blob(max(damage.r, 4.0), 0.2))
    tone = scene.image * 0.3 + np.where(scene.image.mean(2) > 0.5, 0.0, 0.6)[..., None]
    image = damage.over(tone, alpha).astype(np.float32)
    return image, alpha > 0.3, "stain"


def _stream(seed: int, which: int) -> np.random.Generator:
    return np.random.default_rng([int(seed), which])


def _draw(
    class_name: str, defect: str, others: tuple[str, ...], anomalous: bool, size: int, seed: int, difficulty: float
) -> SyntheticSample:
    scene = _draw_scene(class_name, seed, size, difficulty)
    image, mask, kind = scene.image, np.zeros((size, size), bool), "good"
    if anomalous:
        image, mask, kind = _damage(scene, _stream(seed, _DEFECT), defect, others, difficulty)
    flat = class_name == "bare_board" and seed % 5 < 3  # artwork is scanned more often than photographed
    photo = photograph(
        image, _stream(seed, _PHOTO), 0.1 * difficulty if flat else difficulty, medical=class_name in MEDICAL
    )
    named = kind if anomalous else defect
    captions = caption_pair(_stream(seed, _CAPTION), scene.noun, scene.color, scene.scan, named)
    return SyntheticSample(photo, mask, int(anomalous), class_name, kind, captions[int(anomalous)], *captions)


def draw_sample(
    class_name: str | None = None,
    defect: str | None = None,
    *,
    anomalous: bool | None = None,
    size: int = 96,
    seed: int = 0,
    difficulty: float = 0.5,
) -> SyntheticSample:
    """Draws one picture.

    Args:
        class_name: one of `CLASSES`; None draws one of `TRAIN_CLASSES`.
        defect: one of `DEFECTS`; None draws one of `TRAIN_DEFECTS` that suits the class. If the wanted defect cannot
            be made visible on the scene, another one is drawn and `defect_type` says which.
        anomalous: with the defect (True) or the same scene without it (False); None tosses a coin.
        size: side in pixels, 32 to 2048.
        seed: decides everything else.
        difficulty: 0 (clear defects, clean photographs) to 1 (faint and small ones too, full photographic variation).

    Raises:
        ValueError: an unknown name or a value out of range.
    """
    _check_common(size, seed, difficulty)
    if class_name is not None:
        _check_name("class_name", class_name, CLASSES)
    if defect is not None:
        _check_name("defect", defect, DEFECTS)
    if anomalous not in (None, True, False):
        raise ValueError(f"anomalous={anomalous!r}, but True, False or None is expected")
    rng = _stream(seed, 0)
    choice, pick, coin = rng.integers(0, len(TRAIN_CLASSES)), rng.random(), bool(rng.random() < 0.5)
    name = class_name or TRAIN_CLASSES[int(choice)]
    suited = _suited(name, TRAIN_DEFECTS if defect is None else (defect,))
    kind = suited[int(pick * len(suited))]
    others = _suited(name, TRAIN_DEFECTS)
    return _draw(name, kind, others, coin if anomalous is None else bool(anomalous), size, seed, difficulty)


def _plan(count: int, classes: tuple[str, ...], defects: tuple[str, ...], seed: int, paired: bool) -> list[tuple]:
    """(class, defect, anomalous, seed) of every image: classes in turn, defects at random, half of them anomalous."""
    rng = np.random.default_rng([int(seed), 99])
    scenes = (count + 1) // 2 if paired else count
    seeds = rng.integers(0, 2**62, scenes)
    picks = rng.random(scenes)
    plan = []
    for k in range(count):
        scene = k // 2 if paired else k
        turn = scene if paired else k // 2  # classes in turn; normal and anomalous ones of each
        name = classes[turn % len(classes)]
        suited = _suited(name, defects)
        plan.append((name, suited[int(picks[scene] * len(suited))], suited, bool(k % 2), int(seeds[scene])))
    return plan


def _draw_chunk(job: tuple[list[tuple], int, float]) -> list[SyntheticSample]:
    plan, size, difficulty = job
    return [_draw(name, kind, suited, bad, size, seed, difficulty) for name, kind, suited, bad, seed in plan]


def draw_arrays(
    num_images: int,
    *,
    classes: tuple[str, ...] = TRAIN_CLASSES,
    defects: tuple[str, ...] = TRAIN_DEFECTS,
    size: int = 96,
    seed: int = 0,
    difficulty: float = 0.5,
    paired: bool = False,
    num_workers: int = 0,
) -> dict[str, Any]:
    """Draws many pictures: normal ones at even, anomalous ones at odd places, classes in turn.

    Args:
        num_images: how many, at least 1.
        classes, defects: what to draw.
        paired: images 2k and 2k + 1 show one scene, without and with its defect.
        num_workers: processes; 0 draws in this one. The result does not depend on it.

    Returns:
        `images` uint8 (N, S, S, 3), `masks` bool (N, S, S), `labels` int64 (N,), and lists of N strings:
        `class_names`, `defect_types`, `captions`, `normal_captions`, `anomalous_captions`.
    """
    from tqdm.auto import tqdm

    _check_common(size, seed, difficulty)
    _check_number("num_images", num_images, 1, 10**8)
    _check_number("num_workers", num_workers, 0, 1024)
    plan = _plan(
        num_images, _check_names("classes", classes, CLASSES), _check_names("defects", defects, DEFECTS), seed, paired
    )
    out: dict[str, Any] = {
        "images": np.empty((num_images, size, size, 3), np.uint8),
        "masks": np.empty((num_images, size, size), bool),
        "labels": np.empty(num_images, np.int64),
    }
    texts = {f"{key}s": key for key in ("class_name", "defect_type", "caption", "normal_caption", "anomalous_caption")}
    out.update({key: [] for key in texts})
    jobs = [(plan[k : k + 64], size, difficulty) for k in range(0, num_images, 64)]
    with tqdm(total=num_images, desc="drawing", unit="image", disable=num_images < 500) as progress:
        for chunk in _run(jobs, num_workers):
            for sample in chunk:
                k = len(out["captions"])
                out["images"][k], out["masks"][k], out["labels"][k] = sample.image, sample.mask, sample.label
                for key, name in texts.items():
                    out[key].append(getattr(sample, name))
            progress.update(len(chunk))
    return out


def _run(jobs: list, num_workers: int):
    if num_workers == 0:
        yield from map(_draw_chunk, jobs)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(min(num_workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(_draw_chunk, jobs)


def draw_dataset(
    num_images: int,
    *,
    classes: tuple[str, ...] = HELD_OUT_CLASSES,
    defects: tuple[str, ...] = DEFECTS,
    size: int = 96,
    seed: int = 0,
    difficulty: float = 0.5,
) -> datasets.Dataset:
    """Draws a data set: image, mask (None for normal images), label, class_name, defect_type, path."""
    import datasets
    from PIL import Image

    arrays = draw_arrays(num_images, classes=classes, defects=defects, size=size, seed=seed, difficulty=difficulty)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "mask": datasets.Image(),
            "label": datasets.Value("int64"),
            "class_name": datasets.Value("string"),
            "defect_type": datasets.Value("string"),
            "path": datasets.Value("string"),
        }
    )
    names = zip(arrays["class_names"], arrays["defect_types"], strict=True)
    columns = {
        "image": [Image.fromarray(image) for image in arrays["images"]],
        "mask": [
            Image.fromarray(mask.astype(np.uint8) * 255) if label else None
            for mask, label in zip(arrays["masks"], arrays["labels"], strict=True)
        ],
        "label": arrays["labels"].tolist(),
        "class_name": arrays["class_names"],
        "defect_type": arrays["defect_types"],
        "path": [f"synthetic/{seed}/{name}/{kind}/{k:06d}.png" for k, (name, kind) in enumerate(names)],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def _as_array(image: Any) -> np.ndarray:
    """Any user's picture as uint8 (H, W, 3)."""
    from PIL import Image

    from .masks import open_image, upright

    if isinstance(image, (str, os.PathLike)):
        image = open_image(image)
    if isinstance(image, Image.Image):
        image = upright(image, "image")
        if image.mode[0] in "IF":
            raise ValueError(f"image has mode {image.mode!r}, but 8 bits per channel are expected; convert it first")
        image = np.asarray(image.convert("RGB"))
    array = np.asarray(image)
    shape = array.shape
    if array.dtype != np.uint8:
        raise ValueError(f"image has dtype {array.dtype}, but uint8 (0 to 255) is expected; convert it first")
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1):
        array = np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    if array.ndim != 3 or array.shape[2] not in (3, 4) or min(array.shape[:2]) < _MIN_SIZE:
        raise ValueError(
            f"image has shape {shape}, but (H, W), (H, W, 3) or (H, W, 4) with sides of at least {_MIN_SIZE} "
            "is expected"
        )
    return np.ascontiguousarray(array[..., :3])


def _split(values: np.ndarray) -> float:
    """The value that parts two groups best (Otsu)."""
    counts, bounds = np.histogram(values, bins=64)
    middles = (bounds[:-1] + bounds[1:]) / 2
    low, weighted = np.cumsum(counts), np.cumsum(counts * middles)
    high = low[-1] - low
    gap = weighted / np.maximum(low, 1) - (weighted[-1] - weighted) / np.maximum(high, 1)
    return float(middles[np.argmax(low * high * gap**2)])


def _foreground(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The object on a plain background as coverage, and the background's color; all of the picture without one."""
    from scipy.ndimage import binary_fill_holes, binary_opening, gaussian_filter, label

    rim = max(1, min(image.shape[:2]) // 32)
    border = np.concatenate([q.reshape(-1, 3) for q in (image[:rim], image[-rim:], image[:, :rim], image[:, -rim:])])
    color = np.median(border, axis=0)
    whole = np.ones(image.shape[:2], np.float32)
    if np.median(np.abs(border - color).max(1)) > 0.1:
        return whole, color
    unit = min(image.shape[:2]) / 96
    distance = gaussian_filter(np.abs(image - color).max(2), unit)
    found = distance > max(0.1, _split(distance))
    found = binary_fill_holes(binary_opening(found, iterations=max(1, round(unit))))
    pieces, count = label(found)
    areas = np.bincount(pieces.ravel(), minlength=count + 1)
    edges = np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]])
    contact = np.bincount(edges, minlength=count + 1)
    object_like = (contact < 1.5 * np.sqrt(areas)) & (areas > 0.1 * areas[1:].max(initial=1))  # a stripe is none
    object_like[0] = False
    found = object_like[pieces]
    if not 0.04 < found.mean() < 0.9:
        return whole, color
    return found.astype(np.float32), color


def draw_anomaly_on(
    image: np.ndarray | Image.Image | str | Path | os.PathLike,
    *,
    seed: int = 0,
    defect: str | None = None,
    difficulty: float = 0.5,
) -> tuple[np.ndarray, np.ndarray, str]:
    """Draws a defect on a normal picture of the user's own, for training without anomalous images.

    Args:
        image: PIL image, path, or uint8 array (H, W), (H, W, 3) or (H, W, 4), sides of at least 32 pixels.
        seed: decides kind, place and looks.
        defect: one of `DEFECTS`; None draws one of `TRAIN_DEFECTS`.
        difficulty: 0 (clear defects) to 1 (also faint and small ones).

    Returns:
        The damaged picture uint8 (H, W, 3), its mask bool (H, W), and the kind of defect. On a plain background the
        defect is put on the object.

    Raises:
        ValueError: an unreadable file, not 8 bits per channel, too small, or a value out of range.
    """
    _check_common(_MIN_SIZE, seed, difficulty)
    if defect is not None:
        _check_name("defect", defect, DEFECTS)
    pixels = _as_array(image)
    scene_image = pixels.astype(np.float32) / np.float32(255)
    foreground, color = _foreground(scene_image)
    background = np.broadcast_to(color.astype(np.float32), scene_image.shape)
    scene = Scene(scene_image, background, foreground, "object")
    rng = _stream(seed, _DEFECT)
    kind = defect or str(rng.choice(TRAIN_DEFECTS))
    damaged, mask, kind = _damage(scene, rng, kind, TRAIN_DEFECTS, difficulty)
    changed = np.abs(damaged - scene_image).max(2, keepdims=True) > 0
    return np.where(changed, (np.clip(damaged, 0, 1) * 255 + 0.5).astype(np.uint8), pixels), mask, kind
