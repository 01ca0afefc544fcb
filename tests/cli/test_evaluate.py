import base64
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from anomalyclip_hf import AnomalyCLIPModel, AnomalyCLIPProcessor, load_anomaly_dataset
from anomalyclip_hf.cli import run_command
from anomalyclip_hf.cli.evaluate import Settings
from anomalyclip_hf.cli.loading import load_source
from evaluation_tools import make_tree
from word_tokenizer import make_tokenizer

ROOT = Path(__file__).parents[2]
main = partial(run_command, "evaluate")


def test_one_command_judges_everything(tiny_checkpoint, tmp_path, capsys):
    tree, out, words = make_tree(tmp_path / "tree", ("bottle",)), tmp_path / "out", tmp_path / "words"
    make_tokenizer().save_pretrained(words)
    line = ["--model", tiny_checkpoint, "--sources", f"mvtec={tree}", f"mine={tree}", "synthetic", "--cpu"]
    line += ["--output_dir", str(out), "--disable_tqdm", "--tokenizer", str(words), "--source_options", "{}"]
    line += ["--class_names", "bottle", "--baselines", "--ablations", "dpam=off", "qq", "layers=2,4"]
    line += ["--shots", "0", "1", "--draws", "2", "--methods", "score=max", "mean", "mutual"]
    assert main([word for word in line if word != "synthetic"]) == 0
    printed = capsys.readouterr().out
    rows = [row.split("|")[1:3] for row in printed.splitlines() if row.startswith("|")]
    methods = ["AnomalyCLIP", "CLIP, two plain prompts", "CLIP-AC, templates", "CLIP, state words x templates"]
    methods += ["without DPAM", "DPAM q-q", "layers 2, 4", "1 reference, not judged, 2 draws"]
    methods += ["score max", "score mean", "mutual, transductive"]
    assert [cell.strip() for name, cell in rows if name.strip() == "mine"] == methods
    assert "paper (trained on visa)" in printed and str(out) in printed
    names = {"results.json", "results.md", "scores.parquet", "report.html", "records"}
    assert {path.name for path in out.iterdir()} == names
    stored = json.loads((out / "results.json").read_text())
    assert list(stored["datasets"]) == ["mvtec", "mine"]
    first, second = (entry["mean"] for entry in stored["datasets"].values())
    assert first == second


