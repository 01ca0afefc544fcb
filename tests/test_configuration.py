"""Configuration: the paper's values by default, scaled elsewhere, and contradictions named."""

import copy
import json
import random
import shutil
from pathlib import Path

import pytest

from anomalyclip_hf import AnomalyCLIPConfig, AnomalyCLIPModel
from anomalyclip_hf.configuration_anomalyclip import feature_layers_of_preset
from tiny_models import TINY_TEXT, TINY_VISION


def tiny(text=None, vision=None, **fields) -> AnomalyCLIPConfig:
    fields = {"image_size": 42, **fields}
    return AnomalyCLIPConfig(
        text_config={**TINY_TEXT, **(text or {})}, vision_config={**TINY_VISION, **(vision or {})}, **fields
    )


def test_defaults_are_those_of_the_paper():
    config = AnomalyCLIPConfig()
    assert (config.prompt_length, config.deep_prompt_depth, config.deep_prompt_length) == (12, 9, 4)
    assert (config.dpam_layers, config.dpam_attention, config.feature_layers) == (19, "vv", [24])
    assert (config.temperature, config.image_size, config.projection_dim) == (0.07, 518, 768)
    assert (config.image_threshold, config.pixel_threshold) == (None, None)
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.patch_size, vision.image_size) == (1024, 24, 14, 336)
    assert (text.hidden_size, text.num_hidden_layers, text.vocab_size) == (768, 12, 49408)
    assert config.grid_size == (37, 37)


def test_default_prompts_are_those_of_the_authors(load_golden):
    assert AnomalyCLIPConfig().prompt_token_ids == load_golden("native_last_layer").tensors["input_ids"].tolist()
    assert AnomalyCLIPConfig().eos_positions == [15, 16]
    short = AnomalyCLIPConfig(prompt_length=3)
    assert short.prompt_token_ids[1][:9] == [49406, 343, 343, 343, 13568, 14115, 269, 49407, 0]


@pytest.mark.parametrize(
    ("preset", "depth", "layers"),
    [
        ("released", 24, [24]),
        ("paper", 24, [6, 12, 18, 24]),
        ("released", 12, [12]),
        ("paper", 12, [3, 6, 9, 12]),
        ("paper", 32, [8, 16, 24, 32]),
        ("paper", 6, [2, 3, 4, 6]),
        ("paper", 2, [1, 2]),
        ("paper", 1, [1]),
    ],
)
def test_presets(preset, depth, layers):
    assert feature_layers_of_preset(preset, depth) == layers
    assert tiny(vision={"num_hidden_layers": depth}, preset=preset).feature_layers == layers


def test_explicit_layers_win_over_the_preset_and_it_is_not_stored():
    config = tiny(preset="paper", feature_layers=[2])
    assert config.feature_layers == [2] and "preset" not in config.to_dict()


@pytest.mark.parametrize(
    ("depth", "patch", "dpam", "size"), [(24, 14, 19, 518), (12, 16, 10, 512), (12, 32, 10, 512), (32, 14, 25, 518)]
)
def test_defaults_scale_to_other_backbones(depth, patch, dpam, size):
    config = AnomalyCLIPConfig(vision_config={"num_hidden_layers": depth, "patch_size": patch, "image_size": 224})
    assert (config.dpam_layers, config.image_size, config.feature_layers) == (dpam, size, [depth])


def test_round_trip_through_json(tmp_path):
    config = tiny(feature_layers=[1, 3], image_threshold=0.25, pixel_threshold=0.5, dpam_attention="qq")
    config.save_pretrained(tmp_path)
    loaded = AnomalyCLIPConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model_type"] == "anomalyclip" and stored["feature_layers"] == [1, 3]
    assert stored["image_threshold"] == 0.25 and stored["vision_config"]["num_hidden_layers"] == 4


