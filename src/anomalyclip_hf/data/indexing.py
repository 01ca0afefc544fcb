"""From a folder to a list of samples: the patterns of a layout applied to the files that are there."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
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
from .images import ImageReadError, MaskRule, read_mask
from .layouts import SPLITS, DatasetLayout, Variant
from .records import NORMAL_KIND, Index, Record, kind_of
from .tables import index_layout_table

_NO_CLASS = "of no class"
_NAMES = ("class_name", "split", "kind", "group", "stem")


def index_layout(layout: DatasetLayout, tree: FileTree, depths: int = 3) -> Index | None:
    """Index a folder by the first variant of a layout that fits; None where none does.

    Args:
        layout (`DatasetLayout`): the row.
        tree (`FileTree`): the files of the unpacked archive.
        depths (`int`): how many levels of folders may be its root: 1 for the top alone.

    Raises:
        ValueError: several folders fit and none bears the data set's name.
    """
    for depth in range(depths):
        folders = tree.folders(depth) if depth else [""]
        candidates = [(folder, _index_variants(layout, tree.under(folder))) for folder in folders]
        found = [(folder, index) for folder, index in candidates if index is not None]
        if len(found) > 1:
            names = {name.casefold() for name in layout.folders}
            found = [item for item in found if os.path.basename(item[0]).casefold() in names] or found
        if len(found) > 1:
            raise ValueError(
                f"{layout.title}: several folders of {tree.root} fit ({', '.join(name for name, _ in found[:6])}): "
                "give the one you mean as data_dir"
            )
        if found:
            return found[0][1]
    return None


def _index_variants(layout: DatasetLayout, tree: FileTree) -> Index | None:
    for variant in layout.variants:
        table = variant.table
        index = index_variant(variant, layout, tree) if table is None else index_layout_table(table, layout, tree)
        if index is not None:
            return index
    return None


def index_variant(variant: Variant, layout: DatasetLayout, tree: FileTree) -> Index | None:
    """Index a folder by one pattern; None where it does not fit."""
    normal = {file_key(kind) for kind in layout.normal_kinds}
    masks = tree.masks(normal)
    samples, notes, unused = _match_images(variant, layout, tree, masks, normal)
    if not samples or (variant.needs_all and unused):
        return None
    if variant.needs_normal and not any(file_key(names.get("kind", "")) in normal for _, names in samples):
        return None
    records, used = _pair_masks(variant, samples, normal, tree, masks)
    if variant.needs_masks and not used:
        return None
    images = {record.image for record in records}
    expressions = [_expression(pattern) for pattern in variant.masks]
    told = {path for paths in unused.values() for path in paths}
    extra: list[str] = []
    for path in tree.files:
        if path in used or path in images or path in told:
            continue
        asked = any(e.fullmatch(os.path.splitext(path)[0]) for e in expressions)
        if asked or (variant.masks_by_name and path in masks):
            extra.append(path)
        else:
            reason = "that are masks by their names" if path in masks else f"outside of {variant.images}"
            unused.setdefault(reason, []).append(path)
    unused.pop(_NO_CLASS, None)  # told of by a note for each class
    if variant.label == "mask_content":
        if bare := [record.image for record in records if record.mask is None]:
            notes.append(f"{len(bare)} images without a mask file are taken as normal ({examples(bare)})")
        records = [_label_by_content(record, tree, layout.mask_rule) for record in records]
    order = {name: place for place, name in enumerate(layout.classes)}
    records.sort(key=lambda r: (order.get(r.class_name, 0), natural_key(r.class_name), r.split, natural_key(r.image)))
    return Index(
        tree.root,
        f"{layout.title}: {variant.images}",
        records,
        layout.mask_rule,
        layout,
        extra_masks=extra,
        notes=notes,
        unused=unused | tree.set_aside,
        outside=[path for path in tree.outside if path in images or path in used],
    )


def _match_images(
    variant: Variant, layout: DatasetLayout, tree: FileTree, masks: set[str], normal: set[str]
) -> tuple[list, list[str], dict[str, list[str]]]:
    """The images of a variant with the names in their paths, notes, and images that contradict it, by reason."""
    expression = _expression(variant.images)
    skip = [_expression(pattern) for pattern in variant.skip]
    kinds = None if variant.kinds is None else {file_key(kind) for kind in variant.kinds}
    known = {file_key(name): name for name in layout.classes}
    samples: list = []
    classes: Counter[str] = Counter()
    unused: dict[str, list[str]] = {}
    for path in tree.files:
        if path in masks:
            continue
        stem = os.path.splitext(_plain_form(path, variant, normal))[0]
        match = expression.fullmatch(stem)
        if match is None or any(pattern.fullmatch(stem) for pattern in skip):
            if variant.needs_all:
                unused.setdefault("elsewhere", []).append(path)
            continue
        names = {key: value or "" for key, value in match.groupdict().items()}
        kind = file_key(names.get("kind", ""))
        if kind and kind not in normal and (is_mask_folder(kind) or (kinds is not None and kind not in kinds)):
            continue
        if "split" in names and file_key(names["split"]) not in SPLITS:
            if variant.needs_all:
                unused.setdefault("elsewhere", []).append(path)
            continue
        if kind and kind not in normal and normal & set(map(file_key, names.get("sub", "").split("/"))):
            unused.setdefault(f"in a normal folder below {names['kind']}/, which is none", []).append(path)
            continue
        names["found_class"] = _class_of(names, layout, known, tree.root)
        if not names["found_class"]:
            unused.setdefault(_NO_CLASS, []).append(path)
            classes[names.get("class_name", "")] += 1
            continue
        samples.append((path, names))
    notes = [
        f"{count} images in {name}/ left out: {layout.title} has no such class" for name, count in classes.items()
    ]
    return samples, notes, unused


def _plain_form(path: str, variant: Variant, normal: set[str]) -> str:
    """The path to match: for own data folders of images by any name are `images`, and no kinds."""
    if not variant.masks_by_name:
        return path
    plain = plain_path(path)
    if variant.label != "kind":
        return plain
    *folders, name = plain.split("/")
    return "/".join([*(f for f in folders if not is_image_folder(f) or file_key(f) in normal), name])


def _class_of(names: dict[str, str], layout: DatasetLayout, known: dict[str, str], root: str) -> str:
    """The class of a sample: its folder, the only class there is, or the root folder's name; "" where unknown."""
    if "class_name" in names:
        return known.get(file_key(names["class_name"]), "") if known else names["class_name"]
    if len(known) == 1:
        return layout.classes[0]
    folder = os.path.basename(os.path.abspath(root))
    return known.get(file_key(folder), "") if known else folder


