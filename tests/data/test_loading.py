"""Own data of every kind through the one door."""

import ast
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from picture_trees import area_of, number_of, pixels_of, summary, write_mask, write_picture, write_tree
from PIL import Image

from anomalyclip_hf.data import SourceOptions, load_anomaly_dataset, loading
from anomalyclip_hf.data.export import export_source
from anomalyclip_hf.data.images import ImageReadError

REAL = Path(__file__).parents[1] / "fixtures" / "real"
COLUMNS = ["image", "mask", "label", "class_name", "defect_type", "path"]
GOOD, BAD = 0, 1


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "nuts"
    images = {"good/1.png": 1, "good/2.jpg": 2, "bent/1.png": 3, "bent/10.png": 4, "rust/a.b.png": 5, "rust/c.png": 6}
    masks = {"masks/10.png": 4, "masks/a.b.png": 5, "masks/1.png": 3}
    write_tree(root, images, masks, {"boxes/10.txt": "1 2 3 4", "README.md": ""})
    return root


FOLDER = {
    1: ("nuts", GOOD, "good", None),
    2: ("nuts", GOOD, "good", None),
    3: ("nuts", BAD, "bent", 3),
    4: ("nuts", BAD, "bent", 4),
    5: ("nuts", BAD, "rust", 5),
    6: ("nuts", BAD, "rust", None),
}


def test_folder(folder):
    dataset = load_anomaly_dataset(folder)
    assert summary(dataset) == FOLDER
    assert dataset.column_names == COLUMNS
    assert dataset.features["label"].names == ["normal", "anomalous"]
    assert isinstance(dataset.features["image"], datasets.Image) and isinstance(
        dataset.features["mask"], datasets.Image
    )
    assert dataset[0]["path"] == str(folder / "bent" / "1.png")
    assert dataset[0]["image"].mode == "RGB"


def test_nothing_is_decoded_before_it_is_read(folder, monkeypatch):
    dataset = load_anomaly_dataset(folder)

    def refuse(*_, **__):
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr("anomalyclip_hf.data.features.read_image", refuse)
    monkeypatch.setattr("anomalyclip_hf.data.features.read_mask", refuse)
    assert list(dataset["label"]) == [1, 1, 0, 0, 1, 1]
    assert list(dataset["defect_type"]) == ["bent", "bent", "good", "good", "rust", "rust"]
    assert dataset.unique("class_name") == ["nuts"]
    with pytest.raises(AssertionError, match="was decoded"):
        dataset[0]


def test_usual_methods_keep_decoding(folder):
    dataset = load_anomaly_dataset(folder)
    assert [area_of(mask) for mask in dataset["mask"]] == [3, 4, None, None, 5, None]
    assert summary(dataset.filter(lambda label: label == 1, input_columns="label")) == {
        n: row for n, row in FOLDER.items() if row[1]
    }
    assert summary(dataset.shuffle(seed=0).select(range(6))) == FOLDER
    assert summary(dataset.map(lambda row: {"more": row["image"].size[0]}).remove_columns("more")) == FOLDER
    parts = dataset.train_test_split(test_size=2, stratify_by_column="label", seed=0)
    assert sorted(parts["test"]["label"]) == [0, 1]


def test_streaming(folder):
    stream = load_anomaly_dataset(folder, streaming=True)
    assert isinstance(stream, datasets.IterableDataset)
    rows = list(stream)
    assert {number_of(r["image"]): area_of(r["mask"]) for r in rows} == {n: row[3] for n, row in FOLDER.items()}
    assert [r["label"] for r in rows] == [1, 1, 0, 0, 1, 1]


def test_folder_options(folder):
    chosen = load_anomaly_dataset(folder, normal_kinds=["rust"])
    assert {n: row[1] for n, row in summary(chosen).items()} == {1: 1, 2: 1, 3: 1, 4: 1, 5: 0, 6: 0}
    assert len(load_anomaly_dataset(folder, split="all")) == 6
    with pytest.raises(ValueError, match=r"split='train', but .*nuts.* has test"):
        load_anomaly_dataset(folder, split="train")
    (folder / "good").rename(folder / "fine")
    with pytest.raises(ValueError, match=r"which images are normal.*good, ok.*found .*bent/.*fine/.*normal_kinds"):
        load_anomaly_dataset(folder)
    assert len(load_anomaly_dataset(folder, normal_kinds=["fine"])) == 6
    assert set(load_anomaly_dataset(folder, normal_kinds=[])["label"]) == {1}


