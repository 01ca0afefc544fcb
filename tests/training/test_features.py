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
    monkeypatch.setattr(module.logger, "warning", lambda text, **_: said.append(text))
    original = module._make

    def fill(*args):
        if not threads:
            threads.append(threading.Thread(target=lambda: built.append(build(dataset))))
            threads[0].start()
            while not any("waiting for it" in line for line in said):
                time.sleep(0.001)
        original(*args)

    built = []
    monkeypatch.setattr(module, "_make", fill)
    built.append(build(dataset))
    threads[0].join()
    assert built[0].path == built[1].path and sum(encoded) == 10


def test_a_truncated_file_is_noticed_and_rebuilt(build, dataset, encoded):
    cache = build(dataset)
    expected = cache.read([2])
    os.truncate(cache.path, cache.path.stat().st_size - 5)
    with pytest.raises(module.CacheError):
        FeatureCache(cache.path)
    again = build(dataset)
    assert sum(encoded) == 20
    assert torch.equal(again.read([2])["patch_embeds"], expected["patch_embeds"])


def test_what_was_cut_off_is_not_taken_for_whole(build, dataset, encoded, tiny_model, tmp_path, monkeypatch):
    counted = tiny_model.encode_images

    def stop(pixel_values):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        return counted(pixel_values)

    monkeypatch.setattr(tiny_model, "encode_images", stop)
    with pytest.raises(KeyboardInterrupt):
        build(dataset, encode_batch_size=2)
    assert not list((tmp_path / "cache").glob("*.npy")) and not list((tmp_path / "cache").glob("*.unfinished"))
    monkeypatch.setattr(tiny_model, "encode_images", counted)
    encoded.clear()
    cache = build(dataset, encode_batch_size=2)
    assert sum(encoded) == 10
    assert (cache.read(range(10))["patch_embeds"].norm(dim=-1) > 0.99).all()


def test_size_is_announced_and_limited(build, dataset, tmp_path, caplog, monkeypatch):
    with pytest.raises(ValueError, match=r"features would take .* GB but cache_limit_gb=1e-06; raise"):
        build(dataset, cache_limit_gb=1e-6)
    assert not list((tmp_path / "cache").glob("*.npy"))
    announced = []
    monkeypatch.setattr(module.logger, "warning", announced.append)
    cache = build(dataset)
    assert announced[0].startswith(f"keeping features of 10 images: {cache.path.stat().st_size / 1e9:.2f} GB in")


def test_an_unreadable_image_is_named_and_left_out(build, make_rows, to_dataset, monkeypatch):
    rows = make_rows("bad")
    with open(rows[4]["path"], "wb") as file:
        file.write(b"no picture")
    said = []
    monkeypatch.setattr(module.logger, "warning", lambda text, **_: said.append(text))
    cache = build(to_dataset(rows))
    assert np.flatnonzero(~cache.readable).tolist() == [4]
    assert "1 of 10 images could not be read and are left out" in said[-1] and rows[4]["path"] in said[-1]


def test_a_mask_of_another_size_is_left_out_with_the_reason(build, rows, to_dataset, monkeypatch):
    Image.new("L", (20, 30), 255).save(rows[3]["mask"])
    said = []
    monkeypatch.setattr(module.logger, "warning", lambda text, **_: said.append(text))
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
