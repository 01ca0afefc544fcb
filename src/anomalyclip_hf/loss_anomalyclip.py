"""Losses of AnomalyCLIP: cross entropy on images, focal and dice on maps (equation 4 of the paper)."""

import torch
from torch import Tensor, nn

FOCAL_SMOOTHING = 1e-5
DICE_SMOOTHING = 1.0
LOCAL_LOSS_WEIGHT = 4.0


def focal_loss(maps: Tensor, masks: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal loss of each image, without class weights.

    Args:
        maps (`Tensor` of shape `(B, 2, H, W)`, float, in [0, 1]): P(normal) and P(anomalous) of each pixel.
        masks (`Tensor` of shape `(B, H, W)`, float, 0 or 1): 1 = anomalous.
        gamma (`float`, 0 or more): focusing exponent.

    Returns:
        `Tensor` of shape `(B,)`: mean over pixels of `-(1 - pt)^gamma log pt`.
    """
    target = masks.clamp(FOCAL_SMOOTHING, 1 - FOCAL_SMOOTHING)
    other = (1 - masks).clamp(FOCAL_SMOOTHING, 1 - FOCAL_SMOOTHING)
    pt = maps[:, 0] * other + maps[:, 1] * target + FOCAL_SMOOTHING
    return (-((1 - pt) ** gamma) * pt.log()).mean(dim=(-2, -1))


def dice_loss(probabilities: Tensor, masks: Tensor) -> Tensor:
    """Dice loss of each image, with smoothing 1.

    Args:
        probabilities (`Tensor` of shape `(B, H, W)`, float, in [0, 1]): predicted probability of the region.
        masks (`Tensor` of shape `(B, H, W)`, float, 0 or 1): the region.

    Returns:
        `Tensor` of shape `(B,)`: `1 - (2 sum(p y) + 1) / (sum p + sum y + 1)`.
    """
    overlap = (probabilities * masks).sum(dim=(-2, -1))
    total = probabilities.sum(dim=(-2, -1)) + masks.sum(dim=(-2, -1))
    return 1 - (2 * overlap + DICE_SMOOTHING) / (total + DICE_SMOOTHING)


def local_anomaly_loss(similarity_maps: Tensor, masks: Tensor, weight: float = LOCAL_LOSS_WEIGHT) -> Tensor:
    """Weighted sum over layers of the focal loss and both dice losses.

    Args:
        similarity_maps (`Tensor` of shape `(B, M, 2, H, W)`, float, in [0, 1]): maps of M layers, before smoothing.
        masks (`Tensor` of shape `(B, H, W)`, float, 0 or 1): 1 = anomalous. An image whose mask holds a negative value
            has no mask and takes no part.
        weight (`float`): the paper's lambda.

    Returns:
        `Tensor` of shape `()`; 0 if no image has a mask.
    """
    known = (masks.amin(dim=(-2, -1)) >= 0).to(similarity_maps.dtype)
    masks = masks.clamp(min=0).to(similarity_maps.dtype)
    total = similarity_maps.new_zeros(masks.shape[0])
    for maps in similarity_maps.unbind(dim=1):
        total = total + focal_loss(maps, masks) + dice_loss(maps[:, 1], masks) + dice_loss(maps[:, 0], 1 - masks)
    return weight * (total * known).sum() / known.sum().clamp(min=1)


def global_anomaly_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the image scores.

    Args:
        logits (`Tensor` of shape `(B, 2)`, float): similarities already divided by the temperature.
        labels (`Tensor` of shape `(B,)`, int, 0 or 1): 1 = anomalous.
    """
    return nn.functional.cross_entropy(logits, labels)


def fill_masks_of_normal_images(masks: Tensor, labels: Tensor | None) -> Tensor:
    """Give normal images without a mask an empty one; leave anomalous images without a mask unknown.

    Args:
        masks (`Tensor` of shape `(B, H, W)`, float): negative where unknown.
        labels (`Tensor` of shape `(B,)`, int, *optional*): 0 = normal.
    """
    if labels is None:
        return masks
    return torch.where((labels == 0)[:, None, None], masks.clamp(min=0), masks)


def check_targets(batch: int, size: tuple[int, int], labels: Tensor | None, masks: Tensor | None) -> None:
    """Refuse labels and masks of other shapes or values than the losses take; values are not read while compiling.

    Args:
        batch (`int`), size (`tuple[int, int]`): number of images, and their (H, W).
        labels (`Tensor` of shape `(B,)`, 0 or 1, *optional*).
        masks (`Tensor` of shape `(B, H, W)`, in [0, 1] or -1, *optional*).

    Raises:
        ValueError: naming the field.
    """
    if labels is not None and tuple(labels.shape) != (batch,):
        raise ValueError(f"labels has shape {tuple(labels.shape)}, expected ({batch},)")
    if masks is not None and tuple(masks.shape) != (batch, *size):
        raise ValueError(f"masks has shape {tuple(masks.shape)}, expected {(batch, *size)}")
    if torch.compiler.is_compiling():
        return
    if labels is not None and not bool(((labels == 0) | (labels == 1)).all()):
        raise ValueError(f"labels holds {labels.unique().tolist()[:5]}, expected 0 (normal) or 1 (anomalous)")
    if masks is not None and not bool((masks <= 1).all()):  # also true of NaN
        raise ValueError(
            f"masks reaches {masks.max().item():g}, expected 0 (normal) to 1 (anomalous), or -1; the "
            "processor makes such masks"
        )
