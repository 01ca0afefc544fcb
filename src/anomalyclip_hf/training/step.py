"""The one training step, used by the trainer and by anyone with a loop of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator

MODEL_INPUTS = ("pixel_values", "image_embeds", "patch_embeds", "labels", "masks")


class NonFiniteLossError(FloatingPointError):
    """A loss or gradient is NaN or infinite; the prompts were not changed by it."""


class BatchTotals(NamedTuple):
    """What the losses of one optimizer step are divided by, over all processes and parts of the batch: numbers of
    images, and of those in the local loss (with a mask, or normal)."""

    images: int
    masks: int


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


def count_batch(batch: Mapping[str, Tensor]) -> BatchTotals:
    """Count the images of a batch that take part in each loss."""
    return BatchTotals(len(batch["labels"]), int(with_known_mask(batch).sum()))


def model_inputs(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """What the model takes of a batch, on its device."""
    return {k: batch[k].to(device, non_blocking=True) for k in MODEL_INPUTS if batch.get(k) is not None}


def training_step(
    model: torch.nn.Module,
    batch: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    *,
    totals: BatchTotals | None = None,
    max_grad_norm: float | None = None,
    sync: bool = True,
    padding: bool = False,
    global_loss_weight: float = 1.0,
    local_loss_weight: float = 1.0,
) -> StepLosses:
    """Forward, backward and, at the end of a batch, clip and step: L = CE + 4 (focal + dice) (equation 4).

    Several processes with unequal shares, images without masks and accumulated parts give the loss and gradient of the
    whole batch in one process, because each part is weighted by its share of `totals`.

    Args:
        model ([`AnomalyCLIPModel`], prepared by accelerate).
        batch: `labels` (B,) int, `masks` (B, H, W) float or absent (no local loss), and either `pixel_values`
            (B, 3, H, W) or kept `image_embeds` (B, P) and `patch_embeds` (B, M, N, P).
        optimizer, accelerator: the former prepared by the latter.
        totals ([`BatchTotals`], *optional*): counts of the whole batch; needed when it is accumulated in parts.
            Summed over the processes where absent.
        max_grad_norm (`float`, above 0, *optional*): clips the gradient's norm.
        sync (`bool`): this is the last part of the batch: exchange gradients and step.
        padding (`bool`): the batch holds no image of this process's share and counts for nothing.
        global_loss_weight, local_loss_weight (`float`, 0 or more): factors on the two terms; 1 is the paper, 0 leaves
            the term out.

    Returns:
        [`StepLosses`]: this part's contributions, summed over processes; over all parts they add up to the losses.

    Raises:
        NonFiniteLossError: before the prompts are touched.
    """
    device = accelerator.device
    images, known = (0, 0) if padding else count_batch(batch)
    if totals is None:
        counts = accelerator.reduce(torch.tensor([images, known], device=device), "sum")
        totals = BatchTotals(*counts.tolist())

    with contextlib.nullcontext() if sync else accelerator.no_sync(model):
        output = model(**model_inputs(batch, device), return_dict=True)
        global_loss = output.global_loss * (global_loss_weight * images / max(totals.images, 1))
        local_loss = output.local_loss if output.local_loss is not None else global_loss.new_zeros(())
        local_loss = local_loss * (local_loss_weight * known / max(totals.masks, 1))
        losses = StepLosses(*accelerator.reduce(torch.stack([global_loss, local_loss]).detach(), "sum").tolist())
        if not torch.isfinite(torch.tensor(losses)).all():
            optimizer.zero_grad()
            raise NonFiniteLossError(f"global_loss={losses.global_loss}, local_loss={losses.local_loss}")
        # accelerate averages over processes and divides by its number of parts; here both add up instead.
        parts = accelerator.num_processes * accelerator.gradient_accumulation_steps
        accelerator.backward((global_loss + local_loss) * parts)

    if sync:
        parameters = [p for p in model.parameters() if p.requires_grad]
        norm = accelerator.clip_grad_norm_(parameters, max_grad_norm or float("inf"))
        # Scaled float16 gradients may overflow; the scaler then skips the step and lowers its scale.
        if accelerator.scaler is None and not torch.isfinite(norm):
            optimizer.zero_grad()
            raise NonFiniteLossError(f"the norm of the gradient is {float(norm)}")
        optimizer.step()
        optimizer.zero_grad()
    return losses
