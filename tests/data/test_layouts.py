"""The data sets: trees made from the table, and trees written out by hand, so that both cannot err alike."""

import csv
import io
import re

import numpy as np
import pytest
from picture_trees import pixels_of, summary, write_mask, write_picture, write_tree
from PIL import Image

from anomalyclip_hf.data.layouts import LAYOUTS, DatasetLayout, Table, Variant, find_layout, register_layout
from anomalyclip_hf.data.loading import load_anomaly_dataset


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_row_says_where_it_comes_from(name):
    row = LAYOUTS[name]
    assert row.home_page.startswith("http") and row.license_note and row.title
    assert row.license in (None, "cc-by-4.0", "cc-by-nc-sa-4.0")


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        *(("MVTec", "mvtec"), ("mvtec-ad", "mvtec"), ("KolektorSDD", "sdd"), ("CVC-ColonDB", "colondb")),
        *(("ISBI", "isic"), ("MVTec-AD-2", "mvtec_ad2"), ("loco", "mvtec_loco"), ("KolektorSDD2", "ksdd2")),
    ],
)
def test_names_people_type(typed, name):
    assert find_layout(typed).name == name


NEWER = ("mvtec_ad2", "mvtec_loco", "realiad", "bmad", "autovi")  # made by hand alone, in test_newer_layouts.py
VARIANTS = [
    (name, number) for name, row in LAYOUTS.items() if name not in NEWER for number in range(len(row.variants))
]


def fill(pattern, names):
    required = re.sub(r"\[.*?\]", "", pattern)
    return re.sub(r"\{(\w+)\}", lambda match: names.get(match.group(1), ""), required)


def samples_of(row, variant):
    """Two normal and two anomalous samples of the first and last class, and training ones, from the row alone."""
    has_split, has_kind = "{split}" in variant.images, "{kind}" in variant.images
    numbers = iter(range(1, 31))
    has_class = "{class_name}" in variant.images or variant.table
    for class_name in dict.fromkeys((row.classes[0], row.classes[-1])) if has_class else row.classes[:1]:
        for split in ("train", "test") if has_split or (variant.table and variant.table.split_column) else ("test",):
            for label in (0,) if split == "train" else (0, 0, 1, 1):
                if label == 0 and variant.label == "anomalous":
                    continue
                number = next(numbers)
                kind = (
                    (row.normal_kinds[0] if label == 0 else (variant.kinds or ("x", "bent"))[-1]) if has_kind else ""
                )
                names = {"class_name": class_name, "split": split, "kind": kind, "group": f"kos{number:02d}"}
                yield number, label, split, {**names, "stem": f"{number:04d}"}


def make_table(root, variant, samples):
    """The index file of a row: its own columns filled from the samples."""
    table = variant.table
    columns = {"{image}": "image", "{mask}": "mask"}
    rows, written = [], []
    for number, label, split, names in samples:
        stem = names["stem"] if table.class_column is None else f"{names['class_name']}/Data/{names['stem']}"
        image = re.sub(r"\{[^{}]+\}", stem, table.image[0])
        write_picture(root / f"{image}.png", number)
        column = re.search(r"\{(\w+)", table.image[0]).group(1)
        row = {column: f"{image}.png" if columns.get(table.image[0]) else stem}
        if table.mask:
            row["mask"] = f"masks/{stem}.png" if label else ""
            if label:
                write_mask(root / row["mask"], number)
        row[table.label_column] = table.normal_labels[0] if label == 0 else "1"
        row.update({table.class_column: names["class_name"]} if table.class_column else {})
        row.update({table.split_column: split} if table.split_column else {})
        rows.append(row)
        written.append((number, label, split, names))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    (root / table.path).parent.mkdir(parents=True, exist_ok=True)
    (root / table.path).write_text(text.getvalue())


