"""Arithmetic on CPUs: emulated half precision, and the fast ways of scoring."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from anomalyclip_hf import cpu_anomalyclip
from anomalyclip_hf.cpu_anomalyclip import CPULinear, attend_in_blocks, is_emulated, run_widened, split_on_cpu, widen
from anomalyclip_hf.evaluation.baselines import MethodScorer

PIXELS = torch.linspace(-1, 1, 2 * 3 * 42 * 42).view(2, 3, 42, 42).sin()


@pytest.fixture
def emulated(monkeypatch):
    monkeypatch.setattr(cpu_anomalyclip, "_has_slow_bfloat16", lambda: True)


@pytest.fixture
def native(monkeypatch):
    monkeypatch.setattr(cpu_anomalyclip, "_has_slow_bfloat16", lambda: False)


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


@pytest.fixture
def capable(monkeypatch):
    """A CPU that takes every fast way."""
    monkeypatch.setattr(cpu_anomalyclip, "_is_amd_with_avx512", lambda: True)
    monkeypatch.setattr(cpu_anomalyclip, "_products_without_amx", lambda: True)
    monkeypatch.setattr(cpu_anomalyclip, "_has_slow_bfloat16", lambda: False)


@pytest.mark.parametrize(
    ("capabilities", "blocks", "onednn"),
    [
        ({"avx512_f": True, "avx512_bf16": True, "amx_bf16": False, "cpu_name": "AMD EPYC"}, True, True),
        ({"avx512_f": True, "avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel(R) Xeon(R)"}, False, False),
        ({"avx512_f": False, "cpu_name": "AMD EPYC"}, False, False),
        ({}, False, False),
    ],
)
def test_which_cpu_takes_which_way(monkeypatch, capabilities, blocks, onednn):
    monkeypatch.setattr(cpu_anomalyclip, "_capabilities", lambda: capabilities)
    assert cpu_anomalyclip._products_without_amx() is blocks
    assert cpu_anomalyclip._is_amd_with_avx512() is onednn


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_attention_in_blocks_is_attention(monkeypatch, rows):
    torch.manual_seed(0)
    queries, keys, values = torch.randn(3, 2, 4, 10, 8).unbind()
    monkeypatch.setattr(cpu_anomalyclip, "BLOCK_ENTRIES", rows * 2 * 4 * 10)
    expected = nn.functional.scaled_dot_product_attention(queries[:, :, 1:], keys, values, scale=0.3)
    answered = attend_in_blocks(queries[:, :, 1:], keys, values, 0.3)
    assert_close(answered, expected.transpose(1, 2), rtol=0, atol=1e-6)


def test_attention_in_blocks_rounds_little_where_keys_share_much():
    """Keys with a large common part, whose logits bfloat16 rounds by more than it rounds the answer."""
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(1, 2, 50, 16).bfloat16() for _ in range(3))
    keys = (keys + 30).bfloat16()
    exact = nn.functional.scaled_dot_product_attention(*(x.double() for x in (queries, keys, values)), scale=0.25)
    answered = attend_in_blocks(queries, keys, values, 0.25)
    assert answered.dtype == torch.bfloat16
    assert (answered.transpose(1, 2).double() - exact).abs().max() < 0.015
    plain = ((queries @ keys.mT) * 0.25).softmax(-1) @ values
    assert (plain.double() - exact).abs().max() > 0.03


def test_linear_by_onednn_is_linear_and_for_scoring_alone(capable, monkeypatch):
    torch.manual_seed(0)
    layer, states, calls = CPULinear(24, 40), torch.randn(2, 100, 24), []
    convolve = nn.functional.conv2d
    monkeypatch.setattr(nn.functional, "conv2d", lambda *args: calls.append(1) or convolve(*args))
    expected = nn.functional.linear(states, layer.weight, layer.bias)
    with torch.no_grad():
        assert_close(layer(states), expected, rtol=0, atol=1e-5)
        assert len(calls) == 1
        layer(states[:, :5])  # a few rows
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(states).dtype == torch.bfloat16
        assert torch.equal(torch.compile(layer, backend="eager", fullgraph=True)(states), expected)
    assert torch.equal(layer(states), expected) and layer(states).requires_grad
    assert len(calls) == 1


def test_split_on_cpu_bounds_groups(monkeypatch):
    tokens = torch.arange(5.0).view(5, 1, 1).expand(5, 10, 8)
    monkeypatch.setattr(cpu_anomalyclip, "GROUP_BYTES", 4 * 10 * 32 * 2)
    with torch.no_grad():
        assert [len(group) for group in split_on_cpu(tokens, 32)] == [2, 2, 1]
        assert [len(group) for group in split_on_cpu(tokens, 3200)] == [1] * 5
        assert torch.equal(torch.cat(split_on_cpu(tokens, 32)), tokens)
    assert len(split_on_cpu(tokens, 32)) == 1  # gradients are wanted


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_fast_ways_change_no_result(tiny_model, capable, monkeypatch, dtype, tolerance):
    model = copy.deepcopy(tiny_model).to(dtype)
    expected = copy.deepcopy(model).float()
    monkeypatch.setattr(cpu_anomalyclip, "FEW_ROWS", 1)
    monkeypatch.setattr(cpu_anomalyclip, "GROUP_BYTES", 1)
    ways = []
    monkeypatch.setattr(
        "anomalyclip_hf.modeling_anomalyclip.attend_in_blocks",
        lambda *args: ways.append("blocks") or attend_in_blocks(*args),
    )
    convolve = nn.functional.conv2d
    monkeypatch.setattr(nn.functional, "conv2d", lambda *args: ways.append("onednn") or convolve(*args))
    with torch.no_grad():
        answered = model(pixel_values=PIXELS)
        taken = set(ways)
        monkeypatch.undo()
        theirs = expected(pixel_values=PIXELS)
    assert taken == ({"onednn"} if dtype == torch.float32 else {"blocks", "onednn"})  # patches are a convolution
    for name in ("anomaly_maps", "image_embeds", "patch_embeds"):
        assert_close(answered[name], theirs[name], rtol=0, atol=tolerance)
