"""Metrics of the current prompts on a validation set, from kept features or pictures."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..evaluation.metrics import UndefinedMetricWarning, image_metrics
from ..evaluation.streaming import StreamingPixelMetrics
from ..image_processing_anomalyclip import gaussian_smooth
from .batches import iterate_batches
from .step import count_batch

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .samples import TrainingSamples

PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro")
IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1_max")
NUM_BINS = 2**18


@torch.no_grad()
def validate(
    model,
    source: Any,
    samples: TrainingSamples,
    members: np.ndarray,
    accelerator: Accelerator,
    *,
    sigma: float = 4.0,
    batch_size: int = 8,
    num_workers: int = 0,
    show_progress: bool = True,
    loss_weights: tuple[float, float] = (1.0, 1.0),
) -> dict[str, Any]:
    """Judge the current prompts: metrics per class, then their mean over classes (section 7), and the losses.

    Args:
        model ([`AnomalyCLIPModel`], not wrapped).
        source ([`CachedBatches`] or [`ImageBatches`]) of the samples, with masks.
        samples ([`TrainingSamples`]), members (`(K,)` int): which of them are judged.
        accelerator (`Accelerator`): its processes share the work, and all answer the same.
        sigma (`float`, pixels at the model's input size): smoothing of maps.
        loss_weights (`tuple` of two `float`): of the global and of the local loss, as in training.

    Returns:
        the mean of each defined metric over classes (None where no class defines it), `global_loss`, `local_loss`,
        `loss`, and `classes` with each class's own metrics.
    """
    classes = np.array(samples.class_names)[members]
    found: dict[str, dict] = {}
    losses = np.zeros(4)
    bar = tqdm(
        total=len(members),
        desc="validation",
        unit="image",
        leave=False,
        disable=not (show_progress and accelerator.is_main_process),
    )
    with bar:
        for name in dict.fromkeys(classes.tolist()):
            own = members[classes == name][accelerator.process_index :: accelerator.num_processes]
            parts = [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
            scores: list[float] = []
            pixels = StreamingPixelMetrics(num_bins=NUM_BINS)
            for part, batch in zip(parts, iterate_batches(source, parts, num_workers), strict=True):
                output = _forward(model, batch, accelerator)
                counts = count_batch(batch)
                losses += np.array(
                    [float(output.global_loss) * counts.images, counts.images, *_local(output, counts.masks)]
                )
                scores += output.logits.float().softmax(dim=-1)[:, 1].tolist()
                _add_pixels(pixels, output, batch, sigma)
                bar.update(len(part) * accelerator.num_processes)
            found[name] = {"scores": scores, "labels": samples.labels[own].tolist(), "pixels": pixels.state_dict()}
    joined, losses = _gather(found, losses, accelerator)
    return _summarize(joined, losses, loss_weights)


def _forward(model, batch: dict[str, Any], accelerator: Accelerator):
    keys = ("pixel_values", "image_embeds", "patch_embeds", "labels", "masks")
    inputs = {key: batch[key].to(accelerator.device) for key in keys if key in batch}
    with accelerator.autocast():
        return model(**inputs)


def _local(output, masks: int) -> tuple[float, int]:
    return (float(output.local_loss) * masks if masks else 0.0), masks


def _add_pixels(pixels: StreamingPixelMetrics, output, batch: dict[str, Any], sigma: float) -> None:
    masks, labels = batch.get("masks"), batch["labels"]
    if masks is None:
        return
    known = (masks.flatten(1).amin(dim=1) >= 0) | (labels == 0)
    if known.any():
        maps = gaussian_smooth(output.anomaly_maps[known.to(output.anomaly_maps.device)].float(), sigma)
        # Smoothing by matrices can leave [0, 1] by a rounding error, which metrics don't mind.
        pixels.update(maps.cpu(), masks[known].clamp(min=0))


def _gather(
    found: dict[str, dict], losses: np.ndarray, accelerator: Accelerator
) -> tuple[dict[str, dict], np.ndarray]:
    """Join what all processes found."""
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        everything = gather_object([(found, losses)])
    else:
        everything = [(found, losses)]
    joined: dict[str, dict] = {}
    for name in everything[0][0]:
        pixels = StreamingPixelMetrics(num_bins=NUM_BINS)
        scores: list[float] = []
        labels: list[int] = []
        for part, _ in everything:
            state = part[name]["pixels"]
            if state["num_images"]:
                pixels.merge(StreamingPixelMetrics.from_state_dict(state))
            scores += part[name]["scores"]
            labels += part[name]["labels"]
        joined[name] = {"scores": scores, "labels": labels, "pixels": pixels}
    return joined, np.sum([part for _, part in everything], axis=0)


def _summarize(joined: dict[str, dict], losses: np.ndarray, weights: tuple[float, float]) -> dict[str, Any]:
    classes: dict[str, dict[str, float | None]] = {}
    with warnings.catch_warnings():
        # A class of one kind leaves metrics undefined; they are None in the result.
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        for name, part in joined.items():
            image = image_metrics(part["scores"], part["labels"])
            values = {key: image[key] for key in IMAGE_METRICS}
            if part["pixels"].num_images:
                pixel = part["pixels"].compute()
                values.update({key: pixel[key] for key in PIXEL_METRICS})
            classes[name] = {key: None if math.isnan(value) else value for key, value in values.items()}
    result: dict[str, Any] = {}
    for key in IMAGE_METRICS + PIXEL_METRICS:
        defined = [value for values in classes.values() if (value := values.get(key)) is not None]
        result[key] = float(np.mean(defined)) if defined else None
    result["global_loss"] = weights[0] * losses[0] / max(losses[1], 1)
    result["local_loss"] = weights[1] * losses[2] / max(losses[3], 1)
    result["loss"] = result["global_loss"] + result["local_loss"]
    return {**{k: float(v) if v is not None else None for k, v in result.items()}, "classes": classes}