@pytest.mark.parametrize(("name", "which"), VARIANTS)
def test_layouts_from_the_tables_own_facts(name, which, tmp_path):
    row = LAYOUTS[name]
    variant = row.variants[which]
    no_class = "{class_name}" not in variant.images and not variant.table
    root = tmp_path / (row.classes[0] if no_class else name)  # a single class may be given by its own folder
    samples = list(samples_of(row, variant))
    if variant.table:
        make_table(root, variant, samples)
    else:
        for number, label, _, names in samples:
            write_picture(root / f"{fill(variant.images, names)}.png", number)
            if variant.masks and (label or variant.label == "mask_content"):
                write_mask(root / f"{fill(variant.masks[0], names)}.png", number if label else 0)
    masked = bool(variant.masks or (variant.table and variant.table.mask))
    expected = {
        number: (
            names["class_name"],
            label,
            "good" if label == 0 else (names["kind"] or "anomaly"),
            number if label and masked else None,
        )
        for number, label, split, names in samples
    }
    loaded = summary(load_anomaly_dataset(name, data_dir=root, split="all"))
    assert loaded == expected
    tests = summary(load_anomaly_dataset(name, data_dir=root))
    assert tests == {n: expected[n] for n, _, split, _ in samples if split == "test"}


def check(name, root, expected, split="test"):
    assert summary(load_anomaly_dataset(name, data_dir=root, split=split)) == expected


def mvtec_like(class_name, normal, kind, suffix, mask_suffix=".png", image_suffix=".png"):
    """{path: number} of a small tree whose masks sort in another order than its images."""
    images = {
        f"{class_name}/train/{normal}/000{image_suffix}": 1,
        f"{class_name}/test/{normal}/000{image_suffix}": 2,
        f"{class_name}/test/{kind}/2{image_suffix}": 3,
        f"{class_name}/test/{kind}/10{image_suffix}": 4,
        f"{class_name}/test/{kind}/a-b{image_suffix}": 5,
        f"{class_name}/test/{kind}/a{image_suffix}": 6,
        f"{class_name}/test/{kind}/lost{image_suffix}": 7,
    }
    masks = {
        f"{class_name}/ground_truth/{kind}/{stem}{suffix}{mask_suffix}": number
        for stem, number in (("2", 3), ("10", 4), ("a-b", 5), ("a", 6))
    }
    expected = {
        2: (class_name, 0, "good", None),
        **{n: (class_name, 1, kind, n) for n in (3, 4, 5, 6)},
        7: (class_name, 1, kind, None),  # null, not empty
    }
    return images, masks, expected


def test_mvtec_by_hand(tmp_path):
    images, masks, expected = mvtec_like("bottle", "good", "broken_large", "_mask")
    more = {"zipper/test/good/000.png": 8, "zipper/test/split_teeth/000.png": 9}
    extra = {"zipper/ground_truth/split_teeth/000_mask.png": 9}
    root = tmp_path / "mvtec_anomaly_detection"
    write_tree(root, images | more, masks | extra, {"license.txt": "", "bottle/readme.txt": ""})
    zipper = {8: ("zipper", 0, "good", None), 9: ("zipper", 1, "split_teeth", 9)}
    check("mvtec", root, expected | zipper)
    check("mvtec", root, {1: ("bottle", 0, "good", None)}, "train")
    check("mvtec", root / "bottle", expected)  # one class alone
    check("mvtec", tmp_path, expected | zipper)  # the folder around the archive
    only = load_anomaly_dataset("mvtec", root, class_names="zipper")
    assert summary(only) == zipper


def test_visa_by_hand(tmp_path):
    header = "object,split,label,image,mask\n"
    lines = [
        "candle,train,normal,candle/Data/Images/Normal/0000.JPG,",
        "candle,test,normal,candle/Data/Images/Normal/0001.JPG,",
        "candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png",
        "pcb1,test,anomaly,pcb1/Data/Images/Anomaly/000.JPG,pcb1/Data/Masks/Anomaly/000.png",
        "pcb1,test,anomaly,pcb1/Data/Images/Anomaly/001.JPG,",
    ]
    images = {line.split(",")[3]: number for number, line in enumerate(lines, start=1)}
    write_tree(tmp_path, images, text={"split_csv/1cls.csv": header + "\n".join(lines) + "\n"})
    write_mask(tmp_path / "candle/Data/Masks/Anomaly/000.png", 3, value=1)  # VisA's masks hold small numbers
    write_mask(tmp_path / "pcb1/Data/Masks/Anomaly/000.png", 4, value=2)
    expected = {
        2: ("candle", 0, "good", None),
        3: ("candle", 1, "anomaly", 3),
        4: ("pcb1", 1, "anomaly", 4),
        5: ("pcb1", 1, "anomaly", None),
    }
    check("visa", tmp_path, expected)