def _pair_masks(
    variant: Variant, samples: list, normal: set[str], tree: FileTree, masks: set[str]
) -> tuple[list[Record], set[str]]:
    """Find each image's mask by its stem: first for the anomalous ones, the rest may belong to normal ones."""
    records: list[Record] = []
    used: set[str] = set()
    waiting: list[tuple[int, list[str]]] = []
    candidates = _mask_candidates(variant, tree, masks)
    for path, names in samples:
        is_normal = variant.label == "kind" and file_key(names.get("kind", "")) in normal
        wanted = [mask for mask in candidates(path, names) if mask != path]
        mask = None if is_normal else next(iter(wanted), None)
        if mask:
            used.add(mask)
        label = {"kind": int(not is_normal), "mask_file": int(mask is not None), "unlabeled": None}.get(
            variant.label, 1
        )
        if is_normal and wanted:
            waiting.append((len(records), wanted))
        split = SPLITS[file_key(names["split"])] if "split" in names else variant.split
        records.append(Record(path, mask, label, names["found_class"], kind_of(label, names.get("kind")), split))
    for place, wanted in waiting:
        mask = next((mask for mask in wanted if mask not in used), None)
        if mask:
            used.add(mask)
            records[place] = replace(records[place], mask=mask)
    return records, used


def _mask_candidates(variant: Variant, tree: FileTree, masks: set[str]) -> Callable[[str, dict[str, str]], list[str]]:
    """What gives the masks an image may have, the likeliest first."""
    if variant.masks_by_name:
        finder = MaskFinder(masks)
        return lambda path, names: finder.find(path)

    def by_pattern(path: str, names: dict[str, str]) -> list[str]:
        suffix = os.path.splitext(path)[1]
        wanted = [_fill(pattern, names) for pattern in variant.masks]
        found = [tree.find(form) for mask in wanted for form in (mask + suffix, mask)]
        return list(dict.fromkeys(mask for mask in found if mask))

    return by_pattern


def _label_by_content(record: Record, tree: FileTree, rule: MaskRule) -> Record:
    """Normal where the mask is all zero or missing; then there is no mask to keep."""
    if record.mask is not None:
        try:
            if read_mask(os.path.join(tree.root, record.mask), rule).getbbox() is not None:
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
        if not part.startswith("{"):
            return re.escape(part)
        if name == "sub":
            return r"(?P<sub>(?:[^/]+/)*)"
        if name not in _NAMES:
            raise ValueError(f"pattern {pattern!r}: {part} is not one of {{{'}, {'.join(_NAMES)}}}, {{sub}}")
        return rf"(?P<{name}>[^/]+)"

    return re.compile("".join(map(one, re.split(r"(\{\w+\})", pattern))), re.IGNORECASE)
