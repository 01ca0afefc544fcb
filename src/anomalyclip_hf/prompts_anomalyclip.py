"""Prompts alone: two tensors, what they were learned with, and the backbone that they belong to."""

import base64
import importlib.util
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers.utils import logging
from transformers.utils.hub import cached_file

from .configuration_anomalyclip import AnomalyCLIPConfig

logger = logging.get_logger(__name__)

PROMPTS_NAME = "prompts.safetensors"
WEIGHTS_NAME, WEIGHTS_INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
PROMPT_KEYS = ("context", "deep_prompts")
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")

# Configuration that goes with prompts when they move to another copy of their backbone.
PROMPT_FIELDS = (
    "prompt_length",
    "deep_prompt_depth",
    "deep_prompt_length",
    "prompt_token_ids",
    "dpam_layers",
    "dpam_attention",
    "feature_layers",
    "temperature",
    "image_size",
    "image_threshold",
    "pixel_threshold",
)
# Sizes that two backbones must share.
TOWER_FIELDS = {
    "text_config": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"),
    "vision_config": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size"),
}
# Backbones that lie in an installed package: portable name -> (package, folder in it).
KNOWN_BASES = {"anomalyclip_hf/demo": ("anomalyclip_hf", "assets/demo")}


@dataclass
class PromptSet:
    """Learned prompts with what they need to be used again.

    Args:
        context (`Tensor` of shape `(2, E, d)`, float32): learned words; [0] normal, [1] anomalous.
        deep_prompts (`Tensor` of shape `(depth - 1, T, d)`, float32).
        config ([`AnomalyCLIPConfig`]): what they were learned with, the sizes of the backbone included.
        fingerprint (`Tensor` of shape `(n,)`, float32, *optional*): of the backbone; None = not known.
        source (`str`): where they came from, for messages.
    """

    context: Tensor
    deep_prompts: Tensor
    config: AnomalyCLIPConfig
    fingerprint: Tensor | None = None
    source: str = "memory"


def portable_base_name(name: str) -> str:
    """Name of a backbone that is written beside prompts: that of a known base, else a repository or a full path."""
    for known in KNOWN_BASES:
        folder = _folder_of_known_base(known)
        if name == known or (folder is not None and os.path.realpath(name) == os.path.realpath(folder)):
            return known
    return os.path.abspath(name) if os.path.isdir(name) else name


def _folder_of_known_base(name: str) -> str | None:
    package, folder = KNOWN_BASES[name]
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    return str(Path(next(iter(places)), folder)) if places else None


