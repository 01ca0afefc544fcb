"""What options of a call and settings of an image processor may hold, and the way to what does not travel.

Importing this needs numpy only: what scores without torch checks its options too.
"""

import importlib
from collections.abc import Hashable
from types import ModuleType
from typing import Any

import numpy as np

# What a field may hold, in one of these forms: a range of whole numbers; a pair of numbers, from .. to; a set of
# values; a type; the number of values that each have to lie in such a pair; None = the field is refused.
Rule = range | tuple[float, float] | frozenset | type | list | None

# How an image's score comes from P(anomalous) of the image and from its map; see the processor.
SCORE_RULES = ("global", "max", "mean")
OUTPUT_KINDS = ("all", "score", "maps")  # what is computed of an image
WITH_REFERENCES = " with references"
# Options by what they are about: where images come from, how they are resized, and what is called anomalous.
READING = ("window", "channels")
RESIZING = ("resize", "tile_size", "overlap")
THRESHOLDS = ("image_threshold", "pixel_threshold")
ADDRESSES = ("http://", "https://", "data:")
DOWNLOAD_TIMEOUT, DOWNLOAD_BYTES = 30.0, 100_000_000  # seconds and bytes, of an address
SCORE, SIDE, SIZE = (0.0, 1.0), range(1, 16385), range(1, 65537)

OPTION_RULES: dict[str, Rule] = {
    **dict.fromkeys(THRESHOLDS, SCORE),
    # Wide enough for values in [0, 1] and in 0 .. 255, too narrow for numbers that overflow.
    "image_mean": [(-1000.0, 1000.0)] * 3,
    "image_std": [(1e-3, 1000.0)] * 3,
    "rescale_factor": (1e-6, 256.0),
    "resample": range(6),
    "resize": frozenset(("square", "fit", "tile")),
    "tile_size": SIZE,
    "patch_size": SIDE,
    "overlap": (0.0, 0.9),
    "min_area": range(1, 2**40),
    "score_rule": frozenset(SCORE_RULES),
    "outputs": frozenset(OUTPUT_KINDS),
    "reference_weight": (0.0, 1000.0),
    "sigma": (0.0, 16384.0),
    "timeout": (1e-6, float("inf")),
    "max_bytes": range(1, 2**60),
    **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "default_to_square"), bool),
}


def follows(value: Any, rule: Rule) -> bool:
    """Whether a value is one that a rule allows."""
    if isinstance(rule, range):
        return type(value) is int and value in rule
    if isinstance(rule, tuple):
        is_number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
        return is_number and bool(rule[0] <= value <= rule[1])
    if isinstance(rule, list):
        values = value if isinstance(value, list | tuple) else [value] * len(rule)
        return len(values) == len(rule) and all(map(follows, values, rule))
    if isinstance(rule, frozenset):
        return isinstance(value, Hashable) and value in rule
    return rule is not None and isinstance(value, rule)


def expected(rule: Rule) -> str:
    """What a rule allows, in words."""
    if isinstance(rule, range):
        return f"a whole number in {rule.start}..{rule.stop - 1}"
    if rule == SCORE:
        return "a score in [0, 1] or None"
    if isinstance(rule, tuple):
        return f"a number in {rule[0]:g}..{rule[1]:g}"
    if isinstance(rule, list):
        return f"{expected(rule[0])}, or {len(rule)} of them"
    if isinstance(rule, frozenset):
        return f"one of {sorted(map(str, rule))}"
    if rule is bool:
        return "true or false"
    return f"a {rule.__name__}" if rule else "no such field, no configuration of this model has it; remove it"


def check_options(values: dict[str, Any]) -> None:
    """Refuse options out of their range; None leaves an option out.

    Args:
        values (`dict`): options by name, of `OPTION_RULES`.

    Raises:
        ValueError: naming the option, its value and what is expected.
    """
    for name, value in values.items():
        if value is not None and not follows(value, OPTION_RULES[name]):
            raise ValueError(f"{name}={value!r:.100}, expected {expected(OPTION_RULES[name])}")


def installed(module: str) -> ModuleType:
    """A module of the installed package, of those that do not travel with checkpoints (`trust_remote_code`).

    Raises:
        ModuleNotFoundError: if the package isn't installed.
        ImportError: if it is, in a version without the module.
    """
    try:
        return importlib.import_module(f"anomalyclip_hf.{module}")
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != "anomalyclip_hf":
            raise
        absent = error.name == "anomalyclip_hf"
        kind, advice = (ModuleNotFoundError, "") if absent else (ImportError, " -U, for the one installed lacks it")
        raise kind(
            f"this needs {module.replace('.', '/')} of the package, which does not travel with a checkpoint: "
            f"pip install anomalyclip_hf{advice}"
        ) from error


def if_installed(module: str) -> ModuleType | None:
    """As [`installed`], but None without the package: code of a checkpoint then does with less."""
    try:
        return installed(module)
    except ModuleNotFoundError:
        return None
