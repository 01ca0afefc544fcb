"""Unlabelled batches: images of one kind judge one another, and patches that few other images know are odd (MuSc).

Transductive: a score depends on the images scored with it, so it is reported under its own name and never mixed with
scores of single images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..image_processing_anomalyclip import gaussian_smooth
from ..sharing.references import default_layers, describe_patches
from .engine import Record, explain, score_images

if TYPE_CHECKING:
    from .. import AnomalyCLIPImageProcessor, AnomalyCLIPModel

SHARE = 0.3  # of the other images: those that know a patch best
BLOCK_SIZE = 200
MIN_IMAGES = 5
SIMILARITIES = 2**22  # held at once


@torch.no_grad()
def score_mutually(features: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """How few of the other images know each patch.

    For a patch p, a(p, j) is the least distance to a patch of image j; its value is the mean of the smallest 30 % of
    a(p, j) over the other images, and the mean over sets. The image's score is the highest value.

    Args:
        features (`Tensor` of shape `(N, S, P, d)`, float): of [`MutualJudge.describe`], N >= 5.
        device: where similarities are computed; few are held at once.

    Returns:
        `Tensor` of shape `(N, P)`, float32, in [0, 1]: distances of unit vectors, halved.

    Raises:
        ValueError: if there are too few images.
    """
    count, sets, patches, _ = features.shape
    _refuse_few(count)
    least = torch.zeros(count, patches)
    kept = max(1, int(SHARE * (count - 1)))
    for part in range(sets):
        distances = _least_distances(features[:, part].to(device))
        least += distances.topk(kept, dim=1, largest=False).values.mean(dim=1) / sets
    return least


class MutualJudge:
    """Lets images judge one another, and makes results of it.

    Args:
        model ([`AnomalyCLIPModel`]), processor ([`AnomalyCLIPImageProcessor`]): which resizes to one size.
        threshold (`float` in [0, 1], *optional*): score from which the label is "anomalous"; never the model's, whose
            thresholds are for other scores.
        sigma (`float`, pixels at the model's input size, *optional*): smoothing; the processor's own if absent.
    """

    def __init__(
        self,
        model: AnomalyCLIPModel,
        processor: AnomalyCLIPImageProcessor,
        threshold: float | None = None,
        sigma: float | None = None,
    ):
        self.model, self.threshold = model, threshold
        self.sigma = processor.sigma if sigma is None else sigma
        self.size = (processor.size["height"], processor.size["width"])

    @torch.no_grad()
    def describe(self, pixel_values: Sequence[Tensor]) -> Tensor:
        """Unit vectors of the patches of images, one set for each layer and neighbourhood.

        The layers are the model's `reference_layers`, or the middle ones, on the original path.

        Args:
            pixel_values (`Tensor` of shape `(3, H, W)`, float, of each image).

        Returns:
            `Tensor` of shape `(B, S, N, d)`, float16, on the CPU; states are layer-normed over the whole grid.
        """
        config = self.model.config
        layers = config.reference_layers or default_layers(config.vision_config.num_hidden_layers)
        states: Any = dict.fromkeys(layers)
        self.model.encode_images(torch.stack([*pixel_values]).to(self.model.device), kept_states=states)
        for layer, found in states.items():
            patches = found[:, 1:].float()
            patches = nn.functional.layer_norm(patches, patches.shape[1:])
            states[layer] = torch.cat([found[:, :1].float(), patches], dim=1)
        return torch.stack(describe_patches(states, layers, self._grid_of(pixel_values[0].shape)), dim=1).half().cpu()

    def finish(self, size: tuple[int, int], values: Tensor) -> dict[str, Any]:
        """The result of an image of a size (height, width) in pixels, as the pipeline's, and its `method`."""
        shown = values.view(1, 1, *self._grid_of(self.size))
        shown = nn.functional.interpolate(shown, size=self.size, mode="bilinear", align_corners=False)
        shown = gaussian_smooth(shown, self.sigma)
        shown = nn.functional.interpolate(shown, size=size, mode="bilinear", align_corners=False)[0, 0]
        score = float(values.max())
        label = {} if self.threshold is None else {"label": "anomalous" if score >= self.threshold else "normal"}
        return {"score": score, "anomaly_map": shown.numpy(), "method": "mutual", **label}

    def _grid_of(self, size: Sequence[int]) -> tuple[int, int]:
        patch = self.model.config.vision_config.patch_size
        return size[-2] // patch, size[-1] // patch


def score_images_mutually(
    source: Any,
    prepare: Callable[[Any], Any],
    describe: Callable[[list[Any]], Tensor],
    finish: Callable[[Any, Tensor], Any],
    *,
    indices: Sequence[int],
    device: torch.device | str = "cpu",
    block_size: int = BLOCK_SIZE,
    **loading: Any,
) -> Iterator[Record]:
    """Score images against one another, block by block; a drop-in for [`score_images`], which reads them, twice.

    Args:
        source, prepare, indices, **loading: as of [`score_images`].
        describe: features `(B, S, P, d)` of prepared rows, as [`MutualJudge`] gives them; all grids are equal.
        finish: the result of a prepared row, from it and the values `(P,)` of its patches.
        device: as of [`score_mutually`].
        block_size (`int`, 5 or more): images judge one another within blocks of about equal size, at most this.

    Yields:
        [`Record`] of each position, in order.

    Raises:
        ValueError: if there are too few images, or blocks are too small.
    """
    _refuse_few(min(len(indices), block_size))
    for positions in blocks_of(indices, block_size):
        judged = {one.index: one for one in judge_block(source, prepare, describe, positions, device, **loading)}
        readable = [index for index, one in judged.items() if one.error is None]
        read = score_images(source, prepare, lambda items: items, indices=readable, **loading)
        for record in judged.values():
            if record.error is None:
                values, record = record.result, next(read)
            if record.error is None:
                try:
                    record = record._replace(result=finish(record.item, values))
                except Exception as error:
                    record = record._replace(error=explain(error))
            yield record


def judge_block(
    source: Any,
    prepare: Callable[[Any], Any],
    describe: Callable[[list[Any]], Tensor],
    indices: Sequence[int],
    device: torch.device | str = "cpu",
    **loading: Any,
) -> list[Record]:
    """What the images of a block know of one another: records with the values `(P,)` of the patches of each.

    Arguments are as of [`score_images_mutually`].
    """
    records = [
        record._replace(item=None) for record in score_images(source, prepare, describe, indices=indices, **loading)
    ]
    described = [record.result for record in records if record.error is None]
    try:
        _refuse_few(len(described))
    except ValueError as error:
        return [record._replace(error=record.error or str(error)) for record in records]
    values = iter(score_mutually(torch.stack(described), device))
    return [record if record.error else record._replace(result=next(values)) for record in records]


def _refuse_few(count: int) -> None:
    if count < MIN_IMAGES:
        raise ValueError(
            f"{count} images in a block: each is judged by the {SHARE:.0%} of the others that know it best, so at "
            f"least {MIN_IMAGES} are needed"
        )


def blocks_of(indices: Sequence[int], block_size: int = BLOCK_SIZE) -> list[list[int]]:
    """The fewest blocks of at most `block_size` positions, of sizes that differ by one at most."""
    return [block.tolist() for block in np.array_split(indices, -(-len(indices) // block_size))]


def _least_distances(features: Tensor) -> Tensor:
    """For each image, other image and patch of the first the least distance, halved: `(N, N, P)`; inf to itself.

    Each pair of images is multiplied once: rows of their similarities serve one of them, columns the other.
    """
    count, patches, _ = features.shape
    nearest = torch.full((count, count, patches), -torch.inf)
    step = max(1, SIMILARITIES // patches**2)
    for index in range(count - 1):
        own = _unit(features[index])
        for start in range(index + 1, count, step):
            others = _unit(features[start : start + step])
            similar = others @ own.T  # (n, patches of others, own patches)
            nearest[index, start : start + step] = similar.amax(dim=1).cpu()
            nearest[start : start + step, index] = similar.amax(dim=2).cpu()
    return (2 - 2 * nearest.clamp(max=1)).sqrt_().div_(2)


def _unit(features: Tensor) -> Tensor:
    return nn.functional.normalize(features.float(), dim=-1)  # after the rounding to float16
