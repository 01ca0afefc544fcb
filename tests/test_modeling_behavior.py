"""How the model behaves: names, gradients, precision, caches, work left out, compilation, loading."""

import copy
import json
import os
import shutil
from collections import Counter

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModel

from anomalyclip_hf import AnomalyCLIPModel
from anomalyclip_hf.sharing.weights import is_emulated
from tiny_models import make_tiny_clip

LEARNED = {"prompt_learner.context", "prompt_learner.deep_prompts"}
PIXELS = torch.randn(2, 3, 42, 42, generator=torch.Generator().manual_seed(0))


def count_calls(module: torch.nn.Module) -> Counter:
    calls: Counter = Counter()
    module.register_forward_hook(lambda *_: calls.update(["forward"]))
    return calls


def test_parameters_carry_the_names_and_values_of_clip(tiny_clip_dir):
    clip = make_tiny_clip()
    model = AnomalyCLIPModel.from_pretrained(tiny_clip_dir)
    ours = dict(model.named_parameters())
    assert set(ours) == set(dict(clip.named_parameters())) | LEARNED
    for name, parameter in clip.named_parameters():
        assert torch.equal(ours[name], parameter), name


def test_fresh_prompts_follow_the_paper(tiny_clip_dir):
    torch.manual_seed(0)
    learner = AnomalyCLIPModel.from_pretrained(tiny_clip_dir, prompt_length=40, deep_prompt_length=20).prompt_learner
    assert learner.context.shape == (2, 40, 32) and learner.deep_prompts.shape == (2, 20, 32)
    for parameter in (learner.context, learner.deep_prompts):
        assert abs(parameter.mean()) < 0.002 and abs(parameter.std() - 0.02) < 0.002
    assert not torch.equal(learner.context[0], learner.context[1])


def test_same_seed_same_prompts(tiny_clip_dir):
    models = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        models.append(AnomalyCLIPModel.from_pretrained(tiny_clip_dir).prompt_learner.context)
    assert torch.equal(models[0], models[1]) and not torch.equal(models[0], models[2])


@pytest.mark.parametrize("source", ["init", "clip", "full"])
def test_only_prompts_require_gradients(source, tiny_clip_dir, tiny_checkpoint, tiny_model):
    model = {
        "init": lambda: AnomalyCLIPModel(tiny_model.config),
        "clip": lambda: AnomalyCLIPModel.from_pretrained(tiny_clip_dir),
        "full": lambda: AnomalyCLIPModel.from_pretrained(tiny_checkpoint),
    }[source]()
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == LEARNED


def test_a_saved_model_gives_the_same_numbers(tiny_model, tiny_checkpoint):
    loaded = AnomalyCLIPModel.from_pretrained(tiny_checkpoint)
    with torch.no_grad():
        for key, value in tiny_model(pixel_values=PIXELS).items():
            assert_close(loaded(pixel_values=PIXELS)[key], value, rtol=0, atol=2e-6)
        for name, value in tiny_model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name
    assert loaded.config.feature_layers == [2, 4] and loaded.config.image_size == 42


def test_incomplete_and_foreign_checkpoints_are_refused(tiny_clip_dir, tmp_path):
    clip = make_tiny_clip()
    weights = {k: v for k, v in clip.state_dict().items() if "vision_model.encoder.layers.2.mlp" not in k}
    clip.save_pretrained(tmp_path / "part", state_dict=weights)
    with pytest.raises(ValueError, match=r"lacks 4 weights .*vision_model.encoder.layers.2.mlp"):
        AnomalyCLIPModel.from_pretrained(tmp_path / "part")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="model_type='bert', expected 'clip' or 'anomalyclip'"):
        AnomalyCLIPModel.from_pretrained(tmp_path / "bert")


