import json

import pytest
import yaml
from PIL import Image

from anomalyclip_hf.cli import run_command
from anomalyclip_hf.cli import train as module
from anomalyclip_hf.cli.train import load_data


def main(words):
    return run_command("train", words)


@pytest.fixture
def parse_command(monkeypatch):
    """Function `(words)` -> the settings that a command line means; nothing is trained."""

    def parse(words):
        found = []
        with monkeypatch.context() as patch:
            patch.setattr(module, "run", lambda settings: found.append(settings) or 0)
            assert main(words) == 0
        return found[0]

    return parse


@pytest.fixture
def table(rows, tmp_path):
    path = tmp_path / "table.csv"
    lines = ["image,mask,label"] + [f"{row['path']},{row['mask'] or ''},{row['label']}" for row in rows]
    path.write_text("\n".join(lines))
    return path


def test_flags_and_settings_files_agree(tmp_path, parse_command):
    flags = parse_command(["--model", "m", "--source", "s", "--epochs", "3", "--class_names", "a", "b", "--balanced"])
    settings = {"model": "m", "source": "s", "epochs": 3, "class_names": ["a", "b"], "balanced": True}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "run.json").write_text(json.dumps(settings))
    assert parse_command([str(tmp_path / "run.yaml")]) == flags
    assert parse_command([str(tmp_path / "run.json")]) == flags
    assert parse_command([str(tmp_path / "run.json"), "--epochs", "5"]).epochs == 5
    assert (flags.batch_size, flags.learning_rate, flags.train_split) == (8, 1e-3, "train")


def test_synthetic_is_what_the_checkout_draws(parse_command):
    line = ["--model", "m", "--source", "synthetic", "--source_options", '{"num_images": 4}', "--class_names", "a"]
    command = parse_command([*line, "--validation_source", "synthetic"])
    train, validation = load_data(command, lambda split, **options: (split, options))
    assert train == ("train", {"num_images": 4, "class_names": ["a"]}) and validation == ("validation", {})
    with pytest.raises(ValueError, match="are not part of the package"):
        load_data(command)
    with pytest.raises(ValueError, match="no option of a source is called num_images: expected one of 'data_dir'"):
        load_data(parse_command(["--model", "m", "--source", "parts", "--source_options", '{"num_images": 4}']))


def test_flags_of_a_source_reach_its_loader(monkeypatch, parse_command):
    calls = []
    monkeypatch.setattr("anomalyclip_hf.data.load_anomaly_dataset", lambda source, **given: calls.append(given))
    flags = ["--normal_kinds", "ok", "fine", "--mask_threshold", "10", "--kind", "folder", "--image_column", "file"]
    flags += ["--normal_labels", "pass", "--revision", "of-the-model"]
    command = parse_command(["--model", "m", "--source", "s", "--validation_source", "v", *flags])
    load_data(command)
    train, validation = calls
    assert train == {
        "split": "train",
        "normal_kinds": ["ok", "fine"],
        "normal_labels": ["pass"],
        "mask_threshold": 10,
        "kind": "folder",
        "image_column": "file",
    }
    assert validation == {"split": "test"}


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (RuntimeError("no memory"), 2)])
def test_interruptions_and_failures_are_one_line(monkeypatch, capsys, error, status):
    def fail(*args):
        raise error

    monkeypatch.setattr("anomalyclip_hf.cli.train.load_model", fail)
    assert main(["--model", "m", "--source", "visa"]) == status
    assert capsys.readouterr().err.count("\n") == 1


def test_errors_advise_options(capsys, tiny_clip_dir, table, tmp_path, parse_command):
    command = ["--model", tiny_clip_dir, "--image_size", "42", "--source", str(table), "--train_split", "test"]
    command += ["--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache"), "--cpu"]
    command += ["--disable_tqdm", "--max_steps", "1"]
    assert main(command) == 0
    capsys.readouterr()
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "set --resume to go on from there, --overwrite to discard them, or another --output-dir" in told
    assert main([*command, "--resume", "--learning_rate", "0.1"]) == 2
    told = capsys.readouterr().err
    assert "--learning-rate was 0.001 and is 0.1; restore it, or start anew with --overwrite" in told
    assert parse_command([*command, "--resume", "--overwrite"]).resume  # what was advised can be given


def test_errors_name_the_options_of_their_data_set(tmp_path, make_folders, tiny_clip_dir, capsys):
    good, odd = make_folders("good", "good", "bad"), make_folders("odd", "x", "y")
    command = ["--model", tiny_clip_dir, "--image_size", "42", "--cpu", "--source"]
    assert main([*command, str(good)]) == 2
    told = capsys.readouterr().err
    assert "error: --train-split train, but" in told and "or --train-split all for everything" in told
    assert main([*command, str(odd)]) == 2
    assert "Name the normal folders with --normal-kinds ...;" in capsys.readouterr().err
    command += [str(good), "--train_split", "test"]
    (good / "masks" / "good").mkdir(parents=True)
    Image.new("L", (8, 8), 255).save(good / "masks" / "good" / "0.png")
    assert main([*command, "--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache")]) == 2
    assert "error: --source: 1 images have label 0 (normal) but a mask" in capsys.readouterr().err
    command.append("--validation_source")
    assert main([*command, str(good), "--validation_split", "dev"]) == 2
    assert "error: --validation-split dev, but" in capsys.readouterr().err
    assert main([*command, str(odd)]) == 2
    assert """with --validation-options '{"normal_kinds": [...]}';""" in capsys.readouterr().err


