"""Saving, loading, swapping and sharing: prompts alone, everything, vision-only; damage, attacks, a Hub's errors."""

import importlib
import json
import os
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file

from anomalyclip_hf import AnomalyCLIPConfig, AnomalyCLIPModel, AnomalyCLIPProcessor
from anomalyclip_hf import prompts_anomalyclip as prompts_module
from anomalyclip_hf.scoring.profiles import Profile
from anomalyclip_hf.sharing.writing import write_prompts
from hub_server import TOKEN, LocalHub
from tiny_models import make_tiny_clip, randomize


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 42, 42, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def prompts_dir(tiny_model, tiny_processor, tmp_path):
    """Prompts of `tiny_model` alone, with thresholds."""
    tiny_model.config.image_threshold, tiny_model.config.pixel_threshold = 0.4, 0.3
    tiny_model.save_prompts(tmp_path / "prompts", tiny_processor)
    return tmp_path / "prompts"


def results_of(model, pixels):
    with torch.no_grad():
        out = model(pixel_values=pixels)
    return torch.cat([out.logits.softmax(-1).flatten(), out.anomaly_maps.flatten()])


def same(first, second):
    """Equal but for the rounding of sums, which depends on where tensors lie in memory."""
    return torch.allclose(first, second, rtol=0, atol=1e-6)


def edit_config(folder, **fields):
    path = Path(folder, "config.json")
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


class TestPromptsAlone:
    def test_files(self, prompts_dir, tiny_clip_dir):
        stored = load_file(prompts_dir / "prompts.safetensors")
        assert {key: tuple(value.shape) for key, value in stored.items()} == {
            "prompt_learner.context": (2, 5, 32),
            "prompt_learner.deep_prompts": (2, 4, 32),
        }
        config = json.loads((prompts_dir / "config.json").read_text())
        assert config["base_model_name_or_path"] == tiny_clip_dir and config["base_model_revision"] is None
        assert (config["prompts_only"], config["image_threshold"], config["pixel_threshold"]) == (True, 0.4, 0.3)
        assert AnomalyCLIPProcessor.from_pretrained(prompts_dir).size["height"] == 42
        assert "prompts alone" in (prompts_dir / "README.md").read_text()
        assert not [name for name in os.listdir(prompts_dir) if name.startswith(".")]

    def test_size_for_the_papers_backbone(self, tmp_path):
        config = AnomalyCLIPConfig()
        context, deep = torch.zeros(2, 12, 768), torch.zeros(8, 4, 768)
        fingerprint = torch.zeros(222)
        write_prompts(prompts_module.PromptSet(context, deep, config, fingerprint), tmp_path / "prompts.safetensors")
        assert 172_032 < (tmp_path / "prompts.safetensors").stat().st_size < 174_000

    def test_same_results_after_loading(self, tiny_model, prompts_dir, pixels):
        loaded, info = AnomalyCLIPModel.from_pretrained(prompts_dir, output_loading_info=True)
        assert same(results_of(loaded, pixels), results_of(tiny_model, pixels))
        assert not info["missing_keys"] and not loaded.config.prompts_only
        assert loaded.config.feature_layers == [2, 4] and loaded.config.pixel_threshold == 0.3
        trainable = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
        assert trainable == {"prompt_learner.context", "prompt_learner.deep_prompts"}

    def test_overrides_and_auto_classes(self, prompts_dir):
        from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

        model = AnomalyCLIPModel.from_pretrained(prompts_dir, feature_layers=[1], image_threshold=0.9)
        assert (model.config.feature_layers, model.config.image_threshold) == ([1], 0.9)
        assert type(AutoModel.from_pretrained(prompts_dir)) is AnomalyCLIPModel
        assert type(AutoProcessor.from_pretrained(prompts_dir)) is AnomalyCLIPProcessor
        detector = pipeline("zero-shot-anomaly-detection", model=str(prompts_dir))
        assert detector.model.config.pixel_threshold == 0.3 and detector.image_processor.size["height"] == 42
        with pytest.raises(ValueError, match="prompts alone; from_pretrained loads their base model too"):
            AutoModel.from_config(AutoConfig.from_pretrained(prompts_dir))

    def test_base_model_elsewhere(self, tiny_model, prompts_dir, pixels, tmp_path, tiny_clip_dir):
        make_tiny_clip().save_pretrained(tmp_path / "moved")
        edit_config(prompts_dir, base_model_name_or_path=str(tmp_path / "gone"))
        with pytest.raises(OSError, match=r"gone.*isn't there; give base_model_name_or_path"):
            AnomalyCLIPModel.from_pretrained(prompts_dir)
        moved = AnomalyCLIPModel.from_pretrained(prompts_dir, base_model_name_or_path=tmp_path / "moved")
        assert same(results_of(moved, pixels), results_of(tiny_model, pixels))
        assert moved.config.base_model_name_or_path == str(tmp_path / "moved")

    def test_full_checkpoint_as_base_and_as_source(self, tiny_model, tiny_checkpoint, pixels, tmp_path):
        model = AnomalyCLIPModel.from_pretrained(tiny_checkpoint)
        model.config.base_model_name_or_path = None
        randomize(model.prompt_learner, seed=7)
        model.save_prompts(tmp_path / "prompts", card=False)
        assert (
            json.loads((tmp_path / "prompts" / "config.json").read_text())["base_model_name_or_path"]
            == tiny_checkpoint
        )
        loaded = AnomalyCLIPModel.from_pretrained(tmp_path / "prompts")
        assert same(results_of(loaded, pixels), results_of(model, pixels))
        assert same(results_of(loaded.load_prompts(tiny_checkpoint), pixels), results_of(tiny_model, pixels))

    def test_embedded_base_has_a_portable_name(self, tiny_checkpoint, tmp_path, monkeypatch):
        monkeypatch.setattr(prompts_module, "_folder_of_demo", lambda: tiny_checkpoint)
        model = AnomalyCLIPModel.from_pretrained(tiny_checkpoint)
        model.save_prompts(tmp_path / "prompts", card=False)
        assert "anomalyclip_hf/demo" in (tmp_path / "prompts" / "config.json").read_text()
        again = AnomalyCLIPModel.from_pretrained(tmp_path / "prompts")
        assert again.config.base_model_name_or_path == "anomalyclip_hf/demo"
        monkeypatch.setattr(prompts_module, "_folder_of_demo", lambda: None)
        with pytest.raises(OSError, match=r"comes with the package anomalyclip_hf.*pip install"):
            AnomalyCLIPModel.from_pretrained(tmp_path / "prompts")

    def test_refusals(self, tiny_model, tiny_checkpoint, tmp_path):
        with pytest.raises(ValueError, match="holds a full checkpoint"):
            tiny_model.save_prompts(tiny_checkpoint)
        nameless = AnomalyCLIPModel(tiny_model.config.__class__.from_dict(tiny_model.config.to_dict()))
        nameless.config.base_model_name_or_path = None
        with pytest.raises(ValueError, match="which backbone these prompts belong to"):
            nameless.save_prompts(tmp_path / "new")
        assert not (tmp_path / "new").exists()
        with pytest.raises(ValueError, match=r"local folder .*tiny_clip.*nobody else has"):
            tiny_model.push_prompts_to_hub("me/prompts", dry_run=True)

    def test_nothing_half_written(self, tiny_model, prompts_dir, tmp_path, monkeypatch):
        before = {path.name: path.read_bytes() for path in prompts_dir.iterdir()}

        def fail(*args, **kwargs):
            raise OSError("no space left on device")

        monkeypatch.setattr(tiny_model.config.__class__, "save_pretrained", fail)
        randomize(tiny_model.prompt_learner, seed=5)
        for save in (tiny_model.save_prompts, tiny_model.save_pretrained):
            with pytest.raises(OSError, match="no space left"):
                save(prompts_dir)
            with pytest.raises(OSError, match="no space left"):
                save(tmp_path / "new" / "folder")
        assert {path.name: path.read_bytes() for path in prompts_dir.iterdir()} == before
        assert not (tmp_path / "new" / "folder").exists()


