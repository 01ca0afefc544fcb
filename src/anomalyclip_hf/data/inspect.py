"""A look at a data set before anything is run on it: what it holds, and everything that is wrong with it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from . import contact_sheet as sheets
from .contact_sheet import SheetRow, inside, outline_mask
from .file_tree import examples, natural_key
from .files import count_of, one_line
from .formats import list_pages
from .images import ImageReadError, mask_files, open_image, read_bytes, states_orientation, upright_size
from .loading import open_source, select_parts
from .metadata import orientation_of
from .options import SourceOptions, make_options
from .paint import fit_mask
from .pixels import bit_depth_of, is_deep
from .reader import split_page
from .records import NORMAL_KIND, Index

if TYPE_CHECKING:
    import datasets

    from .features import AnomalyImage, AnomalyMask

# Every kind of problem there is, in the order of the report.
PROBLEMS = {
    "missing_file": "named by the index but not on disk",
    "unreadable_image": "image cannot be read",
    "unreadable_mask": "mask cannot be read",
    "missing_mask": "anomalous image without a mask, though others have one",
    "extra_mask": "mask without an image",
    "shared_mask": "one mask for several images",
    "size_differs": "mask and image differ in size",
    "empty_mask": "anomalous image with an empty mask",
    "full_mask": "mask that covers over 90 % of its image: inverted, or no mask",
    "image_like_mask": "image of black and one gray alone, as masks are",
    "mask_on_normal": "normal image with a mask that is not empty",
    "duplicate_across_splits": "same file in several splits",
    "duplicate_with_other_label": "same file, labeled both normal and anomalous",
}
FULL_SHARE = 0.9
TILE, COLUMNS, MAX_ROWS = 200, 6, 48  # of a contact sheet


@dataclass(frozen=True)
class Problem:
    """One thing wrong: a key of `PROBLEMS`, the file, and what exactly."""

    kind: str
    path: str
    detail: str = ""


@dataclass
class InspectionReport:
    """What `inspect_source` found.

    Args:
        source (`str`): the source, as given.
        form (`str`): what it was taken for.
        counts: (split, class, defect type, label) -> number of images.
        masked: the same keys -> number of images with a mask.
        sizes, modes: (width, height) of upright images, and modes of image and mask files -> number of images.
        depths: bits that images of more than 8 bits make use of (`bit_depth_of`) -> number of images.
        problems (`list[Problem]`): everything wrong.
        notes (`list[str]`): what is worth knowing but not wrong.
        paged (`list[str]`): images of several pages, of which the first is read.
    """

    source: str
    form: str
    counts: Counter = field(default_factory=Counter)
    masked: Counter = field(default_factory=Counter)
    sizes: Counter = field(default_factory=Counter)
    modes: Counter = field(default_factory=Counter)
    mask_modes: Counter = field(default_factory=Counter)
    depths: Counter = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    paged: list[str] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        """Images of all splits."""
        return sum(self.counts.values())

    def add(self, part: InspectionReport) -> None:
        """Count another report's samples, problems and notes in."""
        for name, value in vars(self).items():
            if isinstance(value, Counter):
                value.update(getattr(part, name))
            elif isinstance(value, list):
                value += getattr(part, name)

    def to_text(self, limit: int = 10) -> str:
        """The report as plain text.

        Args:
            limit (`int`): examples shown of each kind of problem.
        """
        lines = [f"{self.source}: {self.form}", count_of(self.num_images, "image"), "", *self._table(), ""]
        lines.append("sizes (w x h): " + _most(Counter({f"{w}x{h}": n for (w, h), n in self.sizes.items()})))
        lines.append("image modes: " + _most(self.modes))
        lines.append("mask modes: " + (_most(self.mask_modes) or "no masks"))
        lines += [f"note: {note}" for note in self.notes]
        for kind, meaning in PROBLEMS.items():
            found = [problem for problem in self.problems if problem.kind == kind]
            lines += ["", f"PROBLEM {kind}: {len(found)} x {meaning}"] if found else []
            lines += [f"  {one_line(': '.join(filter(None, (one.path, one.detail))))}" for one in found[:limit]]
            lines += [f"  ... and {len(found) - limit} more"] if len(found) > limit else []
        lines += ["", count_of(len(self.problems), "problem") if self.problems else "no problems"]
        return "\n".join(lines)

    def _table(self) -> Iterator[str]:
        widths = [max([len(title), *(len(key[i]) for key in self.counts)]) for i, title in enumerate(_TITLES)]
        yield "  ".join(title.ljust(width) for title, width in zip(_TITLES, widths, strict=True)) + "  images  masks"
        for key in sorted(self.counts, key=lambda key: tuple(natural_key(part) for part in key)):
            cells = "  ".join(part.ljust(width) for part, width in zip(key, widths, strict=True))
            yield f"{cells}  {self.counts[key]:6d}  {self.masked[key]:5d}"


