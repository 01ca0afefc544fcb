"""From a folder to a list of samples: the patterns of a layout applied to the files that are there."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

from .layout_types import SPLITS, DatasetLayout, Variant
from .masks import ImageReadError, MaskRule, read_mask

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".tif", ".tiff"),
    *(".webp", ".gif", ".pgm", ".ppm", ".pnm", ".jp2"),
)
NORMAL_KIND, ANOMALOUS_KIND = "good", "anomaly"
_NAMES = ("class_name", "split", "kind", "group", "stem")


@dataclass(frozen=True)
class Record:
    """One sample before anything is read: paths from the root with forward slashes, label None where unknown."""

    image: str
    mask: str | None
    label: int | None
    class_name: str
    defect_type: str
    split: str


@dataclass(frozen=True)
class Index:
    """What a source holds: the samples and all that did not fit.

    Args:
        root (`str`): folder the paths start from, as the user gave it.
        form (`str`): the layout found, in words.
        records (`list[Record]`): samples, ordered by class, split, kind and name.
        mask_rule (`MaskRule`): how masks are binarised.
        layout (`DatasetLayout`, *optional*): the row, for named data sets.
        extra_masks (`list[str]`): mask files no image asks for.
        missing (`list[str]`): files an index names but the disk lacks.
        notes (`list[str]`): what was left out, and why.
    """

    root: str
    form: str
    records: list[Record]
    mask_rule: MaskRule = field(default_factory=MaskRule)
    layout: DatasetLayout | None = None
    extra_masks: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class FileTree:
    """The image files under a folder, found by exact path, by path without suffix, or by number."""

    def __init__(self, root: str | os.PathLike):
        self.root = os.fspath(root)
        self.files = sorted(_walk(self.root), key=natural_key)
        self._by_path: dict[str, str] = {}
        self._by_number: dict[tuple[str, int], str] = {}
        for path in self.files:
            head, name = os.path.split(os.path.splitext(path)[0])
            for key in (path.casefold(), os.path.splitext(path)[0].casefold()):
                self._by_path.setdefault(key, path)
            if name.isascii() and name.isdigit():
                self._by_number.setdefault((head.casefold(), int(name)), path)

    def find(self, path: str) -> str | None:
        """The file at a path given with or without suffix; case does not matter."""
        path = os.path.normpath(path).replace(os.sep, "/")
        return self._by_path.get(path.casefold())

    def find_number(self, path: str) -> str | None:
        """The file at a path whose name is a number, however many zeros lead it."""
        head, name = os.path.split(path)
        if not (name.isascii() and name.isdigit()):
            return None
        return self._by_number.get((head.casefold(), int(name)))

    def under(self, folder: str) -> FileTree:
        """The part of the tree below a folder, without walking the disk again."""
        if not folder:
            return self
        part = FileTree.__new__(FileTree)
        prefix = folder + "/"
        part.root = os.path.join(self.root, folder)
        part.files = [path[len(prefix) :] for path in self.files if path.startswith(prefix)]
        cut = len(prefix)
        part._by_path = {k[cut:]: v[cut:] for k, v in self._by_path.items() if v.startswith(prefix)}
        part._by_number = {
            (k[0][cut:] if len(k[0]) > cut else "", k[1]): v[cut:]
            for k, v in self._by_number.items()
            if v.startswith(prefix)
        }
        return part

    def folders(self, depth: int) -> list[str]:
        """Folders exactly `depth` levels down that hold images somewhere below."""
        parts = (path.split("/") for path in self.files)
        return sorted({"/".join(p[:depth]) for p in parts if len(p) > depth}, key=natural_key)

    def describe(self, limit: int = 12) -> str:
        """What lies at the top, for messages."""
        if not os.path.isdir(self.root):
            return "no such folder"
        names = sorted(os.listdir(self.root), key=natural_key)
        shown = [name + "/" if os.path.isdir(os.path.join(self.root, name)) else name for name in names[:limit]]
        more = f" and {len(names) - limit} more" if len(names) > limit else ""
        return (", ".join(shown) + more) or "nothing"


def natural_key(text: str) -> list:
    """Sort key by which 2 comes before 10."""
    return [
        (1, int(part), "") if part.isdigit() and part.isascii() else (0, 0, part)
        for part in re.split(r"([0-9]+)", text)
    ]


def index_layout(layout: DatasetLayout, root: str, tree: FileTree | None = None) -> Index | None:
    """Index a folder by the first variant of a layout that fits; None where none does.

    Args:
        layout (`DatasetLayout`): the row.
        root (`str`): the unpacked archive; the layout may also start one or two folders below.
        tree (`FileTree`, *optional*): the files, where they are already listed.

    Raises:
        ValueError: several folders fit and none bears the data set's name.
    """
    tree = tree or FileTree(root)
    for depth in range(3):
        folders = tree.folders(depth) if depth else [""]
        candidates = [(folder, _index_variants(layout, tree.under(folder))) for folder in folders]
        found = [(folder, index) for folder, index in candidates if index is not None]
        if len(found) > 1:
            names = {name.casefold() for name in layout.folders}
            found = [item for item in found if os.path.basename(item[0]).casefold() in names] or found
        if len(found) > 1:
            raise ValueError(
                f"{layout.title}: several folders of {root} fit ({', '.join(name for name, _ in found[:6])}): "
                "give the one you mean as data_dir"
            )
        if found:
            return found[0][1]
    return None


def _index_variants(layout: DatasetLayout, tree: FileTree) -> Index | None:
    for variant in layout.variants:
        if variant.table is not None:
            from .tables import index_table

            index = index_table(variant.table, layout, tree)
        else:
            index = index_variant(variant, layout, tree)
        if index is not None:
            return index
    return None


def index_variant(variant: Variant, layout: DatasetLayout, tree: FileTree) -> Index | None:
    """Index a folder by one pattern; None where it does not fit."""
    samples, notes = _match_images(variant, layout, tree)
    if not samples:
        return None
    normal = {kind.casefold() for kind in layout.normal_kinds}
    if variant.needs_normal and not any(names.get("kind", "").casefold() in normal for _, names in samples):
        return None
    records, used = _pair_masks(variant, samples, normal, tree)
    if variant.needs_masks and not used:
        return None
    expressions = [_expression(pattern) for pattern in variant.masks]
    images = {record.image for record in records}
    extra = [
        path
        for path in tree.files
        if path not in used and path not in images and any(e.fullmatch(os.path.splitext(path)[0]) for e in expressions)
    ]
    if variant.label == "mask_content":
        records = [_label_by_content(record, tree, layout.mask_rule) for record in records]
    order = {name: place for place, name in enumerate(layout.classes)}
    records.sort(key=lambda r: (order.get(r.class_name, 0), natural_key(r.class_name), r.split, natural_key(r.image)))
    form = f"{layout.title}: {variant.images}"
    return Index(tree.root, form, records, layout.mask_rule, layout, extra, [], notes)


def _match_images(variant: Variant, layout: DatasetLayout, tree: FileTree) -> tuple[list, list[str]]:
    expression = _expression(variant.images)
    skip = [_expression(pattern) for pattern in variant.skip]
    skip_kinds = {kind.casefold() for kind in variant.skip_kinds}
    kinds = None if variant.kinds is None else {kind.casefold() for kind in variant.kinds}
    known = {name.casefold(): name for name in layout.classes}
    samples, left_out = [], Counter[str]()
    for path in tree.files:
        stem = os.path.splitext(path)[0]
        match = expression.fullmatch(stem)
        if match is None or any(pattern.fullmatch(stem) for pattern in skip):
            continue
        names = {key: value or "" for key, value in match.groupdict().items()}
        kind = names.get("kind", "").casefold()
        if kind and (kind in skip_kinds or (kinds is not None and kind not in kinds)):
            continue
        if "split" in names and names["split"].casefold() not in SPLITS:
            continue
        names["found_class"] = _class_of(names, layout, known, tree.root)
        if not names["found_class"]:
            left_out[names.get("class_name", "")] += 1
            continue
        samples.append((path, names))
    notes = [
        f"{count} images in {name}/ left out: {layout.title} has no such class" for name, count in left_out.items()
    ]
    return samples, notes


def _class_of(names: dict[str, str], layout: DatasetLayout, known: dict[str, str], root: str) -> str:
    """The class of a sample: its folder, the only class there is, or the root folder's name; "" where unknown."""
    if "class_name" in names:
        return known.get(names["class_name"].casefold(), "") if known else names["class_name"]
    if len(known) == 1:
        return layout.classes[0]
    folder = os.path.basename(os.path.abspath(root))
    return known.get(folder.casefold(), "") if known else folder


