"""Prompts alone, what adapters are to PEFT: kept, saved, loaded, shared, swapped and folded."""

import base64
import copy
import importlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging
from transformers.utils.hub import cached_file

from .configuration_anomalyclip import PROMPT_STD, AnomalyCLIPConfig
from .image_processing_anomalyclip import AnomalyCLIPImageProcessor
from .options_anomalyclip import installed

logger = logging.get_logger(__name__)

PROMPTS_NAME = "prompts.safetensors"
WEIGHTS_NAME, WEIGHTS_INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# Configuration that goes with prompts when they move to another copy of their backbone.
PROMPT_FIELDS = (
    *("prompt_type", "prompt_length", "deep_prompt_depth", "deep_prompt_length", "prompt_token_ids"),
    *("dpam_layers", "dpam_attention", "feature_layers", "temperature"),
    *("image_size", "image_threshold", "pixel_threshold", "score_rule", "thresholds_for", "reference_layers"),
)
# Sizes that two backbones must share.
TOWER_FIELDS = {
    "text_config": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"),
    "vision_config": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size"),
}
DEMO_BASE = "anomalyclip_hf/demo"  # the backbone that lies in the installed package


@dataclass
class PromptSet:
    """Learned prompts with what they need to be used again.

    Args:
        context (`Tensor` of shape `(2, E, d)`, float32): learned words; [0] normal, [1] anomalous. None if free.
        deep_prompts (`Tensor` of shape `(depth - 1, T, d)`, float32). None if free.
        config ([`AnomalyCLIPConfig`]): what they were learned with, the sizes of the backbone included.
        fingerprint (`Tensor` of shape `(n,)`, float32, *optional*): of the backbone; None = not known.
        source (`str`): where they came from, for messages.
        image_vectors, patch_vectors (`Tensor` of shape `(2, P)` and `(M, 2, P)`, float32): of free prompts.
    """

    context: Tensor | None
    deep_prompts: Tensor | None
    config: AnomalyCLIPConfig
    fingerprint: Tensor | None = None
    source: str = "memory"
    image_vectors: Tensor | None = None
    patch_vectors: Tensor | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The learned tensors by their names in `prompt_learner`."""
        return {key: getattr(self, key) for key in self.config.prompt_shapes}


def _prompt_set(learned: dict[str, Any], config: AnomalyCLIPConfig, **facts: Any) -> PromptSet:
    return PromptSet(**{"context": None, "deep_prompts": None, **learned}, config=config, **facts)


# The backbone that prompts belong to


def portable_base_name(name: str) -> str:
    """Name of a backbone as it is written beside prompts: of the embedded one, a repository, or a full path."""
    folder = _folder_of_demo()
    if name == DEMO_BASE or (folder is not None and os.path.realpath(name) == os.path.realpath(folder)):
        return DEMO_BASE
    return os.path.abspath(name) if os.path.isdir(name) else name


def _folder_of_demo() -> str | None:
    try:
        return installed("assets").demo_checkpoint()
    except ImportError:
        return None


def locate_base(name: str | None, source: str) -> str:
    """Where the backbone named in a file of prompts lies: a folder or a repository.

    Args:
        name (`str`, *optional*): `base_model_name_or_path` as stored.
        source (`str`): where the prompts came from. Only prompts of a local folder may name a local folder.

    Raises:
        ValueError: if the name is missing or is neither a repository's nor a local folder's.
        OSError: if it is the one of the package, and that isn't installed, or a folder that isn't there.
    """
    advice = "give base_model_name_or_path=... to from_pretrained to name the backbone yourself"
    if not name:
        raise ValueError(f"{source} holds prompts alone but its config.json lacks base_model_name_or_path; {advice}")
    if name == DEMO_BASE:
        if (folder := _folder_of_demo()) is None:
            raise OSError(
                f"the prompts of {source} belong to {name!r}, which comes with the package anomalyclip_hf, and that "
                f"isn't installed: pip install anomalyclip_hf, or {advice}"
            )
        return folder
    if os.path.isabs(name) and ".." not in Path(name).parts:
        if not os.path.isdir(source):
            raise ValueError(f"{source} names the local folder {name!r} as base_model_name_or_path; {advice}")
        if not os.path.isdir(name):
            raise OSError(f"the base model of {source} is the folder {name!r}, which isn't there; {advice}")
        return name
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(
            f"{source} has base_model_name_or_path={name!r}, expected a repository such as "
            f"'openai/clip-vit-large-patch14-336' or an absolute folder; {advice}"
        ) from error
    return name


def backbone_fingerprint(model: nn.Module) -> Tensor | None:
    """One number of every weight matrix of the backbone, to tell one backbone from another of the same size.

    Returns:
        `Tensor` of shape `(n,)`, float32, on the CPU; None if the weights are quantised or not in memory.
    """
    samples = []
    for name, weight in sorted(model.named_parameters()):
        if name.startswith("prompt_learner.") or weight.ndim < 2:
            continue
        if weight.is_meta or type(weight) is not nn.Parameter or not weight.is_floating_point():
            return None
        samples.append(weight.detach()[(weight.shape[0] // 2, *[0] * (weight.ndim - 1))].float())
    return torch.stack([sample.to(samples[0].device) for sample in samples]).cpu()


def stored_fingerprint(metadata: dict[str, str]) -> Tensor | None:
    """The fingerprint in the metadata of a file; a ValueError if it is damaged."""
    if "backbone" not in metadata:
        return None
    return torch.from_numpy(np.frombuffer(base64.b64decode(metadata["backbone"], validate=True), "<f4").copy())


def same_fingerprints(one: Tensor, other: Tensor) -> bool:
    """Whether two results of [`backbone_fingerprint`] agree within the rounding of half precision, in what both have:
    text towers come first, and may have been left out of one."""
    shorter = max(1, min(len(one), len(other)))
    ends = one[-shorter:], other[-shorter:]
    return ends[0].shape == ends[1].shape and torch.allclose(*ends, rtol=2**-7, atol=1e-6)


def check_same_sizes(prompts: AnomalyCLIPConfig, base: AnomalyCLIPConfig, source: str) -> None:
    """Raise a ValueError that names both backbones and the sizes in which they differ."""
    pairs = [("projection_dim", prompts.projection_dim, base.projection_dim)]
    for tower, fields in TOWER_FIELDS.items():
        ours, theirs = getattr(prompts, tower), getattr(base, tower)
        pairs += [(f"{tower}.{field}", getattr(ours, field), getattr(theirs, field)) for field in fields]
    if differing := [f"{name} is {a} there and {b} here" for name, a, b in pairs if a != b]:
        raise ValueError(_wrong_backbone(prompts, base, source) + "; ".join(differing))


def check_same_backbone(prompts: PromptSet, model: PreTrainedModel) -> None:
    """Refuse prompts that were learned on another backbone, by its sizes and by samples of its weights.

    Weights are compared within the rounding of half precision, so that the backbone's dtype does not matter.

    Raises:
        ValueError: naming both backbones.
    """
    config: Any = model.config
    refuse_vision_only(config, "it has no text tower to put prompts on")
    if prompts.config.reads_text and not hasattr(model, "text_model"):
        raise ValueError(
            f"the prompts of {prompts.source} are read by a text tower, and this model (prompt_type='free') has none; "
            "load AnomalyCLIPModel.from_pretrained(<the prompts>), and make free ones of them by to_free_prompts()"
        )
    check_same_sizes(prompts.config, config, prompts.source)
    here, there = backbone_fingerprint(model), prompts.fingerprint
    if there is None or here is None:
        why = "can't be compared by fingerprint with a backbone that is quantised or not in memory"
        why = "carry no fingerprint of their backbone" if there is None else why
        logger.warning(
            f"the prompts of {prompts.source} {why}: whether this model's weights are those they were learned on "
            "isn't known. On others their scores mean nothing; check the base model, and save the prompts anew"
        )
    elif not same_fingerprints(here, there):
        raise ValueError(_wrong_backbone(prompts.config, config, prompts.source) + "the weights differ")


def _wrong_backbone(prompts: AnomalyCLIPConfig, base: AnomalyCLIPConfig, source: str) -> str:
    theirs, ours = (config.base_model_name_or_path or config.name_or_path or "?" for config in (prompts, base))
    return (
        f"the prompts of {source} were learned on the backbone {theirs!r}, but this one is {ours!r}; load the right "
        "one with AnomalyCLIPModel.from_pretrained(<the prompts>). What differs: "
    )


def refuse_vision_only(config: AnomalyCLIPConfig, why: str) -> None:
    """Raise a ValueError if a model's prompts are folded."""
    if config.vision_only:
        raise ValueError(f"this model is vision-only: {why}; load the full one")