_TITLES = ("split", "class", "defect", "label")
_LABEL_WORDS = {0: "normal", 1: "anomalous", None: "unknown"}


def inspect_source(
    source: Any,
    data_dir: str | os.PathLike | None = None,
    split: str = "all",
    options: SourceOptions | None = None,
    *,
    contact_sheet: str | os.PathLike | None = None,
    progress: bool = True,
    num_workers: int | None = None,
    **fields: Any,
) -> InspectionReport:
    """Read every file of a source once and report what is there and what is wrong.

    Args:
        source, data_dir, options, **fields: as in `load_anomaly_dataset`.
        split (`str`): one split, or "all".
        contact_sheet (path, *optional*): write a sheet of samples with their masks outlined there (.png or .jpg).
        progress (`bool`): show a bar.
        num_workers (`int`, *optional*): reading threads; the machine's cores, at most 8, by default.

    Raises:
        FileNotFoundError, ValueError: the source is unusable, as in `load_anomaly_dataset`.
    """
    from .features import read_by

    options = make_options(options, **fields)
    found = open_source(source, data_dir, options)
    parts = {name: read_by(part, options) for name, part in select_parts(found, split, options.class_names).items()}
    name = str(source) if isinstance(source, (str, os.PathLike)) else type(source).__name__
    report = InspectionReport(name, "datasets source")
    if isinstance(found, Index):
        report.form, report.notes = found.form, found.remarks()
        report.problems = [Problem("missing_file", path) for path in found.missing]
        report.problems += [Problem("extra_mask", os.path.join(found.root, path)) for path in found.extra_masks]
    seen: dict[str, list[tuple[str, int | None, str]]] = defaultdict(list)
    mask_users: dict[str, list[str]] = defaultdict(list)
    for part_name, dataset in parts.items():
        for row, digest, found_here in _examine_all(part_name, dataset, progress, num_workers):
            report.add(found_here)
            if digest:
                seen[digest].append((part_name, row["label"], row["path"]))
            if row["mask"] is not None and row["mask"]["bytes"] is None:
                mask_users[row["mask"]["path"]].append(row["path"])
    _compare_rows(report, seen, mask_users)
    _add_notes(report)
    if contact_sheet is not None:
        write_samples(parts, contact_sheet)
    return report


def _examine_all(
    split: str, dataset: datasets.Dataset, progress: bool, num_workers: int | None
) -> Iterator[tuple[dict, str, InspectionReport]]:
    from tqdm.auto import tqdm

    from .features import undecoded

    rows, image, mask = undecoded(dataset), dataset.features["image"], dataset.features["mask"]
    workers = num_workers or min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(rows), desc=split, disable=not progress) as bar:
        for start in range(0, len(rows), 256):  # bounded, so that embedded images are not all held at once
            chunk = [rows[index] for index in range(start, min(start + 256, len(rows)))]
            for row, found in zip(chunk, pool.map(lambda row: _examine(split, row, image, mask), chunk), strict=True):
                bar.update()
                yield row, *found


