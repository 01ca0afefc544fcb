"""The weights of a checkpoint: which revision of a repository holds them as safetensors, and whether all are there."""

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import constants, is_offline_mode
from huggingface_hub.file_download import repo_folder_name
from transformers.utils import logging
from transformers.utils.hub import cached_file

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


__all__ = ["check_complete", "check_shard_names", "has_safetensors", "revision_of_weights"]