# Files


def read_prompts(source: str | os.PathLike, config: AnomalyCLIPConfig | None = None, **hub: Any) -> PromptSet:
    """Read prompts from a folder or repository that holds prompts alone or a full AnomalyCLIP.

    Args:
        source (`str` or `os.PathLike`): folder or Hub repository.
        config ([`AnomalyCLIPConfig`], *optional*): instead of the stored one.
        **hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, `subfolder`.

    Raises:
        ValueError: if a part is missing, truncated, of another shape or dtype, or not finite; it is named.
        OSError: if a file can't be found.
    """
    name = os.fspath(source)
    if config is None:
        config = prompts_config(AnomalyCLIPConfig.get_config_dict(name, **hub)[0], name)
    file = PROMPTS_NAME
    if not config.prompts_only:
        files = read_index(find_weights(name, hub))
        file = files.get(f"prompt_learner.{min(config.prompt_shapes)}", WEIGHTS_NAME)
    where, wanted = f"{file} of {name}", {f"prompt_learner.{key}" for key in config.prompt_shapes}
    try:
        with safe_open(cached_file(name, file, **hub), framework="pt") as stored:
            keys, metadata = set(stored.keys()), stored.metadata() or {}
            tensors = {key: stored.get_tensor(key) for key in wanted & keys}
        fingerprint = stored_fingerprint(metadata)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{where} is truncated or no safetensors file ({error}); fetch it again") from error
    if missing := sorted(wanted - keys):
        raise ValueError(f"{where} lacks {', '.join(missing)}; it holds {sorted(keys)[:4]}")
    if config.prompts_only and keys != wanted:
        raise ValueError(f"{where} holds {sorted(keys - wanted)[:4]}, expected {sorted(wanted)} alone")
    is_free = config.prompt_type == "free"
    fields = ["projection_dim", "feature_layers"] if is_free else [*PROMPT_FIELDS[1:4]]
    for key, shape in config.prompt_shapes.items():
        value = tensors[f"prompt_learner.{key}"]
        if tuple(value.shape) != shape or not value.is_floating_point():
            raise ValueError(
                f"{where}: prompt_learner.{key} has shape {tuple(value.shape)} and dtype {value.dtype}, but the "
                f"configuration says {shape} and float32 "
                f"({', '.join(f'{field}={getattr(config, field)}' for field in fields)})"
            )
        if not torch.isfinite(value).all():
            raise ValueError(f"{where}: prompt_learner.{key} has values that are not finite; fetch it again")
    learned = {key: tensors[f"prompt_learner.{key}"].float() for key in config.prompt_shapes}
    return _prompt_set(learned, config, fingerprint=fingerprint, source=name)


