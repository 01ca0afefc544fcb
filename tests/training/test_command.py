import json

import pytest
import yaml

from anomalyclip_hf.training.command import main, parse_command, read_settings


def test_flags_and_settings_files_agree(tmp_path):
    flags = parse_command(["--model", "m", "--source", "s", "--epochs", "3", "--class_names", "a", "b", "--balanced"])
    settings = {"model": "m", "source": "s", "epochs": 3, "class_names": ["a", "b"], "balanced": True}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "run.json").write_text(json.dumps(settings))
    assert parse_command([str(tmp_path / "run.yaml")]) == flags
    assert parse_command([str(tmp_path / "run.json")]) == flags
    assert parse_command([str(tmp_path / "run.json"), "--epochs", "5"]).epochs == 5
    assert (flags.batch_size, flags.learning_rate, flags.train_split) == (8, 1e-3, "train")


def test_a_settings_file_with_a_typo_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"epoch": 3}')
    with pytest.raises(ValueError, match=r"unknown settings \['epoch'\]"):
        read_settings(str(tmp_path / "run.json"))


def test_errors_are_one_line(tiny_clip_dir, tmp_path, capsys):
    assert main(["--model", tiny_clip_dir]) == 1
    assert capsys.readouterr().err == "error: source is missing; give --source\n"
    assert main(["--model", tiny_clip_dir, "--source", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_training_from_the_command_line(tiny_clip_dir, rows, tmp_path, capsys):
    table = tmp_path / "table.csv"
    lines = ["image,mask,label"] + [f"{row['path']},{row['mask'] or ''},{row['label']}" for row in rows]
    table.write_text("\n".join(lines))
    out = tmp_path / "out"
    command = ["--model", tiny_clip_dir, "--image_size", "42", "--source", str(table), "--train_split", "test"]
    command += ["--epochs", "1", "--output_dir", str(out), "--cache_dir", str(tmp_path / "cache"), "--cpu"]
    assert main([*command, "--disable_tqdm"]) == 0
    summary = json.loads(capsys.readouterr().out.split("prompts, log")[0])
    assert (summary["steps"], summary["training_images"]) == (2, 10)
    # The saved settings are a settings file of the same run.
    again = parse_command([str(out / "training_arguments.json")])
    assert (again.model, again.source, again.epochs, again.seed) == (tiny_clip_dir, str(table), 1, 111)
