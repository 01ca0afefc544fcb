"""One door for any data: `load_anomaly_dataset` brings every source into one schema.

Each sample has `image` (RGB), `mask` (0 and 255, or None), `label` (0 normal, 1 anomalous, None unknown),
`class_name`, `defect_type` ("good" for every normal image) and `path`. Pictures are decoded when their cell is read
and not before: `ds["label"]` opens no file. A missing mask of an anomalous image is None, never an empty one.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from .file_tree import IMAGE_SUFFIXES, TABLE_SUFFIXES, FileTree, check_inside, examples, natural_key, normal_form
from .images import mask_turn
from .indexing import index_layout
from .layouts import LAYOUTS, OWN_LAYOUTS, DatasetLayout, find_layout
from .options import SourceOptions, make_options
from .records import Index, Record
from .tables import add_unnamed, index_meta, index_own_tables, metadata_files, pick_columns

if TYPE_CHECKING:
    import datasets

    Part: TypeAlias = datasets.Dataset | datasets.IterableDataset
    Parts: TypeAlias = dict[str, Part]

NO_DATA = ("metadata.parquet", "scores.parquet", "predictions.parquet")  # an image folder's table, and results
SAVED_FILES = ("dataset_dict.json", "state.json")
REPOSITORY_SUFFIXES = (".parquet", ".arrow")


def load_anomaly_dataset(
    source: Any,
    data_dir: str | os.PathLike | None = None,
    split: str = "test",
    options: SourceOptions | None = None,
    *,
    streaming: bool = False,
    **fields: Any,
) -> Part:
    """Load any source of anomaly data into the one schema.

    Args:
        source: a data set's name from `LAYOUTS` (with `data_dir`, its unpacked archive); a folder; an MVTec-style
            tree; a CSV, TSV or JSON lines file; the authors' `meta.json` or a folder that holds it; a `datasets`
            repository, local or on the Hub; or a `Dataset`, `DatasetDict` or `IterableDataset`.
        data_dir (path, *optional*): the unpacked archive of a named data set; for tables, where their paths start.
        split (`str`): "train", "test" or another split the source has, or "all". Sources without splits have "test".
        options ([`SourceOptions`], *optional*): classes, columns, what means normal, and the rest.
        streaming (`bool`): give an `IterableDataset`; sources on the Hub are then not downloaded first.
        **fields: fields of [`SourceOptions`], in place of those of `options`: `class_names`, `image_column`,
            `mask_column`, `label_column`, `class_column`, `defect_column`, `split_column`, `normal_labels`,
            `normal_kinds` (`()` where no folder is normal), `mask_threshold`, `window`, `channels`, `kind`, `revision`
            and `allow_outside`.

    Returns:
        `datasets.Dataset`, or `datasets.IterableDataset` where `streaming`.

    Raises:
        FileNotFoundError: the source or `data_dir` does not exist.
        TypeError: an unknown field.
        ValueError: nothing usable was found; the message lists what was looked for and what is there.

    Warns:
        UserWarning: files of the folder are not used, or lie elsewhere; `inspect_source` notes the same.
    """
    from .features import read_by

    options = make_options(options, **fields)
    found = open_source(source, data_dir, options, streaming=streaming)
    if isinstance(found, Index):
        found.check()
    (dataset,) = select_parts(found, split, options.class_names, together=True).values()
    dataset = read_by(dataset, options)
    if streaming and hasattr(dataset, "to_iterable_dataset"):
        return dataset.to_iterable_dataset()
    return dataset


def open_source(
    source: Any,
    data_dir: str | os.PathLike | None = None,
    options: SourceOptions | None = None,
    *,
    streaming: bool = False,
) -> Index | Parts:
    """Find out what a source is: an `Index` of files, or the splits of a `datasets` source in the one schema.

    Args as in `load_anomaly_dataset`, whose errors it raises.
    """
    options = options or SourceOptions()
    data_dir = options.data_dir if data_dir is None else data_dir
    root = None if data_dir is None else os.fspath(data_dir)
    if not isinstance(source, (str, os.PathLike)):
        from .repositories import adapt_datasets

        return adapt_datasets(source, options, root)
    name = os.fspath(source)
    if name == "synthetic":
        raise ValueError(
            "the drawings called 'synthetic' are not part of the package: in a checkout of its repository "
            "scripts/train.py, scripts/evaluate.py and scripts/predict.py draw them, and "
            "`python scripts/demo_model/draw.py FOLDER` writes them as a source for any command "
            "(a folder of your own by that name: ./synthetic)"
        )
    layout = find_layout(name) if options.kind is None else None
    index = None
    if layout is not None and (root is not None or not os.path.exists(name)):
        index = index_named(layout, root, options)
    elif os.path.isfile(name):
        index = index_file(name, root, options)
    elif os.path.isdir(name):
        index = index_folder(name, root, options)
    elif options.kind == "folder" or root is not None or not _looks_like_repository(name):
        raise _no_source(name)
    if index is None:
        from .repositories import load_repository

        return load_repository(name, options, data_dir=root, streaming=streaming)
    default = layout.mask_threshold if layout else None
    index = replace(index, mask_threshold=default if options.mask_threshold is None else options.mask_threshold)
    if index.listed:
        named = (path for record in index.records for path in (record.image, record.mask) if path)
        index = replace(index, outside=check_inside(named, [index.root], index.form, options.allow_outside))
    return index


def check_source(name: str) -> None:
    """Refuse what no source can be, without looking into one.

    Raises:
        FileNotFoundError: it is no file or folder, and no name of a data set or repository.
    """
    if not os.path.exists(name) and find_layout(name) is None and not _looks_like_repository(name):
        raise _no_source(name)


def _no_source(name: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"there is no {name!r}: expected a data set's name ({', '.join(LAYOUTS)}), a folder, a table "
        f"({', '.join(TABLE_SUFFIXES)}), a meta.json or a Hub repository owner/name"
    )


def select_parts(
    found: Index | Parts, split: str, class_names: Sequence[str] | None = None, together: bool = False
) -> Parts:
    """The data sets of one split, or of all, with some classes alone.

    Args:
        found: as of `open_source`.
        split (`str`): one, or "all".
        class_names (*optional*): the classes.
        together (`bool`): give all splits as one data set.

    Raises:
        ValueError: there is no such split or class.
    """
    where = f"{found.root} ({found.form})" if isinstance(found, Index) else "the source"
    splits = sorted({record.split for record in found.records}) if isinstance(found, Index) else list(found)
    wanted = {normal_form(name) for name in class_names or ()}
    same = [one for one in splits if normal_form(one) == normal_form(split)]
    if split not in ("all", *splits) and not same:
        raise ValueError(
            f'split={split!r}, but {where} has {", ".join(splits)}; give one of these, or split="all" for everything'
        )
    chosen = splits if split == "all" else same
    if isinstance(found, Index):
        records = [record for record in found.records if record.split in chosen]
        _check_classes(class_names, {record.class_name for record in records}, f"{found.root} ({split})")
        records = [record for record in records if not wanted or normal_form(record.class_name) in wanted]
        if together:
            return {split: records_to_dataset(found, records)}
        return {s: records_to_dataset(found, [r for r in records if r.split == s]) for s in chosen}
    import datasets

    parts = {s: found[s] for s in chosen}
    if wanted and isinstance(parts[chosen[0]], datasets.IterableDataset):  # which classes it has is not known
        parts = {
            s: part.filter(lambda name: normal_form(name) in wanted, input_columns="class_name")
            for s, part in parts.items()
        }
    elif wanted:
        names = {s: list(part["class_name"]) for s, part in parts.items()}
        _check_classes(class_names, {name for column in names.values() for name in column}, where)
        rows = {s: [i for i, name in enumerate(column) if normal_form(name) in wanted] for s, column in names.items()}
        parts = {s: part.select(rows[s]) for s, part in parts.items()}
    if together and len(parts) > 1:
        parts = {split: datasets.concatenate_datasets(list(parts.values()))}
    return parts


def _check_classes(wanted: Sequence[str] | None, known: Collection[str], where: str) -> None:
    forms = set(map(normal_form, known))
    if unknown := [name for name in wanted or () if normal_form(name) not in forms]:
        raise ValueError(f"class_names={unknown}, but {where} has {', '.join(sorted(known, key=natural_key))}")


def index_named(layout: DatasetLayout, root: str | None, options: SourceOptions) -> Index:
    """Index the unpacked archive of a data set of the table."""
    if root is None:
        raise ValueError(
            f"{layout.title} is not downloaded by this package: get it from {layout.home_page}, unpack it and give "
            "the folder as data_dir=FOLDER"
        )
    if not os.path.isdir(root):
        raise FileNotFoundError(f"data_dir={root!r} is not a folder; expected the unpacked archive of {layout.title}")
    layout = _with_options(layout, options)
    tree = FileTree(root)
    index = index_layout(layout, tree)
    if index is None and os.path.isfile(meta := os.path.join(root, "meta.json")):
        index = replace(index_meta(meta, root), layout=layout)
    if index is None:
        looked = [variant.table.path if variant.table else variant.images for variant in layout.variants]
        classes = f" with the classes {', '.join(layout.classes)}" if layout.classes else ""
        raise ValueError(
            f"{root} does not hold {layout.title}: looked for {' or '.join(dict.fromkeys(looked))}{classes} and "
            f"normal images in {'/'.join(layout.normal_kinds)}; found {tree.describe()}"
        )
    return index


def index_file(name: str, root: str | None, options: SourceOptions) -> Index | None:
    """Index a table or a meta.json; None for a file of a `datasets` repository."""
    folder, file = os.path.split(name)
    if file.lower().endswith(".json"):
        return index_meta(name, root)
    if file.lower().endswith(TABLE_SUFFIXES) or _lists_files(name, options):
        return index_own_tables(folder, root or folder or ".", {"": file}, options)
    if file.lower().endswith(REPOSITORY_SUFFIXES):
        return None
    raise ValueError(f"{name}: expected a table ({', '.join(TABLE_SUFFIXES)}), meta.json, .parquet or a folder")


def _lists_files(name: str, options: SourceOptions) -> bool:
    """Whether a parquet file is a table of paths, and not one that holds the pictures themselves."""
    if not name.lower().endswith(".parquet"):
        return False
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(name)
        return str(schema.field(pick_columns(schema.names, options, name)["image"]).type) in ("string", "large_string")
    except (OSError, ValueError):  # told where it is loaded
        return False


def index_folder(name: str, root: str | None, options: SourceOptions) -> Index | None:
    """Index a folder by the table in it, or by the first own layout that fits; None for a `datasets` repository."""
    meta, guess = os.path.join(name, "meta.json"), options.kind is None
    if guess and os.path.isfile(meta):
        return add_unnamed(index_meta(meta, root or name))
    if guess and (tables := metadata_files(name)):
        return add_unnamed(index_own_tables(name, root or name, tables, options))
    tree = FileTree(name)
    if options.kind == "folder" or (guess and not _holds_repository(name)):
        return index_tree(tree, options)
    if guess and tree.files:
        warnings.warn(
            f"{name} is read as a datasets repository: {len(tree.files)} image files in it "
            f'({examples(tree.files)}) are used only where its tables name them; kind="folder" reads the folders',
            stacklevel=4,
        )
    return None


def index_tree(tree: FileTree, options: SourceOptions) -> Index:
    """Index own images by the first own layout that fits; for own data the place is the user's word."""
    if not tree.files:
        looked = ", ".join(IMAGE_SUFFIXES)
        raise ValueError(f"{tree.root} holds no images (looked for {looked}); found {tree.describe()}")
    for layout in OWN_LAYOUTS:
        index = index_layout(_with_options(layout, options), tree, depths=1)
        if index is not None:
            told = f"tables not read: {examples(tree.tables)}; give one as the source if it holds the labels"
            return replace(index, layout=None, notes=index.notes + ([told] if tree.tables else []))
    tried = "; ".join(
        f"{layout.title} ({' or '.join(variant.images for variant in layout.variants)})" for layout in OWN_LAYOUTS
    )
    normal = OWN_LAYOUTS[0].normal_kinds if options.normal_kinds is None else options.normal_kinds
    raise ValueError(
        f"{tree.root} has no layout that says which images are normal: tried {tried}, with normal images in a folder "
        f"named {', '.join(normal) or '(none)'}; found {tree.describe()}. Name the normal folders with "
        "normal_kinds=(...); give none if each folder is a defect"
    )


