"""Index files: CSV, TSV, JSON lines and the authors' `meta.json`."""

from __future__ import annotations

import csv
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import replace

from .file_tree import FileTree, examples, leaves_root
from .indexing import ANOMALOUS_KIND, NORMAL_KIND, Index, Record
from .layout_types import SPLITS, DatasetLayout, Table
from .layouts import OWN_NORMAL_KINDS
from .masks import MaskRule

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
_ZERO = ("0", "0.0", "false", "normal", "good", "ok", "negative", "no")
_ONE = ("1", "1.0", "true", "anomaly", "anomalous", "abnormal", "defect", "defective", "bad", "positive", "yes", "ng")
_NONE = ("", "none", "null", "nan", "na", "n/a")
_UNLABELED = ("-1", *_NONE)  # -1: what `datasets` writes for a hidden label


def read_rows(path: str) -> list[tuple[int, dict]]:
    """Rows of a CSV, TSV, JSON lines or parquet file, each with its number in the file, column names stripped.

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
    return [
        (number, {str(key).strip(): value for key, value in row.items() if key is not None}) for number, row in rows
    ]


def pick_columns(names, chosen: Mapping[str, str | None], where: str) -> dict[str, str]:
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
    columns: dict[str, str] = {}
    for field_name, aliases in COLUMN_ALIASES.items():
        wanted = chosen.get(field_name)
        if wanted is not None and wanted not in names:
            raise ValueError(f"{field_name}_column={wanted!r}, but {where} has the columns {', '.join(names)}")
        found = wanted or next((lower[alias] for alias in aliases if alias in lower), None)
        if found is not None and found not in columns.values():
            columns[field_name] = found
    if "image" not in columns:
        raise ValueError(
            f"{where} has no image column: looked for {', '.join(COLUMN_ALIASES['image'])}, found {', '.join(names)}; "
            "name it with image_column=..."
        )
    return columns


def to_label(value, normal_values: tuple[str, ...] | None, where: str) -> int | None:
    """Turn a cell into 0 (normal), 1 (anomalous) or None (unknown).

    Raises:
        ValueError: the value is not understood.
    """
    text = "" if value is None else str(value).strip()
    if normal_values is not None:
        normal = {str(value).casefold() for value in normal_values}
        if text.casefold() in _NONE and text.casefold() not in normal:
            return None
        return int(text.casefold() not in normal)
    if text.casefold() in _ZERO:
        return 0
    if text.casefold() in _ONE:
        return 1
    if text.casefold() in _UNLABELED:
        return None
    raise ValueError(
        f"{where}: label {value!r} is neither normal ({', '.join(_ZERO[:6])}) nor anomalous ({', '.join(_ONE[:6])}); "
        "say which values mean normal with normal_labels=(...)"
    )


def label_of_kind(value, normal_values: tuple[str, ...] | None) -> int | None:
    """Label of an image that only its kind of defect tells of: 0 for a normal kind, "none" or 0; None if empty."""
    text = "" if value is None else str(value).strip().casefold()
    normal = {str(name).casefold() for name in normal_values or (*OWN_NORMAL_KINDS, *_ZERO, "none")}
    return 0 if text in normal else (None if text in _NONE else 1)


def labels_of_kinds(values: Iterable, normal_values: tuple[str, ...] | None) -> list[int | None]:
    """[`label_of_kind`] of a whole column; where no cell names a normal kind, an empty one means no defect.

    Args:
        values: cells of the column.
        normal_values (*optional*): the kinds that mean normal.
    """
    labels = [label_of_kind(value, normal_values) for value in values]
    empty_is_normal = normal_values is None and 0 not in labels and 1 in labels
    return [0 if label is None and empty_is_normal else label for label in labels]


def index_table(table: Table, layout: DatasetLayout, tree: FileTree) -> Index | None:
    """Index a data set that comes with a table; None where the table is not there.

    Names are looked for among the files of the tree, so none leaves its root; files behind links do (`Index.outside`).
    """
    path = os.path.join(tree.root, table.path)
    if not os.path.isfile(path):
        return None
    rows = read_rows(path)
    known = {name.casefold(): name for name in layout.classes}
    records, missing, used = [], [], set()
    for number, row in rows:
        image = _locate(tree, [_cells(pattern, row, path) for pattern in table.image])
        if image is None:
            missing.append(_cells(table.image[0], row, path))
            continue
        label = to_label(row.get(table.label_column or "", None), table.normal_labels, f"{path}, line {number}")
        mask_path = _cells(table.mask, row, path) if table.mask and label != 0 else ""
        mask = _locate(tree, [mask_path]) if mask_path else None
        if mask_path and mask is None:
            missing.append(mask_path)
        used.update({image, mask} - {None})
        name = str(row.get(table.class_column or "", "") or layout.classes[0])
        split = SPLITS.get(str(row.get(table.split_column or "", "test")).casefold(), "test")
        kind = str(row.get(table.kind_column or "", "") or ANOMALOUS_KIND)
        kind = NORMAL_KIND if label == 0 else ("" if label is None else kind)
        records.append(Record(image, mask, label, known.get(name.casefold(), name), kind, split))
    if not records:
        raise ValueError(
            f"{layout.title}: none of the {len(missing)} images named by {path} exists, e.g. {missing[0]}"
        )
    form = f"{layout.title}: {table.path}"
    outside = [path for path in tree.outside if path in used]
    return Index(tree.root, form, records, layout.mask_rule, layout, [], missing, outside=outside)


def confine(index: Index, allowed: bool) -> Index:
    """Refuse an index whose names or links lead out of its root, unless the user allows that.

    Args:
        index (`Index`): of a table or a meta.json, whose names someone else may have written.
        allowed (`bool`): note such files in `Index.outside` instead.

    Raises:
        ValueError: a file lies elsewhere; the message names it.
    """
    named = (path for record in index.records for path in (record.image, record.mask) if path)
    outside = [path for path in dict.fromkeys(named) if leaves_root(index.root, path)]
    if outside and not allowed:
        raise ValueError(
            f"{index.form} names {len(outside)} files outside of its folder {index.root} ({examples(outside)}): they "
            "are not read. If you know the table and mean these files, give the folder that holds them all as "
            "data_dir, or allow_outside=True"
        )
    return replace(index, outside=outside)


def index_own_table(
    path: str,
    root: str | None,
    columns: Mapping[str, str | None],
    normal_labels: tuple[str, ...] | None,
    mask_rule: MaskRule,
    class_name: str | None = None,
    split: str = "test",
) -> Index:
    """Index a user's CSV, TSV or JSON lines file.

    Args:
        path (`str`): the table.
        root (`str`, *optional*): folder its relative paths start from; its own by default.
        columns: field -> column name, None where it is to be found by its usual names.
        normal_labels (*optional*): the label values that mean normal.
        mask_rule (`MaskRule`): how masks are binarised.
        class_name (`str`, *optional*): class where no column names one; the root folder's name by default.
        split (`str`): where no column names one.
    """
    rows = read_rows(path)
    root = root or os.path.dirname(path) or "."
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    found = pick_columns(names, columns, f"the table {path}")
    default = class_name or os.path.basename(os.path.abspath(root))
    by_kind = "defect_type" in found and "label" not in found
    kinds = labels_of_kinds([row.get(found["defect_type"]) for _, row in rows], normal_labels) if by_kind else None
    records, missing = [], []
    respelled: dict[str, str] = {}
    for place, (number, row) in enumerate(rows):
        cell = {field: _text(row.get(column)) for field, column in found.items()}
        image, mask = cell["image"], cell.get("mask", "")
        if not image:
            raise ValueError(f"{path}, line {number}: the column {found['image']!r} is empty")
        places = {item: _relocate(root, item) for item in (image, mask) if item}
        missing += [item for item, there in places.items() if there is None]
        respelled |= {item: there for item, there in places.items() if there not in (None, item)}
        if (image_path := places[image]) is None:
            continue
        label = kinds[place] if kinds else None
        if "label" in found:
            label = to_label(row.get(found["label"]), normal_labels, f"{path}, line {number}")
        kind = NORMAL_KIND if label == 0 else ("" if label is None else cell.get("defect_type") or ANOMALOUS_KIND)
        said = cell.get("split", "").casefold()
        class_of = cell.get("class_name") or default
        records.append(Record(image_path, places.get(mask), label, class_of, kind, SPLITS.get(said, said) or split))
    if not records:
        raise ValueError(f"none of the {len(missing)} images named by {path} exists below {root}, e.g. {missing[0]}")
    notes = _note_respelled(respelled)
    return Index(root, f"table {os.path.basename(path)}", records, mask_rule, missing=missing, notes=notes)


def index_table_file(path: str, root: str | None, options, split: str = "test") -> Index:
    """Index a user's table with a user's options; arguments as in `index_own_table`."""
    default = options.class_names[0] if options.class_names and len(options.class_names) == 1 else None
    columns = options.columns or {}
    return index_own_table(path, root, columns, options.normal_labels, options.rule(), default, split=split)


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


def index_image_folder(name: str, root: str, tables: Mapping[str, str], options) -> Index:
    """Index an image folder of `datasets` by its metadata files.

    Args:
        name (`str`): the folder.
        root (`str`): where relative paths start; a split's from its folder in there.
        tables: folder of a split, or "", -> name of its table.
        options (`SourceOptions`): columns and the rest.
    """
    records: list[Record] = []
    missing: list[str] = []
    notes: list[str] = []
    for part, file in tables.items():
        split = SPLITS[part.casefold()] if part else "test"
        index = index_table_file(os.path.join(name, part, file), os.path.join(root, part), options, split)
        own = os.path.basename(os.path.abspath(root))
        for record in index.records:
            class_name = own if part and record.class_name == part else record.class_name
            mask = record.mask and os.path.join(part, record.mask)
            image = os.path.join(part, record.image)
            records.append(replace(record, image=image, mask=mask, class_name=class_name))
        missing += [os.path.join(part, path) for path in index.missing]
        notes += index.notes
    form = "table " + ", ".join(os.path.join(part, file).replace(os.sep, "/") for part, file in tables.items())
    return add_unnamed(Index(root, form, records, options.rule(), missing=missing, notes=notes))


def add_unnamed(index: Index) -> Index:
    """List the images of a table's folder that it does not name."""
    used = {os.path.realpath(os.path.join(index.root, p)) for r in index.records for p in (r.image, r.mask) if p}
    tree = FileTree(index.root)
    left = [path for path in tree.files if os.path.realpath(os.path.join(tree.root, path)) not in used]
    return replace(index, unused={f"not named by {index.form}": left} if left else {})


