"""What options hold is checked before anything is loaded: ranges, files, sources and folders for results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..data.files import SHEET_NOTE
from ..data.reader import split_page
from ..options_anomalyclip import OPTION_RULES, expected, follows
from .options import option_fields


def check_settings(settings: Any) -> None:
    """Refuse what an option can't hold, by its field's `rule` or the one of `OPTION_RULES` for its name.

    Args:
        settings: an instance of a command's dataclass.

    Raises:
        ValueError: a value out of its range.
        OSError: a file or source that isn't there, or results where no folder can be.
    """
    for name, (field, _) in option_fields(type(settings)).items():
        value = getattr(settings, name)
        rule = field.metadata.get("rule", OPTION_RULES.get(name))
        if rule is None or value is None or value == []:
            continue
        if isinstance(rule, str):
            label = "" if field.metadata.get("argument") else f"{name}="
            CHECKS[rule](label, value if isinstance(value, list) else [value])
        elif not follows(value, rule):
            raise ValueError(f"{name}={value!r}, expected {expected(rule)}")


def _check_paths(label: str, values: list[str]) -> None:
    """One of several is enough: the others are skipped, and listed."""
    files = [value for value in values if "://" not in value and not value.lstrip().startswith("[")]  # no polygon
    if files == values and not any(os.path.lexists(split_page(value)[0]) for value in values):
        raise FileNotFoundError(f"{label}{', '.join(values)!r}: no such file or folder")


def check_sources(values: Iterable[str]) -> None:
    """Refuse what can't be a source: SOURCE, NAME=SOURCE or "synthetic".

    Raises:
        FileNotFoundError: it is no file or folder, and no name of a data set or repository.
    """
    from ..data.loading import check_source

    for value in values:
        _, is_named, folder = value.partition("=")
        if value != "synthetic":
            check_source(folder if is_named and not os.path.exists(value) else value)


def _check_folders(label: str, values: list[str]) -> None:
    for value in values:
        there = next(path for path in (Path(value), *Path(os.path.abspath(value)).parents) if os.path.lexists(path))
        if not there.is_dir():
            raise NotADirectoryError(f"{label}{value!r}, expected a folder, but {there} is a file")


def _check_files(label: str, values: list[str]) -> None:
    """What is there already and no earlier file of its kind, such as an image of the data, is not replaced."""
    for value in filter(os.path.lexists, values):
        if os.path.isdir(value):
            raise IsADirectoryError(f"{label}{value!r} is a folder but a file is to be written there: name the file")
        with open(value, "rb") as file:
            start = file.read(512)
        if start[:1] not in (b"", b"{", b"[") and SHEET_NOTE.encode() not in start:
            raise FileExistsError(
                f"{label}{value!r} is another file, which would be replaced: name one that isn't there"
            )


# The first: files that have to be there. The last two: where results go.
CHECKS: dict[str, Callable[[str, list[str]], None]] = {
    "path": _check_paths,
    "source": lambda label, values: check_sources(values),
    "folder": _check_folders,
    "file": _check_files,
}
