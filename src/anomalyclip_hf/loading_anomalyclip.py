"""Where a model comes from: a CLIP checkpoint, a full AnomalyCLIP one, or prompts alone with their base model."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants, is_offline_mode
from huggingface_hub.file_download import repo_folder_name
from safetensors import SafetensorError
from transformers import CLIPConfig, PreTrainedModel
from transformers.utils import logging
from transformers.utils.hub import cached_file, extract_commit_hash

from .configuration_anomalyclip import (
    CLIP_VOCAB_SIZE,
    CONFIG_FIELDS,
    HUB_ARGUMENTS,
    OUTPUT_FIELDS,
    WRONG_VALUE,
    AnomalyCLIPConfig,
    check_fields,
    in_one_line,
)
from .options_anomalyclip import if_installed, installed
from .prompts_anomalyclip import (
    PROMPT_FIELDS,
    check_same_sizes,
    find_weights,
    locate_base,
    portable_base_name,
    prompts_config,
    read_index,
    read_prompts,
)

logger = logging.get_logger(__name__)


class LoadingMixin(PreTrainedModel if TYPE_CHECKING else object):  # type: ignore[misc]
    """How a model is loaded; nothing of it is random that a file should hold."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        r"""Load a model from a CLIP checkpoint (fresh prompts), a full AnomalyCLIP checkpoint or prompts alone.

        Prompts alone bring the name and revision of their base model, which is loaded first. With
        `prompt_type="free"`, the text prompts of an AnomalyCLIP are folded by [`~AnomalyCLIPModel.to_free_prompts`],
        and those of a CLIP, whose text tower is not loaded, are drawn. On a machine without an accelerator, half
        precision that its CPU has no instructions for is loaded as float32, with a warning.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): folder or Hub repository.
            config ([`AnomalyCLIPConfig`], *optional*): instead of the checkpoint's own.
            preset (`str`, *optional*): `"released"` or `"paper"`; names the feature layers.
            **kwargs: fields of [`AnomalyCLIPConfig`], which override the checkpoint's (`base_model_name_or_path` says
                where the base model of prompts lies), and the usual arguments of `PreTrainedModel.from_pretrained`
                (`dtype`, `device_map`, `revision`, `attn_implementation`, ...).

        Raises:
            ValueError: if the checkpoint is neither CLIP nor AnomalyCLIP, lacks weights, or its prompts are damaged or
                were learned on another backbone.
            OSError: if a file or the base model can't be found.
        """
        name = os.fspath(pretrained_model_name_or_path)
        fields = {key: kwargs.pop(key) for key in list(kwargs) if key in CONFIG_FIELDS}
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        if fields.get("base_model_name_or_path") is not None:
            fields["base_model_name_or_path"] = os.fspath(fields["base_model_name_or_path"])
        if kwargs.pop("use_safetensors", True) is False:
            raise ValueError("use_safetensors=False: pickled weights can run code and are never loaded; convert them")
        raw = _read_config(name, hub)
        stored, pinned = raw.get("prompt_type", "text"), kwargs.pop("_pinned", False)
        wanted = fields.get("prompt_type") or (stored if config is None else config.prompt_type)
        if wanted != stored and raw.get("model_type") == "anomalyclip" and not pinned:
            if wanted == "text":
                raise ValueError(f"{name} has free prompts, of which no text prompts can be made; load its base model")
            fields["prompt_type"] = stored
            found = cls.from_pretrained(name, *model_args, config=config, **fields, **kwargs)
            return (found[0].to_free_prompts(), found[1]) if isinstance(found, tuple) else found.to_free_prompts()
        if config is not None and fields:
            config = AnomalyCLIPConfig.from_dict(config.to_dict(), **fields)
        if raw.get("prompts_only"):
            return cls._from_prompts(name, raw, config, fields, hub, *model_args, **kwargs)
        config = config or resolve_config(raw, name, hub, fields)
        wants_info = kwargs.pop("output_loading_info", False)
        if kwargs.get("variant") is None:
            kwargs["revision"] = _revision_of_weights(name, hub, pinned) or "main"
        try:
            model, info = super().from_pretrained(
                name, *model_args, config=config, output_loading_info=True, use_safetensors=True, **kwargs
            )
        except SafetensorError as error:
            raise ValueError(
                f"the weights of {name} are truncated or no safetensors file ({error}); fetch them again"
            ) from error
        except ImportError as error:
            raise ValueError(f"{name} can't be loaded without another package: {error}") from error
        fresh = raw.get("model_type") == "clip" or pinned
        if missing := sorted(key for key in info["missing_keys"] if not (fresh and key.startswith("prompt_learner."))):
            raise ValueError(
                f"{name} lacks {len(missing)} weights of the model, such as {missing[0]}; they would be random. Load "
                "a complete checkpoint"
            )
        model._hold_prompts()
        model.freeze_backbone()
        if (weights := if_installed("sharing.weights")) is not None:
            weights.check_weights(model, name, info)
            weights.use_float32_if_emulated(model)
        model._loaded_from = (portable_base_name(name), commit_of(name, hub))
        # A folder is named so that it is found when the working directory changes.
        model._processor_source = (os.path.abspath(name) if os.path.isdir(name) else name, hub)
        return (model, info) if wants_info else model

    @staticmethod
    def _finalize_model_loading(model, load_config, loading_info):
        """Called by transformers when the weights are read, before memory is taken for those that it did not find."""
        if not load_config.is_quantized and (weights := if_installed("sharing.weights")) is not None:
            weights.check_weights(model, load_config.pretrained_model_name_or_path, loading_info.to_dict())
        return PreTrainedModel._finalize_model_loading(model, load_config, loading_info)

    @classmethod
    def _from_prompts(cls, name, raw, config, fields, hub, *model_args, output_loading_info=False, **kwargs):
        # 1. The prompts, checked before anything large is read.
        config = copy.deepcopy(config) if config is not None else prompts_config(raw, name, **fields)
        config.prompts_only = True
        prompts = read_prompts(name, config, **hub)
        # 2. Their base model, with the same sizes.
        base, revision = raw.get("base_model_name_or_path"), raw.get("base_model_revision")
        if given := fields.get("base_model_name_or_path"):
            base, revision = given, fields.get("base_model_revision")
        else:
            base = locate_base(base, name)
        revision = None if os.path.isdir(base) else revision
        # What is said of the repository of the prompts does not hold for that of their base model.
        places = ("cache_dir", "local_files_only", "token")
        base_hub = {**{key: hub[key] for key in places if key in hub}, "revision": revision}
        foreign = {*HUB_ARGUMENTS, "variant", "code_revision", "trust_remote_code", "adapter_kwargs", "_from_auto"}
        kwargs = {key: value for key, value in kwargs.items() if key not in foreign}
        try:
            base_raw = _read_config(base, base_hub)
        except OSError as error:
            raise OSError(
                f"{name} holds prompts alone, and their base model {base!r} (revision {revision}) can't be loaded; "
                f"give base_model_name_or_path=... if it lies elsewhere. {error}"
            ) from error
        is_free = prompts.config.prompt_type == "free"
        lacks_text = base_raw.get("prompt_type") == "free" and not is_free
        if base_raw.get("prompts_only") or base_raw.get("vision_only") or lacks_text:
            raise ValueError(f"{name} names {base!r} as its base model, but that has no complete backbone")
        check_same_sizes(prompts.config, resolve_config(base_raw, base, base_hub, {"prompt_token_ids": None}), name)
        takes_prompts = is_free or base_raw.get("model_type") == "clip"
        settings = {key: getattr(prompts.config, key) for key in PROMPT_FIELDS} if takes_prompts else {}
        with _no_load_report():  # it would call the prompts random, which they are for a moment only
            model, info = cls.from_pretrained(
                base, *model_args, output_loading_info=True, _pinned=True, **base_hub, **settings, **kwargs
            )
        # 3. The prompts put on it, if its weights are the right ones.
        model.load_prompts(prompts)
        for key in OUTPUT_FIELDS:
            setattr(model.config, key, getattr(config, key))
        model.config.base_model_name_or_path = portable_base_name(base)
        model.config.base_model_revision = revision
        model._processor_source = (os.path.abspath(name) if os.path.isdir(name) else name, hub)
        info["missing_keys"] = {key for key in info["missing_keys"] if not key.startswith("prompt_learner.")}
        return (model, info) if output_loading_info else model


def _read_config(name: str, hub: dict[str, Any]) -> dict[str, Any]:
    """Contents of a checkpoint's config.json, checked field by field; a ValueError names file and field."""
    raw, _ = AnomalyCLIPConfig.get_config_dict(name, **hub)
    if not raw:
        raise OSError(f"{name} has no config.json, so it is no checkpoint; check the path")
    try:
        check_fields(raw, stored=True)
    except ValueError as error:
        raise ValueError(f"config.json of {name} has {error}") from error
    return raw