def test_masks_go_to_defects_before_normal_images_of_the_same_name(folder):
    write_mask(folder / "masks" / "2.png", 0)  # only good/2 bears that name: kept, it is an empty one
    found = summary(load_anomaly_dataset(folder))
    assert found[1] == ("nuts", GOOD, "good", None) and found[2] == ("nuts", GOOD, "good", 0)


def test_several_folders(folder):
    write_tree(folder.parent / "bolts", {"ok/1.png": 11, "bad/1.png": 12}, {"ground_truth/bad/1_mask.png": 12})
    expected = FOLDER | {11: ("bolts", GOOD, "good", None), 12: ("bolts", BAD, "bad", 12)}
    assert summary(load_anomaly_dataset(folder.parent)) == expected


def test_mvtec_style_tree(tmp_path):
    images = {"a/train/good/0.png": 1, "a/test/good/0.png": 2, "a/test/cut/0.png": 3, "b/test/ok/0.png": 4}
    write_tree(tmp_path, images, {"a/ground_truth/cut/0_mask.png": 3})
    assert summary(load_anomaly_dataset(tmp_path, split="train")) == {1: ("a", GOOD, "good", None)}
    expected = {2: ("a", GOOD, "good", None), 3: ("a", BAD, "cut", 3), 4: ("b", GOOD, "good", None)}
    assert summary(load_anomaly_dataset(tmp_path)) == expected
    assert set(summary(load_anomaly_dataset(tmp_path / "a"))) == {2, 3}


def test_images_beside_masks_and_images_alone(tmp_path):
    write_tree(
        tmp_path / "x", {"images/1.png": 1, "images/2.png": 2, "images/3.png": 3}, {"masks/1.png": 1, "masks/2.png": 0}
    )
    found = summary(load_anomaly_dataset(tmp_path / "x"))
    assert found == {1: ("x", BAD, "anomaly", 1), 2: ("x", GOOD, "good", None), 3: ("x", GOOD, "good", None)}
    write_tree(tmp_path / "y", {"1.png": 1, "2.png": 2})
    assert summary(load_anomaly_dataset(tmp_path / "y")) == {1: ("y", None, "", None), 2: ("y", None, "", None)}


def test_real_images():
    cookies = load_anomaly_dataset(REAL / "cookies")
    rows = {Path(row["path"]).stem: row for row in cookies}
    assert {name: row["label"] for name, row in rows.items()} == {
        **dict.fromkeys(("anomaly-1", "anomaly-23", "test-anomaly-1"), 1),
        **dict.fromkeys(("normal-1", "test-normal-1"), 0),
    }
    assert rows["test-anomaly-1"]["mask"] is None
    shares = {name: np.asarray(rows[name]["mask"]).mean() / 255 for name in ("anomaly-1", "anomaly-23")}
    assert shares == pytest.approx({"anomaly-1": 0.021, "anomaly-23": 0.075}, abs=0.002)  # as at full size
    pcb = load_anomaly_dataset(REAL / "pcb")
    assert sorted(pcb["label"]) == [0, 0, 1, 1]
    assert all(row["image"].mode == "RGB" and (row["mask"] is None) == (row["label"] == 0) for row in pcb)


