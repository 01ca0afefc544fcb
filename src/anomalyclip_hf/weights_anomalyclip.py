"""The weights of a checkpoint: which revision of a repository holds them as safetensors, and whether all are there."""

import json
import math
import os
from pathlib import Path
from typing import Any

from huggingface_hub import constants, is_offline_mode
from huggingface_hub.file_download import repo_folder_name
from safetensors import safe_open
from transformers.utils import logging
from transformers.utils.hub import cached_file

from .configuration_anomalyclip import AnomalyCLIPConfig, count_parameters
from .prompts_anomalyclip import WEIGHTS_INDEX_NAME, WEIGHTS_NAME

logger = logging.get_logger(__name__)

# Answer None instead of raising: whoever asks goes on to the loading, which explains what is wrong.
_QUIET = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
    "_raise_exceptions_for_gated_repo": False,
}


def has_safetensors(name: str, hub: dict[str, Any], revision: str | None) -> bool:
    """Whether a repository, or the cache if there is no network, has weights as safetensors at a revision."""
    options = {**hub, **_QUIET, "revision": revision}
    return any(cached_file(name, file, **options) for file in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME))


def revision_of_weights(name: str, hub: dict[str, Any], pinned: bool = False) -> str | None:
    """Revision of a repository from which its weights can be loaded as safetensors.

    Old repositories hold pickles alone. For their `main`, `transformers` loads the safetensors that the Hub's
    converter proposes as a pull request; without a network those that were loaded so before are found here.

    Args:
        name: repository or folder.
        hub: arguments for the Hub.
        pinned: whether the revision is a note of an earlier loading, in whose place `main` may be taken as whoever
            asks compares the weights.

    Returns:
        the revision asked for, one of the converter's that is in the cache, or None, which stands for `main`.
    """
    revision = hub.get("revision")
    if os.path.isdir(name) or has_safetensors(name, hub, revision):
        return revision
    if is_offline_mode() or hub.get("local_files_only"):
        cache = Path(hub.get("cache_dir") or constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"))
        proposed = [path.name for path in cache.glob("refs/refs/pr/*") if path.name.isdigit()]
        local = {**hub, "local_files_only": True}
        for number in sorted(proposed, key=int, reverse=True):
            if has_safetensors(name, local, f"refs/pr/{number}"):
                return f"refs/pr/{number}"
        return revision
    if pinned and revision:
        logger.warning(f"{name} has no safetensors at {revision}; those made of main are taken, and have to agree")
        return None
    return revision


def check_shard_names(name: str, subfolder: str) -> None:
    """Refuse an index whose parts are no safetensors files beside it.

    Raises:
        ValueError: naming the index.
    """
    index = Path(name, subfolder, WEIGHTS_INDEX_NAME)
    if not index.is_file():
        return
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index} is damaged ({error!r}); fetch it again") from error
    for shard in shards:
        if not isinstance(shard, str) or os.path.basename(shard) != shard or not shard.endswith(".safetensors"):
            raise ValueError(f"{index} names the file {shard!r}, expected a .safetensors file beside it")


# Weights whose shapes tell the sizes of a model: name -> field of each of its dimensions.
SIZES = {
    "visual_projection.weight": ("projection_dim", "vision_config.hidden_size"),
    "vision_model.embeddings.patch_embedding.weight": (
        *("vision_config.hidden_size", "vision_config.num_channels"),
        *("vision_config.patch_size", "vision_config.patch_size"),
    ),
    "vision_model.encoder.layers.0.mlp.fc1.weight": ("vision_config.intermediate_size", "vision_config.hidden_size"),
    "text_projection.weight": ("projection_dim", "text_config.hidden_size"),
    "text_model.embeddings.token_embedding.weight": ("text_config.vocab_size", "text_config.hidden_size"),
    "text_model.embeddings.position_embedding.weight": (
        *("text_config.max_position_embeddings", "text_config.hidden_size"),
    ),
    "text_model.encoder.layers.0.mlp.fc1.weight": ("text_config.intermediate_size", "text_config.hidden_size"),
    "prompt_learner.context": (None, "prompt_length", "text_config.hidden_size"),
    "prompt_learner.deep_prompts": (None, "deep_prompt_length", "text_config.hidden_size"),
}


