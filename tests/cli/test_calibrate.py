"""`anomalyclip calibrate`: thresholds from folders and labelled data, written where they are wanted."""

import json
from functools import partial

import pytest

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
    assert "f1 " in capsys.readouterr().out
    with pytest.warns(UserWarning, match="4 normal samples are too few"):
        from anomalyclip_hf.cli import calibrate

        calibrate.run(calibrate.Settings(source=str(tree), model=line[1], cpu=True, disable_tqdm=True))
    assert "has no split 'train': all its images count" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "source is missing"),
        (["x", "--method", "best"], "--method best"),
        (["x", "--method", "recall"], "--recall None"),
        (["nowhere"], "nowhere"),
    ],
)
def test_what_is_wrong_is_one_line(words, message, line, capsys):
    assert main([*words, *line]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
