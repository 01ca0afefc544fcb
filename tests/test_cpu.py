"""Half precision on CPUs that only emulate it."""

import pytest
import torch

from anomalyclip_hf import AnomalyCLIPModel
from anomalyclip_hf.sharing import weights
from anomalyclip_hf.sharing.weights import is_emulated

PIXELS = torch.linspace(-1, 1, 2 * 3 * 42 * 42).view(2, 3, 42, 42).sin()


@pytest.mark.parametrize("accelerator", [False, True])
@pytest.mark.parametrize(("capability", "slow"), [("AVX2", True), ("DEFAULT", True), ("AVX512", False)])
def test_what_is_emulated(monkeypatch, capability, slow, accelerator):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    assert is_emulated(torch.bfloat16) is (slow and not accelerator)
    assert is_emulated(torch.float16) is not accelerator and not is_emulated(torch.float32)


@pytest.mark.parametrize("kind", ["full", "prompts"])
def test_an_emulated_dtype_is_loaded_as_float32_with_one_warning(
    tiny_checkpoint, tiny_model, tmp_path, monkeypatch, kind
):
    folder, told = tiny_checkpoint, []
    if kind == "prompts":
        folder = tmp_path
        tiny_model.save_prompts(folder, card=False)
    monkeypatch.setattr(weights, "is_emulated", lambda dtype: dtype == torch.bfloat16)
    monkeypatch.setattr(weights.logger, "warning", told.append)
    model = AnomalyCLIPModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.dtype == torch.float32 and len(told) == 1 and "torch.bfloat16 is only emulated" in told[0]
    # What the user asks for afterwards is done.
    assert model.to(torch.bfloat16).dtype == torch.bfloat16
    with torch.no_grad():
        assert model(pixel_values=PIXELS).anomaly_maps.dtype == torch.float32


def test_a_native_dtype_is_kept(tiny_checkpoint):
    seen = []
    model = AnomalyCLIPModel.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16)
    model.vision_model.encoder.layers[0].register_forward_hook(lambda _m, _i, out: seen.append(out[0].dtype))
    with torch.no_grad():
        model(pixel_values=PIXELS)
    assert seen == [torch.bfloat16]
