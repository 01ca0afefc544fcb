"""Configuration of AnomalyCLIP."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPTextConfig, CLIPVisionConfig, PreTrainedConfig

from .options_anomalyclip import if_installed

# Word ids in CLIP's own vocabulary: <|startoftext|>, "x", "object", ".", "damaged", <|endoftext|>.
CLIP_VOCAB_SIZE = 49408
CLIP_BOS, CLIP_PLACEHOLDER, CLIP_OBJECT, CLIP_PERIOD, CLIP_DAMAGED, CLIP_EOS = 49406, 343, 14115, 269, 13568, 49407

# ViT-L/14@336, the backbone of the paper.
DEFAULT_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}
DEFAULT_VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}

# Feature layers as fractions of the vision tower's depth: of 24 layers, [24] and [6, 12, 18, 24].
PRESETS = {"released": (1.0,), "paper": (0.25, 0.5, 0.75, 1.0)}

# "text": learned words, read by the text tower; "free": learned vectors in place of what it would give.
# Fresh ones are drawn with these standard deviations. Free vectors are normalised when used, so that their length sets
# how far a step of the optimizer turns them: this one suits the authors' learning rate (scripts/benchmark_prompts.py).
PROMPT_STD = {"text": 0.02, "free": 0.2}


def feature_layers_of_preset(preset: str, num_hidden_layers: int) -> list[int]:
    """Feature layers of a named preset, scaled to the depth of the vision tower.

    Args:
        preset (`str`): `"released"` (the authors' published numbers) or `"paper"` (the paper's text).
        num_hidden_layers (`int`): depth of the vision tower, at least 1.

    Raises:
        ValueError: if the preset is unknown.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r} is unknown; expected one of {sorted(PRESETS)}")
    return sorted({max(1, round(fraction * num_hidden_layers)) for fraction in PRESETS[preset]})


def encode_prompts(words: tuple[list[int], list[int]], prompt_length: int, bos: int, placeholder: int, eos: int):
    """Token ids of `<bos> x .. x words <eos>` for both prompts, padded with zeros to 77 ids.

    Args:
        words: ids of the fixed words after the learned ones, normal then anomalous.
        prompt_length (`int`): number of learned words E, each held by one placeholder token.
        bos, placeholder, eos (`int`): ids of these tokens.
    """
    rows = [[bos] + [placeholder] * prompt_length + list(ids) + [eos] for ids in words]
    length = max(77, *(len(row) for row in rows))
    return [row + [0] * (length - len(row)) for row in rows]


def check_fields(values: dict[str, Any], where: str = "", stored: bool = False) -> None:
    """Refuse values of wrong kinds, sizes that no CLIP has and code from elsewhere, before anything is allocated.

    By the rules of the installed package: code that came with a checkpoint alone leaves fields to their types.

    Args:
        values (`dict`): a configuration's fields, as stored or as attributes; None is left to their types.
        where (`str`): what to write before a field's name.
        stored (`bool`): of a config.json, no key of which may replace a method of a configuration.

    Raises:
        ValueError: naming the field, its value and what is expected.
    """
    if (rules := if_installed("rules")) is not None:
        rules.check_fields(values, where, stored)


@contextmanager
def missing_folder_named(name: str) -> Iterator[None]:
    """Say that there is no such folder where the Hub's client would speak of repositories alone.

    Raises:
        OSError: if there is neither a folder nor a repository of that name.
    """
    try:
        yield
    except OSError as error:
        if os.path.exists(name):
            raise
        raise OSError(f"there is no folder {name!r}, and no repository of that name was found: {error}") from error


def in_one_line(error: Exception) -> str:
    """What a configuration's error says, its cause first, without line breaks."""
    return " ".join(str(error.__cause__ or error).split())[:500] or type(error).__name__


# What huggingface_hub's `strict` and the base classes raise for a wrong value.
WRONG_VALUE = (StrictDataclassError, TypeError, AttributeError, KeyError, OverflowError)


def _raise_value_errors(config_class):
    """Make a configuration raise one kind of error, a ValueError in one line, and check fields that are set later."""

    def plain(method):
        @wraps(method)
        def call(self, *args, **kwargs):
            try:
                if method is assign:
                    check_fields({args[0]: args[1]})
                return method(self, *args, **kwargs)
            except WRONG_VALUE as error:
                raise ValueError(in_one_line(error)) from error

        return call

    assign = config_class.__setattr__
    for name in ("__init__", "__setattr__", "validate"):
        setattr(config_class, name, plain(getattr(config_class, name)))
    return config_class


