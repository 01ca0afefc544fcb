"""Prompts alone, what adapters are to PEFT: kept, saved, loaded, shared, swapped and folded."""

import base64
import copy
import importlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
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

from .configuration_anomalyclip import AnomalyCLIPConfig
from .image_processing_anomalyclip import AnomalyCLIPImageProcessor
from .options_anomalyclip import THRESHOLDS, WITH_REFERENCES, if_installed, installed

logger = logging.get_logger(__name__)

PROMPTS_NAME = "prompts.safetensors"
WEIGHTS_NAME, WEIGHTS_INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
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


def prompt_set(learned: dict[str, Any], config: AnomalyCLIPConfig, **facts: Any) -> PromptSet:
    """Prompts of the tensors that are learned, text or free ones."""
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
                f"the base of {source} comes with the package anomalyclip_hf: pip install anomalyclip_hf, or {advice}"
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
    return prompt_set(learned, config, fingerprint=fingerprint, source=name)


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
    """What a model can do with prompts, references and profiles, and how it is saved and shared.

    Loading prompts travels with a checkpoint; the rest is done by the installed package, in the functions named.
    """

    references: Any = None  # `References` that all images are compared with

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

    def _checked(self, source: Any, hub: dict[str, Any]) -> PromptSet:
        # Code of a checkpoint has a class of its own for these.
        prompts = source if hasattr(source, "fingerprint") else read_prompts(source, **hub)
        check_same_backbone(prompts, self)
        return prompts

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

    def fitting_thresholds(self, score_rule: str | None = None, with_references: bool | None = None) -> dict:
        """The thresholds that were chosen for the scores and maps that are now given.

        Those of the profile that is set go before the configuration's.

        Args:
            score_rule (`str`, *optional*): the profile's or the configuration's own if absent.
            with_references (`bool`, *optional*): whether images are compared with some; as the model does if absent.

        Returns:
            `image_threshold` and `pixel_threshold`; None, with a warning once, where one is for another score.
        """
        config, compares = self.config, self.references is not None
        compared = compares if with_references is None else with_references
        profile: Any = getattr(self, "profile", None)
        of_profile = {} if profile is None else profile.options
        own_rule = of_profile.get("score_rule", config.score_rule)
        score = (score_rule or own_rule) + WITH_REFERENCES * compared
        found: dict[str, float | None] = {}
        for name in THRESHOLDS:
            value, chosen_for, owner = getattr(config, name), config.thresholds_for, "the configuration"
            if name in of_profile:
                value, owner = of_profile[name], f"profile {profile.name}"
                chosen_for = own_rule + WITH_REFERENCES * compares
            same_maps = chosen_for.endswith(WITH_REFERENCES) == compared
            fits = chosen_for == score if name == "image_threshold" else same_maps
            found[name] = value if fits else None
            if value is not None and not fits:
                logger.warning_once(
                    f"{name} of {owner} was chosen for the score {chosen_for!r}, not for {score!r}: it is not used. "
                    "Calibrate anew, or give thresholds yourself"
                )
        return found

    def get_prompts(self, base_model_name_or_path=None, base_model_revision=None) -> PromptSet:
        """A copy of the current prompts, by `sharing.prompts.get_prompts`."""
        return installed("sharing.prompts").get_prompts(self, base_model_name_or_path, base_model_revision)

    def add_prompts(self, name: str, source=None, **hub) -> None:
        """Keep prompts, the current ones if no source is given, under a name, by `sharing.prompts.add_prompts`."""
        installed("sharing.prompts").add_prompts(self, name, source, **hub)

    def set_prompts(self, name: str) -> None:
        """Put kept prompts on the backbone, by `sharing.prompts.set_prompts`."""
        installed("sharing.prompts").set_prompts(self, name)

    @property
    def prompt_names(self) -> list[str]:
        """Names of the prompts kept by [`~AnomalyCLIPModel.add_prompts`]."""
        return list(self.__dict__.get("_prompt_sets", {}))

    def to_vision_only(self):
        """A copy with folded prompts and no text tower, by `sharing.prompts.to_vision_only`."""
        return installed("sharing.prompts").to_vision_only(self)

    def to_free_prompts(self):
        """A copy with free prompts and the same results, by `sharing.prompts.to_free_prompts`."""
        return installed("sharing.prompts").to_free_prompts(self)

    def set_references(self, images, **settings) -> None:
        """Compare all images from now on with images of good parts.

        Maps and scores are then a blend (see `sharing.references`), while `logits` and embeddings stay what they
        were. They are not saved with the model: [`~AnomalyCLIPModel.save_references`] or a profile keeps them.

        Args:
            images, **settings: as of [`~AnomalyCLIPModel.make_references`]; None = no references any more.
        """
        self.references = None if images is None else self.make_references(images, **settings)
        self.__dict__.pop("_own_references", None)  # unless a profile put them, these are the model's own now

    def make_references(self, images, reference_weight: float | None = None, **settings) -> Any:
        """Features of 1 to 32 images of good parts, by `sharing.references.make_references`."""
        return installed("sharing.references").make_references(self, images, reference_weight, **settings)

    def save_references(self, path) -> None:
        """Write the references as one file, by `sharing.references.save_references`."""
        installed("sharing.references").save_references(self, path)

    @property
    def profile(self) -> Any:
        """The [`Profile`] that is set; None = the model's own settings."""
        return self.__dict__.get("_profile")

    @property
    def profile_names(self) -> list[str]:
        """Names of the profiles of the model's checkpoint, and of those that were set."""
        return installed("scoring.profiles").known_profiles(self)

    def get_profile(self, name: str) -> Any:
        """A [`Profile`] by its name, by `scoring.profiles.get_profile`."""
        return installed("scoring.profiles").get_profile(self, name)

    def set_profile(self, profile) -> None:
        """Judge by the settings of one product from now on, by `scoring.profiles.set_profile`; None = the model's."""
        installed("scoring.profiles").set_profile(self, profile)

    def save_profiles(self, save_directory, names: list[str] | None = None) -> None:
        """Write profiles into the folder of a saved checkpoint, by `scoring.profiles.save_profiles`."""
        installed("scoring.profiles").save_profiles(self, save_directory, names)

    def save_prompts(self, save_directory, processor=None, **settings) -> None:
        """Save the prompts alone (172 KB for ViT-L), by `sharing.saving.save_prompts`."""
        installed("sharing.saving").save_prompts(self, save_directory, processor, **settings)

    def push_prompts_to_hub(self, repo_id: str, *, processor=None, **settings):
        """Share the prompts alone on the Hub, in one commit, by `sharing.saving.push_prompts_to_hub`."""
        return installed("sharing.saving").push_prompts_to_hub(self, repo_id, processor=processor, **settings)

    def save_pretrained(self, save_directory, *, push_to_hub=False, save_code=False, **kwargs) -> None:
        """Save everything, as `PreTrainedModel.save_pretrained` does, by `sharing.saving.save_pretrained`."""
        if (saving := if_installed("sharing.saving")) is None:  # this code came with a checkpoint, and goes with it
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        saving.save_pretrained(self, save_directory, push=push_to_hub, save_code=save_code, **kwargs)

    def push_to_hub(self, repo_id: str, *, processor=None, **settings):
        """Share everything on the Hub, in one commit, by `sharing.saving.push_to_hub`."""
        return installed("sharing.saving").push_to_hub(self, repo_id, processor=processor, **settings)
