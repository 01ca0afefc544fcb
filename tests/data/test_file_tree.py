"""What the names of files and folders say: images, masks, results, links; and own trees that hold them all."""

import json
import os
import unicodedata

import pytest
from picture_trees import summary, write_mask, write_picture, write_tree
from PIL import Image

from anomalyclip_hf.data import load_anomaly_dataset
from anomalyclip_hf.data.file_tree import RESULTS, FileTree, MaskFinder, leaves_root
from anomalyclip_hf.data.inspect import inspect_source
from anomalyclip_hf.data.records import list_unused

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_the_likeliest_mask_is_first():
    masks = ["masks/1.png", "masks/bad/1.png", "masks/rust/1.png", "bad/masks/1_mask.jpg", "gt/c/bad/2/000.png"]
    finder = MaskFinder([*masks, "gt/c/bad/3/000.png", "gt/c/bad/3/001.png"])
    assert finder.find("bad/1.jpg") == ["bad/masks/1_mask.jpg", "masks/bad/1.png", "masks/1.png"]
    assert finder.find("c/test/bad/2.png") == ["gt/c/bad/2/000.png"]
    assert finder.find("c/test/bad/3.png") == []  # none of several is the whole truth


def samples(source, split="all", **arguments):
    """{number: (class, label, area of the mask)}"""
    rows = summary(load_anomaly_dataset(source, split=split, **arguments))
    return {number: (row[0], row[1], row[3]) for number, row in rows.items()}


PLAIN = {"good/0.png": 1, "bad/1.png": 2}


@pytest.mark.parametrize(
    "mask",
    [
        *("bad/1_mask.png", "bad/1_GT.png", "bad/mask_1.png", "bad/1_label.bmp", "bad/1-segmentation.png"),
        *("masks/1.png", "masks/bad/1.png", "Ground Truth/bad/1_mask.png", "ground-truth/1.png", "bad/masks/1.png"),
        *("annotations/bad/1.png", "gt_masks/1_gt.png", "Segmentations/1.png", "LABELS/bad/1.png", "mask_gt/1.png"),
        "masks/bad/1/000.png",
    ],
)
def test_masks_of_a_folder_of_kinds(mask, tmp_path):
    root = tmp_path / "nut"
    write_tree(root, PLAIN, {mask: 7})
    assert samples(root) == {1: ("nut", 0, None), 2: ("nut", 1, 7)}
    assert inspect_source(root, progress=False).problems == []


@pytest.mark.parametrize(
    "mask", ["bolt/bad/1_mask.png", "masks/bolt/bad/1.png", "bolt/gt/1.png", "bolt/bad/masks/1.png"]
)
def test_masks_of_folders_of_classes(mask, tmp_path):
    images = {"bolt/good/0.png": 1, "bolt/bad/1.png": 2, "nut/good/0.png": 3, "nut/bad/1.png": 4}
    write_tree(tmp_path, images, {mask: 7})
    expected = {1: ("bolt", 0, None), 2: ("bolt", 1, 7), 3: ("nut", 0, None), 4: ("nut", 1, None)}
    assert samples(tmp_path) == expected


def test_a_mask_without_its_image_is_no_image(tmp_path):
    write_tree(tmp_path, PLAIN, {"bad/1_mask.png": 7, "bad/2_mask.png": 8})
    assert set(samples(tmp_path)) == {1, 2}
    (problem,) = inspect_source(tmp_path, progress=False).problems
    assert problem.kind == "extra_mask" and problem.path.endswith("bad/2_mask.png")


def test_a_kind_may_sound_like_masks(tmp_path):
    write_tree(tmp_path, {"label/0.png": 1, "torn/1.png": 2, "torn/face_mask.png": 3})
    assert {n: row[1] for n, row in samples(tmp_path, normal_kinds=["label"]).items()} == {1: 0, 2: 1, 3: 1}


