"""Configuration of AnomalyCLIP."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CLIPTextConfig, CLIPVisionConfig, PreTrainedConfig

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

# A configuration beyond these bounds is a mistake or an attack; it is refused before memory is taken.
UPPER_BOUNDS = {
    "hidden_size": 16384,
    "intermediate_size": 65536,
    "num_hidden_layers": 256,
    "num_attention_heads": 256,
    "vocab_size": 1_000_000,
    "max_position_embeddings": 65536,
    "image_size": 16384,
    "num_channels": 64,
}
MAX_PARAMETERS = 20_000_000_000


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


@strict
class AnomalyCLIPConfig(PreTrainedConfig):
    r"""Configuration of an [`AnomalyCLIPModel`].

    Args:
        text_config, vision_config (`dict` or `CLIPTextConfig` / `CLIPVisionConfig`, *optional*):
            the two towers, as in `CLIPConfig`; ViT-L/14@336 where absent.
        projection_dim (`int`, defaults to 768): width P of the shared embedding space.
        base_model_name_or_path (`str`, *optional*): the CLIP checkpoint that the backbone came from.
        base_model_revision (`str`, *optional*): its revision, so that prompts alone find the same weights again.
        prompt_length (`int`, defaults to 12): learned words E of each prompt, 1 or more (section 3.2 of the paper).
        deep_prompt_depth (`int`, *optional*): text layers with learned tokens, counting layer 1, whose tokens are the
            prompt itself: `depth - 1` sets. 1 = none. 9 of 12 layers, scaled to other depths (section 3.3).
        deep_prompt_length (`int`, defaults to 4): tokens T that each deep prompt overwrites, at positions 1..T.
        prompt_token_ids (`list[list[int]]`, *optional*): 2 x 77 ids, normal and anomalous, so that the model needs no
            tokenizer. Made up from CLIP's vocabulary where absent.
        dpam_layers (`int`, *optional*): the last n vision layers carry the refined path; 0 = plain CLIP path. 19 of
            24, scaled to other depths (the authors' flag 20 means 19; section 3.3, DPAM).
        dpam_attention (`str`, defaults to `"vv"`): `"vv"`, `"qq"` or `"kk"`.
        feature_layers (`list[int]`, *optional*): vision layers, counted from 1, whose patch embeddings give maps.
            The last one where absent (preset `released`).
        preset (`str`, *optional*): names the feature layers: `"released"` = [24], `"paper"` = [6, 12, 18, 24] of 24
            layers, scaled. Not stored.
        temperature (`float`, defaults to 0.07): divides all similarities; above 0.
        image_size (`int`, *optional*): side of the square input in pixels, a multiple of the patch size; 518, or the
            largest multiple of the patch size below it.
        image_threshold, pixel_threshold (`float`, *optional*): scores in [0, 1] from which an image or pixel counts as
            anomalous; set by calibration.
        vision_only (`bool`, defaults to `False`): the prompts are folded into two text embeddings and there is no text
            tower; such a model can't be trained.
        prompts_only (`bool`, defaults to `False`): says of stored files that they hold prompts alone, and no backbone.

    Raises:
        ValueError: if a field contradicts another, with both values named. (A wrong type is huggingface_hub's
            `StrictDataclassFieldValidationError`.)
    """

    model_type = "anomalyclip"
    sub_configs_defaults = {"text_config": CLIPTextConfig, "vision_config": CLIPVisionConfig}

    text_config: Any = None
    vision_config: Any = None
    projection_dim: int = 768
    logit_scale_init_value: float | int = 2.6592
    initializer_factor: float | int = 1.0
    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    prompt_length: int = 12
    deep_prompt_depth: Any = None
    deep_prompt_length: int = 4
    prompt_token_ids: Any = None
    dpam_layers: Any = None
    dpam_attention: str = "vv"
    feature_layers: Any = None
    temperature: float | int = 0.07
    image_size: Any = None
    image_threshold: float | int | None = None
    pixel_threshold: float | int | None = None
    vision_only: bool = False
    prompts_only: bool = False

    def __post_init__(self, **kwargs):
        if not __name__.startswith("transformers_modules."):
            # The installed package's own pipeline is used, which needs no trust_remote_code.
            kwargs.pop("custom_pipelines", None)
        preset = kwargs.pop("preset", None)
        self.text_config = _sub_config(self.text_config, CLIPTextConfig, DEFAULT_TEXT, "text_config")
        self.vision_config = _sub_config(self.vision_config, CLIPVisionConfig, DEFAULT_VISION, "vision_config")
        depth, patch = self.vision_config.num_hidden_layers, self.vision_config.patch_size
        if self.deep_prompt_depth is None:
            self.deep_prompt_depth = max(1, round(self.text_config.num_hidden_layers * 9 / 12))
        if self.dpam_layers is None:
            self.dpam_layers = round(depth * 19 / 24)
        if preset is not None and self.feature_layers is None:
            self.feature_layers = feature_layers_of_preset(preset, depth)
        self.feature_layers = [depth] if self.feature_layers is None else self.feature_layers
        if not isinstance(self.feature_layers, list | tuple):
            raise ValueError(f"feature_layers={self.feature_layers!r}, expected a list of layer numbers")
        self.feature_layers = list(self.feature_layers)
        if self.image_size is None:
            self.image_size = max(518 // patch, 1) * patch if isinstance(patch, int) and patch > 0 else 518
        if self.prompt_token_ids is None:
            self.prompt_token_ids = self._default_prompt_token_ids()
        # Here a contradiction is a plain ValueError; `@strict`, which checks again later, would wrap it.
        self.validate_bounds()
        self.validate_vision()
        self.validate_prompts()
        super().__post_init__(**kwargs)

    def _default_prompt_token_ids(self) -> list[list[int]]:
        text = self.text_config
        if isinstance(self.prompt_length, int) and self.prompt_length > UPPER_BOUNDS["max_position_embeddings"]:
            raise ValueError(f"prompt_length={self.prompt_length}, more than any text tower has positions")
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
    def grid_size(self) -> tuple[int, int]:
        """Patch grid (rows, columns) at `image_size`."""
        side = self.image_size // self.vision_config.patch_size
        return side, side

    def validate_bounds(self):
        """Refuse wrong types and sizes that no CLIP has, before anything is allocated."""
        for name in ("deep_prompt_depth", "dpam_layers", "image_size"):
            if type(getattr(self, name)) is not int:
                raise TypeError(f"{name}={getattr(self, name)!r}, expected an int")
        for name in ("text_config", "vision_config"):
            sub = getattr(self, name)
            for field, bound in UPPER_BOUNDS.items():
                value = getattr(sub, field, None)
                if value is not None and (not isinstance(value, int) or not 1 <= value <= bound):
                    raise ValueError(f"{name}.{field}={value!r} is outside 1..{bound}")
            patch = getattr(sub, "patch_size", 1)
            if not isinstance(patch, int) or patch < 1:
                raise ValueError(f"{name}.patch_size={patch!r}, expected one positive int")
        if not 1 <= self.projection_dim <= UPPER_BOUNDS["hidden_size"]:
            raise ValueError(f"projection_dim={self.projection_dim} is outside 1..{UPPER_BOUNDS['hidden_size']}")
        if (count := _count_parameters(self)) > MAX_PARAMETERS:
            raise ValueError(f"this configuration asks for {count:.1e} parameters, more than {MAX_PARAMETERS:.0e}")

    def validate_vision(self):
        """Check the fields that speak of vision layers, image size and temperature."""
        depth, patch = self.vision_config.num_hidden_layers, self.vision_config.patch_size
        if not 0 <= self.dpam_layers <= depth:
            raise ValueError(
                f"dpam_layers={self.dpam_layers} but the vision tower has {depth} layers; give 0..{depth}"
            )
        if self.dpam_attention not in ("vv", "qq", "kk"):
            raise ValueError(f"dpam_attention={self.dpam_attention!r}, expected 'vv', 'qq' or 'kk'")
        layers = self.feature_layers
        if any(not isinstance(layer, int) for layer in layers):
            raise ValueError(f"feature_layers={layers}, expected a list of whole numbers")
        if not layers or any(not 1 <= layer <= depth for layer in layers):
            raise ValueError(f"feature_layers={layers} but the vision tower has {depth} layers; count them from 1")
        if layers != sorted(set(layers)):
            raise ValueError(f"feature_layers={layers}, expected each layer once, in rising order")
        if not 1 <= self.image_size <= UPPER_BOUNDS["image_size"] or self.image_size % patch:
            raise ValueError(
                f"image_size={self.image_size} but patch_size={patch}; give a multiple of {patch} such as "
                f"{max(self.image_size // patch, 1) * patch}"
            )
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}, expected a number above 0")
        for name in ("image_threshold", "pixel_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value}, expected a score in [0, 1] or None")

    def validate_prompts(self):
        """Check the fields that speak of prompts and of the text tower."""
        depth, positions = self.text_config.num_hidden_layers, self.text_config.max_position_embeddings
        if self.prompt_length < 1:
            raise ValueError(f"prompt_length={self.prompt_length}, expected at least 1 learned word")
        if not 1 <= self.deep_prompt_depth <= depth:
            raise ValueError(
                f"deep_prompt_depth={self.deep_prompt_depth} but the text tower has {depth} layers; give 1..{depth}"
            )
        ids = self.prompt_token_ids
        rows_are_lists = isinstance(ids, list | tuple) and all(isinstance(row, list | tuple) for row in ids)
        if not rows_are_lists or not all(type(number) is int for row in ids for number in row):
            raise ValueError(f"prompt_token_ids={str(ids)[:60]}, expected two lists of token numbers")
        if len(ids) != 2 or len(ids[0]) != len(ids[1]) or not ids[0]:
            raise ValueError(f"prompt_token_ids has rows of {[len(row) for row in ids]} ids, expected 2 equal rows")
        if min(map(min, ids)) < 0 or max(map(max, ids)) >= self.text_config.vocab_size:
            raise ValueError(
                f"prompt_token_ids reach {max(map(max, ids))} but the vocabulary has {self.text_config.vocab_size} "
                "tokens; encode the prompts with the backbone's own tokenizer"
            )
        last = max(self.eos_positions)
        if last >= positions:
            raise ValueError(
                f"prompt_length={self.prompt_length} puts the end of text at position {last} but the text tower has "
                f"{positions} positions; use a shorter prompt"
            )
        if min(self.eos_positions) <= self.prompt_length:
            raise ValueError(
                f"prompt_length={self.prompt_length} but prompt_token_ids end at position {min(self.eos_positions)}; "
                "they need one placeholder for each learned word before the end of text"
            )
        if not 0 <= self.deep_prompt_length < min(self.eos_positions):
            raise ValueError(
                f"deep_prompt_length={self.deep_prompt_length} but the shorter prompt ends at position "
                f"{min(self.eos_positions)}; deep prompts overwrite positions 1..T before it"
            )


def _sub_config(value, config_class, defaults: dict, name: str):
    if value is None:
        return config_class(**defaults)
    if isinstance(value, dict):
        return config_class(**value)
    if not isinstance(value, config_class):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a dict or {config_class.__name__}")
    return value


def _count_parameters(config: AnomalyCLIPConfig) -> int:
    """Rough number of weights, from the sizes alone."""
    total = 0
    for tower in (config.text_config, config.vision_config):
        width = tower.hidden_size
        total += tower.num_hidden_layers * (4 * width**2 + 2 * width * tower.intermediate_size)
        total += width * (config.projection_dim + getattr(tower, "vocab_size", 0))
    vision = config.vision_config
    total += vision.hidden_size * (vision.image_size // vision.patch_size) ** 2
    total += vision.hidden_size * vision.num_channels * vision.patch_size**2
    total += config.text_config.hidden_size * (
        2 * config.prompt_length + (config.deep_prompt_depth - 1) * config.deep_prompt_length
    )
    return total


__all__ = ["AnomalyCLIPConfig"]
