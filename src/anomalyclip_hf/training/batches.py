"""Batches of a data set by index: from kept features, or from the pictures themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .samples import TrainingSamples

if TYPE_CHECKING:
    from .feature_cache import FeatureCache


class ImageBatches:
    """Batches of prepared pictures: `pixel_values`, `labels` and, if asked for, `masks`.

    Args:
        samples ([`TrainingSamples`]), processor ([`AnomalyCLIPProcessor`]).
        with_masks (`bool`): also answer masks; False where the local loss takes no part.
    """

    def __init__(self, samples: TrainingSamples, processor: Any, with_masks: bool = True):
        self.samples, self.processor, self.with_masks = samples, processor, with_masks

    def __call__(self, indices: np.ndarray) -> dict[str, Any]:
        loaded = [self.samples.load(int(index)) for index in indices]
        masks = [mask for _, mask in loaded] if self.with_masks else None
        try:
            prepared = self.processor([image for image, _ in loaded], masks=masks, return_tensors="pt")
        except (ValueError, TypeError) as error:
            names = ", ".join(self.samples.paths[index] for index in indices)
            raise ValueError(f"{error} (of the images {names})") from error
        return {**prepared, "labels": torch.from_numpy(self.samples.labels[indices])}


class CachedBatches:
    """Batches of kept features: `image_embeds`, `patch_embeds`, `labels` and, if asked for, `masks`.

    Args:
        samples ([`TrainingSamples`]), cache ([`FeatureCache`]) of the same samples.
        with_masks (`bool`): also answer masks.
    """

    def __init__(self, samples: TrainingSamples, cache: FeatureCache, with_masks: bool = True):
        self.samples, self.cache, self.with_masks = samples, cache, with_masks

    def __call__(self, indices: np.ndarray) -> dict[str, Any]:
        batch: dict[str, Any] = self.cache.read(indices, self.with_masks)
        return {**batch, "labels": torch.from_numpy(self.samples.labels[indices])}


class EncodedBatches:
    """What the cache is built from: `pixel_values` and packed `masks` of readable images, reasons for the others."""

    def __init__(self, samples: TrainingSamples, processor: Any):
        self.samples, self.processor = samples, processor

    def __call__(self, indices: np.ndarray) -> dict[str, Any]:
        result: dict[str, Any] = {"indices": [], "unreadable": [], "masks": []}
        pixels = []
        for index in map(int, indices):
            try:
                image, mask = self.samples.load(index)
                prepared = self.processor([image], masks=None if mask is None else [mask], return_tensors="np")
            except (OSError, ValueError, TypeError) as error:
                result["unreadable"].append((index, str(error)))
                continue
            pixels.append(prepared["pixel_values"])
            result["indices"].append(index)
            result["masks"].append(None if mask is None else np.packbits(prepared["masks"][0] > 0.5))
        result["pixel_values"] = torch.from_numpy(np.concatenate(pixels)) if pixels else None
        return result


class _Parts(Dataset):
    def __init__(self, source: Any, parts: Sequence[np.ndarray]):
        self.source, self.parts = source, parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source(self.parts[index])


def iterate_batches(source: Any, parts: Sequence[np.ndarray], num_workers: int = 0) -> Iterator[dict[str, Any]]:
    """One batch per part, in order.

    Args:
        source: [`ImageBatches`], [`CachedBatches`] or [`EncodedBatches`].
        parts: the indices of each batch.
        num_workers (`int`): processes that decode pictures; kept features need none.
    """
    if num_workers == 0 or isinstance(source, CachedBatches) or len(parts) < 2:
        return map(source, parts)
    # A generator of its own, so that the workers' seeds leave the training's random numbers alone.
    generator = torch.Generator().manual_seed(0)
    return iter(DataLoader(_Parts(source, parts), batch_size=None, num_workers=num_workers, generator=generator))
