"""Batches: order, workers and streams."""

from pathlib import Path

import pytest
from picture_trees import write_tree

from anomalyclip_hf.data import load_anomaly_dataset, make_loader


@pytest.fixture
def folder(tmp_path):
    images = {f"good/{n}.png": n for n in range(1, 6)} | {f"bad/{n}.png": n for n in range(6, 11)}
    write_tree(tmp_path / "set", images)
    return tmp_path / "set"


def stems(rows):
    return [Path(row["path"]).stem for row in rows if row["image"].size == (16, 12)]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_keep_the_order(folder, num_workers, streaming):
    dataset = load_anomaly_dataset(folder, streaming=streaming)
    batches = list(make_loader(dataset, stems, 4, num_workers, prefetch_factor=2))
    assert batches == [["6", "7", "8", "9"], ["10", "1", "2", "3"], ["4", "5"]]


def test_a_sampler_decides_the_order(folder):
    assert next(iter(make_loader(load_anomaly_dataset(folder), stems, 2, sampler=[9, 0]))) == ["5", "6"]