def index_meta(path: str, root: str | None, mask_rule: MaskRule) -> Index:
    """Index the authors' `meta.json`: {split: {class: [{img_path, mask_path, cls_name, specie_name, anomaly}]}}.

    Paths written on another machine are found again by their last parts.

    Raises:
        ValueError: not such a file, or none of its images exists.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            meta = json.load(file)
        entries = [(split, name, entry) for split, by in meta.items() for name, rows in by.items() for entry in rows]
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is not the authors' index {{split: {{class: [entries]}}}}: {error}") from error
    root = root or os.path.dirname(path) or "."
    records, missing = [], []
    respelled: dict[str, str] = {}
    for split, name, entry in entries:
        if not isinstance(entry, dict) or "img_path" not in entry or "anomaly" not in entry:
            raise ValueError(f'{path}: an entry of {split}/{name} has no "img_path" or "anomaly": {entry!r}')
        image, mask = _relocate(root, entry["img_path"]), None
        if image is None:
            missing.append(str(entry["img_path"]))
            continue
        respelled |= {entry["img_path"]: image} if image != entry["img_path"] else {}
        label = to_label(entry["anomaly"], None, f"{path}, {split}/{name}")
        if entry.get("mask_path"):
            mask = _relocate(root, entry["mask_path"])
            if mask is None:
                missing.append(str(entry["mask_path"]))
        kind = NORMAL_KIND if label == 0 else ("" if label is None else entry.get("specie_name") or ANOMALOUS_KIND)
        lowered = str(split).casefold()
        records.append(Record(image, mask, label, entry.get("cls_name") or name, kind, SPLITS.get(lowered, lowered)))
    if not records:
        told = (
            f"none of its {len(missing)} images exists below {root}, e.g. {missing[0]}" if missing else "it is empty"
        )
        raise ValueError(f"{path}: {told}")
    notes = _note_respelled(respelled)
    return Index(root, "the authors' meta.json", records, mask_rule, missing=missing, notes=notes)


def _note_respelled(found: Mapping[str, str | None]) -> list[str]:
    if not found:
        return []
    first, there = next(iter(found.items()))
    return [f"{len(found)} paths found by another spelling or by their last parts: {first} as {there}, ..."]


def _relocate(root: str, path: str) -> str | None:
    """A path from an index as it is found here, from the root, or None.

    Only where there is no such file: backslashes are taken for slashes, accents composed or not and the suffix in
    other letters are tried, and of an absolute path of another machine its last parts.
    """
    path = str(path)
    slashed = path.replace("\\", "/")
    parts = [part for part in slashed.split("/") if part]
    forms = [path, slashed]
    if parts and (slashed.startswith("/") or ":" in parts[0]):
        forms += ["/".join(parts[start:]) for start in range(1, len(parts))]
    for form in dict.fromkeys(forms):
        stem, suffix = os.path.splitext(form)
        spelled = [form, stem + suffix.lower(), stem + suffix.upper()]
        spelled += [unicodedata.normalize(kind, form) for kind in ("NFC", "NFD")]
        for spelling in dict.fromkeys(spelled):
            if os.path.isfile(os.path.join(root, spelling)):
                return spelling
    return None


def _locate(tree: FileTree, paths: list[str]) -> str | None:
    found = (tree.find(path) or tree.find_number(path) for path in paths if path)
    return next((path for path in found if path), None)


def _cells(pattern: str, row: dict, where: str) -> str:
    def cell(match):
        if match.group(1) not in row:
            raise ValueError(f"{where} has no column {match.group(1)!r}: found {', '.join(row)}")
        return _text(row[match.group(1)])

    return re.sub(r"\{(\w+)\}", cell, pattern)


def _text(value) -> str:
    text = "" if value is None else str(value).strip()
    return "" if text.casefold() in _NONE else text
