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


def find_moved(package: str, where: Mapping[str, str], name: str) -> Any:
    """Attribute of a package that has moved to another one, with a `FutureWarning`.

    Args:
        package (`str`): dotted name of the package that had it.
        where (`Mapping[str, str]`): name of each export -> dotted name of the package that has it now.
        name (`str`): the attribute asked for, a key of `where`.
    """
    text = f"{package}.{name} has moved: import it from {where[name]}; the old name goes with the next release"
    warnings.warn(text, FutureWarning, stacklevel=3)
    return getattr(importlib.import_module(where[name]), name)


def moved_module(old: str, new: str) -> Callable[[str], Any]:
    """A module-level `__getattr__` that finds the names of a module in its new place, with a `FutureWarning`.

    Args:
        old, new (`str`): dotted names of the module that was, and of the one that is.
    """

    def find(name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(new), name)
        warnings.warn(f"{old} is called {new}; the old name goes with the next release", FutureWarning, stacklevel=2)
        return value

    return find
