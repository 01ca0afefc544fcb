"""Batches for training and evaluation: decoded and preprocessed in worker processes, in the data set's order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch.utils.data import DataLoader

from .paint import fit_mask

if TYPE_CHECKING:
    import datasets

UNKNOWN_LABEL = -1


def make_loader(
    dataset: datasets.Dataset | datasets.IterableDataset,
    processor: Callable[..., Any] | None,
    batch_size: int = 8,
    num_workers: int = 0,
    *,
    collate: Callable[[list], Any] | None = None,
    shuffle: bool = False,
    **more: Any,
) -> DataLoader:
    """Make a `DataLoader` over a loaded data set; at most `num_workers * prefetch_factor` batches are held at a time.

    Each batch is a dictionary of
    - `pixel_values` (B, 3, H, W) float32 and `masks` (B, H, W) float32 as the processor gives them; the mask of a
      normal image is all 0, that of an anomalous image without a mask is what the processor makes of None;
    - `labels` (B,) int64, 0 normal, 1 anomalous, -1 unknown;
    - `has_mask` (B,) bool, whether the pixels' truth is known (a normal image's always is);
    - `original_sizes`, a list of (height, width) in pixels;
    - `class_name`, `defect_type`, `path`, lists of `str`.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): from `load_anomaly_dataset`.
        processor: called as `processor(images, masks=..., return_tensors="pt")` in the workers.
        batch_size (`int`): images per batch.
        num_workers (`int`): worker processes; 0 decodes in the calling one. A stream uses at most one, to keep order.
        collate (callable, *optional*): makes a batch from the rows in place of all this, without a processor.
        shuffle (`bool`): draw another order in each pass; not of a stream.
        **more: as in `DataLoader`: sampler, generator, pin_memory, drop_last, prefetch_factor and the like.

    Raises:
        ImageReadError: while iterating; names the file that cannot be read or the mask that does not fit.
    """
    if batch_size < 1 or num_workers < 0:
        raise ValueError(f"batch_size={batch_size} must be 1 or more, and num_workers={num_workers} 0 or more")
    stream = not hasattr(dataset, "__len__")
    workers = min(num_workers, 1) if stream else num_workers
    if not workers:
        more.pop("prefetch_factor", None)
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=batch_size,
        num_workers=workers,
        shuffle=shuffle and not stream,
        collate_fn=collate or partial(collate_samples, processor=processor),
        worker_init_fn=_start_worker if workers else None,
        **more,
    )


def collate_samples(samples: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Any]:
    """Turn samples of the one schema into one batch, see `make_loader`."""
    images = [sample["image"] for sample in samples]
    labels = [UNKNOWN_LABEL if sample["label"] is None else int(sample["label"]) for sample in samples]
    masks = [_mask_of(sample) for sample in samples]
    batch = dict(processor(images, masks=masks, return_tensors="pt"))
    batch["labels"] = torch.tensor(labels, dtype=torch.long)
    batch["has_mask"] = torch.tensor([mask is not None for mask in masks])
    batch["original_sizes"] = [(image.height, image.width) for image in images]
    for name in ("class_name", "defect_type", "path"):
        batch[name] = [sample[name] for sample in samples]
    return batch


def _mask_of(sample: Mapping[str, Any]) -> Image.Image | None:
    """A sample's truth at its image's size: all 0 for a normal image, None where it is unknown."""
    image, mask = sample["image"], sample["mask"]
    if mask is not None:
        return fit_mask(mask, image.size, f"of {sample['path']}")
    return Image.new("L", image.size, 0) if sample["label"] == 0 else None


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)  # the workers share the cores already