def prompts_config(raw: dict[str, Any], name: str, **overrides: Any) -> AnomalyCLIPConfig:
    """Configuration of prompts from the contents of a config.json, with what must not be made up.

    Raises:
        ValueError: if it is no AnomalyCLIP's, a vision-only one's, or lacks the sizes of the backbone.
    """
    if raw.get("model_type") != "anomalyclip":
        raise ValueError(f"config.json of {name} has model_type={raw.get('model_type')!r}, expected 'anomalyclip'")
    if raw.get("vision_only"):
        raise ValueError(f"{name} is vision-only: its prompts are folded and can't be taken out; use the full one")
    if missing := [key for key in ("text_config", "vision_config", "projection_dim") if key not in raw]:
        raise ValueError(f"config.json of {name} lacks {', '.join(missing)}; save the prompts again with save_prompts")
    return AnomalyCLIPConfig.from_dict(raw, **overrides)


def find_weights(name: str, hub: dict[str, Any]) -> str | None:
    """Path of a full checkpoint's safetensors, or of their index; None if none are found or no Hub answers."""
    kinds = ("missing_entries", "connection_errors", "gated_repo")
    quiet = {f"_raise_exceptions_for_{kind}": False for kind in kinds}
    found = (cached_file(name, file, **{**hub, **quiet}) for file in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME))
    return next(filter(None, found), None)