@pytest.mark.parametrize(
    ("images", "masks", "expected"),
    [
        pytest.param(
            {"train/images/0.png": 1, "test/images/0.png": 2, "test/images/1.png": 3},
            {"train/masks/0.png": 0, "test/masks/0.png": 0, "test/masks/1.png": 3},
            {"train": {1: 0}, "test": {2: 0, 3: 1}},
            id="images and masks in splits",
        ),
        pytest.param(
            {"Images/train/0.png": 1, "Images/test/1.png": 3},
            {"Masks/train/0.png": 0, "Masks/test/1.png": 3},
            {"train": {1: 0}, "test": {3: 1}},
            id="splits in images and masks",
        ),
        pytest.param(
            {"train/0.png": 1, "test/0.png": 2, "test/1.png": 3},
            {"train/0_GT.png": 0, "test/0_GT.png": 0, "test/1_GT.png": 3},
            {"train": {1: 0}, "test": {2: 0, 3: 1}},
            id="KolektorSDD2",
        ),
        pytest.param(
            {"can/Data/Images/Normal/0.JPG": 1, "can/Data/Images/Anomaly/0.JPG": 3},
            {"can/Data/Masks/Anomaly/0.png": 3},
            {"test": {1: 0, 3: 1}},
            id="VisA",
        ),
        pytest.param(
            {"can/train/good/0.png": 1, "can/test_public/good/0.png": 2, "can/test_public/bad/0.png": 3},
            {"can/test_public/ground_truth/bad/0_mask.png": 3},
            {"train": {1: 0}, "test": {2: 0, 3: 1}},
            id="MVTec AD 2",
        ),
        pytest.param(
            {"train/good/0.png": 1, "valid/good/img/0.png": 4, "test/good/img/0.png": 2, "test/Ungood/img/1.png": 3},
            {"test/Ungood/label/1.png": 3},
            {"train": {1: 0}, "validation": {4: 0}, "test": {2: 0, 3: 1}},
            id="BMAD",
        ),
        pytest.param(
            {"c/train/good/0.png": 1, "c/test/good/dim/0.png": 2, "c/test/cut/dim/1.png": 3},
            {"c/ground_truth/cut/dim/1.png": 3},
            {"train": {1: 0}, "test": {2: 0, 3: 1}},
            id="AeBAD",
        ),
        pytest.param(
            {"good/train/0.png": 1, "good/test/0.png": 2, "bad/test/1.png": 3},
            {"masks/bad/test/1.png": 3},
            {"train": {1: 0}, "test": {2: 0, 3: 1}},
            id="splits in kinds",
        ),
    ],
)
def test_own_trees(images, masks, expected, tmp_path):
    write_tree(tmp_path, images, masks)
    for split, labels in expected.items():
        found = samples(tmp_path, split)
        assert {n: (label, area) for n, (_, label, area) in found.items()} == {
            n: (label, n if label else None) for n, label in labels.items()
        }
    report = inspect_source(tmp_path, progress=False)
    assert report.num_images == len(images) and not report.problems


@pytest.mark.parametrize(
    "images",
    [
        {"train/images/0.png": 1, "test/images/0.png": 2},
        {"train/cat/0.png": 1, "train/dog/1.png": 2},
        {"sheet.png": 1, "fine/0.png": 1, "bad/1.png": 2},
    ],
    ids=["no masks", "classes of animals", "a picture beside the folders"],
)
def test_labels_are_not_invented(images, tmp_path):
    write_tree(tmp_path, images)
    with pytest.raises(ValueError, match="which images are normal"):
        load_anomaly_dataset(tmp_path, split="all")


def test_images_without_a_mask_file_are_told_of(tmp_path):
    write_tree(
        tmp_path, {"images/1.png": 1, "images/2.png": 2, "images/3.png": 3}, {"masks/1.png": 1, "masks/2.png": 0}
    )
    assert [row[1] for row in samples(tmp_path).values()] == [1, 0, 0]
    notes = inspect_source(tmp_path, progress=False).notes
    assert "1 images without a mask file are taken as normal (images/3.png)" in notes