def table_of(folder, kind):
    rows = [
        {"picture": "good/1.png", "truth": "", "verdict": "fine", "part": "n"},
        {"picture": "bent/10.png", "truth": "masks/10.png", "verdict": "bent", "part": "n"},
        {"picture": str(folder / "rust/c.png"), "truth": "", "verdict": "rust", "part": "m"},
    ]
    if kind == "jsonl":
        (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder / "index.jsonl"
    mark = {"csv": ",", "semicolon": ";", "tsv": "\t"}[kind]
    path = folder / ("index.tsv" if kind == "tsv" else "index.csv")
    lines = [mark.join(rows[0]), *(mark.join(row.values()) for row in rows)]
    path.write_text("﻿" + "\r\n".join(lines) + "\r\n")
    return path


@pytest.mark.parametrize("kind", ["csv", "semicolon", "tsv", "jsonl"])
def test_tables_with_columns_named(folder, kind):
    columns = {"image_column": "picture", "mask_column": "truth", "label_column": "verdict", "class_column": "part"}
    found = load_anomaly_dataset(table_of(folder, kind), normal_labels=["fine"], **columns)
    expected = {1: ("n", GOOD, "good", None), 4: ("n", BAD, "anomaly", 4), 6: ("m", BAD, "anomaly", None)}
    assert summary(found) == expected


def test_tables_with_usual_columns(folder):
    lines = "image,label,split\ngood/1.png,0,train\nbent/1.png,anomaly,test\nbent/10.png,,test\n"
    (folder / "t.csv").write_text(lines)
    assert summary(load_anomaly_dataset(folder / "t.csv")) == {
        3: ("t", BAD, "anomaly", None),
        4: ("t", None, "", None),
    }
    assert summary(load_anomaly_dataset(folder / "t.csv", split="train")) == {1: ("t", GOOD, "good", None)}
    (folder.parent / "far.csv").write_text(lines)
    # Samples of no class are of the table's, wherever its files lie.
    assert load_anomaly_dataset(folder.parent / "far.csv", data_dir=folder)["class_name"] == ["far", "far"]


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("a,b\n1,2\n", {}, "no image column: looked for image, img.* found a, b"),
        (
            "image,label\ngood/1.png,0\n",
            {"label_column": "y"},
            "label_column='y', but .* has the columns image, label",
        ),
        ("image,label\ngood/1.png,meh\n", {}, "line 2: label 'meh' is neither normal .* normal_labels"),
        ("image,label\ngone.png,0\n", {}, "none of the 1 images .* gone.png"),
        ("image,label\ngood/1.png,0\ngone.png,0\n", {}, "1 files named by .* gone.png"),
        ("image,label\n", {}, "no rows"),
        ("image,label\n,0\n", {}, "line 2: no image is named"),
    ],
)
def test_tables_that_cannot_be_used(folder, text, arguments, message):
    (folder / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_anomaly_dataset(folder / "t.csv", **arguments)


def test_a_flag_is_no_file(folder):
    write_picture(folder / "1.png", 9)
    (folder / "t.csv").write_text("image,mask,label\ngood/1.png,,0\nbent/1.png,1,1\n")
    with pytest.raises(ValueError, match=r"1 files named by table t\.csv are not in .*, e\.g\. 1:"):
        load_anomaly_dataset(folder / "t.csv")


def test_tables_as_spreadsheets_write_them(folder):
    text = "image;label;class\ngood/1.png;0;Bälle\n;;\n \n;;\n"
    (folder / "t.csv").write_text(text, encoding="utf-8")
    assert load_anomaly_dataset(folder / "t.csv")["class_name"] == ["Bälle"]
    (folder / "t.csv").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"cannot read the table .*t\.csv: .*; save it as UTF-8"):
        load_anomaly_dataset(folder / "t.csv")


def test_rows_of_one_image_with_different_masks_are_told(folder):
    (folder / "t.csv").write_text("image,label,mask\nbent/1.png,1,good/1.png\nbent/1.png,1,bent/1.png\n")
    with pytest.warns(UserWarning, match=r"1 images have rows with different masks \(bent/1\.png\)"):
        load_anomaly_dataset(folder / "t.csv")


