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
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image

from ..images_anomalyclip import ORIENTATION_TAG
from .file_tree import examples, leaves_root
from .indexing import Index
from .inspect import raw_rows
from .loading import SourceOptions, open_source, records_to_dataset
from .masks import MaskRule, fit_mask, open_image, orientation_of, read_image, read_mask, upright_size

SHARD_BYTES = 300 * 1024 * 1024
ROWS_HELD, BYTES_HELD = 64, 64 * 1024 * 1024  # of pictures in memory at a time
LICENSE_FILES = ("license", "license.txt", "license.md", "licence", "licence.txt", "readme.txt", "readme.md", "readme")
UNKNOWN_LICENSE = "unknown"
_SPLIT_NAME = re.compile(r"\w+([.-]\w+)*", re.ASCII)  # part of file names; `datasets` reads no others
_LICENSE_ID = re.compile(r"[\w.+-]+", re.ASCII)
_SIGNATURE = "Images with anomaly labels and masks, written by `anomalyclip_hf`."


def export_dataset(
    dataset: Any,
    out: str | os.PathLike,
    *,
    push: bool = False,
    private: bool = True,
    license: str | None = None,
    license_note: str = "",
    title: str | None = None,
    notices: tuple[str, ...] = (),
    overwrite: bool = False,
    progress: bool = True,
    token: str | None = None,
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
        progress (`bool`): show a bar.
        token (`str`, *optional*): for the Hub.

    Returns:
        `str`: the folder, or the repository's address.

    Raises:
        FileExistsError: the folder is not empty and `overwrite` is off.
        ImageReadError: a file cannot be read; nothing is left behind.
        ValueError: a split's name is no plain name, or `license` no id.
    """
    parts = dict(dataset) if isinstance(dataset, Mapping) else {str(dataset.split or "test"): dataset}
    for split in parts:
        if not _SPLIT_NAME.fullmatch(split):
            raise ValueError(
                f"the split {split!r} cannot be exported: its name becomes a file's, so it must consist of letters, "
                "digits and _ (a-z, as in test or train_2); rename it in the source"
            )
    if license and not _LICENSE_ID.fullmatch(license):
        raise ValueError(f"license={license!r} is no id of the Hub, such as cc-by-4.0: put sentences in license_note")
    target = os.fspath(out)
    title = title or os.path.basename(os.path.abspath(target))
    parent = None if push else (os.path.dirname(os.path.abspath(target)))
    if not push:
        _check_target(target, overwrite)
        os.makedirs(parent or ".", exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=".export-", dir=parent)
    try:
        os.chmod(temporary, 0o755)
        counts = {split: _write_split(split, part, temporary, progress) for split, part in parts.items()}
        first = next(iter(parts.values()))
        stated = _line(first.info.license or "")
        license = license or (stated if _LICENSE_ID.fullmatch(stated) else None)
        if stated and not _LICENSE_ID.fullmatch(stated):  # a sentence, or the whole text
            license_note = license_note or stated[:200]
        if notices:
            os.makedirs(os.path.join(temporary, "source"))
        for notice in notices:
            shutil.copyfile(notice, os.path.join(temporary, "source", os.path.basename(notice)))
        card = make_card(title, parts, counts, license, license_note, first.info.homepage or "", notices)
        with open(os.path.join(temporary, "README.md"), "w", encoding="utf-8") as file:
            file.write(card)
        if push:
            return _upload(temporary, target, private, token)
        old = tempfile.mkdtemp(prefix=".export-old-", dir=parent)
        if os.path.isdir(target):
            os.replace(target, os.path.join(old, "old"))
        os.replace(temporary, target)
        shutil.rmtree(old)
        return target
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def export_source(
    source: Any,
    out: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    *,
    kind: str | None = None,
    options: SourceOptions | None = None,
    **arguments: Any,
) -> str:
    """Export all splits of a source; arguments as in `load_anomaly_dataset` and `export_dataset`.

    Raises:
        ValueError: files are missing, or lie outside of the source behind links and `allow_outside` is off.
    """
    options = options or SourceOptions()
    found = open_source(source, data_dir, options, kind=kind)
    if isinstance(found, Index):
        if found.missing:
            raise ValueError(f"{len(found.missing)} files named by {found.form} do not exist, e.g. {found.missing[0]}")
        if found.outside and not options.allow_outside:
            raise ValueError(
                f"{len(found.outside)} files lie outside of {found.root}, behind links or by their paths "
                f"({examples(found.outside)}): an export would hold copies of them. If you mean to share them, say so "
                "with allow_outside=True"
            )
        if remarks := found.remarks():
            warnings.warn(f"{found.root}: {'; '.join(remarks)}", stacklevel=2)
        records = [r for r in found.records if not options.class_names or r.class_name in options.class_names]
        splits = list(dict.fromkeys(record.split for record in records))
        parts: Any = {s: records_to_dataset(found, [r for r in records if r.split == s]) for s in splits}
        row = found.layout
        arguments.setdefault("notices", _notices(found.root))
        if row is not None:
            arguments.setdefault("title", row.title)
            arguments.setdefault("license_note", row.license_note)
    else:
        parts = found
        if options.class_names:
            wanted = set(options.class_names)
            parts = {s: p.filter(wanted.__contains__, input_columns="class_name") for s, p in parts.items()}
    parts = {split: part for split, part in parts.items() if len(part)}
    if not parts:
        raise ValueError(f"nothing to export: {source!r} has no images of the classes {options.class_names}")
    return export_dataset(parts, out, **arguments)


def make_card(
    title: str,
    parts: Mapping[str, Any],
    counts: Mapping[str, int],
    license: str | None,
    license_note: str = "",
    home_page: str = "",
    notices: tuple[str, ...] = (),
) -> str:
    """The repository's README.md: where it comes from, what is in it, and the licence as the source states it."""
    files = "\n".join(f"  - split: {split}\n    path: data/{split}-*.parquet" for split in counts)
    classes = sorted({_line(name) for part in parts.values() for name in part.unique("class_name")})
    copied = [f"`source/{os.path.basename(notice)}`" for notice in notices]
    lines = [
        "---",
        f"license: {license or UNKNOWN_LICENSE}",
        f"pretty_name: {_quoted(title)}",
        "task_categories:\n- image-classification\n- image-segmentation",
        "tags:\n- anomaly-detection\n- anomalyclip_hf",
        f"configs:\n- config_name: default\n  data_files:\n{files}",
        "---",
        f"# {_line(title)}",
        "",
        _SIGNATURE,
        "",
        "| split | images |",
        "|---|---|",
        *(f"| {split} | {number} |" for split, number in counts.items()),
        "",
        f"Classes: {', '.join(classes)}.",
        "",
        "Columns: `image`; `mask` (255 anomalous, 0 not; null where there is none); `label` (0 normal, 1 anomalous);",
        "`class_name`; `defect_type`; `path` (in the source).",
        "",
        "```python",
        "from anomalyclip_hf.data import load_anomaly_dataset",
        f'dataset = load_anomaly_dataset("PATH_OR_REPOSITORY", split="{next(iter(counts))}")',
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


def _check_target(target: str, overwrite: bool) -> None:
    """Replace nothing but an earlier export, and that only when told to."""
    if not os.path.isdir(target) or not os.listdir(target):
        return
    card = os.path.join(target, "README.md")
    mine = False
    if os.path.isfile(card):
        with open(card, encoding="utf-8", errors="replace") as file:
            mine = _SIGNATURE in file.read()
    if not overwrite or not mine:
        advice = "overwrite=True replaces it" if mine else "it is no earlier export, so it is never replaced"
        raise FileExistsError(f"{target} is not empty: choose another folder ({advice})")


def _write_split(split: str, dataset: Any, folder: str, progress: bool) -> int:
    """Write parquet shards of one split; one row group of pictures is held in memory."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tqdm.auto import tqdm

    features = datasets.Features({**dataset.features, "image": datasets.Image(), "mask": datasets.Image()})
    schema = features.arrow_schema
    data = os.path.join(folder, "data")
    os.makedirs(data, exist_ok=True)
    shards: list[str] = []
    writer, written = None, 0
    for rows in _chunks(
        tqdm(_encoded_rows(dataset), total=len(dataset), desc=f"export {split}", disable=not progress)
    ):
        if writer is None or written > SHARD_BYTES:
            if writer is not None:
                writer.close()
            shards.append(os.path.join(data, f"{split}-{len(shards):05d}.parquet"))
            writer, written = pq.ParquetWriter(shards[-1], schema), 0
        table = pa.Table.from_pylist(rows, schema=schema)
        writer.write_table(table)
        written += table.nbytes
    if writer is not None:
        writer.close()
    for number, shard in enumerate(shards):
        os.replace(shard, os.path.join(data, f"{split}-{number:05d}-of-{len(shards):05d}.parquet"))
    return len(dataset)


def _encoded_rows(dataset: Any) -> Iterator[dict]:
    raw = raw_rows(dataset)
    feature = raw.features["mask"]
    rule = MaskRule(feature.threshold, feature.jpeg_threshold)
    root = _common_folder(dataset["path"])
    for row in raw:
        path = os.path.relpath(row["path"], root).replace(os.sep, "/") if root else row["path"]
        read_image(row["image"])  # a broken file must stop the export, not its readers
        image = {"bytes": _bytes_of(row["image"]), "path": os.path.basename(path)}
        yield {**row, "image": image, "mask": _mask_png(row, rule, path), "path": path}


def _mask_png(row: dict, rule: MaskRule, path: str) -> dict | None:
    if row["mask"] is None:
        return None
    mask = read_mask(row["mask"], rule, row["mask"]["turn"])
    opened = open_image(row["image"])
    more: dict[str, Any] = {}
    if orientation_of(opened) != 1:  # says that the mask is upright already, or its reader would have to guess
        more["exif"] = Image.Exif()
        more["exif"][ORIENTATION_TAG] = 1
    buffer = io.BytesIO()
    fit_mask(mask, upright_size(opened), f"of {path}").save(buffer, "PNG", **more)
    return {"bytes": buffer.getvalue(), "path": f"{os.path.splitext(os.path.basename(path))[0]}_mask.png"}


def _bytes_of(cell: Mapping) -> bytes:
    if cell["bytes"] is not None:
        return cell["bytes"]
    with open(cell["path"], "rb") as file:
        return file.read()


def _chunks(rows: Any) -> Iterator[list[dict]]:
    held: list[dict] = []
    size = 0
    for row in rows:
        held.append(row)
        size += len(row["image"]["bytes"])
        if len(held) >= ROWS_HELD or size >= BYTES_HELD:
            yield held
            held, size = [], 0
    if held:
        yield held


def _common_folder(paths: Any) -> str:
    """The folder all paths share, so that no one's home folder ends up in the export; "" for relative names."""
    paths = list(paths)
    if not paths or not all(os.path.isabs(path) for path in paths):
        return ""
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return folder


def _notices(root: str) -> tuple[str, ...]:
    inside = {name.casefold(): name for name in os.listdir(root)} if os.path.isdir(root) else {}
    found = dict.fromkeys(inside[name] for name in LICENSE_FILES if name in inside)
    links = [name for name in found if not os.path.isfile(os.path.join(root, name)) or leaves_root(root, name)]
    if links:
        warnings.warn(f"{', '.join(links)} not copied: no file, or a link that leads out of {root}", stacklevel=3)
    return tuple(os.path.join(root, name) for name in found if name not in links)


def _upload(folder: str, repository: str, private: bool, token: str | None) -> str:
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    url = api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repository, folder_path=folder, repo_type="dataset", commit_message="Add the data set and its card"
    )
    return str(url)


def _quoted(text: str) -> str:
    escaped = _line(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _line(text: str) -> str:
    """Text from a source as one line of the card, without control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
