"""Looking before running: every kind of problem is found, counted and named."""

import runpy
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from picture_trees import pixels_of, write_mask, write_picture, write_tree
from PIL import Image

from anomalyclip_hf.cli import run_command
from anomalyclip_hf.data import load_anomaly_dataset
from anomalyclip_hf.data.__main__ import main
from anomalyclip_hf.data.contact_sheet import OUTLINE, sheet_width
from anomalyclip_hf.data.inspect import PROBLEMS, TILE, inspect_source

REAL = Path(__file__).parents[1] / "fixtures" / "real"


def problems_of(report):
    found = {}
    for problem in report.problems:
        found.setdefault(problem.kind, []).append(Path(problem.path).as_posix())
    return {kind: sorted(path.split("/set/")[-1] for path in paths) for kind, paths in found.items()}


@pytest.fixture
def tree(tmp_path):
    """An MVTec-style tree with every trap in it."""
    root = tmp_path / "set"
    images = {
        "nut/train/good/0.png": 1,
        "nut/train/good/1.png": 2,
        "nut/test/good/0.png": 3,
        "nut/test/good/again.png": 2,  # also in train
        "nut/test/good/marked.png": 4,
        "nut/test/bent/fine.png": 5,
        "nut/test/bent/lost.png": 6,
        "nut/test/bent/blank.png": 7,
        "nut/test/bent/size.png": 8,
        "nut/test/bent/torn.png": 9,
        "nut/test/bent/badmask.png": 10,
        "nut/test/rust/twin.png": 11,
        "nut/test/dirt/twin.png": 12,
        "nut/test/dirt/same.png": 3,  # as test/good/0
    }
    truth = "nut/ground_truth"
    masks = {f"{truth}/bent/{name}_mask.png": 5 for name in ("fine", "torn", "badmask", "orphan")}
    masks |= {f"{truth}/bent/blank_mask.png": 0, f"{truth}/good/marked_mask.png": 4, f"{truth}/twin_mask.png": 2}
    masks |= {f"{truth}/dirt/same_mask.png": 3}
    write_tree(root, images, masks)
    Image.new("L", (8, 8), 255).save(root / truth / "bent" / "size_mask.png")
    torn = root / "nut/test/bent/torn.png"
    torn.write_bytes(torn.read_bytes()[:45])
    (root / truth / "bent" / "badmask_mask.png").write_bytes(b"oops")
    return root


EXPECTED = {
    "unreadable_image": ["nut/test/bent/torn.png"],
    "unreadable_mask": ["nut/test/bent/badmask.png"],
    "missing_mask": ["nut/test/bent/lost.png"],
    "extra_mask": ["nut/ground_truth/bent/orphan_mask.png"],
    "shared_mask": ["nut/ground_truth/twin_mask.png"],
    "size_differs": ["nut/test/bent/size.png"],
    "empty_mask": ["nut/test/bent/blank.png"],
    "mask_on_normal": ["nut/test/good/marked.png"],
    "duplicate_across_splits": ["nut/test/good/again.png"],
    "duplicate_with_other_label": ["nut/test/dirt/same.png"],
}


def test_every_problem_is_found(tree):
    report = inspect_source(tree, progress=False)
    assert problems_of(report) == EXPECTED
    assert set(EXPECTED) | {"missing_file", "full_mask", "image_like_mask"} == set(PROBLEMS)
    assert report.num_images == 14
    assert report.counts["test", "nut", "bent", "anomalous"] == 6
    assert report.counts["train", "nut", "good", "normal"] == 2
    assert report.masked["test", "nut", "bent", "anomalous"] == 5
    assert report.sizes == {(16, 12): 13}
    assert report.modes == {"RGB": 14} and report.mask_modes == {"L": 8}
    text = report.to_text()
    assert "PROBLEM empty_mask: 1 x anomalous image with an empty mask" in text and "10 problems" in text


@pytest.mark.parametrize(
    ("covered", "problems"),
    [("inverted", ["full_mask"]), ("all", ["full_mask"]), ("most", []), ("none", ["empty_mask"])],
)
def test_masks_that_cover_their_image(covered, problems, tmp_path):
    write_tree(tmp_path, {"good/0.png": 1, "bad/1.png": 2})
    values = {"inverted": 18, "all": 0, "most": 20, "none": 192}  # background pixels of 192
    mask = np.where(pixels_of(values[covered]), 0, 255).astype(np.uint8)
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "1.png")
    assert [problem.kind for problem in inspect_source(tmp_path, progress=False).problems] == problems


