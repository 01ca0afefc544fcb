"""The benchmark of engines and of devices, on a tiny model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"


@pytest.mark.slow
def test_engines_and_devices_are_timed_and_compared(exported_folders, small_checkpoint, tmp_path):
    for kind in ("onnx", "openvino"):
        shutil.copytree(exported_folders(kind), tmp_path / f"{kind}-float32")
    engines = ["bfloat16", "score-float32", "maps-float32", "onnx-float32", "openvino-float32"]
    words = ["--model", small_checkpoint, "--parts", "engines", "device", "--engines", *engines, "--repeats", "2"]
    words += ["--batch_sizes", "2", "--engines_dir", str(tmp_path), "--output", str(tmp_path / "found.json")]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["cpu"] and isinstance(found["cpu_flags"], list)
    rows = {row["engine"]: row for row in found["engines"]}
    assert list(rows) == ["plain", "float32", *engines]
    for name, row in rows.items():
        assert row["batch"] == 2 and row["seconds"] > 0 and 0.01 < row["peak_gb"] < 10
        assert 0 < row["ratio_min"] <= row["ratio_median"]
        bound = 0.1 if "bfloat16" in name else 1e-5
        assert ("max_score_difference" in row) == (name != "maps-float32")
        assert ("max_map_difference" in row) == (name != "score-float32")
        assert max(row[key] for key in row if "difference" in key) < bound
    assert rows["plain"]["ratio_median"] == 1 and rows["onnx-float32"]["max_map_difference"] > 0
    device = [row for row in found["device"] if "failed" not in row]
    assert {(row["dtype"], row["form"]) for row in device} >= {("bfloat16", "sdpa"), ("float16", "sdpa")}
    assert all(row["images_per_s"] > 0 and row["max_anomaly_maps_difference"] < 0.1 for row in device)
