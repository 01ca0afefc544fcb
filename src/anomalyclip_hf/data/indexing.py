"""From a folder to a list of samples: the patterns of a layout applied to the files that are there."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from functools import lru_cache

from .file_tree import (
    FileTree,
    MaskFinder,
    examples,
    file_key,
    is_image_folder,
    is_mask_folder,
    natural_key,
    plain_path,
)
from .images import ImageReadError, read_mask
from .layouts import SPLITS, DatasetLayout, Variant
from .records import NORMAL_KIND, Index, Record, kind_of
from .tables import index_layout_table

_NAMES = ("class_name", "split", "kind", "group", "stem")


def index_layout(layout: DatasetLayout, tree: FileTree, depths: int = 3) -> Index | None:
    """Index a folder by the first variant of a layout that fits; None where none does.

    Args:
        layout (`DatasetLayout`): the row.
        tree (`FileTree`): the files of the unpacked archive.
        depths (`int`): how many levels of folders may be its root: 1 for the top alone, else also a folder in it that
            bears the data set's name, or is the only one.
    """
    if (index := _index_variants(layout, tree)) is not None or depths == 1:
        return index
    folders = tree.folders()
    inside = [name for name in folders if layout.is_called(name)] or folders
    if len(inside) != 1:
        return None
    return index_layout(layout, FileTree(os.path.join(tree.root, inside[0]), home=tree.home), depths - 1)


def _index_variants(layout: DatasetLayout, tree: FileTree) -> Index | None:
    for variant in layout.variants:
        if variant.table is not None:
            index = index_layout_table(variant.table, layout, tree)
        else:
            index = index_variant(variant, layout, tree)
            if index is None and variant.images.startswith("{class_name}/"):
                index = index_variant(_of_one_class(variant), layout, tree)
        if index is not None:
            return index
    return None


def _of_one_class(variant: Variant) -> Variant:
    """A variant as it is where the folder is that of a class."""
    masks = tuple(mask.removeprefix("{class_name}/") for mask in variant.masks)
    return replace(variant, images=variant.images.removeprefix("{class_name}/"), masks=masks)


def index_variant(variant: Variant, layout: DatasetLayout, tree: FileTree) -> Index | None:
    """Index a folder by one pattern; None where it does not fit."""
    paths = _Paths(variant, layout, tree)
    samples: dict[str, dict[str, str]] = {}
    unused: dict[str, list[str]] = {}
    for path in tree.files:
        if path not in paths.masks:
            names, reason = paths.read(path)
            if names:
                samples[path] = names
            elif reason:
                unused.setdefault(reason, []).append(path)
    if not samples or (variant.needs_all and unused):
        return None
    if variant.needs_normal and not any(map(paths.is_normal, samples.values())):
        return None
    records, used = _pair_masks(paths, samples)
    used.update(path for folder in list(used) for path in tree.inside(folder))
    if variant.needs_masks and not used:
        return None
    told = used.union(samples, *unused.values())
    extra: list[str] = []
    for path in tree.files:
        if path not in told and paths.is_mask(path):
            extra.append(path)
        elif path not in told:
            reason = "that are masks by their names" if path in paths.masks else f"outside of {variant.images}"
            unused.setdefault(reason, []).append(path)
    notes = []
    if variant.label == "mask_content":
        if bare := [record.image for record in records if record.mask is None]:
            notes = [f"{len(bare)} images without a mask file are taken as normal ({examples(bare)})"]
        records = [_label_by_content(record, tree, layout.mask_threshold) for record in records]
    outside = [path for path in tree.outside if path in samples or path in used]
    order = {name: place for place, name in enumerate(layout.classes)}
    records.sort(key=lambda r: (order.get(r.class_name, 0), natural_key(r.class_name), r.split, natural_key(r.image)))
    return Index(
        tree.root,
        layout.title if variant.images == "{stem}" else f"{layout.title}: {variant.images}",
        records,
        layout,
        extra_masks=extra,
        notes=notes,
        unused=unused | tree.set_aside,
        outside=outside,
    )


class _Paths:
    """What a variant of a layout reads in the paths of a folder."""

    def __init__(self, variant: Variant, layout: DatasetLayout, tree: FileTree):
        self.variant, self.layout, self.tree = variant, layout, tree
        self.normal = {file_key(kind) for kind in layout.normal_kinds}
        self.kinds = None if variant.kinds is None else {file_key(kind) for kind in variant.kinds}
        self.classes = {file_key(name): name for name in layout.classes}
        self.masks = tree.masks(self.normal)
        self.finder = MaskFinder(self.masks) if variant.masks_by_name else None

    def read(self, path: str) -> tuple[dict[str, str], str]:
        """The names in the path of an image, `{}` where it is none; and why it contradicts the variant, or ""."""
        elsewhere = "elsewhere" if self.variant.needs_all else ""
        stem = os.path.splitext(self._plain_form(path))[0]
        match = _expression(self.variant.images).fullmatch(stem)
        if match is None:
            return {}, elsewhere
        names = {key: value or "" for key, value in match.groupdict().items()}
        kind = file_key(names.get("kind", ""))
        if kind and kind not in self.normal:
            if is_mask_folder(kind) or (self.kinds is not None and kind not in self.kinds):
                return {}, ""
            if self.normal & set(map(file_key, names.get("sub", "").split("/"))):
                return {}, f"in a normal folder below {names['kind']}/, which is none"
        if "split" in names and file_key(names["split"]) not in SPLITS:
            return {}, elsewhere
        folder = names.get("class_name") or os.path.basename(os.path.abspath(self.tree.root))
        if self.classes and ("class_name" in names or len(self.classes) > 1):
            names["class_name"] = self.classes.get(file_key(folder), "")
        else:
            names["class_name"] = next(iter(self.classes.values()), folder)
        if not names["class_name"]:
            return {}, f"in {folder}/, which is no class of {self.layout.title}"
        return names, ""

    def is_normal(self, names: dict[str, str]) -> bool:
        """Whether an image lies in a folder of a normal kind, where these tell labels."""
        return self.variant.label == "kind" and file_key(names.get("kind", "")) in self.normal

    def is_mask(self, path: str) -> bool:
        """Whether a file is where an image's mask would be."""
        stem, folder = os.path.splitext(path)[0], os.path.dirname(path) + "/"
        patterns = self.variant.masks
        asked = any(_expression(one).fullmatch(folder if one.endswith("/") else stem) for one in patterns)
        return asked or (self.finder is not None and path in self.masks)

    def masks_of(self, path: str, names: dict[str, str]) -> list[str]:
        """The masks an image may have, the likeliest first."""
        if self.finder is not None:
            found: list[str | None] = [*self.finder.find(path)]
        else:
            suffix = os.path.splitext(path)[1]
            wanted = [_fill(pattern, names) for pattern in self.variant.masks]
            found = [self.tree.find(form) for mask in wanted for form in (mask + suffix, mask)]
            found += [
                os.path.dirname(files[0]) for mask in wanted if mask[-1] == "/" and (files := self.tree.inside(mask))
            ]
        return [mask for mask in dict.fromkeys(found) if mask and mask != path]

    def _plain_form(self, path: str) -> str:
        """The path to match: for own data folders of images by any name are `images`, and no kinds."""
        if not self.variant.masks_by_name:
            return path
        plain = plain_path(path)
        if self.variant.label != "kind":
            return plain
        *folders, name = plain.split("/")
        return "/".join([*(f for f in folders if not is_image_folder(f) or file_key(f) in self.normal), name])


