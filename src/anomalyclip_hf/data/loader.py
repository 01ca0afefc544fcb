"""Rows of a data set read in worker processes, in the data set's order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    import datasets


def make_loader(
    dataset: datasets.Dataset | datasets.IterableDataset,
    collate: Callable[[list], Any],
    batch_size: int = 8,
    num_workers: int = 0,
    **more: Any,
) -> DataLoader:
    """Make a `DataLoader` over a loaded data set; at most `num_workers * prefetch_factor` batches are held at a time.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): from `load_anomaly_dataset`.
        collate: makes a batch from the list of its rows, in the workers.
        batch_size (`int`): images per batch.
        num_workers (`int`): worker processes; 0 decodes in the calling one. A stream uses at most one, to keep order.
        **more: as in `DataLoader`: sampler, generator, pin_memory, drop_last, prefetch_factor and the like.

    Raises:
        ImageReadError: while iterating; names the file that cannot be read.
    """
    workers = num_workers if hasattr(dataset, "__len__") else min(num_workers, 1)
    if not workers:
        more.pop("prefetch_factor", None)
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_start_worker if workers else None,
        **more,
    )


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)  # the workers share the cores already