@pytest.mark.parametrize(
    ("name", "class_name", "normal", "kind", "suffix", "mask_suffix", "image_suffix"),
    [
        ("mpdd", "bracket_black", "good", "hole", "_mask", ".png", ".png"),
        ("btad", "01", "ok", "ko", "", ".png", ".bmp"),
        ("btad", "01", "ok", "ko", "", ".bmp", ".png"),
        ("btad", "01", "ok", "ko", "_mask", ".PNG", ".bmp"),
        ("sdd", "electrical commutators", "good", "defect", "_label", ".bmp", ".jpg"),  # the authors' copy
        ("dtd_synthetic", "Woven_001", "good", "bad", "_mask", ".png", ".png"),
    ],
)
def test_trees_like_mvtecs_by_hand(name, class_name, normal, kind, suffix, mask_suffix, image_suffix, tmp_path):
    images, masks, expected = mvtec_like(class_name, normal, kind, suffix, mask_suffix, image_suffix)
    write_tree(tmp_path, images, masks)
    check(name, tmp_path, expected)


def test_sdd_by_hand_in_the_original(tmp_path):
    """Every part has a label file; all zero means normal; parts bear the same names in every folder."""
    images = {"kos01/Part0.jpg": 1, "kos01/Part5.jpg": 2, "kos02/Part0.jpg": 3, "kos10/Part10.jpg": 4}
    masks = {
        "kos01/Part0_label.bmp": 0,
        "kos01/Part5_label.bmp": 2,
        "kos02/Part0_label.bmp": 3,
        "kos10/Part10_label.bmp": 0,
    }
    write_tree(tmp_path, images, masks)
    name = "electrical commutators"
    normal, defect = (name, 0, "good", None), (name, 1, "anomaly")
    check("sdd", tmp_path, {1: normal, 2: (*defect, 2), 3: (*defect, 3), 4: normal})


def test_dagm_by_hand(tmp_path):
    images = {
        "Class1/Train/0576.PNG": 1,
        "Class1/Train/0577.PNG": 2,
        "Class1/Test/0001.PNG": 3,
        "Class1/Test/0002.PNG": 4,
        "Class10/Test/0002.PNG": 5,
        "Class10/Test/0001.PNG": 6,
    }
    masks = {
        "Class1/Train/Label/0576_label.PNG": 1,
        "Class1/Test/Label/0002_label.PNG": 4,
        "Class10/Test/Label/0001_label.PNG": 6,
    }
    write_tree(tmp_path / "DAGM_KaggleUpload", images, masks, {"DAGM_KaggleUpload/Class1/Test/Label/Labels.txt": "1"})
    expected = {
        3: ("Class1", 0, "good", None),
        4: ("Class1", 1, "anomaly", 4),
        5: ("Class10", 0, "good", None),
        6: ("Class10", 1, "anomaly", 6),
    }
    check("dagm", tmp_path, expected)
    check("dagm", tmp_path, {1: ("Class1", 1, "anomaly", 1), 2: ("Class1", 0, "good", None)}, "train")


def test_headct_by_hand(tmp_path):
    authors, original = tmp_path / "authors", tmp_path / "original"
    write_tree(authors, {"brain/test/good/000.png": 1, "brain/test/anomaly/000.png": 2})
    check("headct", authors, {1: ("brain", 0, "good", None), 2: ("brain", 1, "anomaly", None)})
    images = {"head_ct/head_ct/000.png": 1, "head_ct/head_ct/007.png": 2, "head_ct/head_ct/100.png": 3}
    write_tree(original, images, text={"labels.csv": "id, hemorrhage\n0,1\n7,1\n100,0\n"})
    expected = {1: ("brain", 1, "anomaly", None), 2: ("brain", 1, "anomaly", None), 3: ("brain", 0, "good", None)}
    check("headct", original, expected)


def test_brainmri_by_hand(tmp_path):
    once = {"no/1 no.jpeg": 1, "no/N2.JPG": 2, "yes/Y1.jpg": 3}
    twice = {f"brain_tumor_dataset/{path}": number for path, number in once.items()}
    expected = {1: ("brain", 0, "good", None), 2: ("brain", 0, "good", None), 3: ("brain", 1, "yes", None)}
    write_tree(tmp_path, once | twice)
    check("brainmri", tmp_path, expected)
    check("brainmri", tmp_path / "brain_tumor_dataset", expected)


