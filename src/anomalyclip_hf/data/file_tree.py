"""The files below a folder, and what their names say of them: images, masks, results of this package, links."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from .files import SHEET_NOTE, one_line
from .formats import is_dicom
from .reader import split_page

# Of every format of the reader, and names that are given to such files.
IMAGE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif"),
    *(".avif", ".avifs", ".pbm", ".pgm", ".ppm", ".pnm", ".pfm", ".jp2", ".j2k", ".jpx"),
    *(".dcm", ".dicom"),
)
# Files that lie beside images and that no one takes for images. All others are counted, so that none vanish silently.
SIDE_SUFFIXES = (
    *(".txt", ".md", ".rst", ".rtf", ".pdf", ".doc", ".docx", ".html", ".htm", ".css", ".js", ".bib", ".cff", ".log"),
    *(".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".xls", ".xlsx"),
    *(".parquet", ".arrow", ".safetensors", ".lock", ".py", ".ipynb", ".sh", ".md5", ".sha1", ".sha256"),
)
_SIDE_FILE = re.compile(r"(licen[cs]e|readme|notice|copying|copyright|citation|authors)(?![a-z])[^.]*|thumbs\.db")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")

_BY_WORD = r"(?:anomal(?:y|ies)|defects?|binary|pixels?|png|images?|img|train|test|trainval|val|validation)"
_MASK_WORD = r"(?:masks?|gts?|groundtruths?|truths?|annotations?|segmentations?|segs?|labels?)"
_MASK_FOLDER = re.compile(f"{_BY_WORD}*{_MASK_WORD}(?:{_BY_WORD}|{_MASK_WORD})*")
_IMAGE_FOLDER = re.compile(r"(?:jpe?g|png|rgb)?(?:images?|imgs?)")
_MASK_AFFIX = r"(?:masks?|gt|ground[ _-]?truth|truth|labels?|seg|segmentation|annotation)"
_MASK_STEM = re.compile(rf"(?:{_MASK_AFFIX}[ ._-]+)?(.+?)(?:[ ._-]+{_MASK_AFFIX})?", re.IGNORECASE)

# Names of the package's own files; beside one of the first, those of the others are results too.
_RESULT_MARKS = re.compile(
    r"(predictions.*|skipped.*|training_log)\.jsonl|training_(summary|arguments)\.json|prompts\.safetensors|"
    r"predict_settings\.json|results\.(json|md)|report\.html|scores\.parquet"
)
_RUNNING_MARKS = ("records/*/run.json", "progress/*.json", "progress/*/*.json")  # of an evaluation that is not done
_RESULT_FOLDERS = ("overlays", "maps", "predicted_masks", "records", "progress")
_RESULT_FILES = ("legend.png", "samples.png", "training_curves.png")
_PERHAPS_SHEET = re.compile(r"\D*|.*(sheet|contact|samples|overview).*", re.DOTALL)
RESULTS = "results of this package"
LINKED_TWICE, UNLISTED = "links to what is read under its own name", "folders that cannot be listed"
BAD_NAME = "with names that are not UTF-8"


@lru_cache(maxsize=4096)
def _plain(name: str) -> str:
    return re.sub(r"[ ._-]", "", name.casefold())


@lru_cache(maxsize=4096)
def is_mask_folder(name: str) -> bool:
    """Whether a folder is one of masks by its name: `Ground Truth`, `gt_masks`, `annotations` and the like."""
    return _MASK_FOLDER.fullmatch(_plain(name)) is not None


@lru_cache(maxsize=4096)
def is_image_folder(name: str) -> bool:
    """Whether a folder's name says that it holds images, and nothing of what they show: `images`, `Img`."""
    return _IMAGE_FOLDER.fullmatch(_plain(name)) is not None


def normal_form(text: str) -> str:
    """A name however its accents are composed (NFC, NFD), to compare names of users with those of the disk."""
    return unicodedata.normalize("NFC", text)


def file_key(text: str) -> str:
    """What two names share that differ in case, or in how accents are composed (NFC, NFD), alone."""
    return normal_form(normal_form(text).casefold())


def natural_key(text: str) -> list:
    """Sort key by which 2 comes before 10."""
    return [
        (1, int(part), "") if part.isdigit() and part.isascii() else (0, 0, part)
        for part in re.split(r"([0-9]+)", text)
    ]


