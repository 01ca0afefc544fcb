"""The data sets AnomalyCLIP was judged on, and the forms of own data, each declared as one row of a table.

**Adding a data set is adding a row.** A tree `<class>/{train,test}/<kind>/x.png` with masks in
`<class>/truth/<kind>/x_gt.png` and the normal kind `fine` needs this and nothing else:

```python
from anomalyclip_hf.data.layouts import DatasetLayout, Variant, register_layout

register_layout(
    DatasetLayout(
        name="my_parts",
        title="My parts",
        classes=("bolt", "nut"),
        normal_kinds=("fine",),
        variants=(
            Variant("{class_name}/{split}/{kind}/{stem}", masks=("{class_name}/truth/{kind}/{stem}_gt",)),
        ),
        home_page="https://example.org/parts",
        license_note="read LICENSE.txt in the archive",
    )
)
load_anomaly_dataset("my_parts", data_dir="/data/parts")
```

Patterns are paths from the archive's root without the file's suffix. `{class_name}`, `{split}`, `{kind}`, `{group}`
and `{stem}` each stand for one name, `{sub}` for any folders between; what stands in `[]` may be absent, and so may a
leading `{class_name}/`: a class alone is a data set as well. A mask's pattern is filled from its image's names, so
masks are found by stem and never by order; one that ends in `/` is a folder of masks of one image, which are united.
A `Table` reads an index file instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "test_public"), "test"),  # the last is MVTec AD 2's
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **{name: name for name in ("test_private", "test_private_mixed")},  # of MVTec AD 2 too, unlabelled
}
LABEL_RULES = ("kind", "mask_file", "mask_content", "anomalous")


@dataclass(frozen=True)
class Table:
    """An index file (CSV, TSV, JSON lines, or JSON of the form {split: [rows]}) in place of folder names.

    Args:
        path (`str`): the file, from the root; with a `*` one file for each class, named as it is.
        image, mask (`tuple[str, ...]`): patterns in which `{column}`, or `{column:0>3}`, is replaced by a cell as by
            `str.format`, the first that exists is taken; suffix optional; empty where a cell is. JSON also has the
            columns `split` and `file`, its stem.
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


@dataclass(frozen=True)
class Variant:
    """One way in which a data set lies on disk.

    Args:
        images (`str`): pattern of the image files; unused with `table`.
        masks (`tuple[str, ...]`): patterns of the mask files, the first that exists wins; empty: no masks.
        label (`str`): "kind" (the folder is a normal kind or not; unknown without one), "mask_file" (anomalous where a
            mask file exists), "mask_content" (where the mask is not all zero) or "anomalous" (always).
        split (`str`): the split where the pattern has no `{split}`.
        kinds (`tuple[str, ...]`, *optional*): the only kinds taken; all by default.
        masks_by_name (`bool`): find masks wherever a folder or file name says that they are some (`MaskFinder`), and
            take folders of images (`images`, `Img`, `Data/Images`) as `images`, or with kinds as not there at all.
        needs_normal, needs_masks, needs_all (`bool`): take this variant only where a normal kind, or a mask, is found,
            or where every image fits.
        table (`Table`, *optional*): read an index file.
    """

    images: str = "{stem}"
    masks: tuple[str, ...] = ()
    label: str = "kind"
    split: str = "test"
    kinds: tuple[str, ...] | None = None
    needs_normal: bool = False
    needs_masks: bool = False
    needs_all: bool = False
    masks_by_name: bool = False
    table: Table | None = None

    def __post_init__(self):
        if self.label not in LABEL_RULES:
            raise ValueError(f"Variant.label={self.label!r} must be one of {', '.join(LABEL_RULES)}")


def _own_masks(*folders: str) -> tuple[str, ...]:
    """Masks by their images' stems, whose endings differ from set to set."""
    return tuple(f"{folder}{{stem}}{ending}" for folder in folders for ending in ("", "_mask", "_gt", "_label"))