def test_br35h_by_hand(tmp_path):
    images = {"no/no0.jpg": 1, "yes/y0.jpg": 2, "yes/y1.jpg": 3, "pred/pred0.jpg": 4, "Br35H-Mask-RCNN/TEST/y9.jpg": 5}
    write_tree(tmp_path, images)
    check("br35h", tmp_path, {1: ("brain", 0, "good", None), **dict.fromkeys((2, 3), ("brain", 1, "yes", None))})


@pytest.mark.parametrize(("normal", "inside"), [("NORMAL", ""), ("Normal", "images/")])
def test_covid19_by_hand(normal, inside, tmp_path):
    images = {
        f"{normal}/{inside}Normal-1.png": 1,
        f"COVID/{inside}COVID-1.png": 2,
        f"Viral Pneumonia/{inside}V-1.png": 3,
    }
    lungs = {"Normal/masks/Normal-1.png": 50, "COVID/masks/COVID-1.png": 50} if inside else {}  # not anomalies
    write_tree(tmp_path, images, lungs, {"README.md.txt": ""})
    expected = {
        1: ("chest", 0, "good", None),
        2: ("chest", 1, "COVID", None),
        3: ("chest", 1, "Viral Pneumonia", None),
    }
    check("covid19", tmp_path, expected)


def test_isic_by_hand(tmp_path):
    images = {
        "skin/test/good/ISIC_0000001.jpg": 1,
        "skin/test/melanoma/ISIC_0000003.jpg": 2,
        "skin/test/melanoma/ISIC_0000010.jpg": 3,
    }
    truth = "ISBI2016_ISIC_Part1_Test_GroundTruth"
    masks = {f"skin/{truth}/ISIC_0000003_Segmentation.png": 2, f"skin/{truth}/ISIC_0000010_Segmentation.png": 3}
    write_tree(tmp_path / "authors", images, masks)
    expected = {1: ("skin", 0, "good", None), 2: ("skin", 1, "melanoma", 2), 3: ("skin", 1, "melanoma", 3)}
    check("isic", tmp_path / "authors", expected)
    images = {"ISBI2016_ISIC_Part1_Test_Data/ISIC_0000003.jpg": 2, "ISBI2016_ISIC_Part1_Test_Data/ISIC_0000010.jpg": 3}
    masks = {f"{truth}/ISIC_0000003_Segmentation.png": 2, f"{truth}/ISIC_0000010_Segmentation.png": 3}
    write_tree(tmp_path / "original", images, masks)
    check("isic", tmp_path / "original", {n: ("skin", 1, "anomaly", n) for n in (2, 3)})


@pytest.mark.parametrize("name", ["colondb", "clinicdb", "kvasir"])
def test_polyps_by_hand(name, tmp_path):
    images = {"images/1.png": 1, "images/10.png": 2, "images/2.png": 3, "images/cju0.jpg": 4}
    masks = {"masks/10.png": 2, "masks/2.tif": 3, "masks/1.png": 1, "masks/cju0.png": 4}
    write_tree(tmp_path, images, masks)
    check(name, tmp_path, {n: ("colon", 1, "anomaly", n) for n in (1, 2, 3, 4)})


def test_polyps_share_one_archive(tmp_path):
    for number, folder in enumerate(("CVC-ColonDB", "CVC-ClinicDB", "Kvasir"), start=1):
        write_tree(tmp_path / folder, {"images/1.png": number}, {"masks/1.png": number})
    check("clinicdb", tmp_path, {2: ("colon", 1, "anomaly", 2)})
    check("kvasir", tmp_path, {3: ("colon", 1, "anomaly", 3)})
    (tmp_path / "CVC-ColonDB").rename(tmp_path / "other")
    with pytest.raises(ValueError, match=r"does not hold CVC-ColonDB.*found CVC-ClinicDB/, Kvasir/, other/"):
        load_anomaly_dataset("colondb", data_dir=tmp_path)


def test_endo_by_hand(tmp_path):
    images = {"images/b.jpg": 1, "images/b2.jpg": 2, "images/b10.jpg": 3}
    write_tree(tmp_path, images, {"masks/b2.png": 2, "masks/b10.png": 3, "masks/b.png": 1})
    expected = {n: ("colon", 1, "images", n) for n in (1, 2, 3)}
    check("endo", tmp_path, expected)
    write_tree(tmp_path, {"good/h.jpg": 4})
    check("endo", tmp_path, expected | {4: ("colon", 0, "good", None)})


