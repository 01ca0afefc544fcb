"""`anomalyclip calibrate`: thresholds from folders and labelled data, written where they are wanted."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

from anomalyclip_hf import AnomalyCLIPModel
from anomalyclip_hf.cli import run_command
from evaluation_tools import make_tree

main = partial(run_command, "calibrate")


@pytest.fixture
def line(tiny_checkpoint):
    return ["--model", tiny_checkpoint, "--cpu", "--disable-tqdm"]


def test_a_folder_of_images_sets_thresholds_of_new_prompts(line, tiny_checkpoint, tmp_path, capsys, make_image):
    (tmp_path / "parts").mkdir()
    for seed in range(22):
        make_image(seed=seed).save(tmp_path / "parts" / f"{seed:02d}.png")
    words = [str(tmp_path / "parts"), *line, "--false-alarm-rate", "0.1", "--confidence", "0.9"]
    assert main([*words, "--output-dir", str(tmp_path / "prompts")]) == 0
    printed = capsys.readouterr()
    assert "its 22 images have no labels: all are taken as normal" in printed.err
    config = AnomalyCLIPModel.from_pretrained(tmp_path / "prompts").config
    assert f"image threshold: {config.image_threshold:.6g} (false_alarm_rate 0.1, " in printed.out
    assert 0 < config.pixel_threshold < 1
    # An unreadable image is left out, and into a checkpoint nothing but thresholds is written.
    stored = tmp_path / "prompts" / "config.json"
    before = json.loads(stored.read_text())
    (tmp_path / "parts" / "bad.png").write_text("no image")
    assert main([*words, "--output-dir", str(tmp_path / "prompts"), "--pixel-rate", "0.5"]) == 1
    assert "bad.png" in capsys.readouterr().err
    after = json.loads(stored.read_text())
    assert after["pixel_threshold"] < before["pixel_threshold"]
    assert {**after, "pixel_threshold": 0} == {**before, "pixel_threshold": 0}


def test_labels_and_splits(line, tmp_path, capsys):
    tree = make_tree(tmp_path / "tree", ("bottle",), good=4)
    assert main([str(tree), *line, "--method", "f1"]) == 0
    told = capsys.readouterr().out
    (pixels,) = [text for text in told.splitlines() if text.startswith("pixel threshold")]
    assert "f1 " in told and int(pixels.partition("num_normal ")[2].partition(",")[0]) > 10_000
    assert main([str(tree), *line]) == 0
    told = capsys.readouterr()
    assert told.err.count("4 normal samples are too few") == 1  # of one number for both thresholds
    assert "warning: image and pixel threshold: 4 normal samples are too few" in told.err
    assert told.out.count(", not guaranteed)") == 2 and "is_guaranteed" not in told.out
    assert "has no split 'train': all its images count" in told.err


@pytest.mark.filterwarnings("ignore:.*2 normal samples are too few")
def test_references_among_the_images_are_left_out(line, tmp_path, capsys, make_image):
    for folder, seeds in (("parts", range(4)), ("good", (1, 3))):
        (tmp_path / folder).mkdir()
        for seed in seeds:
            make_image(seed=seed).save(tmp_path / folder / f"{folder}{seed}.png")
    words = [str(tmp_path / "parts"), *line, "--output-dir", str(tmp_path / "model"), "--profile", "part"]
    assert main([*words, "--references", str(tmp_path / "good"), "--max-patches", "3"]) == 0
    told = capsys.readouterr().err
    assert "2 of its 4 images are references: they are left out" in told
    stored = json.loads((tmp_path / "model" / "profiles" / "part.json").read_text())
    assert stored["calibration"]["num_images"] == 2
    model = AnomalyCLIPModel.from_pretrained(tmp_path / "model")
    model.set_profile("part")
    assert model.references.features.shape[1] == 3
    predict = [str(tmp_path / "parts"), *line[:2], "--output-dir", str(tmp_path / "out"), "--device", "cpu"]
    assert run_command("predict", [*predict, "--references", str(tmp_path / "good"), "--max-patches", "0"]) == 2
    assert "--max-patches 0, expected a whole number in 1.." in capsys.readouterr().err
    assert run_command("predict", [*predict, "--max-patches", "3"]) == 2
    assert main([*words, "--references", str(tmp_path / "parts")]) == 2
    assert "all images of the source are among them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "source is missing"),
        (["x", "--method", "best"], "--method best"),
        (["x", "--method", "recall"], "no --recall"),
        (["nowhere"], "nowhere"),
    ],
)
def test_what_is_wrong_is_one_line(words, message, line, capsys):
    assert main([*words, *line]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_profile_is_written_beside_the_prompts_and_predict_uses_it(line, tmp_path, capsys, make_image):
    (tmp_path / "normals").mkdir()
    for seed in range(25):
        make_image(seed=seed).save(tmp_path / "normals" / f"{seed:02d}.png")
    roi = np.zeros((40, 50), np.uint8)
    roi[:, 20:] = 255
    Image.fromarray(roi).save(tmp_path / "roi.png")
    model, normals = str(tmp_path / "model"), str(tmp_path / "normals")
    words = ["--false-alarm-rate", "0.1", "--confidence", "0.9", "--pixel-rate", "0.3", "--output-dir", model]
    marks = ["--profile", "bottle", "--roi", str(tmp_path / "roi.png"), "--min-area", "4"]
    assert main([normals, *line, *words, *marks]) == 0
    printed = capsys.readouterr().out
    stored = json.loads((tmp_path / "model" / "profiles" / "bottle.json").read_text())
    assert f"image threshold: {stored['image_threshold']:.6g} (false_alarm_rate 0.1, " in printed
    assert (stored["min_area"], stored["roi"]) == (4, "profiles/bottle/roi.png")
    facts = stored["calibration"]
    assert (facts["method"], facts["num_images"], facts["image"]["confidence"]) == ("normal", 25, 0.9)
    own = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (own["image_threshold"], own["pixel_threshold"]) == (None, None)

    # Another run keeps what the profile says already, and the other profiles.
    line = ["--model", model, *line[2:]]
    assert main([normals, *line, *words, "--profile", "bottle", "--pixel-rate", "0.1"]) == 0
    assert main([normals, *line, *words, "--profile", "cap", "--roi", "[[0,0],[50,0],[50,9],[0,9]]"]) == 0
    again = json.loads((tmp_path / "model" / "profiles" / "bottle.json").read_text())
    assert again["pixel_threshold"] > stored["pixel_threshold"] and again["roi"] == "profiles/bottle/roi.png"
    cap = json.loads((tmp_path / "model" / "profiles" / "cap.json").read_text())
    assert cap["roi"] == [[0, 0], [50, 0], [50, 9], [0, 9]] and "min_area" not in cap

    shared = [normals, "--model", model, "--device", "cpu", "--profile", "bottle"]
    exports = ["--coco", str(tmp_path / "coco.json"), "--label-studio", str(tmp_path / "tasks.json")]
    assert run_command("predict", [*shared, "--output-dir", str(tmp_path / "out"), *exports]) == 0
    records = [json.loads(text) for text in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert all((record["width"], record["height"]) == (50, 40) for record in records) and len(records) == 25
    assert sum(record["label"] == "anomalous" for record in records) <= 2
    regions = [region for record in records for region in record["regions"]]
    assert regions and all(region["area"] >= 4 and region["box"][0] >= 20 for region in regions)
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert [one["area"] for one in coco["annotations"]] == [region["area"] for region in regions]
    assert len(json.loads((tmp_path / "tasks.json").read_text())) == 25
    given = ["--pixel-threshold", "0", "--min-area", "1", "--roi", "[[0,0],[5,0],[5,5],[0,5]]"]
    assert run_command("predict", [*shared, *given, "--output-dir", str(tmp_path / "given")]) == 0
    records = [json.loads(text) for text in (tmp_path / "given" / "predictions.jsonl").read_text().splitlines()]
    assert {tuple(record["regions"][0]["box"]) for record in records} == {(0, 0, 5, 5)}

    capsys.readouterr()
    refused = [
        (["predict", *shared[:-1], "lid"], "has no profile 'lid'; known are: bottle, cap"),
        (["predict", *shared[:5], "--coco", "x.json"], "no pixel threshold, so no regions"),
        (["predict", *shared, "--roi", "[[0,0],"], "--roi"),
        (["calibrate", normals, *line, "--min-area", "3"], "name it with --profile"),
        (["calibrate", normals, *line, "--profile", "../x"], "--profile ../x, expected a name"),
    ]
    for (command, *rest), message in refused:
        assert run_command(command, [*rest, "--output-dir", str(tmp_path / "none")]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "none").exists()