def resolve_config(raw: dict[str, Any], name: str, hub: dict[str, Any], fields: dict[str, Any]) -> AnomalyCLIPConfig:
    """Configuration of AnomalyCLIP on a checkpoint, a CLIP's or its own.

    Args:
        raw (`dict`): contents of its config.json.
        fields (`dict`): fields of [`AnomalyCLIPConfig`], or `preset`, instead of the stored ones.

    Raises:
        ValueError: if it is neither CLIP's nor AnomalyCLIP's, or damaged.
    """
    if raw.get("model_type") == "anomalyclip":
        return AnomalyCLIPConfig.from_dict(raw, **fields)
    if raw.get("model_type") != "clip":
        raise ValueError(f"{name} has model_type={raw.get('model_type')!r}, expected 'clip' or 'anomalyclip'")
    try:
        clip = CLIPConfig.from_dict(raw)
    except WRONG_VALUE as error:
        raise ValueError(f"config.json of {name}: {in_one_line(error)}") from error
    known = {
        "text_config": clip.text_config.to_dict(),
        "vision_config": clip.vision_config.to_dict(),
        "projection_dim": clip.projection_dim,
        "logit_scale_init_value": clip.logit_scale_init_value,
        "base_model_name_or_path": portable_base_name(name),
        "base_model_revision": commit_of(name, hub),
    }
    has_own_words = clip.text_config.vocab_size != CLIP_VOCAB_SIZE and fields.get("prompt_type") != "free"
    if has_own_words and "prompt_token_ids" not in fields:
        known["prompt_token_ids"] = installed("conversion").prompt_ids_of_tokenizer(
            name, hub, fields.get("prompt_length", 12)
        )
    return AnomalyCLIPConfig(**{**known, **fields})