def test_a_normal_folder_below_a_class_is_no_defect(tmp_path):
    write_tree(tmp_path, {**PLAIN, "bolt/good/3.png": 3})
    assert set(samples(tmp_path)) == {1, 2}
    assert "1 in a normal folder below bolt/" in " ".join(inspect_source(tmp_path, progress=False).notes)


@pytest.mark.parametrize(
    ("mark", "pictures"),
    [
        ("out/predictions.jsonl", ["out/legend.png", "out/overlays/a.png", "out/maps/bad/1.png"]),
        ("out/predictions-2.jsonl", ["out/legend.png", "out/overlays/a.png"]),
        ("out/skipped.jsonl", ["out/legend.png"]),
        ("out/overlays/x.txt", ["out/legend.png", "out/overlays/a.png"]),
        ("ev/results.json", ["ev/samples.png", "ev/maps/nut/0.png"]),
        ("ev/results.md", ["ev/samples.png", "ev/maps/mine/d/bad/000000_0.png"]),
        ("ev/report.html", ["ev/samples.png"]),
        ("ev/scores.parquet", ["ev/samples.png", "ev/maps/nut/0.png"]),
        ("ev/records/mine/run.json", ["ev/maps/mine/d/bad/000000_0.png"]),
        ("ev/progress/mine/d.class.json", ["ev/maps/mine/d/bad/000000_0.png"]),
        ("run/training_log.jsonl", ["run/training_curves.png"]),
        ("run/training_summary.json", ["run/training_curves.png"]),
        ("run/prompts.safetensors", ["run/training_curves.png"]),
        ("good/unrelated.txt", ["killed/overlays/bad/1.png.png", "killed/maps/bad/1.jpg.npy"]),
    ],
)
def test_results_of_this_package_are_no_images(tmp_path, mark, pictures):
    write_tree(tmp_path, PLAIN, text={mark: "{}", **dict.fromkeys((p for p in pictures if p[-1] == "y"), "")})
    write_tree(tmp_path, dict.fromkeys((p for p in pictures if p[-1] != "y"), 5))
    tree = FileTree(tmp_path)
    assert sorted(tree.files) == sorted(PLAIN) and tree.tables == []
    assert tree.masks() == set() and set(tree.set_aside) == {RESULTS}
    assert all(any(p == one or p.startswith(one + "/") for one in tree.set_aside[RESULTS]) for p in pictures)
    assert set(samples(tmp_path)) == {1, 2}
    assert "results of this package" in " ".join(inspect_source(tmp_path, progress=False).notes)


@pytest.mark.parametrize("folder", ["maps", "records", "overlays", "progress"])
def test_a_kind_may_be_called_as_results_are(tmp_path, folder):
    write_tree(tmp_path, {"good/0.png": 1, f"{folder}/1.png": 2, f"{folder}/samples.png": 3})
    assert {n: row[1] for n, row in samples(tmp_path).items()} == {1: 0, 2: 1, 3: 1}


@pytest.mark.parametrize("name", ["sheet.png", "sheet1.jpg", "bad/look.png"])
def test_contact_sheets_are_no_images(tmp_path, name):
    write_tree(tmp_path, {**PLAIN, "bad/plain.png": 3, "good/sheet7.png": 4})
    inspect_source(tmp_path, progress=False, contact_sheet=tmp_path / name)
    assert FileTree(tmp_path).set_aside == {RESULTS: [name]}
    assert set(samples(tmp_path)) == {1, 2, 3, 4}


def test_files_are_sorted_out(tmp_path):
    images = {**PLAIN, "bad/1_mask.png": 7, "masks/bad/1.png": 7, "out/overlays/a.png": 3, "own/x.png": 4}
    text = {"out/results.md": "", "bad/a.xcf": "", "bad/b.nii.gz": "", "IM0001": "", "bad/c.heic": "", "notes.txt": ""}
    write_tree(
        tmp_path, images, text={**text, "LICENSE-DATASET": "", "bad/d.xcf": "", ".hidden.png": "", "t.csv": "x"}
    )
    tree = FileTree(tmp_path, skip=[tmp_path / "own"])
    assert tree.masks() == {"bad/1_mask.png", "masks/bad/1.png"}
    assert [path for path in tree.files if path not in tree.masks()] == ["bad/1.png", "good/0.png"]
    assert tree.set_aside == {
        RESULTS: ["out/overlays"],
        ".xcf files": ["bad/a.xcf", "bad/d.xcf"],
        ".nii.gz files": ["bad/b.nii.gz"],
        ".heic files": ["bad/c.heic"],
        "files without suffix": ["IM0001"],
    }