def _pair_masks(paths: _Paths, samples: dict[str, dict[str, str]]) -> tuple[list[Record], set[str]]:
    """Find each image's mask by its stem: first for the anomalous ones, the rest may belong to normal ones."""
    variant, records, used = paths.variant, list[Record](), set[str]()
    waiting: list[tuple[int, list[str]]] = []
    for path, names in samples.items():
        is_normal = paths.is_normal(names)
        wanted = paths.masks_of(path, names)
        mask = None if is_normal else next(iter(wanted), None)
        if mask:
            used.add(mask)
        label: int | None = 1
        if variant.label == "kind":
            label = int(not is_normal) if names.get("kind") else None
        elif variant.label == "mask_file":
            label = int(mask is not None)
        if is_normal and wanted:
            waiting.append((len(records), wanted))
        split = SPLITS[file_key(names["split"])] if "split" in names else variant.split
        records.append(Record(path, mask, label, names["class_name"], kind_of(label, names.get("kind")), split))
    for place, wanted in waiting:
        mask = next((mask for mask in wanted if mask not in used), None)
        if mask:
            used.add(mask)
            records[place] = replace(records[place], mask=mask)
    return records, used


def _label_by_content(record: Record, tree: FileTree, threshold: int | None) -> Record:
    """Normal where the mask is all zero or missing; then there is no mask to keep."""
    if record.mask is not None:
        try:
            if read_mask(os.path.join(tree.root, record.mask), threshold).getbbox() is not None:
                return record
        except ImageReadError:
            return record  # reported when it is read
    return replace(record, mask=None, label=0, defect_type=NORMAL_KIND)


def _fill(pattern: str, names: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: names.get(match.group(1), ""), pattern)


@lru_cache(maxsize=512)
def _expression(pattern: str) -> re.Pattern:
    """Turn a pattern into a regular expression; literal parts match in any case."""

    def one(part: str) -> str:
        name = part[1:-1]
        if part in ("[", "]"):
            return "(?:" if part == "[" else ")?"
        if not part.startswith("{"):
            return re.escape(part)
        if name == "sub":
            return r"(?P<sub>(?:[^/]+/)*)"
        if name not in _NAMES:
            raise ValueError(f"pattern {pattern!r}: {part} is not one of {{{'}, {'.join(_NAMES)}}}, {{sub}}")
        return rf"(?P<{name}>[^/]+)"

    parts = re.split(r"(\{\w+\}|[\[\]])", pattern)
    try:
        return re.compile("".join(map(one, parts)), re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r}: each [ needs its ], and a name stands once ({error})") from error
