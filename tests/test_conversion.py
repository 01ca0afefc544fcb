"""Reading the authors' checkpoints: exact values, and a reason for every file that is something else."""

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import CLIPConfig, CLIPModel

from anomalyclip_hf import AnomalyCLIPModel, AnomalyCLIPProcessor, conversion, convert_checkpoint
from anomalyclip_hf.conversion import read_authors_checkpoint
from tiny_models import GOLDEN_CASES


@pytest.fixture(scope="module")
def state(load_golden):
    """The state dict of a checkpoint as the authors' program saves it. Copy before changing."""
    return torch.load(load_golden("native_last_layer").checkpoint, weights_only=True)["prompt_learner"]


@pytest.fixture
def save(tmp_path):
    def save(prompt_learner) -> Path:
        torch.save({"prompt_learner": prompt_learner}, tmp_path / "epoch_15.pth")
        return tmp_path / "epoch_15.pth"

    return save


def backbone_folder(golden, folder: Path) -> Path:
    clip = CLIPModel(CLIPConfig(**{k: golden.clip[k] for k in ("text_config", "vision_config", "projection_dim")}))
    clip.load_state_dict(golden.backbone(), strict=False)
    clip.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_prompts_are_read_exactly(load_golden, case):
    golden = load_golden(case)
    prompts, tensors = read_authors_checkpoint(golden.checkpoint), golden.tensors
    assert torch.equal(prompts.context, torch.stack([tensors["ctx_normal"], tensors["ctx_abnormal"]]))
    assert torch.equal(prompts.deep_prompts, tensors["deep_prompts"].half().float())
    assert prompts.token_ids == tensors["input_ids"].tolist()


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_a_converted_model_equals_the_authors_program(load_golden, case, tmp_path):
    golden = load_golden(case)
    config, base = golden.config(), backbone_folder(golden, tmp_path / "clip")
    settings = {key: getattr(config, key) for key in ("feature_layers", "dpam_layers", "image_size", "temperature")}
    model = convert_checkpoint(golden.checkpoint, base, tmp_path / "prompts", **settings)
    loaded = AnomalyCLIPModel.from_pretrained(tmp_path / "prompts")
    for candidate in (model, loaded):
        with torch.no_grad():
            output = candidate(**golden.inputs)
        for name in ("image_embeds", "text_embeds", "logits", "global_loss", "local_loss"):
            assert_close(output[name], golden.tensors["out." + name], rtol=1e-5, atol=1e-5)
        maps = output.similarity_maps[..., ::3, ::3]
        assert_close(maps, golden.tensors["out.similarity_maps"], rtol=0, atol=1e-5)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "prompt_learner.context",
        "prompt_learner.deep_prompts",
    }


def test_folder_without_the_backbone(load_golden, tmp_path, monkeypatch):
    """Only sizes are known: the folder names the base model, holds 2 tensors and says what was done."""
    golden = load_golden("native_last_layer")
    sizes = {k: golden.clip[k] for k in ("text_config", "vision_config", "projection_dim")}
    CLIPConfig(**sizes).save_pretrained(tmp_path / "sizes")
    messages = []
    monkeypatch.setattr(conversion.logger, "warning", messages.append)
    folder = convert_checkpoint(
        golden.checkpoint, "someone/clip", tmp_path / "out", preset="paper", base_config=tmp_path / "sizes"
    )
    assert folder == tmp_path / "out"
    assert len(messages) == 1 and "deep prompts rounded to half precision once" in messages[0]
    tensors = load_file(folder / "prompts.safetensors")
    assert set(tensors) == {"prompt_learner.context", "prompt_learner.deep_prompts"}
    assert torch.equal(tensors["prompt_learner.deep_prompts"], golden.tensors["deep_prompts"].half().float())
    config = json.loads((folder / "config.json").read_text())
    assert config["base_model_name_or_path"] == "someone/clip" and config["prompts_only"] is True
    assert config["prompt_length"] == 12 and config["deep_prompt_depth"] == 3 and config["deep_prompt_length"] == 4
    assert config["feature_layers"] == [1, 2, 3, 4] and config["text_config"]["hidden_size"] == 64
    facts = json.loads((folder / "conversion.json").read_text())
    assert "rounded to half precision" in facts["note"] and len(facts["source_sha256"]) == 64
    assert "rounded to half precision" in (folder / "README.md").read_text()
    # The sizes 112 px / patch 14 give an input of 518 px.
    assert AnomalyCLIPProcessor.from_pretrained(folder).size == {"height": 518, "width": 518}
    # The folder works once a backbone lies somewhere.
    model = AnomalyCLIPModel.from_pretrained(
        folder, base_model_name_or_path=str(backbone_folder(golden, tmp_path / "clip"))
    )
    assert torch.equal(model.prompt_learner.context, tensors["prompt_learner.context"])


