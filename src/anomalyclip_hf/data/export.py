"""Any loaded set as a `datasets` repository: parquet with the pictures inside, and a card.

Image files go in byte for byte; masks as 0/255 PNGs already laid on their upright images, so that any reader of the
repository sees what this package saw, without its rules. The licence is what the source states, or "unknown".
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from .file_tree import examples, leaves_root
from .files import MAX_NAME, one_line
from .formats import is_dicom
from .images import open_image, read_bytes, read_mask, upright_size
from .loading import open_source, select_parts
from .metadata import ORIENTATION_TAG, orientation_of
from .options import SourceOptions, make_options
from .paint import fit_mask
from .records import Index

if TYPE_CHECKING:
    import datasets

    from .features import AnomalyImage

SHARD_BYTES = 300 * 1024 * 1024
ROWS_HELD = 16  # pictures in memory at a time
LICENSE_FILES = ("license", "license.txt", "license.md", "licence", "licence.txt", "readme.txt", "readme.md", "readme")
UNKNOWN_LICENSE = "unknown"
_SPLIT_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)  # part of file names; `datasets` reads no others
_LICENSE_ID = re.compile(r"[\w.+-]+", re.ASCII)
_SIGNATURE = "Images with anomaly labels and masks, written by `anomalyclip_hf`."


def export_dataset(
    dataset: datasets.Dataset | Mapping[str, datasets.Dataset],
    out: str | os.PathLike,
    *,
    push: bool = False,
    private: bool = True,
    license: str | None = None,
    license_note: str = "",
    title: str | None = None,
    notices: Sequence[str] = (),
    overwrite: bool = False,
) -> str:
    """Save a loaded data set as a `datasets` repository, or push it to the Hub.

    Args:
        dataset (`Dataset` or split -> `Dataset`): of the one schema, from `load_anomaly_dataset`.
        out: folder to write, or owner/name with `push`.
        push (`bool`): upload instead of keeping a folder; private unless `private` is False.
        license (`str`, *optional*): licence id of the Hub; what the data set's info states by default. Never guessed.
        license_note (`str`): what the card says of the licence.
        title (`str`, *optional*): name on the card.
        notices (paths): licence and readme files of the source, copied into `source/`.
        overwrite (`bool`): replace an existing folder.

    Returns:
        `str`: the folder, or the repository's address.

    Raises:
        FileExistsError: the folder is not empty and `overwrite` is off.
        ImageReadError: a file cannot be read; nothing is left behind.
        ValueError: a split's name is no plain name, too long or reserved, `license` no id, or the repository public
            but `private` on.
    """
    from huggingface_hub import HfApi

    parts = dict(dataset) if isinstance(dataset, Mapping) else {str(dataset.split or "test"): dataset}
    for split in parts:
        if not _SPLIT_NAME.fullmatch(split) or split.casefold() == "all" or len(split) > MAX_NAME:
            raise ValueError(
                f"the split {one_line(split[:40])!r} cannot be exported: its name becomes a file's, so it must be of "
                f"at most {MAX_NAME} letters, digits and _ (a-z, as in test or train_2), and not be 'all', which "
                "datasets keeps for all splits together; rename it in the source"
            )
    if license and not _LICENSE_ID.fullmatch(license):
        raise ValueError(f"license={license!r} is no id of the Hub, such as cc-by-4.0: put sentences in license_note")
    target = Path(out)
    parent = None if push else Path(os.path.abspath(target)).parent
    if parent is not None:
        _check_target(target, overwrite)
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=parent) as folder:
        content = Path(folder, "new")
        Path(content, "data").mkdir(parents=True)
        for split, part in parts.items():
            _write_split(split, part, content / "data", Path(folder, "packed.arrow"))
        info = next(iter(parts.values())).info
        stated = _line(info.license or "")
        if stated and not _LICENSE_ID.fullmatch(stated):  # a sentence, or the whole text
            license_note, stated = license_note or stated[:200], ""
        for notice in notices:
            Path(content, "source").mkdir(exist_ok=True)
            shutil.copyfile(notice, content / "source" / os.path.basename(notice))
        title = title or os.path.basename(os.path.abspath(target))
        card = make_card(title, parts, license or stated, license_note, info.homepage or "", notices)
        Path(content, "README.md").write_text(card, encoding="utf-8")
        if push:
            api = HfApi()
            url = api.create_repo(str(out), repo_type="dataset", private=private, exist_ok=True)
            if private and not api.repo_info(str(out), repo_type="dataset").private:
                raise ValueError(f"{out} exists and is public: push with --public (private=False), or to another name")
            message = "Add the data set and its card"
            api.upload_folder(repo_id=str(out), folder_path=content, repo_type="dataset", commit_message=message)
            return str(url)
        old = Path(folder, "old")
        if target.is_dir():
            os.replace(target, old)
        try:
            os.replace(content, target)
        except BaseException:
            if old.is_dir():
                os.replace(old, target)
            raise
    return os.fspath(out)


def export_source(
    source: Any,
    out: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    options: SourceOptions | None = None,
    **arguments: Any,
) -> str:
    """Export all splits of a source; arguments as in `load_anomaly_dataset` and `export_dataset`.

    Raises:
        ValueError: files are missing, or lie outside of the source behind links and `allow_outside` is off.
    """
    options = make_options(options)
    found = open_source(source, data_dir, options)
    if isinstance(found, Index):
        if found.outside and not options.allow_outside:
            raise ValueError(
                f"{len(found.outside)} files lie outside of {found.root}, behind links or by their paths "
                f"({examples(found.outside)}): an export would hold copies of them. If you mean to share them, say so "
                "with allow_outside=True"
            )
        found.check()
        arguments.setdefault("notices", _notices(found.root))
        if found.layout is not None:
            arguments.setdefault("title", found.layout.title)
            arguments.setdefault("license_note", found.layout.license_note)
    parts = select_parts(found, "all", options.class_names)
    return export_dataset({split: part for split, part in parts.items() if len(part)}, out, **arguments)


def make_card(
    title: str,
    parts: Mapping[str, datasets.Dataset],
    license: str,
    license_note: str = "",
    home_page: str = "",
    notices: Sequence[str] = (),
) -> str:
    """The repository's README.md: where it comes from, what is in it, and the licence as the source states it."""
    from huggingface_hub import DatasetCardData

    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in parts]
    facts = DatasetCardData(
        license=license or UNKNOWN_LICENSE,
        pretty_name=_line(title),
        task_categories=["image-classification", "image-segmentation"],
        tags=["anomaly-detection", "anomalyclip_hf"],
        configs=[{"config_name": "default", "data_files": files}],
    )
    classes = sorted({_line(name) for part in parts.values() for name in part.unique("class_name")})
    copied = [f"`source/{os.path.basename(notice)}`" for notice in notices]
    lines = [
        "---",
        facts.to_yaml(),
        "---",
        f"# {_line(title)}",
        "",
        _SIGNATURE,
        "",
        "| split | images |",
        "|---|---|",
        *(f"| {split} | {len(part)} |" for split, part in parts.items()),
        "",
        f"Classes: {', '.join(classes)}.",
        "",
        "Columns: `image`; `mask` (255 anomalous, 0 not; null where there is none); `label` (0 normal, 1 anomalous);",
        "`class_name`; `defect_type`; `path` (in the source).",
        "",
        "```python",
        "from anomalyclip_hf.data import load_anomaly_dataset",
        f'dataset = load_anomaly_dataset("PATH_OR_REPOSITORY", split="{next(iter(parts))}")',
        "```",
        "",
        "## Source and license",
        "",
        f"Source: {_line(home_page) or 'not stated'}.",
        f"License: {license or 'not stated by the source. Find out before you share it'}.",
        *([f"Note: {_line(license_note)}."] if license_note else []),
        *([f"The source's own notices: {', '.join(copied)}."] if copied else []),
        "Changed here: packed into parquet; masks written again as 0/255 PNG files, turned with their images.",
        "",
    ]
    return "\n".join(lines)