def test_tn3k_by_hand(tmp_path):
    write_tree(
        tmp_path,
        {"test-image/0000.jpg": 1, "test-image/0010.jpg": 2, "trainval-image/0000.jpg": 9},
        {"test-mask/0010.jpg": 0, "test-mask/0000.png": 1, "trainval-mask/0000.jpg": 9},
    )
    Image.fromarray(pixels_of(2).astype(np.uint8) * 255).save(tmp_path / "test-mask/0010.png")
    (tmp_path / "test-mask/0010.jpg").unlink()
    check("tn3k", tmp_path, {n: ("thyroid", 1, "anomaly", n) for n in (1, 2)})


def test_leftovers_of_archives_are_no_images(tmp_path):
    images, masks, expected = mvtec_like("tubes", "good", "bent", "_mask")
    write_tree(tmp_path, images, masks, {"tubes/test/bent/._2.png": "x", "__MACOSX/tubes/test/good/1.png": "x"})
    check("mpdd", tmp_path, expected)


def test_errors_say_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"MVTec AD is not downloaded .* https://www\.mvtec\.com.* data_dir"):
        load_anomaly_dataset("mvtec")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_anomaly_dataset("mvtec", data_dir=tmp_path / "nowhere")
    write_tree(tmp_path, {"stuff/a.png": 1}, text={"notes.txt": ""})
    with pytest.raises(ValueError, match=r"looked for \{class_name\}/\{split\}.*bottle.*found notes\.txt, stuff/"):
        load_anomaly_dataset("mvtec", data_dir=tmp_path)
    write_tree(tmp_path, {"tubes/test/good/a.png": 1})
    with pytest.raises(ValueError, match=r"split='train', but .* has test"):
        load_anomaly_dataset("mpdd", data_dir=tmp_path, split="train")
    with pytest.raises(ValueError, match=r"class_names=\['cable'\], but .* has tubes"):
        load_anomaly_dataset("mpdd", data_dir=tmp_path, class_names=["cable"])


def test_a_table_that_names_missing_files(tmp_path):
    lines = "object,split,label,image,mask\ncandle,test,normal,a.png,\ncandle,test,normal,gone.png,\n"
    write_tree(tmp_path, {"a.png": 1}, text={"split_csv/1cls.csv": lines})
    with pytest.raises(ValueError, match=r"1 files named by .*1cls\.csv.*gone\.png"):
        load_anomaly_dataset("visa", data_dir=tmp_path)


def test_adding_a_data_set_is_adding_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr("anomalyclip_hf.data.layouts.LAYOUTS", dict(LAYOUTS))
    parts = DatasetLayout(
        name="my_parts",
        title="My parts",
        classes=("bolt", "nut"),
        normal_kinds=("fine",),
        variants=(Variant("{class_name}/{split}/{kind}/{stem}", masks=("{class_name}/truth/{kind}/{stem}_gt",)),),
    )
    register_layout(parts)
    write_tree(tmp_path, {"nut/test/fine/1.png": 1, "nut/test/bent/1.png": 2}, {"nut/truth/bent/1_gt.png": 2})
    check("my_parts", tmp_path, {1: ("nut", 0, "good", None), 2: ("nut", 1, "bent", 2)})
    with pytest.raises(ValueError, match="'mvtec' already belongs to MVTec AD"):
        register_layout(DatasetLayout("mvtec2", "Mine", (Variant(),), aliases=("mvtec",)))


def test_rows_are_checked():
    with pytest.raises(ValueError, match="label='guess' must be one of kind"):
        Variant("{stem}", label="guess")
    assert Table("labels.csv", ("{id}",)).normal_labels == ("normal",)


@pytest.mark.parametrize("pattern", ["[{class_name}/{kind}/{stem}", "{kind}]/{stem}", "{stem}/{stem}"])
def test_a_pattern_that_is_none_is_named(tmp_path, monkeypatch, pattern):
    monkeypatch.setattr("anomalyclip_hf.data.layouts.LAYOUTS", dict(LAYOUTS))
    register_layout(DatasetLayout("my_parts", "My parts", (Variant(pattern),)))
    write_tree(tmp_path, {"good/1.png": 1})
    with pytest.raises(ValueError, match=f"pattern {re.escape(repr(pattern))}: each \\[ needs its \\]"):
        load_anomaly_dataset("my_parts", data_dir=tmp_path)