def vit_l_checkpoint() -> dict[str, torch.Tensor]:
    """A checkpoint of the published sizes: 12 words, 8 sets of 4 deep prompts, width 768."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return 0.02 * torch.randn(shape, generator=generator)

    ids = {
        "pos": [49406, *[343] * 12, 14115, 269, 49407] + [0] * 61,
        "neg": [49406, *[343] * 12, 13568, 14115, 269, 49407] + [0] * 60,
    }
    state = {}
    for kind in ("pos", "neg"):
        state[f"ctx_{kind}"] = random(1, 1, 12, 768)
        state[f"token_prefix_{kind}"] = random(1, 1, 1, 768)
        state[f"token_suffix_{kind}"] = random(1, 1, 64, 768)
        state[f"tokenized_prompts_{kind}"] = torch.tensor(ids[kind], dtype=torch.int32)[None, None]
    return {**state, **{f"compound_prompts_text.{i}": random(4, 768) for i in range(8)}}


def test_the_published_sizes_are_known(save, tmp_path):
    state = vit_l_checkpoint()
    folder = convert_checkpoint(save(state), output_dir=tmp_path / "prompts")
    config = json.loads((folder / "config.json").read_text())
    assert config["base_model_name_or_path"] == "openai/clip-vit-large-patch14-336"
    assert (config["feature_layers"], config["dpam_layers"], config["image_size"]) == ([24], 19, 518)
    assert (config["deep_prompt_depth"], config["projection_dim"]) == (9, 768)
    tensors = load_file(folder / "prompts.safetensors")
    assert torch.equal(tensors["prompt_learner.context"][1], state["ctx_neg"][0, 0])
    assert torch.equal(tensors["prompt_learner.deep_prompts"][7], state["compound_prompts_text.7"].half().float())
    assert (folder / "prompts.safetensors").stat().st_size < 180_000


def test_the_script_does_the_same(save, load_script, tmp_path, capsys):
    script = load_script("convert_checkpoint")
    checkpoint = str(save(vit_l_checkpoint()))
    assert script.main([checkpoint, "--output_dir", str(tmp_path / "out"), "--preset", "paper"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["feature_layers"] == [6, 12, 18, 24]
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html></html>")
    assert script.main([str(tmp_path / "page.pth"), "--output_dir", str(tmp_path / "none")]) == 2
    assert "it is a web page" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    for line, told in [
        ([str(tmp_path / "absent.pth"), "--output-dir", "none"], "absent.pth"),
        ([checkpoint], "--output-dir FOLDER"),
        ([checkpoint, "-o", "none", "--preset", "x"], "--preset x, expected one of released, paper"),
    ]:
        assert script.main(line) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and told in error and error.count("\n") == 1


def test_another_backbone_of_the_same_size_is_refused(load_golden, tmp_path):
    golden = load_golden("native_last_layer")
    torch.manual_seed(0)
    sizes = {k: golden.clip[k] for k in ("text_config", "vision_config", "projection_dim")}
    CLIPModel(CLIPConfig(**sizes)).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="learned on another backbone than base_model="):
        convert_checkpoint(golden.checkpoint, tmp_path / "other", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_size_of_backbone_is_refused(load_golden, tiny_clip_dir, tmp_path):
    checkpoint = load_golden("native_last_layer").checkpoint
    with pytest.raises(ValueError, match=r"width 64 .* has width 32 and 99 tokens"):
        convert_checkpoint(checkpoint, tiny_clip_dir, tmp_path / "out")
    with pytest.raises(ValueError, match=r"width 64 .* has width 768"):
        convert_checkpoint(checkpoint, output_dir=tmp_path / "out")
    with pytest.raises(ValueError, match="prompt_length can't be given"):
        convert_checkpoint(checkpoint, base_config=CLIPConfig(text_config={"hidden_size": 64}), prompt_length=3)
    with pytest.raises(ValueError, match=r"2 sets of deep prompts, for 3 text layers, but .* has 2"):
        convert_checkpoint(
            checkpoint,
            output_dir=tmp_path / "out",
            base_config=CLIPConfig(text_config={"hidden_size": 64, "num_hidden_layers": 2}),
        )


def test_a_full_checkpoint_is_not_overwritten(load_golden, save, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ValueError, match="holds a full checkpoint"):
        convert_checkpoint(save(vit_l_checkpoint()), output_dir=tmp_path / "full")


class Harmful:
    def __reduce__(self):
        return (os.mkdir, ("/tmp/anomalyclip-was-unpickled",))


FILES = {
    "empty": (lambda good: b"", "it is empty"),
    "html": (lambda good: b"\n<!DOCTYPE html><html>rate limited</html>", "it is a web page"),
    "lfs": (lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "a Git LFS pointer"),
    "gzip": (lambda good: b"\x1f\x8b" + good[:50], "gzip"),
    "truncated": (lambda good: good[: len(good) // 2], "it is truncated after"),
    "start_lost": (lambda good: good[7:], "damaged, truncated or no PyTorch file"),
    "text": (lambda good: b"hello world, this is no checkpoint", "damaged, truncated or no PyTorch file"),
    "pickle": (lambda good: pickle.dumps(Harmful(), protocol=2), r"pickled Python objects \(posix.mkdir\)"),
}


@pytest.mark.parametrize("name", FILES)
def test_odd_files_are_refused_with_a_reason(name, load_golden, tmp_path):
    make, reason = FILES[name]
    path = tmp_path / "epoch_15.pth"
    path.write_bytes(make(load_golden("native_last_layer").checkpoint.read_bytes()))
    with pytest.raises(ValueError, match=reason) as caught:
        convert_checkpoint(path, output_dir=tmp_path / "out")
    assert str(path) in str(caught.value)
    assert not (tmp_path / "out").exists() and not Path("/tmp/anomalyclip-was-unpickled").exists()


def test_flipped_bytes_and_other_archives_are_refused(load_golden, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.pth", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(ValueError, match="damaged, truncated or no PyTorch file"):
        read_authors_checkpoint(tmp_path / "photos.pth")
    with pytest.raises(ValueError, match="it is a folder"):
        read_authors_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_authors_checkpoint(tmp_path / "nowhere.pth")


def test_pickled_objects_are_named_and_never_run(state, tmp_path):
    torch.save({"prompt_learner": {**state, "extra": Harmful()}}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"pickled Python objects \(posix.mkdir\)"):
        read_authors_checkpoint(tmp_path / "bad.pth")
    assert not Path("/tmp/anomalyclip-was-unpickled").exists()


def edit(**changes):
    """State dict with keys replaced; None removes."""

    def apply(state):
        changed = {**state, **{key.replace("__", "."): value for key, value in changes.items()}}
        return {key: value for key, value in changed.items() if value is not None}

    return apply


def with_value(key, value):
    def apply(state):
        tensor = state[key].clone()
        tensor.view(-1)[5] = value
        return {**state, key: tensor}

    return apply


CONTENTS = {
    "no_context": (edit(ctx_neg=None), "lacks ctx_neg"),
    "no_tokens": (edit(tokenized_prompts_pos=None, token_suffix_neg=None), "lacks token_suffix_neg, tokenized_pro"),
    "unknown": (edit(momentum=torch.zeros(3)), r"unknown keys \['momentum'\]"),
    "parallel": (lambda s: {"module." + k: v for k, v in s.items()}, "lacks ctx_neg, ctx_pos"),
    "gap": (edit(compound_prompts_text__0=None), r"has the numbers \[1\], expected 0..0"),
    "nan": (with_value("ctx_pos", float("nan")), "ctx_pos has NaN"),
    "inf_deep": (with_value("compound_prompts_text.1", float("inf")), "compound_prompts_text.1 has NaN or inf"),
    "beyond_half": (with_value("compound_prompts_text.1", 1e6), r"reach 1e\+06, beyond half precision"),
    "half": (lambda s: {**s, "ctx_pos": s["ctx_pos"].half()}, "dtype torch.float16, expected torch.float32"),
    "flat": (lambda s: {**s, "ctx_pos": s["ctx_pos"][0]}, r"shape \(1, 12, 64\), expected \(1, 1, \?, \?\)"),
    "wide": (lambda s: {**s, "compound_prompts_text.1": torch.zeros(4, 65)}, r"\(4, 65\), expected \(4, 64\)"),
    "long": (lambda s: {**s, "compound_prompts_text.1": torch.zeros(5, 64)}, r"\(5, 64\), expected \(4, 64\)"),
    "suffix": (lambda s: {**s, "token_suffix_pos": torch.zeros(1, 1, 63, 64)}, r"63, 64\), expected \(1, 1, 64, 64"),
    "words": (with_value("tokenized_prompts_neg", 320), "expected 'X X .. X damaged object.' with 12 placeholders"),
    "no_integers": (lambda s: {**s, "tokenized_prompts_neg": torch.zeros(1, 1, 77)}, "dtype torch.float32, exp"),
    "no_tensor": (edit(ctx_pos=[1.0, 2.0]), "ctx_pos is a list, expected a plain tensor"),
    "sparse": (lambda s: {**s, "ctx_pos": s["ctx_pos"].to_sparse()}, "expected a plain tensor"),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("name", CONTENTS)
def test_odd_contents_are_refused_with_a_reason(name, state, save):
    change, reason = CONTENTS[name]
    with pytest.raises(ValueError, match=reason):
        read_authors_checkpoint(save(change(dict(state))))


def test_contexts_of_different_lengths_are_refused(state, save):
    shorter = {**state, "ctx_neg": state["ctx_neg"][:, :, :11].clone()}
    with pytest.raises(ValueError, match=r"ctx_pos has shape \(1, 1, 12, 64\) but ctx_neg \(1, 1, 11, 64\)"):
        read_authors_checkpoint(save(shorter))


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, {"prompt_learner": 3}, torch.zeros(2)])
def test_other_containers_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"expected {'prompt_learner': ...}|expected a state dict"):
        read_authors_checkpoint(tmp_path / "x.pth")


def test_keys_beside_the_prompts_are_refused(state, tmp_path):
    torch.save({"prompt_learner": state, "optimizer": {}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"unknown keys \['optimizer'\]"):
        read_authors_checkpoint(tmp_path / "x.pth")