# Checked where given, filled in where not: nobody finds None in them.
if TYPE_CHECKING:
    Whole = Any
    Layers = Any
    Ids = Any
else:
    Whole = int | None
    Layers = list[int] | tuple[int, ...] | None
    Ids = list[list[int]] | None


@_raise_value_errors
@strict
class AnomalyCLIPConfig(PreTrainedConfig):
    r"""Configuration of an [`AnomalyCLIPModel`].

    Args:
        text_config, vision_config (`dict` or `CLIPTextConfig` / `CLIPVisionConfig`, *optional*):
            the two towers, as in `CLIPConfig`; ViT-L/14@336 if absent.
        projection_dim (`int`, defaults to 768): width P of the shared embedding space.
        base_model_name_or_path, base_model_revision (`str`, *optional*): the CLIP checkpoint of the backbone.
        prompt_type (`str`, defaults to `"text"`): `"free"` = two learned vectors of width P for the image, and two for
            the patches of each feature layer, in place of what a text tower would give; no text tower is loaded.
        prompt_length (`int`, defaults to 12): learned words E of each prompt (section 3.2 of the paper).
        deep_prompt_depth (`int`, *optional*): text layers with learned tokens, counting layer 1, whose tokens are the
            prompt itself: `depth - 1` sets; 1 = none. 9 of 12 layers, scaled to other depths (section 3.3).
        deep_prompt_length (`int`, defaults to 4): tokens T that each deep prompt overwrites, at positions 1..T.
        prompt_token_ids (`list[list[int]]`, *optional*): 2 x 77 ids, normal and anomalous. Of CLIP's vocabulary if
            absent.
        dpam_layers (`int`, *optional*): the last n vision layers carry the refined path; 0 = plain CLIP. 19 of 24,
            scaled to other depths (the authors' flag 20 means 19; section 3.3, DPAM).
        dpam_attention (`str`, defaults to `"vv"`): `"vv"`, `"qq"` or `"kk"`.
        feature_layers (`list[int]`, *optional*): vision layers, counted from 1, whose patches give maps; the last.
        preset (`str`, *optional*): names the feature layers: `"released"` = [24], `"paper"` = [6, 12, 18, 24] of 24
            layers, scaled. Not stored.
        temperature (`float`, defaults to 0.07): divides all similarities.
        image_size (`int`, *optional*): side of the square input in pixels, a multiple of the patch size; 518, or the
            largest multiple below it.
        image_threshold, pixel_threshold (`float` in [0, 1], *optional*): scores from which an image or a pixel counts
            as anomalous; set by calibration.
        score_rule (`str`, defaults to `"global"`): an image's score: `"global"` = P(anomalous) of the image (the
            paper's), `"max"` = the highest value of its map, `"mean"` = half global, half the mean of its top 1 %.
        thresholds_for (`str`, *optional*): the score that the thresholds were chosen for: a rule, followed by
            `" with references"` where there were some. They are used for that score alone.
        reference_layers (`list[int]`, *optional*): vision layers, counted from 1, on which references are compared;
            from the middle of the tower on if absent: 4, 6, 8 of 9, 11, 16, 21 of 24.
        vision_only (`bool`, defaults to `False`): the prompts are folded into embeddings; no text tower.
        prompts_only (`bool`, defaults to `False`): the files that this is stored with hold prompts alone.

    Raises:
        ValueError: if a field is of a wrong kind or beyond what any CLIP has, or contradicts another; fields and
            values are named.
    """

    model_type = "anomalyclip"
    # What `Trainer.predict` leaves out: one row per image is the logits'.
    keys_to_ignore_at_inference = [
        *("global_loss", "local_loss", "similarity_maps", "anomaly_maps", "hidden_states"),
        *("image_embeds", "text_embeds", "patch_embeds", "reference_maps", "reference_scores"),
    ]

    text_config: Any = None
    vision_config: Any = None
    projection_dim: int = 768
    logit_scale_init_value: float | int = 2.6592
    initializer_factor: float | int = 1.0
    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    prompt_type: str = "text"
    prompt_length: int = 12
    deep_prompt_depth: Whole = None
    deep_prompt_length: int = 4
    prompt_token_ids: Ids = None
    dpam_layers: Whole = None
    dpam_attention: Literal["vv", "qq", "kk"] = "vv"
    feature_layers: Layers = None
    temperature: float | int = 0.07
    image_size: Whole = None
    image_threshold: float | int | None = None
    pixel_threshold: float | int | None = None
    score_rule: str = "global"
    thresholds_for: str | None = None
    reference_layers: Layers = None
    vision_only: bool = False
    prompts_only: bool = False

    def __post_init__(self, **kwargs):
        if not __name__.startswith("transformers_modules."):
            # The installed package is used, whatever code the checkpoint brought: it needs no trust_remote_code.
            for key in ("custom_pipelines", "auto_map"):
                kwargs.pop(key, None)
        self.text_config = _tower(self.text_config, CLIPTextConfig, DEFAULT_TEXT, "text_config")
        self.vision_config = _tower(self.vision_config, CLIPVisionConfig, DEFAULT_VISION, "vision_config")
        depth, patch = self.vision_config.num_hidden_layers, self.vision_config.patch_size
        if self.deep_prompt_depth is None:
            self.deep_prompt_depth = max(1, round(self.text_config.num_hidden_layers * 9 / 12))
        if self.dpam_layers is None:
            self.dpam_layers = round(depth * 19 / 24)
        if self.feature_layers is None:
            self.feature_layers = feature_layers_of_preset(kwargs.get("preset") or "released", depth)
        elif isinstance(self.feature_layers, tuple):
            self.feature_layers = list(self.feature_layers)
        if self.image_size is None:
            self.image_size = max(518 // patch, 1) * patch
        self.thresholds_for = self.thresholds_for or self.score_rule
        if self.prompt_token_ids is None:
            self.prompt_token_ids = self._default_prompt_token_ids()
        super().__post_init__(**{name: value for name, value in kwargs.items() if name != "preset"})

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As `PreTrainedConfig.from_dict`, but fields given are checked together with the stored ones.

        Args:
            config_dict (`dict`): as stored.
            **kwargs: fields instead of the stored ones (those of a tower are merged, a `preset` replaces the feature
                layers), and what `PreTrainedConfig.from_dict` takes.

        Raises:
            ValueError: as [`AnomalyCLIPConfig`]; or if a key is the name of a method.
            TypeError: if there is no such field.
        """
        given = {key: kwargs.pop(key) for key in list(kwargs) if key in CONFIG_FIELDS}
        for key in ("text_config", "vision_config"):
            if isinstance(given.get(key), dict) and isinstance(config_dict.get(key), dict):
                given[key] = {**config_dict[key], **given[key]}
        if given.get("preset") is not None:
            given.setdefault("feature_layers", None)
        if "score_rule" in given and "image_threshold" not in given:  # stored thresholds stay those of their rule
            given.setdefault(
                "thresholds_for", config_dict.get("thresholds_for") or config_dict.get("score_rule", "global")
            )
        stored, config_dict = config_dict, {**config_dict, **given}
        check_fields(config_dict, stored=True)
        wants_unused = kwargs.pop("return_unused_kwargs", False)
        config, unused = super().from_dict(config_dict, return_unused_kwargs=True, **kwargs)
        layers = stored.get("feature_layers") if stored.get("prompt_type") == "free" else None
        if layers not in (None, config.feature_layers) and "prompt_type" not in given:
            raise ValueError(
                f"feature_layers={config.feature_layers}, but these free prompts were learned on {layers}: each layer "
                "has vectors of its own. Learn them anew on other layers"
            )
        if wants_unused:
            return config, unused
        unknown = sorted(set(unused) - LOADING_FIELDS)
        if "name_or_path" in kwargs:  # from AutoConfig, which AutoTokenizer and AutoProcessor hand their own arguments
            unknown = [name for name in unknown if get_close_matches(name, CONFIG_FIELDS, cutoff=0.8)]
        if unknown:
            raise TypeError(
                f"unknown arguments {unknown} of the configuration; its fields are {sorted(CONFIG_FIELDS)}"
            )
        return config

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As `PreTrainedConfig.get_config_dict`, but what is missing or damaged is named.

        Raises:
            OSError: if there is neither a folder nor a repository of that name, or its config.json holds no settings.
        """
        name = os.fspath(pretrained_model_name_or_path)
        try:
            with missing_folder_named(name):
                found = super().get_config_dict(name, **kwargs)
            if not isinstance(found[0], dict):
                raise TypeError(f"it holds a {type(found[0]).__name__}, expected a table")
        except (TypeError, AttributeError, KeyError, IndexError, ValueError, RecursionError) as error:
            raise OSError(
                f"config.json of {name} can't be read as settings ({type(error).__name__}: {error})"
            ) from error
        return found

    def _default_prompt_token_ids(self) -> list[list[int]]:
        text = self.text_config
        if text.vocab_size == CLIP_VOCAB_SIZE:
            words = ([CLIP_OBJECT, CLIP_PERIOD], [CLIP_DAMAGED, CLIP_OBJECT, CLIP_PERIOD])
            return encode_prompts(words, self.prompt_length, CLIP_BOS, CLIP_PLACEHOLDER, CLIP_EOS)
        # An unknown vocabulary: the learned words alone. from_pretrained fills in the real ones from the tokenizer.
        eos = text.eos_token_id if isinstance(text.eos_token_id, int) else CLIP_EOS
        eos = eos if 2 < eos < text.vocab_size else text.vocab_size - 1
        bos = text.bos_token_id if isinstance(text.bos_token_id, int) else CLIP_BOS
        bos = bos if 0 <= bos < text.vocab_size else text.vocab_size - 2
        return encode_prompts(([], []), self.prompt_length, bos, 0, eos)

    @property
    def eos_positions(self) -> list[int]:
        """Index of the end-of-text token in each prompt; the text embedding is read there (section 1)."""
        eos = self.text_config.eos_token_id
        # OpenAI's configs say eos_token_id=2; the end-of-text token is then the highest id, as in CLIPModel.
        return [row.index(eos) if eos != 2 and eos in row else row.index(max(row)) for row in self.prompt_token_ids]

    @property
    def reads_text(self) -> bool:
        """Whether the prompts are read by a text tower."""
        return self.prompt_type == "text" and not self.vision_only

    @property
    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names of the learned tensors of `prompt_learner`, and their shapes."""
        if self.prompt_type == "free":
            return {
                "image_vectors": (2, self.projection_dim),
                "patch_vectors": (len(self.feature_layers), 2, self.projection_dim),
            }
        width, sets = self.text_config.hidden_size, (self.deep_prompt_depth or 1) - 1
        return {"context": (2, self.prompt_length, width), "deep_prompts": (sets, self.deep_prompt_length, width)}

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patch grid (rows, columns) at `image_size`."""
        side = self.image_size // self.vision_config.patch_size
        return side, side

    def validate_fields(self):
        """Refuse fields that contradict one another, by the rules of the installed package."""
        if (rules := if_installed("rules")) is not None:
            rules.check_config(self)


def _tower(value, config_class, defaults: dict, name: str) -> PreTrainedConfig:
    """The configuration of a tower, none of whose fields is left open."""
    if value is None:
        return config_class(**defaults)
    if not isinstance(value, dict | config_class):
        raise ValueError(f"{name} is a {type(value).__name__}, expected a dict or {config_class.__name__}")
    try:
        tower = config_class(**value) if isinstance(value, dict) else value
    except WRONG_VALUE as error:
        raise ValueError(f"{name}: {in_one_line(error)}") from error
    check_fields(vars(tower), f"{name}.")
    for field in ("layer_norm_eps", "attention_dropout", "initializer_factor", "image_size", "patch_size"):
        if getattr(tower, field, 0) is None:
            raise ValueError(f"{name}.{field} is null, expected a number")
    return tower


# What `from_pretrained` takes as fields of the configuration; others of the base class have their own ways in.
OUTPUT_FIELDS = ("return_dict", "output_hidden_states")
CONFIG_FIELDS = set(AnomalyCLIPConfig.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__)
CONFIG_FIELDS |= {"preset", *OUTPUT_FIELDS}
# What may be left of the arguments of loading.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
LOADING_FIELDS = {*HUB_ARGUMENTS, "proxies", "_from_auto", "_from_pipeline", "_commit_hash", "use_fast"}
LOADING_FIELDS |= {"trust_remote_code", "code_revision", "dtype", "torch_dtype", "backend", "config", "name_or_path"}
LOADING_FIELDS |= {"user_agent"}