def commit_of(name: str, hub: dict[str, Any]) -> str | None:
    """Commit that a repository's revision stands for; None for a folder."""
    if os.path.isdir(name):
        return None
    revision = hub.get("revision")
    return extract_commit_hash(cached_file(name, "config.json", **hub), None) or (revision and str(revision))


def _revision_of_weights(name: str, hub: dict[str, Any], pinned: bool) -> str | None:
    """Revision of a repository from which its weights can be loaded as safetensors; None stands for `main`.

    Old repositories hold pickles alone. For their `main`, transformers loads the safetensors that the Hub's converter
    proposes as a pull request; without a network, those that were loaded so before are found here. Where a revision is
    `pinned` by prompts, `main` will do: their fingerprint shows whether it has the same weights.
    """
    revision, path = hub.get("revision"), find_weights(name, hub)
    read_index(path)  # refused before what it names is fetched
    if path is not None or os.path.isdir(name):
        return revision
    if is_offline_mode() or hub.get("local_files_only"):
        cache = Path(hub.get("cache_dir") or constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"))
        proposed = [int(path.name) for path in cache.glob("refs/refs/pr/*") if path.name.isdigit()]
        for number in sorted(proposed, reverse=True):
            place = {**hub, "local_files_only": True, "revision": f"refs/pr/{number}"}
            if (path := find_weights(name, place)) is not None:
                read_index(path)
                return f"refs/pr/{number}"
    elif pinned and revision:
        logger.warning(f"{name} has no safetensors at {revision}; those made of main are taken, and have to agree")
        return None
    return revision


@contextmanager
def _no_load_report() -> Iterator[None]:
    def errors_only(record):
        return record.levelno >= logging.ERROR

    report = logging.get_logger("transformers.modeling_utils")
    report.addFilter(errors_only)
    try:
        yield
    finally:
        report.removeFilter(errors_only)
