"""Loading and sharing of AnomalyCLIP: from any CLIP checkpoint, from a full one, or from prompts alone."""

import copy
import importlib
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, CLIPConfig, PreTrainedModel
from transformers.utils import logging
from transformers.utils.hub import cached_file, extract_commit_hash

from .configuration_anomalyclip import (
    CLIP_VOCAB_SIZE,
    CONFIG_FIELDS,
    AnomalyCLIPConfig,
    check_fields,
    check_names,
    encode_prompts,
    in_one_line,
)
from .processing_anomalyclip import AnomalyCLIPProcessor
from .prompts_anomalyclip import (
    HUB_ARGUMENTS,
    KNOWN_BASES,
    PROMPT_FIELDS,
    PROMPT_KEYS,
    PROMPTS_NAME,
    PromptSet,
    backbone_fingerprint,
    check_same_backbone,
    check_same_sizes,
    locate_base,
    override_config,
    portable_base_name,
    prompts_config,
    read_prompts,
    write_prompts,
)
from .sharing_anomalyclip import (
    add_card,
    add_code,
    add_tags,
    check_upload,
    refuse_full_checkpoint,
    staged_folder,
    upload,
)
from .weights_anomalyclip import check_complete, check_shard_names, check_sizes, revision_of_weights

logger = logging.get_logger(__name__)

# What of the arguments for a repository of prompts does not hold for the repository of their base model.
PROMPTS_REPOSITORY_ARGUMENTS = (
    *("revision", "subfolder", "variant", "code_revision", "force_download", "trust_remote_code", "adapter_kwargs"),
    "_from_auto",
)


def config_from_clip(clip: CLIPConfig, name_or_path: str, hub: dict[str, Any], **overrides) -> AnomalyCLIPConfig:
    """Configuration of AnomalyCLIP on a CLIP checkpoint.

    Args:
        clip (`CLIPConfig`): the checkpoint's own configuration.
        name_or_path (`str`): where it lies; kept as `base_model_name_or_path`.
        hub (`dict`): arguments for the Hub, used to find the tokenizer of an unusual vocabulary.
        **overrides: fields of [`AnomalyCLIPConfig`], or `preset`.
    """
    overrides.setdefault("base_model_name_or_path", portable_base_name(str(name_or_path)))
    overrides.setdefault("base_model_revision", commit_of(name_or_path, hub))
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


def commit_of(name_or_path: str, hub: dict[str, Any]) -> str | None:
    """Commit that a repository's revision stands for; None for a folder."""
    if os.path.isdir(name_or_path):
        return None
    revision = hub.get("revision")
    return extract_commit_hash(cached_file(name_or_path, "config.json", **hub), None) or (revision and str(revision))


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