def test_presets_at_loading(tiny_clip_dir):
    released = AnomalyCLIPModel.from_pretrained(tiny_clip_dir, preset="released")
    paper = AnomalyCLIPModel.from_pretrained(tiny_clip_dir, preset="paper")
    assert released.config.feature_layers == [4] and paper.config.feature_layers == [1, 2, 3, 4]
    assert released.config.dpam_layers == 3 and released.config.deep_prompt_depth == 3
    assert released.config.base_model_name_or_path == tiny_clip_dir


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["from_pretrained", "to", "method"])
def test_half_precision_keeps_prompts_and_results_in_float32(tiny_model, tiny_checkpoint, dtype, way):
    with torch.no_grad():
        expected = tiny_model(pixel_values=PIXELS)
    if way == "from_pretrained":
        model = AnomalyCLIPModel.from_pretrained(tiny_checkpoint, dtype=dtype)
    elif way == "to":
        model = copy.deepcopy(tiny_model).to(dtype)
    else:
        model = copy.deepcopy(tiny_model)
        model = model.half() if dtype == torch.float16 else model.bfloat16()
    assert model.dtype == dtype and model.visual_projection.weight.dtype == dtype
    for name in LEARNED:
        assert model.get_parameter(name).dtype == torch.float32
        assert torch.equal(model.get_parameter(name), tiny_model.get_parameter(name)), "prompts were rounded"
    labels, masks = torch.tensor([0, 1]), torch.zeros(2, 42, 42)
    output = model(pixel_values=PIXELS, labels=labels, masks=masks)
    assert {key: value.dtype for key, value in output.items() if value.dtype != torch.float32} == {}
    assert_close(output.anomaly_maps, expected.anomaly_maps, rtol=0, atol=0.15)
    assert_close(output.image_embeds, expected.image_embeds, rtol=0, atol=0.03)
    output.loss.backward()
    assert model.prompt_learner.context.grad.dtype == torch.float32
    assert torch.isfinite(model.prompt_learner.context.grad).all()


def test_a_half_precision_clip_gives_float32_prompts(tmp_path):
    make_tiny_clip().half().save_pretrained(tmp_path)
    model = AnomalyCLIPModel.from_pretrained(tmp_path)
    assert model.prompt_learner.context.dtype == torch.float32
    assert 0.015 < model.prompt_learner.context.std() < 0.025


def test_softmax_is_float32_under_autocast(tiny_model):
    with torch.no_grad():
        expected = tiny_model(pixel_values=PIXELS)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = tiny_model(pixel_values=PIXELS)
    assert output.logits.dtype == output.similarity_maps.dtype == torch.float32
    assert_close(output.similarity_maps.sum(2), torch.ones(2, 2, 42, 42), rtol=0, atol=1e-6)
    assert_close(output.logits, expected.logits, rtol=0, atol=0.5)


def test_the_vision_tower_never_builds_a_graph(tiny_model):
    states = []
    tiny_model.vision_model.encoder.layers[1].register_forward_hook(lambda m, i, o: states.extend([i[0], *o]))
    output = tiny_model(pixel_values=PIXELS.clone().requires_grad_())
    assert states and not any(state is not None and state.requires_grad for state in states)
    assert not output.image_embeds.requires_grad and not output.patch_embeds.requires_grad
    assert output.logits.requires_grad
    output.logits.sum().backward()
    assert {name for name, p in tiny_model.named_parameters() if p.grad is not None} == LEARNED


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_scoring_many_images_runs_the_text_tower_once(tiny_model, guard):
    calls = count_calls(tiny_model.text_model)
    with guard():
        for _ in range(4):
            tiny_model(pixel_values=PIXELS)
    assert calls["forward"] == 1


def test_training_runs_the_text_tower_every_time(tiny_model):
    calls = count_calls(tiny_model.text_model)
    with torch.no_grad():
        tiny_model(pixel_values=PIXELS)
    for _ in range(2):
        tiny_model(pixel_values=PIXELS)
    assert calls["forward"] == 3


def _add_in_place(model):
    with torch.no_grad():
        model.prompt_learner.context.mul_(1.5)


def _write_data(model):
    model.prompt_learner.context.data[1, 0, 0] += 1


def _write_deep_data(model):
    model.prompt_learner.deep_prompts.data.mul_(2)


def _load(model):
    state = {name: value * 1.5 for name, value in model.prompt_learner.state_dict().items()}
    model.prompt_learner.load_state_dict(state)


def _replace_parameter(model):
    model.prompt_learner.context = torch.nn.Parameter(model.prompt_learner.context.detach() * 3)


def _change_ids(model):
    model.config.prompt_token_ids[1][model.config.eos_positions[1]] = 5
    model.config.prompt_token_ids[1][model.config.prompt_length + 2] = 98


def _change_backbone(model):
    with torch.no_grad():
        model.text_projection.weight.mul_(torch.linspace(-1, 1, 16)[:, None])


CHANGES = [_add_in_place, _write_data, _write_deep_data, _load, _replace_parameter, _change_ids, _change_backbone]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_kept_text_embeddings_notice_every_change(tiny_model, change):
    with torch.no_grad():
        before = tiny_model.get_prompt_embeds().clone()
        change(tiny_model)
        after = tiny_model.get_prompt_embeds()
    assert (after - before).abs().max() > 1e-4
    assert_close(after, tiny_model.get_prompt_embeds().detach(), rtol=0, atol=1e-6)  # with gradients: not kept