def _check_target(target: Path, overwrite: bool) -> None:
    """Replace nothing but an earlier export, and that only when asked to."""
    if not target.is_dir() or not any(target.iterdir()):
        return
    card = target / "README.md"
    mine = card.is_file() and _SIGNATURE in card.read_text(encoding="utf-8", errors="replace")
    if not overwrite or not mine:
        advice = "overwrite=True replaces it" if mine else "it is no earlier export, so it is never replaced"
        raise FileExistsError(f"{target} is not empty: choose another folder ({advice})")


def _write_split(split: str, dataset: datasets.Dataset, folder: Path, packed: Path) -> None:
    """Write parquet shards of one split; few pictures are held in memory, the rest in a file on the way."""
    import datasets

    from .features import undecoded

    features = datasets.Features({**dataset.features, "image": datasets.Image(), "mask": datasets.Image()})
    facts = {
        "image": dataset.features["image"],
        "threshold": dataset.features["mask"].mask_threshold,
        "root": _common_folder(dataset["path"]),
    }
    table = undecoded(dataset).map(
        _pack,
        fn_kwargs=facts,
        features=features,
        cache_file_name=str(packed),
        writer_batch_size=ROWS_HELD,
        desc=f"export {split}",
    )
    shards = min(len(table), -(-table.data.nbytes // SHARD_BYTES))
    for number in range(shards):
        shard = table.shard(shards, number, contiguous=True)
        shard.to_parquet(folder / f"{split}-{number:05d}-of-{shards:05d}.parquet", batch_size=ROWS_HELD)
    packed.unlink()


def _pack(row: dict[str, Any], image: AnomalyImage, threshold: int | None, root: str) -> dict[str, Any]:
    """A row of `undecoded` with its image's bytes, and its mask as a PNG on the upright image."""
    path = os.path.relpath(row["path"], root).replace(os.sep, "/") if root else row["path"]
    name = os.path.basename(path)
    shown = image.decode_example(row["image"])  # a broken file must stop the export, not its readers
    content = read_bytes(row["image"])
    packed_image = {"bytes": content, "path": name}
    if is_dicom(io.BytesIO(content)):  # it says whose image it is: its pixels alone go out
        shown.save(pixels := io.BytesIO(), "PNG")
        packed_image = {"bytes": pixels.getvalue(), "path": f"{name}.png"}
    if row["mask"] is None:
        return {**row, "image": packed_image, "path": path}
    mask = read_mask(row["mask"], threshold, row["mask"]["turn"])
    opened = open_image(row["image"], image.window, image.channels)
    more: dict[str, Any] = {}
    if orientation_of(opened) != 1:  # says that the mask is upright already, or its reader would have to guess
        more["exif"] = Image.Exif()
        more["exif"][ORIENTATION_TAG] = 1
    buffer = io.BytesIO()
    fit_mask(mask, upright_size(opened), f"of {path}").save(buffer, "PNG", **more)
    packed = {"bytes": buffer.getvalue(), "path": f"{os.path.splitext(name)[0]}_mask.png"}
    return {**row, "image": packed_image, "mask": packed, "path": path}


def _common_folder(paths: Sequence[str]) -> str:
    """The folder all paths share, so that no one's home folder ends up in the export; "" for relative names."""
    paths = list(paths)
    if not paths or not all(os.path.isabs(path) for path in paths):
        return ""
    return os.path.commonpath([os.path.dirname(path) for path in paths])


def _notices(root: str) -> tuple[str, ...]:
    inside = {name.casefold(): name for name in os.listdir(root)} if os.path.isdir(root) else {}
    found = dict.fromkeys(inside[name] for name in LICENSE_FILES if name in inside)
    links = [name for name in found if not os.path.isfile(os.path.join(root, name)) or leaves_root(root, name)]
    if links:
        warnings.warn(f"{', '.join(links)} not copied: no file, or a link that leads out of {root}", stacklevel=3)
    return tuple(os.path.join(root, name) for name in found if name not in links)


def _line(text: str) -> str:
    """Text from a source as one line of the card, without control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
