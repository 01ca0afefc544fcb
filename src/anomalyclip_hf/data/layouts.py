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
and `{stem}` each stand for one name, `{sub}` for any folders between. A mask's pattern is filled from its image's
names, so masks are found by stem and never by order; one that ends in `/` is a folder of masks of one image, which
are united. A `Table` reads an index file instead.
"""

from __future__ import annotations

from typing import Any

from .layout_form import SPLITS, DatasetLayout, Table, Variant

__all__ = [
    "LAYOUTS",
    "OWN_LAYOUTS",
    "OWN_NORMAL_KINDS",
    "SPLITS",
    "DatasetLayout",
    "Table",
    "Variant",
    "find_layout",
    "register_layout",
]

MASK_SUFFIXES = ("", "_mask", "_gt", "_label")


def _own_masks(*prefixes: str) -> tuple[str, ...]:
    return tuple(f"{prefix}{stem}" for prefix in prefixes for stem in (f"{{stem}}{s}" for s in MASK_SUFFIXES))


def _truth(head: str = "{class_name}/") -> tuple[str, ...]:
    """Masks of an MVTec-style tree; the stem's suffix differs from set to set."""
    return _own_masks(f"{head}ground_truth/{{kind}}/", f"{head}ground_truth/{{sub}}")


MVTEC_TREE = (
    Variant("{class_name}/{split}/{kind}/{stem}", masks=_truth()),
    Variant("{split}/{kind}/{stem}", masks=_truth("")),
)
# Several masks an image, one for each defect.
MASK_FOLDERS = tuple(
    Variant(f"{head}{{split}}/{{kind}}/{{stem}}", masks=(f"{head}ground_truth/{{kind}}/{{stem}}/",))
    for head in ("{class_name}/", "")
)
IMAGES_AND_MASKS = (Variant("images/{stem}", masks=_own_masks("masks/"), label="anomalous"),)


_POLYP_PAGE = "https://figshare.com/articles/figure/Polyp_DataSet_zip/21221579"

