"""References: distances by their definition, what they leave alone, and what is refused."""

import datasets
import numpy as np
import pytest
import torch
from torch import nn

from anomalyclip_hf import ZeroShotAnomalyDetectionPipeline
from anomalyclip_hf.scoring.profiles import Profile
from anomalyclip_hf.sharing.references import (
    NEIGHBOURHOODS,
    References,
    choose_patches,
    default_layers,
    describe_patches,
    distance_of_images,
    distance_to,
)


@pytest.fixture
def pixels():
    return torch.randn(4, 3, 42, 42, generator=torch.Generator().manual_seed(0))


def run(model, pixels):
    with torch.no_grad():
        return model(pixels)


def test_distances_are_0_for_a_reference_and_half_for_an_orthogonal_patch():
    bank = torch.eye(6)[:3]
    patches = torch.stack([bank[1], torch.eye(6)[5], -bank[0] - bank[1] - bank[2], bank[0] + bank[1]])
    expected = torch.tensor([0.0, 0.5, (1 + 3**-0.5) / 2, (1 - 2**-0.5) / 2])
    torch.testing.assert_close(distance_to(nn.functional.normalize(patches, dim=-1), bank), expected)


def test_neighbours_are_averaged_over_patches_that_exist():
    states = torch.arange(12.0).view(1, 6, 2) + 1.0  # a class token, then 5 patches
    one, three = describe_patches({2: states}, [2], (1, 5))
    torch.testing.assert_close(one, nn.functional.normalize(states[:, 1:], dim=-1))
    corner, middle = states[0, 1:3].mean(0), states[0, 2:5].mean(0)
    torch.testing.assert_close(three[0, 0], nn.functional.normalize(corner, dim=-1))
    torch.testing.assert_close(three[0, 2], nn.functional.normalize(middle, dim=-1))


def test_maps_and_scores_are_blended_and_all_else_stays(tiny_model, pixels):
    plain = run(tiny_model, pixels)
    tiny_model.set_references(pixels[:2], reference_weight=0.25)
    found = run(tiny_model, pixels)
    for name in plain:
        assert name == "anomaly_maps" or torch.equal(found[name], plain[name])
    distances = found.reference_maps
    assert distances[:2].max() < 1e-6 < 1e-3 < distances[2:].amax(dim=(1, 2)).min() and distances.max() <= 1
    torch.testing.assert_close(found.anomaly_maps, (distances + 0.25 * plain.anomaly_maps) / 1.25)
    own = plain.logits.softmax(-1)[:, 1]
    torch.testing.assert_close(found.reference_scores[:2], 0.25 * own[:2] / 1.25, atol=1e-6, rtol=0)
    kept = dict.fromkeys(tiny_model.references.layers)
    tiny_model.encode_images(pixels, kept_states=kept)
    alone = slice(NEIGHBOURHOODS.index(1), None, len(NEIGHBOURHOODS))
    single = describe_patches(kept, list(kept), (6, 6))[alone]
    banks = describe_patches({layer: states[:2] for layer, states in kept.items()}, list(kept), (6, 6))[alone]
    far = [distance_to(one, bank.flatten(0, 1)) for one, bank in zip(single, banks, strict=True)]
    highest = torch.stack(far).mean(dim=0).amax(dim=1)  # one of 36 patches, none left out
    torch.testing.assert_close(found.reference_scores, (highest + 0.25 * own) / 1.25, atol=1e-4, rtol=0)
    tiny_model.set_references(None)
    assert torch.equal(run(tiny_model, pixels).anomaly_maps, plain.anomaly_maps)


def test_an_image_is_as_far_as_its_farthest_patches_away_from_the_border():
    distances = torch.full((2, 20, 40), 0.9)
    distances[:, 1:-1, 2:-2] = 0.1
    assert distance_of_images(distances).tolist() == pytest.approx([0.1, 0.1])
    distances[1, 1, 2:10] = 0.5  # 8 of the 16 that count
    assert distance_of_images(distances).tolist() == pytest.approx([0.1, 0.3])
    assert distance_of_images(torch.tensor([[[0.2, 0.7], [0.1, 0.3]]])).tolist() == pytest.approx([0.7])


def test_order_chunks_and_input_size_change_nothing(tiny_model, pixels, monkeypatch):
    tiny_model.set_references(pixels[:3])
    expected = run(tiny_model, pixels)
    monkeypatch.setattr("anomalyclip_hf.sharing.references.SIMILARITIES", 1)
    tiny_model.set_references(pixels[[2, 0, 1]], batch_size=1)
    found = run(tiny_model, pixels)
    torch.testing.assert_close(found.reference_maps, expected.reference_maps, atol=1e-6, rtol=0)
    assert run(tiny_model, torch.randn(1, 3, 28, 56)).reference_maps.shape == (1, 28, 56)


