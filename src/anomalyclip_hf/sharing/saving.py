"""How a model is saved and shared: what its methods `save_pretrained`, `save_prompts` and `push_...` do."""

import os
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, ModelCard
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel

from ..image_processing_anomalyclip import AnomalyCLIPImageProcessor
from ..prompts_anomalyclip import PROMPTS_NAME, PromptsMixin
from .hub import add_card, upload
from .prompts import base_of_prompts
from .writing import add_code, refuse_full_checkpoint, whole_folder, write_checkpoint

Card = bool | dict | str | ModelCard


def save_prompts(
    model: PromptsMixin,
    save_directory: str | os.PathLike,
    processor: AnomalyCLIPImageProcessor | None = None,
    base_model_name_or_path: str | None = None,
    base_model_revision: str | None = None,
    card: Card = True,
    save_code: bool = False,
    tags: str | list[str] | None = None,
    repo_id: str | None = None,
) -> None:
    """Save the prompts of a model alone.

    Args:
        model ([`AnomalyCLIPModel`]).
        save_directory (`str` or `os.PathLike`): folder, made if absent; each file appears complete or not at all.
        processor ([`AnomalyCLIPImageProcessor`], *optional*): the model's own if absent.
        base_model_name_or_path, base_model_revision (`str`, *optional*): name the backbone otherwise than the
            configuration does.
        card (`bool`, `dict`, `str` or `ModelCard`, defaults to `True`): the README.md to write. False = none; a
            dict, such as `{"training": ..., "results": ...}`, is passed to `make_model_card`.
        save_code (`bool`, defaults to `False`): add the code that `trust_remote_code=True` runs.
        tags (`str` or `list[str]`, *optional*): added to the card's.
        repo_id (`str`, *optional*): what the card calls the repository; the folder's name if absent.

    Raises:
        ValueError: if nothing names the backbone, the folder holds a full checkpoint, or the model is vision-only.
    """
    prompts = model.get_prompts(base_model_name_or_path, base_model_revision)
    base = prompts.config.base_model_name_or_path
    if base is None:
        raise ValueError(
            "nothing says which backbone these prompts belong to, and alone they are of no use; give "
            "base_model_name_or_path=... (a Hub repository or a folder), or use save_pretrained"
        )
    refuse_full_checkpoint(save_directory)
    with whole_folder(save_directory) as stage:
        write_checkpoint(stage, prompts, processor or model.default_processor(), type(model))
        _add_code(stage, model, save_code)
        facts = {"prompts_file": stage / PROMPTS_NAME, "base": base, "repo_id": repo_id or os.fspath(save_directory)}
        add_card(stage, model, card, tags, **facts)
    model.save_profiles(save_directory)


def push_prompts_to_hub(
    model: PromptsMixin,
    repo_id: str,
    *,
    processor: AnomalyCLIPImageProcessor | None = None,
    base_model_name_or_path: str | None = None,
    base_model_revision: str | None = None,
    card: Card = True,
    save_code: bool = False,
    tags: str | list[str] | None = None,
    commit_message: str | None = "Upload prompts",
    **hub: Any,
) -> CommitInfo | dict[str, int]:
    """Share the prompts of a model alone on the Hub, in one commit.

    Args:
        model, processor, ..., tags: as of [`save_prompts`]. The base model must be on the Hub too.
        repo_id (`str`): such as `"me/anomalyclip-prompts"`; made if absent.
        commit_message, **hub: as of [`push_to_hub`], which says what is raised, too.

    Raises:
        ValueError: if the base model is a local folder, which nobody else has.
    """
    validate_repo_id(repo_id)
    base, _ = base_of_prompts(model, base_model_name_or_path)
    if base is not None and os.path.isabs(base):
        raise ValueError(
            f"the prompts' base model is the local folder {base!r}, which nobody else has; give "
            "base_model_name_or_path=... (the repository it came from), or share everything with push_to_hub"
        )
    with tempfile.TemporaryDirectory(prefix="anomalyclip-") as folder:
        save_prompts(
            model, folder, processor, base_model_name_or_path, base_model_revision, card, save_code, tags, repo_id
        )
        return upload(folder, repo_id, commit_message=commit_message, **hub)