def test_configurations_do_not_share_lists():
    first, second = tiny(), tiny()
    first.feature_layers.append(99)
    first.prompt_token_ids[0][0] = 1
    assert second.feature_layers == [4] and second.prompt_token_ids[0][0] == 97


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"feature_layers": [30]}, r"feature_layers=\[30\] but the vision tower has 4 layers"),
        ({"feature_layers": [0, 1]}, r"feature_layers=\[0, 1\] but"),
        ({"feature_layers": []}, r"feature_layers=\[\]"),
        ({"feature_layers": [3, 1]}, r"\[3, 1\], expected each layer once, in rising order"),
        ({"feature_layers": [2, 2]}, r"\[2, 2\], expected each layer once"),
        ({"dpam_layers": 5}, "dpam_layers=5 but the vision tower has 4 layers"),
        ({"dpam_layers": -1}, "dpam_layers=-1, expected a whole number"),
        ({"dpam_attention": "qk"}, "'dpam_attention' expected one of .'vv', 'qq', 'kk'., got qk"),
        ({"image_size": 40}, "image_size=40 but patch_size=7; give a multiple of 7 such as 35"),
        ({"image_size": 0}, "image_size=0"),
        ({"temperature": 0.0}, "temperature=0.0, expected a number in 1e-06"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"image_threshold": 1.5}, r"image_threshold=1.5, expected a score in \[0, 1\]"),
        ({"pixel_threshold": -0.1}, "pixel_threshold=-0.1"),
        ({"prompt_length": 0}, r"prompt_length=0, expected a whole number in 1\.\.65536"),
        ({"prompt_length": 76}, "prompt_length=76 puts the end of text at position 77 but the text tower has 77"),
        ({"deep_prompt_depth": 0}, r"deep_prompt_depth=0, expected a whole number in 1\.\.256"),
        ({"deep_prompt_depth": 5}, "deep_prompt_depth=5 but the text tower has 4 layers"),
        ({"deep_prompt_length": 13}, "deep_prompt_length=13 but the shorter prompt ends at position 13"),
        ({"prompt_token_ids": [[97, 98]]}, r"prompt_token_ids has rows of \[2\] ids, expected 2 equal rows"),
        ({"prompt_token_ids": [[97, 0, 98]] * 2}, "prompt_length=12 but prompt_token_ids end at position 2"),
        ({"prompt_token_ids": [[97] + [0] * 12 + [4, 200]] * 2}, "reach 200 but the vocabulary has 99"),
        ({"preset": "best"}, r"preset='best' is unknown; expected one of \['paper', 'released'\]"),
        ({"projection_dim": 0}, "projection_dim=0"),
        ({"text": {"hidden_size": 10**7}}, "text_config.hidden_size=10000000, expected"),
        ({"vision": {"num_hidden_layers": 10**6}}, "vision_config.num_hidden_layers=1000000, expected"),
        ({"text": {"hidden_size": 16384, "num_hidden_layers": 256}}, "parameters, more than"),
    ],
)
def test_contradictions_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_length": "12"},
        {"temperature": "hot"},
        {"dpam_attention": 3},
        {"feature_layers": "last"},
        {"feature_layers": ["1"]},
        {"image_size": 42.5},
        {"dpam_layers": "all"},
        {"deep_prompt_depth": 2.5},
        {"prompt_token_ids": "object"},
    ],
)
def test_wrong_types_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        tiny(**fields)


def test_contradictions_in_stored_files_are_named(tmp_path):
    tiny().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**stored, "dpam_layers": 50}))
    with pytest.raises(ValueError, match="dpam_layers=50 but the vision tower has 4 layers"):
        AnomalyCLIPConfig.from_pretrained(tmp_path)


