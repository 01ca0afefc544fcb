"""The one loop over images: prediction, calibration and evaluation read the records that it yields.

A source of rows goes in, a record of each comes out, in order. Nothing that is wrong with one image ends the loop: the
record of that image says why it was skipped.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset

from ..data.files import is_disk_full


class Record(NamedTuple):  # a tuple: `DataLoader` pins the tensors in it
    """What became of one image.

    Args:
        index: position of the image in its source.
        item: what `prepare` returned for it; None where it failed.
        result: what `score` returned for it; None where it was skipped.
        error: why it was skipped; None where it was scored.
        path: of the image, where its row is a path or has one.
    """

    index: int  # type: ignore[assignment]
    item: Any = None
    result: Any = None
    error: str | None = None
    path: str | None = None


def score_images(
    source: Any,
    prepare: Callable[[Any], Any],
    score: Callable[[list[Any]], Iterable[Any]],
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    indices: Sequence[int] | None = None,
    wanted: Callable[[int], bool] | None = None,
    pin_memory: bool = False,
) -> Iterator[Record]:
    """Score images in batches, which may be of different sizes where `prepare` makes them alike.

    Args:
        source: has a length and rows by position, or is a stream of rows; what a row is, is between it and `prepare`.
        prepare: decodes and prepares one row; called in worker processes where there are any.
        score: returns one result for each of up to `batch_size` prepared rows. Where it fails for several, they are
            scored one by one.
        batch_size: images per call of `score`, 1 or more.
        num_workers: processes that decode images, spawned or forked; 0 decodes in this one. A stream uses one at most.
        indices: positions to score; all of them by default (see [`own_share`]).
        wanted: of a stream, which has no `indices`: whether to score the row of a position.
        pin_memory: put prepared tensors where a GPU copies them from without waiting.

    Yields:
        [`Record`] of each position, in order.

    Raises:
        ValueError: `batch_size` or `num_workers` is out of range.
    """
    if batch_size < 1 or num_workers < 0:
        raise ValueError(f"batch_size={batch_size}, num_workers={num_workers}: expected 1 or more and 0 or more")
    # A generator of its own leaves the caller's random numbers alone.
    more: dict[str, Any] = {"pin_memory": pin_memory, "generator": torch.Generator()}
    if hasattr(source, "__len__"):
        more["sampler"] = list(range(len(source)) if indices is None else indices)
        if not more["sampler"]:
            return
        rows: Any = _Prepared(source, prepare)
    else:
        rows = _PreparedStream(source, prepare, wanted)
        num_workers = min(num_workers, 1)
    more |= {"num_workers": num_workers, "worker_init_fn": _start_worker if num_workers else None}
    for batch in DataLoader(rows, batch_size, collate_fn=_as_they_are, **more):
        readable = [record for record in batch if record.error is None]
        scored = {record.index: record for record in _score(score, readable)}
        yield from (scored.get(record.index, record) for record in batch)


def own_share(indices: Sequence[int], batch_size: int, process: int = 0, num_processes: int = 1) -> list[int]:
    """The positions that one of several processes scores.

    Processes share whole batches, so that each image is scored in the same company whatever their number.

    Args:
        indices: positions in a source.
        batch_size: of the batches that they are cut into; the last one may be smaller.
        process, num_processes: number of this process, from 0, and of all.
    """
    starts = range(0, len(indices), batch_size)[process::num_processes]
    return [index for start in starts for index in indices[start : start + batch_size]]


def explain(error: BaseException) -> str:
    """Why an image was skipped, as its record says it: errors of ours by their message, others by their kind too."""
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return text.removesuffix(": ")


class OneProcess:
    """Stands for an `Accelerator` where there is none."""

    process_index, num_processes, is_main_process = 0, 1, True

    def wait_for_everyone(self) -> None:
        """Nobody else is there."""


class FullDisk:
    """Tells a disk that is full from a file that can't be written: `LIMIT` files in a row fail for want of space."""

    LIMIT = 3

    def __init__(self) -> None:
        self._count = 0

    def note(self, error: BaseException) -> None:
        """Count a failed write.

        Raises:
            OSError: `error`, if it is the last of `LIMIT` in a row that a full or read-only disk made.
        """
        self._count = self._count + 1 if is_disk_full(error) else 0
        if self._count >= self.LIMIT:
            raise error

    def clear(self) -> None:
        """Note that a file was written."""
        self._count = 0


class _Prepared:
    """Rows that are prepared as they are read, an error in place of those that can't be."""

    def __init__(self, source: Any, prepare: Callable[[Any], Any]):
        self.source, self.prepare = source, prepare

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        return _prepare(index, partial(operator.getitem, self.source, index), self.prepare)


class _PreparedStream(IterableDataset):
    """The same of a stream."""

    def __init__(self, source: Any, prepare: Callable[[Any], Any], wanted: Callable[[int], bool] | None):
        self.source, self.prepare, self.wanted = source, prepare, wanted

    def __iter__(self) -> Iterator[Record]:
        for index, row in enumerate(self.source):
            if self.wanted is None or self.wanted(index):
                yield _prepare(index, partial(_as_they_are, row), self.prepare)


def _prepare(index: int, read: Callable[[], Any], prepare: Callable[[Any], Any]) -> Record:
    path = None
    try:
        row = read()
        path = row.get("path") if isinstance(row, Mapping) else row if isinstance(row, str) else None
        return Record(index, prepare(row), path=path)
    except Exception as error:  # decoders raise anything
        return Record(index, error=explain(error), path=path)


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)  # the workers share the cores already


def _as_they_are(rows: Any) -> Any:
    return rows


def _score(score: Callable[[list[Any]], Iterable[Any]], records: list[Record]) -> Iterator[Record]:
    """Score a batch; where that fails, image by image, so that a fault hits the one that has it."""
    if not records:
        return
    try:
        results = score([record.item for record in records])
    except Exception as error:
        if len(records) == 1:
            yield records[0]._replace(error=explain(error))
            return
        for record in records:
            yield from _score(score, [record])
        return
    for record, result in zip(records, results, strict=True):
        yield record._replace(result=result)
