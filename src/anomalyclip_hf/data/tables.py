"""Index files: CSV, TSV, JSON lines, parquet and the authors' `meta.json`, all read as rows of one kind of table."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from ..images_anomalyclip import split_page
from .file_tree import FileTree, examples, file_key, normal_form
from .images import MaskRule
from .layouts import OWN_NORMAL_KINDS, SPLITS, DatasetLayout, Table
from .options import SourceOptions
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
# The field of `SourceOptions` that names each.
COLUMN_OPTIONS = {name: f"{name.removesuffix('_name').removesuffix('_type')}_column" for name in COLUMN_ALIASES}
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
                rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, ValueError) as error:
        raise ValueError(f"cannot read the table {path}: {error}") from error
    if not rows:
        raise ValueError(f"the table {path} has no rows")
    columns = dict.fromkeys(str(name).strip() for _, row in rows for name in row if name is not None)
    return [
        (f"{path}, line {number}", columns | {str(key).strip(): cell for key, cell in row.items() if key is not None})
        for number, row in rows
    ]


def pick_columns(names: Iterable[str], chosen: Mapping[str, str | None], where: str) -> dict[str, str]:
    """Match the schema's fields to column names: the user's choice first, then the usual names.

    Args:
        names: the columns there are.
        chosen: field -> column name; None where the user left it open.
        where (`str`): the source, for messages.

    Raises:
        ValueError: a chosen column does not exist, or none holds the images.
    """
    names = list(names)
    lower = {name.casefold(): name for name in reversed(names)}
    spelled = {normal_form(name): name for name in reversed(names)}
    columns: dict[str, str] = {}
    for field_name, aliases in COLUMN_ALIASES.items():
        wanted = chosen.get(field_name)
        if wanted is not None and (wanted := spelled.get(normal_form(wanted))) is None:
            option = COLUMN_OPTIONS[field_name]
            raise ValueError(f"{option}={chosen[field_name]!r}, but {where} has the columns {', '.join(names)}")
        found = wanted or next((lower[alias] for alias in aliases if alias in lower), None)
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


def label_of_kind(value: Any, normal_values: Sequence[Any] | None) -> int | None:
    """Label of an image that has a kind of defect but no label: 0 for a normal kind, "none" or 0; None if empty."""
    return to_label(value, normal_values or _NORMAL_KINDS)


def labels_of_kinds(values: Iterable[Any], normal_values: Sequence[Any] | None) -> list[int | None]:
    """[`label_of_kind`] of a whole column; where no cell names a normal kind, an empty one means no defect."""
    labels = [label_of_kind(value, normal_values) for value in values]
    empty_is_normal = normal_values is None and 0 not in labels and 1 in labels
    return [0 if label is None and empty_is_normal else label for label in labels]


def index_rows(
    rows: Sequence[Row],
    table: Table,
    root: str,
    form: str,
    *,
    source: str,
    class_name: str,
    split: str = "test",
    folder: str = "",
    mask_rule: MaskRule | None = None,
    layout: DatasetLayout | None = None,
    tree: FileTree | None = None,
) -> Index:
    """Index the rows of a table.

    Args:
        rows: as of `read_rows`.
        table (`Table`): what its columns mean.
        root (`str`): the folder of the files.
        form (`str`): what the index is, in words.
        source (`str`): file of the table, for messages.
        class_name, split (`str`): where no column says another.
        folder (`str`): where relative paths start, from the root.
        mask_rule (`MaskRule`, *optional*): how masks are binarised.
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
        if layout is not None:
            return list_files().find(path, folder, numbers=True)
        found = list_files().find(path, folder)
        same = found is not None and os.path.splitext(found)[1].lower() == os.path.splitext(path)[1].lower()
        return found if same else None  # a 1 in a column of one's own may be a flag, and is no 1.png

    if table.label_column is None and table.kind_column is not None:
        labels = labels_of_kinds([row[table.kind_column] for _, row in rows], table.normal_labels)
    else:
        labels = [to_label(_cell(row, table.label_column), table.normal_labels, where) for where, row in rows]
    classes = {file_key(name): name for name in (layout.classes if layout else ())}
    records, missing = [], []
    respelled: dict[str, str] = {}
    for (where, row), label in zip(rows, labels, strict=True):
        named = [_fill(pattern, row, where) for pattern in table.image]
        if not named[0]:
            raise ValueError(f"{where}: the column {table.image[0][1:-1]!r} is empty")
        image = next((there for path in named if (there := find(path))), None)
        masks_named = [_fill(pattern, row, where) for pattern in table.mask]
        mask_named = masks_named[0] if masks_named else ""
        mask = next((there for path in masks_named if path and (there := find(path))), None)
        for path, there in ((named[0], image), (mask_named, mask)):
            if path and there is None:
                missing.append(os.path.join(folder, path))
            elif there is not None and there != os.path.join(folder, path):
                respelled[path] = there
        if image is None:
            continue
        name = _text(_cell(row, table.class_column)) or class_name
        said = _text(_cell(row, table.split_column)).casefold()
        kind = kind_of(label, _text(_cell(row, table.kind_column)))
        name = classes.get(file_key(name), name)
        records.append(Record(image, mask, label, name, kind, SPLITS.get(said, said) or split))
    if not records:
        raise ValueError(f"none of the {len(missing)} images named by {source} exists below {root}, e.g. {missing[0]}")
    notes = []
    if respelled and layout is None:
        path, there = next(iter(respelled.items()))
        notes = [f"{len(respelled)} paths found by another spelling or by their last parts: {path} as {there}, ..."]
    return Index(root, form, records, mask_rule or MaskRule(), layout, True, missing=missing, notes=notes)