class TestDamage:
    @pytest.mark.parametrize("missing", ["config.json", "prompts.safetensors"])
    def test_missing_file(self, prompts_dir, missing):
        (prompts_dir / missing).unlink()
        with pytest.raises(OSError, match=missing):
            AnomalyCLIPModel.from_pretrained(prompts_dir)

    def test_truncated_file(self, prompts_dir):
        path = prompts_dir / "prompts.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"prompts.safetensors of .* is truncated"):
            AnomalyCLIPModel.from_pretrained(prompts_dir)

    @pytest.mark.parametrize("length", [0, 6, 1000, -100])
    def test_truncated_full_checkpoint(self, tiny_model, tmp_path, length):
        tiny_model.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(ValueError, match=rf"weights of {tmp_path} are truncated .* fetch them again"):
            AnomalyCLIPModel.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"prompt_learner.deep_prompts": None}, "lacks prompt_learner.deep_prompts"),
            ({"visual_projection.weight": torch.zeros(2)}, "holds .'visual_projection.weight'., expected"),
            ({"prompt_learner.context": torch.zeros(2, 6, 32)}, r"context has shape \(2, 6, 32\).*\(2, 5, 32\)"),
            (
                {"prompt_learner.context": torch.full((2, 5, 32), float("nan"))},
                "context has values that are not finite",
            ),
            ({"prompt_learner.context": torch.zeros(2, 5, 32, dtype=torch.int8)}, "context has .* dtype torch.int8"),
        ],
    )
    def test_wrong_tensors(self, prompts_dir, change, message):
        path = prompts_dir / "prompts.safetensors"
        tensors = {**load_file(path), **change}
        save_file({key: value for key, value in tensors.items() if value is not None}, path)
        with pytest.raises(ValueError, match=message):
            AnomalyCLIPModel.from_pretrained(prompts_dir)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"base_model_name_or_path": None}, "lacks base_model_name_or_path"),
            ({"text_config": ...}, "lacks text_config"),
            (
                {"deep_prompt_length": 3},
                r"deep_prompts has shape \(2, 4, 32\) .* the configuration says \(2, 3, 32\)",
            ),
            ({"vision_only": True}, "vision-only"),
        ],
    )
    def test_wrong_config(self, prompts_dir, fields, message):
        edit_config(prompts_dir, **fields)
        with pytest.raises(ValueError, match=message):
            AnomalyCLIPModel.from_pretrained(prompts_dir)

    def test_base_that_is_no_backbone(self, prompts_dir, tiny_model, tmp_path):
        tiny_model.save_prompts(tmp_path / "others", card=False)
        edit_config(prompts_dir, base_model_name_or_path=str(tmp_path / "others"))
        with pytest.raises(ValueError, match="no complete backbone"):
            AnomalyCLIPModel.from_pretrained(prompts_dir)

    def test_incomplete_or_mismatched_backbone(self, tiny_checkpoint, tiny_model, tmp_path):
        tiny_model.save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        name = "vision_model.encoder.layers.1.mlp.fc1.weight"
        save_file({k: v for k, v in weights.items() if k != name}, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=f"lacks 1 weights of the model, such as {name}"):
            AnomalyCLIPModel.from_pretrained(tmp_path)
        save_file({**weights, name: torch.zeros(3, 3)}, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=rf"{name} has shape \(3, 3\) in the weights .* asks for \(32, 32\)"):
            AnomalyCLIPModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


