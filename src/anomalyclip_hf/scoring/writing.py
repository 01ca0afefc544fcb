"""The output folder of a prediction: shards of records, the pictures that they name, and how a run goes on or ends.

Each process writes `predictions-<process>-<shard>.jsonl` and `skipped-<process>-<shard>.jsonl`, each whole when it
appears. When all are done, the main process merges them in the order of the source. Lines of shards have `index`, the
place of the image in the source, by which they are merged; other records don't.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.files import (
    MAP_SUFFIXES,
    atomic_path,
    json_line,
    one_line,
    read_lines,
    remove_leftovers,
    save_map,
    write_json,
    write_text,
)
from .engine import FullDisk, explain
from .inputs import LEGEND
from .pictures import draw_legend, overlay
from .settings import TABLES, PredictionSettings

PREDICTIONS, SKIPPED, SETTINGS = "predictions.jsonl", "skipped.jsonl", "predict_settings.json"
KEPT = "predictions-kept.jsonl"  # the shard of what a run that is gone on with had scored
_SHARD = re.compile(r"(predictions|skipped)-\d{5,}-\d{7,}\.jsonl|" + re.escape(KEPT))
FOLDERS = {"overlay": "overlays", "map": "maps", "mask": "predicted_masks"}  # field of a record -> folder of its files
SHARD_SIZE = 1000  # records
SHARD_SECONDS = 5.0  # between two shards
TABLE_ROWS = 10_000  # written at a time


class RecordWriter:
    """Draws and writes what one process scores: the record of an image last, when its files are in place.

    Args:
        output: the output folder.
        settings: of the prediction.
        process: number of this process, from 0.

    As many threads draw as there are workers that decode, so that neither keeps the model waiting; without workers
    each image is drawn before the next is scored.
    """

    def __init__(self, output: Path, settings: PredictionSettings, process: int = 0):
        self.output, self.settings, self.process = output, settings, process
        self._threads = ThreadPoolExecutor(max(1, settings.num_workers))
        self._drawn: deque[tuple[int, dict[str, Any], Future | None]] = deque()  # not yet noted, in order
        self._lines: dict[str, list[str]] = {PREDICTIONS: [], SKIPPED: []}
        self._number, self._written = 0, time.monotonic()
        self._has_legend = False
        self._full_disk = FullDisk()

    def write(
        self,
        index: int,
        path: str,
        name: str,
        result: Mapping[str, Any],
        image: Image.Image | None,
        image_size: tuple[int, int],
    ) -> None:
        """Write an image's files and note its record; a fault of this image alone is noted in its place.

        Args:
            index: place of the image in the source.
            path, name: of the image, and of its files below `FOLDERS`.
            result: as of the pipeline.
            image: what its map is drawn on, of any size; None where nothing is to be drawn.
            image_size: (width, height) of the image itself, in pixels.

        Raises:
            OSError: records can't be written, or images before met a full disk too.
        """
        record = make_record(path, image_size, result, self.files_of(name, result))
        self._wait_for(index, record, self._threads.submit(self._draw, record, result, image))

    def files_of(self, name: str, result: Mapping[str, Any]) -> dict[str, str]:
        """Field of a record -> the file that it names, for those that the settings ask for."""
        wanted = self.settings
        drawn = wanted.overlays == "all" or (wanted.overlays == "anomalous" and result.get("label") == "anomalous")
        suffixes = {
            "overlay": ".png" if drawn else None,
            "map": MAP_SUFFIXES[wanted.save_maps] if wanted.save_maps else None,
            "mask": ".png" if wanted.masks else None,
        }
        return {field: f"{FOLDERS[field]}/{name}{suffix}" for field, suffix in suffixes.items() if suffix}

    def skip(self, index: int, path: str, error: str) -> None:
        """Note an input that can't be used, and why."""
        self._wait_for(index, {"path": path, "error": error}, None)

    def close(self) -> None:
        """Wait for what is being drawn, and put all records on disk."""
        try:
            self._note(0)
        finally:
            self._threads.shutdown()
            self.flush()

    def flush(self) -> None:
        """Put what was noted on disk."""
        for name, lines in self._lines.items():
            if lines:
                shard = self.output / f"{Path(name).stem}-{self.process:05}-{self._number:07}.jsonl"
                write_text(shard, "".join(lines))
                lines.clear()
        self._number, self._written = self._number + 1, time.monotonic()

    def _wait_for(self, index: int, record: dict[str, Any], drawn: Future | None) -> None:
        self._drawn.append((index, record, drawn))
        self._note(2 * self.settings.num_workers)

    def _note(self, waiting: int) -> None:
        """Note images, in order, whose files are in place, until no more than so many are waited for."""
        while len(self._drawn) > waiting:
            index, record, drawn = self._drawn.popleft()
            if error := drawn and drawn.exception():
                _remove_files(self.output, record)
                self._add(SKIPPED, index, {"path": record["path"], "error": explain(error)})
                self._full_disk.note(error)
            elif "error" in record:
                self._add(SKIPPED, index, record)
            else:
                self._full_disk.clear()
                self._add(PREDICTIONS, index, record)

    def _add(self, name: str, index: int, entry: dict[str, Any]) -> None:
        self._lines[name].append(json_line({"index": index, **entry}))
        if len(self._lines[name]) >= SHARD_SIZE or time.monotonic() - self._written >= SHARD_SECONDS:
            self.flush()

    def _draw(self, record: Mapping[str, Any], result: Mapping[str, Any], image: Image.Image | None) -> None:
        if "map" in record:
            save_map(result["anomaly_map"], self.output / record["map"])
        if "mask" in record:
            with atomic_path(self.output / record["mask"]) as temporary:
                Image.fromarray(result["mask"]).convert("L").save(temporary)  # 0 and 255 for every reader
        if "overlay" in record and image is not None:
            look = (self.settings.vmin, 1.0 if self.settings.vmax is None else self.settings.vmax)
            drawn = overlay(image, result["anomaly_map"], *look)
            with atomic_path(self.output / record["overlay"]) as temporary:
                drawn.save(temporary, compress_level=1)  # a fifth of the time for a tenth more bytes
            if not self._has_legend:
                with atomic_path(self.output / LEGEND) as temporary:
                    draw_legend(*look).save(temporary)
                self._has_legend = True


