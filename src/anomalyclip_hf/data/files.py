"""Writing files whole or not at all, under names that are safe."""

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import SAMPLEFORMAT

MAP_SUFFIXES = {"npy": ".npy", "png16": ".png", "png": ".png", "tiff": ".tiff"}  # format of a map -> suffix
MAP_FORMATS = tuple(MAP_SUFFIXES)
MAX_NAME = 120  # bytes of a name made from data: file systems take 255, of which suffixes need some
SHEET_NOTE = "contact sheet of anomalyclip_hf"  # written into its file, by which it is known from images
_TEMPORARY = re.compile(r"\..*\.(\d+)-[^.]{8}\.part(\.[^.]+)?", re.DOTALL)


def one_line(text: Any) -> str:
    """Text from data as one printable line; line breaks, control characters and broken UTF-8 are escaped."""
    text = str(text)
    return text if text.isprintable() else "".join(map(_escape, text))


def count_of(number: int, noun: str) -> str:
    """A number of things in words: "1 image", "2 images"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _escape(letter: str) -> str:
    if letter.isprintable():
        return letter
    if "\udc80" <= letter <= "\udcff":  # how Python keeps a byte of a name that is not UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside `path`, with its suffix, and put it in place if the block succeeds.

    Raises:
        IsADirectoryError: `path` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"path={str(target)!r} is a folder but a file is to be written there: name the file")
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.stem[:32]}.{os.getpid()}-"  # the process is named for `remove_leftovers`
    temporary = target.parent / f"{prefix}{secrets.token_hex(4)}.part{target.suffix}"
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file whole or not at all; what is no Unicode in it is escaped."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike, fields: Any) -> None:
    """Write fields as JSON that people can read, whole or not at all."""
    write_text(path, json.dumps(fields, indent=2, ensure_ascii=False) + "\n")


def remove_leftovers(folder: str | os.PathLike, *subfolders: str) -> None:
    """Remove the temporary files of killed runs: those of `atomic_path` whose process is gone.

    Args:
        folder: searched itself, without what lies below.
        subfolders: names of folders in it that are searched as a whole.
    """
    import psutil

    places = [Path(folder).glob(".*.part*"), *(Path(folder, name).rglob(".*.part*") for name in subfolders)]
    for path in (path for found in places for path in found):
        made_by = _TEMPORARY.fullmatch(path.name)
        if made_by is None or not path.is_file():
            continue
        try:
            gone = psutil.Process(int(made_by[1])).create_time() > path.stat().st_mtime  # the number is another's now
        except psutil.NoSuchProcess:
            gone = True
        except (psutil.Error, OSError, OverflowError):
            continue
        if gone:
            path.unlink(missing_ok=True)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of writing one file will meet every other file too."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def json_line(record: Any) -> str:
    """A record as one line of JSON that any reader splits in the right places and decodes as UTF-8."""
    text = json.dumps(record, ensure_ascii=False)
    return (text if text.isprintable() else json.dumps(record)) + "\n"


def read_lines(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """The lines of a file that are JSON objects, one at a time; one that was cut off is passed over."""
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def safe_name(name: str, also: str = "-_") -> str:
    """A name that is safe as a file's, of at most `MAX_NAME` bytes, and different for different names.

    Args:
        name: any text; letters and digits stay, others become "_".
        also: characters that stay too.
    """
    plain = "".join(letter if letter.isalnum() or letter in also else "_" for letter in name)
    if plain == name and name.strip(". ") and len(name.encode()) <= MAX_NAME:
        return name
    kept = plain.strip(". ").encode()[: MAX_NAME - 9].decode(errors="ignore")
    return f"{kept}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def check_name(name: str, what: str) -> str:
    """Return a name of the user's that is to be a folder of the output, if it is a name and no path.

    Raises:
        ValueError: it is empty, ".", "..", longer than `MAX_NAME` bytes, or holds a separator or a control character;
            `what` says whose name it is.
    """
    separators = any(letter in name for letter in "/\\")
    if separators or not name.strip(". ") or not name.isprintable() or len(name.encode()) > MAX_NAME:
        raise ValueError(
            f"{what} {one_line(name)!r} can't name a folder of the results: expected a plain name such as 'parts', "
            f"without / or \\, of at most {MAX_NAME} bytes"
        )
    return name


def save_map(anomaly_map: np.ndarray, path: str | os.PathLike) -> None:
    """Write a map in [0, 1] as 16-bit PNG (65535 is 1.0), float32 `.npy` or float16 TIFF, by the path's suffix."""
    with atomic_path(path) as temporary:
        if temporary.suffix == ".npy":
            np.save(temporary, anomaly_map.astype(np.float32), allow_pickle=False)
        elif temporary.suffix == ".tiff":
            halves = np.ascontiguousarray(anomaly_map, "<f2")
            picture = Image.frombytes("I;16", halves.shape[::-1], halves.tobytes())
            picture.save(temporary, compression="tiff_deflate", tiffinfo={SAMPLEFORMAT: 3})  # the bits are of floats
        else:
            levels = np.rint(np.clip(anomaly_map, 0.0, 1.0) * 65535.0).astype(np.uint16)
            Image.fromarray(levels).save(temporary)
