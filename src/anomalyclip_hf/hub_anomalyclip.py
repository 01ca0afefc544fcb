"""Loading and sharing of AnomalyCLIP: from any CLIP checkpoint, from a full one, or from prompts alone."""

import os
from typing import Any

from transformers import AutoTokenizer, CLIPConfig, PreTrainedConfig
from transformers.utils import logging

from .configuration_anomalyclip import CLIP_VOCAB_SIZE, AnomalyCLIPConfig, encode_prompts

logger = logging.get_logger(__name__)

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
CONFIG_FIELDS = set(AnomalyCLIPConfig.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__)


def config_from_clip(clip: CLIPConfig, name_or_path: str, hub: dict[str, Any], **overrides) -> AnomalyCLIPConfig:
    """Configuration of AnomalyCLIP on a CLIP checkpoint.

    Args:
        clip (`CLIPConfig`): the checkpoint's own configuration.
        name_or_path (`str`): where it lies; kept as `base_model_name_or_path`.
        hub (`dict`): arguments for the Hub, used to find the tokenizer of an unusual vocabulary.
        **overrides: fields of [`AnomalyCLIPConfig`], or `preset`.
    """
    overrides.setdefault("base_model_name_or_path", str(name_or_path))
    overrides.setdefault("base_model_revision", getattr(clip, "_commit_hash", None) or hub.get("revision"))
    overrides.setdefault("logit_scale_init_value", clip.logit_scale_init_value)
    if clip.text_config.vocab_size != CLIP_VOCAB_SIZE and "prompt_token_ids" not in overrides:
        ids = _prompt_ids_of_tokenizer(name_or_path, hub, overrides.get("prompt_length", 12))
        if ids is not None:
            overrides["prompt_token_ids"] = ids
    return AnomalyCLIPConfig(
        text_config=clip.text_config.to_dict(),
        vision_config=clip.vision_config.to_dict(),
        projection_dim=clip.projection_dim,
        **overrides,
    )


def _prompt_ids_of_tokenizer(name_or_path: str, hub: dict[str, Any], prompt_length: int) -> list[list[int]] | None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **hub)
        plain = [tokenizer(text, add_special_tokens=False).input_ids for text in ("x", "object.", "damaged object.")]
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        # Without files, transformers makes up an empty tokenizer that knows no word.
        usable = (
            all(plain)
            and plain[1] != plain[2]
            and not {tokenizer.unk_token_id, bos, eos} & {*plain[0], *plain[1], *plain[2]}
        )
    except (OSError, ValueError, KeyError, TypeError):
        usable = False
    if not usable:
        logger.warning(
            f"{name_or_path} has an unusual vocabulary and no tokenizer that knows its words: the prompts consist of "
            "learned words alone, without 'object.' and 'damaged object.'. Give prompt_token_ids to set them."
        )
        return None
    return encode_prompts((plain[1], plain[2]), prompt_length, bos, plain[0][0], eos)


class AnomalyCLIPHubMixin:
    """`from_pretrained` of [`AnomalyCLIPModel`] for every kind of source."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        r"""Load a model from a CLIP checkpoint (fresh prompts), a full AnomalyCLIP checkpoint or prompts alone.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): folder or Hub repository.
            config ([`AnomalyCLIPConfig`], *optional*): instead of the checkpoint's own.
            preset (`str`, *optional*): `"released"` or `"paper"`; names the feature layers.
            **kwargs: fields of [`AnomalyCLIPConfig`], which override the checkpoint's, and the usual arguments of
                `PreTrainedModel.from_pretrained` (`dtype`, `device_map`, `revision`, `attn_implementation`, ...).

        Raises:
            ValueError: if the checkpoint is neither CLIP nor AnomalyCLIP, or lacks weights of the backbone.
        """
        name = os.fspath(pretrained_model_name_or_path)
        overrides = {k: kwargs.pop(k) for k in list(kwargs) if k in CONFIG_FIELDS or k == "preset"}
        hub = {k: kwargs[k] for k in HUB_ARGUMENTS if k in kwargs}
        fresh = False
        if config is None:
            raw, _ = PreTrainedConfig.get_config_dict(name, **hub)
            config, fresh = _resolve_config(raw, name, hub, overrides)
        kwargs.setdefault("use_safetensors", True)
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(  # type: ignore[misc]
            name, *model_args, config=config, output_loading_info=True, **kwargs
        )
        _check_complete(info, name, fresh)
        model.freeze_backbone()
        return (model, info) if wants_info else model


def _resolve_config(raw: dict, name: str, hub: dict, overrides: dict) -> tuple[AnomalyCLIPConfig, bool]:
    kind = raw.get("model_type")
    if kind == "clip":
        return config_from_clip(CLIPConfig.from_dict(raw), name, hub, **overrides), True
    if kind == "anomalyclip":
        return AnomalyCLIPConfig.from_dict({**raw, **overrides}), False
    raise ValueError(f"{name} has model_type={kind!r}, expected 'clip' or 'anomalyclip'")


def _check_complete(info: dict, name: str, fresh: bool) -> None:
    missing = sorted(key for key in info["missing_keys"] if not (fresh and key.startswith("prompt_learner.")))
    if missing:
        raise ValueError(
            f"{name} lacks {len(missing)} weights of the model, such as {missing[0]}; they would be random. "
            "Load a complete checkpoint."
        )


__all__ = ["AnomalyCLIPHubMixin"]