def test_lines_are_counted_as_an_editor_does(folder):
    good = '{"image": "good/1.png", "label": 0}\n'
    (folder / "t.jsonl").write_text(good + "\n" + good.replace("0", '"meh"'))
    with pytest.raises(ValueError, match=r"t.jsonl, line 3: label 'meh'"):
        load_anomaly_dataset(folder / "t.jsonl")
    (folder / "t.csv").write_text('image,label,note\ngood/1.png,0,"two\nlines"\ngood/1.png,meh,\n')
    with pytest.raises(ValueError, match=r"t.csv, line 4: label 'meh'"):
        load_anomaly_dataset(folder / "t.csv")


@pytest.mark.parametrize("way", ["table", "datasets"])
def test_kinds_alone_tell_the_label(folder, way):
    """Where no column holds labels, kinds of defects do, alike for tables and for `datasets`."""

    def labels(kinds, **arguments):
        if way == "table":
            names = ["good/1.png", "bent/1.png", "bent/10.png"]
            (folder / "t.csv").write_text("image,defect_type\n" + "".join(map("{},{}\n".format, names, kinds)))
            return list(load_anomaly_dataset(folder / "t.csv", **arguments)["label"])
        rows = {"image": [Image.new("RGB", (16, 12), (9 * n,) * 3) for n in range(3)], "defect_type": kinds}
        return list(load_anomaly_dataset(datasets.Dataset.from_dict(rows), **arguments)["label"])

    assert labels(["good", "bent", "None"]) == [0, 1, 0]
    assert labels(["good", "bent", ""]) == [0, 1, None]
    assert labels(["", "bent", "rust"]) == [0, 1, 1]  # no kind says normal: empty does
    assert labels(["fine", "bent", ""], normal_labels=["FINE"]) == [0, 1, None]


def test_the_authors_index(folder):
    def entry(image, mask, kind, anomaly):
        return {"img_path": image, "mask_path": mask, "cls_name": "nut", "specie_name": kind, "anomaly": anomaly}

    elsewhere = "/remote-home/someone/data/nuts"
    meta = {
        "Train": {"nut": [entry("good/1.png", "", "good", 0)]},  # DAGM's index writes its splits so
        "Test": {
            "nut": [
                entry("good/2.jpg", "", "", 0),
                entry("bent/10.png", "masks/10.png", "bent", 1),
                entry(f"{elsewhere}/rust/a.b.png", f"{elsewhere}/masks/a.b.png", "rust", 1),
            ]
        },
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    expected = {2: ("nut", GOOD, "good", None), 4: ("nut", BAD, "bent", 4), 5: ("nut", BAD, "rust", 5)}
    for source in (folder, folder / "meta.json"):
        assert summary(load_anomaly_dataset(source)) == expected
    assert list(summary(load_anomaly_dataset(folder, split="train"))) == [1]
    assert len(load_anomaly_dataset(folder, kind="folder")) == 6
    (folder / "meta.json").write_text('{"test": {"nut": [{"img_path": "good/1.png"}]}}')
    with pytest.raises(ValueError, match=r"there is no column 'anomaly', found .*img_path"):
        load_anomaly_dataset(folder)
    (folder / "meta.json").write_text('{"test": {"nut": [{"img_path": "good/1.png", "anomaly": "maybe"}]}}')
    with pytest.raises(ValueError, match=r"meta.json, test/nut: label 'maybe' is neither normal"):
        load_anomaly_dataset(folder)


def hub_like():
    images = [Image.new("RGB", (16, 12), (n * 8,) * 3) for n in (1, 2, 3)]
    mask = Image.fromarray(pixels_of(2).astype(np.uint8))
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "gt": datasets.Image(),
            "quality": datasets.ClassLabel(names=["scratch", "fine"]),
            "object": datasets.Value("string"),
        }
    )
    columns = {"img": images, "gt": [None, mask, None], "quality": [1, 0, 0], "object": ["nut", "nut", "bolt"]}
    return datasets.Dataset.from_dict(columns, features=features)


HUB_ARGUMENTS = {"mask_column": "gt", "label_column": "quality", "normal_labels": ["fine"]}
HUB = {1: ("nut", GOOD, "good", None), 2: ("nut", BAD, "anomaly", 2), 3: ("bolt", BAD, "anomaly", None)}