class AnomalyCLIPHubMixin(PreTrainedModel if TYPE_CHECKING else object):  # type: ignore[misc]
    """Loading from every kind of source, and saving and sharing of everything or of the prompts alone."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        r"""Load a model from a CLIP checkpoint (fresh prompts), a full AnomalyCLIP checkpoint or prompts alone.

        Prompts alone bring the name and revision of their base model, which is loaded first.

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
        name, pinned = os.fspath(pretrained_model_name_or_path), kwargs.pop("_pinned", False)
        overrides = {k: kwargs.pop(k) for k in list(kwargs) if k in CONFIG_FIELDS or k == "preset"}
        hub = {k: kwargs[k] for k in HUB_ARGUMENTS if k in kwargs}
        if overrides.get("base_model_name_or_path") is not None:
            overrides["base_model_name_or_path"] = os.fspath(overrides["base_model_name_or_path"])
        raw, _ = AnomalyCLIPConfig.get_config_dict(name, **hub)
        if not raw:
            raise OSError(f"{name} has no config.json, so it is no checkpoint; check the path")
        check_raw_config(raw, name)
        if kwargs.pop("use_safetensors", True) is False:
            raise ValueError("use_safetensors=False: pickled weights can run code and are never loaded; convert them")
        if config is not None:
            config = override_config(config.to_dict(), overrides) if overrides else config
        if raw.get("prompts_only"):
            return cls._from_prompts(name, raw, config, overrides, hub, *model_args, **kwargs)
        if config is None:
            config = _resolve_config(raw, name, hub, overrides)
        wants_info = kwargs.pop("output_loading_info", False)
        check_shard_names(name, hub.get("subfolder", ""))
        if kwargs.get("variant") is None:
            kwargs["revision"] = revision_of_weights(name, hub, pinned) or "main"
        try:
            if kwargs.get("variant") is None:
                check_sizes(name, {**hub, "revision": kwargs["revision"]}, config)
            model, info = super().from_pretrained(  # type: ignore[misc]
                name, *model_args, config=config, output_loading_info=True, use_safetensors=True, **kwargs
            )
        except SafetensorError as error:
            raise ValueError(
                f"the weights of {name} are truncated or no safetensors file ({error}); fetch them again"
            ) from error
        except ImportError as error:
            raise ValueError(f"{name} can't be loaded without another package: {error}") from error
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            raise ValueError(f"weights of {name} have other shapes than its config.json says; see the log") from error
        check_complete(info, name, fresh=raw.get("model_type") == "clip")
        model._hold_prompts()
        model.freeze_backbone()
        model._loaded_from = (portable_base_name(name), commit_of(name, hub))
        model._processor_source = (_lasting_name(name), hub)
        return (model, info) if wants_info else model

    @classmethod
    def _from_prompts(cls, name, raw, config, overrides, hub, *model_args, **kwargs):
        # 1. The prompts, checked before anything large is read.
        stored = prompts_config(raw, name, overrides)
        config = copy.deepcopy(config) if config is not None else stored
        config.prompts_only = True
        prompts = read_prompts(name, config, **hub)
        # 2. Their base model, with the same sizes.
        if given := overrides.get("base_model_name_or_path"):
            base, revision = given, overrides.get("base_model_revision")
        else:
            base, revision = locate_base(raw.get("base_model_name_or_path"), name), raw.get("base_model_revision")
        revision = revision if not os.path.isdir(base) else None
        base_hub = {k: v for k, v in hub.items() if k not in PROMPTS_REPOSITORY_ARGUMENTS} | {"revision": revision}
        try:
            base_raw, _ = AnomalyCLIPConfig.get_config_dict(base, **base_hub)
        except OSError as error:
            raise OSError(
                f"{name} holds prompts alone, and their base model {base!r} (revision {revision}) can't be loaded; "
                f"give base_model_name_or_path=... if it lies elsewhere. {error}"
            ) from error
        if base_raw.get("prompts_only") or base_raw.get("vision_only"):
            raise ValueError(f"{name} names {base!r} as its base model, but that has no complete backbone")
        check_same_sizes(prompts.config, _resolve_config(base_raw, base, base_hub, {"prompt_token_ids": None}), name)
        fields = {key: getattr(prompts.config, key) for key in PROMPT_FIELDS}
        fields = fields if base_raw.get("model_type") == "clip" else {}
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs = {k: v for k, v in kwargs.items() if k not in PROMPTS_REPOSITORY_ARGUMENTS}
        with _no_load_report():  # it would call the prompts random, which they are for a moment only
            model, info = cls.from_pretrained(
                base, *model_args, revision=revision, output_loading_info=True, _pinned=True, **fields, **kwargs
            )
        # 3. The prompts put on it, if its weights are the right ones.
        model.load_prompts(prompts)
        model.config.base_model_name_or_path = portable_base_name(base)
        model.config.base_model_revision = revision
        model._processor_source = (_lasting_name(name), hub)
        info["missing_keys"] = {key for key in info["missing_keys"] if not key.startswith("prompt_learner.")}
        return (model, info) if wants_info else model

    def get_prompts(self, base_model_name_or_path=None, base_model_revision=None) -> PromptSet:
        """A copy of the current prompts, which later training or loading leaves as it is.

        Args:
            base_model_name_or_path, base_model_revision (`str`, *optional*): name the backbone otherwise than the
                configuration does.

        Raises:
            ValueError: if the model is vision-only.
        """
        _refuse_vision_only(self.config, "it has no prompts to take out")
        self._hold_prompts()
        config = copy.deepcopy(self.config)
        loaded_from, commit = getattr(self, "_loaded_from", (None, None))
        if base_model_name_or_path is not None:
            config.base_model_name_or_path = portable_base_name(os.fspath(base_model_name_or_path))
            config.base_model_revision = base_model_revision
        elif config.base_model_name_or_path is None or loaded_from in KNOWN_BASES:
            config.base_model_name_or_path, config.base_model_revision = loaded_from, commit
        else:
            config.base_model_name_or_path = portable_base_name(config.base_model_name_or_path)
        learned = {key: getattr(self.prompt_learner, key).detach().clone() for key in PROMPT_KEYS}
        return PromptSet(**learned, config=config, fingerprint=backbone_fingerprint(self))

    def load_prompts(self, source, **hub):
        """Put other prompts on this backbone, with the settings that they were learned with.

        Args:
            source (`str`, `os.PathLike` or [`PromptSet`]): folder or Hub repository of prompts alone or of a full
                AnomalyCLIP; or what [`~AnomalyCLIPModel.get_prompts`] gave.
            **hub: `revision`, `token`, `cache_dir`, `local_files_only`, ...

        Raises:
            ValueError: if a part is missing or damaged, or the prompts belong to another backbone (both are named);
                the model is then unchanged.
        """
        prompts = source if isinstance(source, PromptSet) else read_prompts(source, **hub)
        check_same_backbone(prompts, self)
        self._put(prompts)
        return self

    def add_prompts(self, name: str, source=None, **hub) -> None:
        """Keep prompts in memory under a name, to be put on the backbone by [`~AnomalyCLIPModel.set_prompts`].

        Args:
            name (`str`): a name of your own; an older set of that name is replaced.
            source (*optional*): as in [`~AnomalyCLIPModel.load_prompts`]; the current prompts if absent.
        """
        if source is None:
            source = self.get_prompts()
        prompts = source if isinstance(source, PromptSet) else read_prompts(source, **hub)
        check_same_backbone(prompts, self)
        self.__dict__.setdefault("_prompt_sets", {})[name] = prompts

    def set_prompts(self, name: str) -> None:
        """Put kept prompts on the backbone; takes about a millisecond.

        Raises:
            KeyError: if no prompts of that name were added.
        """
        if name not in self.prompt_names:
            raise KeyError(
                f"no prompts named {name!r}, there are {self.prompt_names}; add them with add_prompts first"
            )
        self._put(self.__dict__["_prompt_sets"][name])

    @property
    def prompt_names(self) -> list[str]:
        """Names of the prompts kept by [`~AnomalyCLIPModel.add_prompts`]."""
        return list(self.__dict__.get("_prompt_sets", {}))

    @torch.no_grad()
    def _hold_prompts(self) -> None:
        """Take prompts that accelerate offloaded back into memory for good: they are small, and read and written."""
        learner = getattr(self, "prompt_learner", None)
        if learner is None or not any(parameter.is_meta for parameter in learner.parameters()):
            return
        stored = getattr(getattr(learner, "_hf_hook", None), "weights_map", None) or {}
        for key in PROMPT_KEYS:
            old = getattr(learner, key)
            setattr(learner, key, nn.Parameter(torch.empty(old.shape), requires_grad=old.requires_grad))
        self._init_weights(learner)  # what no file held is drawn afresh, as it is without offloading
        for key in PROMPT_KEYS:
            with suppress(KeyError):
                getattr(learner, key).copy_(stored[key])
        importlib.import_module("accelerate.hooks").remove_hook_from_module(learner)  # who offloaded has it

    @torch.no_grad()
    def _put(self, prompts: PromptSet) -> None:
        self.prompts_source = prompts.source  # for records of what was judged
        self._hold_prompts()
        for key in PROMPT_KEYS:
            old, new = getattr(self.prompt_learner, key), getattr(prompts, key)
            if old.shape == new.shape:
                old.copy_(new)
            else:
                new = new.to(device=old.device, dtype=torch.float32, copy=True)
                setattr(self.prompt_learner, key, nn.Parameter(new, requires_grad=old.requires_grad))
        for field in PROMPT_FIELDS:
            setattr(self.config, field, copy.deepcopy(getattr(prompts.config, field)))

    def save_prompts(
        self,
        save_directory,
        processor=None,
        base_model_name_or_path=None,
        base_model_revision=None,
        card=True,
        save_code=True,
    ) -> None:
        """Save the prompts alone: 172 KB for ViT-L, loadable by `from_pretrained` of model, processor and pipeline.

        Args:
            save_directory (`str` or `os.PathLike`): folder, made if absent; each file appears complete or not at all.
            processor ([`AnomalyCLIPProcessor`], *optional*): one for the model's input size if absent.
            base_model_name_or_path, base_model_revision (`str`, *optional*): name the backbone otherwise than the
                configuration does.
            card (`bool`, `dict` or `ModelCard`, defaults to `True`): the README.md to write. False = none; a dict,
                such as `{"training": ..., "results": ...}`, is told to [`make_model_card`].
            save_code (`bool`, defaults to `True`): add the code that `trust_remote_code=True` runs (about 155 KB).

        Raises:
            ValueError: if nothing names the backbone, the folder holds a full checkpoint, or the model is vision-only.
        """
        prompts = self.get_prompts(base_model_name_or_path, base_model_revision)
        if prompts.config.base_model_name_or_path is None:
            raise ValueError(
                "nothing says which backbone these prompts belong to, and alone they are of no use; give "
                "base_model_name_or_path=... (a Hub repository or a folder), or use save_pretrained"
            )
        refuse_full_checkpoint(save_directory)
        with staged_folder(save_directory) as stage:
            write_prompts(prompts, stage / PROMPTS_NAME)
            config = prompts.config
            config.prompts_only, config.architectures, config.dtype = True, [type(self).__name__], None
            config.save_pretrained(stage)
            (processor or self._default_processor()).save_pretrained(stage)
            add_code(stage, save_code)
            facts = {"prompts_file": stage / PROMPTS_NAME, "base": config.base_model_name_or_path}
            add_card(stage, self, card, repo_id=os.fspath(save_directory), **facts)

    def _default_processor(self) -> AnomalyCLIPProcessor:
        size = {"height": self.config.image_size, "width": self.config.image_size}
        name, hub = getattr(self, "_processor_source", (None, {}))
        if name:  # the user's own choice: what is wrong with it is told
            known = locate_base(name, ".") if name in KNOWN_BASES else name
            return AnomalyCLIPProcessor.from_pretrained(known, **hub, size=size)
        try:
            base = locate_base(self.config.base_model_name_or_path, ".")
        except (OSError, ValueError):
            return AnomalyCLIPProcessor(size=size)
        try:
            return AnomalyCLIPProcessor.from_pretrained(base, local_files_only=True, size=size)
        except OSError:  # not in the cache; settings that are there and out of range are told
            return AnomalyCLIPProcessor(size=size)

    def push_prompts_to_hub(
        self,
        repo_id: str,
        processor=None,
        base_model_name_or_path=None,
        base_model_revision=None,
        card=True,
        save_code=True,
        tags=None,
        **upload_kwargs,
    ):
        """Share the prompts alone on the Hub, in one commit.

        Args:
            repo_id (`str`): such as `"me/anomalyclip-prompts"`; made if absent.
            processor, base_model_name_or_path, base_model_revision, card, save_code: as in
                [`~AnomalyCLIPModel.save_prompts`]. The base model must be on the Hub too.
            tags (`str` or `list[str]`, *optional*): added to the card's.
            **upload_kwargs: `private`, `token`, `revision`, `commit_message`, `commit_description`, `create_pr`,
                `dry_run`.

        Raises:
            ValueError: if the base model is a local folder, which nobody else has, or `repo_id` is no name.
            OSError: (`PermissionError`, `FileNotFoundError`, `ConnectionError`) if the Hub refuses; says what to do.
        """
        upload_kwargs = check_upload(repo_id, upload_kwargs)
        base = self.get_prompts(base_model_name_or_path, base_model_revision).config.base_model_name_or_path
        if base is not None and os.path.isabs(base):
            raise ValueError(
                f"the prompts' base model is the local folder {base!r}, which nobody else has; give "
                "base_model_name_or_path=... (the repository it came from), or share everything with push_to_hub"
            )
        upload_kwargs.setdefault("commit_message", "Upload prompts")
        with staged_folder(None) as folder:
            if card is True or isinstance(card, dict):
                card = {"repo_id": repo_id, **({} if card is True else card)}
            self.save_prompts(folder, processor, base_model_name_or_path, base_model_revision, card, save_code)
            add_tags(folder, tags)
            return upload(folder, repo_id, **upload_kwargs)

    def save_pretrained(self, save_directory, *args, push_to_hub=False, save_code=True, **kwargs) -> None:
        """Save everything, as `PreTrainedModel.save_pretrained` does; each file appears complete or not at all.

        Args:
            save_directory (`str` or `os.PathLike`): folder, made if absent.
            push_to_hub (`bool`, defaults to `False`): also push it, to `repo_id` or the folder's name.
            save_code (`bool`, defaults to `True`): add the code that `trust_remote_code=True` runs (about 155 KB).
            *args, **kwargs: as in `PreTrainedModel.save_pretrained`.
        """
        hub = {
            k: kwargs.pop(k)
            for k in ("repo_id", "commit_message", "commit_description", "private", "create_pr", "revision", "tags")
            if k in kwargs
        }
        if push_to_hub and hub.get("repo_id"):
            check_upload(hub["repo_id"], {})
        if kwargs.get("distributed_checkpoint"):
            return super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        with staged_folder(save_directory) as stage:
            super().save_pretrained(stage, *args, **kwargs)  # type: ignore[misc]
            add_code(stage, save_code)
        if push_to_hub:
            repo_id = hub.pop("repo_id", Path(save_directory).resolve().name)
            self.push_to_hub(repo_id, save_code=save_code, token=kwargs.get("token"), **hub)

    def push_to_hub(
        self,
        repo_id: str,
        processor=None,
        card=True,
        save_code=True,
        max_shard_size="50GB",
        variant=None,
        tags=None,
        **upload_kwargs,
    ):
        """Share everything on the Hub, in one commit: weights, configuration, processor, code and card.

        Args:
            repo_id (`str`): such as `"me/anomalyclip"`; made if absent.
            processor ([`AnomalyCLIPProcessor`], *optional*): one for the model's input size if absent.
            card, save_code: as in [`~AnomalyCLIPModel.save_prompts`].
            max_shard_size (`int` or `str`), variant (`str`, *optional*): as in `PreTrainedModel.save_pretrained`.
            tags (`str` or `list[str]`, *optional*): added to the card's.
            **upload_kwargs: `private`, `token`, `revision`, `commit_message`, `commit_description`, `create_pr`,
                `dry_run`.

        Raises:
            OSError: (`PermissionError`, `FileNotFoundError`, `ConnectionError`) if the Hub refuses; says what to do.
        """
        upload_kwargs = check_upload(repo_id, upload_kwargs)
        upload_kwargs.setdefault("commit_message", "Upload model")
        with staged_folder(None) as folder:
            self.save_pretrained(folder, save_code=save_code, max_shard_size=max_shard_size, variant=variant)
            (processor or self._default_processor()).save_pretrained(folder)
            add_code(folder, save_code)
            add_card(folder, self, card, repo_id=repo_id)
            add_tags(folder, tags)
            return upload(folder, repo_id, **upload_kwargs)

    @torch.no_grad()
    def to_vision_only(self):
        """A copy with the prompts folded into two text embeddings and no text tower; it can't be trained.

        Returns:
            [`AnomalyCLIPModel`] that gives the same results; save and load it as any other.
        """
        _refuse_vision_only(self.config, "there is nothing to fold")
        if any(parameter.is_meta for parameter in self.parameters()):
            raise ValueError("some weights are offloaded, so no copy can be made; load the model without device_map")
        config = AnomalyCLIPConfig.from_dict({**self.config.to_dict(), "vision_only": True})
        model = type(self)._from_config(config, attn_implementation=self.config._attn_implementation)
        model = model.to(device=self.device, dtype=self.dtype)
        own = self.state_dict()
        weights = {key: value for key, value in own.items() if key.startswith(("vision_model.", "visual_projection."))}
        model.folded_text_embeds = nn.Buffer(self.get_text_features().clone())
        model.load_state_dict({**weights, "folded_text_embeds": model.folded_text_embeds})
        for source in ("_loaded_from", "_processor_source"):
            if hasattr(self, source):
                setattr(model, source, getattr(self, source))
        return model.eval() if not self.training else model


