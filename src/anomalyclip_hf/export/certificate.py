"""What an export changes: scores and maps of the model and of its exported form, on the same images."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..data.addresses import read_image
from ..evaluation.evaluator import evaluate_model

if TYPE_CHECKING:
    import datasets

    from .. import AnomalyCLIPModel, AnomalyCLIPProcessor
    from .model import ExportedModel

METRICS = ("image_auroc", "pixel_auroc", "aupro")
EXACT = 1e-4  # largest difference of a score or a map that float32 may make
MAX_LOSS = 0.005  # of a metric in [0, 1]
NUM_DRAWN = 8


def draw_images(side: int, seed: int = 0) -> list[Image.Image]:
    """`NUM_DRAWN` textures, gratings and noise of some colors with a mark on each, the same for the same seed."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    images = []
    for number in range(NUM_DRAWN):
        coarse = generator.integers(0, 256, (3 + 4 * number, 3 + 4 * number, 3), dtype=np.uint8)
        texture = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), np.float32)
        angle, waves = generator.uniform(0, np.pi), generator.uniform(4, 40)
        grating = 40 * np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)))[..., None]
        pixels = texture + grating + generator.normal(0, 4 * number, texture.shape)
        left, top = generator.integers(0, side * 3 // 4, 2)
        pixels[top : top + side // 8, left : left + side // 8] = generator.integers(0, 256, 3)
        images.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return images


@torch.no_grad()
def compare(
    model: AnomalyCLIPModel,
    exported: ExportedModel,
    processor: AnomalyCLIPProcessor,
    images: Sequence[Any],
    batch_size: int = 4,
) -> dict[str, Any]:
    """Largest and mean differences of scores and of maps, before smoothing.

    Args:
        model: in float32.
        exported: made of it.
        processor: of both.
        images: of any kind that the pipeline takes.
        batch_size: images per forward.

    Raises:
        ValueError: the exported form gives numbers that are not finite.
    """
    scores, maps = [], []
    for pixel_values in _batches(processor, images, batch_size, exported.multiple):
        ours, theirs = model(pixel_values, return_dict=True), exported(pixel_values, return_dict=True)
        pair = [output.logits.float().softmax(dim=-1)[:, 1] for output in (ours, theirs)]
        scores += (pair[0] - pair[1]).abs().tolist()
        maps += (ours.anomaly_maps.float() - theirs.anomaly_maps).abs().flatten(1).amax(dim=1).tolist()
    if not all(map(math.isfinite, [*scores, *maps])):
        raise ValueError("the exported model gives numbers that are not finite: choose another precision or format")
    return {
        "num_images": len(images),
        "max_score_difference": max(scores),
        "max_map_difference": max(maps),
        "mean_score_difference": sum(scores) / len(scores),
        "mean_map_difference": sum(maps) / len(maps),
    }


def judge_both(
    before: tuple[AnomalyCLIPModel, AnomalyCLIPProcessor],
    after: tuple[ExportedModel, AnomalyCLIPProcessor],
    dataset: datasets.Dataset,
    batch_size: int = 4,
) -> dict[str, dict[str, float | None]]:
    """Metrics in [0, 1] of labelled images `before` and `after`, and their `loss`; None where one is undefined."""
    found: dict[str, dict[str, float | None]] = {}
    for name, (one, processor) in (("before", before), ("after", after)):
        mean = evaluate_model(one, processor, dataset, batch_size=batch_size, show_progress=False)["mean"]
        found[name] = {key: _or_none(mean.get(key)) for key in METRICS}
    pairs = {key: (found["before"][key], found["after"][key]) for key in METRICS}
    found["loss"] = {key: None if a is None or b is None else a - b for key, (a, b) in pairs.items()}
    return found


def refuse_loss(certificate: dict[str, Any], tolerance: float | None) -> None:
    """Refuse what an export changed.

    Args:
        certificate: `max_score_difference`, `max_map_difference` and, where truth was given, `metrics`.
        tolerance: largest difference of a score or map; None = none is too large.

    Raises:
        ValueError: saying which bound was passed.
    """
    for name in ("score", "map"):
        found = certificate[f"max_{name}_difference"]
        if tolerance is not None and found > tolerance:
            raise ValueError(
                f"the exported model's {name} differs by {found:.3g} from the model's, more than tolerance="
                f"{tolerance:g}: nothing was written. Give a larger tolerance, or another precision or format"
            )
    for name, loss in certificate.get("metrics", {}).get("loss", {}).items():
        if loss is not None and loss > MAX_LOSS:
            raise ValueError(
                f"{name} falls by {100 * loss:.2f} points in precision={certificate['precision']}, more than "
                f"{100 * MAX_LOSS:g}: nothing was written. Give more or other calibration images, or another precision"
            )


def describe_machine() -> dict[str, Any]:
    """CPU and versions that the figures hold for."""
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines() if Path("/proc/cpuinfo").is_file() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    fast = [flag for flag in facts.get("flags", "").split() if flag.startswith(("avx512", "amx", "avx2", "avx_vnni"))]
    return {"cpu": facts.get("model name") or platform.processor() or platform.machine(), "cpu_flags": fast}


def _batches(
    processor: AnomalyCLIPProcessor, images: Sequence[Any], batch_size: int, multiple: int | None
) -> Iterator[torch.Tensor]:
    """Squares and, where a graph takes other sizes, their left parts."""
    for start in range(0, len(images), batch_size):
        batch = [read_image(image) for image in images[start : start + batch_size]]
        pixel_values = processor(batch, resize="square", return_tensors="pt")["pixel_values"]
        yield pixel_values
        if multiple:
            yield pixel_values[..., : max(2, pixel_values.shape[-1] // multiple * 2 // 3) * multiple]


def _or_none(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
