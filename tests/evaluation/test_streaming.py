import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from anomalyclip_hf.evaluation.metrics import UndefinedMetricWarning, pixel_metrics
from anomalyclip_hf.evaluation.streaming import StreamingPixelMetrics
from anomalyclip_hf.scoring.histogram import from_keys, to_keys

NAMES = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro", "aupro_authors")


def make_maps(kind, count=6, size=(96, 120)):
    rng = np.random.default_rng(3)
    masks = np.zeros((count, *size), dtype=bool)
    for index in range(count - 2):
        for _ in range(3):
            row, column = rng.integers(0, 60, 2)
            masks[index, row : row + rng.integers(3, 30), column : column + rng.integers(3, 40)] = True
    noise = np.stack([ndimage.gaussian_filter(rng.normal(size=size), 3) for _ in range(count)]) * 10
    raw = noise + masks
    maps = {
        "probability": 1 / (1 + np.exp(-2 * raw)),
        "signed": raw - 0.5,
        "far": 1000 + 0.01 * raw,
        "tiny": 1e-30 * (raw - raw.min() + 0.01),
        "ties": np.round(raw, 1),
    }[kind]
    return maps.astype(np.float32), masks


def fill(maps, masks, **options):
    streaming = StreamingPixelMetrics(**options)
    for start in range(0, len(maps), 2):
        streaming.update(maps[start : start + 2], masks[start : start + 2])
    return streaming


@pytest.mark.filterwarnings("ignore:many scores share a bin")
@pytest.mark.parametrize("kind", ["probability", "signed", "far", "tiny", "ties"])
def test_within_1e_4_of_exact(kind):
    maps, masks = make_maps(kind)
    asked = {"fpr_limits": (0.05, 1.0), "threshold": float(np.quantile(maps, 0.9) + 0.03 * maps.std())}
    exact, streamed = pixel_metrics(maps, masks, **asked), fill(maps, masks).compute(**asked)
    for name in (*NAMES, "aupro_0.05", "aupro_1", "pixel_f1"):
        # Where many scores are equal, a threshold of the authors falls between scores that share a bin.
        bound = 5e-3 if (kind, name) == ("ties", "aupro_authors") else 1e-4
        assert streamed[name] == pytest.approx(exact[name], abs=bound), name
    assert abs(streamed["pixel_auroc"] - exact["pixel_auroc"]) <= streamed["max_error"] + 1e-12
    assert streamed["pixel_f1_max_threshold"] == pytest.approx(exact["pixel_f1_max_threshold"], rel=1e-2)
    for name in ("num_pixels", "num_anomalous_pixels", "num_regions"):
        assert streamed[name] == exact[name]


def test_exact_while_a_bin_holds_one_score():
    maps, masks = make_maps("far")
    asked = {"threshold": float(maps[0, 3, 4])}
    exact, streamed = pixel_metrics(maps, masks, **asked), fill(maps, masks).compute(**asked)
    assert streamed["max_error"] == 0.0 and streamed["pixel_f1"] == exact["pixel_f1"]
    assert streamed["pixel_auroc"] == pytest.approx(exact["pixel_auroc"], abs=1e-12)
    assert streamed["pixel_f1_max_threshold"] == exact["pixel_f1_max_threshold"]


@pytest.mark.parametrize("kind", ["probability", "signed"])
def test_order_and_processes_do_not_change_a_digit(kind):
    maps, masks = make_maps(kind)
    maps[3] *= 20  # the range grows in the middle
    one = fill(maps, masks, num_bins=4096).compute()
    assert fill(maps[::-1], masks[::-1], num_bins=4096).compute() == one
    parts = [fill(maps[rank::3], masks[rank::3], num_bins=4096) for rank in range(3)]
    sent = [StreamingPixelMetrics.from_state_dict(part.state_dict()) for part in parts]
    assert sent[2].merge(sent[0]).merge(sent[1]).compute() == one
    assert StreamingPixelMetrics(num_bins=4096).merge(parts[0]).compute() == parts[0].compute()
    assert parts[0].merge(StreamingPixelMetrics(num_bins=4096)).num_images == 2


