"""Metrics of the current prompts on a validation set: the model's results, judged by the functions of evaluation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..evaluation.metrics import METRICS, UndefinedMetricWarning, image_metrics
from ..evaluation.streaming import StreamingPixelMetrics
from ..evaluation.summary import mean_over_classes
from .step import count_batch, model_inputs, with_known_mask

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..image_processing_anomalyclip import AnomalyCLIPImageProcessor
    from ..modeling_anomalyclip import AnomalyCLIPModel

NUM_BINS = 2**18


@torch.no_grad()
def validate(
    model: AnomalyCLIPModel,
    processor: AnomalyCLIPImageProcessor,
    batches: Iterable[tuple[list[str], Mapping[str, Tensor]]],
    accelerator: Accelerator,
    loss_weights: tuple[float, float] = (1.0, 1.0),
) -> dict[str, Any]:
    """Judge the current prompts: metrics per class, then their mean over classes (section 7), and the losses.

    Args:
        model (not wrapped), processor, loss_weights: as in training.
        batches: class names and inputs of this process's share of the images.
        accelerator (`Accelerator`): all its processes return the same.

    Returns:
        the mean of each defined metric over classes (None where no class defines it), `global_loss`, `local_loss`,
        `loss`, and `classes` with each class's own metrics.
    """
    from accelerate.utils import gather_object

    images: dict[str, list[tuple[float, int]]] = {}  # class to scores and labels
    pixels: dict[str, StreamingPixelMetrics] = {}
    losses = torch.zeros(2, 2, dtype=torch.float64)  # sums and counts of both
    for names, batch in batches:
        with accelerator.autocast():
            output = model(**model_inputs(batch, accelerator.device), return_dict=True)
        counts, known = count_batch(batch), with_known_mask(batch)
        means = torch.tensor([output.global_loss, output.local_loss if known.any() else 0.0])
        losses += torch.stack([means * counts, counts])
        results = processor.post_process_anomaly_detection(output)
        for row, (name, judged) in enumerate(zip(names, results, strict=True)):
            images.setdefault(name, []).append((judged["score"], int(batch["labels"][row])))
            if known[row]:
                if name not in pixels:
                    pixels[name] = StreamingPixelMetrics(NUM_BINS)
                pixels[name].update(judged["anomaly_map"][None].cpu(), batch["masks"][row : row + 1].clamp(min=0))

    parts = gather_object([(images, {name: counted.state_dict() for name, counted in pixels.items()}, losses)])
    classes: dict[str, dict[str, float]] = {}
    with warnings.catch_warnings():
        # A class of one kind leaves metrics undefined; they are None in the result.
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        for name in dict.fromkeys(name for part, _, _ in parts for name in part):
            found = image_metrics(*zip(*(pair for part, _, _ in parts for pair in part.get(name, ())), strict=True))
            merged = StreamingPixelMetrics(NUM_BINS)
            for _, states, _ in parts:
                if name in states:
                    merged.merge(StreamingPixelMetrics.from_state_dict(states[name]))
            found |= merged.compute() if merged.num_images else {}
            classes[name] = {key: found[key] for key in METRICS if key in found}

    sums, counts = torch.stack([part for _, _, part in parts]).sum(0)
    global_loss, local_loss = (torch.tensor(loss_weights) * sums / counts.clamp(min=1)).tolist()
    return {
        **_defined(mean_over_classes(classes)[0]),
        "global_loss": global_loss,
        "local_loss": local_loss,
        "loss": global_loss + local_loss,
        "classes": {name: _defined(values) for name, values in classes.items()},
    }


def _defined(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: None if math.isnan(value) else value for key, value in values.items()}
