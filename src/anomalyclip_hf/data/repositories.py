"""`datasets` sources - objects, saved folders, repositories - brought into the one schema."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import datasets
import pyarrow as pa

from .features import LABEL_NAMES, AnomalyImage, AnomalyMask, make_features
from .file_tree import examples, leaves_root
from .indexing import ANOMALOUS_KIND, NORMAL_KIND
from .masks import mask_turn
from .tables import label_of_kind, labels_of_kinds, pick_columns, to_label

logger = logging.getLogger(__name__)

_ORDER = ("image", "mask", "label", "class_name", "defect_type", "path")


def load_repository(name: str, options, *, data_dir=None, streaming: bool = False) -> dict[str, Any]:
    """Load a saved folder, a local repository or one on the Hub (the latter only because the user named it).

    Args:
        name (`str`): folder, .parquet or .arrow file, or owner/name.
        options (`SourceOptions`): columns, revision and the rest.
        data_dir (path, *optional*): where paths in it start; its own folder by default.
        streaming (`bool`): do not download first.

    Raises:
        ValueError: it cannot be loaded, or names files outside of its folder, and `allow_outside` is off.
    """
    if data_dir is None and os.path.exists(name):
        data_dir = name if os.path.isdir(name) else os.path.dirname(name) or "."
    homes = None if options.allow_outside else _homes(data_dir)
    if os.path.isdir(name) and any(os.path.isfile(os.path.join(name, f)) for f in ("dataset_dict.json", "state.json")):
        from . import features  # noqa: F401  (a saved set may carry our column types)

        return adapt_datasets(datasets.load_from_disk(name), options, data_dir, label=name, homes=homes)
    arguments: dict[str, Any] = {"streaming": streaming}
    if os.path.isfile(name):
        arguments |= {"path": "parquet" if name.lower().endswith(".parquet") else "arrow", "data_files": name}
    else:
        arguments |= {"path": name, "revision": options.revision}
    try:
        loaded = datasets.load_dataset(**arguments)
    except (FileNotFoundError, ConnectionError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        raise ValueError(
            f"{name!r} could not be loaded as a datasets repository: {error}. Expected a data set's name with "
            "data_dir, a folder, a table, or a repository owner/name that can be reached"
        ) from error
    parts = adapt_datasets(loaded, options, data_dir, label=name, homes=homes)
    license = None if os.path.isfile(name) else _stated_license(name, options.revision)
    for part in parts.values():
        part.info.license = part.info.license or license or ""
    return parts


def _homes(data_dir) -> list[str]:
    """Folders that a repository may name files in: its own, and where the Hub's downloads are unpacked."""
    import huggingface_hub.constants as hub

    caches = [str(datasets.config.HF_DATASETS_CACHE), str(datasets.config.DOWNLOADED_DATASETS_PATH), hub.HF_HUB_CACHE]
    return caches + ([os.fspath(data_dir)] if data_dir is not None else [])


def _refuse_outside(dataset, homes: list[str], data_dir, label: str) -> None:
    """Refuse image and mask cells that hold no bytes but the path of a file elsewhere on this disk."""
    import pyarrow as pa
    import pyarrow.compute as pc

    paths: list[str | None] = []
    for column in ("image", "mask"):
        for cells in dataset.data.column(column).chunks if column in dataset.features else ():
            if pa.types.is_struct(cells.type):
                cells = pc.filter(pc.struct_field(cells, "path"), pc.is_null(pc.struct_field(cells, "bytes")))
            if pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type):
                paths += cells.to_pylist()
    root = os.fspath(data_dir) if data_dir is not None else ""
    local = [os.path.abspath(os.path.join(root, path)) for path in paths if path and "://" not in path]
    outside = [path for path in local if all(leaves_root(home, path) for home in homes)]
    if outside:
        raise ValueError(
            f"{label} names {len(outside)} files outside of its folder ({examples(outside)}): they are not read. If "
            "you mean them, give the folder that holds them as data_dir, or allow_outside=True"
        )


def _stated_license(name: str, revision: str | None) -> str | None:
    """The licence id on a repository's card; None where it states none or has no card."""
    from huggingface_hub import DatasetCard, hf_hub_download

    try:
        path = os.path.join(name, "README.md")
        if not os.path.isdir(name):
            path = hf_hub_download(name, "README.md", repo_type="dataset", revision=revision)
        stated = DatasetCard.load(path, ignore_metadata_errors=True).data.get("license")
    except (OSError, ValueError):
        return None
    return stated if isinstance(stated, str) and stated != "unknown" else None