def test_same_prompts_same_bytes(tiny_model, tmp_path):
    for number in range(4):
        tiny_model.save_prompts(tmp_path / str(number), card=False)
    assert len({(tmp_path / str(number) / "prompts.safetensors").read_bytes() for number in range(4)}) == 1


def test_prompts_without_fingerprint_are_named(tiny_model, prompts_dir, monkeypatch):
    path, said = prompts_dir / "prompts.safetensors", []
    save_file(load_file(path), path, metadata={"format": "pt"})
    monkeypatch.setattr(prompts_module.logger, "warning", said.append)
    AnomalyCLIPModel.from_pretrained(prompts_dir)
    tiny_model.load_prompts(prompts_dir)
    assert len(said) == 2 and all("no fingerprint" in message and str(prompts_dir) in message for message in said)


@pytest.mark.parametrize(
    ("tower", "fields", "message"),
    [
        ("vision_config", {"intermediate_size": 65536}, r"65536.* \(vision_config.intermediate_size=65536\)"),
        ("text_config", {"vocab_size": 10**6}, r"1000000.* \(text_config.vocab_size=1000000\)"),
        (
            "text_config",
            {"num_hidden_layers": 3},
            "weights of layers that the model lacks.*text_config.num_hidden_layers=3",
        ),
        ("text_config", {"num_hidden_layers": 5}, r"lacks 16 weights .* \(text_config.num_hidden_layers=5\)"),
        (
            "vision_config",
            {"image_size": 2800},
            r"position_embedding.weight has shape \(17, 32\) .* asks for \(160001, 32\)",
        ),
        (
            None,
            {"deep_prompt_depth": 2},
            r"prompt_learner.deep_prompts has shape \(2, 4, 32\) .* asks for \(1, 4, 32\)",
        ),
        (None, {"projection_dim": 16000}, r"16000.* \(projection_dim=16000\)"),
    ],
)
def test_sizes_that_the_weights_do_not_have(tiny_model, tmp_path, monkeypatch, tower, fields, message):
    tiny_model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    edit_config(tmp_path, **({tower: {**stored[tower], **fields}} if tower else fields))
    monkeypatch.setattr("transformers.PreTrainedModel._finalize_model_loading", None)  # refused before memory is taken
    with pytest.raises(ValueError, match=message):
        AnomalyCLIPModel.from_pretrained(tmp_path)


