"""What the table of data sets is made of: a row for each, with the ways in which it may lie on disk."""

from __future__ import annotations

from dataclasses import dataclass, field

from .images import MaskRule

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "test_public"), "test"),  # the last is MVTec AD 2's
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **{name: name for name in ("test_private", "test_private_mixed")},  # of MVTec AD 2 too, unlabelled
}
LABEL_RULES = ("kind", "mask_file", "mask_content", "anomalous", "table", "unlabeled")


@dataclass(frozen=True)
class Table:
    """An index file (CSV, TSV, JSON lines, or JSON of the form {split: [rows]}) in place of folder names.

    Args:
        path (`str`): the file, from the root; with a `*` one file for each class, named as it is.
        image, mask (`tuple[str, ...]`): patterns in which `{column}` is replaced by a cell, the first that exists is
            taken; suffix optional; empty where a cell is. JSON also has the columns `split` and `file`, its stem.
        label_column, class_column, split_column, kind_column (`str`, *optional*): names of columns.
        normal_labels (`tuple[str, ...]`, *optional*): values of the label column that mean normal, others are
            anomalous; the usual words if None.
    """

    path: str
    image: tuple[str, ...]
    mask: tuple[str, ...] = ()
    label_column: str | None = None
    class_column: str | None = None
    split_column: str | None = None
    kind_column: str | None = None
    normal_labels: tuple[str, ...] | None = ("normal",)

    def __post_init__(self):
        if self.mask is None or isinstance(self.mask, str):  # as it was before there could be several
            object.__setattr__(self, "mask", (self.mask,) if self.mask else ())


@dataclass(frozen=True)
class Variant:
    """One way in which a data set lies on disk.

    Args:
        images (`str`): pattern of the image files; unused with `table`.
        masks (`tuple[str, ...]`): patterns of the mask files, the first that exists wins; empty: no masks.
        label (`str`): "kind" (the folder is a normal kind or not), "mask_file" (anomalous where a mask file exists),
            "mask_content" (where the mask is not all zero), "anomalous" (always) or "unlabeled".
        split (`str`): the split where the pattern has no `{split}`.
        kinds (`tuple[str, ...]`, *optional*): the only kinds taken; all by default.
        skip (`tuple[str, ...]`): patterns of image files that are no samples.
        masks_by_name (`bool`): find masks wherever a folder or file name says that they are some (`MaskFinder`), and
            take folders of images (`images`, `Img`, `Data/Images`) as `images`, or with kinds as not there at all.
        needs_normal, needs_masks, needs_all (`bool`): take this variant only where a normal kind, or a mask, is found,
            or where every image fits.
        table (`Table`, *optional*): read an index file.
        beside (`Variant`, *optional*): what else the folder holds, by another pattern: its samples are added.
    """

    images: str = "{stem}"
    masks: tuple[str, ...] = ()
    label: str = "kind"
    split: str = "test"
    kinds: tuple[str, ...] | None = None
    skip: tuple[str, ...] = ()
    needs_normal: bool = False
    needs_masks: bool = False
    needs_all: bool = False
    masks_by_name: bool = False
    table: Table | None = None
    beside: Variant | None = None

    def __post_init__(self):
        if self.label not in LABEL_RULES:
            raise ValueError(f"Variant.label={self.label!r} must be one of {', '.join(LABEL_RULES)}")


@dataclass(frozen=True)
class DatasetLayout:
    """All that is known of one data set.

    Args:
        name (`str`): what users type.
        title (`str`): its proper name.
        variants (`tuple[Variant, ...]`): layouts on disk, the first that fits is taken.
        classes (`tuple[str, ...]`): class names; empty: the folders', or the root folder's own name.
        normal_kinds (`tuple[str, ...]`): folder names that mean normal, compared without case.
        mask_rule (`MaskRule`): how masks are binarised.
        aliases (`tuple[str, ...]`): other names for `name`.
        folders (`tuple[str, ...]`): names of its folder in archives that hold several data sets.
        home_page (`str`): where to get it.
        license (`str`, *optional*): Hub licence id, only where the source itself states it.
        license_note (`str`): what is known of the licence, or where to read it.
    """

    name: str
    title: str
    variants: tuple[Variant, ...]
    classes: tuple[str, ...] = ()
    normal_kinds: tuple[str, ...] = ("good",)
    mask_rule: MaskRule = field(default_factory=MaskRule)
    aliases: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    home_page: str = ""
    license: str | None = None
    license_note: str = "not stated here: read it at the home page and in the archive before sharing"
