"""Export as a datasets repository, and the way back."""

from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import yaml
from picture_trees import area_of, number_of, summary, write_mask, write_picture, write_tree
from PIL import Image

from anomalyclip_hf.data import ImageReadError, export_dataset, load_anomaly_dataset
from anomalyclip_hf.data.__main__ import main
from anomalyclip_hf.data.export import export_source


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "mpdd"
    images = {
        "tubes/train/good/0.png": 1,
        "tubes/test/good/0.png": 2,
        "tubes/test/cut/0.png": 3,
        "tubes/test/cut/1.png": 4,
    }
    write_tree(root, images, {"tubes/ground_truth/cut/0_mask.png": 3}, {"LICENSE": "Ask us.", "readme.txt": "Hello"})
    return root


def test_round_trip(tree, tmp_path):
    out = export_source("mpdd", tmp_path / "out", tree)
    for split in ("train", "test"):
        before, after = load_anomaly_dataset("mpdd", tree, split), load_anomaly_dataset(out, split=split)
        assert summary(after) == summary(before) and len(after) in (1, 3)
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(np.asarray(new["image"]), np.asarray(old["image"]))
    assert sorted(after["path"]) == ["cut/0.png", "cut/1.png", "good/0.png"]  # no one's home folder in it
    assert number_of(next(iter(load_anomaly_dataset(out, streaming=True)))["image"]) == 3


def test_another_folder_of_the_same_name_is_not_taken_from_a_cache(tree, tmp_path):
    first = export_source("mpdd", tmp_path / "a" / "same", tree)
    assert len(load_anomaly_dataset(first, split="all")) == 4
    (tree / "tubes/test/good/0.png").unlink()
    second = export_source("mpdd", tmp_path / "b" / "same", tree)
    assert len(load_anomaly_dataset(second, split="all")) == 3
    assert len(load_anomaly_dataset(first, split="all")) == 4


def test_any_reader_sees_the_same(tree, tmp_path):
    write_mask(tree / "tubes/ground_truth/cut/0_mask.png", 3, value=1)
    out = export_source("mpdd", tmp_path / "out", tree)
    plain = datasets.load_dataset(out, split="test")
    assert type(plain.features["image"]) is datasets.Image and plain.features["label"].names == ["normal", "anomalous"]
    assert [area_of(mask) for mask in plain["mask"]] == [3, None, None]
    stored = plain.cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"]
    assert stored == (tree / "tubes/test/cut/0.png").read_bytes()


def test_rotated_pictures_stay_matched(tmp_path):
    stored = np.zeros((12, 16, 3), np.uint8)
    stored[:3, :5] = 200
    exif = Image.Exif()
    exif[274] = 8
    for folder in ("bad", "masks"):
        (tmp_path / "in" / folder).mkdir(parents=True)
    Image.fromarray(stored).save(tmp_path / "in/bad/a.png", exif=exif)
    Image.fromarray((stored[..., 0] > 0).astype(np.uint8)).save(tmp_path / "in/masks/a.png")
    write_picture(tmp_path / "in/good/b.png", 1)
    out = export_source(tmp_path / "in", tmp_path / "out")
    for row in (load_anomaly_dataset(out)[0], datasets.load_dataset(out, split="test")[0]):
        assert row["image"].size == row["mask"].size == (12, 16)
        np.testing.assert_array_equal(np.asarray(row["mask"]) > 0, np.asarray(row["image"])[..., 0] > 0)


def card_of(out):
    return Path(out, "README.md").read_text()


