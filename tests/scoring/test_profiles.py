"""Profiles: settings of products beside the prompts, what they change, and what is refused."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from anomalyclip_hf import AnomalyCLIPModel, ZeroShotAnomalyDetectionPipeline, load_anomaly_dataset
from anomalyclip_hf.evaluation import evaluate_model
from anomalyclip_hf.scoring import calibrate
from anomalyclip_hf.scoring.profiles import Profile, profile_names, read_profile
from anomalyclip_hf.scoring.regions import find_regions
from tiny_models import randomize

POLYGON = [[0.0, 0.0], [25.0, 0.0], [25.0, 40.0], [0.0, 40.0]]


@pytest.fixture
def checkpoint(tiny_model, tiny_processor, tmp_path):
    """A folder of prompts with thresholds of their own, without profiles."""
    tiny_model.config.image_threshold, tiny_model.config.pixel_threshold = 0.4, 0.9
    tiny_model.save_prompts(tmp_path / "checkpoint", tiny_processor, card=False)
    return tmp_path / "checkpoint"


@pytest.fixture
def model(checkpoint):
    return AnomalyCLIPModel.from_pretrained(checkpoint)


@pytest.fixture
def other_prompts(tiny_model):
    """Other prompts of the same backbone, with thresholds of their own."""
    randomize(tiny_model.prompt_learner, seed=9)
    tiny_model.config.image_threshold, tiny_model.config.pixel_threshold = 0.6, 0.7
    return tiny_model.get_prompts()


def write_json(folder, name: str, /, **fields) -> None:
    path = Path(folder, "profiles", f"{name}.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(fields))


def embeds(model) -> torch.Tensor:
    return model.get_prompt_embeds().detach().clone()


def test_a_profile_comes_back_as_it_was_written(checkpoint, model):
    fields = {"image_threshold": 0.25, "pixel_threshold": 0.5, "sigma": 2.0, "min_area": 9, "roi": POLYGON}
    fields |= {"window": [0, 4095], "channels": [2, 1, 0], "resize": "tile", "tile_size": 512, "overlap": 0.25}
    fields |= {"score_rule": "max", "reference_weight": 0.2, "calibration": {"method": "normal", "num_images": 60}}
    Profile("bottle", **fields).save(checkpoint)
    assert json.loads((checkpoint / "profiles" / "bottle.json").read_text()) == {"name": "bottle", **fields}
    assert read_profile("bottle", str(checkpoint)) == Profile("bottle", **fields)
    options = {k: v for k, v in fields.items() if k not in ("calibration", "reference_weight")}
    assert model.get_profile("bottle").options == {**options, "window": (0, 4095), "channels": (2, 1, 0)}
    Profile("cap", window="percentile").save(checkpoint)
    assert model.profile_names == profile_names(str(checkpoint)) == ["bottle", "cap"]
    assert sorted(path.name for path in (checkpoint / "profiles").iterdir()) == ["bottle.json", "cap.json"]


def test_numbers_of_numpy_are_written(checkpoint):
    values = np.array([0.25, 0.5], np.float32)
    Profile("bottle", pixel_threshold=np.quantile(values, 0.5), sigma=values[1], min_area=np.int64(9)).save(checkpoint)
    stored = read_profile("bottle", str(checkpoint))
    assert (stored.pixel_threshold, stored.sigma, stored.min_area) == (0.375, 0.5, 9)


def test_a_calls_resize_ends_the_tiles_of_a_profile(model, make_image):
    detector, image = pipeline("zero-shot-anomaly-detection", model=model), make_image(60, 80)
    expected = detector(image, resize="square")
    model.set_profile(Profile("bottle", resize="tile", tile_size=42, overlap=0.5))
    assert detector(image)["score"] != expected["score"] == detector(image, resize="square")["score"]


def test_the_pipeline_judges_by_the_profile_that_is_set(checkpoint, model, make_image):
    detector, image = pipeline("zero-shot-anomaly-detection", model=model), make_image(50, 40)
    plain = detector(image, sigma=4.0)
    values, score = plain["anomaly_map"], plain["score"]
    low, high = (float(np.quantile(values, share)) for share in (0.5, 0.9))
    write_json(checkpoint, "strict", pixel_threshold=low, image_threshold=score, min_area=2, roi=POLYGON)
    write_json(checkpoint, "loose", pixel_threshold=high, image_threshold=min(score + 1e-3, 1.0))
    model.set_profile("strict")
    strict = detector(image)
    assert strict["label"] == "anomalous" and strict["score"] == score
    assert strict["regions"] == find_regions(values, low, 2, POLYGON) and not strict["mask"][:, 25:].any()
    # What a call says goes before the profile, and what the pipeline was made with too.
    given = detector(image, pixel_threshold=high, roi=np.ones((40, 50), bool), image_threshold=1.0)
    assert given["label"] == "normal" and given["regions"] == find_regions(values, high, 2)
    made = pipeline("zero-shot-anomaly-detection", model=model, pixel_threshold=high)
    assert made(image)["regions"] == find_regions(values, high, 2, POLYGON)
    model.set_profile("loose")
    loose = detector(image)
    assert loose["label"] == "normal" and loose["regions"] == find_regions(values, high)
    model.set_profile(None)
    own = detector(image)
    assert own["label"] == ("anomalous" if score >= 0.4 else "normal")
    np.testing.assert_array_equal(own["mask"], values >= 0.9)
    assert made(image)["regions"] == find_regions(values, high)


def test_prompts_of_a_profile_come_and_go(checkpoint, model, other_prompts, tmp_path):
    own = embeds(model)
    model.add_prompts("learned on bottles", other_prompts)
    model.set_profile(Profile("bottle", prompts="learned on bottles"))
    others = embeds(model)
    assert not torch.allclose(own, others, atol=1e-3)
    assert (model.config.image_threshold, model.config.pixel_threshold) == (0.6, 0.7)
    model.set_profile(Profile("cap", image_threshold=0.1))
    assert torch.equal(embeds(model), own) and model.config.image_threshold == 0.4
    model.set_profile("bottle")
    model.set_profile(Profile("third", prompts=other_prompts))
    assert torch.equal(embeds(model), others)
    model.set_profile(None)
    assert torch.equal(embeds(model), own) and model.config.pixel_threshold == 0.9
    # Saved with what belongs to them, below the checkpoint; from another folder they are what they were.
    drawn = Image.new("L", (50, 40), 255)
    model.set_profile(Profile("masked", roi=drawn, prompts="learned on bottles"))
    model.set_profile(None)
    model.save_prompts(tmp_path / "copy", card=False)
    loaded = AnomalyCLIPModel.from_pretrained(tmp_path / "copy")
    assert loaded.profile_names == ["bottle", "cap", "masked", "third"]
    stored = json.loads((tmp_path / "copy" / "profiles" / "masked.json").read_text())
    assert stored == {"name": "masked", "prompts": "profiles/masked", "roi": "profiles/masked/roi.png"}
    loaded.set_profile("masked")
    assert torch.allclose(embeds(loaded), others, atol=1e-6) and loaded.profile.roi == drawn
    loaded.set_profile("cap")
    assert torch.allclose(embeds(loaded), own, atol=1e-6) and loaded.profile.image_threshold == 0.1
    # Prompts that the user puts on meanwhile are the model's own.
    loaded.set_profile("masked")
    loaded.load_prompts(model.get_prompts())
    loaded.set_profile(None)
    assert torch.allclose(embeds(loaded), own, atol=1e-6)
    loaded.save_pretrained(tmp_path / "full")
    full = AnomalyCLIPModel.from_pretrained(tmp_path / "full")
    full.set_profile("bottle")
    assert torch.allclose(embeds(full), others, atol=1e-6)
    folded = full.to_vision_only()
    assert folded.profile.name == "bottle" and folded.profile.prompts is None
    with pytest.raises(ValueError, match="this model is vision-only"):
        folded.set_profile("third")


def test_prompts_of_a_profile_are_not_saved_unsaid(model, other_prompts, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("anomalyclip_hf.scoring.profiles.logger.warning", said.append)
    model.set_profile(Profile("bottle", prompts=other_prompts))
    others = embeds(model)
    model.save_prompts(tmp_path / "with", card=False)
    assert len(said) == 1 and "profile bottle is set, so that its prompts are saved as the model's own" in said[0]
    assert torch.allclose(embeds(AnomalyCLIPModel.from_pretrained(tmp_path / "with")), others, atol=1e-6)
    model.set_profile(None)
    model.save_prompts(tmp_path / "without", card=False)
    assert len(said) == 1


def test_a_switch_takes_less_than_a_millisecond(model, other_prompts):
    model.set_profile(Profile("bottle", prompts=other_prompts, image_threshold=0.5))
    model.set_profile(Profile("cap", image_threshold=0.1))
    times = []
    for _ in range(50):
        for name in ("bottle", "cap"):
            start = time.perf_counter()
            model.set_profile(name)
            times.append(time.perf_counter() - start)
    assert sorted(times)[10] < 1e-3  # of the quick ones: the machine may be busy


def test_references_of_a_profile_are_features_made_once(checkpoint, model, monkeypatch, tmp_path):
    (checkpoint / "good.png").write_bytes(b"")
    Image.new("RGB", (80, 80), (90, 40, 10)).save(checkpoint / "good.png")
    write_json(checkpoint, "bottle", references="good.png", reference_weight=0.5)
    model.set_profile("bottle")
    features = model.references.features
    assert (model.references.num_images, model.references.weight) == (1, 0.5)
    model.set_profile(None)
    assert model.references is None
    model.save_profiles(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "profiles" / "bottle.json").read_text()) == {
        "name": "bottle",
        "references": "profiles/bottle/references.safetensors",
        "reference_weight": 0.5,
    }
    monkeypatch.setattr(AnomalyCLIPModel, "encode_images", None)  # images are read no more
    model.set_profile("bottle")
    assert model.references.features is features
    stored = read_profile("bottle", str(tmp_path / "copy"))
    assert torch.equal(model.make_references(stored.references).features, features)


def test_an_unknown_profile_names_the_known_ones(checkpoint, model):
    with pytest.raises(ValueError, match=r"has no profile 'bottle'; known are: none"):
        model.set_profile("bottle")
    write_json(checkpoint, "cap", image_threshold=0.5)
    write_json(checkpoint, "lid", image_threshold=0.5)
    with pytest.raises(ValueError, match=r"checkpoint has no profile 'bottle'; known are: cap, lid"):
        model.set_profile("bottle")
    assert model.profile is None


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a\\b", ".hidden", "a b", "x" * 65, "ü", 3, None, "a\n"])
def test_names_are_plain(name, tmp_path):
    with pytest.raises(ValueError, match=r"profile=.*expected a name of letters"):
        Profile(name)
    with pytest.raises(ValueError, match=r"profile=.*expected a name of letters"):
        read_profile(name, str(tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_threshold": 1.5}, r"profile bad: image_threshold=1.5, expected a score in \[0, 1\]"),
        ({"pixel_threshold": "high"}, "profile bad: pixel_threshold='high'"),
        ({"min_area": 0}, "profile bad: min_area=0"),
        ({"min_area": True}, "profile bad: min_area=True"),
        ({"roi": [[0, 0], [1, 1]]}, "roi=.*three or more"),
        ({"roi": "gone.png"}, r"gone.png"),
        ({"window": [5, 5]}, "profile bad: window=.*low < high"),
        ({"window": "wide"}, "profile bad: window='wide'"),
        ({"channels": [0, 1]}, "profile bad: channels=.*three channels"),
        ({"resize": "squash"}, "profile bad: resize='squash'"),
        ({"tile_size": 0}, "profile bad: tile_size=0"),
        ({"overlap": 0.95}, "profile bad: overlap=0.95"),
        ({"score_rule": "median"}, "profile bad: score_rule='median'"),
        ({"sigma": -1}, "profile bad: sigma=-1"),
        ({"calibration": [1]}, "profile bad: calibration="),
        ({"references": "gone"}, "names gone, which isn't there"),
        ({"prompts": "gone"}, "names gone, which isn't there"),
        ({"prompts": 3}, "prompts=3, expected a path inside of the checkpoint"),
        ({"prompts": "../other"}, "prompts='../other', expected a path inside of the checkpoint"),
        ({"roi": "/etc/roi.png"}, "roi='/etc/roi.png', expected a path inside"),
        ({"references": "C:\\good"}, "references=.*expected a path inside"),
        ({"references": "outside"}, "references='outside' leads to .*, outside of the checkpoint"),
        ({"threshold": 0.5}, r"has the unknown fields \['threshold'\]; known are name, prompts, image_threshold"),
        ({"name": "good"}, "expected the fields of the profile named 'bad'"),
    ],
)
def test_bad_profiles_are_refused(fields, message, tmp_path):
    for folder in ("elsewhere", "checkpoint"):
        (tmp_path / folder).mkdir()
    (tmp_path / "checkpoint" / "outside").symlink_to(tmp_path / "elsewhere")
    write_json(tmp_path / "checkpoint", "bad", **fields)
    with pytest.raises((ValueError, OSError), match=message):
        read_profile("bad", str(tmp_path / "checkpoint"))


def test_a_profile_that_is_refused_changes_nothing(checkpoint, model):
    (checkpoint / "empty").mkdir()
    write_json(checkpoint, "bad", prompts="empty", image_threshold=0.5)
    before = embeds(model)
    with pytest.raises((ValueError, OSError), match="empty"):
        model.set_profile("bad")
    assert model.profile is None and torch.equal(embeds(model), before)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is no JSON"), ("[1]", "expected the fields"), ("", "is no JSON")]
)
def test_damaged_profiles_are_named(text, message, tmp_path):
    write_json(tmp_path, "bad")
    (tmp_path / "profiles" / "bad.json").write_text(text)
    with pytest.raises(ValueError, match=rf"profiles/bad.json of .*{message}"):
        read_profile("bad", str(tmp_path))


def test_a_damaged_profile_does_not_end_saving(checkpoint, model, tmp_path):
    write_json(checkpoint, "good", image_threshold=0.5)
    write_json(checkpoint, "bad", window=5)
    model.save_prompts(tmp_path / "copy", card=False)
    assert profile_names(str(tmp_path / "copy")) == ["good"]


def test_calibration_is_kept_in_the_profile_with_its_promise(model, tiny_processor, make_image):
    images = [make_image(50, 40, seed) for seed in range(30)]
    model.set_profile(Profile("bottle", roi=POLYGON, min_area=3))
    options = {"false_alarm_rate": 0.1, "confidence": 0.9, "pixel_rate": 0.05, "show_progress": False}
    found = calibrate(model, tiny_processor, images, **options)
    assert (model.config.image_threshold, model.config.pixel_threshold) == (0.4, 0.9)
    profile = model.profile
    assert profile.image_threshold == found["image"]["threshold"]
    assert profile.pixel_threshold == found["pixel"]["threshold"]
    assert profile.calibration == {"method": "normal", "num_images": 30, "pixel_rate": 0.05, **found}
    for name in ("image", "pixel"):
        facts = profile.calibration[name]
        assert (facts["num_samples"], facts["false_alarm_rate"], facts["confidence"]) == (30, 0.1, 0.9)
        assert facts["achieved_confidence"] >= 0.9 and facts["is_guaranteed"]
    # The share of pixels is that of the region of interest, where the threshold differs from the whole image's.
    detector = pipeline("zero-shot-anomaly-detection", model=model, image_processor=tiny_processor)
    results = detector(images)
    inside = 40 * 25
    over = [result["mask"].sum() > 0.06 * inside for result in results]  # maps are judged at 42 x 42 pixels
    assert np.mean(over) <= 0.1
    assert sum(result["label"] == "anomalous" for result in results) <= 3
    model.set_profile(Profile("whole"))
    calibrate(model, tiny_processor, images, **options)
    assert model.profile.pixel_threshold != profile.pixel_threshold
    assert model.profile.image_threshold == profile.image_threshold


def test_images_that_do_not_fit_the_region_of_interest_are_left_out(model, tiny_processor, make_image):
    model.set_profile(Profile("bottle", roi=Image.new("L", (50, 40), 255)))
    skipped: list[str] = []
    images = [make_image(50, 40, seed) for seed in range(3)] + [make_image(40, 50)]
    with pytest.warns(UserWarning, match="too few"):
        found = calibrate(model, tiny_processor, images, show_progress=False, skipped=skipped)
    assert found["image"]["num_samples"] == 3 and len(skipped) == 1 and "50x40 but its image is 40x50" in skipped[0]


def test_prompts_of_another_input_size_are_judged_at_it(model, tiny_processor, make_image, tmp_path):
    for number in range(2):
        for kind in ("good", "bad"):
            (tmp_path / "parts" / kind).mkdir(parents=True, exist_ok=True)
            make_image(60, 80, seed=2 * number + (kind == "bad")).save(tmp_path / "parts" / kind / f"{number}.png")
    dataset = load_anomaly_dataset(tmp_path / "parts")
    larger = AnomalyCLIPModel.from_pretrained(model.name_or_path, image_size=70)
    expected = pipeline("zero-shot-anomaly-detection", model=larger)(dataset["image"])
    expected = sorted(result["score"] for result in expected)
    detector = pipeline("zero-shot-anomaly-detection", model=model)
    model.set_profile(Profile("bottle", prompts=larger.get_prompts()))
    judged = evaluate_model(model, tiny_processor, dataset, show_progress=False)["scores"]["scores"]["anomalyclip"]
    for found in (judged, [result["score"] for result in detector(dataset["image"])]):
        assert sorted(found) == pytest.approx(expected, abs=1e-6)
    with pytest.warns(UserWarning, match="too few"):
        calibrate(model, tiny_processor, list(dataset["image"]), show_progress=False)
    assert model.profile.image_threshold == pytest.approx(expected[-1], abs=1e-3)


def test_references_of_a_profile_have_the_input_size_of_its_prompts(model, make_image):
    good, larger = [make_image(60, 80)], AnomalyCLIPModel.from_pretrained(model.name_or_path, image_size=70)
    for name, prompts, side in (("large", larger.get_prompts(), 70), ("own", None, 42)):
        model.set_profile(Profile(name, prompts=prompts, references=good))
        assert model.references.features.shape[1] == (side // model.config.vision_config.patch_size) ** 2


def test_thresholds_of_a_profile_serve_the_score_they_were_chosen_for(model, tiny_processor, make_image):
    model.set_profile(Profile("bottle", score_rule="max", image_threshold=0.0, pixel_threshold=0.0))
    detector = ZeroShotAnomalyDetectionPipeline(model=model, image_processor=tiny_processor)
    image = make_image()
    assert {"label", "mask"} <= set(detector(image))
    assert "label" not in (found := detector(image, score_rule="global")) and "mask" in found
    assert not {"label", "mask"} & set(detector(image, references=[image]))
    assert detector(image, references=[image], image_threshold=0.0)["label"] == "anomalous"
    model.set_references([image])  # thresholds of a profile without references hold for what the model compares with
    assert {"label", "mask"} <= set(detector(image))


def test_evaluation_scores_by_the_profile_as_the_pipeline_does(model, tiny_processor, make_image, tmp_path):
    for kind, seed in (("good", 1), ("bad", 2)):
        (tmp_path / kind).mkdir()
        make_image(90, 50, seed=seed).save(tmp_path / kind / "a.png")
    dataset = load_anomaly_dataset(tmp_path)
    model.set_references([tmp_path / "good" / "a.png"])
    model.set_profile(
        Profile("bottle", score_rule="mean", resize="tile", tile_size=42, sigma=2.0, image_threshold=0.1)
    )
    detector = ZeroShotAnomalyDetectionPipeline(model=model, image_processor=tiny_processor)
    expected = [one["score"] for one in detector(dataset["path"])]
    found = evaluate_model(model, tiny_processor, dataset, show_progress=False)
    assert found["scores"]["scores"]["anomalyclip"] == pytest.approx(expected, abs=1e-6)
    assert found["mean"]["image_f1"] == pytest.approx(2 / 3 if min(expected) >= 0.1 else 1.0)


def test_own_references_come_back_go_along_and_are_not_lost_unsaid(model, make_image, tmp_path, monkeypatch):
    good, other, later = (make_image(seed=seed) for seed in range(3))
    model.set_references([good])
    own = model.references
    model.set_profile(Profile("bottle", references=[other]))
    folded = model.to_vision_only()
    assert torch.equal(folded.references.features, model.references.features) and model.references is not own
    folded.set_profile(None)
    assert folded.references is own
    model.save_profiles(tmp_path / "profiles", ["bottle"])
    model.set_profile(None)
    assert model.references is own and model.to_vision_only().references is own
    said = []
    monkeypatch.setattr("anomalyclip_hf.scoring.profiles.logger.warning", said.append)
    model.save_pretrained(tmp_path / "saved")
    assert "references are not saved" in said[0]
    model.set_profile("bottle")
    model.set_references([later])  # in place of those that the profile put
    chosen = model.references
    model.set_profile(None)
    assert model.references is chosen
    model.set_references(None)
    said.clear()
    model.save_pretrained(tmp_path / "saved")
    assert not said


def test_a_weight_of_a_profile_is_of_the_models_own_references(model, make_image):
    with pytest.raises(ValueError, match=r"profile bottle: reference_weight=0\.5 without references"):
        model.set_profile(Profile("bottle", reference_weight=0.5))
    model.set_references([make_image()])
    model.set_profile(Profile("bottle", reference_weight=0.5))
    assert model.references.weight == 0.5
    model.set_profile(None)
    assert model.references.weight == 0.1


def test_references_that_are_gone_do_not_end_saving(checkpoint, model, tmp_path):
    write_json(checkpoint, "bottle", references="good.png")
    (checkpoint / "good.png").write_bytes(b"no image")
    write_json(checkpoint, "can", min_area=3)
    model.save_pretrained(tmp_path / "copy")
    assert profile_names(str(tmp_path / "copy")) == ["can"]
