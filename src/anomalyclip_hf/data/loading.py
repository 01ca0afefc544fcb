"""One door for any data: `load_anomaly_dataset` brings every source into one schema.

Each sample has `image` (RGB), `mask` (0 and 255, or None), `label` (0 normal, 1 anomalous, None unknown),
`class_name`, `defect_type` ("good" for every normal image) and `path`. Pictures are decoded when their cell is read
and not before: `ds["label"]` opens no file. A missing mask of an anomalous image is None, never an empty one.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from .file_tree import IMAGE_SUFFIXES, TABLE_SUFFIXES, FileTree, examples, natural_key
from .indexing import Index, Record, index_layout
from .layouts import LAYOUTS, OWN_LAYOUTS, DatasetLayout, find_layout
from .masks import MaskRule, mask_turn
from .tables import add_unnamed, confine, index_image_folder, index_meta, index_table_file, metadata_files

if TYPE_CHECKING:
    import datasets

KINDS = ("folder", "tree", "table", "meta", "datasets")
NO_DATA = ("metadata.parquet", "scores.parquet")  # an image folder's table, and a result of evaluation
SAVED_FILES = ("dataset_dict.json", "state.json")


@dataclass(frozen=True)
class SourceOptions:
    """What a user may say about a source; the arguments of `load_anomaly_dataset` in one parcel."""

    class_names: tuple[str, ...] | None = None
    normal_kinds: tuple[str, ...] | None = None
    normal_labels: tuple[str, ...] | None = None
    mask_threshold: int | None = None
    columns: Mapping[str, str | None] | None = None
    revision: str | None = None
    allow_outside: bool = False

    def rule(self, default: MaskRule | None = None) -> MaskRule:
        """The mask rule: the row's, unless the user gave a threshold."""
        if self.mask_threshold is None:
            return default or MaskRule()
        return MaskRule(self.mask_threshold, self.mask_threshold)


def make_options(
    *,
    class_names: str | Sequence[str] | None = None,
    image_column: str | None = None,
    mask_column: str | None = None,
    label_column: str | None = None,
    class_column: str | None = None,
    defect_column: str | None = None,
    split_column: str | None = None,
    normal_labels: Sequence[Any] | None = None,
    normal_kinds: Sequence[str] | None = None,
    mask_threshold: int | None = None,
    **more: Any,
) -> SourceOptions:
    """Put the arguments of `load_anomaly_dataset` into one parcel, for `inspect_source` and `export_source`."""
    return SourceOptions(
        class_names=(class_names,) if isinstance(class_names, str) else _tuple(class_names),
        normal_kinds=_tuple(normal_kinds),
        normal_labels=_tuple(normal_labels),
        mask_threshold=mask_threshold,
        columns={
            "image": image_column,
            "mask": mask_column,
            "label": label_column,
            "class_name": class_column,
            "defect_type": defect_column,
            "split": split_column,
        },
        **more,
    )


