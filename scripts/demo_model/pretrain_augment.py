"""Variation of drawn images on the fly, so that they never repeat: geometry, light, color, and foreign patches."""

import torch
from torch import Tensor, nn


def _uniform(low: float, high: float, *shape: int) -> Tensor:
    return torch.rand(shape) * (high - low) + low


def _some(share: float, count: int) -> Tensor:
    """A column of zeros and ones `(count, 1, 1, 1)`, ones with the given probability."""
    return (torch.rand(count, 1, 1, 1) < share).float()


def warp(images: Tensor, masks: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Flip, turn, zoom and shift.

    Args:
        images (`Tensor` of shape `(B, 3, S, S)`, float): pairs at 2k, 2k + 1; half of the batches warp pairs alike.
        masks (`Tensor` of shape `(B, 1, S, S)`, float, 0 or 1).
        size (`int`, pixels): side of the result.
    """
    alike = bool(torch.rand(()) < 0.5)
    count = len(images) // 2 if alike else len(images)
    turned = torch.randint(0, 4, (count,)) * (torch.pi / 2)
    angle = turned + (torch.rand(count) < 0.3) * _uniform(-0.25, 0.25, count)
    closest = 0.7 * size / images.shape[-1]
    scale = _uniform(closest, 1.0, count, 1) * _uniform(0.9, 1.1, count, 2)
    scale = scale.clamp(max=1.0) * torch.where(torch.rand(count, 2) < 0.5, -1.0, 1.0)
    shift = _uniform(-1, 1, count, 2) * (1 - scale.abs())
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(count, 2, 2)
    theta = torch.cat([rotation * scale[:, None], shift[..., None]], dim=2)
    theta = theta.repeat_interleave(2, dim=0) if alike else theta
    grid = nn.functional.affine_grid(theta, [len(images), 1, size, size], align_corners=False)
    both = torch.cat([images, masks], dim=1)
    both = nn.functional.grid_sample(both, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return both[:, :3], (both[:, 3:] > 0.5).float()


def paste_foreign(images: Tensor, masks: Tensor, wanted: Tensor) -> Tensor:
    """Paste a blob of another image, or of another place of the same one, into flawless images; adds to `masks`.

    Args:
        images `(B, 3, S, S)`, masks `(B, 1, S, S)` (both changed in place), wanted `(B,)` bool: where to try.
    """
    chosen = torch.nonzero(wanted & (masks.flatten(1).sum(1) == 0))[:, 0]
    if not len(chosen):
        return masks
    count, size = len(chosen), images.shape[-1]
    cells = (4, 6, 9, 14)[int(torch.randint(0, 4, ()))]
    noise = nn.functional.interpolate(torch.rand(count, 1, cells, cells), size=size, mode="bicubic")
    near = nn.functional.interpolate(torch.rand(count, 1, 3, 3), size=size, mode="bilinear")
    field = (noise + 0.8 * near).flatten(1)
    keep = (torch.exp(_uniform(-5.3, -2.5, count)) * size * size).long().clamp(min=16)
    border = field.sort(dim=1, descending=True).values.gather(1, keep[:, None])
    blob = (field > border).float().view(count, 1, size, size)
    own = images[chosen].roll((int(torch.randint(size // 4, size * 3 // 4, ())),) * 2, dims=(2, 3)).flip(-1)
    other = torch.where(_some(0.5, count) > 0, own, images[torch.randint(0, len(images), (count,))])
    other = other * _uniform(0.6, 1.4, count, 1, 1, 1) + _uniform(-0.15, 0.15, count, 3, 1, 1)
    alpha = nn.functional.avg_pool2d(blob, 3, stride=1, padding=1) * _uniform(0.45, 1.0, count, 1, 1, 1)
    pasted = (images[chosen] * (1 - alpha) + other * alpha).clamp(0, 1)
    change = ((pasted - images[chosen]).abs().mean(1, keepdim=True) * blob).flatten(1).sum(1) / keep
    seen = (change > 0.05).view(-1, 1, 1, 1).float()
    images[chosen] = pasted * seen + images[chosen] * (1 - seen)
    masks[chosen] = blob * seen
    return masks


def relight(images: Tensor, strong: Tensor) -> Tensor:
    """Change brightness, contrast, light, sharpness and noise; where `strong`, color too.

    Args:
        images (`Tensor` of shape `(B, 3, S, S)`, float in [0, 1]).
        strong (`Tensor` of shape `(B,)`, bool): images whose captions name no color.
    """
    count, size = len(images), images.shape[-1]
    strong = strong.view(-1, 1, 1, 1).float()
    gray = images.mean(1, keepdim=True)
    images = torch.lerp(images, gray.expand_as(images), _some(0.25, count) * strong)
    images = torch.lerp(images, 1 - images, _some(0.06, count) * strong)
    images = images * (1 + strong * _some(0.5, count) * _uniform(-0.3, 0.3, count, 3, 1, 1))
    veil = images[torch.randperm(count)]
    images = torch.lerp(images, veil, _some(0.1, count) * strong * _uniform(0.05, 0.2, count, 1, 1, 1))
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * torch.exp(_uniform(-0.5, 0.35, count, 1, 1, 1)) + mean
    images = images + _uniform(-0.15, 0.15, count, 1, 1, 1)
    light = nn.functional.interpolate(_uniform(-0.25, 0.25, count, 1, 3, 3), size=size, mode="bilinear")
    images = images * (1 + light * _some(0.3, count))
    soft = nn.functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    images = torch.lerp(images, soft, _some(0.3, count) * _uniform(-0.7, 1.0, count, 1, 1, 1))
    images = images + torch.randn_like(images) * _some(0.3, count) * _uniform(0, 0.05, count, 1, 1, 1)
    return images.clamp(0, 1)