def test_an_image_that_is_a_mask_is_told(tmp_path):
    write_tree(tmp_path, {"good/0.png": 1, "bad/1.png": 2, "bad/black.png": 0}, {"bad/1-defect.png": 30})
    (problem,) = inspect_source(tmp_path, progress=False).problems
    assert problem.kind == "image_like_mask" and problem.path.endswith("bad/1-defect.png")


def test_two_images_with_one_mask(tmp_path):
    write_tree(tmp_path, {"good/0.png": 1, "bad/1.png": 2, "bad/1.jpg": 3}, {"masks/1.png": 2})
    (problem,) = inspect_source(tmp_path, progress=False).problems
    assert problem.kind == "shared_mask" and "1.jpg" in problem.detail and "1.png" in problem.detail
    write_tree(tmp_path, {}, {"masks/1.jpg": 3})
    assert not inspect_source(tmp_path, progress=False).problems


def test_what_is_not_used_is_said(tmp_path):
    write_tree(tmp_path, {"can/train/good/0.png": 1, "can/test_private/1.png": 2, "can/test/bad/2.png": 3})
    (tmp_path / "can" / "photo.heic").write_bytes(b"x")
    report = inspect_source(tmp_path, progress=False)
    (note,) = [note for note in report.notes if "not used" in note]
    assert sorted(note.split(": ", 1)[1].split("; ")) == [
        "1 .heic files (can/photo.heic)",
        "1 outside of {class_name}/{split}/{kind}/{sub}{stem} (can/test_private/1.png)",
    ]
    assert f"note: {note}" in report.to_text()
    with pytest.warns(UserWarning, match="2 files not used.*can/test_private/1.png"):
        load_anomaly_dataset(tmp_path)


def test_one_split_alone(tree):
    report = inspect_source(tree, split="train", progress=False)
    assert report.num_images == 2 and set(problems_of(report)) == {"extra_mask"}
    with pytest.raises(ValueError, match=r"split='dev', but .* has test, train"):
        inspect_source(tree, split="dev", progress=False)


def test_missing_files_of_an_index_are_reported(tmp_path):
    write_tree(tmp_path, {"a.png": 1}, text={"t.csv": "image,mask,label\na.png,,0\nb.png,,1\na.png,m.png,0\n"})
    report = inspect_source(tmp_path / "t.csv", progress=False)
    assert problems_of(report)["missing_file"] == ["b.png", "m.png"]


def test_notes(tmp_path):
    write_tree(tmp_path / "a", {"good/1.png": 1, "bad/2.png": 2, "bad/3.png": 2})
    report = inspect_source(tmp_path / "a", progress=False)
    assert not report.problems
    assert "no masks at all" in " ".join(report.notes) and "1 images repeat another" in " ".join(report.notes)
    write_tree(tmp_path / "b", {"1.png": 1})
    assert "1 images without a label" in " ".join(inspect_source(tmp_path / "b", progress=False).notes)
    write_tree(tmp_path / "mpdd", {"tubes/test/good/1.png": 1, "pipes/test/good/1.png": 1})
    notes = " ".join(inspect_source("mpdd", tmp_path / "mpdd", progress=False).notes)
    assert "1 in pipes/, which is no class of MPDD" in notes and "every image has the same label" in notes


def test_rotation_that_cannot_be_told_is_noted(tmp_path):
    write_tree(tmp_path, {"good/1.png": 1}, {"masks/2.png": 5})
    (tmp_path / "bad").mkdir()
    exif = Image.Exif()
    exif[274] = 3
    Image.new("RGB", (16, 12)).save(tmp_path / "bad" / "2.png", exif=exif)
    (note,) = [n for n in inspect_source(tmp_path, progress=False).notes if "rotated" in n]
    assert note.endswith("bad/2.png is rotated by EXIF, its mask is not: the mask is turned with it")


