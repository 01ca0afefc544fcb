"""Finding images in files, folders and data sets, with a name for the results of each that no other has."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..data.file_tree import BAD_NAME, IMAGE_SUFFIXES, UNLISTED, FileTree, is_mask_folder
from ..data.files import safe_name
from ..data.formats import list_pages
from ..data.reader import split_page

LEGEND = "legend.png"
_NAME_CHARACTERS = "".join(map(chr, (letter for letter in range(32, 127) if chr(letter) not in '/\\:*?"<>|')))


@dataclass
class FoundImages:
    """What [`find_images`] found.

    Args:
        files: image files, each once, with a name for its results (relative to the folder given, as "cut/000.png");
            of those of several pages (`list_pages`) each page, as "scan.tif#page=2".
        skipped: `path` and `error` of each input that holds nothing.
        left_out: masks in the folders given, which are no photographs.
        unused: other files and folders in them that are set aside, by reason, such as results of this package.
    """

    files: list[tuple[Path, str]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)
    unused: dict[str, list[Path]] = field(default_factory=dict)


def find_images(inputs: Iterable[str | os.PathLike], output_dir: str | os.PathLike | None = None) -> FoundImages:
    """List image files.

    Args:
        inputs: files, taken whatever they are called, and folders, whose images are found by the rules of `FileTree`,
            as those of a data set: masks, in folders of their own or beside their image, and results of this package
            are left out.
        output_dir (*optional*): where results go; left out of the search, so that they are never taken for inputs.

    Raises:
        ValueError: if an input lies in output_dir, or output_dir holds images of its own.
    """
    result = FoundImages()
    found: dict[str, tuple[Path, str]] = {}
    masks: list[Path] = []
    taken: set[str] = set()
    sources = [Path(source) for source in inputs]
    if output_dir is not None:
        check_apart(sources, output_dir)
    for source in sources:
        if source.is_dir():
            files, own_masks = _search(source, output_dir, result)
            masks += own_masks
        elif os.path.lexists(split_page(str(source))[0]):
            files = [(source, source.name)]
        else:
            result.skipped.append({"path": str(source), "error": "no such file or folder"})
            continue
        for path, name in files:
            for page in list_pages(path):
                if (place := _place(page)) not in found:
                    found[place] = (Path(page), unique_name(name + page.removeprefix(str(path)), taken))
    result.files = list(found.values())
    result.left_out = list({place: path for path in masks if (place := _place(path)) not in found}.values())
    return result


def _place(path: str | os.PathLike) -> str:
    """A file's place, whatever way leads to its folder; links to one file, as stores of contents have, are several."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def _search(
    folder: Path, output_dir: str | os.PathLike | None, result: FoundImages
) -> tuple[list[tuple[Path, str]], list[Path]]:
    """Images below a folder with their names in it, and masks; notes the rest in `result`."""
    output = None if output_dir is None else os.path.realpath(output_dir)
    files: list[tuple[Path, str]] = []
    masks: list[Path] = []
    waiting = [folder]
    while waiting:
        root = waiting.pop(0)
        tree = FileTree(root, skip=[output] if output else [])
        masks_by_name = tree.masks()
        for name in tree.files:
            path = root / name
            inside = path.relative_to(folder)  # the folder may be of masks where `root` is not
            if name in masks_by_name or any(map(is_mask_folder, inside.parts[:-1])):
                masks.append(path)
            else:
                files.append((path, inside.as_posix()))
        for reason, names in tree.set_aside.items():
            paths = list(map(root.joinpath, names))
            if reason == UNLISTED:
                result.skipped += [{"path": str(path), "error": "the folder can't be listed"} for path in paths]
            elif reason == BAD_NAME:  # data sets can't hold such a name, records escape it
                waiting += [path for path in paths if path.is_dir() and os.path.realpath(path) != output]
                named = [path for path in paths if not path.is_dir() and path.suffix.lower() in IMAGE_SUFFIXES]
                files += [(path, path.relative_to(folder).as_posix()) for path in named]
            else:
                result.unused.setdefault(reason, []).extend(paths)
    if not files:
        beside = f" beside {len(masks)} masks" if masks else ""
        result.skipped.append({"path": str(folder), "error": f"the folder holds no image files{beside}"})
    return files, masks


def check_apart(sources: Iterable[Path], output_dir: str | os.PathLike) -> None:
    """Refuse inputs in the output folder, and an output folder with images of its own."""
    output = Path(os.path.realpath(output_dir))
    for source in sources:
        real = Path(os.path.realpath(source))
        if output in (real, *real.parents):
            raise ValueError(f"{source} lies in the output folder {output}; choose another output folder")
    if output.is_dir():
        images = [path.name for path in output.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
        if own := sorted(name for name in images if name != LEGEND and name[0] != "."):
            raise ValueError(f"the output folder {output} holds images of its own ({own[0]}); choose another one")


def unique_name(name: str, taken: set[str]) -> str:
    """The name, made safe part by part, and numbered if taken; capitals and ways to write an accent make no
    difference, as on some file systems."""
    name = "/".join(safe_name(part, also=_NAME_CHARACTERS) for part in name.split("/"))
    candidate, number = name, 1
    while (key := unicodedata.normalize("NFC", candidate).casefold()) in taken:
        number += 1
        path = Path(name)
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}").as_posix()
    taken.add(key)
    return candidate


def relative_names(paths: Sequence[str]) -> list[str]:
    """The paths from the folder that all of them lie in; safe to write below another folder, whatever they hold."""
    split = [[p for p in Path(path.replace("://", "/")).parts if p not in ("/", "\\", "..")] for path in paths]
    folders = [parts[:-1] for parts in split]
    shared = 0
    while folders and all(len(parts) > shared and parts[shared] == folders[0][shared] for parts in folders):
        shared += 1
    return ["/".join(parts[shared:]) or "image" for parts in split]
