"""Prompts without a text tower: equal to what they were folded from, learned apart, kept and refused like others."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from anomalyclip_hf import AnomalyCLIPConfig, AnomalyCLIPModel
from anomalyclip_hf.scoring.profiles import Profile
from anomalyclip_hf.scoring.rows import digest_model
from tiny_models import make_tiny_clip, randomize


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 42, 42, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def free(tiny_model):
    """Free prompts of random values on the backbone of `tiny_model`."""
    model = tiny_model.to_free_prompts()
    randomize(model.prompt_learner, seed=7)
    return model


@torch.no_grad()
def results(model, pixels):
    output = model(pixels, return_dict=True)
    return torch.cat([output.logits.softmax(-1).flatten(), output.similarity_maps.flatten()])


def close(one, other, atol=1e-5):
    return torch.allclose(one, other, rtol=0, atol=atol)


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.prompt_learner.named_parameters()}


def has_text(model):
    return any(name.startswith(("text_", "logit_scale")) for name in model.state_dict())


@pytest.mark.parametrize("way", ["to_free_prompts", "from_full", "from_prompts", "from_folded"])
def test_folded_text_prompts_give_the_same_results(tiny_model, pixels, tmp_path, way):
    tiny_model.config.image_threshold = 0.25
    if way == "to_free_prompts":
        free = tiny_model.to_free_prompts()
    else:
        save = {"from_full": tiny_model.save_pretrained, "from_prompts": tiny_model.save_prompts}
        save.get(way, tiny_model.to_vision_only().save_pretrained)(tmp_path)
        free = AnomalyCLIPModel.from_pretrained(tmp_path, prompt_type="free")
    assert free.config.prompt_type == "free" and not free.config.vision_only and not has_text(free)
    assert shapes(free) == {"image_vectors": (2, 16), "patch_vectors": (2, 2, 16)}
    assert close(results(free, pixels), results(tiny_model, pixels), 1e-6)
    assert free.config.image_threshold == 0.25
    lengths = torch.cat([value.norm(dim=-1).flatten() for value in free.prompt_learner.parameters()])
    assert close(lengths, torch.full((6,), 0.8))  # 0.2 x the root of 16, the expected length of a fresh one
    trainable = {name for name, parameter in free.named_parameters() if parameter.requires_grad}
    assert trainable == {"prompt_learner.image_vectors", "prompt_learner.patch_vectors"}


def test_what_each_vector_does(free, pixels):
    image, patches = free.encode_images(pixels)
    learner, output = free.prompt_learner, free(pixels)
    unit = nn.functional.normalize(learner.image_vectors, dim=-1)
    assert close(output.logits, image @ unit.T / 0.07) and close(output.text_embeds, unit)
    for layer in range(2):
        unit = nn.functional.normalize(learner.patch_vectors[layer], dim=-1)
        expected = (patches[:, layer] @ unit.T / 0.07).softmax(-1).mT.reshape(2, 2, 6, 6)
        expected = nn.functional.interpolate(expected, size=(42, 42), mode="bilinear", align_corners=False)
        assert close(output.similarity_maps[:, layer], expected)
    embeds = free.get_prompt_embeds()
    assert embeds.shape == (3, 2, 16) and close(embeds.norm(dim=-1), torch.ones(3, 2))
    assert torch.equal(free(pixels, text_embeds=embeds).logits, output.logits)
    with torch.no_grad():  # directions alone count
        learner.patch_vectors.mul_(3)
    assert close(free(pixels).similarity_maps, output.similarity_maps)
    with pytest.raises(ValueError, match=r"text_embeds has shape \(2, 16\).*give what get_prompt_embeds"):
        free(pixels, text_embeds=embeds[0])
    with pytest.raises(ValueError, match="are of 2 feature layers but patch_embeds of 1"):
        free(image_embeds=image, patch_embeds=patches[:, :1])


def test_each_loss_reaches_its_own_vectors_alone(free, pixels):
    masks = torch.zeros(2, 42, 42)
    masks[1, :20] = 1
    output = free(pixels, labels=torch.tensor([0, 1]), masks=masks)
    vectors = [free.prompt_learner.image_vectors, free.prompt_learner.patch_vectors]
    of_image = torch.autograd.grad(output.global_loss, vectors, retain_graph=True, allow_unused=True)
    of_pixels = torch.autograd.grad(output.local_loss, vectors, allow_unused=True, materialize_grads=True)
    assert of_image[0].norm() > 1e-3 and (of_image[1] is None or not of_image[1].any())
    assert not of_pixels[0].any() and of_pixels[1].flatten(1).norm(dim=1).min() > 1e-3


@pytest.mark.parametrize("full", [False, True])
def test_saved_and_loaded_without_a_text_tower(free, pixels, tmp_path, full):
    expected = results(free, pixels)
    (free.save_pretrained if full else free.save_prompts)(tmp_path)
    if not full:
        stored = load_file(tmp_path / "prompts.safetensors")
        assert {key: tuple(value.shape) for key, value in stored.items()} == {
            "prompt_learner.image_vectors": (2, 16),
            "prompt_learner.patch_vectors": (2, 2, 16),
        }
        assert (
            "two vectors of width 16 for the image and for each feature layer" in (tmp_path / "README.md").read_text()
        )
    loaded = AnomalyCLIPModel.from_pretrained(tmp_path)
    assert not has_text(loaded) and close(results(loaded, pixels), expected)
    processor = loaded.default_processor()
    digest = digest_model(loaded, processor)
    with torch.no_grad():
        loaded.prompt_learner.patch_vectors[1, 0, 3] += 1
    assert digest_model(loaded, processor) != digest
    half = AnomalyCLIPModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.prompt_learner.image_vectors.dtype == torch.float32
    with pytest.raises(ValueError, match=r"feature_layers=\[3\], but these free prompts were learned on \[2, 4\]"):
        AnomalyCLIPModel.from_pretrained(tmp_path, feature_layers=[3])
    with pytest.raises(ValueError, match="has free prompts, of which no text prompts can be made"):
        AnomalyCLIPModel.from_pretrained(tmp_path, prompt_type="text")


def test_a_clip_gets_fresh_ones_and_its_text_tower_is_not_loaded(tiny_clip_dir, pixels):
    torch.manual_seed(3)
    model = AnomalyCLIPModel.from_pretrained(tiny_clip_dir, prompt_type="free", image_size=42, feature_layers=[2, 4])
    assert not has_text(model) and shapes(model) == {"image_vectors": (2, 16), "patch_vectors": (2, 2, 16)}
    values = torch.cat([value.detach().flatten() for value in model.prompt_learner.parameters()])
    assert 0.1 < values.std() < 0.3 and torch.isfinite(results(model, pixels)).all()
    assert model.get_input_embeddings() is model.vision_model.embeddings.patch_embedding


def test_folded_ones_can_not_be_trained_until_they_are_free_again(free, pixels, tmp_path):
    expected = results(free, pixels)
    free.to_vision_only().save_pretrained(tmp_path)
    folded = AnomalyCLIPModel.from_pretrained(tmp_path)
    assert folded.folded_text_embeds.shape == (3, 2, 16) and close(results(folded, pixels), expected)
    with pytest.raises(ValueError, match="its prompts are folded and can't be trained"):
        folded(pixels, labels=torch.tensor([0, 1]))
    again = folded.to_free_prompts()
    assert close(results(again, pixels), expected)
    assert again(pixels, labels=torch.tensor([0, 1])).loss.requires_grad


def test_swapped_with_text_prompts_on_a_model_with_a_text_tower(tiny_model, free, pixels, tmp_path):
    of_text, of_free = results(tiny_model, pixels), results(free, pixels)
    free.save_prompts(tmp_path / "free")
    tiny_model.add_prompts("own")
    tiny_model.add_prompts("free", tmp_path / "free")
    for name, expected, kind in (("free", of_free, "free"), ("own", of_text, "text"), ("free", of_free, "free")):
        tiny_model.set_prompts(name)
        assert close(results(tiny_model, pixels), expected) and tiny_model.config.prompt_type == kind
    tiny_model.save_pretrained(tmp_path / "full")  # with free prompts, and a text tower that is not read again
    assert close(results(AnomalyCLIPModel.from_pretrained(tmp_path / "full"), pixels), of_free)
    tiny_model.set_prompts("own")
    tiny_model.set_profile(Profile("free", prompts=free.get_prompts()))
    assert close(results(tiny_model, pixels), of_free)
    tiny_model.save_profiles(tmp_path / "profiles")
    tiny_model.set_profile(None)
    assert close(results(tiny_model, pixels), of_text)
    stored = AnomalyCLIPModel.from_pretrained(tmp_path / "profiles" / "profiles" / "free")
    assert close(results(stored, pixels), of_free)


def test_refused(tiny_model, free, pixels, tmp_path):
    tiny_model.save_prompts(tmp_path / "text")
    with pytest.raises(ValueError, match=r"read by a text tower, and this model \(prompt_type='free'\) has none"):
        free.load_prompts(tmp_path / "text")
    make_tiny_clip(seed=4).save_pretrained(tmp_path / "other")
    fields = {"image_size": 42, "feature_layers": [2, 4]}
    for kind in ("text", "free"):
        other = AnomalyCLIPModel.from_pretrained(tmp_path / "other", prompt_type=kind, **fields)
        with pytest.raises(ValueError, match=r"backbone '.*tiny_clip.*', but this one is '.*other'.*weights differ"):
            other.load_prompts(free.get_prompts())
    with pytest.raises(ValueError, match="prompt_type='words', expected one of"):
        AnomalyCLIPConfig(prompt_type="words")


def test_damaged_files_are_named(free, tmp_path):
    free.save_prompts(tmp_path)
    stored = load_file(tmp_path / "prompts.safetensors")
    wrong = {**stored, "prompt_learner.patch_vectors": stored["prompt_learner.patch_vectors"][:1].clone()}
    save_file(wrong, tmp_path / "prompts.safetensors")
    with pytest.raises(ValueError, match=r"patch_vectors has shape \(1, 2, 16\).*feature_layers=\[2, 4\]"):
        AnomalyCLIPModel.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "prompt_type": "text"}))
    with pytest.raises(ValueError, match=r"lacks prompt_learner\.context"):
        AnomalyCLIPModel.from_pretrained(tmp_path)
