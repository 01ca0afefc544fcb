"""Records of an evaluation on disk: what was scored is there, what is not is still to be scored.

A folder holds the records of one data set, `run.json` what they depend on, and a folder for each class. There lie
shards named by their first image. `<position>.parquet` has a row for each image; beside it are the pixels that can be
judged, whole (`.maps.npy` and `.masks.npy`, memory-mapped) or counted (`.<number of the method>.npz`). The table is
written last, so that a shard is complete where it has one. `class.json` are the metrics of the class, which take the
pixels' place.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.files import atomic_path, safe_name
from ..scoring.engine import Record
from .streaming import StreamingPixelMetrics

MAX_BUFFER = 2**24  # pixels of whole maps held before a shard is written
_SHARD = re.compile(r"\d{8}\.(parquet|maps\.npy|masks\.npy|\d+\.npz)")


class ClassRecords:
    """The records of one class, of all processes.

    Args:
        folder: of the class.
        methods: their names, in order.

    Attributes:
        indices, scores: positions of the scored images, and method to their scores, in the data set's order;
            None where a method does not judge an image.
        errors: position of each image that was left out to why.
    """

    def __init__(self, folder: Path, methods: Sequence[str]):
        self.folder, self.methods = folder, list(methods)
        self.read()

    def read(self) -> None:
        """Take up what lies in the folder now."""
        from pyarrow import parquet

        self._shards = {
            shard: parquet.read_table(shard).to_pylist() for shard in sorted(self.folder.glob("*.parquet"))
        }
        rows = sorted((row for shard in self._shards.values() for row in shard), key=lambda row: row["index"])
        scored = [row for row in rows if row["error"] is None]
        self.indices: list[int] = [row["index"] for row in scored]
        self.errors: dict[int, str] = {row["index"]: row["error"] for row in rows if row["error"] is not None}
        self._has_truth = [bool(row["height"]) for row in scored]
        self.scores: dict[str, list[float | None]] = {
            name: [row[f"score {name}"] for row in scored] for name in self.methods
        }

    def judged(self, method: str) -> list[int]:
        """Positions of the images whose pixels a method is judged by, in the order of [`pixels`]."""
        rows = zip(self.indices, self._has_truth, self.scores[method], strict=True)
        return [index for index, has_truth, score in rows if has_truth and score is not None]

    def pixels(self, method: str) -> tuple[list[np.ndarray], list[np.ndarray]] | StreamingPixelMetrics | None:
        """Maps and masks `(H, W)` of the images whose truth is known, or their counts; None where there are none."""
        place = self.methods.index(method)
        whole: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        counted: StreamingPixelMetrics | None = None
        for shard, rows in self._shards.items():
            if (file := shard.with_suffix(f".{place}.npz")).is_file():
                with np.load(file, allow_pickle=False) as state:
                    part = StreamingPixelMetrics.from_state_dict(dict(state))
                counted = part if counted is None else counted.merge(part)
            elif (file := shard.with_suffix(".maps.npy")).is_file():
                maps = np.load(file, mmap_mode="r")[place]
                masks = np.load(shard.with_suffix(".masks.npy"), mmap_mode="r")
                end = 0
                for row in rows:
                    if row["height"]:
                        shape = row["height"], row["width"]
                        start, end = end, end + shape[0] * shape[1]
                        if row[f"score {method}"] is not None:
                            whole[row["index"]] = maps[start:end].reshape(shape), masks[start:end].reshape(shape)
        if not whole:
            return counted
        ordered = [whole[index] for index in sorted(whole)]
        return [anomaly_map for anomaly_map, _ in ordered], [mask for _, mask in ordered]

    def load_metrics(self) -> dict[str, Any] | None:
        """The metrics of the class that `save_metrics` kept; None where it is not finished."""
        try:
            return json.loads((self.folder / "class.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def save_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Keep the metrics of the class in place of its pixels."""
        with atomic_path(self.folder / "class.json") as temporary:
            temporary.write_text(json.dumps(metrics), encoding="utf-8")
        for file in self.folder.iterdir():
            if _SHARD.fullmatch(file.name) and file.suffix != ".parquet":
                file.unlink()