MVTEC_TREE = (
    Variant(
        "{class_name}/{split}/{kind}/{stem}",
        masks=_own_masks("{class_name}/ground_truth/{kind}/", "{class_name}/ground_truth/{sub}"),
    ),
)
# Several masks an image, one for each defect.
MASK_FOLDERS = (Variant("{class_name}/{split}/{kind}/{stem}", masks=("{class_name}/ground_truth/{kind}/{stem}/",)),)
IMAGES_AND_MASKS = (Variant("images/{stem}", masks=_own_masks("masks/"), label="anomalous"),)


@dataclass(frozen=True)
class DatasetLayout:
    """All that is known of one data set.

    Args:
        name (`str`): what users type.
        title (`str`): its proper name.
        variants (`tuple[Variant, ...]`): layouts on disk, the first that fits counts; an MVTec-style tree by default.
        classes (`tuple[str, ...]`): class names; empty: the folders', or the root folder's own name.
        normal_kinds (`tuple[str, ...]`): folder names that mean normal, compared without case.
        mask_threshold (`int`, *optional*): how masks are binarised, see `read_mask`.
        aliases (`tuple[str, ...]`): other names, of its folder in archives that hold several data sets too.
        home_page (`str`): where to get it.
        license (`str`, *optional*): Hub licence id, only where the source itself states it.
        license_note (`str`): what is known of the licence, or where to read it.
    """

    name: str
    title: str
    variants: tuple[Variant, ...] = MVTEC_TREE
    classes: tuple[str, ...] = ()
    normal_kinds: tuple[str, ...] = ("good",)
    mask_threshold: int | None = None
    aliases: tuple[str, ...] = ()
    home_page: str = ""
    license: str | None = None
    license_note: str = "not stated here: read it at the home page and in the archive before sharing"

    def is_called(self, name: str) -> bool:
        """Whether a name is this data set's, its title or an alias; case, `-`, `_` and spaces do not matter."""
        return _plain(name) in map(_plain, (self.name, self.title, *self.aliases))


_POLYP_PAGE = "https://figshare.com/articles/figure/Polyp_DataSet_zip/21221579"