@pytest.mark.parametrize(
    "suffix",
    ["mpo", "jp2", "heic", "heics", "arw", "qoi", "pcx", "dds", "fits", "xcf", "mat", "svgz", "cur", "ras", "zip"],
)
def test_no_suffix_vanishes(suffix, tmp_path):
    write_tree(tmp_path, PLAIN)
    Image.new("RGB", (16, 12), (24, 24, 24)).save(tmp_path / "bad" / f"2.{suffix}", format="JPEG", quality=100)
    report = inspect_source(tmp_path, progress=False)
    noted = f"1 file not used: 1 .{suffix} files (bad/2.{suffix})" in report.notes
    assert (report.num_images, noted) == ((3, False) if suffix in ("mpo", "jp2") else (2, True))
    assert report.problems == [] or suffix in ("mpo", "jp2")


@pytest.mark.parametrize("suffix", [".jfif", ".JPG", ".Png", ".avif", ".pbm"])
def test_suffixes(suffix, tmp_path):
    write_tree(tmp_path, {"good/0.png": 1})
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / f"1{suffix}").write_bytes(b"")
    assert sorted(load_anomaly_dataset(tmp_path)["label"]) == [0, 1]


def test_images_of_one_stem_have_their_own_masks(tmp_path):
    write_tree(tmp_path, {"good/0.png": 1, "bad/1.png": 2, "bad/1.jpg": 3}, {"masks/1.png": 20, "masks/1.jpg": 0})
    dataset = load_anomaly_dataset(tmp_path)
    masks = dict(zip(dataset["path"], dataset.data.column("mask").to_pylist(), strict=True))
    found = {os.path.basename(path): mask and os.path.basename(mask["path"]) for path, mask in masks.items()}
    assert found == {"0.png": None, "1.png": "1.png", "1.jpg": "1.jpg"}


def test_accents_meet_however_they_are_composed(tmp_path):
    composed, apart = (unicodedata.normalize(form, "Prüfung.png") for form in ("NFC", "NFD"))
    write_tree(tmp_path, {"good/0.png": 1, f"bad/{composed}": 2}, {f"masks/{apart}": 7})
    assert samples(tmp_path)[2][2] == 7
    (tmp_path / "t.csv").write_text(f"image,label\nbad/{apart},1\n", encoding="utf-8")
    assert list(samples(tmp_path / "t.csv")) == [2]


def test_names_of_users_meet_those_of_the_disk_however_accents_are_composed(tmp_path):
    composed, apart = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    for disk, word in ((composed, apart), (apart, composed)):
        root = tmp_path / str(disk == apart)
        images = {f"c{disk}/test/k{disk}/0.png": 1, f"c{disk}/test/b{word}d/1{disk}.png": 2, "b/test/bad/2.png": 3}
        write_tree(root, images, {f"c{disk}/ground_truth/b{disk}d/1{word}_mask.png": 7})
        kinds = {"normal_kinds": [f"k{word}"]}
        assert samples(root, class_names=[f"c{word}"], **kinds) == {1: (f"c{disk}", 0, None), 2: (f"c{disk}", 1, 7)}
        assert inspect_source(root, class_names=[f"c{word}"], progress=False, **kinds).num_images == 2
        stream = load_anomaly_dataset(
            load_anomaly_dataset(root, **kinds).to_iterable_dataset(), class_names=[f"c{word}"]
        )
        assert len(list(stream)) == 2
        entry = {
            "img_path": f"c{word}/test/b{disk}d/1{word}.png",
            "mask_path": f"c{disk}/ground_truth/b{word}d/1{disk}_mask.png",
            "cls_name": f"c{disk}",
            "anomaly": 1,
        }
        meta = tmp_path / "meta.json"
        meta.write_text(json.dumps({f"t{disk}": {"c": [entry]}}), encoding="utf-8")
        found = samples(meta, f"t{word}", data_dir=root, class_names=[f"c{word}"])
        assert found == {2: (f"c{disk}", 1, 7)}
        table = tmp_path / "t.csv"
        table.write_text(f"im{disk}ge,l\nc{disk}/test/k{disk}/0.png,k{disk}\n", encoding="utf-8")
        columns = {"image_column": f"im{word}ge", "label_column": "l", "normal_labels": [f"k{word}"]}
        assert samples(table, data_dir=root, **columns)[1][1] == 0