def adapt_datasets(
    source: Any, options, data_dir=None, label: str = "the data set", homes: list[str] | None = None
) -> dict[str, Any]:
    """Bring `Dataset`, `IterableDataset` or dictionaries of them into the one schema.

    Args:
        source: the object.
        options (`SourceOptions`): column names and which labels mean normal.
        data_dir (path, *optional*): where relative paths in an image column start.
        label (`str`): its name in messages.
        homes (*optional*): the only folders that cells may name files in.

    Returns:
        `dict`: split -> data set.

    Raises:
        TypeError: not a `datasets` object.
        ValueError: columns or labels that cannot be understood.
    """
    if isinstance(source, (datasets.Dataset, datasets.IterableDataset)):
        source = {str(source.split) if source.split else "test": source}
    if not isinstance(source, Mapping):
        raise TypeError(
            f"source is a {type(source).__name__}; "
            "expected a name, a path, a Dataset, a DatasetDict or an IterableDataset"
        )
    return {str(split): _adapt(part, options, data_dir, f"{label} ({split})", homes) for split, part in source.items()}


def _adapt(dataset, options, data_dir, label: str, homes: list[str] | None):
    if dataset.features is None:
        raise ValueError(f"{label} has no features: give it some with cast(features), so that its columns are known")
    dataset = _as_stored(dataset, label)
    found = pick_columns(dataset.features, options.columns or {}, label)
    found.pop("split", None)
    if "path" in dataset.features and "path" not in found.values():
        found["path"] = "path"
    dataset = dataset.select_columns(list(found.values()))
    rename = {column: name for name, column in found.items() if column != name}
    dataset = dataset.rename_columns(rename) if rename else dataset
    if isinstance(dataset, datasets.IterableDataset):
        return _adapt_stream(dataset, options, label)
    if homes is not None:
        _refuse_outside(dataset, homes, data_dir, label)
    dataset = _add_paths(dataset, data_dir)
    labels, kinds = _labels(dataset, options, label)
    rows = len(dataset)
    name = _default_class(options, label)
    classes = _texts(dataset, "class_name", [name] * rows)
    keep = dataset.select_columns([column for column in ("image", "mask") if column in dataset.features])
    if "mask" not in keep.features:
        keep = keep.add_column("mask", [None] * rows, feature=AnomalyMask())
    rule = options.rule()
    turns = _mask_turns(keep)
    keep = keep.cast_column("image", AnomalyImage())
    keep = keep.cast_column("mask", AnomalyMask(threshold=rule.threshold, jpeg_threshold=rule.jpeg_threshold))
    if any(turn != 1 for turn in turns.values()):
        keep = _with_turns(keep, turns)
    paths = _texts(dataset, "path", [f"{index:06d}" for index in range(rows)])
    keep = keep.add_column("label", labels, feature=datasets.ClassLabel(names=list(LABEL_NAMES)))
    for column, values in (("class_name", classes), ("defect_type", kinds), ("path", paths)):
        keep = keep.add_column(column, values, feature=datasets.Value("string"))
    return keep.select_columns(list(_ORDER))


def _mask_turns(dataset) -> dict[int, int]:
    """Row -> orientation that lays its mask on its upright image (`mask_turn`), where the column does not hold it."""
    if isinstance(dataset.features["mask"], AnomalyMask) or dataset.features["mask"] == datasets.Value("null"):
        return {}
    return {
        row: mask_turn(image, mask)
        for row, (image, mask) in enumerate(zip(_cells(dataset, "image"), _cells(dataset, "mask"), strict=True))
        if image is not None and mask is not None
    }


def _cells(dataset, column: str) -> Iterator[Any]:
    """The cells of an image column unread, as paths or files; an embedded file is not copied for its first bytes."""
    for batch in dataset.select_columns(column).with_format("arrow").iter(batch_size=1000):
        for cell in batch.column(column):
            if not cell.is_valid:
                yield None
            elif cell["bytes"].is_valid:
                yield pa.BufferReader(cell["bytes"].as_buffer())
            else:
                yield {"bytes": None, "path": cell["path"].as_py()}


def _with_turns(dataset, turns: dict[int, int]):
    feature = dataset.features["mask"]

    def add(cells, rows):
        return {"mask": [cell and {**cell, "turn": turns.get(row)} for cell, row in zip(cells, rows, strict=True)]}

    plain = AnomalyMask(decode=False, threshold=feature.threshold, jpeg_threshold=feature.jpeg_threshold)
    masks = dataset.select_columns("mask").cast_column("mask", plain)  # alone, or the images would be copied too
    masks = masks.map(add, input_columns="mask", with_indices=True, batched=True, batch_size=100)
    return datasets.concatenate_datasets([dataset.remove_columns("mask"), masks.cast_column("mask", feature)], axis=1)


def _as_stored(dataset, label: str):
    """The data set without format: torch tensors or numpy arrays are read as what they were made of."""
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] == "custom":
        logger.warning(f"{label} has a transform, which is left out: images are read as stored; map() keeps changes")
    return dataset.with_format(None)


