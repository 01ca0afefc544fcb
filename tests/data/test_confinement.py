"""Names from data never become paths unchecked: tables, links, repositories, splits, notices that lead elsewhere."""

import json
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from picture_trees import number_of, write_mask, write_picture, write_tree
from PIL import Image

from anomalyclip_hf.cli.running import name_options
from anomalyclip_hf.data import export_dataset, inspect_source, load_anomaly_dataset
from anomalyclip_hf.data.__main__ import main
from anomalyclip_hf.data.export import export_source
from anomalyclip_hf.data.options import SourceOptions

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_tree(tmp_path / "set", {"a.png": 1, "sub/b.png": 2}, {"masks/b.png": 2})
    write_picture(tmp_path / "private" / "secret.png", 9)
    (tmp_path / "set" / "link.png").symlink_to("../private/secret.png")
    (tmp_path / "set" / "away").symlink_to("../private")
    return tmp_path / "set"


def table(root, kind, image, mask=""):
    """A table of one good row and one that names the given files."""
    rows = [{"image": "a.png", "mask": "", "label": 0}, {"image": image, "mask": mask, "label": 1}]
    if kind == "csv":
        path = root / "t.csv"
        path.write_text("image,mask,label\n" + "".join(f"{r['image']},{r['mask']},{r['label']}\n" for r in rows))
    elif kind == "jsonl":
        path = root / "t.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        path = root / "metadata.parquet"
        datasets.Dataset.from_list(rows).to_parquet(path)
        path = root
    else:
        entries = [{"img_path": r["image"], "mask_path": r["mask"], "anomaly": r["label"]} for r in rows]
        path = root / "meta.json"
        path.write_text(json.dumps({"test": {"nut": entries}}))
    return path


KINDS = ["csv", "jsonl", "parquet", "meta"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("image", ["../private/secret.png", "{private}/secret.png", "link.png", "away/secret.png"])
def test_files_outside_are_refused(image, kind, root):
    image = image.format(private=root.parent / "private")
    source = table(root, kind, image)
    with pytest.raises(
        ValueError, match=r"names 1 files outside of its folder .*(secret|link)\.png.*data_dir.*allow_"
    ):
        load_anomaly_dataset(source)
    with pytest.raises(ValueError, match="outside of its folder"):
        inspect_source(source, progress=False)
    allowed = load_anomaly_dataset(source, allow_outside=True)
    assert [number_of(row["image"]) for row in allowed] == [1, 9]


@pytest.mark.parametrize("kind", KINDS)
def test_masks_outside_are_refused(kind, root):
    write_mask(root.parent / "private" / "mask.png", 3)
    with pytest.raises(ValueError, match=r"outside of its folder .*private/mask\.png"):
        load_anomaly_dataset(table(root, kind, "sub/b.png", "../private/mask.png"))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "meta"])
@pytest.mark.parametrize("image", ["sub/b.png", "sub\\b.png", "{root}/sub/b.png", "x/../sub/b.png", "sub/b.PNG"])
def test_files_inside_are_read_however_they_are_written(image, kind, root):
    (root / "x").mkdir()
    source = table(root, kind, image.format(root=root), "masks\\b.png")
    first, second = load_anomaly_dataset(source)
    assert (number_of(first["image"]), number_of(second["image"]), second["mask"] is None) == (1, 2, False)


def test_a_folder_that_the_user_names_may_hold_them(root):
    source = table(root, "csv", f"{root.parent}/private/secret.png")
    source.write_text(source.read_text().replace("a.png", f"{root}/a.png"))
    assert [number_of(row["image"]) for row in load_anomaly_dataset(source, data_dir=root.parent)] == [1, 9]


def test_paths_that_are_not_as_written_are_told_of(root):
    source = table(root, "csv", "C:\\data\\sub\\b.png")
    (note,) = [note for note in inspect_source(source, progress=False).notes if "spelling" in note]
    assert note.startswith("1 paths found by") and "C:\\data\\sub\\b.png as sub/b.png" in note


def test_backslashes_are_letters_where_such_a_file_is(root):
    write_picture(root / "sub\\b.png", 5)
    assert number_of(load_anomaly_dataset(table(root, "csv", "sub\\b.png"))[1]["image"]) == 5


