"""Batches for training and evaluation: decoded and preprocessed in worker processes, in the data set's order."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Sampler
from torch.utils.data import Dataset as TorchDataset

from .masks import ImageReadError, fit_mask

UNKNOWN_LABEL = -1


@dataclass(frozen=True)
class LoaderSpeed:
    """What `measure_loader` saw.

    Args:
        images (`int`), seconds (`float`): images delivered after the first batch, and the time they took.
        num_workers, batch_size (`int`): of the loader.
    """

    images: int
    seconds: float
    num_workers: int
    batch_size: int

    @property
    def images_per_second(self) -> float:
        """Images per second; 0 where nothing was delivered."""
        return self.images / self.seconds if self.seconds else 0.0


def make_loader(
    dataset,
    processor: Any,
    batch_size: int = 8,
    num_workers: int = 0,
    *,
    collate: Callable[[list], Any] | None = None,
    sampler: Sampler | Sequence[int] | None = None,
    shuffle: bool = False,
    generator: torch.Generator | None = None,
    keep_masks: bool = False,
    pin_memory: bool = False,
    drop_last: bool = False,
    prefetch_factor: int = 2,
    skip_unreadable: bool = False,
) -> DataLoader:
    """Make a `DataLoader` over a loaded data set; at most `num_workers * prefetch_factor` batches are held at a time.

    Each batch is a dictionary of
    - `pixel_values` (B, 3, H, W) float32 and `masks` (B, H, W) float32 as the processor gives them; the mask of a
      normal image is all 0, that of an anomalous image without a mask is what the processor makes of None;
    - `labels` (B,) int64, 0 normal, 1 anomalous, -1 unknown;
    - `has_mask` (B,) bool, whether the pixels' truth is known (a normal image's always is);
    - `original_sizes`, a list of (height, width) in pixels;
    - `class_name`, `defect_type`, `path`, lists of `str`;
    - `original_masks` with `keep_masks`, a list of mode-L images at the original size, None where `has_mask` is False.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): from `load_anomaly_dataset`.
        processor: called as `processor(images, masks=..., return_tensors="pt")` in the workers.
        collate (callable, *optional*): makes a batch from the rows in place of all this, without a processor.
        batch_size (`int`): images per batch.
        num_workers (`int`): worker processes; 0 decodes in the calling one. A stream uses at most one, to keep order.
        sampler, shuffle, generator, pin_memory, drop_last, prefetch_factor: as in `DataLoader`.
        keep_masks (`bool`): also give the masks at the original size, for evaluation.
        skip_unreadable (`bool`): leave out samples that cannot be read, and list them in the batch as `unreadable`,
            pairs of place in the batch asked for and error; a batch without any sample left holds nothing else.

    Raises:
        ImageReadError: while iterating, unless `skip_unreadable`: names the file that cannot be read or the mask that
            does not fit.
    """
    if batch_size < 1 or num_workers < 0:
        raise ValueError(f"batch_size={batch_size} must be 1 or more, and num_workers={num_workers} 0 or more")
    stream = not hasattr(dataset, "__len__")
    workers = min(num_workers, 1) if stream else num_workers
    more: dict[str, Any] = {"prefetch_factor": prefetch_factor} if workers else {}
    return DataLoader(
        _Stream(dataset) if stream else _Rows(dataset, skip_unreadable),
        batch_size=batch_size,
        num_workers=workers,
        sampler=sampler,
        shuffle=shuffle if not stream else False,
        generator=generator,
        collate_fn=collate
        or partial(collate_samples, processor=processor, keep_masks=keep_masks, skip_unreadable=skip_unreadable),
        pin_memory=pin_memory,
        drop_last=drop_last,
        worker_init_fn=_start_worker if workers else None,
        **more,
    )


def collate_samples(
    samples: Sequence[dict], processor: Callable[..., Any], keep_masks: bool = False, skip_unreadable: bool = False
) -> dict[str, Any]:
    """Turn samples of the one schema into one batch, see `make_loader`."""
    if skip_unreadable:
        errors = [_why_unreadable(sample) for sample in samples]
        samples = [sample for sample, error in zip(samples, errors, strict=True) if error is None]
        unreadable = [(place, error) for place, error in enumerate(errors) if error is not None]
        batch = collate_samples(samples, processor, keep_masks) if samples else {}
        return batch | {"unreadable": unreadable}
    images = [sample["image"] for sample in samples]
    labels = [UNKNOWN_LABEL if sample["label"] is None else int(sample["label"]) for sample in samples]
    masks = [_mask_of(sample, label) for sample, label in zip(samples, labels, strict=True)]
    batch = dict(processor(images, masks=masks, return_tensors="pt"))
    batch["labels"] = torch.tensor(labels, dtype=torch.long)
    batch["has_mask"] = torch.tensor([mask is not None for mask in masks])
    batch["original_sizes"] = [(image.height, image.width) for image in images]
    for name in ("class_name", "defect_type", "path"):
        batch[name] = [sample[name] for sample in samples]
    if keep_masks:
        batch["original_masks"] = masks
    return batch


def measure_loader(
    dataset, processor: Callable[..., Any], num_workers: int = 0, seconds: float = 5.0, batch_size: int = 8
) -> LoaderSpeed:
    """Measure images per second decoded and preprocessed; the first batch, which starts the workers, does not count.

    Args:
        dataset (`datasets.Dataset`): from `load_anomaly_dataset`; read again from the start where it ends too early.
        processor: as in `make_loader`; its own size sets the pixels, 518 for AnomalyCLIP.
        num_workers, batch_size (`int`): as in `make_loader`.
        seconds (`float`): how long to measure.
    """
    if len(dataset) == 0:
        raise ValueError("the data set is empty: nothing to measure")
    # Cycled by the sampler, so that workers start once.
    indices = _Cycle(len(dataset))
    batches = iter(make_loader(dataset, processor, batch_size, num_workers, sampler=indices))
    next(batches)
    images, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        images += len(next(batches)["labels"])
        passed = time.perf_counter() - start
    del batches
    return LoaderSpeed(images, passed, num_workers, batch_size)


class _Rows(TorchDataset):
    """A map-style data set read row by row: a batch then holds its decoded pictures once."""

    def __init__(self, dataset, skip_unreadable: bool = False):
        self.dataset, self.skip_unreadable = dataset, skip_unreadable

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index) -> dict:
        try:
            return self.dataset[int(index)]
        except ImageReadError as error:
            if not self.skip_unreadable:
                raise
            return {"unreadable": str(error)}


class _Stream(IterableDataset):
    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        return iter(self.dataset)


class _Cycle(Sampler):
    def __init__(self, length: int):
        self.length = length

    def __iter__(self):
        while True:
            yield from range(self.length)

    def __len__(self) -> int:
        return 1 << 40


def _why_unreadable(sample: dict) -> str | None:
    """Why a sample cannot be used: its own error, or a mask that does not fit; None where it can."""
    if "unreadable" in sample:
        return sample["unreadable"]
    try:
        _mask_of(sample, UNKNOWN_LABEL)
    except ImageReadError as error:
        return str(error)
    return None


def _mask_of(sample: dict, label: int) -> Image.Image | None:
    image, mask = sample["image"], sample["mask"]
    if mask is not None:
        return fit_mask(mask, image.size, f"of {sample['path']}")
    return Image.new("L", image.size, 0) if label == 0 else None


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)  # the workers share the cores already