def test_a_core_of_patches_covers_the_others():
    features = nn.functional.normalize(torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    repeated = features.repeat(1, 3, 1)
    core = choose_patches(repeated, 50)
    assert core.shape == (2, 50, 8) and all(
        distance_to(one, kept).max() < 1e-6 for one, kept in zip(repeated, core, strict=True)
    )
    assert choose_patches(features, 60) is features


def test_more_patches_than_are_held_are_thinned_evenly(tiny_model, pixels, monkeypatch):
    every = tiny_model.make_references(pixels, batch_size=1)
    monkeypatch.setattr("anomalyclip_hf.sharing.references.MAX_PATCHES", every.features.shape[1] // 4)
    for size in (1, len(pixels)):
        fourth = tiny_model.make_references(pixels, batch_size=size)
        torch.testing.assert_close(fourth.features, every.features[:, ::4], atol=1e-3, rtol=0)
    torch.testing.assert_close(
        tiny_model.make_references(pixels, max_patches=10**6).features, every.features, atol=1e-3, rtol=0
    )
    assert repr(every) == f"References(num_images={len(pixels)}, layers={every.layers}, weight=0.1)"


def test_references_are_saved_and_read_exactly(tiny_model, pixels, tmp_path):
    tiny_model.set_references(pixels[:2], reference_weight=0.5, max_patches=20)
    expected = run(tiny_model, pixels).anomaly_maps
    tiny_model.save_references(tmp_path / "sub" / "good.safetensors")
    tiny_model.set_references(None)
    tiny_model.set_references(tmp_path / "sub" / "good.safetensors")
    assert tiny_model.references.features.shape[1] == 20 and tiny_model.references.num_images == 2
    assert torch.equal(run(tiny_model, pixels).anomaly_maps, expected)
    folded = tiny_model.to_vision_only()
    folded.set_references(tmp_path / "sub" / "good.safetensors")
    torch.testing.assert_close(run(folded, pixels).anomaly_maps, expected)
    with torch.no_grad():
        tiny_model.visual_projection.weight.add_(1.0)
    with pytest.raises(ValueError, match="another backbone"):
        tiny_model.set_references(tmp_path / "sub" / "good.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "sub" / "good.safetensors").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"cut\.safetensors holds no references"):
        tiny_model.set_references(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        ([], {}, "0 references, expected 1 to 32"),
        (torch.zeros(33, 3, 42, 42), {}, "33 references"),
        (torch.zeros(1, 3, 42, 42), {"reference_weight": -1}, "reference_weight=-1"),
        (torch.zeros(1, 3, 42, 42), {"max_patches": 0}, "max_patches=0"),
        (torch.full((1, 3, 42, 42), float("nan")), {}, "not finite"),
        (["missing.png"], {}, r"missing\.png"),
    ],
)
def test_what_is_no_reference_is_refused(tiny_model, images, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.set_references(images, **settings)
    assert tiny_model.references is None


def test_layers_are_the_configurations_or_scaled(tiny_model, pixels):
    assert default_layers(9) == [4, 6, 8] and default_layers(24) == [11, 16, 21] and default_layers(1) == [1]
    tiny_model.config.reference_layers = [4]
    plain = run(tiny_model, pixels)
    tiny_model.set_references(pixels[:1])
    found = run(tiny_model, pixels)
    assert tiny_model.references.layers == (4,) and found.reference_maps[0].max() < 1e-6
    torch.testing.assert_close(found.logits, plain.logits)


def test_the_pipeline_takes_a_folder_and_gives_blended_scores(tiny_model, tiny_processor, make_image, tmp_path):
    images = [make_image(seed=seed) for seed in range(3)]
    images[0].save(tmp_path / "good.png")
    shared = {"model": tiny_model, "image_processor": tiny_processor, "device": "cpu"}
    detector = ZeroShotAnomalyDetectionPipeline(**shared, references=str(tmp_path), reference_weight=0.0)
    good, other, third = detector(images, batch_size=2)
    assert good["score"] < 1e-6 < 1e-3 < min(other["score"], third["score"]) and tiny_model.references is None
    assert detector(images[1], references=[images[1]], reference_weight=0.0)["score"] < 1e-6
    assert ZeroShotAnomalyDetectionPipeline(**shared)(images[1])["score"] > 0.1
    with pytest.raises(ValueError, match="without references"):
        ZeroShotAnomalyDetectionPipeline(**shared)(images[1], reference_weight=0.1)


@pytest.mark.parametrize("kind", ["generator", "column", "stack", "planes", "prepared"])
def test_references_of_every_kind_that_the_pipeline_takes(tiny_model, tiny_processor, make_image, kind):
    images = [make_image(42, 42, seed=seed) for seed in range(2)]
    stack = np.stack([np.asarray(image) for image in images])
    given = {
        "generator": (image for image in images),
        "column": datasets.Dataset.from_dict({"image": images}, datasets.Features(image=datasets.Image()))["image"],
        "stack": stack,
        "planes": torch.from_numpy(stack).permute(0, 3, 1, 2),
        "prepared": tiny_processor(images, return_tensors="pt")["pixel_values"],
    }[kind]
    found = tiny_model.make_references(given, processor=tiny_processor)
    assert found.num_images == 2
    assert torch.equal(found.features, tiny_model.make_references(images, processor=tiny_processor).features)


def test_references_are_read_as_the_images_that_are_compared_with_them(tiny_model, tiny_processor):
    deep = np.random.default_rng(0).integers(0, 3000, (48, 60)).astype(np.uint16)
    window, planes = (500, 2000), np.stack([deep] * 5)
    detector = ZeroShotAnomalyDetectionPipeline(model=tiny_model, image_processor=tiny_processor, device="cpu")
    apart = {"references": [deep], "reference_weight": 0.0}
    assert detector(deep, window=window, **apart)["score"] < 1e-6
    assert detector(planes, channels=(4, 2, 0), **apart | {"references": [planes]})["score"] < 1e-6
    tiny_model.set_profile(Profile("scan", window=window, references=[deep], reference_weight=0.0))
    assert detector(deep)["score"] < 1e-6
    assert detector(deep, window=(0, 4095))["score"] > 1e-4


@pytest.mark.parametrize(("rule", "expected"), [("global", 0.25), ("max", 0.75), ("mean", (0.25 + 0.75) / 2)])
def test_rules_of_scores(tiny_processor, rule, expected):
    logits = torch.tensor([[0.0, 0.0]]) + torch.tensor([0.0, torch.tensor(1 / 3).log()])
    maps = torch.full((1, 20, 20), 0.5)
    maps[0, 0, :4] = 0.75  # one per cent
    output = {"logits": logits, "anomaly_maps": maps}
    (found,) = tiny_processor.post_process_anomaly_detection(output, sigma=0, score_rule=rule)
    assert found["score"] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="score_rule='best'"):
        tiny_processor.post_process_anomaly_detection(output, score_rule="best")


def test_stored_thresholds_serve_the_score_they_were_chosen_for(tiny_model, tiny_processor, make_image):
    from anomalyclip_hf.scoring.thresholds import calibrate

    good = [make_image(seed=seed) for seed in range(3)]
    detector = ZeroShotAnomalyDetectionPipeline(model=tiny_model, image_processor=tiny_processor, device="cpu")
    tiny_model.config.image_threshold = tiny_model.config.pixel_threshold = 0.5
    assert "label" in detector(good[0])
    assert {"score", "anomaly_map", "mask", "regions"} == set(detector(good[0], score_rule="max"))
    assert {"score", "anomaly_map"} == set(detector(good[0], references=good[:1]))
    tiny_model.set_references(good[:2])
    tiny_model.config.score_rule = "max"
    with pytest.warns(UserWarning, match="too few"):
        calibrate(tiny_model, tiny_processor, good, show_progress=False)
    assert tiny_model.config.thresholds_for == "max with references"
    assert {"label", "mask"} <= set(detector(good[0]))
    tiny_model.set_references(None)
    assert not {"label", "mask"} & set(detector(good[0]))
    stored = {**tiny_model.config.to_dict(), "thresholds_for": None, "score_rule": "global"}
    assert type(tiny_model.config).from_dict(stored, score_rule="mean").thresholds_for == "global"


def test_references_compile(tiny_model, pixels):
    tiny_model.set_references(pixels[:1])
    texts, expected = tiny_model.get_prompt_embeds(), run(tiny_model, pixels)
    with torch.no_grad():
        compiled = torch.compile(tiny_model, fullgraph=True, backend="eager")(pixels, text_embeds=texts)
    torch.testing.assert_close(compiled.reference_scores, expected.reference_scores)
    assert isinstance(tiny_model.references, References)


@pytest.mark.parametrize("resizing", [{"resize": "square"}, {"resize": "fit"}, {"resize": "tile", "tile_size": 40}])
def test_a_reference_is_known_however_it_is_resized(tiny_model, tiny_processor, make_image, resizing):
    images = [make_image(*size, seed=seed) for seed, size in enumerate([(90, 60), (64, 64), (30, 20)])]
    detector = ZeroShotAnomalyDetectionPipeline(model=tiny_model, image_processor=tiny_processor)
    given = {"references": images, "reference_weight": 0, **resizing}
    found = detector([*images, make_image(90, 60, seed=9)], **given)
    assert max(one["score"] for one in found[:3]) < 1e-3 < found[3]["score"]
    assert max(one["anomaly_map"].max() for one in found[:3]) < 1e-3