def locate_base(name: str | None, source: str) -> str:
    """Where the backbone named in a file of prompts lies: a folder or a repository.

    Args:
        name (`str`, *optional*): `base_model_name_or_path` as stored.
        source (`str`): where the prompts came from. Only prompts of a local folder may name a local folder.

    Raises:
        ValueError: if the name is missing or is neither a repository's nor a local folder's.
        OSError: if it is a known base of a package that isn't installed, or a folder that isn't there.
    """
    advice = "give base_model_name_or_path=... to from_pretrained to name the backbone yourself"
    if not name:
        raise ValueError(f"{source} holds prompts alone but its config.json lacks base_model_name_or_path; {advice}")
    if name in KNOWN_BASES:
        folder = _folder_of_known_base(name)
        if folder is None:
            package = KNOWN_BASES[name][0]
            raise OSError(
                f"the prompts of {source} belong to {name!r}, which comes with the package {package}, and that isn't "
                f"installed: pip install {package}, or {advice}"
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
        if weight.is_meta or not weight.is_floating_point():
            return None
        samples.append(weight.detach()[(weight.shape[0] // 2, *[0] * (weight.ndim - 1))].float())
    return torch.stack([sample.to(samples[0].device) for sample in samples]).cpu()


def check_same_sizes(prompts: AnomalyCLIPConfig, base: Any, source: str) -> None:
    """Compare the sizes of the backbone that prompts were learned on with those of another.

    Args:
        prompts ([`AnomalyCLIPConfig`]): configuration stored with the prompts.
        base ([`AnomalyCLIPConfig`] or `CLIPConfig`): configuration of the backbone at hand.
        source (`str`): where the prompts came from.

    Raises:
        ValueError: naming both backbones and the sizes that differ.
    """
    pairs = [("projection_dim", prompts.projection_dim, base.projection_dim)]
    for tower, fields in TOWER_FIELDS.items():
        ours, theirs = getattr(prompts, tower), getattr(base, tower)
        pairs += [(f"{tower}.{field}", getattr(ours, field), getattr(theirs, field)) for field in fields]
    differing = [f"{name} is {a} there and {b} here" for name, a, b in pairs if a != b]
    if differing:
        raise ValueError(_wrong_backbone(prompts, base, source) + "; ".join(differing))


def check_same_backbone(prompts: PromptSet, model: nn.Module) -> None:
    """Refuse prompts that were learned on another backbone, by its sizes and by samples of its weights.

    Weights are compared within the rounding of half precision, so that the backbone's dtype does not matter.

    Raises:
        ValueError: naming both backbones.
    """
    config: Any = model.config
    if config.vision_only:
        raise ValueError("this model is vision-only: it has no text tower to put prompts on; load the full one")
    check_same_sizes(prompts.config, config, prompts.source)
    here = backbone_fingerprint(model)
    if prompts.fingerprint is None or here is None:
        lacking = (
            "carry no fingerprint of their backbone"
            if prompts.fingerprint is None
            else ("can't be compared by fingerprint with a backbone that is quantised or not in memory")
        )
        logger.warning(
            f"the prompts of {prompts.source} {lacking}: whether this model's weights are those they were learned on "
            "isn't known. On others their scores mean nothing; check the base model, and save the prompts anew"
        )
        return
    same = here.shape == prompts.fingerprint.shape and torch.isclose(here, prompts.fingerprint, rtol=2**-7, atol=1e-6)
    if same is False or not bool(torch.as_tensor(same).all()):
        raise ValueError(_wrong_backbone(prompts.config, config, prompts.source) + "the weights differ")


def _wrong_backbone(prompts: Any, base: Any, source: str) -> str:
    def name(config: Any) -> str:
        return str(getattr(config, "base_model_name_or_path", None) or getattr(config, "_name_or_path", "") or "?")

    return (
        f"the prompts of {source} were learned on the backbone {name(prompts)!r}, but this one is {name(base)!r}; "
        "load the right one with AnomalyCLIPModel.from_pretrained(<the prompts>). What differs: "
    )


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
        raw, _ = AnomalyCLIPConfig.get_config_dict(name, **hub)
        config = prompts_config(raw, name)
    file = PROMPTS_NAME if config.prompts_only else _file_of_weights(name, hub)
    path = cached_file(name, file, **hub)
    where = f"{file} of {name}"
    try:
        with safe_open(path, framework="pt") as stored:
            keys, metadata = set(stored.keys()), stored.metadata() or {}
            wanted = {f"prompt_learner.{key}" for key in PROMPT_KEYS}
            unexpected = sorted(keys - wanted) if config.prompts_only else []
            if missing := sorted(wanted - keys):
                raise ValueError(f"{where} lacks {', '.join(missing)}; it holds {sorted(keys)[:4]}")
            if unexpected:
                raise ValueError(f"{where} holds {unexpected[:4]}, expected {sorted(wanted)} alone")
            shapes = {key: tuple(stored.get_slice(f"prompt_learner.{key}").get_shape()) for key in PROMPT_KEYS}
            _check_shapes(shapes, config, where)
            context, deep_prompts = (stored.get_tensor(f"prompt_learner.{key}") for key in PROMPT_KEYS)
    except SafetensorError as error:
        raise ValueError(f"{where} is truncated or no safetensors file ({error}); fetch it again") from error
    for key, value in (("context", context), ("deep_prompts", deep_prompts)):
        if not value.is_floating_point() or not torch.isfinite(value).all():
            raise ValueError(f"{where}: prompt_learner.{key} has dtype {value.dtype} or values that are not finite")
    return PromptSet(context.float(), deep_prompts.float(), config, _stored_fingerprint(metadata, where), name)


def prompts_config(raw: dict[str, Any], name: str, overrides: dict[str, Any] | None = None) -> AnomalyCLIPConfig:
    """Configuration of prompts from the contents of a config.json, with what must not be made up."""
    if raw.get("model_type") != "anomalyclip":
        raise ValueError(f"config.json of {name} has model_type={raw.get('model_type')!r}, expected 'anomalyclip'")
    if raw.get("vision_only"):
        raise ValueError(f"{name} is vision-only: its prompts are folded and can't be taken out; use the full one")
    if missing := [key for key in ("text_config", "vision_config", "projection_dim") if key not in raw]:
        raise ValueError(f"config.json of {name} lacks {', '.join(missing)}; save the prompts again with save_prompts")
    return override_config(raw, overrides or {})


def override_config(raw: dict[str, Any], overrides: dict[str, Any]) -> AnomalyCLIPConfig:
    """A stored configuration with what the user says instead; a preset replaces the stored feature layers."""
    return AnomalyCLIPConfig.from_dict(raw, **overrides)


def _file_of_weights(name: str, hub: dict[str, Any]) -> str:
    index = cached_file(name, WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False, **hub)
    if index is None:
        return WEIGHTS_NAME
    shards = json.loads(Path(index).read_text(encoding="utf-8")).get("weight_map", {})
    files = {shards.get(f"prompt_learner.{key}") for key in PROMPT_KEYS}
    file = files.pop()
    if files or not isinstance(file, str) or os.path.basename(file) != file:
        raise ValueError(f"{WEIGHTS_INDEX_NAME} of {name} does not name one file that holds the prompts")
    return file


def _check_shapes(shapes: dict[str, tuple[int, ...]], config: AnomalyCLIPConfig, where: str) -> None:
    width, depth = config.text_config.hidden_size, config.deep_prompt_depth
    expected = {
        "context": (2, config.prompt_length, width),
        "deep_prompts": (depth - 1, config.deep_prompt_length, width),
    }
    for key, shape in shapes.items():
        if shape != expected[key]:
            raise ValueError(
                f"{where}: prompt_learner.{key} has shape {shape} but the configuration says {expected[key]} "
                f"(prompt_length={config.prompt_length}, deep_prompt_depth={depth}, "
                f"deep_prompt_length={config.deep_prompt_length}, text width {width})"
            )


def _stored_fingerprint(metadata: dict[str, str], where: str) -> Tensor | None:
    if "backbone" not in metadata:
        return None
    try:
        return torch.from_numpy(np.frombuffer(base64.b64decode(metadata["backbone"], validate=True), "<f4").copy())
    except ValueError as error:
        raise ValueError(f"{where} has a damaged fingerprint of its backbone ({error}); fetch it again") from error


def _with_sorted_head(data: bytes) -> bytes:
    """A safetensors file with its head in a fixed order, so that the same prompts are the same bytes."""
    size = int.from_bytes(data[:8], "little")
    head = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + data[8 + size :]


def write_prompts(prompts: PromptSet, path: str | os.PathLike) -> None:
    """Write the two tensors and the backbone's fingerprint; the file appears complete or not at all."""
    tensors = {
        f"prompt_learner.{key}": getattr(prompts, key).detach().cpu().float().contiguous() for key in PROMPT_KEYS
    }
    metadata = {"format": "pt"}
    if prompts.fingerprint is not None:
        metadata["backbone"] = base64.b64encode(prompts.fingerprint.numpy().astype("<f4").tobytes()).decode()
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(_with_sorted_head(save(tensors, metadata=metadata)))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


__all__ = ["PromptSet", "read_prompts", "write_prompts"]