def leaves_root(root: str, path: str) -> bool:
    """Whether a path, or the file that its links lead to, lies outside `root`.

    A snapshot of the Hub's cache consists of links into its repository's folder: these stay inside.
    """
    home = os.path.realpath(root)
    snapshots = os.path.dirname(home)
    if os.path.basename(snapshots) == "snapshots" and os.path.isdir(os.path.join(snapshots, "..", "blobs")):
        home = os.path.dirname(snapshots)
    real = os.path.realpath(split_page(os.path.join(root, path))[0])  # a page lies where its file does
    return not (real == home or real.startswith(os.path.join(home, "")))


def check_inside(paths: Iterable[str], homes: Sequence[str], source: str, allowed: bool = False) -> list[str]:
    """The paths that lead out of the folders a source may name files in, by themselves or behind links.

    Args:
        paths: from the first of `homes`, or absolute.
        homes: those folders.
        source (`str`): what names the files, for the message.
        allowed (`bool`): whether the user allows it.

    Raises:
        ValueError: there are some, and they are not allowed.
    """
    first = os.path.realpath(homes[0])  # a relative one would be joined to each home
    outside = [path for path in dict.fromkeys(paths) if all(leaves_root(h, os.path.join(first, path)) for h in homes)]
    if outside and not allowed:
        raise ValueError(
            f"{source} names {len(outside)} files outside of its folder {homes[0]} ({examples(outside)}): they are "
            "not read. If you know the source and mean these files, give the folder that holds them all as data_dir, "
            "or allow_outside=True"
        )
    return outside


def examples(paths: Collection[str], limit: int = 3) -> str:
    """The first few of some paths, for messages."""
    shown = ", ".join(map(one_line, list(paths)[:limit]))
    return shown + (", ..." if len(paths) > limit else "")


