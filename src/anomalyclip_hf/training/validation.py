"""Metrics of the current prompts on a validation set: the model's results, judged by the functions of evaluation."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..evaluation.metrics import IMAGE_METRICS, UndefinedMetricWarning, image_metrics
from ..evaluation.streaming import StreamingPixelMetrics
from .arguments import JUDGED_PIXEL_METRICS
from .step import count_batch, model_inputs, with_known_mask

if TYPE_CHECKING:
    from accelerate import Accelerator

NUM_BINS = 2**18


@torch.no_grad()
def validate(
    model: Any,
    processor: Any,
    batches: Iterable[tuple[list[str], dict[str, Any]]],
    accelerator: Accelerator,
    loss_weights: tuple[float, float] = (1.0, 1.0),
) -> dict[str, Any]:
    """Judge the current prompts: metrics per class, then their mean over classes (section 7), and the losses.

    Args:
        model ([`AnomalyCLIPModel`], not wrapped), processor ([`AnomalyCLIPImageProcessor`]).
        batches: class names and inputs of this process's share of the images.
        accelerator (`Accelerator`): all its processes return the same.
        loss_weights (`tuple` of two `float`): of the global and of the local loss, as in training.

    Returns:
        the mean of each defined metric over classes (None where no class defines it), `global_loss`, `local_loss`,
        `loss`, and `classes` with each class's own metrics.
    """
    from accelerate.utils import gather_object

    images: list[tuple[str, float, int]] = []  # class, score, label
    pixels: dict[str, StreamingPixelMetrics] = {}
    losses = np.zeros(4)  # sums and counts of both
    for names, batch in batches:
        with accelerator.autocast():
            output = model(**model_inputs(batch, accelerator.device), return_dict=True)
        counts, known = count_batch(batch), with_known_mask(batch)
        local_loss = float(output.local_loss) if counts.masks else 0.0
        losses += [float(output.global_loss) * counts.images, counts.images, local_loss * counts.masks, counts.masks]
        results = processor.post_process_anomaly_detection(output)
        for row, (name, judged) in enumerate(zip(names, results, strict=True)):
            images.append((name, judged["score"], int(batch["labels"][row])))
            if known[row]:
                if name not in pixels:
                    pixels[name] = StreamingPixelMetrics(num_bins=NUM_BINS)
                pixels[name].update(judged["anomaly_map"][None].cpu(), batch["masks"][row : row + 1].clamp(min=0))

    found = gather_object([(images, {name: counted.state_dict() for name, counted in pixels.items()}, losses)])
    images = [image for part, _, _ in found for image in part]
    losses = np.sum([part for _, _, part in found], axis=0)
    classes = {name: _judge_class(name, images, [states for _, states, _ in found]) for name, _, _ in images}

    result: dict[str, Any] = {}
    for key in IMAGE_METRICS + JUDGED_PIXEL_METRICS:
        defined = [value for values in classes.values() if (value := values.get(key)) is not None]
        result[key] = float(np.mean(defined)) if defined else None
    result["global_loss"] = float(loss_weights[0] * losses[0] / max(losses[1], 1))
    result["local_loss"] = float(loss_weights[1] * losses[2] / max(losses[3], 1))
    result["loss"] = result["global_loss"] + result["local_loss"]
    return {**result, "classes": classes}


def _judge_class(name: str, images: list[tuple[str, float, int]], states: list[dict[str, Any]]) -> dict[str, Any]:
    scores, labels = zip(*((score, label) for own, score, label in images if own == name), strict=True)
    counted = [StreamingPixelMetrics.from_state_dict(state[name]) for state in states if name in state]
    with warnings.catch_warnings():
        # A class of one kind leaves metrics undefined; they are None in the result.
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        found = image_metrics(scores, labels)
        found = {key: found[key] for key in IMAGE_METRICS}
        if counted:
            computed = functools.reduce(StreamingPixelMetrics.merge, counted).compute()
            found |= {key: computed[key] for key in JUDGED_PIXEL_METRICS}
    return {key: None if math.isnan(value) else value for key, value in found.items()}
