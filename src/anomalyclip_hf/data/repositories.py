"""`datasets` sources - objects, saved folders, repositories - brought into the one schema."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from .features import AnomalyImage, AnomalyMask, make_features, undecoded
from .file_tree import check_inside
from .images import mask_turn
from .layouts import SPLITS
from .options import SourceOptions
from .records import kind_of
from .tables import _text, labels_of_kinds, pick_columns, to_label

logger = logging.getLogger(__name__)

Part: TypeAlias = datasets.Dataset | datasets.IterableDataset
_NULL = datasets.Value("null")


def load_repository(
    name: str, options: SourceOptions, *, data_dir: str | None = None, streaming: bool = False
) -> dict[str, Part]:
    """Load a saved folder, a local repository or one on the Hub (the latter only because the user named it).

    Args:
        name (`str`): folder, .parquet or .arrow file, or owner/name.
        options (`SourceOptions`): columns, revision and the rest.
        data_dir (`str`, *optional*): where paths in it start; its own folder by default.
        streaming (`bool`): do not download first.

    Raises:
        ValueError: it cannot be loaded, or names files outside of its folder, and `allow_outside` is off.
    """
    if data_dir is None and os.path.exists(name):
        data_dir = name if os.path.isdir(name) else os.path.dirname(name) or "."
    homes = None if options.allow_outside else _homes(data_dir)
    if any(os.path.isfile(os.path.join(name, file)) for file in ("dataset_dict.json", "state.json")):
        return adapt_datasets(datasets.load_from_disk(name), options, data_dir, label=name, homes=homes)
    arguments: dict[str, Any] = {"path": name, "revision": options.revision}
    if os.path.isfile(name):
        arguments = {"path": "parquet" if name.lower().endswith(".parquet") else "arrow", "data_files": name}
    if os.path.exists(name):
        arguments["cache_dir"] = os.path.join(str(datasets.config.HF_DATASETS_CACHE), _digest_of_files(name))
    try:
        loaded = datasets.load_dataset(**arguments, streaming=streaming)
    except (FileNotFoundError, ConnectionError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        raise ValueError(
            f"{name!r} could not be loaded as a datasets repository: {error}. Expected a data set's name with "
            "data_dir, a folder, a table, or a repository owner/name that can be reached"
        ) from error
    if os.path.isfile(name):  # `datasets` calls what has no splits "train"
        loaded = {"test": loaded["train"]}
    parts = adapt_datasets(loaded, options, data_dir, label=name, homes=homes)
    license = None if os.path.isfile(name) else _stated_license(name, options.revision)
    for part in parts.values():
        part.info.license = part.info.license or license or ""
    return parts


def _digest_of_files(path: str) -> str:
    """Stands for what lies at a path now: `datasets` would take another folder of the same name from its cache."""
    below = [os.path.join(top, name) for top, _, names in os.walk(path) for name in names]
    found = [(os.path.abspath(one), os.lstat(one)) for one in (below or [path])]
    stated = sorted((name, one.st_size, one.st_mtime_ns) for name, one in found)
    return hashlib.sha256(repr(stated).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _homes(data_dir: str | None) -> list[str]:
    """Folders that a repository may name files in: its own, and where the Hub's downloads are unpacked."""
    import huggingface_hub.constants as hub

    caches = [str(datasets.config.HF_DATASETS_CACHE), str(datasets.config.DOWNLOADED_DATASETS_PATH), hub.HF_HUB_CACHE]
    return ([data_dir] if data_dir is not None else []) + caches


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
    source: Any,
    options: SourceOptions,
    data_dir: str | None = None,
    label: str = "the data set",
    homes: list[str] | None = None,
) -> dict[str, Part]:
    """Bring `Dataset`, `IterableDataset` or dictionaries of them into the one schema.

    Args:
        source: the object.
        options (`SourceOptions`): column names and which labels mean normal.
        data_dir (`str`, *optional*): where relative paths in an image column start.
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
    source = _split_by_column(source, options, label)
    return {str(split): _adapt(part, options, data_dir, f"{label} ({split})", homes) for split, part in source.items()}


def _split_by_column(source: Mapping[Any, Part], options: SourceOptions, label: str) -> Mapping[Any, Part]:
    """The parts of a source: of one that has a single part, those that its column of splits names, as in a table.

    A column that `split_column` doesn't name counts where it holds usual names of splits alone.
    """
    parts, asked = list(source.items()), options.split_column
    if len(parts) != 1 or not isinstance(part := parts[0][1], datasets.Dataset):
        if asked is not None:
            why = "is a stream" if len(parts) == 1 else f"has splits of its own, {', '.join(map(str, source))}"
            raise ValueError(f"split_column={asked!r}, but {label} {why}: leave it out")
        return source
    column = pick_columns(part.features, options, label).get("split")
    if column is None or not len(part):
        return source
    names = getattr(part.features[column], "names", None)
    cells = part.with_format(None).select_columns(column)[column]
    words = [_text(names[cell] if names and cell is not None else cell).casefold() for cell in cells]
    if asked is None and any(word and word not in SPLITS for word in words):
        return source
    places: dict[str, list[int]] = {}
    for place, word in enumerate(words):
        places.setdefault(SPLITS.get(word, word) or str(parts[0][0]), []).append(place)
    return {split: part.select(found) for split, found in places.items()}


def _adapt(dataset: Part, options: SourceOptions, data_dir: str | None, label: str, homes: list[str] | None) -> Part:
    if dataset.features is None:
        raise ValueError(f"{label} has no features: give it some with cast(features), so that its columns are known")
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] == "custom":
        logger.warning(f"{label} has a transform, which is left out: images are read as stored; map() keeps changes")
    dataset = dataset.with_format(None)  # torch tensors or numpy arrays are read as what they were made of
    found = pick_columns(dataset.features, options, label)
    found.pop("split", None)
    if "path" in dataset.features and "path" not in found.values():
        found["path"] = "path"
    dataset = dataset.select_columns(list(found.values()))
    rename = {column: name for name, column in found.items() if column != name}
    dataset = dataset.rename_columns(rename) if rename else dataset
    default = options.only_class() or _folder_name(label)
    tell = partial(_tell, features=dataset.features, normal=options.normal_labels, default=default, label=label)
    if isinstance(dataset, datasets.IterableDataset):
        return _adapt_stream(dataset, tell, options, data_dir, homes, label)
    dataset = _with_files(dataset, data_dir)
    if homes is not None:
        check_inside(_files_of(dataset, data_dir), homes, label)
    pictures = [column for column in ("image", "mask") if column in dataset.features]
    keep = dataset.select_columns(pictures)
    if "mask" not in pictures:
        keep = keep.add_column("mask", [None] * len(dataset), feature=AnomalyMask())
    turns = _mask_turns(keep)
    keep = keep.cast_column("image", AnomalyImage()).cast_column(
        "mask", AnomalyMask(mask_threshold=options.mask_threshold)
    )
    if any(turn != 1 for turn in turns.values()):
        keep = _with_turns(keep, turns)
    facts = tell(dataset.remove_columns(pictures).to_list() or [{}] * len(dataset))
    features = make_features()
    for column in ("label", "class_name", "defect_type", "path"):
        keep = keep.add_column(column, [row[column] for row in facts], feature=features[column])
    return keep.select_columns(list(features))


def _tell(
    rows: list[dict[str, Any]],
    first: int = 0,
    *,
    features: datasets.Features,
    normal: Sequence[Any] | None,
    default: str,
    label: str,
) -> list[dict[str, Any]]:
    """Label, class, kind of defect and path of rows from their cells, but of pictures; `first` is their place."""
    for column, feature in features.items():
        if isinstance(feature, datasets.ClassLabel):
            cells = [row[column] for row in rows]
            named = [cell if cell is None or cell < 0 else feature.names[cell] for cell in cells]
            rows = [{**row, column: name} for row, name in zip(rows, named, strict=True)]
    kinds = ["" if row.get("defect_type") is None else str(row["defect_type"]) for row in rows]
    if "defect_type" in features and "label" not in features:
        labels = labels_of_kinds(kinds, normal)
    else:
        labels = [to_label(row.get("label"), normal, f"{label}, row {n}") for n, row in enumerate(rows, first)]
    return [
        {
            "label": value,
            "class_name": str(row.get("class_name") or default),
            "defect_type": kind_of(value, kind),
            "path": row.get("path") or f"{place:06d}",
        }
        for place, (row, value, kind) in enumerate(zip(rows, labels, kinds, strict=True), first)
    ]


def _adapt_stream(
    dataset: datasets.IterableDataset,
    tell: Callable[[list[dict[str, Any]], int], list[dict[str, Any]]],
    options: SourceOptions,
    data_dir: str | None,
    homes: list[str] | None,
    label: str,
) -> Part:
    for column in ("image", "mask"):  # left unread until the turn of the mask is known
        feature = dataset.features.get(column)
        if feature is not None and feature != _NULL:
            plain = AnomalyMask if isinstance(feature, AnomalyMask) else datasets.Image
            dataset = dataset.cast_column(column, plain(decode=False))

    def located(cell: dict[str, Any] | None) -> dict[str, Any] | None:
        """The cell with the path of its file from here, once that is known to lie where it may."""
        if not cell or cell["bytes"] is not None or not cell["path"] or "://" in cell["path"]:
            return cell
        path = os.path.join(data_dir or "", cell["path"])
        if homes is not None:
            check_inside([os.path.abspath(path)], homes, label)
        return {**cell, "path": path}

    def adapt(row: dict[str, Any], index: int) -> dict[str, Any]:
        image, mask = located(row.pop("image")), located(row.pop("mask", None))
        if mask and image and mask.get("turn") is None:
            mask = {**mask, "turn": mask_turn(image, mask)}
        return {"image": image, "mask": mask, **tell([row], index)[0]}

    return dataset.map(adapt, with_indices=True).cast(make_features(options.mask_threshold))


def _with_files(dataset: datasets.Dataset, data_dir: str | None) -> datasets.Dataset:
    """Turn columns of plain paths into columns of files; note the path of each image."""
    for column in ("image", "mask"):
        feature = dataset.features.get(column)
        if feature is None or feature == _NULL or isinstance(feature, datasets.Image):
            continue
        if not isinstance(feature, datasets.Value) or feature.dtype not in ("string", "large_string"):
            raise ValueError(f"column {column!r} is {feature}, expected datasets.Image or paths as strings")
        paths = [os.path.join(data_dir or "", value) if value else None for value in dataset[column]]
        if column == "image" and "path" not in dataset.features:
            dataset = dataset.add_column("path", paths)
        cells = [path and {"bytes": None, "path": path} for path in paths]
        dataset = dataset.remove_columns(column).add_column(column, cells, feature=datasets.Image())
        # As one block: `datasets` fails to add to what is left of several.
        table = datasets.table.InMemoryTable(dataset.data.table)
        dataset = datasets.Dataset(table, info=dataset.info, split=dataset.split)
    return dataset


def _files_of(dataset: datasets.Dataset, data_dir: str | None) -> list[str]:
    """Absolute paths of the image and mask cells that hold no bytes but name a file of this disk."""
    paths: list[str | None] = []
    for column in ("image", "mask"):
        for cells in dataset.data.column(column).chunks if column in dataset.features else ():
            if pa.types.is_struct(cells.type):
                named = pc.filter(pc.struct_field(cells, "path"), pc.is_null(pc.struct_field(cells, "bytes")))
                paths += named.to_pylist()
    return [os.path.abspath(os.path.join(data_dir or "", path)) for path in paths if path and "://" not in path]


def _mask_turns(dataset: datasets.Dataset) -> dict[int, int]:
    """Row -> orientation that lays its mask on its upright image (`mask_turn`), where the column does not hold it."""
    if isinstance(dataset.features["mask"], AnomalyMask) or dataset.features["mask"] == _NULL:
        return {}
    return {
        row: mask_turn(image, mask)
        for row, (image, mask) in enumerate(zip(_cells(dataset, "image"), _cells(dataset, "mask"), strict=True))
        if image is not None and mask is not None
    }


def _cells(dataset: datasets.Dataset, column: str) -> Iterator[Any]:
    """The cells of an image column unread, as paths or files; an embedded file is not copied for its first bytes."""
    for batch in dataset.select_columns(column).with_format("arrow").iter(batch_size=1000):
        for cell in batch.column(column):
            if not cell.is_valid:
                yield None
            elif cell["bytes"].is_valid:
                yield pa.BufferReader(cell["bytes"].as_buffer())
            else:
                yield {"bytes": None, "path": cell["path"].as_py()}


def _with_turns(dataset: datasets.Dataset, turns: dict[int, int]) -> datasets.Dataset:
    def add(cells: list, rows: list[int]) -> dict[str, list]:
        return {"mask": [cell and {**cell, "turn": turns.get(row)} for cell, row in zip(cells, rows, strict=True)]}

    masks = undecoded(dataset).select_columns("mask")  # alone, or the images would be copied too
    masks = masks.map(add, input_columns="mask", with_indices=True, batched=True, batch_size=100)
    masks = masks.cast_column("mask", dataset.features["mask"])
    return datasets.concatenate_datasets([dataset.remove_columns("mask"), masks], axis=1)


def _folder_name(label: str) -> str:
    name = os.path.basename(label.split(" (")[0].rstrip("/"))
    return "object" if label.startswith("the data set") else name.removesuffix(".parquet").removesuffix(".arrow")