def _examine(split: str, row: dict, image: AnomalyImage, mask: AnomalyMask) -> tuple[str, InspectionReport]:
    """What reading one sample shows: what tells equal images, and a report of it alone."""
    part, path, digest, turned, size, stored = InspectionReport(split, ""), row["path"], "", 1, None, None
    key = (split, row["class_name"], row["defect_type"] or "-", _LABEL_WORDS[row["label"]])
    part.counts[key], part.masked[key] = 1, int(row["mask"] is not None)
    try:
        content, named = read_bytes(row["image"]), row["image"]["path"]
        file, page = split_page(named or "")
        digest = hashlib.blake2b(content, digest_size=16, salt=b"" if page == 1 else str(page).encode()).hexdigest()
        part.paged += [path] if named == file and len(list_pages(file)) > 1 else []
        opened = open_image({"bytes": content, "path": named}, image.window, image.channels)
        part.modes[opened.mode], turned = 1, orientation_of(opened)
        stored = upright_size(opened)[::-1] if turned >= 5 else opened.size
        if is_deep(opened) or "bit_depth" in opened.info:
            part.depths[bit_depth_of(opened)] = 1
        picture = image.decode_example({"bytes": content, "path": named})
        size = picture.size
        part.sizes[size] = 1
        part.problems += [Problem("image_like_mask", path)] if _looks_like_mask(picture) else []
    except ImageReadError as error:
        part.problems.append(Problem("unreadable_image", path, str(error)))
    if row["mask"] is None:
        part.problems += [Problem("missing_mask", path)] if row["label"] == 1 else []
        return digest, part
    try:
        drawn = open_image(mask_files(row["mask"])[0])
        part.mask_modes[drawn.mode] = 1
        if turned != 1 and not states_orientation(drawn) and drawn.size == stored == size:
            done = "turned with it" if (row["mask"]["turn"] or 1) != 1 else "taken as upright"
            part.notes.append(f"{path} is rotated by EXIF, its mask is not: the mask is {done}")
        found = _mask_problems(mask.decode_example(row["mask"]), size, row["label"])
        part.problems += [Problem(kind, path, detail) for kind, detail in found]
    except ImageReadError as error:
        part.problems.append(Problem("unreadable_mask", path, str(error)))
    return digest, part


def _mask_problems(mask: Image.Image, size: tuple[int, int] | None, label: int | None) -> Iterator[tuple[str, str]]:
    marked, fits = mask.histogram()[255], size is None or mask.size == size
    share = marked / (mask.width * mask.height)
    if not fits:
        yield "size_differs", f"mask {mask.width}x{mask.height}, image {'x'.join(map(str, size or ()))}"
    if fits and label != 0 and share > FULL_SHARE:
        yield "full_mask", f"{100 * share:.1f} % marked"
    if label == 1 and not marked:
        yield "empty_mask", ""
    if label == 0 and marked:
        yield "mask_on_normal", f"{marked} pixels marked"


def _looks_like_mask(image: Image.Image) -> bool:
    """Whether an RGB image is of black and one other gray alone."""
    colors: list[Any] = [color for _, color in image.getcolors(2) or ()]
    return len(colors) == 2 and (0, 0, 0) in colors and all(len(set(color)) == 1 for color in colors)


def _compare_rows(report: InspectionReport, seen: dict, mask_users: dict) -> None:
    """Problems that take more than one sample to see."""
    repeated = 0
    for places in seen.values():
        if len({split for split, _, _ in places}) > 1:
            report.problems.append(Problem("duplicate_across_splits", places[0][2], f"also {places[-1][2]}"))
        elif len(places) > 1:
            repeated += len(places) - 1
        if {0, 1} <= {label for _, label, _ in places}:
            report.problems.append(Problem("duplicate_with_other_label", places[0][2], f"also {places[-1][2]}"))
    if repeated:
        report.notes.append(f"{repeated} images repeat another of the same split")
    for mask, users in mask_users.items():
        if len(users) > 1:
            report.problems.append(Problem("shared_mask", mask, ", ".join(users[:4])))


