"""Exports that are imported when first asked for, so that importing a package stays fast."""

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def find_export(package: str, where: Mapping[str, str], name: str) -> Any:
    """Attribute of a package that one of its modules defines; for a module-level `__getattr__`.

    Args:
        package (`str`): dotted name of the package.
        where (`Mapping[str, str]`): name of each export -> module of the package that defines it.
        name (`str`): the attribute asked for.

    Raises:
        AttributeError: if it is no export.
    """
    if name not in where:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{where[name]}", package), name)


def find_moved(old: str, new: str, name: str) -> Any:
    """Attribute of a module that another one has now, with a `FutureWarning` where a caller's caller asks for it.

    Args:
        old, new (`str`): dotted names of the module that had it, and of the one that has it.
        name (`str`): the attribute asked for.

    Raises:
        AttributeError: if there is none.
    """
    if name.startswith("_"):
        raise AttributeError(f"module {old!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(new), name)
    text = f"{old}.{name} is now {new}.{name}; the old name goes with the next release"
    warnings.warn(text, FutureWarning, stacklevel=3)
    return value


def moved_module(old: str, new: str) -> Callable[[str], Any]:
    """A module-level `__getattr__` that finds all names of a module in its new place, as [`find_moved`] does."""
    return lambda name: find_moved(old, new, name)
