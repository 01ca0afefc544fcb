import os
import threading
import time

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from anomalyclip_hf.training import FeatureCache, TrainingSamples
from anomalyclip_hf.training import features as module


@pytest.fixture
def build(tiny_model, tiny_processor, make_args):
    accelerator = Accelerator(cpu=True)

    def run(dataset, **fields):
        return FeatureCache.build(
            tiny_model, tiny_processor, TrainingSamples(dataset), make_args(**fields), accelerator
        )

    return run


@pytest.fixture
def encoded(tiny_model, monkeypatch):
    """Numbers of images that went through the vision tower, one entry per call."""
    counts = []
    original = tiny_model.encode_images
    monkeypatch.setattr(tiny_model, "encode_images", lambda x: counts.append(len(x)) or original(x))
    return counts


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 1e-3)])
def test_keeps_what_the_model_computes(build, dataset, tiny_model, tiny_processor, dtype, tolerance):
    cache = build(dataset, cache_dtype=dtype, encode_batch_size=10)
    rows = [7, 0, 3]
    samples = [dataset[row] for row in rows]
    inputs = tiny_processor([s["image"] for s in samples], masks=[s["mask"] for s in samples], return_tensors="pt")
    inputs_all = tiny_processor([s["image"] for s in dataset], return_tensors="pt")
    image, patch = tiny_model.encode_images(inputs_all["pixel_values"])
    batch = cache.read(rows)
    assert batch["patch_embeds"].dtype == getattr(torch, dtype)
    torch.testing.assert_close(batch["image_embeds"].float(), image[rows], atol=tolerance, rtol=0)
    torch.testing.assert_close(batch["patch_embeds"].float(), patch[rows], atol=tolerance, rtol=0)
    assert torch.equal(batch["masks"], inputs["masks"])
    assert batch["masks"][1].eq(-1).all() and batch["masks"][0].sum() > 0


def test_is_computed_once(build, dataset, encoded):
    build(dataset, encode_batch_size=4)
    assert encoded == [4, 4, 2]
    build(dataset)
    assert sum(encoded) == 10


def test_other_settings_have_a_cache_of_their_own(build, dataset, tiny_model, encoded):
    first = build(dataset)
    tiny_model.config.dpam_attention = "qq"
    other = build(dataset)
    assert other.path != first.path and sum(encoded) == 20
    with torch.no_grad():
        tiny_model.visual_projection.weight.mul_(1.5)
    assert build(dataset).path not in (first.path, other.path)


def test_a_changed_image_has_features_of_its_own(build, rows, dataset, encoded):
    first = build(dataset).read([0])["patch_embeds"]
    Image.new("RGB", (48, 48), (200, 30, 30)).save(rows[0]["path"])
    changed = build(dataset)
    assert sum(encoded) == 20
    assert not torch.allclose(changed.read([0])["patch_embeds"], first)


def test_data_sets_of_equal_names_have_features_of_their_own(build, dataset, make_rows, to_dataset, encoded):
    first = build(dataset)
    held = first.read([0])["patch_embeds"].clone()
    other = build(to_dataset(make_rows("others/images", seed=5)))
    assert other.path != first.path and sum(encoded) == 20
    assert not torch.allclose(other.read([0])["patch_embeds"], held)
    assert build(dataset).path == first.path and sum(encoded) == 20  # neither was rebuilt
    assert build(to_dataset(make_rows("copies/images"))).path == first.path and sum(encoded) == 20


def test_a_run_waits_for_another_that_makes_the_same_features(build, dataset, encoded, monkeypatch):
    threads, said = [], []
    monkeypatch.setattr(module.logger, "warning", said.append)
    original = module._fill

    def fill(*args):
        if not threads:
            threads.append(threading.Thread(target=lambda: built.append(build(dataset))))
            threads[0].start()
            while not any("waiting for it" in line for line in said):
                time.sleep(0.001)
        original(*args)

    built = []
    monkeypatch.setattr(module, "_fill", fill)
    built.append(build(dataset))
    threads[0].join()
    assert built[0].path == built[1].path and sum(encoded) == 10