def test_files_that_a_table_does_not_name_are_counted_whatever_they_are(tmp_path):
    text = {"metadata.csv": "file_name,label\ngood/0.png,0\nscan,1\n", "bad/a.xcf": "", "notes.txt": ""}
    write_tree(tmp_path, {**PLAIN, "scan.png": 3}, text=text)
    (tmp_path / "scan.png").rename(tmp_path / "scan")  # read by its content
    (note,) = [note for note in inspect_source(tmp_path, progress=False).notes if "not used" in note]
    assert note == "2 files not used: 1 not named by table metadata.csv (bad/1.png); 1 .xcf files (bad/a.xcf)"


def test_many_reasons_are_shortened():
    unused = {f".{number} files": ["a", "b"] for number in range(10)}
    text = list_unused(unused)
    assert text.startswith("20 files not used: 2 .0 files (a, b); 2 .1 files") and "2 .7 files" in text
    assert text.endswith("; and those of 2 other kinds")


def test_linked_folders_are_read_once_and_told_of(tmp_path):
    root, store = tmp_path / "set", tmp_path / "store"
    write_tree(root, PLAIN)
    write_tree(store, {"5.png": 5})
    (root / "rust").symlink_to(store)
    (root / "all").symlink_to(root / "good")  # named before the folder itself
    (root / "bad" / "up").symlink_to(root)
    (root / "bad" / "top").symlink_to(tmp_path)
    assert {n: row[1] for n, row in samples(root).items()} == {1: 0, 2: 1, 5: 1}
    notes = " ".join(inspect_source(root, progress=False).notes)
    assert "1 images lie outside of" in notes and "rust/5.png" in notes
    assert "3 links to what is read under its own name (all, bad/top, bad/up)" in notes


def test_names_that_are_not_utf_8_are_told_of(tmp_path):
    write_tree(tmp_path, PLAIN)
    try:
        write_picture(tmp_path / "bad" / os.fsdecode(b"\xff.png"), 3)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    assert set(samples(tmp_path)) == {1, 2}
    assert r"bad/\xff.png" in " ".join(inspect_source(tmp_path, progress=False).notes)


def test_what_leaves_a_folder(tmp_path):
    root = tmp_path / "set"
    write_tree(root, {"a.png": 1})
    write_mask(tmp_path / "secret.png", 1)
    (root / "link.png").symlink_to("../secret.png")
    assert [leaves_root(str(root), path) for path in ("a.png", "x/../a.png", str(root / "a.png"), "")] == [False] * 4
    outside = ("../secret.png", "link.png", str(tmp_path / "secret.png"), "../set2/a.png")
    assert [leaves_root(str(root), path) for path in outside] == [True] * 4


def test_a_snapshot_of_the_hub_holds_its_blobs(tmp_path):
    write_tree(tmp_path, {"repo/blobs/abc.png": 1, "other/b.png": 2})
    snapshot = tmp_path / "repo" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "a.png").symlink_to("../../blobs/abc.png")
    (snapshot / "b.png").symlink_to("../../../other/b.png")
    assert not leaves_root(str(snapshot), "a.png") and leaves_root(str(snapshot), "b.png")
