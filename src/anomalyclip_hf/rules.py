"""What the fields of a configuration may hold. Checked by the installed package; code of checkpoints does without."""

from dataclasses import fields
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .configuration_anomalyclip import PRESETS, PROMPT_STD, AnomalyCLIPConfig
from .options_anomalyclip import OPTION_RULES, SCORE_RULES, SIDE, SIZE, WITH_REFERENCES, Rule, expected, follows

MAX_PARAMETERS = 20_000_000_000
MAX_LABELS = 10_000  # of num_labels and the tables of labels, which nothing here uses
MAX_CHARACTERS = 4096  # of a text

_DTYPES = ("float32", "float16", "bfloat16", "float64")

# What fields of a configuration, of a tower or of an image processor may hold beyond what their types say. What is
# outside is a mistake or an attack, and is refused before memory is taken.
RULES: dict[str, Rule] = {
    **OPTION_RULES,
    **dict.fromkeys(("hidden_size", "image_size", "patch_size", "projection_dim"), SIDE),
    **dict.fromkeys(("intermediate_size", "max_position_embeddings", "prompt_length"), SIZE),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "deep_prompt_depth"), range(1, 257)),
    **dict.fromkeys(("deep_prompt_length", "chunk_size_feed_forward"), range(65537)),
    "dpam_layers": range(257),
    "vocab_size": range(1, 1_000_001),
    "num_channels": range(1, 65),
    "num_labels": range(MAX_LABELS + 1),
    "layer_norm_eps": (1e-12, 1.0),
    "temperature": (1e-6, 1e6),
    "logit_scale_init_value": (-1000.0, 1000.0),
    **dict.fromkeys(("initializer_range", "initializer_factor"), (0.0, 1000.0)),
    "attention_dropout": (0.0, 0.999),
    "prompt_type": frozenset(PROMPT_STD),
    "thresholds_for": frozenset(rule + more for rule in SCORE_RULES for more in ("", WITH_REFERENCES)),
    "preset": frozenset(PRESETS),
    "hidden_act": frozenset(ACT2FN),
    **dict.fromkeys(
        ("dtype", "torch_dtype"),
        frozenset(form for name in _DTYPES for form in (name, f"torch.{name}", getattr(torch, name))),
    ),
    # Not a name of the Hub, from where code would come.
    "attn_implementation": frozenset(
        ("eager", "sdpa", "flex_attention", *(f"flash_attention_{number}" for number in (2, 3, 4)))
    ),
    **dict.fromkeys(("tie_word_embeddings", "use_cache", "use_bfloat16", "gradient_checkpointing"), bool),
    **dict.fromkeys(("return_dict", "output_hidden_states", "output_attentions", "is_encoder_decoder"), bool),
    **dict.fromkeys(("notice", "tokenizer_class", "loss_type", "transformers_version", "_commit_hash"), str),
    "architectures": list,
    **dict.fromkeys(("auto_map", "text_config_dict", "vision_config_dict"), dict),
    **dict.fromkeys(("per_layer_config", "layer_types", "mlp_layer_types", "problem_type"), None),
    **dict.fromkeys(("transformers_weights", "rope_scaling", "rope_parameters"), None),
}


def _is_table_of_labels(value: Any) -> bool:
    if not isinstance(value, dict) or len(value) > MAX_LABELS:
        return False
    # One of the two tables has its numbers as keys, as strings in JSON; the other has them as values.
    return any(all(str(one).isdecimal() for one in side) for side in (value.keys(), value.values()))


def _problem_of(name: str, value: Any) -> str | None:
    """What a field should hold instead of this value; None if nothing is wrong."""
    if value is None and name != "num_labels":
        return None  # left to its type
    if isinstance(value, str) and len(value) > MAX_CHARACTERS:
        return f"at most {MAX_CHARACTERS} characters"
    if name in ("id2label", "label2id"):
        return None if _is_table_of_labels(value) else f"a table of at most {MAX_LABELS} numbered labels; remove it"
    if name == "quantization_config":
        is_known = isinstance(value.get("quant_method"), str) if isinstance(value, dict) else hasattr(value, "to_dict")
        return None if is_known else "the settings of a quantization with a quant_method"
    if name == "pruned_heads":
        return "none, no head of this model can be left out" if value != {} else None
    if "attn_implementation" in name or "experts_implementation" in name:
        rule = RULES["attn_implementation"]
        values = [one for one in value.values() if one is not None] if isinstance(value, dict) else [value]
        return None if all(follows(one, rule) for one in values) else expected(rule)
    return expected(RULES[name]) if name in RULES and not follows(value, RULES[name]) else None


