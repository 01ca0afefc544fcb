"""The one training step, used by the trainer and by anyone with a loop of their own."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator

MODEL_INPUTS = ("pixel_values", "image_embeds", "patch_embeds", "labels", "masks")


class NonFiniteLossError(FloatingPointError):
    """A loss or gradient is NaN or infinite; the prompts were not changed by it."""


class StepLosses(NamedTuple):
    """Losses of one batch over all processes: cross entropy, and 4 x (focal + both dice), each times its weight."""

    global_loss: float
    local_loss: float

    @property
    def loss(self) -> float:
        """Their sum, which is minimised."""
        return sum(self)


def with_known_mask(batch: Mapping[str, Tensor]) -> Tensor:
    """Which images of a batch take part in the local loss: `(B,)` bool; none if the batch has no masks."""
    labels, masks = batch["labels"], batch.get("masks")
    if masks is None:
        return torch.zeros_like(labels, dtype=torch.bool)
    return (masks.flatten(1).amin(dim=1) >= 0) | (labels.to(masks.device) == 0)


def count_batch(batch: Mapping[str, Tensor]) -> Tensor:
    """How many images of a batch take part in the global and in the local loss: `(2,)` int64."""
    return torch.tensor([len(batch["labels"]), int(with_known_mask(batch).sum())])


def model_inputs(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """What the model takes of a batch, on its device."""
    return {k: batch[k].to(device, non_blocking=True) for k in MODEL_INPUTS if batch.get(k) is not None}


def training_step(
    model: torch.nn.Module,
    batch: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    *,
    max_grad_norm: float | None = None,
    padding: bool = False,
    loss_weights: tuple[float, float] = (1.0, 1.0),
) -> StepLosses:
    """Forward, backward, clip and step: L = CE + 4 (focal + dice) (equation 4).

    Unequal shares of processes, images without masks and a batch in parts give the loss and gradient of the whole
    batch in one process, because each part is weighted by its share of the images that count.

    Args:
        model ([`AnomalyCLIPModel`], prepared by accelerate).
        batch: this process's share, whole or in parts: `labels` (B,) int, `masks` (B, H, W) float or absent (no local
            loss), and either `pixel_values` (B, 3, H, W) or kept `image_embeds` (B, P) and `patch_embeds`
            (B, M, N, P).
        optimizer, accelerator: the former prepared by the latter.
        max_grad_norm (`float`, above 0, *optional*): clips the gradient's norm.
        padding (`bool`): this process has no share; its batch counts for nothing.
        loss_weights (`tuple` of two `float`, 0 or more): factors on the global and on the local loss; 1 is the paper,
            0 leaves the term out.

    Returns:
        [`StepLosses`] of the whole batch, over all processes.

    Raises:
        NonFiniteLossError: before the prompts are touched.
    """
    device = accelerator.device
    parts = [batch] if isinstance(batch, Mapping) else batch
    counts = torch.stack([count_batch(part) * (not padding) for part in parts]).to(device)
    factors = torch.tensor(loss_weights, device=device) * counts / accelerator.reduce(counts.sum(0)).clamp(min=1)
    sums = torch.zeros(2, device=device)
    for part, factor in zip(parts, factors, strict=True):
        with contextlib.nullcontext() if part is parts[-1] else accelerator.no_sync(model):
            output = model(**model_inputs(part, device), return_dict=True)
            local_loss = output.local_loss if output.local_loss is not None else torch.zeros((), device=device)
            losses = torch.stack([output.global_loss, local_loss]) * factor
            # accelerate averages over processes and divides by its number of parts; here both add up instead.
            accelerator.backward(losses.sum() * accelerator.num_processes * accelerator.gradient_accumulation_steps)
        sums += losses.detach()
    found = StepLosses(*accelerator.reduce(sums).tolist())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norm = accelerator.clip_grad_norm_(parameters, max_grad_norm or float("inf"))
    problem = None
    if not math.isfinite(found.loss):
        problem = f"global_loss={found.global_loss}, local_loss={found.local_loss}"
    # Scaled float16 gradients may overflow; the scaler then skips the step and lowers its scale.
    elif accelerator.scaler is None and not torch.isfinite(norm):
        problem = f"the norm of the gradient is {float(norm)}"
    if problem is None:
        optimizer.step()
    optimizer.zero_grad()
    if problem:
        raise NonFiniteLossError(problem)
    return found