def load_anomaly_dataset(
    source: Any,
    data_dir: str | os.PathLike | None = None,
    split: str = "test",
    *,
    class_names: str | Sequence[str] | None = None,
    image_column: str | None = None,
    mask_column: str | None = None,
    label_column: str | None = None,
    class_column: str | None = None,
    defect_column: str | None = None,
    split_column: str | None = None,
    normal_labels: Sequence[Any] | None = None,
    normal_kinds: Sequence[str] | None = None,
    mask_threshold: int | None = None,
    streaming: bool = False,
    kind: str | None = None,
    revision: str | None = None,
    allow_outside: bool = False,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load any source of anomaly data into the one schema.

    Args:
        source: a data set's name from `LAYOUTS` (with `data_dir`, its unpacked archive); a folder; an MVTec-style
            tree; a CSV, TSV or JSON lines file; the authors' `meta.json` or a folder that holds it; a `datasets`
            repository, local or on the Hub; or a `Dataset`, `DatasetDict` or `IterableDataset`.
        data_dir (path, *optional*): the unpacked archive of a named data set; for tables, where their paths start.
        split (`str`): "train", "test" or another split the source has, or "all". Sources without splits have "test".
        class_names (*optional*): only these classes.
        image_column, mask_column, label_column, class_column, defect_column, split_column (`str`, *optional*):
            names in tables and `datasets` sources; the usual ones are found by themselves.
        normal_labels (*optional*): label values that mean normal, e.g. `("ok",)`.
        normal_kinds (*optional*): folder names that mean normal; `()` where no folder does.
        mask_threshold (`int`, 0 to 254, *optional*): largest mask value that is background, not the row's.
        streaming (`bool`): give an `IterableDataset`; sources on the Hub are then not downloaded first.
        kind (`str`, *optional*): "folder", "tree", "table", "meta" or "datasets": do not guess.
        revision (`str`, *optional*): of a repository on the Hub.
        allow_outside (`bool`): read files that a table, a meta.json or a repository names outside of its folder or of
            `data_dir`, by path or behind links; refused by default. Links in plain folders are followed, and told of.

    Returns:
        `datasets.Dataset`, or `datasets.IterableDataset` where `streaming`.

    Raises:
        FileNotFoundError: the source or `data_dir` does not exist.
        ValueError: nothing usable was found; the message lists what was looked for and what is there.

    Warns:
        UserWarning: files of the folder are not used, or lie elsewhere; `inspect_source` notes the same.
    """
    options = make_options(
        class_names=class_names,
        image_column=image_column,
        mask_column=mask_column,
        label_column=label_column,
        class_column=class_column,
        defect_column=defect_column,
        split_column=split_column,
        normal_labels=normal_labels,
        normal_kinds=normal_kinds,
        mask_threshold=mask_threshold,
        revision=revision,
        allow_outside=allow_outside,
    )
    found = open_source(source, data_dir, options, kind=kind, streaming=streaming)
    if isinstance(found, Index):
        if found.missing:
            raise ValueError(
                f"{len(found.missing)} files named by {found.form} are not in {found.root}, e.g. {found.missing[0]}: "
                "correct the index, or see all of them with `python -m anomalyclip_hf.data inspect`"
            )
        if remarks := found.remarks():
            warnings.warn(f"{found.root}: {'; '.join(remarks)}", stacklevel=2)
        dataset = records_to_dataset(found, _records_of(found, split, options.class_names))
        return dataset.to_iterable_dataset() if streaming else dataset
    from .repositories import select_split

    return select_split(found, split, options, streaming)


def open_source(
    source: Any,
    data_dir: str | os.PathLike | None = None,
    options: SourceOptions | None = None,
    *,
    kind: str | None = None,
    streaming: bool = False,
) -> Index | dict[str, Any]:
    """Find out what a source is: an `Index` of files, or the splits of a `datasets` source in the one schema.

    Args as in `load_anomaly_dataset`, whose errors it raises.
    """
    options = options or SourceOptions()
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(KINDS)}")
    if not isinstance(source, (str, os.PathLike)):
        from .repositories import adapt_datasets

        return adapt_datasets(source, options, data_dir)
    name = os.fspath(source)
    if name == "synthetic":
        refuse_drawn()
    layout = find_layout(name) if kind is None else None
    if layout is not None and (data_dir is not None or not os.path.exists(name)):
        return index_named(layout, data_dir, options)
    if os.path.isfile(name) or os.path.isdir(name):
        found = index_path(name, data_dir, options, kind)
        if found is not None:
            return found
    elif kind in (None, "datasets") and data_dir is None and _looks_like_repository(name):
        pass
    else:
        raise FileNotFoundError(
            f"there is no {name!r}: expected a data set's name ({', '.join(LAYOUTS)}), a folder, a table "
            f"({', '.join(TABLE_SUFFIXES)}), a meta.json or a Hub repository owner/name"
        )
    from .repositories import load_repository

    return load_repository(name, options, data_dir=data_dir, streaming=streaming)


def refuse_drawn(split: str = "test", **options: Any) -> NoReturn:
    """What the source "synthetic" is here: drawings that only a checkout of the repository can make.

    Args:
        split, **options: of scripts/demo_model/draw.py's `draw`, in whose place commands call this; not used.

    Raises:
        ValueError: always; says what to do.
    """
    raise ValueError(
        "the drawings called 'synthetic' are not part of the package: in a checkout of its repository "
        "scripts/train.py, scripts/evaluate.py and scripts/predict.py draw them, and "
        "`python scripts/demo_model/draw.py FOLDER` writes them as a source for any command "
        "(a folder of your own by that name: ./synthetic)"
    )


def index_named(layout: DatasetLayout, data_dir: str | os.PathLike | None, options: SourceOptions) -> Index:
    """Index the unpacked archive of a data set of the table."""
    if data_dir is None:
        raise ValueError(
            f"{layout.title} is not downloaded by this package: get it from {layout.home_page}, unpack it and give "
            "the folder as data_dir=FOLDER"
        )
    root = os.fspath(data_dir)
    if not os.path.isdir(root):
        raise FileNotFoundError(f"data_dir={root!r} is not a folder; expected the unpacked archive of {layout.title}")
    layout = replace(
        layout,
        mask_rule=options.rule(layout.mask_rule),
        normal_kinds=layout.normal_kinds if options.normal_kinds is None else options.normal_kinds,
    )
    tree = FileTree(root)
    index = index_layout(layout, root, tree)
    if index is not None and any(variant.table and variant.table.path in index.form for variant in layout.variants):
        index = confine(index, options.allow_outside)
    if index is None and os.path.isfile(os.path.join(root, "meta.json")):
        index = replace(index_meta(os.path.join(root, "meta.json"), root, layout.mask_rule), layout=layout)
        index = confine(index, options.allow_outside)
    if index is None:
        looked = [variant.table.path if variant.table else variant.images for variant in layout.variants]
        classes = f" with the classes {', '.join(layout.classes)}" if layout.classes else ""
        raise ValueError(
            f"{root} does not hold {layout.title}: looked for {' or '.join(dict.fromkeys(looked))}{classes} and "
            f"normal images in {'/'.join(layout.normal_kinds)}; found {tree.describe()}"
        )
    return index


def index_path(
    name: str, data_dir: str | os.PathLike | None, options: SourceOptions, kind: str | None
) -> Index | None:
    """Index a file or folder of own data; None where it is a `datasets` repository."""
    root = None if data_dir is None else os.fspath(data_dir)
    if os.path.isfile(name):
        if kind == "meta" or (kind is None and name.lower().endswith(".json")):
            return confine(index_meta(name, root, options.rule()), options.allow_outside)
        if kind == "table" or name.lower().endswith(TABLE_SUFFIXES):
            return confine(index_table_file(name, root, options), options.allow_outside)
        if kind == "datasets" or name.lower().endswith((".parquet", ".arrow")):
            return None
        raise ValueError(f"{name}: expected a table ({', '.join(TABLE_SUFFIXES)}), meta.json, .parquet or a folder")
    if kind == "meta" or (kind is None and os.path.isfile(os.path.join(name, "meta.json"))):
        index = add_unnamed(index_meta(os.path.join(name, "meta.json"), root or name, options.rule()))
        return confine(index, options.allow_outside)
    if kind in (None, "table") and (tables := metadata_files(name)):
        return confine(index_image_folder(name, root or name, tables, options), options.allow_outside)
    if kind == "datasets" or (kind is None and _holds_repository(name)):
        if kind is None and (images := FileTree(name).files):
            warnings.warn(
                f"{name} is read as a datasets repository: {len(images)} image files in it ({examples(images)}) are "
                'used only where its tables name them; kind="folder" reads the folders',
                stacklevel=4,
            )
        return None
    return index_folder(name, options, kind)


def index_folder(root: str, options: SourceOptions, kind: str | None = None) -> Index:
    """Index a folder of own images by the first own layout that fits."""
    tree = FileTree(root)
    if not tree.files:
        raise ValueError(f"{root} holds no images (looked for {', '.join(IMAGE_SUFFIXES)}); found {tree.describe()}")
    normal = options.normal_kinds
    for layout in OWN_LAYOUTS:
        if kind is not None and (kind == "tree") != (layout.name == "tree"):
            continue
        variants = tuple(replace(v, needs_normal=v.needs_normal and normal != ()) for v in layout.variants)
        row = replace(
            layout,
            variants=variants,
            mask_rule=options.rule(),
            normal_kinds=layout.normal_kinds if normal is None else normal,
        )
        index = index_layout_at_root(row, root, tree)
        if index is not None:
            told = f"tables not read: {examples(tree.tables)}; give one as the source if it holds the labels"
            return replace(index, layout=None, notes=index.notes + ([told] if tree.tables else []))
    tried = "; ".join(
        f"{layout.title} ({' or '.join(variant.images for variant in layout.variants)})" for layout in OWN_LAYOUTS
    )
    raise ValueError(
        f"{root} has no layout that says which images are normal: tried {tried}, with normal images in a folder "
        f"named {', '.join(OWN_LAYOUTS[0].normal_kinds if normal is None else normal) or '(none)'}; "
        f"found {tree.describe()}. Name the normal folders with normal_kinds=(...); give none "
        "if each folder is a defect"
    )


def index_layout_at_root(layout: DatasetLayout, root: str, tree: FileTree) -> Index | None:
    """As `index_layout`, without looking in folders below: for own data the place is the user's word."""
    from .indexing import index_variant

    return next((found for variant in layout.variants if (found := index_variant(variant, layout, tree))), None)


def records_to_dataset(index: Index, records: Sequence[Record]) -> datasets.Dataset:
    """Turn samples into a `Dataset` that holds paths only; pictures stay on disk until their cell is read."""
    import datasets

    from .features import make_features

    columns: dict[str, list] = {name: [] for name in ("image", "mask", "label", "class_name", "defect_type", "path")}
    for record in records:
        image = os.path.join(index.root, record.image)
        mask = None
        if record.mask is not None:
            mask_path = os.path.join(index.root, record.mask)
            mask = {"bytes": None, "path": os.path.abspath(mask_path), "turn": mask_turn(image, mask_path)}
        columns["image"].append({"bytes": None, "path": os.path.abspath(image)})
        columns["mask"].append(mask)
        columns["label"].append(record.label)
        columns["class_name"].append(record.class_name)
        columns["defect_type"].append(record.defect_type)
        columns["path"].append(image)
    layout = index.layout
    features = make_features(index.mask_rule)
    info = datasets.DatasetInfo(
        features=features,
        description=index.form if layout is None else layout.title,
        homepage="" if layout is None else layout.home_page,
        license="" if layout is None else (layout.license or ""),
    )
    return datasets.Dataset.from_dict(columns, features=features, info=info)


def _records_of(index: Index, split: str, class_names: Sequence[str] | None) -> list[Record]:
    """The samples of a split and of some classes.

    Raises:
        ValueError: there is no such split or class.
    """
    splits = sorted({record.split for record in index.records})
    if split != "all" and split not in splits:
        raise ValueError(
            f"split={split!r}, but {index.root} ({index.form}) has {', '.join(splits)}; "
            'give one of these, or split="all" for everything'
        )
    records = [record for record in index.records if split in ("all", record.split)]
    if class_names:
        known = sorted({record.class_name for record in records}, key=natural_key)
        unknown = [name for name in class_names if name not in known]
        if unknown:
            raise ValueError(f"class_names={unknown}, but {index.root} ({split}) has {', '.join(known)}")
        records = [record for record in records if record.class_name in class_names]
    return records


def _holds_repository(folder: str) -> bool:
    inside = set(os.listdir(folder))
    data = os.path.join(folder, "data")
    files = inside | set(os.listdir(data) if os.path.isdir(data) else ())
    tables = {name for name in map(str.lower, files) if name.endswith((".parquet", ".arrow"))}
    return bool(inside & set(SAVED_FILES)) or bool(tables - set(NO_DATA))


def _looks_like_repository(name: str) -> bool:
    return name.count("/") == 1 and all(part and not part.startswith(".") for part in name.split("/"))


def _tuple(values) -> tuple | None:
    if values is None:
        return None
    return (values,) if isinstance(values, str) else tuple(values)
