"""What the CPU computes, on a CUDA device: for a machine that has one."""

import copy
import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import pipeline

from anomalyclip_hf import AnomalyCLIPModel, demo_checkpoint
from anomalyclip_hf.cli import main
from anomalyclip_hf.training import PromptTrainingArguments, train_prompts
from anomalyclip_hf.training.history import read_log

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

CLOSE = {"float32": 2e-3, "bfloat16": 5e-2, "float16": 1e-2}  # cuDNN convolves float32 in TF32


@pytest.fixture
def images(make_image):
    return [make_image(240, 200, seed=seed) for seed in range(5)]


@pytest.mark.parametrize("options", [{}, {"resize": "tile", "tile_size": 120}, {"references": True}], ids=str)
@pytest.mark.parametrize("dtype", CLOSE)
def test_the_pipeline(images, make_image, dtype, options):
    options = {**options, "references": [make_image(240, 200, seed=9)]} if "references" in options else options
    found = {}
    for device, precision in (("cpu", "float32"), ("cuda", dtype)):
        detector = pipeline(
            "zero-shot-anomaly-detection", model=demo_checkpoint(), device=device, dtype=precision, **options
        )
        found[device] = detector(images, batch_size=2)
    assert detector.model.device.type == "cuda"
    for one, other in zip(found["cuda"], found["cpu"], strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=CLOSE[dtype])
        np.testing.assert_allclose(one["anomaly_map"], other["anomaly_map"], atol=CLOSE[dtype])


def test_loading_straight_onto_the_device(tiny_checkpoint):
    model = AnomalyCLIPModel.from_pretrained(tiny_checkpoint, device_map="cuda", dtype="bfloat16")
    output = model(pixel_values=torch.randn(2, 3, 42, 42, device="cuda", dtype=torch.bfloat16))
    assert output.anomaly_maps.device.type == "cuda" and output.anomaly_maps.isfinite().all()


@pytest.mark.parametrize("no_cache", [True, False])
def test_training(tiny_model, tiny_processor, make_image, tmp_path, no_cache):
    mask = np.zeros((48, 48), np.uint8)
    mask[10:24, 8:30] = 255
    rows = [{"image": make_image(48, 48, seed=i), "label": i % 2, "mask": mask if i % 2 else None} for i in range(8)]
    losses, prompts = {}, {}
    for cpu in (True, False):
        AcceleratorState._reset_state(reset_partial_state=True)
        model = copy.deepcopy(tiny_model)
        args = PromptTrainingArguments(
            output_dir=str(tmp_path / f"out_{cpu}"),
            cache_dir=str(tmp_path / f"cache_{cpu}"),
            cache_dtype="float32",
            batch_size=4,
            epochs=2,
            no_cache=no_cache,
            cpu=cpu,
        )
        result = train_prompts(model, tiny_processor, rows, args)
        steps = [row for row in read_log(result.output_dir) if row["kind"] == "step"]
        losses[cpu] = [row["global_loss"] + row["local_loss"] for row in steps]
        prompts[cpu] = model.prompt_learner.context.detach().cpu()
    np.testing.assert_allclose(losses[False], losses[True], rtol=5e-3)
    torch.testing.assert_close(prompts[False], prompts[True], rtol=0, atol=1e-2)


@pytest.mark.parametrize("options", [[], ["--mutual"], ["--dtype", "bfloat16"]], ids=str)
def test_the_command(images, tmp_path, options):
    (tmp_path / "images").mkdir()
    for index, image in enumerate(images):
        image.save(tmp_path / "images" / f"{index}.png")
    scores = {}
    for device in ("cpu", "cuda"):
        words = ["predict", str(tmp_path / "images"), "--device", device, "--output-dir", str(tmp_path / device)]
        assert main(words + options) == 0
        lines = (tmp_path / device / "predictions.jsonl").read_text().splitlines()
        scores[device] = {line["path"]: line["score"] for line in map(json.loads, lines)}
    assert len(scores["cpu"]) == 5
    assert scores["cuda"] == pytest.approx(scores["cpu"], abs=CLOSE["bfloat16" if "--dtype" in options else "float32"])