def _add_notes(report: InspectionReport) -> None:
    """What is worth knowing of all samples together."""
    if not any(report.masked.values()):
        report.problems = [problem for problem in report.problems if problem.kind != "missing_mask"]
        report.notes.append("no masks at all: pixels cannot be judged, and training has the image loss alone")
    labels: Counter[str] = Counter()
    for (_, _, _, word), number in report.counts.items():
        labels[word] += number
    if labels["unknown"]:
        report.notes.append(f"{labels['unknown']} images without a label: good for prediction only")
    elif not labels["normal"] or not labels["anomalous"]:
        report.notes.append("every image has the same label: image-level AUROC and AP are undefined")
    if set(report.depths) == {16}:
        report.notes.append(f"{report.depths[16]} images of 16 bits, scaled by their full range")
    elif report.depths:
        found = ", ".join(f"{number} of {depth} bits" for depth, number in sorted(report.depths.items()))
        text = f"images in files of 16 bits or more make use of fewer: {found}; each is scaled by its own depth"
        several = ", so equal values of two depths look different; give all one depth to keep them comparable"
        report.notes.append(text + (several if len(report.depths) > 1 else ""))
    if report.paged:
        report.notes.append(
            f"{len(report.paged)} files have several pages, of which the first is read ({examples(report.paged)}); "
            "name others in a table, as scan.tif#page=2"
        )


def _most(counter: Counter, limit: int = 6) -> str:
    text = ", ".join(f"{name} ({number})" for name, number in counter.most_common(limit))
    return text + (f" and {len(counter) - limit} more" if len(counter) > limit else "")


def write_samples(parts: Mapping[str, datasets.Dataset], path: str | os.PathLike) -> None:
    """Write a contact sheet: a row of samples of each class and defect type, masks outlined.

    Args:
        parts: split -> data set of the one schema.
        path: .png or .jpg.

    Raises:
        ValueError: nothing can be shown.
    """
    groups: dict[tuple[str, bool, str], list[tuple[datasets.Dataset, int]]] = defaultdict(list)
    for dataset in parts.values():
        names = zip(dataset["class_name"], dataset["defect_type"], strict=True)
        for index, (name, kind) in enumerate(names):
            groups[name, kind == NORMAL_KIND, kind].append((dataset, index))
    if not groups:
        raise ValueError("the source has no images: there is nothing to put on a contact sheet")
    rows = []
    for (name, _, kind), members in sorted(groups.items(), key=lambda item: item[0])[:MAX_ROWS]:
        shown = min(COLUMNS, len(members))
        tiles = [_tile(*members[place * len(members) // shown]) for place in range(shown)]
        title = f"{name} / {kind or '?'}: {count_of(len(members), 'image')}"
        rows.append(SheetRow([picture for picture, _ in tiles], title, [label for _, label in tiles]))
    sheets.contact_sheet(rows, path, cell_size=TILE)


def _tile(dataset: datasets.Dataset, index: int) -> tuple[Image.Image, str]:
    """A sample's picture with its mask outlined, and what is written below it."""
    try:
        sample = dataset[index]
        image, mask = sample["image"], sample["mask"]
        small = image.resize(inside(image.size, TILE), Image.Resampling.BICUBIC)
        if mask is not None:
            reduced = fit_mask(mask, image.size).resize(small.size, Image.Resampling.BOX)
            small = outline_mask(small, reduced.point(lambda value: 255 if value else 0))
    except ImageReadError as error:
        return Image.new("RGB", (TILE, TILE), (200, 200, 200)), str(error)
    note = " (no mask)" if mask is None and sample["label"] == 1 else ""
    return small, os.path.basename(sample["path"]) + note