def test_contradictions_made_later_are_found_when_saving(tmp_path):
    config = tiny()
    config.feature_layers = [9]
    with pytest.raises(ValueError, match=r"feature_layers=\[9\] but the vision tower has 4 layers"):
        config.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_labels": 10**8}, "num_labels=100000000, expected a whole number"),
        ({"vision": {"num_labels": 10**8}}, "vision_config.num_labels=100000000"),
        ({"attn_implementation": {"": "someone/kernel"}}, "attn_implementation={'': 'someone/kernel'}"),
        ({"vision": {"_attn_implementation": "someone/kernel"}}, "vision_config._attn_implementation="),
        ({"vision": {"hidden_act": "evil"}}, "vision_config.hidden_act='evil', expected one of .*'quick_gelu'"),
        ({"dtype": "evil"}, "dtype='evil', expected one of"),
        ({"torch_dtype": "evil"}, "dtype='evil', expected one of"),
        ({"foreign": {"x": {"dtype": "evil"}}}, "foreign.x.dtype='evil', expected one of"),
        ({"projection_dim": "x"}, "projection_dim='x', expected"),
        ({"text": {"layer_norm_eps": float("nan")}}, "text_config.layer_norm_eps=nan"),
        ({"initializer_factor": -1}, "initializer_factor=-1"),
        ({"id2label": {"x": "y"}}, "id2label="),
        ({"architectures": 4}, "architectures=4, expected a list"),
        ({"image_threshold": float("nan")}, r"image_threshold=nan, expected a score in \[0, 1\]"),
        ({"pixel_threshold": True}, "pixel_threshold=True"),
        ({"base_model_name_or_path": "y" * 10**5}, "base_model_name_or_path=.{1,120}at most 4096"),
    ],
)
def test_values_of_wrong_kinds_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny(**fields)


@pytest.mark.parametrize("value", [float("nan"), 7, -1, True, "0.5", float("inf")])
def test_thresholds_are_checked_when_set(value):
    config = tiny()
    with pytest.raises(ValueError, match="image_threshold"):
        config.image_threshold = value
    config.image_threshold = 0.5
    assert config.image_threshold == 0.5


def test_text_and_settings_of_a_tower_in_the_place_of_others(tmp_path):
    tiny().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    for key, value in (
        ("text_config", 5),
        ("to_dict", 4),
        ("attribute_map", 1),
        ("layer_types", 3),
        ("num_labels", None),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**stored, key: value}))
        with pytest.raises(ValueError, match=key):
            AnomalyCLIPConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(OSError, match="can't be read as settings"):
        AnomalyCLIPConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such", "no such", "outputs/nothing"])
def test_a_missing_folder_reads_as_such(name):
    with pytest.raises(OSError, match=f"there is no folder '{name}', and no repository"):
        AnomalyCLIPConfig.from_pretrained(name)


def test_auto_classes_check_fields_and_take_presets(tiny_checkpoint):
    from transformers import AutoConfig, AutoModel

    assert AutoConfig.from_pretrained(tiny_checkpoint, preset="paper").feature_layers == [1, 2, 3, 4]
    assert AutoConfig.from_pretrained(tiny_checkpoint, image_size=49).image_size == 49
    for loader in (AutoConfig, AutoModel):
        with pytest.raises(ValueError, match="image_size=50 but patch_size=7"):
            loader.from_pretrained(tiny_checkpoint, image_size=50)


ODD_VALUES = (
    *(None, True, -1, 0, 1, 7, 10**4, 10**8, 10**20, -0.5, 0.5, 1e300, float("nan"), float("inf")),
    *("", "x", "gelu", "../x", "a\0b", "y" * 5000, [], [1], [[1]], ["x"], [None], {}, {"x": 1}, {"0": {"1": []}}),
)


def damage(stored: dict, rng: random.Random) -> tuple[dict, set[str]]:
    """A copy of stored settings with one to three fields changed, added or taken out; and their names."""
    stored, names = copy.deepcopy(stored), set()
    for _ in range(rng.randrange(1, 4)):
        place = rng.choice([stored, stored, *(stored[key] for key in TOWERS if isinstance(stored.get(key), dict))])
        name = rng.choice([*place, "num_labels", "id2label", "dtype", "validate", "_attn_implementation", "foreign"])
        names.add(name)
        if rng.random() < 0.15:
            place.pop(name, None)
        else:
            place[name] = rng.choice(ODD_VALUES)
    return stored, names