def test_command_line(tree, tmp_path, capsys):
    sheet = tmp_path / "sheets" / "sheet.png"
    command = ["inspect", str(tree), "--no_progress", "--contact_sheet", str(sheet)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "test   nut    bent    anomalous       6      5" in shown and "10 problems" in shown
    assert main([*command, "--strict"]) == 1  # an earlier sheet is replaced
    pixels = np.asarray(Image.open(sheet)).reshape(-1, 3)
    assert (pixels == OUTLINE).all(-1).sum() > 100
    assert main(["inspect", str(tmp_path / "nowhere")]) == 2
    assert "there is no" in capsys.readouterr().err
    assert main(["inspect", str(REAL / "pcb"), "--strict", "--no_progress"]) == 0
    assert main(["inspect", str(REAL / "cookies"), "--strict", "--no_progress"]) == 1  # one defect has no mask
    assert "PROBLEM missing_mask: 1 x" in capsys.readouterr().out
    assert not list(sheet.parent.glob("tmp*"))


def test_command_line_options_reach_the_source(tmp_path, capsys):
    write_tree(tmp_path, {"a.png": 1, "b.png": 2}, text={"t.csv": "pic,is\na.png,ok!\nb.png,cut\n"})
    flags = ["--image_column", "pic", "--label_column", "is", "--normal_labels", "ok!", "--class_names", "screw"]
    assert main(["inspect", str(tmp_path / "t.csv"), "--no_progress", *flags]) == 0
    shown = capsys.readouterr().out
    assert "screw  anomaly  anomalous       1" in shown and "screw  good     normal          1" in shown


def test_a_failed_sheet_leaves_nothing(tmp_path, monkeypatch):
    write_mask(tmp_path / "in" / "1.png", 1)

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    assert (
        main(["inspect", str(tmp_path / "in"), "--no_progress", "--contact_sheet", str(tmp_path / "out/s.png")]) == 2
    )
    assert list((tmp_path / "out").iterdir()) == []
    assert shutil.os.path.exists(tmp_path / "in")


def test_a_sheet_has_a_row_for_each_class_and_defect(tmp_path):
    write_tree(tmp_path / "in", {f"{name}/{i}.png": i for name in ("good", "cut", "rust") for i in range(8)})
    (tmp_path / "in" / "cut" / "0.png").write_bytes(b"torn")
    inspect_source(tmp_path / "in", progress=False, contact_sheet=tmp_path / "s.png")
    width, height = Image.open(tmp_path / "s.png").size
    assert width == sheet_width(6, TILE) and 3 * 150 < height < 3 * (TILE + 60)


def test_export_and_report_are_two_things(tmp_path, capsys):
    write_tree(tmp_path / "in", {"good/0.png": 1})
    source, out = str(tmp_path / "in"), str(tmp_path / "out")
    for words, said in (
        ([source, "--export", out, "--strict"], "--export writes all splits and no report"),
        ([source, "--push"], "belong to --export"),
        ([], "there is no source"),
        ([source, "--kind", "tables"], "--kind tables must be one of folder, datasets"),
    ):
        assert run_command("inspect", words) == 2
        assert said in capsys.readouterr().err
    assert run_command("inspect", [source, "--export", out, "--no-progress"]) == 0
    assert capsys.readouterr().out.strip() == out


def test_a_folder_without_labels_is_told_for_what_it_is(tmp_path):
    write_picture(tmp_path / "1.png", 1)
    first, *others = inspect_source(tmp_path, progress=False).to_text().splitlines()
    assert first == f"{tmp_path}: images of one folder, without labels" and "{stem}" not in "".join(others)


def test_as_a_program(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["data", "inspect", str(REAL / "cookies"), "--strict", "--no_progress"])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_module("anomalyclip_hf.data", run_name="__main__")
    assert "PROBLEM missing_mask: 1 x" in capsys.readouterr().out


@pytest.mark.parametrize("color_type", [2, 4, 6])
def test_bit_depths_of_colors_are_noted(tmp_path, color_type):
    values = np.linspace(0, 4095, 24).astype(">u2").reshape(4, 6, 1).repeat({2: 3, 4: 2, 6: 4}[color_type], -1)

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 6, 4, 16, color_type, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in values)))
    write_tree(tmp_path, {"bad/1.png": 1})
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + pixels + chunk(b"IEND", b""))
    report = inspect_source(tmp_path, progress=False)
    assert dict(report.depths) == {12: 1}
    assert "make use of fewer: 1 of 12 bits; each is scaled by its own depth" in "\n".join(report.notes)


@pytest.mark.parametrize(
    ("highest", "note"),
    [
        ((4095, 4000), "make use of fewer: 2 of 12 bits; each is scaled by its own depth"),
        ((4095, 900), "1 of 10 bits, 1 of 12 bits; each is scaled by its own depth, so equal values"),
        ((65535, 40000), "2 images of 16 bits, scaled by their full range"),
    ],
)
def test_bit_depths_are_noted(tmp_path, highest, note):
    for name, value in zip(("good", "bad"), highest, strict=True):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((4, 6), value, np.uint16)).save(tmp_path / name / "0.tif")
    report = inspect_source(tmp_path, progress=False)
    assert note in "\n".join(report.notes) and not any(p.kind == "unreadable_image" for p in report.problems)