class FileTree:
    """The image files under a folder, found by exact path or by path without suffix.

    Args:
        root: the folder.
        skip (*optional*): folders that are not looked into, such as the one that results go to.
        home (`str`): the folder around it that links may not lead out of; itself by default.

    Attributes:
        root (`str`): the folder.
        files (`list[str]`): image files from the root with forward slashes, masks among them.
        set_aside (`dict[str, list[str]]`): what is no image to look at by reason, a phrase to put after a number, such
            as ".xcf files", `RESULTS` (files and whole folders, also of runs that were interrupted), `UNLISTED`,
            `LINKED_TWICE` or `BAD_NAME`; side files (`SIDE_SUFFIXES`) and hidden ones are left out.
        tables (`list[str]`): CSV, TSV and JSON lines files, and meta.json.
        outside (`list[str]`): image files that links lead out of the root, or of `home`, for.
    """

    def __init__(self, root: str | os.PathLike, skip: Iterable[str | os.PathLike] = (), home: str = ""):
        self._skipped = {os.path.realpath(folder) for folder in skip}
        self.root = os.fspath(root)
        self.files: list[str] = []
        self.tables: list[str] = []
        self.outside: list[str] = []
        self.set_aside: dict[str, list[str]] = {}
        self.home = home or self.root
        linked = leaves_root(self.home, os.path.abspath(self.root))
        self._walk(self.root, "", {os.path.realpath(self.root)}, linked)
        self.files.sort(key=natural_key)
        self._masks: dict[frozenset[str], set[str]] = {}
        self._spelled: dict[str, str] = {}
        stems = {path: os.path.splitext(path)[0] for path in self.files}
        for spell in (str, file_key, lambda path: file_key(stems[path])):  # the exact path goes before other spellings
            for path in self.files:
                self._spelled.setdefault(spell(path), path)
        self._inside: dict[str, list[str]] = {}
        for path in self.files:
            self._inside.setdefault(file_key(os.path.dirname(path)), []).append(path)

    def _walk(self, folder: str, head: str, seen: set[str], linked: bool) -> None:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            self._put_aside(UNLISTED, head)
            return
        entries = [entry for entry in entries if not entry.name.startswith(".") and entry.name != "__MACOSX"]
        results = _holds_results(folder, {entry.name.lower() for entry in entries})
        for entry in entries:
            path, name = head + entry.name, entry.name.lower()
            if not path.isascii() and any("\ud800" <= letter <= "\udfff" for letter in path):  # not UTF-8
                self._put_aside(BAD_NAME, path)
            elif entry.is_dir():
                if self._skipped and os.path.realpath(entry.path) in self._skipped:
                    continue
                if results and name in _RESULT_FOLDERS:
                    self._put_aside(RESULTS, path)
                elif entry.is_symlink() and self._read_anyway(entry.path, seen):
                    self._put_aside(LINKED_TWICE, path)
                elif os.path.realpath(entry.path) not in seen or not entry.is_symlink():
                    seen.add(os.path.realpath(entry.path))
                    self._walk(entry.path, path + "/", seen, linked or self._is_outside(entry))
            elif (results and name in _RESULT_FILES) or _is_result(path) or _is_sheet(entry):
                self._put_aside(RESULTS, path)
            elif name.endswith(IMAGE_SUFFIXES) or _is_dicom(entry):
                self.files.append(path)
                if linked or self._is_outside(entry):
                    self.outside.append(path)
            elif not (name.endswith(SIDE_SUFFIXES) or _SIDE_FILE.fullmatch(name)):
                self._put_aside(_kind_of_file(name), path)
            elif not results and (name.endswith(TABLE_SUFFIXES) or name == "meta.json"):
                self.tables.append(path)

    def _is_outside(self, entry: os.DirEntry) -> bool:
        return entry.is_symlink() and leaves_root(self.home, os.path.abspath(entry.path))

    def _read_anyway(self, link: str, seen: set[str]) -> bool:
        """Whether a linked folder is read under its own name, or holds the root: following it would go in circles."""
        home, target = os.path.realpath(self.root), os.path.realpath(link)
        if target in seen or home.startswith(os.path.join(target, "")):
            return True
        inside = os.path.relpath(target, home)
        return not inside.startswith("..") and not any(part.startswith(".") for part in inside.split(os.sep))

    def _put_aside(self, reason: str, path: str) -> None:
        self.set_aside.setdefault(reason, []).append(path)

    def find(self, path: str, folder: str = "") -> str | None:
        """The file at a path, with or without suffix; case, composed accents and the way slashes lean do not matter.

        Args:
            path (`str`): from `folder`; of an absolute one of another machine the last parts are looked for.
            folder (`str`): from the root.
        """
        slashed = path.replace("\\", "/")
        parts = [part for part in slashed.split("/") if part]
        forms = [path, slashed]
        if parts and (slashed.startswith("/") or ":" in parts[0]):
            forms += ["/".join(parts[start:]) for start in range(1, len(parts))]
        for form in forms:
            form = os.path.normpath(os.path.join(folder, form)).replace(os.sep, "/")
            if found := self._spelled.get(form) or self._spelled.get(file_key(form)):
                return found
        return None

    def inside(self, folder: str) -> list[str]:
        """The image files that lie in a folder itself, in natural order; case and composed accents do not matter."""
        return self._inside.get(file_key(folder.rstrip("/")), [])

    def masks(self, kinds: Collection[str] = ()) -> set[str]:
        """The files that are masks by their names: in a folder of masks, or `1_mask.png` beside its `1.png`.

        Args:
            kinds: folder names that are kinds of images, whatever they sound like.
        """
        kept = frozenset(map(file_key, kinds))
        if kept not in self._masks:
            self._masks[kept] = self._find_masks(kept)
        return self._masks[kept]

    def _find_masks(self, kept: frozenset[str]) -> set[str]:
        masks = {
            path
            for path in self.files
            if any(is_mask_folder(part) and file_key(part) not in kept for part in path.split("/")[:-1])
        }
        stems = {file_key(os.path.splitext(path)[0]) for path in self.files if path not in masks}
        named = {path: bare for path in self.files if path not in masks and (bare := mask_stem(path)) is not None}
        beside = {path for path, bare in named.items() if file_key(bare) in stems}
        # One without its image, where others of the same folder lie beside theirs, is a mask as well.
        folders = {os.path.dirname(path) for path in beside}
        return masks | beside | {path for path in named if os.path.dirname(path) in folders}

    def folders(self) -> list[str]:
        """Folders at the top that hold images somewhere below."""
        return sorted({path.split("/")[0] for path in self.files if "/" in path}, key=natural_key)

    def describe(self, limit: int = 12) -> str:
        """What lies at the top, for messages."""
        if not os.path.isdir(self.root):
            return "no such folder"
        names = sorted(os.listdir(self.root), key=natural_key)
        shown = [name + "/" if os.path.isdir(os.path.join(self.root, name)) else name for name in names[:limit]]
        more = f" and {len(names) - limit} more" if len(names) > limit else ""
        return (", ".join(shown) + more) or "nothing"