def test_kept_text_embeddings_do_not_leak_into_training(tiny_model):
    with torch.inference_mode():
        tiny_model(pixel_values=PIXELS)
    tiny_model(pixel_values=PIXELS, labels=torch.tensor([0, 1])).loss.backward()
    assert tiny_model.prompt_learner.context.grad.abs().max() > 0


def output_rows(module: torch.nn.Module, first=lambda output: output) -> list[int]:
    rows: list[int] = []
    module.register_forward_hook(lambda m, i, o: rows.append(first(o).shape[1]))
    return rows


def test_the_last_layer_does_no_work_that_nothing_uses(tiny_model):
    """Original path of the last layer: class token alone; one q/k/v projection for both paths in every layer."""
    layers = tiny_model.vision_model.encoder.layers
    last, before = layers[-1], layers[-2]
    rows = {
        "last_mlp": output_rows(last.mlp),
        "last_q": output_rows(last.self_attn.q_proj),
        "last_v": output_rows(last.self_attn.v_proj),
        "last_out": output_rows(last.self_attn.out_proj),
        "mlp": output_rows(before.mlp),
        "q": output_rows(before.self_attn.q_proj),
        "out": output_rows(before.self_attn.out_proj),
    }
    with torch.no_grad():
        tiny_model(pixel_values=PIXELS)
    # 36 patches and the class token; out_proj first for the original path, then for the refined patches.
    assert rows == {
        "last_mlp": [1], "last_q": [1], "last_v": [37], "last_out": [1, 36], "mlp": [37], "q": [37], "out": [37, 36],
    }  # fmt: skip


def test_no_refined_path_past_the_last_feature_layer(tiny_model):
    tiny_model.config.feature_layers = [2]
    rows = output_rows(tiny_model.vision_model.encoder.layers[2].self_attn.out_proj)
    with torch.no_grad():
        tiny_model(pixel_values=PIXELS)
    assert rows == [37]


def test_kept_features_give_the_same_result(tiny_model):
    labels, masks = torch.tensor([0, 1]), (torch.rand(2, 42, 42) > 0.5).float()
    full = tiny_model(pixel_values=PIXELS, labels=labels, masks=masks)
    image_embeds, patch_embeds = tiny_model.encode_images(PIXELS)
    calls = count_calls(tiny_model.vision_model)
    kept = tiny_model(image_embeds=image_embeds, patch_embeds=patch_embeds, labels=labels, masks=masks)
    assert calls["forward"] == 0
    for key in full:
        assert_close(kept[key], full[key], rtol=0, atol=0)


def test_given_text_embeddings_are_used(tiny_model):
    text = torch.nn.functional.normalize(torch.randn(2, 16), dim=-1)
    calls = count_calls(tiny_model.text_model)
    output = tiny_model(pixel_values=PIXELS, text_embeds=text)
    assert calls["forward"] == 0
    assert_close(output.logits, output.image_embeds @ text.T / 0.07)


def test_images_without_masks_take_no_part_in_the_local_loss(tiny_model):
    masks = torch.zeros(2, 42, 42)
    masks[0, :20] = 1
    masks[1] = -1
    alone = tiny_model(pixel_values=PIXELS[:1], masks=masks[:1])
    unknown = tiny_model(pixel_values=PIXELS, masks=masks, labels=torch.tensor([1, 1]))
    assert_close(unknown.local_loss, alone.local_loss)
    # A normal image without a mask has an empty one.
    empty = torch.cat([masks[:1], torch.zeros(1, 42, 42)])
    normal = tiny_model(pixel_values=PIXELS, masks=masks, labels=torch.tensor([1, 0]))
    assert_close(normal.local_loss, tiny_model(pixel_values=PIXELS, masks=empty).local_loss)
    assert tiny_model(pixel_values=PIXELS, masks=torch.full_like(masks, -1)).local_loss == 0