_ROWS = (
    DatasetLayout(
        name="mvtec",
        title="MVTec AD",
        aliases=("mvtec_anomaly_detection", "mvdataset"),
        classes=(
            *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw"),
            *("tile", "toothbrush", "transistor", "wood", "zipper"),
        ),
        home_page="https://www.mvtec.com/company/research/datasets/mvtec-ad",
        license="cc-by-nc-sa-4.0",
        license_note="CC BY-NC-SA 4.0 (readme.txt in the archive): no commercial use",
    ),
    DatasetLayout(
        name="visa",
        title="VisA",
        aliases=("visa_20220922",),
        classes=(
            *("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2"),
            *("pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum"),
        ),
        variants=(
            Variant(
                table=Table(
                    path="split_csv/1cls.csv",
                    image=("{image}",),
                    mask=("{mask}",),
                    label_column="label",
                    class_column="object",
                    split_column="split",
                ),
            ),
            *MVTEC_TREE,  # what the authors' prepare_data.py of VisA writes
            Variant("{class_name}/Data/Images/{kind}/{stem}", masks=("{class_name}/Data/Masks/{kind}/{stem}",)),
        ),
        normal_kinds=("good", "normal"),
        home_page="https://github.com/amazon-science/spot-diff",
        license="cc-by-4.0",
        license_note="CC BY 4.0 (LICENSE-DATASET at the home page)",
    ),
    DatasetLayout(
        name="mpdd",
        title="MPDD",
        classes=("bracket_black", "bracket_brown", "bracket_white", "connector", "metal_plate", "tubes"),
        home_page="https://github.com/stepanje/MPDD",
    ),
    DatasetLayout(
        name="btad",
        title="BTAD",
        aliases=("beantech", "btech_dataset_transformed"),
        classes=("01", "02", "03"),
        normal_kinds=("ok",),
        home_page="http://avires.dimi.uniud.it/papers/btad/btad.zip",
    ),
    DatasetLayout(
        name="sdd",
        title="SDD (KolektorSDD)",
        aliases=("kolektorsdd", "ksdd"),
        classes=("electrical commutators",),
        variants=(
            *MVTEC_TREE,
            Variant("{group}/{stem}", masks=("{group}/{stem}_label",), label="mask_content"),
        ),
        home_page="https://www.vicos.si/resources/kolektorsdd/",
    ),
    DatasetLayout(
        name="dagm",
        title="DAGM 2007",
        aliases=("dagm_kaggleupload",),
        classes=tuple(f"Class{number}" for number in range(1, 11)),
        variants=(
            Variant(
                "{class_name}/{split}/{stem}", masks=("{class_name}/{split}/Label/{stem}_label",), label="mask_file"
            ),
        ),
        home_page="https://www.kaggle.com/datasets/mhskjelvareid/dagm-2007-competition-dataset-optical-inspection",
    ),
    DatasetLayout(
        name="dtd_synthetic",
        title="DTD-Synthetic",
        aliases=("dtd",),
        classes=(
            *("Woven_001", "Woven_127", "Woven_104", "Stratified_154", "Blotchy_099", "Woven_068", "Woven_125"),
            *("Marbled_078", "Perforated_037", "Mesh_114", "Fibrous_183", "Matted_069"),
        ),
        home_page="https://drive.google.com/drive/folders/10OyPzvI3H6llCZBxKxFlKWt1Pw1tkMK1",
    ),
    DatasetLayout(
        name="headct",
        title="HeadCT",
        aliases=("headct_anomaly_detection",),
        classes=("brain",),
        variants=(
            Variant("{class_name}/{split}/{kind}/{stem}"),
            Variant(
                table=Table(
                    path="labels.csv",
                    image=("head_ct/head_ct/{id:0>3}", "head_ct/{id:0>3}", "{id:0>3}"),
                    label_column="hemorrhage",
                    normal_labels=("0",),
                ),
            ),
        ),
        home_page="https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage",
    ),
    DatasetLayout(
        name="brainmri",
        title="BrainMRI",
        classes=("brain",),
        normal_kinds=("no",),
        variants=(
            Variant("brain_tumor_dataset/{kind}/{stem}", kinds=("no", "yes")),  # the archive holds each image twice
            Variant("{kind}/{stem}", kinds=("no", "yes")),
        ),
        home_page="https://www.kaggle.com/datasets/navoneel/brain-mri-images-for-brain-tumor-detection",
    ),
    DatasetLayout(
        name="br35h",
        title="Br35H",
        aliases=("br35",),
        classes=("brain",),
        normal_kinds=("no",),
        variants=(Variant("{kind}/{stem}", kinds=("no", "yes")),),  # pred/ beside them has no labels
        home_page="https://www.kaggle.com/datasets/ahmedhamada0/brain-tumor-detection",
    ),
    DatasetLayout(
        name="covid19",
        title="COVID-19",
        aliases=("covid", "covid19_radiography", "covid19_radiography_dataset"),
        classes=("chest",),
        normal_kinds=("NORMAL",),
        variants=(
            Variant("{kind}/[images/]{stem}", needs_normal=True),  # the masks beside them outline lungs, not anomalies
        ),
        home_page="https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database",
    ),
    DatasetLayout(
        name="isic",
        title="ISIC 2016",
        aliases=("isbi",),
        classes=("skin",),
        variants=(
            Variant(
                "{class_name}/{split}/{kind}/{stem}",
                masks=("{class_name}/ISBI2016_ISIC_Part1_Test_GroundTruth/{stem}_Segmentation",),
            ),
            Variant(
                "ISBI2016_ISIC_Part1_Test_Data/{stem}",
                masks=("ISBI2016_ISIC_Part1_Test_GroundTruth/{stem}_Segmentation",),
                label="anomalous",
            ),
        ),
        home_page="https://isic-challenge-data.s3.amazonaws.com/2016/ISBI2016_ISIC_Part1_Test_Data.zip",
    ),
    DatasetLayout(
        name="colondb",
        title="CVC-ColonDB",
        classes=("colon",),
        variants=IMAGES_AND_MASKS,
        home_page=_POLYP_PAGE,
    ),
    DatasetLayout(
        name="clinicdb",
        title="CVC-ClinicDB",
        classes=("colon",),
        variants=(
            *IMAGES_AND_MASKS,
            Variant(
                "[PNG/]Original/{stem}", masks=("PNG/Ground Truth/{stem}", "Ground Truth/{stem}"), label="anomalous"
            ),
        ),
        home_page=_POLYP_PAGE,
    ),
    DatasetLayout(
        name="kvasir",
        title="Kvasir",
        aliases=("kvasir_seg",),
        classes=("colon",),
        variants=IMAGES_AND_MASKS,
        home_page=_POLYP_PAGE,
    ),
    DatasetLayout(
        name="endo",
        title="Endo (EndoTect 2020)",
        aliases=("endotect", "endotect_2020_segmentation_test_dataset"),
        classes=("colon",),
        variants=(Variant("{kind}/{stem}", masks=_own_masks("masks/"), needs_masks=True),),
        home_page="https://drive.google.com/file/d/1LNpLkv5ZlEUzr_RPN5rdOHaqk0SkZa3m/view",
    ),
    DatasetLayout(
        name="tn3k",
        title="TN3K",
        classes=("thyroid",),
        variants=(Variant("test-image/{stem}", masks=_own_masks("test-mask/"), label="anomalous"),),
        home_page="https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation",
    ),
    DatasetLayout(
        name="mvtec_ad2",
        title="MVTec AD 2",
        classes=("can", "fabric", "fruit_jelly", "rice", "sheet_metal", "vial", "wallplugs", "walnuts"),
        variants=(  # the private images have no folders of kinds
            Variant(
                "{class_name}/{split}/[{kind}/]{stem}",
                masks=("{class_name}/{split}/ground_truth/{kind}/{stem}_mask",),
            ),
        ),
        home_page="https://www.mvtec.com/company/research/datasets/mvtec-ad-2",
    ),
    DatasetLayout(
        name="mvtec_loco",
        title="MVTec LOCO AD",
        aliases=("loco", "mvtec_loco_anomaly_detection"),
        classes=("breakfast_box", "juice_bottle", "pushpins", "screw_bag", "splicing_connectors"),
        variants=MASK_FOLDERS,
        home_page="https://www.mvtec.com/company/research/datasets/mvtec-loco",
    ),
    DatasetLayout(
        name="realiad",
        title="Real-IAD",
        classes=(
            *("audiojack", "bottle_cap", "button_battery", "end_cap", "eraser", "fire_hood", "mint", "mounts", "pcb"),
            *("phone_battery", "plastic_nut", "plastic_plug", "porcelain_doll", "regulator", "rolled_strip_base"),
            *("sim_card_set", "switch", "tape", "terminalblock", "toothbrush", "toy", "toy_brick", "transistor1"),
            *("u_block", "usb", "usb_adaptor", "vcpill", "wooden_beads", "woodstick", "zipper"),
        ),
        variants=tuple(
            Variant(
                table=Table(
                    path=f"realiad_jsons/realiad_jsons{views}/*.json",
                    image=tuple(f"realiad_{size}/{{file}}/{{image_path}}" for size in (1024, 512, 256)),
                    mask=tuple(f"realiad_{size}/{{file}}/{{mask_path}}" for size in (1024, 512, 256)),
                    label_column="anomaly_class",
                    class_column="file",
                    split_column="split",
                    kind_column="anomaly_class",
                    normal_labels=("OK",),
                ),
            )
            for views in ("", "_sv")  # five views of each part, or one
        ),
        home_page="https://realiad4ad.github.io/Real-IAD/",
    ),
    DatasetLayout(
        name="bmad",
        title="BMAD",
        variants=(
            Variant("{class_name}/{split}/{kind}/{sub}{stem}", masks=("{class_name}/{split}/{kind}/label/{stem}",)),
        ),
        home_page="https://github.com/DorisBao/BMAD",
    ),
    DatasetLayout(
        name="autovi",
        title="AutoVI",
        classes=("engine_wiring", "pipe_clip", "pipe_staple", "tank_screw", "underbody_pipes", "underbody_screw"),
        variants=MASK_FOLDERS,
        home_page="https://autovi.utc.fr/",
    ),
    DatasetLayout(
        name="vad",
        title="VAD (Valeo)",
        classes=("vad",),
        home_page="https://github.com/abc-125/vad",
        license="cc-by-nc-sa-4.0",
        license_note="CC BY-NC-SA 4.0 (README at the home page): no commercial use",
    ),
    DatasetLayout(
        name="ksdd2",
        title="KolektorSDD2",
        aliases=("sdd2",),
        classes=("surface",),
        variants=(Variant("{split}/{stem}", masks=("{split}/{stem}_GT",), label="mask_content"),),
        home_page="https://www.vicos.si/resources/kolektorsdd2/",
    ),
    DatasetLayout(
        name="aebad_s",
        title="AeBAD-S",
        aliases=("aebad",),
        classes=("AeBAD_S",),
        variants=(
            Variant(
                "{class_name}/{split}/{kind}/{group}/{stem}",
                masks=_own_masks("{class_name}/ground_truth/{kind}/{group}/"),
            ),
        ),
        home_page="https://github.com/zhangzilongc/MMR",
    ),
    DatasetLayout(
        name="goodsad",
        title="GoodsAD",
        classes=("cigarette_box", "drink_bottle", "drink_can", "food_bottle", "food_box", "food_package"),
        home_page="https://github.com/jianzhang96/GoodsAD",
    ),
)