def test_features_do_not_depend_on_where_the_work_was_cut_off(build, dataset, encoded, monkeypatch):
    """Batches are cut at the same images, since others give other last bits."""
    original, batches = module._write, []

    def write(path, start, rows):
        if path.name == "states.npy":
            batches.append(list(range(start, start + len(rows))))
            if len(batches) == 1:
                rows[2:] = module.TODO  # what had not reached the disk
            if len(batches) == 2:
                raise KeyboardInterrupt
        original(path, start, rows)

    monkeypatch.setattr(module, "_write", write)
    with pytest.raises(KeyboardInterrupt):
        build(dataset, encode_batch_size=4)
    build(dataset, encode_batch_size=4)
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("name", ["features.npy", "states.npy"])
def test_a_truncated_file_is_noticed_and_rebuilt(build, dataset, encoded, name):
    cache = build(dataset)
    expected = cache.read([2])
    path = cache.path / name
    os.truncate(path, path.stat().st_size - 5)
    with pytest.raises(module.CacheError):
        FeatureCache(cache.path)
    again = build(dataset)
    assert sum(encoded) == 20
    assert torch.equal(again.read([2])["patch_embeds"], expected["patch_embeds"])


def test_building_goes_on_where_it_stopped(build, dataset, encoded, tiny_model, monkeypatch):
    counted = tiny_model.encode_images

    def stop(pixel_values):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        return counted(pixel_values)

    monkeypatch.setattr(tiny_model, "encode_images", stop)
    with pytest.raises(KeyboardInterrupt):
        build(dataset, encode_batch_size=2)
    monkeypatch.setattr(tiny_model, "encode_images", counted)
    encoded.clear()
    cache = build(dataset, encode_batch_size=2)
    assert sum(encoded) == 6
    assert torch.isfinite(cache.read(range(10))["patch_embeds"]).all()
    assert (cache.read(range(10))["patch_embeds"].norm(dim=-1) > 0.99).all()


def test_size_is_announced_and_limited(build, dataset, tmp_path, caplog, monkeypatch):
    with pytest.raises(ValueError, match=r"features would take .* GB but cache_limit_gb=1e-06; raise"):
        build(dataset, cache_limit_gb=1e-6)
    assert not list((tmp_path / "cache").rglob("*.npy"))
    announced = []
    monkeypatch.setattr(module.logger, "warning", announced.append)
    cache = build(dataset)
    on_disk = sum((cache.path / name).stat().st_size for name in os.listdir(cache.path) if name.endswith(".npy"))
    assert announced[0].startswith(f"keeping features of 10 images: {on_disk / 1e9:.2f} GB in")


def test_an_unreadable_image_is_named_and_left_out(build, make_rows, to_dataset, monkeypatch):
    rows = make_rows("bad")
    with open(rows[4]["path"], "wb") as file:
        file.write(b"no picture")
    said = []
    monkeypatch.setattr(module.logger, "warning", said.append)
    cache = build(to_dataset(rows))
    assert np.flatnonzero(~cache.readable).tolist() == [4]
    assert "1 of 10 images could not be read and are left out" in said[-1] and rows[4]["path"] in said[-1]


def test_a_mask_of_another_size_is_left_out_with_the_reason(build, rows, to_dataset, monkeypatch):
    Image.new("L", (20, 30), 255).save(rows[3]["mask"])
    said = []
    monkeypatch.setattr(module.logger, "warning", said.append)
    cache = build(to_dataset(rows))
    assert np.flatnonzero(~cache.readable).tolist() == [3]
    assert any("003.png is 20x30 but its image is 48x48 (width x height)" in text for text in said)


def test_features_that_are_not_finite_are_refused(build, rows, dataset, tiny_model, monkeypatch):
    original = tiny_model.encode_images

    def broken(pixel_values):
        image, patch = original(pixel_values)
        patch[1] = float("nan")
        return image, patch

    monkeypatch.setattr(tiny_model, "encode_images", broken)
    with pytest.raises(ValueError, match=r"001\.png are not finite"):
        build(dataset)


def test_a_model_that_fails_ends_the_work_and_leaves_no_image_out(build, dataset, tiny_model, encoded, monkeypatch):
    counted = tiny_model.encode_images

    def fail(pixel_values):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(tiny_model, "encode_images", fail)
    with pytest.raises(RuntimeError, match=r"000\.png can't be made: RuntimeError: out of memory"):
        build(dataset)
    monkeypatch.setattr(tiny_model, "encode_images", counted)
    assert build(dataset).readable.all() and sum(encoded) == 10