_ROWS = (
    DatasetLayout(
        name="mvtec",
        title="MVTec AD",
        aliases=("mvtec_ad", "mvtecad"),
        folders=("mvtec_anomaly_detection", "mvdataset", "mvtec"),
        classes=(
            *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw"),
            *("tile", "toothbrush", "transistor", "wood", "zipper"),
        ),
        variants=MVTEC_TREE,
        home_page="https://www.mvtec.com/company/research/datasets/mvtec-ad",
        license="cc-by-nc-sa-4.0",
        license_note="CC BY-NC-SA 4.0 (readme.txt in the archive): no commercial use",
    ),
    DatasetLayout(
        name="visa",
        title="VisA",
        folders=("VisA", "VisA_20220922"),
        classes=(
            *("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2"),
            *("pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum"),
        ),
        variants=(
            Variant(
                label="table",
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
        variants=MVTEC_TREE,
        home_page="https://github.com/stepanje/MPDD",
    ),
    DatasetLayout(
        name="btad",
        title="BTAD",
        aliases=("beantech",),
        folders=("BTech_Dataset_transformed", "btad"),
        classes=("01", "02", "03"),
        normal_kinds=("ok",),
        variants=MVTEC_TREE,
        home_page="http://avires.dimi.uniud.it/papers/btad/btad.zip",
    ),
    DatasetLayout(
        name="sdd",
        title="SDD (KolektorSDD)",
        aliases=("kolektorsdd", "ksdd"),
        folders=("SDD", "KolektorSDD"),
        classes=("electrical commutators",),
        variants=(
            *MVTEC_TREE,
            Variant(
                "{group}/{stem}",
                masks=("{group}/{stem}_label",),
                label="mask_content",
                skip=("{group}/{stem}_label",),
            ),
        ),
        home_page="https://www.vicos.si/resources/kolektorsdd/",
    ),
    DatasetLayout(
        name="dagm",
        title="DAGM 2007",
        aliases=("dagm2007", "dagm_kaggleupload"),
        folders=("DAGM_KaggleUpload", "DAGM"),
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
        folders=("DTD-Synthetic", "DTD"),
        classes=(
            *("Woven_001", "Woven_127", "Woven_104", "Stratified_154", "Blotchy_099", "Woven_068", "Woven_125"),
            *("Marbled_078", "Perforated_037", "Mesh_114", "Fibrous_183", "Matted_069"),
        ),
        variants=MVTEC_TREE,
        home_page="https://drive.google.com/drive/folders/10OyPzvI3H6llCZBxKxFlKWt1Pw1tkMK1",
    ),
    DatasetLayout(
        name="headct",
        title="HeadCT",
        aliases=("head_ct",),
        folders=("HeadCT_anomaly_detection", "HeadCT"),
        classes=("brain",),
        variants=(
            Variant("{class_name}/{split}/{kind}/{stem}"),
            Variant("{split}/{kind}/{stem}"),
            Variant(
                label="table",
                table=Table(
                    path="labels.csv",
                    image=("head_ct/head_ct/{id}", "head_ct/{id}", "{id}"),
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
        aliases=("brain_mri",),
        folders=("BrainMRI",),
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
        folders=("Br35H", "br35"),
        classes=("brain",),
        normal_kinds=("no",),
        variants=(Variant("{kind}/{stem}", kinds=("no", "yes")),),  # pred/ beside them has no labels
        home_page="https://www.kaggle.com/datasets/ahmedhamada0/brain-tumor-detection",
    ),
    DatasetLayout(
        name="covid19",
        title="COVID-19",
        aliases=("covid", "covid-19", "covid19_radiography"),
        folders=("COVID-19_Radiography_Dataset",),
        classes=("chest",),
        normal_kinds=("NORMAL",),
        variants=(
            Variant("{kind}/images/{stem}", needs_normal=True),  # the masks beside them outline lungs, not anomalies
            Variant("{kind}/{stem}", needs_normal=True),
        ),
        home_page="https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database",
    ),
    DatasetLayout(
        name="isic",
        title="ISIC 2016",
        aliases=("isbi", "isic2016"),
        folders=("ISBI", "ISIC"),
        classes=("skin",),
        variants=(
            Variant(
                "{class_name}/{split}/{kind}/{stem}",
                masks=("{class_name}/ISBI2016_ISIC_Part1_Test_GroundTruth/{stem}_Segmentation",),
            ),
            Variant("{split}/{kind}/{stem}", masks=("ISBI2016_ISIC_Part1_Test_GroundTruth/{stem}_Segmentation",)),
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
        aliases=("cvc-colondb", "cvc_colondb"),
        folders=("CVC-ColonDB",),
        classes=("colon",),
        variants=IMAGES_AND_MASKS,
        home_page=_POLYP_PAGE,
    ),
    DatasetLayout(
        name="clinicdb",
        title="CVC-ClinicDB",
        aliases=("cvc-clinicdb", "cvc_clinicdb"),
        folders=("CVC-ClinicDB",),
        classes=("colon",),
        variants=(
            *IMAGES_AND_MASKS,
            Variant("PNG/Original/{stem}", masks=("PNG/Ground Truth/{stem}",), label="anomalous"),
            Variant("Original/{stem}", masks=("Ground Truth/{stem}",), label="anomalous"),
        ),
        home_page=_POLYP_PAGE,
    ),
    DatasetLayout(
        name="kvasir",
        title="Kvasir",
        aliases=("kvasir-seg", "kvasir_seg"),
        folders=("Kvasir", "Kvasir-SEG"),
        classes=("colon",),
        variants=IMAGES_AND_MASKS,
        home_page=_POLYP_PAGE,
    ),
    DatasetLayout(
        name="endo",
        title="Endo (EndoTect 2020)",
        aliases=("endotect",),
        folders=("EndoTect_2020_Segmentation_Test_Dataset",),
        classes=("colon",),
        variants=(Variant("{kind}/{stem}", masks=_own_masks("masks/"), needs_masks=True),),
        home_page="https://drive.google.com/file/d/1LNpLkv5ZlEUzr_RPN5rdOHaqk0SkZa3m/view",
    ),
    DatasetLayout(
        name="tn3k",
        title="TN3K",
        folders=("tn3k", "TN3K"),
        classes=("thyroid",),
        variants=(Variant("test-image/{stem}", masks=_own_masks("test-mask/"), label="anomalous"),),
        home_page="https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation",
    ),
    DatasetLayout(
        name="mvtec_ad2",
        title="MVTec AD 2",
        aliases=("mvtec_ad_2", "mvtecad2"),
        folders=("mvtec_ad_2", "MVTecAD2"),
        classes=("can", "fabric", "fruit_jelly", "rice", "sheet_metal", "vial", "wallplugs", "walnuts"),
        variants=(
            *(
                Variant(
                    f"{head}{{split}}/{{kind}}/{{stem}}",
                    masks=(f"{head}{{split}}/ground_truth/{{kind}}/{{stem}}_mask",),
                    beside=Variant(f"{head}{{split}}/{{stem}}", label="unlabeled"),
                )
                for head in ("{class_name}/", "")
            ),
            Variant("{class_name}/{split}/{stem}", label="unlabeled"),  # the private images alone
        ),
        home_page="https://www.mvtec.com/company/research/datasets/mvtec-ad-2",
    ),
    DatasetLayout(
        name="mvtec_loco",
        title="MVTec LOCO AD",
        aliases=("loco", "mvtec_loco_ad"),
        folders=("mvtec_loco_anomaly_detection", "mvtec_loco"),
        classes=("breakfast_box", "juice_bottle", "pushpins", "screw_bag", "splicing_connectors"),
        variants=MASK_FOLDERS,
        home_page="https://www.mvtec.com/company/research/datasets/mvtec-loco",
    ),
    DatasetLayout(
        name="realiad",
        title="Real-IAD",
        aliases=("real_iad",),
        folders=("Real-IAD", "realiad"),
        classes=(
            *("audiojack", "bottle_cap", "button_battery", "end_cap", "eraser", "fire_hood", "mint", "mounts", "pcb"),
            *("phone_battery", "plastic_nut", "plastic_plug", "porcelain_doll", "regulator", "rolled_strip_base"),
            *("sim_card_set", "switch", "tape", "terminalblock", "toothbrush", "toy", "toy_brick", "transistor1"),
            *("u_block", "usb", "usb_adaptor", "vcpill", "wooden_beads", "woodstick", "zipper"),
        ),
        variants=tuple(
            Variant(
                label="table",
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
        folders=("BMAD",),
        variants=tuple(
            Variant(f"{head}{{split}}/{{kind}}/{{sub}}{{stem}}", masks=(f"{head}{{split}}/{{kind}}/label/{{stem}}",))
            for head in ("{class_name}/", "")
        ),
        home_page="https://github.com/DorisBao/BMAD",
    ),
    DatasetLayout(
        name="autovi",
        title="AutoVI",
        folders=("AutoVI",),
        classes=("engine_wiring", "pipe_clip", "pipe_staple", "tank_screw", "underbody_pipes", "underbody_screw"),
        variants=MASK_FOLDERS,
        home_page="https://autovi.utc.fr/",
    ),
    DatasetLayout(
        name="vad",
        title="VAD (Valeo)",
        folders=("vad", "VAD"),
        classes=("vad",),
        variants=MVTEC_TREE,
        home_page="https://github.com/abc-125/vad",
        license="cc-by-nc-sa-4.0",
        license_note="CC BY-NC-SA 4.0 (README at the home page): no commercial use",
    ),
    DatasetLayout(
        name="ksdd2",
        title="KolektorSDD2",
        aliases=("kolektorsdd2", "sdd2"),
        folders=("KolektorSDD2", "KSDD2"),
        classes=("surface",),
        variants=(
            Variant("{split}/{stem}", masks=("{split}/{stem}_GT",), label="mask_content", skip=("{split}/{stem}_GT",)),
        ),
        home_page="https://www.vicos.si/resources/kolektorsdd2/",
    ),
    DatasetLayout(
        name="aebad_s",
        title="AeBAD-S",
        aliases=("aebad",),
        folders=("AeBAD", "AeBAD_S"),
        classes=("AeBAD_S",),
        variants=tuple(
            Variant(
                f"{head}{{split}}/{{kind}}/{{group}}/{{stem}}",
                masks=_own_masks(f"{head}ground_truth/{{kind}}/{{group}}/"),
            )
            for head in ("{class_name}/", "")
        ),
        home_page="https://github.com/zhangzilongc/MMR",
    ),
    DatasetLayout(
        name="goodsad",
        title="GoodsAD",
        aliases=("goods_ad",),
        folders=("GoodsAD",),
        classes=("cigarette_box", "drink_bottle", "drink_can", "food_bottle", "food_box", "food_package"),
        variants=MVTEC_TREE,
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
        _own("{class_name}/{split}/{kind}/{sub}{stem}", "{split}/{kind}/{sub}{stem}", needs_normal=True),
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
            *("{class_name}/{split}/images/{sub}{stem}", "{split}/images/{sub}{stem}", "images/{split}/{sub}{stem}"),
            *("images/{sub}{stem}", "{class_name}/images/{sub}{stem}", "{split}/{stem}", "{stem}"),
            label="mask_content",
            needs_masks=True,
        ),
    ),
    DatasetLayout("images", "images without labels", _own("{stem}", label="unlabeled", needs_all=True)),
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
    """Look a data set up by name or alias; case, `-` and spaces do not matter. None where there is none."""
    wanted = _plain(name)
    for layout in LAYOUTS.values():
        if wanted in map(_plain, (layout.name, *layout.aliases)):
            return layout
    return None


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_").replace(" ", "_")