def read_index(path: str | None) -> dict[str, str]:
    """Name of each weight -> the file beside the index that holds it; empty if the path is of no index.

    Raises:
        ValueError: if the index is damaged or names anything but safetensors files beside it.
    """
    if path is None or not path.endswith(".json"):
        return {}
    try:
        files = json.loads(Path(path).read_text(encoding="utf-8"))["weight_map"]
        for file in files.values():
            if not isinstance(file, str) or os.path.basename(file) != file or not file.endswith(".safetensors"):
                raise ValueError(f"{path} names the file {file!r}, expected a .safetensors file beside it")
    except (KeyError, AttributeError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); fetch it again") from error
    return files


class PromptsMixin(PreTrainedModel if TYPE_CHECKING else object):  # type: ignore[misc]
    """What a model can do with its prompts, and how it is saved and shared."""

    def get_prompts(self, base_model_name_or_path=None, base_model_revision=None) -> PromptSet:
        """A copy of the current prompts, which later training or loading leaves as it is.

        Args:
            base_model_name_or_path, base_model_revision (`str`, *optional*): name the backbone otherwise than the
                configuration does.

        Raises:
            ValueError: if the model is vision-only.
        """
        refuse_vision_only(self.config, "it has no prompts to take out")
        self._hold_prompts()
        config = copy.deepcopy(self.config)
        named = self._base_of_prompts(base_model_name_or_path, base_model_revision)
        config.base_model_name_or_path, config.base_model_revision = named
        return _prompt_set(self._learned(), config, fingerprint=backbone_fingerprint(self))

    def _learned(self) -> dict[str, Tensor]:
        """Copies of the learned tensors by their names in `prompt_learner`."""
        return {key: value.detach().clone() for key, value in self.prompt_learner.named_parameters()}

    def _base_of_prompts(self, name=None, revision=None) -> tuple[str | None, str | None]:
        """Name and revision of the backbone, as they are written beside prompts; those given come first."""
        loaded_from, commit = getattr(self, "_loaded_from", (None, None))
        own = self.config.base_model_name_or_path
        if name is not None:
            return portable_base_name(os.fspath(name)), revision
        if own is None or loaded_from == DEMO_BASE:
            return loaded_from, commit
        return portable_base_name(own), self.config.base_model_revision

    def load_prompts(self, source, **hub):
        """Put other prompts on this backbone, with the settings that they were learned with.

        Args:
            source (`str`, `os.PathLike` or [`PromptSet`]): folder or Hub repository of prompts alone or of a full
                AnomalyCLIP; or what [`~AnomalyCLIPModel.get_prompts`] returned.
            **hub: `revision`, `token`, `cache_dir`, `local_files_only`, ...

        Raises:
            ValueError: if a part is missing or damaged, or the prompts belong to another backbone (both are named);
                the model is then unchanged.
        """
        self._put(self._checked(source, hub))
        return self

    def _checked(self, source: str | os.PathLike | PromptSet, hub: dict[str, Any]) -> PromptSet:
        prompts = source if isinstance(source, PromptSet) else read_prompts(source, **hub)
        check_same_backbone(prompts, self)
        return prompts

    def add_prompts(self, name: str, source=None, **hub) -> None:
        """Keep prompts in memory under a name, to be put on the backbone by [`~AnomalyCLIPModel.set_prompts`].

        Args:
            name (`str`): a name of your own; an older set of that name is replaced.
            source (*optional*): as in [`~AnomalyCLIPModel.load_prompts`]; the current prompts if absent.
        """
        prompts = self._checked(self.get_prompts() if source is None else source, hub)
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

    @property
    def profile(self) -> Any:
        """The [`Profile`] that is set; None = the model's own settings."""
        return self.__dict__.get("_profile")

    @property
    def profile_names(self) -> list[str]:
        """Names of the profiles of the model's checkpoint, and of those that were set."""
        return installed("scoring.profiles").known_profiles(self)

    def get_profile(self, name: str) -> Any:
        """A [`Profile`] by its name, read from the model's checkpoint the first time; raises as `set_profile` does."""
        return installed("scoring.profiles").get_profile(self, name)

    def set_profile(self, profile) -> None:
        """Judge by the settings of one product from now on; a switch between profiles takes well under a millisecond.

        The pipeline takes the profile's options where a call gives none. Prompts of a profile are put on the backbone,
        and the model's own come back with the next profile that has none.

        Args:
            profile (`str` or [`Profile`], *optional*): name of one beside the model's checkpoint, read the first time,
                or one made here, kept under its name; None = the model's own settings.

        Raises:
            ValueError: if there is no such profile (the known ones are named), or one that can't be used; the model is
                then unchanged.
        """
        installed("scoring.profiles").set_profile(self, profile)

    def save_profiles(self, save_directory, names: list[str] | None = None) -> None:
        """Write profiles with all that belongs to them into the folder of a saved checkpoint.

        Args:
            save_directory (`str` or `os.PathLike`).
            names (`list[str]`, *optional*): all that are known if absent; of those, one that can't be read is left out
                with a warning.
        """
        installed("scoring.profiles").save_profiles(self, save_directory, names)

    def _copy_prompts(self) -> PromptSet:
        """The prompts that are on the backbone, to be put back on this one."""
        self._hold_prompts()
        source = getattr(self, "prompts_source", "memory")
        return _prompt_set(self._learned(), copy.copy(self.config), source=source)

    @torch.no_grad()
    def _hold_prompts(self) -> None:
        """Take prompts that accelerate offloaded back into memory for good: they are small, and read and written."""
        learner = getattr(self, "prompt_learner", None)
        if learner is None or not any(parameter.is_meta for parameter in learner.parameters()):
            return
        stored = getattr(getattr(learner, "_hf_hook", None), "weights_map", None) or {}
        for key, old in list(learner.named_parameters()):
            setattr(learner, key, nn.Parameter(torch.empty(old.shape), requires_grad=old.requires_grad))
        self._init_weights(learner)  # what no file held is drawn afresh, as it is without offloading
        for key, value in learner.named_parameters():
            with suppress(KeyError):
                value.copy_(stored[key])
        importlib.import_module("accelerate.hooks").remove_hook_from_module(learner)

    @torch.no_grad()
    def _put(self, prompts: PromptSet) -> None:
        self.prompts_source = prompts.source  # for records of what was judged
        self.__dict__.pop("_own_prompts", None)  # unless a profile put them, these are the model's own now
        self._hold_prompts()
        olds = dict(self.prompt_learner.named_parameters())
        like = next(iter(olds.values()))
        for key in olds.keys() - prompts.tensors.keys():  # of another type of prompts
            delattr(self.prompt_learner, key)
        for key, new in prompts.tensors.items():
            if key in olds and olds[key].shape == new.shape:
                olds[key].copy_(new)
            else:
                new = new.to(device=like.device, dtype=torch.float32, copy=True)
                self.prompt_learner.register_parameter(key, nn.Parameter(new, requires_grad=like.requires_grad))
        for field in PROMPT_FIELDS:
            if getattr(self.config, field) != (value := getattr(prompts.config, field)):
                setattr(self.config, field, copy.deepcopy(value))

    @torch.no_grad()
    def to_vision_only(self):
        """A copy with the prompts folded into their embeddings and no text tower; it can't be trained.

        Returns:
            [`AnomalyCLIPModel`] that gives the same results; save and load it as any other.
        """
        refuse_vision_only(self.config, "there is nothing to fold")
        return self._without_text_tower({"folded_text_embeds": self.get_prompt_embeds()}, vision_only=True)

    @torch.no_grad()
    def to_free_prompts(self):
        """A copy with free prompts that gives the same results, and can be trained from there; it has no text tower.

        Its vectors are the embeddings of the prompts, learned or folded, repeated for each feature layer, and as long
        as fresh ones are.

        Returns:
            [`AnomalyCLIPModel`] with `prompt_type="free"`.
        """
        embeds = self.get_prompt_embeds()
        if embeds.ndim == 2:
            embeds = embeds.expand(1 + len(self.config.feature_layers), -1, -1)
        embeds = embeds * (PROMPT_STD["free"] * embeds.shape[-1] ** 0.5)
        learned = {"prompt_learner.image_vectors": embeds[0], "prompt_learner.patch_vectors": embeds[1:]}
        return self._without_text_tower(learned, prompt_type="free", vision_only=False)

    def _without_text_tower(self, learned: dict[str, Tensor], **fields: Any):
        """A copy with other fields of the configuration and other learned tensors, which need no text tower."""
        if any(parameter.is_meta for parameter in self.parameters()):
            raise ValueError("some weights are offloaded, so no copy can be made; load the model without device_map")
        config = AnomalyCLIPConfig.from_dict({**self.config.to_dict(), **fields})
        model = type(self)._from_config(config, attn_implementation=self.config._attn_implementation)
        model = model.to(device=self.device, dtype=self.dtype)
        weights = {key: value for key, value in self.state_dict().items() if key in model.state_dict()}
        model.load_state_dict({**weights, **learned})
        for source in ("_loaded_from", "_processor_source"):
            if hasattr(self, source):
                setattr(model, source, getattr(self, source))
        model.references = self.__dict__.get("_own_references", self.references)
        if self.profile is not None:
            model.set_profile(replace(self.profile, prompts=None))
        return model.train(self.training)

    def default_processor(self) -> AnomalyCLIPImageProcessor:
        """The processor stored with the checkpoint that this model came from, for the model's input size.

        Raises:
            OSError, ValueError: if the one stored can't be read, or makes images that are no squares.
        """
        size = {"height": self.config.image_size, "width": self.config.image_size}
        name, hub = getattr(self, "_processor_source", (None, {}))
        if name:
            known = locate_base(name, ".") if name == DEMO_BASE else name
            stored = AnomalyCLIPImageProcessor.from_pretrained(known, **hub)
            if (own := stored.size).height is None or own.height != own.width:
                raise ValueError(f"the processor of {name} has size={dict(own)}, expected equal height and width")
            return AnomalyCLIPImageProcessor.from_dict({**stored.to_dict(), "size": size})
        try:
            base = locate_base(self.config.base_model_name_or_path, ".")
            return AnomalyCLIPImageProcessor.from_pretrained(base, local_files_only=True, size=size)
        except (OSError, ValueError):  # no base model, or it is not in the cache
            return AnomalyCLIPImageProcessor(size=size)

    def save_prompts(self, save_directory, processor=None, **settings) -> None:
        """Save the prompts alone, loadable by `from_pretrained` of model, processor and pipeline.

        Those for ViT-L take 172 KB; free ones 6 KB, and 6 KB for each feature layer.

        Args:
            save_directory (`str` or `os.PathLike`): folder, made if absent; each file appears complete or not at all.
            processor ([`AnomalyCLIPImageProcessor`], *optional*): the model's own if absent.
            **settings: `base_model_name_or_path`, `base_model_revision`, `card`, `save_code` and `tags`, as of
                `anomalyclip_hf.sharing.saving.save_prompts`, which says what is raised, too.
        """
        installed("sharing.saving").save_prompts(self, save_directory, processor, **settings)

    def push_prompts_to_hub(self, repo_id: str, *, processor=None, **settings):
        """Share the prompts alone on the Hub, in one commit.

        Args:
            repo_id (`str`): such as `"me/anomalyclip-prompts"`; made if absent.
            processor, **settings: as of [`~AnomalyCLIPModel.save_prompts`] and [`~AnomalyCLIPModel.push_to_hub`].
        """
        return installed("sharing.saving").push_prompts_to_hub(self, repo_id, processor=processor, **settings)

    def save_pretrained(self, save_directory, *, push_to_hub=False, save_code=False, **kwargs) -> None:
        """Save everything, as `PreTrainedModel.save_pretrained` does; each file appears complete or not at all.

        Args:
            save_directory (`str` or `os.PathLike`): folder, made if absent.
            push_to_hub (`bool`, defaults to `False`): also push it, to `repo_id` or the folder's name.
            save_code (`bool`, defaults to `False`): add the code that `trust_remote_code=True` runs.
            **kwargs: as in `PreTrainedModel.save_pretrained` and [`~AnomalyCLIPModel.push_to_hub`].
        """
        try:
            saving = installed("sharing.saving")
        except ModuleNotFoundError:  # this code came with a checkpoint: saved as every such model, with its code
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        saving.save_pretrained(self, save_directory, push=push_to_hub, save_code=save_code, **kwargs)

    def push_to_hub(self, repo_id: str, *, processor=None, **settings):
        """Share everything on the Hub, in one commit: weights, configuration, processor and card.

        Args:
            repo_id (`str`): such as `"me/anomalyclip"`; made if absent.
            processor ([`AnomalyCLIPImageProcessor`], *optional*): the model's own if absent.
            **settings: `card`, `save_code`, `tags`, `max_shard_size`, `variant`, `commit_message`,
                `commit_description`, `private`, `token`, `revision`, `create_pr` and `dry_run`, as of
                `anomalyclip_hf.sharing.saving.push_to_hub`, which says what is raised, too.
        """
        return installed("sharing.saving").push_to_hub(self, repo_id, processor=processor, **settings)


__all__ = ["PromptSet", "PromptsMixin", "read_prompts"]
