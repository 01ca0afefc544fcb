"""Half-precision weights on CPUs without half-precision arithmetic."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from anomalyclip_hf import precision_anomalyclip
from anomalyclip_hf.evaluation.baselines import MethodScorer
from anomalyclip_hf.precision_anomalyclip import is_emulated, run_widened, widen

PIXELS = torch.linspace(-1, 1, 2 * 3 * 42 * 42).view(2, 3, 42, 42).sin()


@pytest.fixture
def emulated(monkeypatch):
    monkeypatch.setattr(precision_anomalyclip, "_has_slow_bfloat16", lambda: True)


@pytest.fixture
def native(monkeypatch):
    monkeypatch.setattr(precision_anomalyclip, "_has_slow_bfloat16", lambda: False)


def test_what_is_emulated(monkeypatch):
    half, meta = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.bfloat16, device="meta")
    for capability, slow in (("AVX2", True), ("DEFAULT", True), ("AVX512", False), ("SVE256", False)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=capability: name)
        assert is_emulated(half) is slow and not is_emulated(half.float()) and not is_emulated(meta)
        assert is_emulated(half.half())


def test_widened_call_computes_in_float32_and_leaves_the_weights(emulated):
    layer = nn.Linear(8, 4).bfloat16()
    states = torch.randn(3, 8)
    result = run_widened(layer, states)
    assert torch.equal(result, nn.functional.linear(states, layer.weight.float(), layer.bias.float()))
    assert layer.weight.dtype == torch.bfloat16 and widen(layer.weight).dtype == torch.float32


def test_native_call_is_a_plain_one(native):
    layer = nn.Linear(8, 4).bfloat16()
    states = torch.randn(3, 8).bfloat16()
    assert torch.equal(run_widened(layer, states), layer(states)) and widen(states) is states


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_emulated_model_equals_float32_on_its_own_weights(tiny_model, emulated, dtype):
    half = copy.deepcopy(tiny_model).to(dtype)
    expected = copy.deepcopy(half).float()
    with torch.no_grad():
        ours, theirs = half(pixel_values=PIXELS), expected(pixel_values=PIXELS)
    for name in ("logits", "anomaly_maps", "text_embeds", "image_embeds", "patch_embeds"):
        assert_close(ours[name], theirs[name], rtol=0, atol=1e-6)
    gradients = []
    for model in (half, expected):
        model(pixel_values=PIXELS, labels=torch.tensor([0, 1]), masks=torch.zeros(2, 42, 42)).loss.backward()
        gradients.append(model.prompt_learner.context.grad)
    assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_native_bfloat16_stays_in_bfloat16(tiny_model, native):
    half, seen = copy.deepcopy(tiny_model).bfloat16(), []
    half.vision_model.encoder.layers[0].register_forward_hook(lambda _m, _i, out: seen.append(out[0].dtype))
    with torch.no_grad():
        half(pixel_values=PIXELS)
    assert seen == [torch.bfloat16]


def test_emulated_model_compiles_whole_and_serves_baselines(tiny_model, emulated):
    half = copy.deepcopy(tiny_model).bfloat16()
    with torch.no_grad():
        expected = half(pixel_values=PIXELS).anomaly_maps
        compiled = torch.compile(half, fullgraph=True, backend="eager")
        assert_close(compiled(pixel_values=PIXELS).anomaly_maps, expected, rtol=0, atol=1e-5)
        scorer = MethodScorer(half, ("anomalyclip", "deep_prompts=off"))
        assert_close(scorer.score(PIXELS)["anomalyclip"]["anomaly_maps"], expected, rtol=0, atol=1e-6)