@pytest.mark.parametrize("pixels", [1, 20_000, 10**9])
def test_groups_of_images_do_not_change_a_digit(pixels, monkeypatch):
    maps, masks = make_maps("probability")
    expected = fill(maps, masks, num_bins=4096).compute()
    monkeypatch.setattr("anomalyclip_hf.scoring.histogram._GROUP_PIXELS", pixels)
    streaming = StreamingPixelMetrics(num_bins=4096)
    streaming.update(maps, masks)
    assert streaming.compute() == expected


def test_state_does_not_grow():
    maps, masks = make_maps("probability")
    streaming = StreamingPixelMetrics(num_bins=1024)
    for _ in range(5):
        streaming.update(maps, masks)
    assert sum(table.nbytes for table in streaming._tables.values()) == 3 * 8 * 1024
    assert streaming.num_images == 30
    once = fill(maps, masks, num_bins=1024).compute()
    again = streaming.compute()
    assert all(again[name] == pytest.approx(once[name], abs=1e-12) for name in NAMES)


STREAM = """
import numpy as np
from scipy import ndimage
from anomalyclip_hf.evaluation.streaming import StreamingPixelMetrics

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

rng = np.random.default_rng(0)
scores = ndimage.gaussian_filter(rng.random((518, 518)), 3).astype(np.float32)
mask = np.zeros((518, 518), bool)
mask[100:160, 200:300] = True
streaming, seen = StreamingPixelMetrics(), []
for index in range(1, 401):
    streaming.update([np.roll(scores, 7 * index, axis=1)], [mask])
    if index in (100, 400):
        seen.append(peak())
values = streaming.compute()
print(*seen, peak(), values["num_images"], values["num_regions"])
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux to tell the peak of memory")
def test_memory_does_not_grow_with_the_images():
    """VisA's 2,162 images fit into 2 GB: 400 of 518x518 need what 100 need, and far less (kept, they'd be 0.5 GB)."""
    done = subprocess.run([sys.executable, "-c", STREAM], capture_output=True, text=True, check=True)
    at_100, at_400, at_end, images, regions = map(int, done.stdout.split())  # kB
    assert images == regions == 400
    assert at_400 - at_100 < 8 * 1024  # 300 maps alone would be 320 MB
    assert at_end < 2 * 1024**2


def test_keys_keep_the_order_and_the_value():
    values = np.array([-3e38, -1.0, -1e-45, 0.0, 1e-45, 0.5, 1.0, 3e38], dtype=np.float32)
    keys = to_keys(values)
    assert np.all(np.diff(keys.astype(np.int64)) > 0)
    assert np.array_equal(from_keys(keys), values)
    assert to_keys(np.array([-0.0], np.float32))[0] == to_keys(np.array([0.0], np.float32))[0]


@pytest.mark.filterwarnings("ignore:pixel_auroc, pixel_ap")
def test_undefined_and_bad_input():
    streaming = StreamingPixelMetrics(num_bins=64)
    with pytest.raises(ValueError, match="no image was added"):
        streaming.compute()
    with pytest.raises(ValueError, match=r"maps\[0\] has NaN"):
        streaming.update([[[np.nan, 0.0]]], [[[0, 1]]])
    with pytest.raises(ValueError, match=r"maps\[0\] has infinite"):
        streaming.update(np.array([[[1e300, 0.0]]]), [[[0, 1]]])
    streaming.update([[[0.1, 0.2]]], [[[0, 0]]])
    with pytest.warns(UndefinedMetricWarning, match="no region"):
        result = streaming.compute()
    assert np.isnan(result["aupro"]) and "aupro" in result["reasons"]
    with pytest.raises(ValueError, match="num_bins=64 here but 32 there"):
        streaming.merge(StreamingPixelMetrics(num_bins=32))
    with pytest.raises(ValueError, match="num_bins=1"):
        StreamingPixelMetrics(num_bins=1)
    streaming.reset()
    assert streaming.num_images == 0


def test_too_few_bins_are_reported():
    maps, masks = make_maps("signed")
    with pytest.warns(UserWarning, match="many scores share a bin"):
        assert fill(maps, masks, num_bins=16).compute()["max_error"] > 0.01