class TestSwapping:
    def test_sets_on_one_backbone(self, tiny_model, prompts_dir, pixels):
        first = results_of(tiny_model, pixels)
        tiny_model.add_prompts("first")
        randomize(tiny_model.prompt_learner, seed=8)
        tiny_model.config.feature_layers, tiny_model.config.pixel_threshold = [3], 0.7
        second = results_of(tiny_model, pixels)
        tiny_model.add_prompts("second")
        tiny_model.add_prompts("stored", prompts_dir)
        assert tiny_model.prompt_names == ["first", "second", "stored"]
        for name, expected in (("first", first), ("second", second), ("stored", first)):
            tiny_model.set_prompts(name)
            assert same(results_of(tiny_model, pixels), expected)
        tiny_model.set_prompts("second")
        assert (tiny_model.config.feature_layers, tiny_model.config.pixel_threshold) == ([3], 0.7)
        times = []
        for name in ("first", "second") * 5:
            start = time.perf_counter()
            tiny_model.set_prompts(name)
            times.append(time.perf_counter() - start)
        assert min(times) < 0.001
        with pytest.raises(KeyError, match=r"no prompts named 'third', there are \['first', 'second', 'stored'\]"):
            tiny_model.set_prompts("third")

    def test_snapshots_and_parameters_stay_apart(self, tiny_model):
        kept = tiny_model.get_prompts()
        parameter = tiny_model.prompt_learner.context
        with torch.no_grad():
            parameter.add_(1)
        tiny_model.load_prompts(kept)
        assert tiny_model.prompt_learner.context is parameter and torch.equal(parameter, kept.context)
        with torch.no_grad():
            parameter.add_(1)
        assert not torch.equal(parameter, kept.context)

    def test_other_lengths(self, tiny_clip_dir, prompts_dir, pixels, tiny_model):
        model = AnomalyCLIPModel.from_pretrained(tiny_clip_dir, image_size=42, prompt_length=6, deep_prompt_depth=1)
        model.load_prompts(prompts_dir)
        assert same(results_of(model, pixels), results_of(tiny_model, pixels))
        assert model.prompt_learner.deep_prompts.requires_grad

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_same_backbone_in_another_dtype_and_place(self, prompts_dir, tmp_path, dtype):
        make_tiny_clip().to(dtype).save_pretrained(tmp_path / "half")
        model = AnomalyCLIPModel.from_pretrained(tmp_path / "half", image_size=42).load_prompts(prompts_dir)
        assert model.prompt_learner.context.dtype == torch.float32 and model.dtype == dtype
        model.save_prompts(tmp_path / "again", card=False)
        assert AnomalyCLIPModel.from_pretrained(prompts_dir).load_prompts(tmp_path / "again").dtype == torch.float32

    def test_other_backbones_are_refused_by_name(self, prompts_dir, tiny_clip_dir, tmp_path):
        make_tiny_clip(seed=1).save_pretrained(tmp_path / "seed1")
        make_tiny_clip(vision={"num_hidden_layers": 3}).save_pretrained(tmp_path / "shallow")
        for name, differs in (
            ("seed1", "weights differ"),
            ("shallow", "vision_config.num_hidden_layers is 4 there and 3"),
        ):
            other = AnomalyCLIPModel.from_pretrained(tmp_path / name, image_size=42, prompt_length=5)
            before = other.prompt_learner.context.clone()
            with pytest.raises(ValueError) as caught:
                other.load_prompts(prompts_dir)
            assert all(part in str(caught.value) for part in (tiny_clip_dir, str(tmp_path / name), differs))
            assert torch.equal(other.prompt_learner.context, before) and other.config.pixel_threshold is None
            with pytest.raises(ValueError, match=differs):
                AnomalyCLIPModel.from_pretrained(prompts_dir, base_model_name_or_path=tmp_path / name)


class TestEverythingAndVisionOnly:
    def test_save_pretrained(self, tiny_model, pixels, tmp_path, prompts_dir):
        tiny_model.save_pretrained(prompts_dir, max_shard_size="100KB")
        shards = sorted(path.name for path in prompts_dir.glob("model-*"))
        assert len(shards) > 1 and not (prompts_dir / "prompts.safetensors").exists()
        assert same(results_of(AnomalyCLIPModel.from_pretrained(prompts_dir), pixels), results_of(tiny_model, pixels))
        tiny_model.save_pretrained(prompts_dir)
        assert not list(prompts_dir.glob("model-*")) and (prompts_dir / "model.safetensors").exists()
        assert "auto_map" not in json.loads((prompts_dir / "config.json").read_text())

    def test_vision_only(self, tiny_model, pixels, tmp_path):
        folded = tiny_model.to_vision_only()
        assert results_of(folded, pixels) == pytest.approx(results_of(tiny_model, pixels), abs=1e-6)
        folded.save_pretrained(tmp_path)
        loaded = AnomalyCLIPModel.from_pretrained(tmp_path)
        assert results_of(loaded, pixels) == pytest.approx(results_of(tiny_model, pixels), abs=1e-6)
        assert not [
            name for name in loaded.state_dict() if name.startswith(("text_", "prompt_learner", "logit_scale"))
        ]
        assert not [name for name, parameter in loaded.named_parameters() if parameter.requires_grad]
        half = AnomalyCLIPModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert half.dtype == torch.bfloat16 and torch.equal(half.folded_text_embeds, loaded.folded_text_embeds)

    def test_vision_only_refusals(self, tiny_model, pixels, tmp_path, prompts_dir):
        folded = tiny_model.to_vision_only()
        with pytest.raises(ValueError, match="vision-only: its prompts are folded and can't be trained"):
            folded(pixel_values=pixels, labels=torch.tensor([0, 1]))
        for refused in (folded.to_vision_only, folded.get_prompts, lambda: folded.save_prompts(tmp_path / "p")):
            with pytest.raises(ValueError, match="this model is vision-only"):
                refused()
        with pytest.raises(ValueError, match="this model is vision-only"):
            folded.load_prompts(prompts_dir)
        folded.save_pretrained(tmp_path / "folded")
        with pytest.raises(ValueError, match="is vision-only"):
            tiny_model.load_prompts(tmp_path / "folded")


