"""Index files: CSV, TSV, JSON lines, parquet and the authors' `meta.json`, all read as rows of one kind of table."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

from .file_tree import FileTree, examples, file_key, normal_form
from .layouts import OWN_NORMAL_KINDS, SPLITS, DatasetLayout, Table
from .options import SourceOptions
from .reader import split_page
from .records import Index, Record, kind_of

# What a column may be called, most likely first.
COLUMN_ALIASES: dict[str, tuple[str, ...]] = {
    "image": ("image", "img", "image_path", "img_path", "file_name", "filename", "file", "path"),
    "mask": ("mask", "mask_path", "mask_file_name", "ground_truth", "gt", "segmentation"),
    "label": ("label", "labels", "anomaly", "anomalous", "is_anomaly", "target"),
    "class_name": ("class_name", "class", "cls_name", "object", "category"),
    "defect_type": ("defect_type", "defect", "kind", "specie_name", "anomaly_type"),
    "split": ("split", "phase", "subset"),
}
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
META = Table(
    path="meta.json",
    image=("{img_path}",),
    mask=("{mask_path}",),
    label_column="anomaly",
    class_column="cls_name",
    split_column="split",
    kind_column="specie_name",
    normal_labels=None,
)
_ZERO = ("0", "0.0", "false", "normal", "good", "ok", "negative", "no")
_ONE = ("1", "1.0", "true", "anomaly", "anomalous", "abnormal", "defect", "defective", "bad", "positive", "yes", "ng")
_NONE = ("", "none", "null", "nan", "na", "n/a")
_UNLABELED = ("-1", *_NONE)  # -1: what `datasets` writes for a hidden label
_NORMAL_KINDS = (*OWN_NORMAL_KINDS, *_ZERO, "none")

Row = tuple[str, dict[str, Any]]  # where it stands, and its cells by column


def read_rows(path: str) -> list[Row]:
    """Rows of a CSV, TSV, JSON lines or parquet file, each with where it stands; all have all columns, names stripped.

    Raises:
        ValueError: not readable as such, or without rows.
    """
    try:
        if path.lower().endswith(".parquet"):
            from pyarrow import parquet

            rows = list(enumerate(parquet.read_table(path).to_pylist(), start=1))
        elif path.lower().endswith((".jsonl", ".ndjson", ".json")):
            with open(path, encoding="utf-8-sig") as file:
                rows = [(number, json.loads(line)) for number, line in enumerate(file, start=1) if line.strip()]
            if not all(isinstance(row, dict) for _, row in rows):
                raise ValueError("each line must be a JSON object")
        else:
            with open(path, encoding="utf-8-sig", newline="") as file:
                head = file.readline()
                file.seek(0)
                delimiter = max(",;\t|", key=head.count)
                reader = csv.DictReader(file, delimiter=delimiter, skipinitialspace=True)
                rows = [(reader.line_num, row) for row in reader if any(map(_text, row.values()))]
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, ValueError) as error:
        hint = "; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise ValueError(f"cannot read the table {path}: {error}{hint}") from error
    if not rows:
        raise ValueError(f"the table {path} has no rows")
    columns = dict.fromkeys(str(name).strip() for _, row in rows for name in row if name is not None)
    return [
        (f"{path}, line {number}", columns | {str(key).strip(): cell for key, cell in row.items() if key is not None})
        for number, row in rows
    ]


def pick_columns(names: Iterable[str], options: SourceOptions, where: str) -> dict[str, str]:
    """Match the schema's fields to column names: the user's choice first, then the usual names.

    Args:
        names: the columns there are.
        options (`SourceOptions`): the columns that the user names.
        where (`str`): the source, for messages.

    Raises:
        ValueError: a chosen column does not exist, or none holds the images.
    """
    names = list(names)
    lower = {name.casefold(): name for name in reversed(names)}
    spelled = {normal_form(name): name for name in reversed(names)}
    columns: dict[str, str] = {}
    for field_name, aliases in COLUMN_ALIASES.items():
        option = f"{field_name.removesuffix('_name').removesuffix('_type')}_column"
        wanted = getattr(options, option)
        if wanted is not None and normal_form(wanted) not in spelled:
            raise ValueError(f"{option}={wanted!r}, but {where} has the columns {', '.join(names)}")
        usual = next((lower[alias] for alias in aliases if alias in lower), None)
        found = usual if wanted is None else spelled[normal_form(wanted)]
        if found is not None and found not in columns.values():
            columns[field_name] = found
    if "image" not in columns:
        raise ValueError(
            f"{where} has no image column: looked for {', '.join(COLUMN_ALIASES['image'])}, found {', '.join(names)}; "
            "name it with image_column=..."
        )
    return columns


def to_label(value: Any, normal_values: Sequence[Any] | None, where: str = "") -> int | None:
    """Turn a cell into 0 (normal), 1 (anomalous) or None (unknown).

    Args:
        value: the cell.
        normal_values (*optional*): those that mean normal, all others anomalous; the usual words by default.
        where (`str`): where it stands, for messages.

    Raises:
        ValueError: the value is not understood.
    """
    text = "" if value is None else file_key(str(value).strip())
    if normal_values is not None:
        normal = {file_key(str(value)) for value in normal_values}
        return None if text in _NONE and text not in normal else int(text not in normal)
    if text in _UNLABELED:
        return None
    if text not in (*_ZERO, *_ONE):
        raise ValueError(
            f"{where}: label {value!r} is neither normal ({', '.join(_ZERO[:6])}) nor anomalous "
            f"({', '.join(_ONE[:6])}); say which values mean normal with normal_labels=(...)"
        )
    return int(text in _ONE)


def labels_of_kinds(kinds: Sequence[Any], normal_values: Sequence[Any] | None) -> list[int | None]:
    """Labels of images that have a kind of defect but no label: 0 for a normal kind, "none" or 0; None if empty.

    Where no cell of a whole column names a normal kind, an empty one means no defect.
    """
    labels = [to_label(kind, normal_values or _NORMAL_KINDS) for kind in kinds]
    empty_is_normal = normal_values is None and 0 not in labels and 1 in labels
    return [0 if label is None and empty_is_normal else label for label in labels]


def index_rows(
    rows: Sequence[Row],
    table: Table,
    root: str,
    form: str,
    *,
    class_name: str,
    split: str = "test",
    folder: str = "",
    layout: DatasetLayout | None = None,
    tree: FileTree | None = None,
) -> Index:
    """Index the rows of a table.

    Args:
        rows: as of `read_rows`.
        table (`Table`): what its columns mean.
        root (`str`): the folder of the files.
        form (`str`): what the index is, in words.
        class_name, split (`str`): where no column says another.
        folder (`str`): where relative paths start, from the root.
        layout (`DatasetLayout`, *optional*): of a named data set: its classes, spelled as there.
        tree (`FileTree`, *optional*): the files below the root, where they are already listed.

    Raises:
        ValueError: no image is there, or a cell is not understood.
    """
    list_files = cache(lambda: tree or FileTree(root))

    def find(path: str) -> str | None:
        """The file as it is written, or by another spelling."""
        written = os.path.join(folder, path)
        if os.path.isfile(split_page(os.path.join(root, written))[0]):
            return written
        found = list_files().find(path, folder)
        same = found is not None and os.path.splitext(found)[1].lower() == os.path.splitext(path)[1].lower()
        return found if same or layout is not None else None  # a 1 in one's own column may be a flag, and is no 1.png

    if table.label_column is None and table.kind_column is not None:
        labels = labels_of_kinds([_cell(row, table.kind_column, where) for where, row in rows], table.normal_labels)
    else:
        labels = [to_label(_cell(row, table.label_column, where), table.normal_labels, where) for where, row in rows]
    classes = {file_key(name): name for name in (layout.classes if layout else ())}
    records, missing = [], []
    respelled: dict[str, str] = {}
    for (where, row), label in zip(rows, labels, strict=True):
        files: list[str | None] = []
        for patterns in (table.image, table.mask):
            named = [path for pattern in patterns if (path := _fill(pattern, row, where))]
            if not named and patterns is table.image:
                raise ValueError(f"{where}: no image is named, {patterns[0]} is empty")
            there = next((found for path in named if (found := find(path))), None)
            if named and there is None:
                missing.append(os.path.join(folder, named[0]))
            elif there is not None and there != os.path.join(folder, named[0]):
                respelled[named[0]] = there
            files.append(there)
        image, mask = files
        if image is None:
            continue
        name = _text(_cell(row, table.class_column, where)) or class_name
        said = _text(_cell(row, table.split_column, where)).casefold()
        kind = kind_of(label, _text(_cell(row, table.kind_column, where)))
        name = classes.get(file_key(name), name)
        records.append(Record(image, mask, label, name, kind, SPLITS.get(said, said) or split))
    if not records:
        raise ValueError(f"none of the {len(missing)} images named by {form} exists below {root}, e.g. {missing[0]}")
    notes = []
    if respelled and layout is None:
        path, other = next(iter(respelled.items()))
        notes = [f"{len(respelled)} paths found by another spelling or by their last parts: {path} as {other}, ..."]
    masks: dict[str, set[str]] = {}
    for record in records:
        masks.setdefault(record.image, set()).update([record.mask] if record.mask else [])
    if several := [name for name, found in masks.items() if len(found) > 1]:
        notes.append(
            f"{len(several)} images have rows with different masks ({examples(several)}), each judged by its own "
            "alone: to unite the masks of an image, put them into a folder and name that in one row"
        )
    return Index(root, form, records, layout=layout, listed=True, missing=missing, notes=notes)


def index_layout_table(table: Table, layout: DatasetLayout, tree: FileTree) -> Index | None:
    """Index a data set that comes with a table, or one for each class; None where there is none."""
    files = sorted(map(str, Path(tree.root).glob(table.path)))
    if not files:
        return None
    heads = [pattern.partition("{file}")[0] for pattern in table.image if "{file}" in pattern]
    absent = [
        file
        for file in files
        if heads and not any(os.path.isdir(os.path.join(tree.root, head, Path(file).stem)) for head in heads)
    ]
    files = [file for file in files if file not in absent] or files  # not all classes may have been unpacked
    rows = [row for file in files for row in (rows_of_splits(file) if file.endswith(".json") else read_rows(file))]
    form = f"{layout.title}: {table.path}"
    index = index_rows(rows, table, tree.root, form, class_name=layout.classes[0], layout=layout, tree=tree)
    notes = [f"{len(absent)} classes of the index have no folder ({examples(absent)})"] if absent else []
    return replace(index, notes=index.notes + notes)


def rows_of_splits(path: str) -> list[Row]:
    """Rows of a JSON file {split: [rows]} or {split: {class: [rows]}}; what holds no lists is passed over.

    All have the columns `split`, `file` (the stem of the file's name), `cls_name`, `specie_name` and `mask_path`.

    Raises:
        ValueError: not such a file, or without rows.
    """
    stem, rows = Path(path).stem, list[Row]()
    try:
        with open(path, encoding="utf-8-sig") as file:
            splits = json.load(file).items()
        for split, content in splits:
            for name, group in content.items() if isinstance(content, dict) else [(stem, content)]:
                for row in group if isinstance(group, list) else ():
                    optional = {"cls_name": name, "specie_name": None, "mask_path": None}
                    given = {key: cell for key, cell in row.items() if cell or key not in optional}
                    rows.append((f"{path}, {split}/{name}", {**optional, **given, "split": split, "file": stem}))
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} is not an index {{split: [rows]}} or {{split: {{class: [rows]}}}}: {error}"
        ) from error
    if not rows:
        raise ValueError(f"{path}: it is empty")
    return rows


def index_own_tables(name: str, root: str, tables: Mapping[str, str], options: SourceOptions) -> Index:
    """Index a user's CSV, TSV, JSON lines or parquet file, or those of the splits of an image folder.

    Args:
        name (`str`): the folder of the tables. Samples that name no class are of the table's, by its file's name; of
            an image folder's, by that of the folder.
        root (`str`): where relative paths start; a split's from its folder in there.
        tables: folder of a split, or "", -> name of its table.
        options (`SourceOptions`): columns, labels that mean normal, and the rest.
    """
    parts = []
    names = [os.path.join(part, file).replace(os.sep, "/") for part, file in tables.items()]
    for part, file in zip(tables, names, strict=True):
        rows = read_rows(os.path.join(name, file))
        found = pick_columns(rows[0][1], options, f"the table {os.path.join(name, file)}")
        rows = [(where, {field: row[column] for field, column in found.items()}) for where, row in rows]
        own = {field: field if field in found else None for field in COLUMN_ALIASES}
        table = Table(
            path=file,
            image=("{image}",),
            mask=("{mask}",) if own["mask"] else (),
            label_column=own["label"],
            class_column=own["class_name"],
            split_column=own["split"],
            kind_column=own["defect_type"],
            normal_labels=None if options.normal_labels is None else tuple(options.normal_labels),
        )
        split = SPLITS.get(part.casefold(), "test")
        is_metadata = os.path.basename(file).casefold() in METADATA_FILES
        own_name = os.path.basename(os.path.abspath(root)) if is_metadata else os.path.splitext(file)[0]
        class_name = options.only_class() or own_name
        parts.append(index_rows(rows, table, root, f"table {file}", class_name=class_name, split=split, folder=part))
    return replace(
        parts[0],
        form=f"table {', '.join(names)}",
        records=[record for part in parts for record in part.records],
        missing=[path for part in parts for path in part.missing],
        notes=[note for part in parts for note in part.notes],
    )


def metadata_files(folder: str) -> dict[str, str]:
    """Tables of an image folder of `datasets`, by the folder they speak of: its own, "", or those of its splits."""
    splits = [name for name in sorted(os.listdir(folder)) if name.casefold() in SPLITS]
    for parts in ([""], splits):
        inside = {part: os.path.join(folder, part) for part in parts}
        names = {part: sorted(os.listdir(path), key=str.lower) for part, path in inside.items() if os.path.isdir(path)}
        found = {part: [name for name in among if name.casefold() in METADATA_FILES] for part, among in names.items()}
        if any(found.values()):
            return {part: tables[0] for part, tables in found.items() if tables}
    return {}


def add_unnamed(index: Index) -> Index:
    """List the files of a table's folder that it does not name, but those that lie beside any images."""
    used = {os.path.realpath(os.path.join(index.root, p)) for r in index.records for p in (r.image, r.mask) if p}
    tree = FileTree(index.root)
    found = {f"not named by {index.form}": tree.files, **tree.set_aside}
    left = {
        reason: [path for path in paths if os.path.realpath(os.path.join(tree.root, path)) not in used]
        for reason, paths in found.items()
    }
    return replace(index, unused={reason: paths for reason, paths in left.items() if paths})


def index_meta(path: str, root: str | None) -> Index:
    """Index the authors' `meta.json`: {split: {class: [{img_path, mask_path, cls_name, specie_name, anomaly}]}}.

    Raises:
        ValueError: not such a file, or none of its images exists.
    """
    root = root or os.path.dirname(path) or "."  # splits have the names they have, be it ""
    return index_rows(rows_of_splits(path), META, root, "the authors' meta.json", class_name="", split="")


def _cell(row: Mapping[str, Any], column: str | None, where: str) -> Any:
    if column is not None and column not in row:
        raise ValueError(f"{where}: there is no column {column!r}, found {', '.join(row)}")
    return None if column is None else row[column]


def _fill(pattern: str, row: Mapping[str, Any], where: str) -> str:
    """A pattern with each `{column}` replaced by its cell, "" where one of them is empty."""
    cells = {name: _text(_cell(row, name, where)) for _, name, *_ in Formatter().parse(pattern) if name}
    return pattern.format_map(cells) if all(cells.values()) else ""


def _text(value: Any) -> str:
    text = "" if value is None else str(value).strip()
    return "" if text.casefold() in _NONE else text