def check_sizes(name: str, hub: dict[str, Any], config: AnomalyCLIPConfig) -> None:
    """Compare the sizes of a configuration with those of the weights, before any memory is taken.

    Args:
        name: repository or folder; where it has no safetensors, nothing is compared.
        hub: arguments for the Hub, the revision of the weights among them.
        config: what is to be loaded.

    Raises:
        ValueError: naming the field, its value and that of the weights.
    """
    shapes = _stored_shapes(name, hub)
    if not shapes:
        return
    for tower in ("vision_config",) if config.vision_only else ("vision_config", "text_config"):
        layers = f"{tower.removesuffix('_config')}_model.encoder.layers."
        numbers = [int(key.removeprefix(layers).split(".")[0]) for key in shapes if key.startswith(layers)]
        wanted = getattr(config, tower).num_hidden_layers
        if numbers and max(numbers) + 1 != wanted:
            raise ValueError(
                f"{tower}.num_hidden_layers={wanted}, but the weights of {name} have {max(numbers) + 1} layers"
            )
    for key, fields in SIZES.items():
        for field, size in zip(fields, shapes.get(key, ()), strict=False):
            value: Any = config
            for part in (field or "").split("."):
                value = getattr(value, part) if part else size
            if value != size:
                raise ValueError(f"{field}={value}, but the weights of {name} have {size} ({key})")
    deep = shapes.get("prompt_learner.deep_prompts")
    if deep and not config.vision_only and deep[0] + 1 != config.deep_prompt_depth:
        raise ValueError(
            f"deep_prompt_depth={config.deep_prompt_depth}, but the weights of {name} are of depth {deep[0] + 1}"
        )
    positions = shapes.get("vision_model.embeddings.position_embedding.weight", [0])[0]
    side = config.vision_config.image_size // config.vision_config.patch_size
    if positions and side**2 + 1 != positions:
        raise ValueError(
            f"vision_config.image_size={config.vision_config.image_size} makes {side**2 + 1} positions, but the "
            f"weights of {name} have {positions}; another input size is image_size, beside the towers"
        )
    stored, wanted = sum(math.prod(shape) for shape in shapes.values()), count_parameters(config)
    if not config.vision_only and wanted > 2 * stored + 10_000_000:
        raise ValueError(f"the configuration of {name} asks for {wanted:.1e} weights, but {stored:.1e} are stored")


def _stored_shapes(name: str, hub: dict[str, Any]) -> dict[str, list[int]]:
    """Shapes of all weights, from the heads of their files."""
    options = {**hub, **_QUIET}
    files = [cached_file(name, WEIGHTS_NAME, **options)]
    if files[0] is None and (index := cached_file(name, WEIGHTS_INDEX_NAME, **options)) is not None:
        shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
        files = [cached_file(name, shard, **options) for shard in sorted(set(shards))]
    shapes = {}
    for path in filter(None, files):
        with safe_open(path, "pt") as file:
            shapes.update({key: file.get_slice(key).get_shape() for key in file.keys()})  # noqa: SIM118
    return shapes


def check_complete(info: dict, name: str, fresh: bool) -> None:
    """Refuse a checkpoint without some of the weights.

    Args:
        info: what `from_pretrained` told of the loading.
        name: the checkpoint.
        fresh: whether it is a CLIP, which has no prompts yet.

    Raises:
        ValueError: naming a missing weight.
    """
    keys = {key for key in info["missing_keys"] if not (fresh and key.startswith("prompt_learner."))}
    missing = sorted(keys | {key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]})
    if missing:
        raise ValueError(
            f"{name} lacks {len(missing)} weights of the model, such as {missing[0]}; they would be random. "
            "Load a complete checkpoint."
        )


__all__ = ["check_complete", "check_shard_names", "check_sizes", "has_safetensors", "revision_of_weights"]