def _pair_masks(variant: Variant, samples: list, normal: set[str], tree: FileTree) -> tuple[list[Record], set[str]]:
    """Find each image's mask by its stem: first for the anomalous ones, the rest may belong to normal ones."""
    records: list[Record] = []
    used: set[str] = set()
    waiting: list[tuple[int, list[str]]] = []
    for path, names in samples:
        is_normal = variant.label == "kind" and names.get("kind", "").casefold() in normal
        wanted = [_fill(pattern, names) for pattern in variant.masks]
        mask = None if is_normal else next((m for m in map(tree.find, wanted) if m and m != path), None)
        if mask:
            used.add(mask)
        label = {"kind": int(not is_normal), "mask_file": int(mask is not None), "unlabeled": None}.get(
            variant.label, 1
        )
        if is_normal and wanted:
            waiting.append((len(records), wanted))
        split = SPLITS[names["split"].casefold()] if "split" in names else variant.split
        records.append(Record(path, mask, label, names["found_class"], _kind(label, names.get("kind")), split))
    for place, wanted in waiting:
        mask = next((m for m in map(tree.find, wanted) if m and m not in used and m != records[place].image), None)
        if mask:
            used.add(mask)
            records[place] = replace(records[place], mask=mask)
    return records, used


def _label_by_content(record: Record, tree: FileTree, rule: MaskRule) -> Record:
    """Normal where the mask is all zero or missing; then there is no mask to keep."""
    if record.mask is not None:
        try:
            if read_mask(os.path.join(tree.root, record.mask), rule).getbbox() is not None:
                return record
        except ImageReadError:
            return record  # reported when it is read
    return replace(record, mask=None, label=0, defect_type=NORMAL_KIND)


def _kind(label: int | None, kind: str | None) -> str:
    """One name for normal in every data set; the folder's name for defects."""
    if label is None:
        return ""
    return NORMAL_KIND if label == 0 else (kind or ANOMALOUS_KIND)


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


def _walk(root: str) -> Iterator[str]:
    """Paths of all image files from the root, with forward slashes; hidden files and macOS leftovers are no files."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        head = os.path.relpath(folder, root).replace(os.sep, "/")
        for name in files:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield name if head == "." else f"{head}/{name}"