def test_images_without_labels_are_refused_and_one_kind_alone_is_told(tiny_checkpoint, tmp_path, capsys):
    tree = make_tree(tmp_path / "tree", ("bottle",), good=2)
    good = tree / "bottle" / "test" / "good"
    common = ["--model", tiny_checkpoint, "--cpu", "--disable-tqdm", "--output-dir", str(tmp_path / "out")]
    assert main(["--source", str(good), *common]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: good: of 2 images none is labelled normal or anomalous, and without labels")
    assert "--normal-kinds" in told and not (tmp_path / "out").exists()
    (tmp_path / "one" / "good").mkdir(parents=True)
    next(good.iterdir()).rename(tmp_path / "one" / "good" / "1.png")
    assert main(["--source", str(tmp_path / "one"), *common]) == 0
    assert "warning: one: of 1 image none is labelled anomalous;" in capsys.readouterr().err


def test_synthetic_is_what_the_checkout_draws(tiny_checkpoint, tmp_path, capsys):
    asked = []

    def draw(split, **options):
        asked.append((split, options))
        return load_anomaly_dataset(make_tree(tmp_path / split, ("bottle",)))

    options, tree = '{"num_images": 12, "normal_kinds": ["good"]}', make_tree(tmp_path / "tree", ("bottle",))
    line = ["--model", tiny_checkpoint, "--sources", "synthetic", str(tree), "--source_options", options, "--cpu"]
    line += ["--disable_tqdm", "--output_dir", str(tmp_path / "out"), "--num_pictures", "1", "--calibrate", "f1"]
    assert main(line, draw=draw) == 0
    assert asked == [("test", {"num_images": 12}), ("calibration", {"num_images": 12})]
    assert list(json.loads((tmp_path / "out" / "results.json").read_text())["datasets"]) == ["synthetic", "tree"]
    assert "| synthetic |" in capsys.readouterr().out
    assert main(line) == 2
    assert "python scripts/demo_model/draw.py FOLDER" in capsys.readouterr().err
    line[line.index("synthetic")] = f"again={tree}"
    assert main(line, draw=draw) == 2
    (said,) = [row for row in capsys.readouterr().err.splitlines() if row.startswith("error: ")]
    assert "no option of a source is called num_images: expected one of" in said and "'class_names'" in said


def test_thresholds_travel_with_the_prompts(tiny_checkpoint, tiny_clip_dir, tmp_path, capsys):
    tree, prompts = make_tree(tmp_path / "tree", ("bottle",), good=8), tmp_path / "prompts"
    line = ["--model", tiny_checkpoint, "--sources", f"mine={tree}", "--cpu", "--disable_tqdm", "--num_pictures", "1"]
    line += ["--output_dir", str(tmp_path / "out"), "--save_thresholds", str(prompts)]
    assert main([*line, "--calibrate", "f1"]) == 0
    printed = capsys.readouterr()
    assert "mine at image_threshold" in printed.out
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    warning = "thresholds were chosen on the judged images: figures at them are optimistic"
    assert f"warning: {warning}" in printed.err and stored["thresholds"]["warning"].startswith(warning)
    assert warning in (tmp_path / "out" / "results.md").read_text()
    config = AnomalyCLIPModel.from_pretrained(prompts).config
    assert config.image_threshold == stored["thresholds"]["image"]["threshold"]
    assert config.pixel_threshold == stored["thresholds"]["pixel"]["threshold"]
    at = stored["datasets"]["mine"]["at_image_threshold"]
    assert at["recall"] == stored["thresholds"]["image"]["recall"]
    assert at["false_alarm_rate"] == stored["thresholds"]["image"]["false_alarm_rate"]
    again = [*line, "--calibrate", "recall", "--recall", "1.0"]
    assert main(again) == 0
    assert (
        AnomalyCLIPModel.from_pretrained(prompts).config.image_threshold < config.image_threshold or at["recall"] == 1
    )
    learned = AnomalyCLIPModel.from_pretrained(prompts).prompt_learner.context
    assert (learned == AnomalyCLIPModel.from_pretrained(tiny_checkpoint).prompt_learner.context).all()


def test_a_profile_judges_by_its_thresholds_rule_and_references(tiny_checkpoint, tiny_processor, make_image, tmp_path):
    from anomalyclip_hf.scoring.profiles import Profile

    tree, prompts, out = make_tree(tmp_path / "tree", ("bottle",)), tmp_path / "prompts", tmp_path / "out"
    model = AnomalyCLIPModel.from_pretrained(tiny_checkpoint)
    model.config.image_threshold = 0.9
    model.save_prompts(prompts, tiny_processor, base_model_name_or_path=tiny_checkpoint)
    good = tmp_path / "good.png"
    make_image().save(good)
    model.set_profile(Profile("lid", image_threshold=0.4, score_rule="max", references=str(good)))
    model.save_profiles(prompts)
    line = ["--model", str(prompts), "--sources", f"mine={tree}", "--cpu", "--disable_tqdm", "--num_pictures", "0"]
    assert main([*line, "--output_dir", str(out), "--profile", "lid"]) == 0
    stored = json.loads((out / "results.json").read_text())
    assert (stored["model"]["profile"], stored["settings"]["image_threshold"]) == ("lid", 0.4)
    processor = AnomalyCLIPProcessor.from_pretrained(prompts)
    dataset = load_anomaly_dataset(str(tree))
    model.set_references([str(good)], processor=processor)
    expected = []
    for row in dataset:
        with torch.no_grad():
            output = model(**processor([row["image"]], return_tensors="pt"))
        expected.append(processor.post_process_anomaly_detection(output, score_rule="max")[0]["score"])
    assert pq.read_table(out / "scores.parquet")["score"].to_pylist() == pytest.approx(expected, abs=1e-5)
    assert main([*line, "--output_dir", str(out), "--profile", "cap"]) == 2


@pytest.mark.filterwarnings("ignore:.* normal samples are too few")
def test_thresholds_of_other_images_need_no_warning(tiny_checkpoint, tmp_path, capsys):
    tree, other = make_tree(tmp_path / "tree", ("bottle",)), make_tree(tmp_path / "other", ("grid",))
    line = ["--model", tiny_checkpoint, "--sources", f"mine={tree}", "--cpu", "--disable_tqdm", "--num_pictures", "0"]
    line += ["--output_dir", str(tmp_path / "out"), "--calibrate"]
    assert main([*line, "f1", "--calibration_source", f"else={other}", "--class_names", "bottle"]) == 0
    assert "optimistic" not in capsys.readouterr().err
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["thresholds"]["source"] == "else" and "warning" not in stored["thresholds"]
    # The same files by another door.
    assert main([*line, "normal", "--calibration_source", str(tree / "bottle"), "--calibration_split", "test"]) == 0
    assert "warning: thresholds were chosen on the judged images" in capsys.readouterr().err


def test_columns_are_named_by_flags(tiny_checkpoint, tmp_path):
    tree, table = make_tree(tmp_path / "tree", ("bottle",)), tmp_path / "parts.csv"
    files = sorted(path.relative_to(tree).as_posix() for path in tree.glob("bottle/test/*/*.png"))
    rows = [f"{path},{'ok' if 'good' in path else 'broken'},cup" for path in files]
    table.write_text("\n".join(["picture,state,part", *rows]) + "\n")
    line = ["--model", tiny_checkpoint, "--source", str(table), "--data_dir", str(tree), "--cpu", "--disable_tqdm"]
    line += ["--image_column", "picture", "--label_column", "state", "--class_column", "part", "--normal_labels", "ok"]
    assert main([*line, "--output_dir", str(tmp_path / "out"), "--num_pictures", "0"]) == 0
    (entry,) = json.loads((tmp_path / "out" / "results.json").read_text())["datasets"].values()
    assert list(entry["classes"]) == ["cup"] and entry["num_images"] == 7 and entry["num_anomalous_images"] == 4


def test_an_unreadable_image_is_reported_and_left_out(tiny_checkpoint, tmp_path, capsys):
    tree, out = make_tree(tmp_path / "tree", ("bottle", "grid")), tmp_path / "out"
    bad = tree / "bottle" / "test" / "scratch" / "001.png"
    bad.write_bytes(bad.read_bytes()[:100])
    line = ["--model", tiny_checkpoint, "--sources", f"mine={tree}", "--cpu", "--disable_tqdm", "--num_pictures", "2"]
    assert main([*line, "--output_dir", str(out), "--batch_size", "1"]) == 1
    assert f"skipped mine: cannot read image {bad}" in capsys.readouterr().err
    entry = json.loads((out / "results.json").read_text())["datasets"]["mine"]
    assert (entry["num_images"], entry["num_anomalous_images"], entry["num_unreadable_images"]) == (13, 7, 1)
    assert entry["unreadable"][0]["path"] == str(bad) and entry["num_anomalous_images_without_mask"] == 0
    assert entry["classes"]["bottle"]["num_images"] == 6 and entry["classes"]["bottle"]["num_judged_maps"] == 6
    assert "- 1 of 14 images could not be read and are left out: " in (out / "results.md").read_text()
    bad.unlink()
    assert main([*line, "--output_dir", str(tmp_path / "without"), "--batch_size", "1"]) == 0
    without = json.loads((tmp_path / "without" / "results.json").read_text())["datasets"]["mine"]
    assert without["mean"] == entry["mean"]


def test_sources_of_the_command_line(tmp_path):
    tree = make_tree(tmp_path / "tree", ("bottle", "grid"))
    name, found = load_source(f"mvtec={tree}", class_names=["grid"])
    assert name == "mvtec" and set(found["class_name"]) == {"grid"}
    assert load_source(f"mine={tree}")[0] == "mine" and load_source(str(tree))[0] == "tree"
    assert load_source(str(tree.rename(tree.with_name("rate=0.1"))))[0] == "rate=0.1"
    tree.with_name("rate=0.1").rename(tree)
    assert load_source("MVTec-AD", data_dir=str(tree))[0] == "mvtec"
    with pytest.raises(ValueError, match="expected NAME=FOLDER"):
        load_source("mvtec=")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--model", "demo"], "--sources"),
        (["--model", "demo", "--source", "x", "--sources", "y"], "one of the two"),
        (["--model", "demo", "--source", "x", "--calibrate", "recall"], "no --recall"),
        (["--model", "demo", "--source", "x", "--calibrate", "best"], "--calibrate best"),
        (["--model", "demo", "--source", "x", "--save_thresholds", "d"], "needs --calibrate"),
        (["--model", "demo", "--source", "x", "--shots", "33"], "0 to 32 references"),
        (["--model", "demo", "--source", "x", "--draws", "0"], "--draws 0, expected 1 or more"),
    ],
)
def test_contradictions_are_one_line(line, message, capsys):
    assert main(line) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_errors_of_calibration_name_its_options(tiny_checkpoint, tmp_path, capsys):
    tree = make_tree(tmp_path / "tree", ("bottle",))
    line = ["--model", tiny_checkpoint, "--sources", f"mine={tree}", "--cpu", "--disable_tqdm"]
    line += ["--output_dir", str(tmp_path / "out"), "--calibrate"]
    assert main([*line, "normal", "--calibration_split", "dev"]) == 2
    error = capsys.readouterr().err
    assert "error: --calibration-split dev, but" in error and "or --calibration-split all for" in error
    assert main([*line, "recall", "--recall", "2"]) == 2
    assert "error: --recall 2.0 with --calibrate recall: give" in capsys.readouterr().err


