"""What a source of files holds, before any file is read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .file_tree import examples
from .files import count_of
from .layouts import DatasetLayout

NORMAL_KIND, ANOMALOUS_KIND = "good", "anomaly"


@dataclass(frozen=True)
class Record:
    """One sample before anything is read: paths from the root with forward slashes, label None where unknown."""

    image: str
    mask: str | None
    label: int | None
    class_name: str
    defect_type: str
    split: str


@dataclass(frozen=True)
class Index:
    """What a source holds: the samples and all that did not fit.

    Args:
        root (`str`): folder the paths start from, as the user gave it.
        form (`str`): the layout found, in words.
        records (`list[Record]`): samples; those of folders ordered by class, split, kind and name.
        layout (`DatasetLayout`, *optional*): the row, for named data sets.
        listed (`bool`): whether a table names the files, which someone else may have written.
        extra_masks (`list[str]`): mask files no image asks for.
        missing (`list[str]`): files a table names but the disk lacks.
        notes (`list[str]`): what was left out, and why.
        unused (`dict[str, list[str]]`): files below the root that are neither images nor masks here, by reason.
        outside (`list[str]`): files that links, or a table, lead out of the root for.
        mask_threshold (`int`, *optional*): how masks are binarised, see `read_mask`.
    """

    root: str
    form: str
    records: list[Record]
    layout: DatasetLayout | None = None
    listed: bool = False
    extra_masks: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unused: dict[str, list[str]] = field(default_factory=dict)
    outside: list[str] = field(default_factory=list)
    mask_threshold: int | None = None

    def check(self) -> None:
        """Refuse an index of files that are not there, and warn of what was left out.

        Raises:
            ValueError: files are missing.
        """
        if self.missing:
            raise ValueError(
                f"{len(self.missing)} files named by {self.form} are not in {self.root}, e.g. {self.missing[0]}: "
                "correct the index, or see all of them with `anomalyclip inspect`"
            )
        if remarks := self.remarks():
            warnings.warn(f"{self.root}: {'; '.join(remarks)}", stacklevel=3)

    def remarks(self) -> list[str]:
        """All that was left out or comes from elsewhere, a sentence each; empty where everything was used."""
        told = list(self.notes)
        if self.unused:
            told.append(list_unused(self.unused))
        if self.outside:
            told.append(
                f"{len(self.outside)} images lie outside of {self.root}, behind links ({examples(self.outside)})"
            )
        return told


def list_unused(unused: Mapping[str, Sequence[str]]) -> str:
    """Files by reason as a sentence: "3 files not used: 2 .xcf files (a.xcf, b.xcf); 1 results of this package (ev)".

    Args:
        unused: reason -> paths; at least one. Eight reasons are spelled out.
    """
    reasons = [f"{len(paths)} {reason} ({examples(paths)})" for reason, paths in unused.items()]
    more = [f"and those of {len(reasons) - 8} other kinds"] if len(reasons) > 8 else []
    return f"{count_of(sum(map(len, unused.values())), 'file')} not used: {'; '.join(reasons[:8] + more)}"


def kind_of(label: int | None, kind: str | None) -> str:
    """The defect type of a sample: one name for normal in every data set, "" where the label is unknown."""
    if label is None:
        return ""
    return NORMAL_KIND if label == 0 else (kind or ANOMALOUS_KIND)