@pytest.mark.parametrize("table_file", ["metadata.csv", "metadata.jsonl", "metadata.parquet", "Metadata.CSV"])
def test_image_folders_with_a_table_in_each_split(table_file, tmp_path):
    for split, number in (("train", 1), ("test", 3)):
        write_tree(tmp_path / split, {"images/0.png": number, "images/1.png": number + 1, "images/2.png": 8})
        rows = [{"file_name": f"images/{i}.png", "label": i} for i in range(2)]
        path = tmp_path / split / table_file
        if table_file.endswith("parquet"):
            datasets.Dataset.from_list(rows).to_parquet(path)
        elif table_file.endswith("jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            path.write_text("file_name,label\nimages/0.png,0\nimages/1.png,1\n")
    with pytest.warns(UserWarning, match=r"2 files not used: 2 not named by table .*test/images/2\.png"):
        train = load_anomaly_dataset(tmp_path, split="train")
    test = load_anomaly_dataset(tmp_path)
    found = [(number_of(r["image"]), r["label"], r["class_name"]) for r in [*train, *test]]
    assert found == [(n, (n + 1) % 2, tmp_path.name) for n in (1, 2, 3, 4)]


def test_a_split_may_name_files_of_the_other_but_none_outside(root):
    (root / "test").mkdir()
    path = root / "test" / "metadata.csv"
    path.write_text("file_name,label\n../a.png,0\n../sub/b.png,1\n")
    assert [number_of(row["image"]) for row in load_anomaly_dataset(root)] == [1, 2]
    path.write_text("file_name,label\n../a.png,0\n../../private/secret.png,1\n")
    with pytest.raises(ValueError, match=r"outside of its folder .*secret\.png"):
        load_anomaly_dataset(root)


def test_tables_that_are_not_read_are_told_of(tmp_path):
    write_tree(tmp_path, {"good/0.png": 1, "bad/1.png": 2}, text={"split_csv/1cls.csv": "a,b\n"})
    notes = " ".join(inspect_source(tmp_path, progress=False).notes)
    assert "tables not read: split_csv/1cls.csv" in notes


def test_images_that_an_index_does_not_name_are_told_of(root):
    table(root, "meta", "sub/b.png")
    notes = " ".join(inspect_source(root, progress=False).notes)
    assert "3 not named by the authors' meta.json (away/secret.png, link.png, masks/b.png)" in notes


def test_images_beside_a_repository_are_told_of(tmp_path):
    write_tree(tmp_path, {"good/0.png": 1, "bad/1.png": 2})
    datasets.Dataset.from_dict({"image": ["good/0.png"], "label": [0]}).to_parquet(tmp_path / "test.parquet")
    with pytest.warns(UserWarning, match="read as a datasets repository: 2 image files"):
        assert len(load_anomaly_dataset(tmp_path, split="all")) == 1


def test_results_of_an_evaluation_make_no_repository(tmp_path):
    write_tree(tmp_path, {"good/0.png": 1, "bad/1.png": 2}, text={"results.json": "{}", "scores.parquet": "x"})
    assert sorted(load_anomaly_dataset(tmp_path)["label"]) == [0, 1]


@pytest.mark.parametrize("cell", ["path", "text"])
def test_repositories_that_name_files_outside_are_refused(cell, root):
    paths = ["a.png", str(root.parent / "private" / "secret.png")]
    where = [str(root / "a.png"), paths[1]]
    rows = {"image": paths if cell == "text" else [{"bytes": None, "path": path} for path in where], "label": [0, 1]}
    (root / "data").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(root / "data" / "test.parquet")
    if cell == "path":  # `to_parquet` keeps a plain struct; the repository says that it is an image
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        plain = datasets.Dataset.from_dict(rows, features=features).data.table
        pq.write_table(plain.replace_schema_metadata(features.arrow_schema.metadata), root / "data" / "test.parquet")
    refused = r"names 1 files outside of its folder .*secret\.png"
    with pytest.raises(ValueError, match=refused):
        load_anomaly_dataset(root)
    stream = iter(load_anomaly_dataset(root, streaming=True))
    assert number_of(next(stream)["image"]) == 1
    with pytest.raises(ValueError, match=refused):
        next(stream)
    allowed = load_anomaly_dataset(root, allow_outside=True)
    assert [number_of(row["image"]) for row in allowed] == [1, 9]
    allowed = load_anomaly_dataset(root, allow_outside=True, streaming=True)
    assert [number_of(row["image"]) for row in allowed] == [1, 9]


@pytest.mark.parametrize(
    "split", ["../../x", "{tmp}/x", "a b", "x\ny", "x/y", "..", "", "a-b", "all", "ALL", "x" * 300]
)
def test_splits_that_are_no_names_are_not_exported(split, root, tmp_path):
    split = split.format(tmp=tmp_path)
    (root / "meta.json").write_text(json.dumps({split: {"c": [{"img_path": "a.png", "anomaly": 0}]}}))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"cannot be exported: its name becomes"):
        export_source(root, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["export", str(root), str(tmp_path / "out")]) == 2