class MaskFinder:
    """Finds an image's masks by its own name and those of its folders, wherever the folder of masks lies.

    `masks/1.png`, `masks/bad/1.png`, `bad/masks/1.png`, `bad/1_mask.png` and `masks/bad/1/000.png` all are masks of
    `bad/1.jpg`; `masks/rust/1.png` is none. Folders of masks and of images do not count; the mask that shares most
    folders is first, then the one with the image's suffix.
    """

    def __init__(self, masks: Collection[str]):
        self._by_stem: dict[str, list[tuple[tuple[str, ...], str, bool]]] = {}
        several: dict[str, list[str]] = {}
        for path in sorted(masks, key=natural_key):
            head, name = os.path.split(os.path.splitext(path)[0])
            self._add(head, name, path, True)
            if (bare := mask_stem(path)) is not None:
                self._add(head, os.path.basename(bare), path, False)
            several.setdefault(head, []).append(path)
        for head, paths in several.items():
            if len(paths) == 1 and not is_mask_folder(os.path.basename(head)):  # of several masks none is the whole
                self._add(*os.path.split(head), paths[0], False)

    def _add(self, head: str, name: str, path: str, exact: bool) -> None:
        self._by_stem.setdefault(file_key(name), []).append((_telling_parts(head), path, exact))

    def find(self, image: str) -> list[str]:
        """Masks that may be an image's, the likeliest first."""
        head, name = os.path.split(image)
        stem, suffix = os.path.splitext(name)
        parts = _telling_parts(head)
        fitting = [
            (-len(own), os.path.splitext(path)[1].lower() != suffix.lower(), not exact, path)
            for own, path, exact in self._by_stem.get(file_key(stem), ())
            if _in_order(own, parts)
        ]
        return [path for *_, path in sorted(fitting, key=lambda item: item[:3])]


def mask_stem(path: str) -> str | None:
    """The path without suffix of the image that a mask's name speaks of: `bad/1` for `bad/1_mask.png`, else None."""
    head, name = os.path.split(os.path.splitext(path)[0])
    match = _MASK_STEM.fullmatch(name)
    bare = match.group(1) if match else name
    return None if bare == name else os.path.join(head, bare).replace(os.sep, "/")


def plain_path(path: str) -> str:
    """The path with folders of images called `images`, and VisA's `Data/Images` too."""
    *folders, name = path.split("/")
    return "/".join(["images" if is_image_folder(folder) else folder for folder in _without_data(folders)] + [name])


def _telling_parts(head: str) -> tuple[str, ...]:
    """The folders that say what is shown, not that it is images or masks."""
    names = _without_data([name for name in head.split("/") if name])
    return tuple(file_key(name) for name in names if not (is_mask_folder(name) or is_image_folder(name)))


def _without_data(folders: list[str]) -> list[str]:
    """VisA's own tree has `Data/Images` and `Data/Masks`."""
    after = folders[1:]
    return [
        name
        for place, name in enumerate(folders)
        if name.casefold() != "data"
        or place == len(after)
        or not (is_mask_folder(after[place]) or is_image_folder(after[place]))
    ]


def _in_order(few: tuple[str, ...], many: tuple[str, ...]) -> bool:
    rest = iter(many)
    return all(name in rest for name in few)


def _holds_results(folder: str, names: Collection[str]) -> bool:
    """Whether this package wrote into a folder, by the names in it; of a killed run there may be few."""
    if any(map(_RESULT_MARKS.fullmatch, names)) or ("legend.png" in names and "overlays" in names):
        return True
    marks = (mark for mark in _RUNNING_MARKS if mark.split("/")[0] in names)
    return any(next(Path(folder).glob(mark), None) is not None for mark in marks)


def _is_sheet(entry: os.DirEntry) -> bool:
    """Whether a file is a contact sheet of `anomalyclip inspect`; few names are looked at, so as to open few files."""
    name = entry.name.lower()
    if not name.endswith(IMAGE_SUFFIXES) or not _PERHAPS_SHEET.fullmatch(name) or not entry.is_file():
        return False
    try:
        with open(entry.path, "rb") as file:
            return SHEET_NOTE.encode() in file.read(512)
    except OSError:
        return False


def _is_dicom(entry: os.DirEntry) -> bool:
    """DICOM as clinics export it, under numbers without a suffix; their index of files holds no image."""
    name = entry.name.lower()
    if name == "dicomdir" or name.endswith(SIDE_SUFFIXES):
        return False
    try:
        return is_dicom(entry.path)
    except OSError:
        return False


def _kind_of_file(name: str) -> str:
    """ ".xcf files", after a number; of `.nii.gz` both parts."""
    stem, suffix = os.path.splitext(name)
    suffix = os.path.splitext(stem)[1] + suffix if suffix == ".gz" else suffix
    return f"{one_line(suffix)} files" if suffix else "files without suffix"


def _is_result(path: str) -> bool:
    """Heat maps and maps of a run without records: they keep the image's suffix, as in `overlays/cut/000.png.png`."""
    *folders, name = path.split("/")
    twice = os.path.splitext(name)[0].lower().endswith(IMAGE_SUFFIXES)
    return twice and any(folder.lower() in _RESULT_FOLDERS for folder in folders)