class TestAttacks:
    @pytest.mark.parametrize(
        "base", ["../../etc", "/etc/../etc/x", "~/clip", "a/b/c", "user/na me", "http://x/y", "a\0b", "..", "C:\\x"]
    )
    def test_names_that_are_paths(self, prompts_dir, base):
        edit_config(prompts_dir, base_model_name_or_path=base)
        with pytest.raises(ValueError, match="expected a repository such as"):
            AnomalyCLIPModel.from_pretrained(prompts_dir)

    def test_folders_named_by_a_repository(self, tmp_path):
        with pytest.raises(ValueError, match="names the local folder '/etc'"):
            prompts_module.locate_base("/etc", "someone/prompts")

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"vision_config": {"hidden_size": 16 * 10**9, "num_attention_heads": 16}}, r"in 1\.\.16384"),
            ({"prompt_length": 10**9, "prompt_token_ids": ...}, "prompt_length=1000000000"),
            ({"prompt_length": 10**9}, "prompt_length=1000000000, expected"),
            ({"projection_dim": 10**9}, r"in 1\.\.16384"),
            ({"deep_prompt_length": 10**9}, "deep_prompt_length=1000000000, expected"),
            ({"projection_dim": "16"}, "projection_dim"),
            ({"feature_layers": [10**9]}, "feature_layers"),
            ({"dpam_attention": "xx"}, "dpam_attention' expected .* xx"),
            ({"base_model_name_or_path": ["x"]}, "base_model_name_or_path"),
            ({"_attn_implementation": "someone/kernel"}, "_attn_implementation='someone/kernel'"),
            ({"attn_implementation": "someone/kernel"}, "attn_implementation='someone/kernel'"),
            ({"transformers_weights": "../x.safetensors"}, "transformers_weights"),
        ],
    )
    @pytest.mark.parametrize("kind", ["prompts", "full"])
    def test_configs(self, tiny_model, prompts_dir, tmp_path, fields, message, kind):
        folder = prompts_dir
        if kind == "full":
            folder = tmp_path / "full"
            tiny_model.save_pretrained(folder)
        edit_config(folder, **fields)
        with pytest.raises(ValueError, match=message):
            AnomalyCLIPModel.from_pretrained(folder)

    def test_pickles_and_shards_elsewhere(self, tiny_model, tmp_path):
        tiny_model.save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        (tmp_path / "model.safetensors").unlink()
        torch.save(weights, tmp_path / "pytorch_model.bin")
        with pytest.raises(OSError, match="safetensors"):
            AnomalyCLIPModel.from_pretrained(tmp_path)
        with pytest.raises(ValueError, match="use_safetensors=False"):
            AnomalyCLIPModel.from_pretrained(tmp_path, use_safetensors=False)
        for shard in ("../elsewhere.safetensors", "/etc/x.safetensors", "pytorch_model.bin", 3):
            index = {"metadata": {}, "weight_map": dict.fromkeys(weights, shard)}
            (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
            with pytest.raises(ValueError, match=r"names the file .* expected a .safetensors file beside it"):
                AnomalyCLIPModel.from_pretrained(tmp_path)

    def test_huge_header_costs_no_memory(self, prompts_dir):
        path = prompts_dir / "prompts.safetensors"
        header = {"prompt_learner.context": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        with pytest.raises(ValueError, match="truncated"):
            AnomalyCLIPModel.from_pretrained(prompts_dir)


@pytest.fixture
def local_hub(monkeypatch):
    """A running Hub on this machine that this process talks to."""
    import transformers.utils.hub
    from huggingface_hub import constants

    with LocalHub() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        # Waiting between attempts is the client's own affair; here there is one attempt.
        from huggingface_hub.utils import _http

        monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
        yield hub
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)


BASE = {"base_model_name_or_path": "openai/tiny"}


class TestHub:
    def push(self, model, **options):
        return model.push_prompts_to_hub(
            "me/prompts", base_model_name_or_path="openai/tiny", **{"token": TOKEN, "card": False, **options}
        )

    @pytest.mark.parametrize(
        ("fault", "answer", "error", "message"),
        [
            (("POST", "preupload"), 401, OSError, "401"),
            (("POST", "preupload"), 403, OSError, "403 Forbidden.*as the test wants it"),
            (("POST", "commit"), 404, OSError, "404"),
            (("POST", "commit"), 409, OSError, "409"),
            (("POST", "commit"), 412, OSError, "412"),
            (("POST", "commit"), 500, OSError, "500"),
            (("POST", "preupload"), 503, OSError, "503"),
            (("POST", "commit"), "drop", ConnectionError, "can't push to me/prompts: the connection to .* failed"),
            (("PUT", "lfs"), "drop", OSError, "."),
        ],
    )
    def test_push(self, tiny_model, local_hub, tmp_path, monkeypatch, fault, answer, error, message):
        """The Hub client's own errors come through; nothing is left behind, here or there."""
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        local_hub.faults = {fault: answer}
        with pytest.raises(error, match=message):
            self.push(tiny_model)
        assert not list(tmp_path.iterdir())
        assert list(local_hub.files("me/prompts")) == [".gitattributes"]
        local_hub.faults = {}
        with pytest.raises(ValueError, match="me/prompts exists and is public"):
            self.push(tiny_model, private=True)
        assert list(local_hub.files("me/prompts")) == [".gitattributes"]
        self.push(tiny_model)
        assert "prompts.safetensors" in local_hub.files("me/prompts")

    def test_push_without_token_or_network(self, tiny_model, local_hub, monkeypatch):
        with pytest.raises(OSError, match="401"):
            self.push(tiny_model, token="wrong")
        with pytest.raises(ValueError, match="Repo id must be in the form"):
            tiny_model.push_prompts_to_hub("a/b/c", base_model_name_or_path="openai/tiny", token=TOKEN, card=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(ConnectionError, match=r"offline|HF_HUB_OFFLINE"):
            self.push(tiny_model)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:9 failed"):
            self.push(tiny_model)

    def test_push_replaces_what_was_there(self, tiny_model, local_hub):
        self.push(tiny_model)
        tiny_model.push_to_hub("me/prompts", token=TOKEN, card=False)
        files = local_hub.files("me/prompts")
        assert "model.safetensors" in files and "prompts.safetensors" not in files
        self.push(tiny_model, revision="small")
        assert "prompts.safetensors" in local_hub.files("me/prompts", "small")
        assert "model.safetensors" in local_hub.files("me/prompts")

    def test_arguments_of_transformers_push_to_hub(self, tiny_model, local_hub):
        options = {"tags": ["steel"], "commit_description": "why", "create_pr": False, "token": TOKEN, "private": None}
        tiny_model.push_to_hub("me/full", max_shard_size="50GB", commit_message=None, **options)
        assert b"- steel" in local_hub.files("me/full")["README.md"]
        self.push(tiny_model, tags="steel", commit_description="why")
        assert b"- steel" in local_hub.files("me/prompts")["README.md"]
        for push in (tiny_model.push_to_hub, tiny_model.push_prompts_to_hub):
            with pytest.raises(TypeError, match="tagz"):
                push("me/full", tagz=["x"], **({} if push == tiny_model.push_to_hub else BASE))
        with pytest.raises(ValueError, match="Repo id must be in the form"):
            tiny_model.push_to_hub("a/b/c")

    def test_save_pretrained_pushes_as_transformers_does(self, tiny_model, local_hub, tmp_path):
        tiny_model.save_pretrained(tmp_path / "full", push_to_hub=True, token=TOKEN, commit_message="why")
        assert "model.safetensors" in local_hub.files("me/full")

    def test_load(self, tiny_model, local_hub, tmp_path, pixels, tiny_clip_dir):
        local_hub.create("openai/tiny")
        local_hub.commit("openai/tiny", "main", {p.name: p.read_bytes() for p in Path(tiny_clip_dir).iterdir()})
        self.push(tiny_model)
        cache = {"cache_dir": tmp_path, "token": TOKEN}
        assert same(
            results_of(AnomalyCLIPModel.from_pretrained("me/prompts", **cache), pixels), results_of(tiny_model, pixels)
        )
        for name, options, message in [
            ("me/nothing", cache, "me/nothing is not a .*valid model identifier"),
            ("me/prompts", {**cache, "revision": "nope"}, "nope is not a valid git identifier"),
        ]:
            with pytest.raises(OSError, match=message):
                AnomalyCLIPModel.from_pretrained(name, **options)
        del local_hub.repos["openai/tiny"]
        with pytest.raises(OSError, match=r"base model 'openai/tiny'.*can't be loaded; give base_model_name_or_path"):
            AnomalyCLIPModel.from_pretrained("me/prompts", cache_dir=tmp_path / "empty", token=TOKEN)


def test_script_lists_what_it_would_send(prompts_dir, load_script, capsys, local_hub):
    script = load_script("push_to_hub")
    arguments = [str(prompts_dir), "me/prompts", "--base_model", "openai/tiny", "--license", "mit", "--private"]

    script.main([*arguments, "--dry_run"])
    lines = capsys.readouterr().out.splitlines()
    rows = dict(reversed(line.split(maxsplit=1)) for line in lines[:-1])
    assert set(rows) == {path.name for path in prompts_dir.iterdir()} and "nothing was sent" in lines[-1]
    assert int(rows["prompts.safetensors"].replace(",", "")) == (prompts_dir / "prompts.safetensors").stat().st_size
    assert not local_hub.requests

    script.main([*arguments, "--token", TOKEN])
    assert f"Pushed: {local_hub.endpoint}/me/prompts/commit/" in capsys.readouterr().out
    sent = local_hub.files("me/prompts")
    assert {name: f"{len(data):,}" for name, data in sent.items() if name in rows} == rows
    assert local_hub.repos["me/prompts"]["private"] and b"license: mit" in sent["README.md"]
    assert b'model="me/prompts"' in sent["README.md"]

    script.main([*arguments[:2], "--vision_only", "--dry-run"])
    assert not [line for line in capsys.readouterr().out.splitlines() if line.endswith((".py", "prompts.safetensors"))]
    script.main([*arguments, "--with-code", "--dry_run"])
    assert "modeling_anomalyclip.py" in capsys.readouterr().out


def test_script_takes_the_facts_of_the_training(prompts_dir, load_script, capsys, local_hub):
    script = load_script("push_to_hub")
    arguments = [str(prompts_dir), "me/prompts", "--base_model", "openai/tiny", "--token", TOKEN]

    assert script.main(arguments) == 0
    assert b"Not recorded" in local_hub.files("me/prompts")["README.md"]
    (prompts_dir / "training_summary.json").write_text('{"minutes": 3, "card": {"dataset": "pcb", "epochs": 15}}')
    assert script.main(arguments) == 0
    card = local_hub.files("me/prompts")["README.md"]
    assert b"- **dataset:** pcb" in card and b"Not recorded" not in card

    capsys.readouterr()
    assert script.main([*arguments, "--full"]) == 2
    assert "error: --base-model openai/tiny is for prompts alone, but --full sends" in capsys.readouterr().err
    assert script.main(["/nowhere/at/all", "me/prompts"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert script.main([*arguments, "--full", "--vision-only", "--no_code"]) == 2
    assert "--full and --vision-only exclude each other" in capsys.readouterr().err
    assert script.main([str(prompts_dir)]) == 2 and "MODEL REPO_ID" in capsys.readouterr().err


def test_the_processor_follows_a_relative_path(tiny_checkpoint, tmp_path, monkeypatch):
    """Of a checkpoint loaded by a relative path, the processor is found from another working directory too."""
    folder = Path(tiny_checkpoint)
    processor = AnomalyCLIPProcessor(size={"height": 28, "width": 28}, sigma=1.5)
    other = tmp_path / "other"
    AnomalyCLIPModel.from_pretrained(folder).save_pretrained(other)
    processor.save_pretrained(other)
    monkeypatch.chdir(tmp_path)
    model = AnomalyCLIPModel.from_pretrained("other")
    monkeypatch.chdir("/")
    model.save_prompts(tmp_path / "prompts")
    assert AnomalyCLIPProcessor.from_pretrained(tmp_path / "prompts").sigma == 1.5


class TestRepositoriesOfPicklesAlone:
    """As the paper's backbone on the Hub is: `main` holds a pickle, a pull request of the converter safetensors."""

    @pytest.fixture
    def cache(self, local_hub, tiny_clip_dir, tmp_path, monkeypatch):
        files = {path.name: path.read_bytes() for path in Path(tiny_clip_dir).iterdir()}
        weights = files.pop("model.safetensors")
        local_hub.create("openai/tiny")
        local_hub.commit("openai/tiny", "main", {**files, "pytorch_model.bin": b"a pickle"})
        title = "Adding `safetensors` variant of this model"  # found by transformers' own lookup
        local_hub.propose("openai/tiny", 7, title, "SFconvertbot", {**files, "model.safetensors": weights})
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", local_hub.endpoint)
        return {"cache_dir": tmp_path / "cache", "token": TOKEN}

    def test_weights_of_the_converter_online_and_offline(self, cache, tiny_clip_dir, monkeypatch, pixels):
        expected = AnomalyCLIPModel.from_pretrained(tiny_clip_dir, image_size=42)
        for offline in (False, True):
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
            model = AnomalyCLIPModel.from_pretrained("openai/tiny", image_size=42, **cache)
            model.prompt_learner.load_state_dict(expected.prompt_learner.state_dict())
            assert same(results_of(model, pixels), results_of(expected, pixels))
        local = {**cache, "local_files_only": True}
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        assert AnomalyCLIPModel.from_pretrained("openai/tiny", **local).config.projection_dim == 16
        empty = {**local, "cache_dir": cache["cache_dir"] / "none"}
        with pytest.raises(OSError, match="couldn't find them in the cached files"):
            AnomalyCLIPModel.from_pretrained("openai/tiny", **empty)

    def test_prompts_find_their_base_again(self, cache, local_hub, monkeypatch, pixels):
        model = AnomalyCLIPModel.from_pretrained("openai/tiny", image_size=42, **cache)
        model.push_prompts_to_hub("me/prompts", token=TOKEN, card=False)
        commit = local_hub.repos["openai/tiny"]["branches"]["main"]
        stored = json.loads(local_hub.files("me/prompts")["config.json"])
        assert (stored["base_model_name_or_path"], stored["base_model_revision"]) == ("openai/tiny", commit)
        fresh = {**cache, "cache_dir": cache["cache_dir"] / "fresh"}
        for offline in (False, True):
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
            loaded = AnomalyCLIPModel.from_pretrained("me/prompts", **fresh)
            assert same(results_of(loaded, pixels), results_of(model, pixels))
            assert loaded.config.base_model_revision == commit

    def test_a_proposal_of_another_author_is_not_taken(self, cache, local_hub, monkeypatch):
        local_hub.repos["openai/tiny"]["discussions"][0]["author"]["name"] = "someone"
        spawned = []
        monkeypatch.setattr(
            importlib.import_module("transformers.safetensors_conversion"),
            "spawn_conversion",
            lambda token, private, name: spawned.append(name) or local_hub.repos[name]["discussions"].clear(),
        )
        with pytest.raises(OSError, match="Could not create safetensors conversion PR"):
            AnomalyCLIPModel.from_pretrained("openai/tiny", image_size=42, **cache)
        assert spawned == ["openai/tiny"]

    def test_other_weights_of_the_converter_are_refused(self, cache, local_hub, tmp_path):
        model = AnomalyCLIPModel.from_pretrained("openai/tiny", image_size=42, **cache)
        model.push_prompts_to_hub("me/prompts", token=TOKEN, card=False)
        make_tiny_clip(seed=5).save_pretrained(tmp_path / "other")
        files = {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()}
        del local_hub.repos["openai/tiny"]["history"]["refs/pr/7"]  # written anew on top of main
        local_hub.commit("openai/tiny", "refs/pr/7", files)
        with pytest.raises(ValueError, match="backbone"):
            AnomalyCLIPModel.from_pretrained("me/prompts", **{**cache, "cache_dir": tmp_path / "fresh"})


class TestProfilesOfARepository:
    def test_they_travel_with_prompts_and_are_fetched_by_name(
        self, local_hub, tiny_model, tiny_clip_dir, tmp_path, monkeypatch, pixels
    ):
        expected = results_of(tiny_model, pixels)
        roi, kept = Image.new("L", (50, 40), 255), tiny_model.get_prompts()
        tiny_model.set_profile(Profile("bottle", prompts=kept, roi=roi, image_threshold=0.25))
        tiny_model.set_profile(Profile("cap", min_area=7))
        randomize(tiny_model.prompt_learner, seed=11)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", local_hub.endpoint)
        hub = {"cache_dir": tmp_path / "cache", "token": TOKEN}
        local_hub.create("openai/tiny")
        files = {path.name: path.read_bytes() for path in Path(tiny_clip_dir).iterdir()}
        local_hub.commit("openai/tiny", "main", files)
        planned = tiny_model.push_prompts_to_hub("me/prompts", **BASE, card=False, dry_run=True)
        assert planned["profiles/bottle.json"] > 0 and "profiles/bottle/prompts.safetensors" in planned
        tiny_model.push_prompts_to_hub("me/prompts", **BASE, card=False, token=TOKEN)
        assert {path for path in local_hub.files("me/prompts") if "/" in path} == {
            "profiles/bottle.json",
            "profiles/bottle/config.json",
            "profiles/bottle/preprocessor_config.json",
            "profiles/bottle/prompts.safetensors",
            "profiles/bottle/roi.png",
            "profiles/cap.json",
        }
        model = AnomalyCLIPModel.from_pretrained("me/prompts", **hub)
        assert not [path for _, path in local_hub.requests if "resolve" in path and "profiles/" in path]
        assert model.profile_names == ["bottle", "cap"]
        model.set_profile("bottle")
        assert same(results_of(model, pixels), expected)
        assert model.profile.options == {"image_threshold": 0.25, "roi": roi}
        with pytest.raises(ValueError, match="me/prompts has no profile 'lid'; known are: bottle, cap"):
            model.set_profile("lid")
        # Without a network, those that were fetched before.
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        model = AnomalyCLIPModel.from_pretrained("me/prompts", **hub)
        model.set_profile("bottle")
        assert same(results_of(model, pixels), expected) and model.profile_names == ["bottle"]
        with pytest.raises(ValueError, match="me/prompts has no profile 'cap'; known are: bottle"):
            model.set_profile("cap")