def index_layout_table(table: Table, layout: DatasetLayout, tree: FileTree) -> Index | None:
    """Index a data set that comes with a table, or one for each class; None where there is none."""
    path, form = os.path.join(tree.root, table.path), f"{layout.title}: {table.path}"
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
    index = index_rows(
        [row for file in files for row in (_rows_of_splits(file) if file.endswith(".json") else read_rows(file))],
        table,
        tree.root,
        form,
        source=path,
        class_name=layout.classes[0],
        mask_rule=layout.mask_rule,
        layout=layout,
        tree=tree,
    )
    notes = [f"{len(absent)} classes of the index have no folder ({examples(absent)})"] if absent else []
    return replace(index, notes=index.notes + notes)


def _rows_of_splits(path: str) -> list[Row]:
    """Rows of a JSON file {split: [rows]}, with the columns `split` and `file`; keys without a list are passed over.

    Raises:
        ValueError: not such a file.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            parts = [(split, rows) for split, rows in json.load(file).items() if isinstance(rows, list)]
        stem = os.path.splitext(os.path.basename(path))[0]
        return [(f"{path}, {split}", {**row, "split": split, "file": stem}) for split, rows in parts for row in rows]
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is not an index of the form {{split: [rows]}}: {error}") from error


def index_own_table(
    path: str,
    root: str | None,
    options: SourceOptions,
    split: str = "test",
    folder: str = "",
) -> Index:
    """Index a user's CSV, TSV, JSON lines or parquet file.

    Args:
        path (`str`): the table.
        root (`str`, *optional*): folder of the files; the table's own by default.
        options (`SourceOptions`): columns, labels that mean normal, and the rest.
        split (`str`): where no column names one.
        folder (`str`): where relative paths start, from the root.
    """
    rows = read_rows(path)
    root = root or os.path.dirname(path) or "."
    found = pick_columns(rows[0][1], options.columns(), f"the table {path}")
    table = Table(
        path=path,
        image=(f"{{{found['image']}}}",),
        mask=(f"{{{found['mask']}}}",) if "mask" in found else (),
        label_column=found.get("label"),
        class_column=found.get("class_name"),
        split_column=found.get("split"),
        kind_column=found.get("defect_type"),
        normal_labels=None if options.normal_labels is None else tuple(options.normal_labels),
    )
    name = options.only_class() or os.path.basename(os.path.abspath(root))
    form, rule = f"table {os.path.basename(path)}", options.mask_rule()
    return index_rows(
        rows, table, root, form, source=path, class_name=name, split=split, folder=folder, mask_rule=rule
    )


def metadata_files(folder: str) -> dict[str, str]:
    """Tables of an image folder of `datasets`, by the folder they speak of: its own, "", or those of its splits."""
    splits = sorted(name for name in os.listdir(folder) if name.casefold() in SPLITS)
    for parts in ([""], splits):
        found: dict[str, str] = {}
        for part in parts:
            inside = os.path.join(folder, part)
            names = {name.casefold(): name for name in os.listdir(inside)} if os.path.isdir(inside) else {}
            for file in METADATA_FILES:
                if file in names:
                    found.setdefault(part, names[file])
        if found:
            return found
    return {}


def index_image_folder(name: str, root: str, tables: Mapping[str, str], options: SourceOptions) -> Index:
    """Index an image folder of `datasets` by its metadata files.

    Args:
        name (`str`): the folder.
        root (`str`): where relative paths start; a split's from its folder in there.
        tables: folder of a split, or "", -> name of its table.
        options (`SourceOptions`): columns and the rest.
    """
    parts = [
        index_own_table(os.path.join(name, part, file), root, options, SPLITS.get(part.casefold(), "test"), part)
        for part, file in tables.items()
    ]
    form = "table " + ", ".join(os.path.join(part, file).replace(os.sep, "/") for part, file in tables.items())
    index = replace(
        parts[0],
        form=form,
        records=[record for part in parts for record in part.records],
        missing=[path for part in parts for path in part.missing],
        notes=[note for part in parts for note in part.notes],
    )
    return add_unnamed(index)


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


def index_meta(path: str, root: str | None, mask_rule: MaskRule) -> Index:
    """Index the authors' `meta.json`: {split: {class: [{img_path, mask_path, cls_name, specie_name, anomaly}]}}.

    Raises:
        ValueError: not such a file, or none of its images exists.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            meta = json.load(file)
        entries = [(split, name, entry) for split, by in meta.items() for name, rows in by.items() for entry in rows]
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is not the authors' index {{split: {{class: [entries]}}}}: {error}") from error
    if not entries:
        raise ValueError(f"{path}: it is empty")
    rows: list[Row] = []
    for split, name, entry in entries:
        if not isinstance(entry, dict) or "img_path" not in entry or "anomaly" not in entry:
            raise ValueError(f'{path}: an entry of {split}/{name} has no "img_path" or "anomaly": {entry!r}')
        named = {"mask_path": None, **entry, "cls_name": entry.get("cls_name") or name, "split": split}
        rows.append((f"{path}, {split}/{name}", named))
    root = root or os.path.dirname(path) or "."
    form = "the authors' meta.json"  # whose splits have the names they have, be it ""
    return index_rows(rows, META, root, form, source=path, class_name="", split="", mask_rule=mask_rule)


def _cell(row: Mapping[str, Any], column: str | None) -> Any:
    return None if column is None else row.get(column)


def _fill(pattern: str, row: Mapping[str, Any], where: str) -> str:
    """A pattern with each `{column}` replaced by its cell, "" where one of them is empty."""
    columns = re.findall(r"\{([^{}]+)\}", pattern)
    if lacking := [name for name in columns if name not in row]:
        raise ValueError(f"{where}: there is no column {lacking[0]!r}, found {', '.join(row)}")
    cells = {name: _text(row[name]) for name in columns}
    return re.sub(r"\{([^{}]+)\}", lambda match: cells[match.group(1)], pattern) if all(cells.values()) else ""


def _text(value: Any) -> str:
    text = "" if value is None else str(value).strip()
    return "" if text.casefold() in _NONE else text
