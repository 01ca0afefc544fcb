"""Runs of `anomalyclip predict` as real processes: two at once, one that is killed, one that is terminated."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytestmark = pytest.mark.slow
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
# On the CPU accelerate's launcher wants mpirun; its other way of starting processes works there too.
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--mixed_precision", "no", "--main_process_port", "0"]
# The command with records put on disk often, so that a fast machine doesn't finish before it is stopped.
OFTEN = (
    "import sys; from anomalyclip_hf.scoring import writing; writing.SHARD_SECONDS = 0.05;"
    "from anomalyclip_hf.cli import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture
def command(tiny_checkpoint, tmp_path, make_image):
    """Function `(output folder)` -> the words that score 150 photos, one of which is none."""
    (tmp_path / "in").mkdir()
    for index in range(150):
        make_image(40 + index % 5, 40, seed=index).save(tmp_path / "in" / f"{index:03}.png")
    (tmp_path / "in" / "030.png").write_text("no image")

    def write(name):
        line = ["-m", "anomalyclip_hf", "predict", str(tmp_path / "in"), "--model", tiny_checkpoint]
        return [*line, "--device", "cpu", "--save-maps", "npy", "--output-dir", str(tmp_path / name)], tmp_path / name

    return write


def lines(folder, pattern):
    paths = sorted(folder.glob(pattern))
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def run(words, status):
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == status, done.stderr[-3000:]
    return done


def stop(words, out, number):
    """Send a signal to a run when it has put its first records on disk; returns its exit status."""
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("predictions-*.jsonl")}
    words = [sys.executable, "-c", OFTEN, *words[2:]]
    process = subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        shards = [path for path in out.glob("predictions-[0-9]*.jsonl") if path.exists()]
        if any(before.get(path.name) != path.stat().st_mtime_ns for path in shards):
            break
        time.sleep(0.001)
    process.send_signal(number)
    return process.wait(timeout=60)


def assert_same(found, expected):
    names = [{str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} for out in (found, expected)]
    assert names[0] == names[1]
    records, others = lines(found, "predictions*.jsonl"), lines(expected, "predictions*.jsonl")
    assert [{**record, "score": 0} for record in records] == [{**record, "score": 0} for record in others]
    scores = [[record["score"] for record in one] for one in (records, others)]
    np.testing.assert_allclose(*scores, atol=1e-6)
    assert lines(found, "skipped*.jsonl") == lines(expected, "skipped*.jsonl")


def test_two_processes_write_what_one_does(command):
    (alone, expected), (both, found) = command("alone"), command("both")
    run([sys.executable, *alone], 1)
    done = subprocess.run([*LAUNCH, *both], env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1 and "149 images scored, 1 input skipped" in done.stdout, done.stderr[-3000:]
    assert_same(found, expected)


def test_killed_and_terminated_runs_go_on(command):
    (whole, expected), (cut, found) = command("whole"), command("cut")
    run([sys.executable, *whole, "--num-workers", "1"], 1)
    assert stop(cut, found, signal.SIGKILL) == -signal.SIGKILL
    first = lines(found, "predictions*.jsonl")
    assert 0 < len(first) < 149
    assert stop([*cut, "--resume"], found, signal.SIGTERM) == 143
    assert len(first) < len(lines(found, "predictions*.jsonl")) < 149
    run([sys.executable, *cut, "--resume"], 1)
    assert_same(found, expected)