def _lasting_name(name: str) -> str:
    """A folder's name that still holds when the working directory changes; a repository's as it is."""
    return os.path.abspath(name) if os.path.isdir(name) else name


@contextmanager
def _no_load_report():
    def errors_only(record):
        return record.levelno >= logging.ERROR

    report = logging.get_logger("transformers.modeling_utils")
    report.addFilter(errors_only)
    try:
        yield
    finally:
        report.removeFilter(errors_only)


def check_raw_config(raw: dict, name: str) -> None:
    """Refuse a config.json whose values are of wrong kinds or sizes, or that names code from elsewhere.

    Raises:
        ValueError: naming the file and the field.
    """
    try:
        check_names(raw)
        check_fields(raw)
    except ValueError as error:
        raise ValueError(f"config.json of {name} has {error}") from error


def _refuse_vision_only(config: AnomalyCLIPConfig, why: str) -> None:
    if config.vision_only:
        raise ValueError(f"this model is vision-only: {why}; load the full one")


def _resolve_config(raw: dict, name: str, hub: dict, overrides: dict) -> AnomalyCLIPConfig:
    kind = raw.get("model_type")
    if kind == "clip":
        try:
            clip = CLIPConfig.from_dict(raw)
        except (StrictDataclassError, TypeError, AttributeError, KeyError, OverflowError) as error:
            raise ValueError(f"config.json of {name}: {in_one_line(error)}") from error
        return config_from_clip(clip, name, hub, **overrides)
    if kind == "anomalyclip":
        return override_config(raw, overrides)
    raise ValueError(f"{name} has model_type={kind!r}, expected 'clip' or 'anomalyclip'")


__all__ = ["AnomalyCLIPHubMixin"]