def check_fields(values: dict[str, Any], where: str = "", stored: bool = False) -> None:
    """As [`configuration_anomalyclip.check_fields`]."""
    for name, value in values.items():
        if stored and name not in SETTABLE and hasattr(PreTrainedConfig, name):
            raise ValueError(f"{where}{name}={str(value)[:100]}, but that is no setting; remove it")
        if (expected := _problem_of(name, value)) is not None:
            shown = repr(value) if isinstance(value, str | float | bool) else str(value)
            raise ValueError(f"{where}{name}={shown[:100]}, expected {expected}")
        if isinstance(value, dict) and name.startswith(("text_config", "vision_config")):
            check_fields(value, f"{where}{name}.", stored=True)
        elif isinstance(value, dict) and name not in ("id2label", "label2id") and "_implementation" not in name:
            check_fields({str(key): one for key, one in value.items()}, f"{where}{name}.")


# Names of the base class that a config.json may set.
SETTABLE = {"model_type", "num_labels", "torch_dtype", "name_or_path", "output_attentions", "_attn_implementation"}
SETTABLE |= {field.name for field in fields(PreTrainedConfig)}


def check_config(config: AnomalyCLIPConfig) -> None:
    """Refuse a configuration of more weights than any CLIP has, or with fields that contradict one another.

    Raises:
        ValueError: naming the fields and their values.
    """
    if (count := count_parameters(config)) > MAX_PARAMETERS:
        raise ValueError(f"this configuration asks for {count:.1e} parameters, more than {MAX_PARAMETERS:.0e}")
    _check_vision(config)
    _check_prompts(config)


def count_parameters(config: AnomalyCLIPConfig) -> int:
    """Rough number of weights, from the sizes alone."""
    text, vision, total = config.text_config, config.vision_config, 0
    for tower in (text, vision):
        width = tower.hidden_size
        total += tower.num_hidden_layers * (4 * width**2 + 2 * width * tower.intermediate_size)
    total += vision.hidden_size * ((vision.image_size // vision.patch_size) ** 2 + config.projection_dim)
    total += vision.hidden_size * vision.num_channels * vision.patch_size**2
    return total + text.hidden_size * (text.vocab_size + config.projection_dim)


def _check_vision(config: AnomalyCLIPConfig) -> None:
    """Check the fields that speak of vision layers and image size."""
    depth, patch = config.vision_config.num_hidden_layers, config.vision_config.patch_size
    layers, size = config.feature_layers, config.image_size
    if not 0 <= config.dpam_layers <= depth:
        raise ValueError(f"dpam_layers={config.dpam_layers} but the vision tower has {depth} layers; give 0..{depth}")
    if not layers or any(not 1 <= layer <= depth for layer in layers):
        raise ValueError(f"feature_layers={layers} but the vision tower has {depth} layers; count them from 1")
    if layers != sorted(set(layers)):
        raise ValueError(f"feature_layers={layers}, expected each layer once, in rising order")
    middle = config.reference_layers
    if middle is not None and (not middle or not {*middle} <= {*range(1, depth + 1)} or len({*middle}) < len(middle)):
        raise ValueError(
            f"reference_layers={middle}, expected different layers in 1..{depth}, such as the middle ones"
        )
    if size % patch:
        near = max(size // patch, 1) * patch
        raise ValueError(f"image_size={size} but patch_size={patch}; give a multiple of {patch} such as {near}")


def _check_prompts(config: AnomalyCLIPConfig) -> None:
    """Check the fields that speak of prompts and of the text tower."""
    text, ids = config.text_config, config.prompt_token_ids
    depth, positions, words = text.num_hidden_layers, text.max_position_embeddings, text.vocab_size
    if config.deep_prompt_depth > depth:
        raise ValueError(
            f"deep_prompt_depth={config.deep_prompt_depth} but the text tower has {depth} layers; give 1..{depth}"
        )
    if len(ids) != 2 or len(ids[0]) != len(ids[1]) or not ids[0]:
        raise ValueError(f"prompt_token_ids has rows of {[len(row) for row in ids]} ids, expected 2 equal rows")
    if min(map(min, ids)) < 0 or max(map(max, ids)) >= words:
        raise ValueError(
            f"prompt_token_ids reach {max(map(max, ids))} but the vocabulary has {words} tokens; encode the "
            "prompts with the backbone's own tokenizer"
        )
    first, last = min(config.eos_positions), max(config.eos_positions)
    if last >= positions:
        raise ValueError(
            f"prompt_length={config.prompt_length} puts the end of text at position {last} but the text tower has "
            f"{positions} positions; use a shorter prompt"
        )
    if first <= config.prompt_length:
        raise ValueError(
            f"prompt_length={config.prompt_length} but prompt_token_ids end at position {first}; they need one "
            "placeholder for each learned word before the end of text"
        )
    if config.deep_prompt_length >= first:
        raise ValueError(
            f"deep_prompt_length={config.deep_prompt_length} but the shorter prompt ends at position {first}; deep "
            "prompts overwrite positions 1..T before it"
        )
