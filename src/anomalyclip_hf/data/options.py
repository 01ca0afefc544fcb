"""Settings as dataclass fields that the command line can show."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

from ..options_anomalyclip import Rule
from .pixels import check_channels, check_window

KINDS = ("folder", "datasets")


def option(
    default: Any,
    help: str,
    *,
    short: str | None = None,
    group: str | None = None,
    argument: bool = False,
    bare: str | None = None,
    rule: Rule | str = None,
) -> Any:
    """A dataclass field with what `anomalyclip --help` says of it.

    Args:
        default: value where the option is absent; a list is copied.
        help (`str`): what it sets, its unit and range.
        short (`str`, *optional*): one letter, such as `"o"` for `-o`.
        group (`str`, *optional*): heading that it stands below in `--help`.
        argument (`bool`): given without the option's name, such as the files of `anomalyclip predict`.
        bare (`str`, *optional*): value where the option is given without one.
        rule (*optional*): what it may hold on the command line; also "path" (of files that are there), "source" (of
            images) or "folder" (for results).
    """
    facts = {"help": help, "short": short, "group": group, "argument": argument, "bare": bare, "rule": rule}
    metadata = {name: value for name, value in facts.items() if value}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass
class ResizingOptions:
    """How images become the model's input; None leaves a setting as the checkpoint's processor has it."""

    resize: str | None = option(
        None,
        "'square', 'fit' (keeps the ratio of the sides) or 'tile' (small defects in large images).",
        group="Model",
    )
    tile_size: int | None = option(
        None, "Side of a tile in pixels of the image; the model's input size by default.", group="Model"
    )
    overlap: float | None = option(
        None, "Share of a tile that its neighbour covers too, in [0, 0.9]; 0.25 by default.", group="Model"
    )

    def resizing(self) -> dict[str, Any]:
        """The fields that are set, by name.

        Raises:
            ValueError: tiles are described, but `resize` isn't 'tile'.
        """
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(ResizingOptions)}
        given = {name: value for name, value in given.items() if value is not None}
        for name in ("tile_size", "overlap"):
            if name in given and self.resize not in (None, "tile"):
                raise ValueError(f"{name}={given[name]} with resize={self.resize!r}; only resize='tile' has tiles")
        return given


@dataclasses.dataclass
class ProfileOptions:
    """What counts in an image, and the profile that says so for a product.

    Raises:
        ValueError: `roi` is no path and no polygon.
    """

    profile: str | None = option(None, "Settings of one product, kept beside the prompts.", group="Regions")
    min_area: int | None = option(None, "Regions of fewer pixels of the image don't count.", group="Regions")
    roi: str | None = option(
        None,
        "Mask image, or '[[x, y], ...]' in pixels: outside it there are no regions.",
        group="Regions",
        rule="path",
    )

    def region_options(self) -> dict[str, Any]:
        """The options of a call that are set."""
        given: dict[str, Any] = {"min_area": self.min_area, "roi": self.roi}
        if self.roi and self.roi.lstrip().startswith("["):
            try:
                given["roi"] = json.loads(self.roi)
            except ValueError as error:
                raise ValueError(f"roi={self.roi!r} is neither a path nor a polygon [[x, y], ...]: {error}") from error
        return {name: value for name, value in given.items() if value is not None}


@dataclasses.dataclass
class SourceOptions:
    """How a source of images is read, beside the source itself; absent options are found by looking.

    Raises:
        ValueError: an unknown `kind`, `mask_threshold` outside 0..254, or a window or channels that are none.
    """

    data_dir: str | None = option(
        None,
        "Unpacked archive of a named data set, or where a table's paths start.",
        group="Data set",
        rule="path",
    )
    class_names: list[str] | None = option(None, "These classes alone.", group="Data set")
    kind: str | None = option(
        None, "folder (by the names of folders alone) or datasets (a repository): do not guess.", group="Data set"
    )
    normal_kinds: list[str] | None = option(
        None, "Names of folders that mean normal; an empty list where none does.", group="Data set"
    )
    normal_labels: list[str] | None = option(None, "Values of the label column that mean normal.", group="Data set")
    mask_threshold: int | None = option(None, "Largest mask value that is background, 0 to 254.", group="Data set")
    window: list[str] | None = option(
        None,
        "Stored values that become black and white, or percentile (each image by its own); by bit depth if absent.",
        group="Images",
    )
    channels: list[int] | None = option(
        None, "Three channels, from 0, of images that have neither 1, 3 nor 4.", group="Images"
    )
    allow_outside: bool = option(
        False, "Read files that a table or links name outside of their folder or the data directory.", group="Data set"
    )
    revision: str | None = option(None, "Revision of a data set's repository on the Hub.", group="Data set")
    image_column: str | None = option(None, "Name of the image column.", group="Data set")
    mask_column: str | None = option(None, "Name of the mask column.", group="Data set")
    label_column: str | None = option(None, "Name of the label column.", group="Data set")
    class_column: str | None = option(None, "Name of the class column.", group="Data set")
    defect_column: str | None = option(None, "Name of the column of kinds of defect.", group="Data set")
    split_column: str | None = option(None, "Name of the split column.", group="Data set")

    def __post_init__(self):
        if isinstance(self.class_names, str):
            self.class_names = [self.class_names]
        self.window = check_window(self.window)
        self.channels = check_channels(self.channels)  # type: ignore[assignment]
        if self.kind not in (None, *KINDS):
            raise ValueError(f"kind={self.kind!r} must be one of {', '.join(KINDS)}")
        if self.mask_threshold is not None and not 0 <= self.mask_threshold <= 254:
            raise ValueError(f"mask_threshold={self.mask_threshold} must lie in 0 .. 254, in 8-bit units")

    def source_options(self) -> dict[str, Any]:
        """The fields that are set, by name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(SourceOptions)}
        return {name: value for name, value in values.items() if value is not None and value is not False}

    def only_class(self) -> str | None:
        """The class where a single one is asked for: what samples without a class are taken for."""
        return self.class_names[0] if self.class_names and len(self.class_names) == 1 else None


def make_options(options: SourceOptions | None = None, **fields: Any) -> SourceOptions:
    """Options with some fields set, of an object or of a command's settings that inherit from it.

    Raises:
        TypeError: an unknown field.
    """
    given = {} if options is None else options.source_options()
    return SourceOptions(**{**given, **fields})


def refuse_unknown(names: Iterable[str], known: Sequence[str]) -> None:
    """Refuse options of a source that it does not take.

    Raises:
        ValueError: naming them, and those that are known.
    """
    if others := [name for name in names if name not in known]:
        expected = ", ".join(map(repr, known))
        raise ValueError(f"no option of a source is called {', '.join(others)}: expected one of {expected}")


def parse_options(text: str | None, field: str) -> dict[str, Any]:
    """Arguments given as one JSON object, {} if there are none.

    Raises:
        ValueError: it is no JSON object; `field` names it.
    """
    try:
        options = json.loads(text) if text else {}
    except ValueError as error:
        raise ValueError(f"{field}={text!r} is no JSON: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f'{field}={text!r}, expected a JSON object such as \'{{"normal_kinds": ["ok"]}}\'')
    return options