def test_missing_data_is_one_line(tiny_checkpoint, tmp_path, capsys):
    assert main(["--model", tiny_checkpoint, "--sources", f"mine={tmp_path / 'nowhere'}", "--cpu"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_settings_become_those_of_the_evaluator():
    assert Settings(source="s").judged()["exact"] is None and Settings(source="s").ablations is None
    assert Settings(source="s", map_size="256").judged()["map_size"] == 256
    assert Settings(source="s", map_size="original").judged()["map_size"] == "original"


@pytest.mark.slow
@pytest.mark.parametrize("exact", [True, False])
def test_two_processes_give_exactly_the_numbers_of_one(tiny_checkpoint, tmp_path, exact):
    # 7 images a class in batches of 2: the last batch is ragged, and the processes get 2 batches each.
    tree = make_tree(tmp_path / "tree", ("bottle", "grid"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    script = ["scripts/evaluate.py", "--model", tiny_checkpoint, "--sources", f"mine={tree}", "--cpu"]
    script += ["--batch_size", "2", "--disable_tqdm", "--ablations", "dpam=off", "--num_pictures", "1"]
    script += ["--exact"] if exact else ["--exact", "false", "--save_maps", "npy", "--map_size", "32"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes", "2", "--main_process_port", "0"]
    assert main([*script[1:], "--output_dir", str(tmp_path / "one")]) == 0
    done = subprocess.run(
        [*launch, *script, "--output_dir", str(tmp_path / "two")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("| mine") == 2  # printed once
    one, two = (json.loads((tmp_path / folder / "results.json").read_text()) for folder in ("one", "two"))
    assert one["datasets"] == two["datasets"]
    assert one["datasets"]["mine"]["classes"]["grid"]["num_images"] == 7
    assert ("max_error" in one["datasets"]["mine"]["classes"]["grid"]) is not exact  # of counts alone
    scores = [(tmp_path / folder / "scores.parquet").read_bytes() for folder in ("one", "two")]
    assert scores[0] == scores[1]
    if not exact:
        assert len(list((tmp_path / "two" / "maps").rglob("*.npy"))) == 14


@pytest.mark.parametrize("name", ["{folder}", "..", "../x", "a/b", "a\nb", "."])
def test_a_name_is_no_path(tiny_model, tiny_processor, tmp_path, name, capsys):
    from anomalyclip_hf.data import load_anomaly_dataset
    from anomalyclip_hf.evaluation import evaluate_model

    tree = make_tree(tmp_path / "tree", ("bottle",))
    for file in ("notes.json", "arrays.npz"):
        (tree / file).write_text("precious")
    name = name.format(folder=tree)
    assert main(["--model", "demo", "--sources", f"{name}={tree}", "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "can't name a folder of the results" in error
    with pytest.raises(ValueError, match="can't name a folder"):
        dataset = load_anomaly_dataset(str(tree))
        evaluate_model(tiny_model, tiny_processor, dataset, output_dir=tmp_path / "out", name=name)
    assert (tree / "notes.json").read_text() == (tree / "arrays.npz").read_text() == "precious"
    assert not (tmp_path / "out").exists()


def test_sources_without_a_name_of_their_own_are_named_by_their_folder(tmp_path, monkeypatch):
    tree = make_tree(tmp_path / "tree", ("bottle",))
    monkeypatch.chdir(tree)
    assert load_source(".")[0] == "tree" and load_source("bottle/..")[0] == "tree"


def test_a_new_run_forgets_its_own_progress_alone(tiny_checkpoint, tmp_path):
    tree, out = make_tree(tmp_path / "tree", ("bottle",)), tmp_path / "out"
    line = ["--model", tiny_checkpoint, "--sources", f"mine={tree}", "--cpu", "--disable_tqdm", "--num_pictures", "0"]
    records = out / "records" / "mine"
    (records / "gone").mkdir(parents=True)
    for file in ("notes.json", "gone/arrays.npz", "gone/class.json", "gone/00000003.parquet", "gone/00000003.npz"):
        (records / file).write_text("x")
    assert main([*line, "--output_dir", str(out)]) == 0
    files = {path.relative_to(records).as_posix() for path in records.rglob("*") if path.is_file()}
    assert files == {*("run.json", "notes.json", "gone/arrays.npz", "bottle/class.json", "bottle/00000000.parquet")}


@pytest.mark.filterwarnings("error:.*(starts with '_'|missing from font)")
def test_odd_class_names_reach_every_file(tiny_checkpoint, tmp_path):
    names = ("price_$_to_{$", "_hidden", "ملصق", "long name " * 12, "a\nb|c")
    tree, out = make_tree(tmp_path / "tree", names, good=1, bad=1), tmp_path / "out"
    line = ["--model", tiny_checkpoint, "--sources", f"mine={tree}", "--cpu", "--disable_tqdm", "--num_pictures", "1"]
    assert main([*line, "--output_dir", str(out), "--save_maps", "png"]) == 0
    assert len(list((out / "maps").rglob("*.png"))) == 10
    page = (out / "report.html").read_text()
    for plot in re.findall(r"data:image/svg\+xml;base64,([^\"]*)", page):
        svg = base64.b64decode(plot).decode()
        assert all(text in svg for text in ("price_$_to_{$", " _hidden", "ملصق", "a\\nb|c"))
    rows = [row for row in (out / "results.md").read_text().splitlines() if row.startswith("| a\\nb\\|c ")]
    assert len(rows) == 1


def test_what_can_not_be_drawn_is_said_when_the_numbers_are_safe(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    from anomalyclip_hf.evaluation import report, results

    def fail(*args, **kwargs):
        raise RuntimeError("no font")

    tree, out = make_tree(tmp_path / "tree", ("bottle",)), tmp_path / "out"
    line = ["--model", tiny_checkpoint, "--sources", f"mine={tree}", "--cpu", "--disable_tqdm", "--num_pictures", "1"]
    monkeypatch.setattr(results, "write_report", fail)
    monkeypatch.setattr(report, "Sample", fail)
    assert main([*line, "--output_dir", str(out)]) == 1
    said = [row for row in capsys.readouterr().err.splitlines() if row.startswith("not drawn: ")]
    assert said[-1] == "not drawn: report.html (RuntimeError: no font)" and len(said) == 4
    assert json.loads((out / "results.json").read_text())["datasets"]["mine"]["num_images"] == 7
    assert (out / "scores.parquet").is_file() and not (out / "report.html").exists()


@pytest.mark.parametrize(("failing", "status"), [(2, 1), (99, 2)])
def test_a_map_that_can_not_be_written_is_said(tiny_checkpoint, tmp_path, monkeypatch, capsys, failing, status):
    from anomalyclip_hf.evaluation import evaluator

    write, places = evaluator.save_map, iter(range(99))

    def full(anomaly_map, path):
        if next(places) < failing:
            raise OSError(28, "No space left on device")
        write(anomaly_map, path)

    monkeypatch.setattr(evaluator, "save_map", full)
    tree, out = make_tree(tmp_path / "tree", ("bottle",)), tmp_path / "out"
    line = ["--model", tiny_checkpoint, "--sources", f"mine={tree}", "--cpu", "--disable_tqdm", "--num_pictures", "0"]
    assert main([*line, "--save_maps", "--output_dir", str(out)]) == status
    said = capsys.readouterr().err.splitlines()
    if status == 2:
        assert said[-1] == "error: [Errno 28] No space left on device"
        return
    said = [row for row in said if row.startswith("not drawn: map bottle/")]
    assert len(said) == 2 and "No space left on device" in said[0]
    assert len(list((out / "maps").rglob("*.png"))) == 5 and (out / "results.json").is_file()


def test_results_name_the_prompts(tiny_checkpoint, tmp_path):
    import hashlib

    tree, prompts, out = make_tree(tmp_path / "tree", ("bottle",)), str(tmp_path / "prompts"), tmp_path / "out"
    model = AnomalyCLIPModel.from_pretrained(tiny_checkpoint)
    with torch.no_grad():
        model.prompt_learner.context.add_(0.5)
    model.save_prompts(prompts, base_model_name_or_path=tiny_checkpoint)
    tensors = (model.prompt_learner.context, model.prompt_learner.deep_prompts)
    digest = hashlib.sha256(b"".join(one.detach().numpy().astype("<f4").tobytes() for one in tensors)).hexdigest()
    line = ["--sources", f"mine={tree}", "--cpu", "--disable_tqdm", "--num_pictures", "0", "--output_dir", str(out)]
    for way in (["--model", prompts], ["--model", tiny_checkpoint, "--prompts", prompts]):
        assert main([*line, *way]) == 0
        found = json.loads((out / "results.json").read_text())["model"]
        assert found["prompts"] == prompts and found["prompts_sha256"] == digest
        assert digest in (out / "report.html").read_text()
        lines = (out / "results.md").read_text().splitlines()
        assert f"- Prompts: {prompts}" in lines and f"- SHA-256 of the prompts: {digest}" in lines