def test_datasets_objects():
    dataset = load_anomaly_dataset(hub_like(), **HUB_ARGUMENTS)
    assert summary(dataset) == HUB and dataset.column_names == COLUMNS
    parts = datasets.DatasetDict(train=hub_like(), test=hub_like().select([1]))
    assert list(summary(load_anomaly_dataset(parts, **HUB_ARGUMENTS))) == [2]
    assert len(load_anomaly_dataset(parts, split="all", **HUB_ARGUMENTS)) == 4
    only = load_anomaly_dataset(hub_like(), class_names="bolt", **HUB_ARGUMENTS)
    assert list(summary(only)) == [3]
    stream = load_anomaly_dataset(hub_like().to_iterable_dataset(), **HUB_ARGUMENTS)
    rows = list(stream)
    assert [(number_of(r["image"]), r["class_name"], r["label"], area_of(r["mask"])) for r in rows] == [
        (n, row[0], row[1], row[3]) for n, row in HUB.items()
    ]


def test_datasets_objects_that_cannot_be_used():
    with pytest.raises(ValueError, match="label 'fine' is neither normal"):
        load_anomaly_dataset(hub_like(), label_column="quality")
    with pytest.raises(ValueError, match="split='train', but the source has test"):
        load_anomaly_dataset(hub_like(), split="train", **HUB_ARGUMENTS)
    with pytest.raises(TypeError, match="source is a int; expected a name"):
        load_anomaly_dataset(3)


def test_datasets_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hub_like().save_to_disk(tmp_path / "saved")
    (tmp_path / "repository" / "data").mkdir(parents=True)
    hub_like().to_parquet(tmp_path / "repository" / "data" / "test-00000.parquet")
    for source in ("saved", "repository", "repository/data/test-00000.parquet"):
        assert summary(load_anomaly_dataset(tmp_path / source, **HUB_ARGUMENTS)) == HUB, source
    stream = load_anomaly_dataset(tmp_path / "repository", streaming=True, **HUB_ARGUMENTS)
    assert [number_of(row["image"]) for row in stream] == [1, 2, 3]