def test_files_behind_links_are_not_exported_unasked(root, tmp_path):
    write_tree(root, {"good/0.png": 1})
    (root / "away").rename(root / "bad")
    with pytest.raises(ValueError, match=r"1 files lie outside of .*bad/secret\.png.*copies"):
        export_source(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    out = export_source(root, tmp_path / "out", options=SourceOptions(allow_outside=True))
    assert sorted(number_of(row["image"]) for row in load_anomaly_dataset(out)) == [1, 2, 9]


def test_archives_behind_links_are_not_exported_unasked(tmp_path):
    write_tree(tmp_path / "private", {"tubes/test/good/0.png": 1, "tubes/test/bad/1.png": 2})
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "MPDD").symlink_to("../private")
    assert len(load_anomaly_dataset("mpdd", data_dir=tmp_path / "set")) == 2
    with pytest.raises(ValueError, match="2 files lie outside of"):
        export_source("mpdd", tmp_path / "out", data_dir=tmp_path / "set")


def test_notices_that_are_links_are_not_exported(root, tmp_path):
    write_tree(root, {"good/0.png": 1}, text={"readme.txt": "Hello"})
    (root / "away").unlink()
    (tmp_path / "private" / "key").write_text("secret")
    (root / "LICENSE").symlink_to("../private/key")
    with pytest.warns(UserWarning, match="LICENSE not copied"):
        out = export_source(root, tmp_path / "out")
    assert [path.name for path in Path(out, "source").iterdir()] == ["readme.txt"]
    assert "secret" not in "".join(p.read_text() for p in Path(out).rglob("*") if p.suffix in (".md", ".txt"))


def test_the_card_holds_no_lines_of_the_data(root, tmp_path):
    dataset = load_anomaly_dataset(table(root, "csv", "sub/b.png"))
    dataset = dataset.remove_columns("class_name").add_column("class_name", ["x\n---\nlicense: mit"] * 2)
    dataset.info.license = "MIT License\n\nPermission is hereby granted"
    out = export_dataset(dataset, tmp_path / "out", title="a\n# b")
    lines = Path(out, "README.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("license:")] == ["license: unknown"]
    assert "# a # b" in lines and "# b" not in lines and "Note: MIT License Permission is hereby granted." in lines
    with pytest.raises(ValueError, match="is no id of the Hub"):
        export_dataset(dataset, tmp_path / "b", license="x\ny: z")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("split='dev', but d has test; or split=\"all\"", "--split dev, but d has test; or --split all"),
        ("names with normal_kinds=(...); none", "names with --normal-kinds ...; none"),
        ("class_names=['a', 'b'], but", "--class-names a b, but"),
        ("(overwrite=True replaces it)", "(--overwrite replaces it)"),
        ("give the folder as data_dir", "give the folder as --data-dir"),
        ("/data_dir/x of the split", "/data_dir/x of the split"),
    ],
)
def test_errors_of_the_command_line_name_options(message, shown):
    names = ("split", "normal_kinds", "class_names", "overwrite", "data_dir", "kind")
    assert name_options(message, names) == shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect", "{root}/t.csv"], "--allow-outside"),
        (["inspect", "{root}/t.csv", "--allow_outside", "--split", "dev"], "--split dev, but"),
        (["inspect", "{root}/sub", "--mask_threshold", "300"], "error: --mask-threshold 300 must lie in 0 .. 254"),
        (["inspect", "mvtec"], "as --data-dir"),
        (["inspect", "{root}/sub", "--limit", "-1"], "--limit -1, expected a whole number in 0.."),
        (["inspect", "{root}/kinds"], "--normal-kinds ..."),
        (["inspect", "{root}/t.csv", "--class_column", "kind"], "--class-column kind, but"),
        (["export", "{root}/sub", "{root}/sub"], "not empty"),
        (["export", "{root}/sub", "{root}/out", "--license", "no such"], "put sentences in --license-note"),
        (["inspect", "{root}/sub", "--license_note", "x"], "belong to --export"),
        (["inspect", "{root}/t.csv", "--image_column", "pic"], "--image-column pic"),
    ],
)
def test_wrong_input_ends_with_one_line_and_status_2(arguments, said, root, capsys):
    table(root, "csv", "../private/secret.png")
    write_tree(root / "kinds", {"some/0.png": 1, "other/1.png": 2, "sheet.png": 3})
    assert main([argument.format(root=root) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and said in lines[0] and "=(" not in lines[0]


def test_a_table_named_from_the_working_directory_stays_inside_too(tmp_path, monkeypatch):
    for name in ("in/good/0.png", "out/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "in" / "table.csv").write_text("image,label\n../out/1.png,0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="names 1 files outside of its folder"):
        load_anomaly_dataset("in/table.csv")
    assert len(load_anomaly_dataset("in/table.csv", allow_outside=True)) == 1
    (tmp_path / "in" / "table.csv").write_text("image,label\ngood/0.png,0\n")
    assert len(load_anomaly_dataset("in/table.csv")) == 1