def test_tuple_output(tiny_model):
    with torch.no_grad():
        output, values = tiny_model(pixel_values=PIXELS), tiny_model(pixel_values=PIXELS, return_dict=False)
    assert isinstance(values, tuple) and torch.equal(values[0], output.logits) and len(values) == 6


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "give pixel_values, or both"),
        ({"pixel_values": torch.zeros(1, 3, 42, 40)}, "42x40 pixels but patch_size=7"),
        ({"pixel_values": torch.zeros(1, 1, 42, 42)}, r"\(1, 1, 42, 42\), expected \(B, 3, H, W\)"),
        ({"pixel_values": torch.zeros(3, 42, 42)}, r"\(3, 42, 42\), expected \(B, 3, H, W\)"),
        ({"pixel_values": PIXELS, "labels": torch.zeros(3)}, r"labels has shape \(3,\), expected \(2,\)"),
        ({"pixel_values": PIXELS, "masks": torch.zeros(2, 6, 6)}, r"masks has shape .*expected \(2, 42, 42\)"),
        (
            {"pixel_values": PIXELS, "labels": torch.tensor([0, 2])},
            r"labels holds \[0, 2\], expected 0",
        ),
        ({"pixel_values": PIXELS, "masks": torch.full((2, 42, 42), 255.0)}, "masks reaches 255, expected 0 .* to 1"),
        ({"pixel_values": PIXELS, "masks": torch.full((2, 42, 42), torch.nan)}, "masks reaches nan"),
    ],
)
def test_wrong_inputs_are_named(tiny_model, inputs, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**inputs)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "layers"), [("aot_eager", 3), ("inductor", 1)])
def test_compiles_without_graph_breaks(backend, layers, tmp_path, monkeypatch):
    # Inductor keeps code by its graph alone and takes it up under another ATEN_CPU_CAPABILITY: NaN, or a crash.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    if backend == "inductor" and os.environ.get("ATEN_CPU_CAPABILITY") == "default":
        # Its C++ names at::vec, which it declares for vector instructions alone; with others than ATen's it crashes.
        pytest.skip("inductor writes C++ that is no C++ where vector instructions are forbidden")
    depth = {"num_hidden_layers": layers}
    make_tiny_clip(text=depth, vision=depth).save_pretrained(tmp_path)
    model = AnomalyCLIPModel.from_pretrained(tmp_path, image_size=42, preset="paper").eval()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        expected, output = model(pixel_values=PIXELS), compiled(pixel_values=PIXELS)
    for key in expected:
        assert_close(output[key], expected[key], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_training_compiles_without_graph_breaks(tiny_model):
    inputs = {"pixel_values": PIXELS, "labels": torch.tensor([0, 1]), "masks": torch.zeros(2, 42, 42)}
    tiny_model(**inputs).loss.backward()
    expected = tiny_model.prompt_learner.context.grad.clone()
    tiny_model.zero_grad()
    torch.compile(tiny_model, fullgraph=True, backend="aot_eager")(**inputs).loss.backward()
    assert_close(tiny_model.prompt_learner.context.grad, expected, rtol=1e-4, atol=1e-6)


def test_presets_through_auto_classes_and_beside_a_config(tiny_checkpoint):
    from transformers import AutoModel

    config = AnomalyCLIPModel.from_pretrained(tiny_checkpoint).config
    for model in (
        AutoModel.from_pretrained(tiny_checkpoint, preset="released"),
        AnomalyCLIPModel.from_pretrained(tiny_checkpoint, config=config, preset="released"),
    ):
        assert type(model) is AnomalyCLIPModel and model.config.feature_layers == [4]
    assert config.feature_layers == [2, 4]  # the user's own stays as it was


def _offload(model, way, folder):
    from accelerate import cpu_offload, disk_offload

    if way == "disk":
        return disk_offload(model, folder, execution_device="cpu")
    return cpu_offload(model, execution_device="cpu", offload_buffers=True)


@pytest.mark.parametrize("way", ["cpu", "disk"])
@pytest.mark.parametrize("folded", [False, True])
def test_offloaded_weights_give_the_same_results(tiny_model, tmp_path, way, folded):
    model = tiny_model.to_vision_only() if folded else tiny_model
    pixels = torch.rand(2, 3, 42, 42)
    with torch.no_grad():
        expected = model(pixels)
        found = _offload(model, way, tmp_path)(pixels)
    assert model.vision_model.embeddings.class_embedding.is_meta
    assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
    assert_close(found.anomaly_maps, expected.anomaly_maps, atol=1e-4, rtol=1e-4)


def test_prompts_of_an_offloaded_model_can_be_taken_out_and_put_on(tiny_model, tmp_path):
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        other.prompt_learner.context.mul_(2)
    other.save_prompts(tmp_path / "other", base_model_name_or_path="a/b", card=False)
    expected = tiny_model.prompt_learner.context.detach().clone()
    pixels = torch.rand(1, 3, 42, 42)
    with torch.no_grad():
        wanted = other(pixels).logits
    _offload(tiny_model, "cpu", tmp_path)
    assert torch.equal(tiny_model.get_prompts().context, expected)
    tiny_model.load_prompts(tmp_path / "other")
    with torch.no_grad():
        assert_close(tiny_model(pixels).logits, wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_changing_what_is_returned_changes_no_later_call(tiny_model):
    expected = tiny_model.get_prompt_embeds().clone()
    for _ in range(2):
        tiny_model.get_prompt_embeds().zero_()
    assert torch.equal(tiny_model.get_prompt_embeds(), expected)
    folded = tiny_model.to_vision_only()
    folded.get_prompt_embeds().zero_()
    assert torch.equal(folded.get_prompt_embeds(), expected)


@torch.no_grad()
def test_the_configuration_says_whether_a_tuple_is_returned(tiny_model):
    pixels = torch.rand(1, 3, 42, 42)
    tiny_model.config.return_dict = False
    assert isinstance(tiny_model(pixels), tuple)
    assert torch.equal(tiny_model(pixels, return_dict=True).logits, tiny_model(pixels)[0])


@pytest.mark.parametrize("dpam_layers", [0, 2])
def test_hidden_states_are_those_of_clip(tiny_model, dpam_layers):
    """Of the original path: what enters the first layer and what leaves each, whole also where a score needs less."""
    from transformers import CLIPVisionModel

    clip = CLIPVisionModel._from_config(tiny_model.config.vision_config).eval()
    own = {key.removeprefix("vision_model."): value for key, value in tiny_model.state_dict().items()}
    clip.load_state_dict(own, strict=False)
    tiny_model.config.dpam_layers = dpam_layers
    with torch.no_grad():
        expected = clip(PIXELS, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states
        plain = tiny_model(pixel_values=PIXELS)
        output = tiny_model(pixel_values=PIXELS, output_hidden_states=True)
    assert plain.hidden_states is None and len(output.hidden_states) == len(expected) == 5
    assert output.hidden_states[0].shape == (2, 37, 32)
    for name in ("logits", "anomaly_maps", "image_embeds"):
        assert_close(output[name], plain[name], rtol=0, atol=1e-5)
    # CLIP resizes positions bicubically: compared is what the layers do with the same start.
    with torch.no_grad():
        states = output.hidden_states[0]
        for layer, one in zip(clip.encoder.layers, output.hidden_states[1:], strict=True):
            states = layer(states, None)
            assert_close(one, states, rtol=0, atol=1e-5)
    native = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = tiny_model(pixel_values=native, output_hidden_states=True, return_dict=False)[-1]
        for one, other in zip(ours, clip(native, output_hidden_states=True).hidden_states, strict=True):
            assert_close(one, other, rtol=0, atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient(tiny_model):
    targets = {"labels": torch.tensor([0, 1]), "masks": torch.zeros(2, 42, 42)}
    gradients = []
    for wanted in (False, True):
        if wanted:
            tiny_model.activation_checkpointing_enable()
        tiny_model.train().zero_grad()
        tiny_model(pixel_values=PIXELS, **targets).loss.backward()
        gradients.append(tiny_model.prompt_learner.context.grad.clone())
    assert tiny_model.supports_gradient_checkpointing
    assert_close(*gradients, rtol=0, atol=1e-6)


def test_old_names_of_the_encoders(tiny_model):
    with torch.no_grad():
        with pytest.warns(FutureWarning, match="get_prompt_embeds"):
            assert torch.equal(tiny_model.get_text_features(), tiny_model.get_prompt_embeds())
        with pytest.warns(FutureWarning, match="encode_images"):
            assert torch.equal(tiny_model.get_image_features(PIXELS)[0], tiny_model.encode_images(PIXELS)[0])


@pytest.mark.slow
def test_transformers_trainer_trains_and_predicts(tiny_model, tmp_path):
    from transformers import Trainer, TrainingArguments

    generator = torch.Generator().manual_seed(0)
    rows = [
        {
            "pixel_values": torch.randn(3, 42, 42, generator=generator),
            "labels": torch.tensor(index % 2),
            "masks": torch.full((42, 42), float(index % 2)),
        }
        for index in range(6)
    ]
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = Trainer(model=tiny_model, args=arguments, train_dataset=rows)
    trainer.train()
    changed = {name for name, value in tiny_model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == LEARNED
    with torch.no_grad():
        inputs = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        expected = tiny_model.eval()(**inputs)
    # The loss that is logged is a mean over the batch, whatever is accumulated.
    assert trainer.state.log_history[0]["loss"] < 2 * expected.loss.item()
    found = trainer.predict(rows)
    assert_close(torch.from_numpy(found.predictions), expected.logits, rtol=0, atol=1e-5)
    assert found.label_ids.tolist() == [0, 1] * 3
    loaded = AnomalyCLIPModel.from_pretrained(tmp_path / "checkpoint-3")
    assert torch.equal(loaded.prompt_learner.context, tiny_model.prompt_learner.context)


def test_quantised_weights(tiny_model, tiny_checkpoint, tmp_path):
    """By torchao, which computes on CPUs too: scores stay close, prompts stay float32 and can be trained and saved."""
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    settings = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    model = AnomalyCLIPModel.from_pretrained(tiny_checkpoint, quantization_config=settings)
    assert type(model.vision_model.encoder.layers[0].mlp.fc1.weight) is not torch.nn.Parameter
    output = model(pixel_values=PIXELS, labels=torch.tensor([0, 1]))
    with torch.no_grad():
        assert_close(output.anomaly_maps, tiny_model(pixel_values=PIXELS).anomaly_maps, rtol=0, atol=0.1)
    output.loss.backward()
    assert model.prompt_learner.context.dtype == torch.float32 and model.prompt_learner.context.grad.any()
    with pytest.raises(ValueError, match=r"torchao can't be read again.*logit_scale"):
        model.save_pretrained(tmp_path / "full")
    model.save_prompts(tmp_path, card=False)
    assert torch.equal(
        AnomalyCLIPModel.from_pretrained(tmp_path).prompt_learner.context, tiny_model.prompt_learner.context
    )


def test_return_dict_as_an_argument_of_loading(tiny_model, tiny_checkpoint, tmp_path):
    tiny_model.save_prompts(tmp_path, base_model_name_or_path=tiny_checkpoint)
    for name in (tiny_checkpoint, str(tmp_path)):
        for loader in (AnomalyCLIPModel, AutoModel):
            model = loader.from_pretrained(name, return_dict=False, output_hidden_states=True)
            output = model(PIXELS)
            assert isinstance(output, tuple) and isinstance(output[-1], tuple)
            assert model(PIXELS, return_dict=True).hidden_states is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_towers_stored_with_a_dtype_of_their_own_follow_the_one_asked_for(tiny_checkpoint, tmp_path, dtype):
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    stored = json.loads((tmp_path / "model" / "config.json").read_text())
    for tower in ("text_config", "vision_config"):
        stored[tower]["dtype"] = "float32"
    (tmp_path / "model" / "config.json").write_text(json.dumps(stored))
    model = AnomalyCLIPModel.from_pretrained(tmp_path / "model", dtype=dtype)
    if not is_emulated(dtype):
        found = {p.dtype for name, p in model.named_parameters() if not name.startswith("prompt_learner.")}
        assert found == {dtype}
    assert torch.isfinite(model(PIXELS).logits).all()


@pytest.mark.parametrize("layers", [[2, 4], [1, 3]])
def test_a_part_of_the_outputs_is_what_all_hold(tiny_model, layers):
    tiny_model.config.feature_layers = layers
    rows = [output_rows(layer.self_attn.out_proj) for layer in tiny_model.vision_model.encoder.layers]
    with torch.no_grad():
        full = tiny_model(pixel_values=PIXELS)
        [one.clear() for one in rows]
        score = tiny_model(pixel_values=PIXELS, outputs="score")
        assert rows == [[37], [37], [37], [1]]  # no refined path
        [one.clear() for one in rows]
        maps = tiny_model(pixel_values=PIXELS, outputs="maps")
        assert len(rows[3]) == (2 if layers[-1] == 4 else 0)  # nothing past the last feature layer
    assert list(score) == ["logits", "image_embeds", "text_embeds"]
    assert list(maps) == ["similarity_maps", "anomaly_maps", "text_embeds", "patch_embeds"]
    for part in (score, maps):
        for key in part:
            assert_close(part[key], full[key], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="outputs='label', expected one of all, score, maps"):
        tiny_model(pixel_values=PIXELS, outputs="label")
    with pytest.raises(ValueError, match="outputs='score' with labels, which need score and maps"):
        tiny_model(pixel_values=PIXELS, outputs="score", labels=torch.tensor([0, 1]))