@pytest.mark.parametrize("column", ["split", "part"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "object", "class labels", "pictures"])
def test_a_column_of_splits_is_kept_to(folder, kind, column, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names, splits = ["good/1.png", "bent/10.png", "bent/1.png"], ["training", "Test", "test"]
    source = table = datasets.Dataset.from_dict({"image": names, "label": [0, 1, 1], column: splits})
    if kind == "class labels":
        source = table.cast_column(column, datasets.ClassLabel(names=sorted(splits)))
    elif kind != "object":
        if kind == "pictures":
            cells = [{"bytes": (folder / name).read_bytes(), "path": None} for name in names]
            table = table.remove_columns("image").add_column("image", cells, feature=datasets.Image())
        source = folder / f"parts.{'parquet' if kind == 'pictures' else kind}"
        getattr(table, {"csv": "to_csv", "jsonl": "to_json"}.get(kind, "to_parquet"))(source)
    given = {"data_dir": folder, "split_column": None if column == "split" else column}
    found = load_anomaly_dataset(source, **given)
    assert [number_of(row["image"]) for row in found] == [4, 3]
    assert set(found["class_name"]) == {"object" if isinstance(source, datasets.Dataset) else "parts"}
    assert [len(load_anomaly_dataset(source, split=split, **given)) for split in ("train", "all")] == [1, 3]


def test_columns_of_splits_beside_other_splits():
    table = datasets.Dataset.from_dict({"image": ["a.png"] * 2, "label": [0, 1], "split": ["left", "right"]})
    assert len(load_anomaly_dataset(table)) == 2  # these are no names of splits
    assert len(load_anomaly_dataset(table, split="left", split_column="split")) == 1
    parts = datasets.DatasetDict(train=table, test=table)
    with pytest.raises(ValueError, match="split_column='split', but the data set has splits of its own, train, test"):
        load_anomaly_dataset(parts, split_column="split")
    with pytest.raises(ValueError, match="split_column='split', but the data set is a stream"):
        load_anomaly_dataset(table.to_iterable_dataset(), split_column="split")


def test_paths_in_a_dataset(folder):
    table = datasets.Dataset.from_dict(
        {"image": ["good/1.png", "bent/10.png"], "mask": [None, "masks/10.png"], "label": [0, 1]}
    )
    found = summary(load_anomaly_dataset(table, data_dir=folder))
    assert found == {1: ("object", GOOD, "good", None), 4: ("object", BAD, "anomaly", 4)}
    plain = summary(load_anomaly_dataset(table.select([1, 0]).remove_columns("mask"), data_dir=folder))
    assert plain == {1: ("object", GOOD, "good", None), 4: ("object", BAD, "anomaly", None)}


@pytest.mark.parametrize("arguments", [{}, {"split": "all"}, {"kind": "folder"}])
def test_drawings_are_no_part_of_the_package(arguments):
    with pytest.raises(ValueError, match=r"are not part of the package.*python scripts/demo_model/draw\.py FOLDER"):
        load_anomaly_dataset("synthetic", **arguments)


def test_mask_threshold_can_be_given(tmp_path):
    write_tree(tmp_path, {"good/a.png": 1, "bad/b.png": 2})
    write_mask(tmp_path / "masks" / "b.png", 2, value=100)
    assert area_of(load_anomaly_dataset(tmp_path)[0]["mask"]) == 2
    assert area_of(load_anomaly_dataset(tmp_path, mask_threshold=127)[0]["mask"]) == 0


def test_broken_files_are_named_when_read(folder):
    (folder / "bent" / "1.png").write_bytes(b"")
    dataset = load_anomaly_dataset(folder)
    with pytest.raises(ImageReadError, match=r"bent/1\.png: it is empty"):
        dataset[0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "there is no 'nowhere': expected a data set's name .*mvtec.*tn3k"),
        ("a/b/c.csv", "there is no"),
        ("empty", "holds no images"),
    ],
)
def test_sources_that_are_nothing(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_anomaly_dataset(source)
    with pytest.raises(ValueError, match="kind='guess' must be one of folder"):
        load_anomaly_dataset(source, kind="guess")


def test_hidden_labels_are_unknown():
    hidden = hub_like().remove_columns("quality").add_column("label", [-1, 1, 0])
    labels = load_anomaly_dataset(hidden, mask_column="gt")["label"]
    assert list(labels) == [None, 1, 0]


def test_a_loaded_set_survives_saving_and_parallel_maps(folder, tmp_path):
    dataset = load_anomaly_dataset(folder)
    assert dataset.map(lambda row: {"w": row["image"].width}, num_proc=2)["w"][:] == [16] * 6
    assert dataset.with_format("torch")[0]["image"].shape == (3, 12, 16)
    dataset.save_to_disk(tmp_path / "saved")
    shutil.rmtree(folder / "masks")  # the files are inside now
    assert summary(load_anomaly_dataset(tmp_path / "saved")) == FOLDER


IMAGE_COLUMNS = {"image": datasets.Image(), "mask": datasets.Image(), "label": datasets.Value("int64")}


@pytest.fixture(params=[(6, (12, 16)), (3, (12, 16)), (6, (16, 16)), (8, (12, 16))], ids=str)
def rotated(request, tmp_path):
    """A folder with a photo rotated by EXIF and its mask drawn on the stored pixels."""
    orientation, shape = request.param
    stored = np.zeros((*shape, 3), np.uint8)
    stored[1:4, 2:11] = 200
    exif = Image.Exif()
    exif[274] = orientation
    for name in ("bad", "masks"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    Image.fromarray(stored).save(tmp_path / "photos/bad/a.png", exif=exif)
    Image.fromarray(stored[..., 0]).save(tmp_path / "photos/masks/a.png")
    write_picture(tmp_path / "photos/good/b.png", 1)
    return tmp_path / "photos"


@pytest.mark.parametrize("way", ["folder", "paths", "bytes", "stream", "disk", "parquet", "export", "export again"])
def test_a_mask_turns_with_its_photograph_whichever_way_it_comes(rotated, way, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    image, mask = str(rotated / "bad/a.png"), str(rotated / "masks/a.png")
    rows = {"image": [str(rotated / "good/b.png"), image], "mask": [None, mask], "label": [0, 1]}
    columns = datasets.Dataset.from_dict(rows, datasets.Features(IMAGE_COLUMNS))
    if way in ("bytes", "parquet"):
        rows = {name: [p and {"bytes": Path(p).read_bytes()} for p in rows[name]] for name in ("image", "mask")}
        columns = datasets.Dataset.from_dict({**rows, "label": [0, 1]}, datasets.Features(IMAGE_COLUMNS))
    source = {"folder": rotated, "stream": columns.to_iterable_dataset()}.get(way, columns)
    if way == "disk":
        columns.save_to_disk(tmp_path / "disk")
        source = tmp_path / "disk"
    elif way == "parquet":
        columns.to_parquet(tmp_path / "set.parquet")
        source = tmp_path / "set.parquet"
    elif way.startswith("export"):
        source = export_source(rotated if way == "export" else columns, tmp_path / "out")
    dataset = load_anomaly_dataset(source, split="all" if way in ("disk", "parquet") else "test")
    row = next(row for row in dataset if row["label"] == 1)
    assert row["image"].size == row["mask"].size
    np.testing.assert_array_equal(np.asarray(row["mask"]) > 0, np.asarray(row["image"])[..., 0] > 100)


@pytest.mark.parametrize("form", ["torch", "numpy", "transform", "stream"])
def test_data_sets_with_a_format(form, caplog):
    rows = {"image": [Image.new("RGB", (6, 4), (n, n, n)) for n in (8, 16)], "label": [0, 1]}
    plain = datasets.Dataset.from_dict(rows, datasets.Features(image=datasets.Image(), label=datasets.Value("int64")))
    formatted = {
        "torch": lambda: plain.with_format("torch"),
        "numpy": lambda: plain.with_format("numpy"),
        "transform": lambda: plain.with_transform(lambda batch: {"image": [None] * len(batch["image"])}),
        "stream": lambda: plain.to_iterable_dataset().with_format("torch"),
    }[form]()
    found = list(load_anomaly_dataset(formatted))
    assert [(number_of(row["image"]), row["label"]) for row in found] == [(1, 0), (2, 1)]
    assert ("has a transform, which is left out" in caplog.text) == (form == "transform")


def test_a_stream_names_its_rows_alike_in_every_pass(make_image):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [make_image(seed=i) for i in range(3)], "label": [0, 1, 0]}
    stream = load_anomaly_dataset(datasets.Dataset.from_dict(rows, features=features).to_iterable_dataset())
    for _ in range(2):
        assert [row["path"] for row in stream] == ["000000", "000001", "000002"]


def test_options_are_one_object_or_fields(folder):
    options = SourceOptions(class_names="nuts", normal_kinds=["rust"], mask_threshold=100)
    chosen = load_anomaly_dataset(folder, options=options)
    assert chosen.features["mask"].mask_threshold == 100
    assert summary(chosen) == summary(load_anomaly_dataset(folder, **options.source_options()))
    assert summary(load_anomaly_dataset(folder, options=options, normal_kinds=("good",), mask_threshold=0)) == FOLDER
    assert summary(load_anomaly_dataset(folder, options=SourceOptions(data_dir=str(folder)), kind=None)) == FOLDER
    with pytest.raises(TypeError, match="normal_kind'"):
        load_anomaly_dataset(folder, normal_kind=["good"])
    with pytest.raises(ValueError, match="kind='files' must be one of folder, datasets"):
        load_anomaly_dataset(folder, kind="files")


def test_importing_the_folder_is_light():
    """Heavy libraries, and the modules that need them from the start, are imported within functions alone."""
    heavy = {"datasets", "pandas", "pyarrow", "scipy", "matplotlib", "features", "repositories"}
    for path in Path(loading.__file__).parent.glob("*.py"):
        nodes = [node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in nodes}
        assert path.stem in heavy or not heavy & {str(name).split(".")[0] for name in names}, path.name