def _adapt_stream(dataset, options, label: str):
    rule, name = options.rule(), _default_class(options, label)
    names = _class_label_names(dataset.features.get("label"))
    class_names = _class_label_names(dataset.features.get("class_name"))
    kind_names = _class_label_names(dataset.features.get("defect_type"))
    has_label = "label" in dataset.features or "defect_type" not in dataset.features
    features = make_features(rule)
    for column in ("image", "mask"):  # left unread until the turn of the mask is known
        feature = dataset.features.get(column)
        if isinstance(feature, AnomalyMask):
            dataset = dataset.cast_column(column, AnomalyMask(decode=False))
        elif feature is not None and feature != datasets.Value("null"):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))

    def complete(row, index):
        kind = _name_of(row.get("defect_type"), kind_names) or ANOMALOUS_KIND
        if has_label:
            value = to_label(_name_of(row.get("label"), names), options.normal_labels, label)
        else:
            value = label_of_kind(row.get("defect_type") and kind, options.normal_labels)
        return {
            "image": row["image"],
            "mask": row.get("mask") and _with_turn(row["image"], row["mask"]),
            "label": value,
            "class_name": str(_name_of(row.get("class_name"), class_names) or name),
            "defect_type": NORMAL_KIND if value == 0 else ("" if value is None else str(kind)),
            "path": row.get("path") or f"{index:06d}",
        }

    return dataset.map(complete, with_indices=True).cast(features)


def _add_paths(dataset, data_dir):
    """Turn an image or mask column of plain paths into one of files; note the path of each image."""
    images: list[str | None] = []
    for column in ("image", "mask"):
        feature = dataset.features.get(column)
        if isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string"):
            root = os.fspath(data_dir) if data_dir is not None else ""
            values = [os.path.join(root, value) if value else None for value in dataset[column]]
            if column == "image" and "path" not in dataset.features:
                dataset = dataset.add_column("path", values)
            if column == "image":
                images = values
                cells: list[dict | None] = [{"bytes": None, "path": value} for value in values]
                feature = AnomalyImage()
            else:
                pairs = zip(images or [None] * len(values), values, strict=True)
                cells = [_mask_cell(image, mask) for image, mask in pairs]
                feature = AnomalyMask()
            dataset = dataset.remove_columns(column).add_column(column, cells, feature=feature)
            # As one block: `datasets` fails to add to what is left of several.
            table = datasets.table.InMemoryTable(dataset.data.table)
            dataset = datasets.Dataset(table, info=dataset.info, split=dataset.split)
        elif feature is not None and not isinstance(feature, datasets.Image) and feature != datasets.Value("null"):
            raise ValueError(f"column {column!r} is {feature}, expected datasets.Image or paths as strings")
    return dataset


def _with_turn(image: Mapping | None, mask: Mapping) -> dict:
    turn = mask.get("turn")
    return {**mask, "turn": mask_turn(image, mask) if image and turn is None else turn}


def _mask_cell(image: str | None, mask: str | None) -> dict | None:
    if mask is None:
        return None
    return {"bytes": None, "path": mask, "turn": mask_turn(image, mask) if image else None}


def _labels(dataset, options, label: str) -> tuple[list[int | None], list[str]]:
    rows = len(dataset)
    given = _texts(dataset, "defect_type", [""] * rows)
    if "label" in dataset.features:
        names = _class_label_names(dataset.features["label"])
        cells = [_name_of(value, names) for value in dataset["label"]]
        labels = [to_label(cell, options.normal_labels, f"{label}, row {i}") for i, cell in enumerate(cells)]
    elif "defect_type" in dataset.features:
        labels = labels_of_kinds(given, options.normal_labels)
    else:
        labels = [None] * rows
    kinds = [
        NORMAL_KIND if value == 0 else ("" if value is None else kind or ANOMALOUS_KIND)
        for value, kind in zip(labels, given, strict=True)
    ]
    return labels, kinds


def _texts(dataset, column: str, default: list[str]) -> list[str]:
    if column not in dataset.features:
        return default
    names = _class_label_names(dataset.features[column])
    return ["" if value is None else str(_name_of(value, names)) for value in dataset[column]]


def _class_label_names(feature) -> list[str] | None:
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def _name_of(value, names: list[str] | None):
    return names[value] if names is not None and value is not None and value >= 0 else value


def _default_class(options, label: str) -> str:
    if options.class_names and len(options.class_names) == 1:
        return options.class_names[0]
    return "object" if label.startswith("the data set") else os.path.basename(label.split(" (")[0].rstrip("/"))


def select_split(parts: dict[str, Any], split: str, options, streaming: bool):
    """One split, or all of them in a row, and some classes of it.

    Raises:
        ValueError: there is no such split or class.
    """
    if split == "all":
        values = list(parts.values())
        chosen = values[0] if len(values) == 1 else datasets.concatenate_datasets(values)
    elif split in parts:
        chosen = parts[split]
    else:
        raise ValueError(f'split={split!r}, but the source has {", ".join(parts)}; give one of these, or split="all"')
    if options.class_names:
        wanted = set(options.class_names)
        if isinstance(chosen, datasets.IterableDataset):
            return chosen.filter(lambda name: name in wanted, input_columns="class_name")
        names = list(chosen["class_name"])
        unknown = sorted(wanted - set(names))
        if unknown:
            raise ValueError(f"class_names={unknown}, but the source has {', '.join(sorted(set(names)))}")
        chosen = chosen.select([index for index, name in enumerate(names) if name in wanted])
    if streaming and isinstance(chosen, datasets.Dataset):
        return chosen.to_iterable_dataset()
    return chosen