def save_pretrained(
    model: PromptsMixin,
    save_directory: str | os.PathLike,
    *,
    push: bool = False,
    save_code: bool = False,
    **kwargs: Any,
) -> None:
    """Save all of a model, as `PreTrainedModel.save_pretrained` does; each file appears complete or not at all.

    Args:
        model ([`AnomalyCLIPModel`]).
        save_directory (`str` or `os.PathLike`): folder, made if absent.
        push (`bool`, defaults to `False`): also push it, to `repo_id` or the folder's name.
        save_code (`bool`, defaults to `False`): add the code that `trust_remote_code=True` runs.
        **kwargs: as in `PreTrainedModel.save_pretrained` and [`push_to_hub`].
    """
    quantization = getattr(model.config, "quantization_config", None)
    if getattr(quantization, "quant_method", None) == "torchao":
        raise ValueError(
            "weights quantised by torchao can't be read again: it takes each name for module.weight, and CLIP's "
            "logit_scale has no module. Use save_prompts, and quantise when loading, by quantization_config=..."
        )
    names = ("repo_id", "commit_message", "commit_description", "private", "create_pr", "revision", "tags")
    hub = {name: kwargs.pop(name) for name in names if name in kwargs}
    if kwargs.get("distributed_checkpoint"):
        return PreTrainedModel.save_pretrained(model, save_directory, **kwargs)
    with whole_folder(save_directory) as stage:
        PreTrainedModel.save_pretrained(model, stage, **kwargs)
        _add_code(stage, model, save_code)
    if kwargs.get("is_main_process", True):
        model.save_profiles(save_directory)
    if push:
        repo_id = hub.pop("repo_id", Path(save_directory).resolve().name)
        push_to_hub(model, repo_id, save_code=save_code, token=kwargs.get("token"), **hub)


def push_to_hub(
    model: PromptsMixin,
    repo_id: str,
    *,
    processor: AnomalyCLIPImageProcessor | None = None,
    card: Card = True,
    save_code: bool = False,
    tags: str | list[str] | None = None,
    max_shard_size: int | str = "50GB",
    variant: str | None = None,
    commit_message: str | None = "Upload model",
    **hub: Any,
) -> CommitInfo | dict[str, int]:
    """Share all of a model on the Hub, in one commit: weights, configuration, processor and card.

    Args:
        model, processor, card, save_code, tags: as of [`save_prompts`].
        repo_id (`str`): such as `"me/anomalyclip"`; made if absent.
        max_shard_size (`int` or `str`), variant (`str`, *optional*): as in `PreTrainedModel.save_pretrained`.
        commit_message (`str`).
        **hub: `commit_description`, `private`, `token`, `revision`, `create_pr` as in
            `PreTrainedModel.push_to_hub`; `dry_run=True` sends nothing and returns `{path: bytes}`.

    Raises:
        ConnectionError: if the Hub can't be reached. What it refuses is the Hub client's own error.
    """
    validate_repo_id(repo_id)
    with tempfile.TemporaryDirectory(prefix="anomalyclip-") as folder:
        save_pretrained(model, folder, max_shard_size=max_shard_size, variant=variant)
        (processor or model.default_processor()).save_pretrained(folder)
        _add_code(Path(folder), model, save_code)
        add_card(Path(folder), model, card, tags, repo_id=repo_id)
        return upload(folder, repo_id, commit_message=commit_message, **hub)


def _add_code(folder: Path, model: PromptsMixin, wanted: bool) -> None:
    """Code goes with what is saved where it is asked for, and where the model itself came with its code."""
    if wanted or model.is_remote_code():
        add_code(folder, type(model))
