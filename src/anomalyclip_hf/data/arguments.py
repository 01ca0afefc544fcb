"""The flags that describe a source, for every script that takes data."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import fields
from typing import Any

from .options import SourceOptions, parse_options

_COLUMNS = ("image_column", "mask_column", "label_column", "class_column", "defect_column", "split_column")
_NAMES = ("kind", "class_names", "normal_kinds", "normal_labels", "mask_threshold", "revision", "allow_outside")
__all__ = ["SOURCE_ARGUMENTS", "add_source_arguments", "parse_options", "source_arguments", "split_options"]
SOURCE_ARGUMENTS = (*_NAMES, *_COLUMNS)


def add_source_arguments(parser: argparse._ActionsContainer, skip: Collection[str] = ()) -> None:
    """Add `--data_dir`, `--kind`, the columns and the rest; `source_arguments` reads them back.

    Args:
        parser: a parser or a group of one.
        skip: names that the parser has already, or shall not have.
    """

    def add(name: str, **settings: Any) -> None:
        if name not in skip:
            parser.add_argument(f"--{name}", **settings)

    add("data_dir", help="unpacked archive of a named data set, or where a table's paths start")
    add("kind", help="folder, tree, table, meta or datasets instead of looking")
    add("class_names", nargs="+", metavar="NAME", help="only these classes")
    add("normal_kinds", nargs="*", metavar="NAME", help="folder names that mean normal")
    add("normal_labels", nargs="+", metavar="VALUE", help="label values that mean normal")
    add("mask_threshold", type=int, help="largest mask value that is background, 0 to 254")
    add("allow_outside", action="store_true", help="read files that a table names outside of its folder or data_dir")
    add("revision", help="revision of a repository on the Hub")
    for name in _COLUMNS:
        add(name, metavar="COLUMN", help=f"name of the {name.replace('_', ' ')}")


def source_arguments(parsed: Any) -> dict[str, Any]:
    """Those flags as arguments of `load_anomaly_dataset`, beside the source and `data_dir`; absent ones left out."""
    given = {name: getattr(parsed, name, None) for name in SOURCE_ARGUMENTS}
    return {name: value for name, value in given.items() if value is not None and value is not False}


def split_options(options: dict[str, Any], drawn: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part what `load_anomaly_dataset` takes from what is for drawings.

    Args:
        options: as of `parse_options`.
        drawn: whether there is a drawn source, which itself refuses what it doesn't take.

    Raises:
        ValueError: there is none, and `load_anomaly_dataset` has no such argument.
    """
    known = [field.name for field in fields(SourceOptions) if field.name != "data_dir"] + ["streaming"]
    others = {name: value for name, value in options.items() if name not in known}
    if others and not drawn:
        raise ValueError(f"no option of a source is called {', '.join(others)}: expected one of {', '.join(known)}")
    return {name: value for name, value in options.items() if name in known}, others