TOWERS = ("text_config", "vision_config")


@pytest.mark.parametrize("part", range(4))
def test_damaged_files_load_or_name_the_field(part, tiny_checkpoint, tmp_path, monkeypatch):
    """A hundred seeded damages: the model loads and scores, or a ValueError or OSError names what is wrong."""
    import torch

    from anomalyclip_hf import AnomalyCLIPModel

    for name in ("model.safetensors", "preprocessor_config.json"):
        (tmp_path / name).symlink_to(f"{tiny_checkpoint}/{name}")
    with open(f"{tiny_checkpoint}/config.json") as file:
        stored = json.load(file)
    loaded = 0
    for seed in range(25 * part, 25 * (part + 1)):
        damaged, names = damage(stored, random.Random(seed))
        (tmp_path / "config.json").write_text(json.dumps(damaged))
        try:
            model = AnomalyCLIPModel.from_pretrained(tmp_path)
        except (ValueError, OSError) as error:
            said = str(error)
            assert len(said) < 1500 and any(name in said for name in (*names, *names_behind(names))), (seed, said)
        else:
            size = model.config.image_size
            with torch.no_grad():
                model(pixel_values=torch.zeros(1, 3, size, size))
            loaded += 1
    assert 0 < loaded < 25


# A field that contradicts the one that was changed may be named instead of it.
NAMED_INSTEAD = (
    (("num_hidden_layers",), ("dpam_layers", "feature_layers", "deep_prompt_depth")),
    (("torch_dtype",), ("dtype",)),
    (("vocab_size", "eos_token_id", "bos_token_id", "max_position_embeddings", "prompt_length"), ("prompt_",)),
    (("patch_size", "image_size"), ("image_size", "position_embedding", "patch_size")),
    (("hidden_size", "num_attention_heads"), ("hidden_size", "embed_dim", "num_attention_heads")),
    (("prompt_token_ids", "deep_prompt_length", "deep_prompt_depth"), ("prompt_", "deep_prompts", "eos")),
    (TOWERS, ("_config", "_layers", "_embedding")),
)


def names_behind(names: set[str]) -> set[str]:
    return {other for fields, others in NAMED_INSTEAD if names & {*fields} for other in others}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("preset", "nope"), ("preset", 5), ("preset", ["paper"]), ("notice", 5), ("pruned_heads", {"0": [1]})),
        *(("use_cache", "x"), ("tie_word_embeddings", "x"), ("chunk_size_feed_forward", -1), ("auto_map", 5)),
    ],
)
def test_stored_fields_of_the_base_class_are_checked(tiny_checkpoint, tmp_path, name, value):
    stored = json.loads((Path(tiny_checkpoint) / "config.json").read_text())
    with pytest.raises(ValueError, match=name):
        AnomalyCLIPModel.from_pretrained(changed(tiny_checkpoint, tmp_path / "model", {**stored, name: value}))


def changed(checkpoint, folder, config: dict) -> str:
    """A copy of a checkpoint with another config.json."""
    shutil.copytree(checkpoint, folder)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_unknown_arguments_are_refused(tiny_checkpoint):
    from transformers import AutoConfig, AutoModel, AutoProcessor

    for loader in (AnomalyCLIPConfig, AutoConfig, AnomalyCLIPModel, AutoModel):
        with pytest.raises(TypeError, match="image_sise"):
            loader.from_pretrained(tiny_checkpoint, image_sise=49)
    with pytest.raises(TypeError, match="nonsense"):
        AnomalyCLIPConfig.from_pretrained(tiny_checkpoint, nonsense=3)
    assert AutoProcessor.from_pretrained(tiny_checkpoint, sigma=2.0).sigma == 2.0  # asks AutoConfig with its arguments
    config, unused = AnomalyCLIPConfig.from_pretrained(tiny_checkpoint, nonsense=3, return_unused_kwargs=True)
    assert unused["nonsense"] == 3 and config.model_type == "anomalyclip"
