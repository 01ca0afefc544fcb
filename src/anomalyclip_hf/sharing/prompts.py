"""What a model does with its prompts beyond loading them: its methods `get_prompts`, `add_prompts`, `to_...`."""

import copy
import os
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..configuration_anomalyclip import PROMPT_STD
from ..prompts_anomalyclip import (
    DEMO_BASE,
    PromptSet,
    PromptsMixin,
    backbone_fingerprint,
    portable_base_name,
    prompt_set,
    refuse_vision_only,
)


def get_prompts(
    model: PromptsMixin, base_model_name_or_path: str | None = None, base_model_revision: str | None = None
) -> PromptSet:
    """A copy of the current prompts, which later training or loading leaves as it is.

    Args:
        base_model_name_or_path, base_model_revision (`str`, *optional*): name the backbone otherwise than the
            configuration does.

    Raises:
        ValueError: if the model is vision-only.
    """
    refuse_vision_only(model.config, "it has no prompts to take out")
    model._hold_prompts()
    config = copy.deepcopy(model.config)
    named = base_of_prompts(model, base_model_name_or_path, base_model_revision)
    config.base_model_name_or_path, config.base_model_revision = named
    return prompt_set(_learned(model), config, fingerprint=backbone_fingerprint(model))


def _learned(model: PromptsMixin) -> dict[str, Tensor]:
    """Copies of the learned tensors by their names in `prompt_learner`."""
    return {key: value.detach().clone() for key, value in model.prompt_learner.named_parameters()}


def base_of_prompts(
    model: PromptsMixin, name: str | None = None, revision: str | None = None
) -> tuple[str | None, str | None]:
    """Name and revision of the backbone, as they are written beside prompts; those given come first."""
    loaded_from, commit = getattr(model, "_loaded_from", (None, None))
    own = model.config.base_model_name_or_path
    if name is not None:
        return portable_base_name(os.fspath(name)), revision
    if own is None or loaded_from == DEMO_BASE:
        return loaded_from, commit
    return portable_base_name(own), model.config.base_model_revision


def add_prompts(model: PromptsMixin, name: str, source: Any = None, **hub: Any) -> None:
    """Keep prompts in memory under a name, to be put on the backbone by [`~AnomalyCLIPModel.set_prompts`].

    Args:
        name (`str`): a name of your own; an older set of that name is replaced.
        source (*optional*): as in [`~AnomalyCLIPModel.load_prompts`]; the current prompts if absent.
    """
    prompts = model._checked(model.get_prompts() if source is None else source, hub)
    model.__dict__.setdefault("_prompt_sets", {})[name] = prompts


def set_prompts(model: PromptsMixin, name: str) -> None:
    """Put kept prompts on the backbone; takes about a millisecond.

    Raises:
        KeyError: if no prompts of that name were added.
    """
    if name not in model.prompt_names:
        raise KeyError(f"no prompts named {name!r}, there are {model.prompt_names}; add them with add_prompts first")
    model._put(model.__dict__["_prompt_sets"][name])


def copy_prompts(model: PromptsMixin) -> PromptSet:
    """The prompts that are on the backbone, to be put back on this one."""
    model._hold_prompts()
    source = getattr(model, "prompts_source", "memory")
    return prompt_set(_learned(model), copy.copy(model.config), source=source)


@torch.no_grad()
def to_vision_only(model: PromptsMixin) -> PromptsMixin:
    """A copy with the prompts folded into their embeddings and no text tower; it can't be trained.

    Returns:
        [`AnomalyCLIPModel`] that gives the same results; save and load it as any other.
    """
    refuse_vision_only(model.config, "there is nothing to fold")
    return _without_text_tower(model, {"folded_text_embeds": model.get_prompt_embeds()}, vision_only=True)


@torch.no_grad()
def to_free_prompts(model: PromptsMixin) -> PromptsMixin:
    """A copy with free prompts that gives the same results, and can be trained from there; it has no text tower.

    Its vectors are the embeddings of the prompts, learned or folded, repeated for each feature layer, and as long
    as fresh ones are.

    Returns:
        [`AnomalyCLIPModel`] with `prompt_type="free"`.
    """
    embeds = model.get_prompt_embeds()
    if embeds.ndim == 2:
        embeds = embeds.expand(1 + len(model.config.feature_layers), -1, -1)
    embeds = embeds * (PROMPT_STD["free"] * embeds.shape[-1] ** 0.5)
    learned = {"prompt_learner.image_vectors": embeds[0], "prompt_learner.patch_vectors": embeds[1:]}
    return _without_text_tower(model, learned, prompt_type="free", vision_only=False)


def _without_text_tower(model: PromptsMixin, learned: dict[str, Tensor], **fields: Any) -> PromptsMixin:
    """A copy with other fields of the configuration and other learned tensors, which need no text tower."""
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("some weights are offloaded, so no copy can be made; load the model without device_map")
    config = type(model.config).from_dict({**model.config.to_dict(), **fields})
    copied = type(model)._from_config(config, attn_implementation=model.config._attn_implementation)
    copied = copied.to(device=model.device, dtype=model.dtype)
    weights = {key: value for key, value in model.state_dict().items() if key in copied.state_dict()}
    copied.load_state_dict({**weights, **learned})
    for source in ("_loaded_from", "_processor_source"):
        if hasattr(model, source):
            setattr(copied, source, getattr(model, source))
    copied.references = model.__dict__.get("_own_references", model.references)
    if model.profile is not None:
        copied.set_profile(replace(model.profile, prompts=None))
    return copied.train(model.training)