def _with_options(layout: DatasetLayout, options: SourceOptions) -> DatasetLayout:
    """A layout with what the user says of masks and of kinds that are normal, be it that none is."""
    if options.mask_threshold is not None:
        layout = replace(layout, mask_threshold=options.mask_threshold)
    if options.normal_kinds is None:
        return layout
    kinds = tuple(options.normal_kinds)
    variants = tuple(replace(v, needs_normal=v.needs_normal and bool(kinds)) for v in layout.variants)
    return replace(layout, normal_kinds=kinds, variants=variants)


def records_to_dataset(index: Index, records: Sequence[Record]) -> datasets.Dataset:
    """Turn samples into a `Dataset` that holds paths only; pictures stay on disk until their cell is read."""
    import datasets

    from .features import make_features

    images = [os.path.join(index.root, record.image) for record in records]
    masks = [record.mask and os.path.join(index.root, record.mask) for record in records]
    columns = {
        "image": [{"bytes": None, "path": os.path.abspath(image)} for image in images],
        "mask": [
            mask and {"bytes": None, "path": os.path.abspath(mask), "turn": mask_turn(image, mask)}
            for image, mask in zip(images, masks, strict=True)
        ],
        "path": images,
    }
    for name in ("label", "class_name", "defect_type"):
        columns[name] = [getattr(record, name) for record in records]
    features = make_features(index.mask_threshold)
    info = datasets.DatasetInfo(features=features, description=index.form)
    if layout := index.layout:
        info.description, info.homepage, info.license = layout.title, layout.home_page, layout.license or ""
    return datasets.Dataset.from_dict({name: columns[name] for name in features}, features=features, info=info)


def _holds_repository(folder: str) -> bool:
    inside = set(os.listdir(folder))
    data = os.path.join(folder, "data")
    files = inside | set(os.listdir(data) if os.path.isdir(data) else ())
    tables = {name for name in map(str.lower, files) if name.endswith(REPOSITORY_SUFFIXES)}
    return bool(inside & set(SAVED_FILES)) or bool(tables - set(NO_DATA))


def _looks_like_repository(name: str) -> bool:
    return name.count("/") == 1 and all(part and not part.startswith(".") for part in name.split("/"))
