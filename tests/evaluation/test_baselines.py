import pytest
import torch

from anomalyclip_hf import AnomalyCLIPModel
from anomalyclip_hf.evaluation.baselines import (
    BASELINES,
    SENTENCES,
    MethodScorer,
    all_ablations,
    encode_sentences,
    load_tokenizer,
    parse_methods,
    resolve_methods,
    sentences_of,
)
from tiny_models import make_tiny_clip, randomize
from word_tokenizer import make_tokenizer


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 42, 42, generator=torch.Generator().manual_seed(3))


def test_sentences_are_encoded_as_clip_does(tiny_model, tokenizer):
    sentences = ["a photo of a normal bottle.", "an anomalous metal nut", "object"]
    clip = make_tiny_clip()
    tokens = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = clip.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
    expected = getattr(expected, "pooler_output", expected)
    expected = torch.nn.functional.normalize(expected, dim=-1)
    torch.testing.assert_close(encode_sentences(tiny_model, tokenizer, sentences), expected, atol=1e-5, rtol=1e-5)


def test_clip_baseline_is_clip(tiny_model, tokenizer, pixels):
    clip = make_tiny_clip()
    scorer = MethodScorer(tiny_model, ["clip"], tokenizer)
    found = scorer.score(pixels, "metal_nut")["clip"]
    tokens = tokenizer(["a photo of a normal metal nut.", "a photo of an anomalous metal nut."], return_tensors="pt")
    # At its own size CLIP resizes nothing, so that it is the reference of image and patches.
    native = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(4))
    tiny_model.config.image_size = 28
    at_native = scorer.score(native, "metal_nut")["clip"]
    with torch.no_grad():
        expected = clip(
            pixel_values=native, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).logits_per_image
        states = clip.vision_model(native).last_hidden_state[:, 1:]
        patches = clip.visual_projection(clip.vision_model.post_layernorm(states))
        texts = clip.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        texts = torch.nn.functional.normalize(getattr(texts, "pooler_output", texts), dim=-1)
    expected = expected / clip.logit_scale.exp() / tiny_model.config.temperature
    torch.testing.assert_close(at_native["logits"], expected, atol=1e-4, rtol=1e-4)
    similarity = (torch.nn.functional.normalize(patches, dim=-1) @ texts.T / 0.07).softmax(-1)[..., 1].view(2, 1, 4, 4)
    maps = torch.nn.functional.interpolate(similarity, size=(28, 28), mode="bilinear")[:, 0]
    torch.testing.assert_close(at_native["anomaly_maps"], maps, atol=1e-4, rtol=1e-4)
    assert found["anomaly_maps"].shape == (3, 42, 42)


