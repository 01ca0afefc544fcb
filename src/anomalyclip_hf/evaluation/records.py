"""Records of an evaluation on disk: what was scored is there, what is not is still to be scored.

A folder holds the records of one data set, `run.json` what they depend on, and a folder for each class. There lie
shards named by their first image. `<position>.parquet` has a row for each image; `<position>.npz` beside it has the
pixels that can be judged, whole (`map <method> <position>`, `mask <position>`) or counted (`count <method> ...`). The
table is written last, so that a shard is complete where it has one. `class.json` are the metrics of the class, which
take the pixels' place.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.files import atomic_path, safe_name, write_json, write_text
from ..scoring.engine import Record
from .settings import EvaluationSettings
from .streaming import StreamingPixelMetrics

MAX_BUFFER = 2**24  # pixels of whole maps held before a shard is written
_SHARD = re.compile(r"\d{8}\.(parquet|npz)")


class ClassRecords:
    """The records of one class in its folder, of all processes.

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

        shards = [parquet.read_table(shard).to_pylist() for shard in self.folder.glob("*.parquet")]
        rows = sorted((row for shard in shards for row in shard), key=lambda row: row["index"])
        scored = [row for row in rows if row["error"] is None]
        self.indices: list[int] = [row["index"] for row in scored]
        self.errors: dict[int, str] = {row["index"]: row["error"] for row in rows if row["error"] is not None}
        self._has_truth = [row["has_truth"] for row in scored]
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
        for shard in sorted(self.folder.glob("*.parquet")):
            if not (file := shard.with_suffix(".npz")).is_file():
                continue
            with np.load(file, allow_pickle=False) as stored:
                if state := _below(stored, f"count {place} "):
                    part = StreamingPixelMetrics.from_state_dict(state)
                    counted = part if counted is None else counted.merge(part)
                for index, anomaly_map in _below(stored, f"map {place} ").items():
                    whole[int(index)] = anomaly_map, stored[f"mask {index}"]
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
        write_text(self.folder / "class.json", json.dumps(metrics))
        for file in self.folder.glob("*.npz"):
            if _SHARD.fullmatch(file.name):
                file.unlink()


class RecordWriter:
    """Writes the shards of one class, by one process: whole maps in float32 where `exact`, else pixels counted in
    bins."""

    def __init__(self, folder: Path, methods: Sequence[str], settings: EvaluationSettings, exact: bool):
        self.folder, self.methods, self.settings, self.exact = folder, list(methods), settings, exact
        self._start()

    def _start(self) -> None:
        self._rows: list[dict[str, int | float | str | bool | None]] = []
        self._pixels: dict[str, np.ndarray] = {}
        self._counts: dict[int, StreamingPixelMetrics] = {}

    def add(self, record: Record) -> None:
        """Add an image: its result are method to score and method to map `(H, W)`, of the methods that judge it; its
        item has the `mask`."""
        scores: dict[str, float] = record.result[0] if record.result else {}
        maps: dict[str, np.ndarray] = record.result[1] if record.result else {}
        mask = record.item.mask if maps else None
        row: dict[str, Any] = {"index": record.index, "error": record.error, "has_truth": mask is not None}
        self._rows.append(row | {f"score {name}": scores.get(name) for name in self.methods})
        if mask is not None and self.exact:
            self._pixels[f"mask {record.index}"] = mask
        for place, name in enumerate(self.methods):
            if mask is None or name not in maps:
                continue
            if self.exact:
                self._pixels[f"map {place} {record.index}"] = maps[name].astype(np.float32, copy=False)
                continue
            if place not in self._counts:
                self._counts[place] = StreamingPixelMetrics(self.settings.num_bins, self.settings.fpr_limit)
            self._counts[place].update([maps[name]], [mask])
        size = self.settings.save_every * self.settings.batch_size
        if len(self._rows) >= size or sum(one.size for one in self._pixels.values()) >= MAX_BUFFER:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last shard."""
        if not self._rows:
            return
        import pyarrow as pa
        from pyarrow import parquet

        shard = self.folder / f"{self._rows[0]['index']:08d}.parquet"
        for place, counts in self._counts.items():
            self._pixels |= {f"count {place} {name}": value for name, value in counts.state_dict().items()}
        if self._pixels:
            with atomic_path(shard.with_suffix(".npz")) as temporary:
                np.savez(temporary, allow_pickle=False, **self._pixels)
        types = {"index": pa.int64(), "error": pa.string(), "has_truth": pa.bool_()}
        schema = pa.schema([(name, types.get(name, pa.float64())) for name in self._rows[0]])
        with atomic_path(shard) as temporary:
            parquet.write_table(pa.Table.from_pylist(self._rows, schema=schema), temporary)
        self._start()


def class_folder(folder: Path, class_name: str) -> Path:
    """Where the records of a class lie below those of its data set."""
    return folder / safe_name(class_name)


def open_folder(folder: Path, key: str, resume: bool) -> None:
    """Make the folder of a data set's records; those of another run (whose `key` differs), or without `resume` all,
    are forgotten, while files that are no records stay."""
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
        write_json(note, {"key": key})


def _below(stored: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays of a file whose names start with a prefix, by what follows it."""
    return {name.removeprefix(prefix): stored[name] for name in stored if name.startswith(prefix)}


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