class RecordWriter:
    """Writes the shards of one class, by one process.

    Args:
        folder: of the class.
        methods: their names, in order.
        exact: keep whole maps in float32 instead of counting pixels in bins.
        num_bins, fpr_limit: as in [`StreamingPixelMetrics`].
        shard_size: images of a shard; less where the maps of so many are large.
    """

    def __init__(
        self,
        folder: Path,
        methods: Sequence[str],
        exact: bool = False,
        num_bins: int = 2**20,
        fpr_limit: float = 0.3,
        shard_size: int = 400,
    ):
        self.folder, self.methods, self.exact, self.shard_size = folder, list(methods), exact, shard_size
        self.num_bins, self.fpr_limit = num_bins, fpr_limit
        self._start()

    def _start(self) -> None:
        self._rows: list[dict[str, int | float | str | None]] = []
        self._maps: list[np.ndarray] = []  # (methods, pixels) of an image
        self._masks: list[np.ndarray] = []
        self._counts = (
            [] if self.exact else [StreamingPixelMetrics(self.num_bins, self.fpr_limit) for _ in self.methods]
        )

    def add(self, record: Record) -> None:
        """Add an image: its result are method to score and method to map `(H, W)`, of the methods that judge it; its
        item has the `mask`."""
        none: tuple[dict[str, float], dict[str, np.ndarray]] = {}, {}
        scores, maps = record.result or none
        mask = record.item.mask if maps else None
        height, width = (None, None) if mask is None else mask.shape
        row = {"index": record.index, "error": record.error, "height": height, "width": width}
        self._rows.append(row | {f"score {name}": scores.get(name) for name in self.methods})
        if mask is not None and self.exact:
            nothing = np.zeros(mask.shape, np.float32)
            stacked = np.stack([maps.get(name, nothing).ravel() for name in self.methods])
            self._maps.append(stacked.astype(np.float32, copy=False))
            self._masks.append(mask.ravel())
        elif mask is not None:
            for name, counts in zip(self.methods, self._counts, strict=True):
                if name in maps:
                    counts.update([maps[name]], [mask])
        if len(self._rows) >= self.shard_size or sum(one.size for one in self._maps) >= MAX_BUFFER:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last shard."""
        if not self._rows:
            return
        import pyarrow as pa
        from pyarrow import parquet

        shard = self.folder / f"{self._rows[0]['index']:08d}.parquet"
        if self._maps:
            for kind, arrays in (("maps", self._maps), ("masks", self._masks)):
                with atomic_path(shard.with_suffix(f".{kind}.npy")) as temporary:
                    np.save(temporary, np.concatenate(arrays, axis=-1), allow_pickle=False)
        for place, counts in enumerate(self._counts):
            if counts.num_images:
                with atomic_path(shard.with_suffix(f".{place}.npz")) as temporary:
                    np.savez(temporary, allow_pickle=False, **counts.state_dict())
        types = {"index": pa.int64(), "error": pa.string(), "height": pa.int32(), "width": pa.int32()}
        schema = pa.schema([(name, types.get(name, pa.float64())) for name in self._rows[0]])
        with atomic_path(shard) as temporary:
            parquet.write_table(pa.Table.from_pylist(self._rows, schema=schema), temporary)
        self._start()


def class_folder(folder: Path, class_name: str) -> Path:
    """Where the records of a class lie below those of its data set."""
    return folder / safe_name(class_name)


def open_folder(folder: Path, key: str, resume: bool) -> None:
    """Make the folder of a data set's records; records of another run are forgotten.

    Args:
        folder: made if absent; files in it that are no records stay.
        key: digest of what the records depend on.
        resume: keep the records of a run of the same key.
    """
    note = folder / "run.json"
    try:
        known = json.loads(note.read_text(encoding="utf-8")).get("key")
    except (OSError, ValueError, AttributeError):
        known = None
    keep = resume and known == key
    for one in folder.glob("*/"):
        if not (keep and _is_sound(one)):
            for file in one.iterdir():
                if file.name == "class.json" or _SHARD.fullmatch(file.name):
                    file.unlink()
    if not keep:
        with atomic_path(note) as temporary:
            temporary.write_text(json.dumps({"key": key}), encoding="utf-8")


def _is_sound(folder: Path) -> bool:
    """Whether the records of a class can be read, as far as a look tells."""
    from pyarrow import parquet

    try:
        if (folder / "class.json").exists():
            json.loads((folder / "class.json").read_text(encoding="utf-8"))
        for shard in folder.glob("*.parquet"):
            parquet.read_metadata(shard)
        return all(zipfile.is_zipfile(file) for file in folder.glob("*.npz"))
    except (OSError, ValueError):
        return False