def test_learned_prompts_are_scored_as_the_model_does(tiny_model, tokenizer, pixels):
    names = ["anomalyclip", *BASELINES, *all_ablations(tiny_model)]
    found = MethodScorer(tiny_model, names, tokenizer).score(pixels, "bottle")
    assert list(found) == names
    for name, output in found.items():
        config = tiny_model.config
        before = (config.dpam_layers, config.dpam_attention, config.feature_layers)
        if name.startswith("dpam="):
            value = name.removeprefix("dpam=")
            config.dpam_layers, config.dpam_attention = (0, "vv") if value == "off" else (config.dpam_layers, value)
        elif name == "layers=released":
            config.feature_layers = [4]
        elif name == "layers=paper":
            config.feature_layers = [1, 2, 3, 4]
        elif name != "anomalyclip":
            continue
        with torch.no_grad():
            expected = tiny_model(pixels)
        config.dpam_layers, config.dpam_attention, config.feature_layers = before
        torch.testing.assert_close(output["logits"], expected.logits, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(output["anomaly_maps"], expected.anomaly_maps, atol=1e-5, rtol=1e-5)
    maps = torch.stack([output["anomaly_maps"] for output in found.values()])
    distance = (maps[:, None] - maps[None]).abs().amax(dim=(2, 3, 4)) + torch.eye(len(names))
    assert distance.min() > 1e-3  # each of them is something else


def test_deep_prompts_off_is_a_model_of_depth_one(tiny_model, tiny_clip_dir, pixels):
    shallow = AnomalyCLIPModel.from_pretrained(
        tiny_clip_dir, image_size=42, feature_layers=[2, 4], prompt_length=5, deep_prompt_depth=1
    )
    with torch.no_grad():
        shallow.prompt_learner.context.copy_(tiny_model.prompt_learner.context)
        expected = shallow.eval()(pixels)
    found = MethodScorer(tiny_model, ["deep_prompts=off"]).score(pixels)["deep_prompts=off"]
    torch.testing.assert_close(found["logits"], expected.logits, atol=1e-5, rtol=1e-5)


def test_one_vision_pass_serves_all_texts_of_a_setting(tiny_model, tokenizer, pixels, monkeypatch):
    passes = []
    forward = type(tiny_model.vision_model).forward
    monkeypatch.setattr(
        type(tiny_model.vision_model), "forward", lambda *args, **kwargs: passes.append(1) or forward(*args, **kwargs)
    )
    names = ["anomalyclip", *BASELINES, "dpam=off", "dpam=qq", "deep_prompts=off", "layers=2"]
    MethodScorer(tiny_model, names, tokenizer).score(pixels, "bottle")
    assert len(passes) == 3  # vv, off, qq


def test_sentences_name_the_class():
    assert sentences_of("plain", "metal_nut") == (
        ["a photo of a normal metal nut."],
        ["a photo of an anomalous metal nut."],
    )
    assert sentences_of("plain", "01")[0] == ["a photo of a normal object."]
    normal, anomalous = sentences_of("templates", "cable")
    assert len(normal) == len(anomalous) == len(set(normal)) == 18
    assert (
        "a close-up photo of the anomalous cable." in anomalous and "a bad photo of an anomalous cable." in anomalous
    )
    normal, anomalous = sentences_of("states", "cable")
    assert len(normal) == len(set(normal)) == 18 * 6 and "a photo of a cable with damage." in anomalous
    assert not set(normal) & set(anomalous) and set(SENTENCES) == {one.sentences for one in BASELINES.values()}


def test_ablations_of_the_command_line(tiny_model):
    parsed = parse_methods(["dpam=off", "qq", "kk", "layers=1,3", "layers=paper", "deep_prompts=off"], tiny_model)
    assert parsed == ["dpam=off", "dpam=qq", "dpam=kk", "layers=1,3", "layers=paper", "deep_prompts=off"]
    assert parse_methods(["off,vv"], tiny_model) == ["dpam=off", "dpam=vv"]
    everything = ["dpam=off", "dpam=qq", "dpam=kk", "layers=released", "layers=paper", "deep_prompts=off"]
    assert parse_methods(["ablations"], tiny_model) == all_ablations(tiny_model) == everything
    line = ["anomalyclip", "score=max", "mean", "references=1,4", "16", "mutual", "baselines", "clip"]
    names = ["anomalyclip", "score=max", "score=mean", "references=1", "references=4", "references=16", "mutual"]
    assert parse_methods(line, tiny_model) == [*names, *BASELINES]
    assert parse_methods(["anomalyclip", "helps"], tiny_model) == names
    assert resolve_methods(names, tiny_model)["references=16"].title == "16 references, not judged"
    assert resolve_methods(["layers=3,1"], tiny_model)["layers=3,1"].layers == (1, 3)


@pytest.mark.parametrize(
    "name",
    [
        "dpam=xx",
        "layers=9",
        "layers=a",
        "score=min",
        "references=0",
        "references=33",
        "deep_prompts=on",
        "clipp",
        "layers=",
        "dpam",
    ],
)
def test_unknown_methods_are_named(tiny_model, name):
    with pytest.raises(ValueError, match=name):
        resolve_methods(["anomalyclip", name], tiny_model)
    with pytest.raises(ValueError, match="mutual can't be the first"):
        resolve_methods(["mutual", "anomalyclip"], tiny_model)
    with pytest.raises(ValueError, match="each once"):
        resolve_methods(["clip", "clip"], tiny_model)


def test_the_tokenizer_is_found_beside_the_model_or_asked_for(tiny_model, tiny_clip_dir, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"no tokenizer was found in .*leave the baselines out"):
        MethodScorer(tiny_model, ["clip"])
    tokenizer.save_pretrained(tmp_path)
    tiny_model.config.base_model_name_or_path = str(tmp_path)
    assert load_tokenizer(tiny_model)("photo").input_ids == tokenizer("photo").input_ids
    tokenizer.add_tokens([f"word{number}" for number in range(9)])
    with pytest.raises(ValueError, match="knows 99 tokens"):
        encode_sentences(tiny_model, tokenizer, ["word8"])


def test_vision_only_models_have_no_baselines(tiny_model, tokenizer, pixels):
    folded = tiny_model.to_vision_only()
    with pytest.raises(ValueError, match="vision-only"):
        MethodScorer(folded, ["clip"], tokenizer)
    expected = MethodScorer(tiny_model, ["anomalyclip"]).score(pixels)["anomalyclip"]["anomaly_maps"]
    found = MethodScorer(folded, ["anomalyclip", "dpam=off"]).score(pixels)
    torch.testing.assert_close(found["anomalyclip"]["anomaly_maps"], expected)
    assert "deep_prompts=off" not in all_ablations(folded)


def test_free_prompts_are_judged_on_their_own_layers_and_without_words(tiny_model, tokenizer, pixels):
    free = tiny_model.to_free_prompts()
    randomize(free.prompt_learner, seed=3)
    with torch.no_grad():
        expected = free(pixels)
    found = MethodScorer(free, ["anomalyclip", "dpam=off"]).score(pixels)["anomalyclip"]
    torch.testing.assert_close(found["logits"], expected.logits)
    torch.testing.assert_close(found["anomaly_maps"], expected.anomaly_maps)
    with pytest.raises(ValueError, match="clip need the text tower but this model is one of prompt_type='free'"):
        MethodScorer(free, ["clip"], tokenizer)
    with pytest.raises(ValueError, match=r"layers=4: free prompts have vectors for the layers \[2, 4\] alone"):
        MethodScorer(free, ["layers=4"])
    assert all(name.startswith("dpam=") for name in all_ablations(free))
    tiny_model.load_prompts(free.get_prompts())  # which leaves the text tower
    assert MethodScorer(tiny_model, ["clip"], tokenizer).score(pixels, "bottle")["clip"]["logits"].shape == (
        len(pixels),
        2,
    )
    with pytest.raises(ValueError, match="deep_prompts=off need the text tower"):
        MethodScorer(tiny_model, ["deep_prompts=off"])


def test_bfloat16_models_are_scored_close_to_float32(tiny_model, tokenizer, pixels):
    expected = MethodScorer(tiny_model, ["anomalyclip", "clip"], tokenizer).score(pixels, "bottle")
    found = MethodScorer(tiny_model.to(torch.bfloat16), ["anomalyclip", "clip"], tokenizer).score(pixels, "bottle")
    for name in expected:
        assert found[name]["anomaly_maps"].dtype == torch.float32
        assert (found[name]["anomaly_maps"] - expected[name]["anomaly_maps"]).abs().mean() < 0.05
