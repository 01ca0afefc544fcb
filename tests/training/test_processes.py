"""Runs of scripts/train.py as real processes: two at once, and one that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from anomalyclip_hf.training.history import read_log

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def settings(tiny_clip_dir, make_rows, tmp_path):
    """Function `(name, **fields)` -> a settings file of a run on eleven images, two of which lack their mask."""
    rows = make_rows("images", count=11)
    rows[1]["mask"] = rows[7]["mask"] = None
    lines = [f"{row['path']},{row['mask'] or ''},{row['label']}" for row in rows]
    (tmp_path / "table.csv").write_text("\n".join(["image,mask,label", *lines]))

    def write(name, **fields):
        values = {
            "model": tiny_clip_dir,
            "image_size": 42,
            "source": str(tmp_path / "table.csv"),
            "train_split": "test",
            "output_dir": str(tmp_path / name),
            "cache_dir": str(tmp_path / f"cache_{name}"),
            "cache_dtype": "float32",
            "batch_size": 4,
            "cpu": True,
            "disable_tqdm": True,
            **fields,
        }
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(values))
        return str(path), Path(values["output_dir"])

    return write


def run(command):
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def steps(folder):
    return [[row["global_loss"], row["local_loss"]] for row in read_log(folder) if row["kind"] == "step"]


def test_two_processes_equal_one(settings, make_rows, tmp_path):
    rows = make_rows("held", count=5, seed=3, class_name="nut")
    lines = [f"{row['path']},{row['mask'] or ''},{row['label']}" for row in rows]
    (tmp_path / "held.csv").write_text("\n".join(["image,mask,label", *lines]))
    fields = {"validation_source": str(tmp_path / "held.csv"), "epochs": 3}
    alone_settings, alone = settings("alone", **fields)
    both_settings, both = settings("both", **fields)
    run([sys.executable, str(SCRIPT), alone_settings])
    # On the CPU accelerate's launcher wants mpirun; its other way of starting processes works there too.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--mixed_precision", "no", "--main_process_port", "0", "-m", "anomalyclip_hf", "train"]
    run([*launch, both_settings])
    assert json.loads((both / "training_summary.json").read_text())["num_processes"] == 2
    # Batches of 4, 4 and 3 images: the last one in unequal shares; two masks are missing.
    assert len(steps(alone)) == 9
    np.testing.assert_allclose(steps(both), steps(alone), atol=2e-4)
    found, expected = (load_file(folder / "prompts.safetensors") for folder in (both, alone))
    for name in expected:
        if expected[name].is_floating_point():
            np.testing.assert_allclose(found[name].numpy(), expected[name].numpy(), atol=2e-4)
    judged = [
        [[row["validation"][name] for name in ("image_auroc", "pixel_auroc", "loss")] for row in epochs]
        for epochs in ([row for row in read_log(f) if row["kind"] == "epoch"] for f in (alone, both))
    ]
    assert len(judged[0]) == 3
    # Prompts differ by rounding: of six pairs of images, one may change its order.
    assert (np.abs(np.subtract(*judged)) <= [1 / 6 + 1e-9, 2e-3, 2e-4]).all()


def test_killed_and_resumed_equals_undisturbed(settings):
    fields = {"epochs": 30, "save_steps": 1}
    whole_settings, whole = settings("whole", **fields)
    cut_settings, cut = settings("cut", **fields)
    undisturbed, process = (
        subprocess.Popen(
            [sys.executable, str(SCRIPT), path],
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for path in (whole_settings, cut_settings)
    )
    deadline = time.monotonic() + 120
    while len(steps(cut)) < 17 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 17 <= len(steps(cut)) < 90
    assert not (cut / "prompts.safetensors").exists()
    run([sys.executable, str(SCRIPT), cut_settings, "--resume"])
    assert undisturbed.wait(timeout=240) == 0
    assert (cut / "prompts.safetensors").exists()
    found, expected = (load_file(folder / "prompts.safetensors") for folder in (cut, whole))
    assert all(np.array_equal(found[name].numpy(), expected[name].numpy()) for name in expected)
    assert steps(cut) == steps(whole) and len(steps(cut)) == 90
