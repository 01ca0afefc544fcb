"""Batches: order, unknown masks, workers and speed."""

from pathlib import Path

import pytest
import torch
from picture_trees import write_picture, write_tree
from PIL import Image

from anomalyclip_hf.data import load_anomaly_dataset, make_loader
from anomalyclip_hf.data.images import ImageReadError
from anomalyclip_hf.image_processing_anomalyclip import AnomalyCLIPProcessor

PROCESSOR = AnomalyCLIPProcessor(size={"height": 28, "width": 28})


@pytest.fixture
def dataset(tmp_path):
    images = {f"good/{n}.png": n for n in range(1, 6)} | {f"bad/{n}.png": n for n in range(6, 11)}
    write_tree(tmp_path / "set", images, {f"masks/{n}.png": n for n in range(6, 10)})
    return load_anomaly_dataset(tmp_path / "set")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_keep_the_order(dataset, num_workers):
    batches = list(make_loader(dataset, PROCESSOR, 4, num_workers))
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 2]
    assert [Path(path).stem for batch in batches for path in batch["path"]] == ["6", "7", "8", "9", "10", *"12345"]
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == [1] * 5 + [0] * 5
    pixels = torch.cat([batch["pixel_values"] for batch in batches])
    expected = PROCESSOR([row["image"] for row in dataset], return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, expected)
    assert batches[0]["original_sizes"] == [(12, 16)] * 4


def test_masks_of_normal_images_are_known_and_empty(dataset):
    (batch,) = make_loader(dataset, PROCESSOR, 10)
    assert batch["has_mask"].tolist() == [True] * 4 + [False] + [True] * 5
    assert batch["masks"][5:].abs().max() == 0
    assert (batch["masks"][4] == -1).all()  # the processor's word for "unknown"


def test_streams_keep_the_order_too(dataset, tmp_path):
    stream = load_anomaly_dataset(tmp_path / "set", streaming=True)
    for num_workers in (0, 3):
        labels = [batch["labels"].tolist() for batch in make_loader(stream, PROCESSOR, 4, num_workers)]
        assert labels == [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0]]


def test_unlabeled_images(tmp_path):
    write_picture(tmp_path / "1.png", 1)
    (batch,) = make_loader(load_anomaly_dataset(tmp_path), PROCESSOR, 2)
    assert batch["labels"].tolist() == [-1] and batch["has_mask"].tolist() == [False]


def test_masks_of_another_scale_are_fitted_of_another_shape_refused(tmp_path):
    write_tree(tmp_path, {"good/1.png": 1, "bad/2.png": 2})
    (tmp_path / "masks").mkdir()
    Image.new("L", (8, 6), 255).save(tmp_path / "masks" / "2.png")
    batch = next(iter(make_loader(load_anomaly_dataset(tmp_path), PROCESSOR, 1)))
    assert batch["masks"].min() == 1
    Image.new("L", (6, 8), 255).save(tmp_path / "masks" / "2.png")
    with pytest.raises(ImageReadError, match=r"bad/2\.png is 6x8 but its image is 16x12"):
        next(iter(make_loader(load_anomaly_dataset(tmp_path), PROCESSOR, 1)))


def test_a_sampler_decides_the_order(dataset):
    batches = make_loader(dataset, PROCESSOR, 2, sampler=[9, 0])
    assert [Path(path).stem for path in next(iter(batches))["path"]] == ["5", "6"]
    with pytest.raises(ValueError, match="batch_size=0 must be 1 or more"):
        make_loader(dataset, PROCESSOR, 0)