def test_license_is_carried_and_never_guessed(tree, tmp_path):
    out = export_source("mpdd", tmp_path / "a", tree)
    card = card_of(out)
    assert "license: unknown\n" in card and "not stated by the source" in card
    assert "`source/license`" in card.casefold() and Path(out, "source", "LICENSE").read_text() == "Ask us."
    assert Path(out, "source", "readme.txt").read_text() == "Hello"
    assert load_anomaly_dataset(out).info.license == ""
    mvtec = tmp_path / "mvtec"
    write_tree(mvtec, {"bottle/test/good/0.png": 1, "bottle/test/cut/0.png": 2})
    out = export_source("mvtec", tmp_path / "b", mvtec)
    facts = yaml.safe_load(card_of(out).split("---\n")[1])
    assert facts["license"] == "cc-by-nc-sa-4.0" and facts["pretty_name"] == "MVTec AD"
    assert "https://www.mvtec.com" in card_of(out)
    again = export_dataset(load_anomaly_dataset(out), tmp_path / "c")  # also through an export
    assert "license: cc-by-nc-sa-4.0\n" in card_of(again)
    out = export_source(tree / "tubes", tmp_path / "d", license="cc0-1.0")
    assert "license: cc0-1.0\n" in card_of(out)


def test_nothing_is_overwritten_or_half_written(tree, tmp_path):
    mine = tmp_path / "mine"
    write_tree(mine, {"precious.png": 1})
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"not empty.*no earlier export"):
            export_source("mpdd", mine, tree, overwrite=overwrite)
    out = export_source("mpdd", tmp_path / "out", tree)
    with pytest.raises(FileExistsError, match="overwrite=True replaces it"):
        export_source("mpdd", out, tree)
    (tree / "tubes/test/cut/1.png").write_bytes(b"torn")
    with pytest.raises(ImageReadError, match=r"cut/1\.png"):
        export_source("mpdd", out, tree, overwrite=True)
    assert len(load_anomaly_dataset(out)) == 3  # the old one still stands
    (tree / "tubes/test/cut/1.png").unlink()
    export_source("mpdd", out, tree, overwrite=True)
    assert len(datasets.Dataset.from_parquet(str(next(Path(out, "data").glob("test*"))))) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "mine", "mpdd", "out"]


def test_large_sets_are_cut_into_shards(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("anomalyclip_hf.data.export.SHARD_BYTES", 1)
    monkeypatch.setattr("anomalyclip_hf.data.export.ROWS_HELD", 1)
    out = export_source("mpdd", tmp_path / "out", tree)
    names = sorted(path.name for path in Path(out, "data").glob("test*"))
    assert names == [f"test-{number:05d}-of-00003.parquet" for number in range(3)]
    assert summary(load_anomaly_dataset(out)) == summary(load_anomaly_dataset("mpdd", tree))


def test_pushing_is_private_unless_told(tree, monkeypatch):
    calls = {}

    class Api:
        def create_repo(self, repo_id, **arguments):
            calls["create"] = (repo_id, arguments["repo_type"], arguments["private"])
            return f"https://huggingface.co/datasets/{repo_id}"

        def repo_info(self, repo_id, repo_type):
            return SimpleNamespace(private=repo_id != "me/public")

        def upload_folder(self, *, repo_id, folder_path, repo_type, commit_message):
            calls["files"] = sorted(p.relative_to(folder_path).as_posix() for p in Path(folder_path).rglob("*.*"))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert export_source("mpdd", "me/parts", tree, push=True).endswith("me/parts")
    assert calls["create"] == ("me/parts", "dataset", True)
    assert calls["files"] == [
        "README.md",
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet",
        "source/readme.txt",
    ]
    calls.clear()
    with pytest.raises(ValueError, match="me/public exists and is public"):
        export_source("mpdd", "me/public", tree, push=True)
    assert "files" not in calls
    export_source("mpdd", "me/public", tree, push=True, private=False)
    assert "files" in calls


def test_command_line(tree, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        main(["export", "mpdd", str(out), "--data_dir", str(tree), "--license", "mit", "--license_note", "Ask twice"])
        == 0
    )
    assert capsys.readouterr().out.strip() == str(out)
    assert "license: mit" in card_of(out) and "Note: Ask twice." in card_of(out)
    assert main(["export", "mpdd", str(out), "--data_dir", str(tree)]) == 2
    assert "not empty" in capsys.readouterr().err
    # Options come last, or the source could be taken for the folder to write.
    assert main(["export", "--overwrite", str(out), str(tree)]) == 2 and main(["export", str(tree)]) == 2
    assert "expected export SOURCE OUT" in capsys.readouterr().err