OWN_NORMAL_KINDS = ("good", "ok", "normal", "negative", "no")


def _own(*patterns: str, **settings: Any) -> tuple[Variant, ...]:
    return tuple(Variant(pattern, masks_by_name=True, **settings) for pattern in patterns)


# Own data, tried in this order when a folder is given.
OWN_LAYOUTS = (
    DatasetLayout(
        "tree",
        "MVTec-style tree",
        _own("{class_name}/{split}/{kind}/{sub}{stem}", needs_normal=True),
        normal_kinds=OWN_NORMAL_KINDS,
    ),
    DatasetLayout(
        "folder",
        "folder of kinds",
        (
            *_own("{kind}/{split}/{sub}{stem}", needs_normal=True, needs_all=True),
            *_own("{kind}/{sub}{stem}", "{class_name}/{kind}/{sub}{stem}", needs_normal=True),
        ),
        normal_kinds=OWN_NORMAL_KINDS,
    ),
    DatasetLayout(
        "images_masks",
        "images beside masks",
        _own(
            *("{class_name}/{split}/images/{sub}{stem}", "images/{split}/{sub}{stem}", "images/{sub}{stem}"),
            *("{class_name}/images/{sub}{stem}", "{split}/{stem}", "{stem}"),
            label="mask_content",
            needs_masks=True,
        ),
    ),
    DatasetLayout("images", "images of one folder, without labels", _own("{stem}", needs_all=True)),
)

LAYOUTS: dict[str, DatasetLayout] = {row.name: row for row in _ROWS}


def register_layout(layout: DatasetLayout) -> None:
    """Add a data set to the table, so that `load_anomaly_dataset(layout.name, data_dir=...)` finds it.

    Raises:
        ValueError: the name or an alias is taken by another row.
    """
    for name in (layout.name, *layout.aliases):
        taken = find_layout(name)
        if taken is not None and taken.name != layout.name:
            raise ValueError(f"the name {name!r} already belongs to {taken.title} ({taken.name}): choose another")
    LAYOUTS[layout.name] = layout


def find_layout(name: str) -> DatasetLayout | None:
    """Look a data set up by name, title or alias (`is_called`); None where there is none."""
    return next((layout for layout in LAYOUTS.values() if layout.is_called(name)), None)


def _plain(name: str) -> str:
    return re.sub("[ _-]", "", name.casefold())