def make_record(
    path: str, image_size: tuple[int, int], result: Mapping[str, Any], files: Mapping[str, str]
) -> dict[str, Any]:
    """The record of an image: its path and size, what of its result is no picture, and the files of what is."""
    told = {key: result[key] for key in ("score", "method", "label") if key in result}
    record = {"path": path, **told, "width": image_size[0], "height": image_size[1]}
    if result["anomaly_map"].shape != image_size[::-1]:
        record["map_size"] = list(result["anomaly_map"].shape)
    return record | ({"regions": result["regions"]} if "regions" in result else {}) | dict(files)


def begin_run(output: Path, facts: Mapping[str, Any], listing: Iterable[tuple[str, str]] | None, resume: bool) -> int:
    """Make the output folder ready; by one process, before any writes into it.

    Args:
        output: made if absent. Records of an earlier run, and their files, are removed unless `resume`.
        facts: what decides the records, by name; kept there, and what those of a run to go on with must equal.
        listing: path and name of each image; None for a stream, whose images are known by their place.
        resume: gather the records there, for [`read_done`].

    Returns:
        how many records of an earlier run were removed.

    Raises:
        ValueError: the records there are of other facts, or of a stream that is done.
    """
    facts = json.loads(json.dumps(facts, default=_describe))
    if resume and any(_files(output, PREDICTIONS)):
        _check_same(output, facts)
        remove_leftovers(output, *FOLDERS.values())
        _gather(output, listing)
        _remove(_files(output, SKIPPED))
        return 0
    output.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output, *FOLDERS.values())
    replaced = 0
    for file in _files(output, PREDICTIONS):
        for entry in read_lines(file):
            _remove_files(output, entry)
            replaced += 1
    _remove([*_files(output, PREDICTIONS), *_files(output, SKIPPED)])
    _remove(output / f"predictions.{table}" for table in TABLES)
    if (output / SETTINGS).is_file():  # or else the report is another command's
        _remove([output / "report.html", output / LEGEND])
    write_json(output / SETTINGS, facts)
    return replaced


def _describe(value: Any) -> str:
    if isinstance(value, Image.Image):
        return f"{value.width}x{value.height} pixels, {hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
    return str(value)


def read_done(output: Path) -> set[int]:
    """Places of the images that have a record in shards."""
    return {entry["index"] for file in _shards(output, PREDICTIONS) for entry in read_lines(file)}


def end_run(output: Path, tables: Collection[str] = ()) -> None:
    """Merge the shards of all processes, and write tables of the records; by one process, after all have written.

    Args:
        output: the output folder.
        tables: of `TABLES`, beside those that are there; `predictions.parquet` and `predictions.csv` have a column
            for each field, and what is nested in it as JSON.
    """
    for name in (PREDICTIONS, SKIPPED):
        if shards := list(_shards(output, name)):
            _merge(shards, output / name)
            _remove(shards)
    for table in TABLES:  # one of the run that was gone on with lacks what came since
        if (output / PREDICTIONS).is_file() and (table in tables or (output / f"predictions.{table}").is_file()):
            with atomic_path(output / f"predictions.{table}") as temporary:
                _write_table(output / PREDICTIONS, temporary, table)


def read_records(output: Path, name: str = PREDICTIONS) -> Iterator[dict[str, Any]]:
    """Records of a run that has ended, one at a time; `name` is PREDICTIONS or SKIPPED."""
    return read_lines(output / name)