@pytest.fixture
def make_folders(tmp_path):
    """Function `(name, *kinds)` -> a folder with a folder of one picture for each kind."""

    def make(name, *kinds):
        for kind in kinds:
            (tmp_path / name / kind).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / name / kind / "0.png")
        return tmp_path / name

    return make


def test_a_settings_file_with_a_typo_is_refused(tmp_path, capsys):
    (tmp_path / "run.json").write_text('{"epoch": 3}')
    assert main([str(tmp_path / "run.json")]) == 2
    assert "unknown settings ['epoch']" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_errors_are_one_line(tiny_clip_dir, tmp_path, capsys):
    assert main(["--model", tiny_clip_dir]) == 2
    assert capsys.readouterr().err == "error: source is missing; give --source\n"
    assert main(["--model", tiny_clip_dir, "--source", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_push_that_must_fail_is_refused_before_the_training(tiny_clip_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("anomalyclip_hf.training.trainer.train_prompts", lambda *args: pytest.fail("was trained"))
    command = ["--model", tiny_clip_dir, "--image_size", "42", "--source", "synthetic", "--push_to_hub"]
    assert main([*command, "me/prompts"]) == 2
    assert f"the local folder '{tiny_clip_dir}', which nobody else has" in capsys.readouterr().err
    assert main([*command, "not a name"]) == 2
    assert "error: --push-to-hub not a name, expected a repository such as" in capsys.readouterr().err
    monkeypatch.setattr("anomalyclip_hf.AnomalyCLIPModel.push_prompts_to_hub", lambda *args, **kwargs: {})
    assert main([*command, "me/prompts"]) == 2
    assert "error: --push-to-hub me/prompts can't be reached: HF_HUB_OFFLINE is set\n" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert main([*command, "me/prompts"]) == 2
    assert "me/prompts can't be reached: log in first: hf auth login\n" in capsys.readouterr().err


def test_a_push_that_fails_is_one_line_and_says_where_prompts_are(table, tiny_clip_dir, tmp_path, capsys, monkeypatch):
    command = ["--model", tiny_clip_dir, "--image_size", "42", "--source", str(table), "--train_split", "test"]
    command += ["--epochs", "1", "--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache")]
    command += ["--cpu", "--disable_tqdm", "--push_to_hub", "me/prompts"]
    calls = []

    def push(self, repo_id, processor=None, card=True, dry_run=False):
        calls.append((repo_id, processor.size["height"], card, dry_run))
        if not dry_run:
            raise PermissionError("can't push to me/prompts: log in")

    monkeypatch.setattr("anomalyclip_hf.AnomalyCLIPModel.push_prompts_to_hub", push)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_of_me")
    assert main(command) == 2
    shown = capsys.readouterr()
    assert "error: can't push to me/prompts: log in\n" in shown.err and "Traceback" not in shown.err
    assert f"prompts, log and curves: {tmp_path / 'out'}" in shown.out
    assert (tmp_path / "out" / "prompts.safetensors").is_file()
    first, last = calls
    assert first == ("me/prompts", 42, False, True) and last[:2] == ("me/prompts", 42) and not last[3]
    facts = last[2]["training"]
    assert (facts["dataset"], facts["split"], facts["epochs"], facts["images"]) == ("table.csv", "test", 1, 10)


def test_training_from_the_command_line(tiny_clip_dir, table, tmp_path, capsys, parse_command):
    out = tmp_path / "out"
    command = ["--model", tiny_clip_dir, "--image_size", "42", "--source", str(table), "--train_split", "test"]
    command += ["--epochs", "1", "--output_dir", str(out), "--cache_dir", str(tmp_path / "cache"), "--cpu"]
    assert main([*command, "--disable_tqdm"]) == 0
    summary = json.loads(capsys.readouterr().out.split("prompts, log")[0])
    assert (summary["steps"], summary["training_images"]) == (2, 10)
    # The saved settings are a settings file of the same run.
    again = parse_command([str(out / "training_arguments.json")])
    assert (again.model, again.source, again.epochs, again.seed) == (tiny_clip_dir, str(table), 1, 111)
    # Free prompts learn from the same features.
    assert main([*command, "--disable_tqdm", "--overwrite", "--prompt_type", "free"]) == 0
    assert json.loads((out / "config.json").read_text())["prompt_type"] == "free"
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1
    assert main([*command, "--overwrite", "--prompt_type", "words"]) == 2
    assert "--prompt-type words, expected one of ['free', 'text']" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"), [("{num: 1}", "is no JSON"), ("[1]", "expected a JSON object such as")]
)
def test_options_of_a_source_are_json(tiny_clip_dir, capsys, options, message):
    command = ["--model", tiny_clip_dir, "--image_size", "42", "--source", "synthetic", "--source_options", options]
    assert main([*command, "--output_dir", "unused"]) == 2
    told = capsys.readouterr().err
    assert f"error: --source-options {options}" in told and message in told