def _merge(shards: Iterable[Path], target: Path, place: Callable[[dict], int | None] | None = None) -> None:
    """Merge files of lines, those of one process in the order of their names, into one in the order of the images.

    `place` gives the index of an entry, which is then kept in it, or None to leave it out; without it, lines have one,
    which is taken out.
    """
    chains: dict[str, list[Path]] = defaultdict(list)
    for shard in sorted(shards):
        chains[shard.name.rsplit("-", 1)[0]].append(shard)

    def entries(files: list[Path]) -> Iterator[tuple[int, dict[str, Any]]]:
        for entry in itertools.chain.from_iterable(map(read_lines, files)):
            index = entry.pop("index", None) if place is None else place(entry)
            if index is not None:
                yield index, {**entry, "index": index} if place else entry

    with atomic_path(target) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for _, entry in heapq.merge(*map(entries, chains.values()), key=itemgetter(0)):
            file.write(json_line(entry))


def _gather(output: Path, listing: Iterable[tuple[str, str]] | None) -> None:
    """Make one shard of all records of an earlier run that still have an image, each once."""
    if listing is None and (output / PREDICTIONS).is_file():
        raise ValueError(
            f"the run in {output} is done, and what a stream skipped can't be found again: leave out resume=True to "
            "start anew"
        )
    taken: set[int] = set()
    places: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for index, (path, name) in enumerate(listing or ()):
        places[path].append((index, name))

    def take(entry: dict[str, Any]) -> int | None:
        index = entry.get("index")
        if listing is not None:
            own = places.get(entry.get("path", ""), ())
            fits = [place for place, name in own if all(_names(entry, field, name) for field in FOLDERS)]
            if not fits:  # its image is gone, or its files have other names now
                _remove_files(output, entry)
            index = next((place for place in fits if place not in taken), None)
        if index is None or index in taken:
            return None
        taken.add(index)
        return index

    files = list(_files(output, PREDICTIONS))
    _merge(files, output / KEPT, take)
    _remove(file for file in files if file.name != KEPT)


def _names(entry: Mapping[str, Any], field: str, name: str) -> bool:
    return field not in entry or Path(entry[field]).with_suffix("") == Path(FOLDERS[field], name)


def _check_same(output: Path, facts: Mapping[str, Any]) -> None:
    try:
        former = json.loads((output / SETTINGS).read_text(encoding="utf-8"))
        other = [key for key in {**former, **facts} if former.get(key) != facts.get(key)]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"the settings of the run in {output} can't be read ({explain(error)}), so that it can't be gone on with: "
            "leave out resume=True to start anew"
        ) from error
    if other:
        told = ", ".join(f"{key} was {former.get(key)!r} and is {facts.get(key)!r}" for key in other)
        raise ValueError(
            f"the run in {output} had other settings: {one_line(told)}. Go on with the former ones, choose another "
            "output folder, or leave out resume=True to start anew"
        )


def _files(output: Path, name: str) -> Iterator[Path]:
    """The merged file, if it is there, and shards."""
    yield from filter(Path.is_file, [output / name])
    yield from _shards(output, name)


def _shards(output: Path, name: str) -> Iterator[Path]:
    yield from sorted(file for file in output.glob(f"{Path(name).stem}-*.jsonl") if _SHARD.fullmatch(file.name))


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _remove_files(output: Path, record: Mapping[str, Any]) -> None:
    """Remove the files that a record names, where they are a run's own, and the folders that this empties."""
    for field, folder in FOLDERS.items():
        file, own = output / str(record.get(field, "")), output / folder
        if own not in file.parents or not file.is_file():
            continue
        if file.parent.resolve() != output.resolve() / file.parent.relative_to(output):  # by .. or a link
            continue
        file.unlink()
        for parent in itertools.takewhile(lambda one: one != output, file.parents):
            if any(parent.iterdir()):
                break
            parent.rmdir()


def _write_table(source: Path, target: Path, table: str) -> None:
    """Write records as a table with a column for each field that one of them has."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    numbers = {"score": pa.float64(), "width": pa.int64(), "height": pa.int64()}
    names = dict.fromkeys(name for record in read_lines(source) for name in record)
    schema = pa.schema([(name, numbers.get(name, pa.string())) for name in names])
    rows = ({name: _cell(value) for name, value in record.items()} for record in read_lines(source))
    with {"csv": csv.CSVWriter, "parquet": parquet.ParquetWriter}[table](target, schema) as writer:
        while batch := list(itertools.islice(rows, TABLE_ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema))


def _cell(value: Any) -> Any:
    """A number as it is, anything else as text."""
    if isinstance(value, (int, float)):
        return value
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "backslashreplace").decode()  # a path may be no UTF-8
