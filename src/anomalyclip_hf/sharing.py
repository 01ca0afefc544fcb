"""Saving prompts alone, and sharing on the Hub: what the package adds to a model, and code that travels has not."""

import base64
import copy
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, HfApi, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import save
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save

from .image_processing_anomalyclip import AnomalyCLIPImageProcessor
from .prompts_anomalyclip import (
    PROMPT_KEYS,
    PROMPTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    PromptSet,
    PromptsMixin,
)

WEIGHTS_PATTERNS = ("model.safetensors*", "model-*-of-*.safetensors", PROMPTS_NAME)
# What a checkpoint that brings its code says of it.
AUTO_MAP = {
    "AutoConfig": "configuration_anomalyclip.AnomalyCLIPConfig",
    "AutoModel": "modeling_anomalyclip.AnomalyCLIPModel",
    "AutoImageProcessor": "image_processing_anomalyclip.AnomalyCLIPImageProcessor",
    "AutoProcessor": "image_processing_anomalyclip.AnomalyCLIPImageProcessor",
}
CUSTOM_PIPELINES = {
    "zero-shot-anomaly-detection": {
        "impl": "pipeline_anomalyclip.ZeroShotAnomalyDetectionPipeline",
        "pt": ["AutoModel"],
        "type": "image",
    }
}


def write_prompts(prompts: PromptSet, path: str | os.PathLike) -> None:
    """Write the two tensors and the backbone's fingerprint; the same prompts make the same bytes."""
    tensors = {
        f"prompt_learner.{key}": getattr(prompts, key).detach().cpu().float().contiguous() for key in PROMPT_KEYS
    }
    metadata = {"format": "pt"}
    if prompts.fingerprint is not None:
        metadata["backbone"] = base64.b64encode(prompts.fingerprint.numpy().astype("<f4").tobytes()).decode()
    data = save(tensors, metadata=metadata)
    # safetensors writes the head, which is JSON, in any order.
    size = int.from_bytes(data[:8], "little")
    head = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with whole_folder(Path(path).parent) as stage:
        (stage / Path(path).name).write_bytes(len(head).to_bytes(8, "little") + head + data[8 + size :])


def write_checkpoint(
    folder: Path, prompts: PromptSet, processor: AnomalyCLIPImageProcessor, model_class: type
) -> None:
    """Write prompts as a checkpoint of their own: the file of [`write_prompts`], config.json and the processor's."""
    write_prompts(prompts, folder / PROMPTS_NAME)
    config = copy.deepcopy(prompts.config)
    config.prompts_only, config.architectures, config.dtype = True, [model_class.__name__], None
    config.save_pretrained(folder)
    processor.save_pretrained(folder)


@contextmanager
def whole_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """A hidden folder inside `folder`; when all went well, its files take their places, config.json last.

    Weights of an older checkpoint that the new one does not replace are deleted.

    Args:
        folder (`str` or `os.PathLike`): made if absent.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, expected a folder to save into")
    existed, stage = folder.is_dir(), folder / f".saving-{uuid.uuid4().hex}"
    stage.mkdir(parents=True)
    try:
        yield stage
        files = sorted(stage.iterdir(), key=lambda path: (path.name == "config.json", path.name))
        names = {path.name for path in files}
        if "config.json" in names and any(path.match(one) for path in files for one in WEIGHTS_PATTERNS):
            for old in [old for pattern in WEIGHTS_PATTERNS for old in folder.glob(pattern)]:
                if old.name not in names:
                    old.unlink(missing_ok=True)
        for path in files:
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if not existed and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def refuse_full_checkpoint(folder: str | os.PathLike) -> None:
    """Keep prompts from being saved over a full checkpoint, whose config.json they would replace.

    Raises:
        ValueError: naming the file found.
    """
    for name in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        if Path(folder, name).exists():
            raise ValueError(f"{folder} holds a full checkpoint ({name}); save the prompts to another folder")


def add_code(folder: Path, model_class: type) -> None:
    """Copy the code of a model beside its config.json, for `trust_remote_code=True`, and name its classes there.

    Args:
        folder (`Path`): a saved checkpoint.
        model_class (`type`): its module, those that it imports and the pipeline's are copied.
    """
    custom_object_save(model_class, folder)
    shutil.copy(Path(__file__).with_name("pipeline_anomalyclip.py"), folder)
    fields = {"auto_map": AUTO_MAP, "custom_pipelines": CUSTOM_PIPELINES}
    images = {"auto_map": {"AutoImageProcessor": AUTO_MAP["AutoImageProcessor"]}}
    for name, added in (("config.json", fields), ("preprocessor_config.json", images)):
        if (path := folder / name).is_file():
            stored = {**json.loads(path.read_text(encoding="utf-8")), **added}
            path.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def add_card(
    folder: Path, model: PreTrainedModel, card: bool | dict | str | ModelCard = True, tags=None, **facts: Any
) -> None:
    """Write README.md: the card given, or one that the package makes.

    Args:
        folder (`Path`): a saved checkpoint.
        card (`bool`, `dict`, `str` or `ModelCard`): False = none; a dict is passed on to `make_model_card`.
        tags (`str` or `list[str]`, *optional*): added to the card's metadata.
        **facts: what `make_model_card` takes, beneath the card's own.
    """
    if card is True or isinstance(card, dict):
        from .evaluation.model_card import make_model_card  # of a layer above, so only where a card is wanted

        facts["with_code"] = (folder / "modeling_anomalyclip.py").is_file()
        card = make_model_card(model, **{**facts, **(card if isinstance(card, dict) else {})})
    if tags:
        empty = ModelCard.from_template(ModelCardData(), template_str="---\n{{ card_data }}\n---\n")
        card = ModelCard(str(card or empty))
        data: Any = card.data
        data.tags = list(dict.fromkeys([*(data.tags or []), *([tags] if isinstance(tags, str) else tags)]))
    if card:
        (folder / "README.md").write_text(str(card), encoding="utf-8")


def upload(
    folder: Path,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
) -> CommitInfo | dict[str, int]:
    """Send a folder to the Hub in one commit; weights there that are no longer part of it are deleted.

    Args:
        folder (`Path`): everything in it is sent.
        repo_id (`str`): made if absent.
        commit_message, commit_description, private, token, revision, create_pr: as in every `push_to_hub`.
        dry_run (`bool`): send nothing, and make no contact.

    Returns:
        `huggingface_hub.CommitInfo`; with `dry_run`, what would be sent: `{path: bytes}`.

    Raises:
        ConnectionError: if the Hub can't be reached. What it refuses is the Hub client's own error.
    """
    if dry_run:
        return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            delete_patterns=list(WEIGHTS_PATTERNS),
        )
    except (OSError, ValueError):
        raise
    except Exception as error:  # the HTTP client's own, which names neither the repository nor the address
        raise ConnectionError(f"can't push to {repo_id}: the connection to {api.endpoint} failed ({error})") from error


class SharingMixin(PromptsMixin if TYPE_CHECKING else object):  # type: ignore[misc]
    """How a model is saved and shared."""

    def save_prompts(
        self,
        save_directory,
        processor=None,
        base_model_name_or_path=None,
        base_model_revision=None,
        card=True,
        save_code=False,
        tags=None,
        repo_id=None,
    ) -> None:
        """Save the prompts alone: 172 KB for ViT-L, loadable by `from_pretrained` of model, processor and pipeline.

        Args:
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
        prompts = self.get_prompts(base_model_name_or_path, base_model_revision)
        base = prompts.config.base_model_name_or_path
        if base is None:
            raise ValueError(
                "nothing says which backbone these prompts belong to, and alone they are of no use; give "
                "base_model_name_or_path=... (a Hub repository or a folder), or use save_pretrained"
            )
        refuse_full_checkpoint(save_directory)
        with whole_folder(save_directory) as stage:
            write_checkpoint(stage, prompts, processor or self.default_processor(), type(self))
            self._add_code(stage, save_code)
            facts = {
                "prompts_file": stage / PROMPTS_NAME,
                "base": base,
                "repo_id": repo_id or os.fspath(save_directory),
            }
            add_card(stage, self, card, tags, **facts)

    def push_prompts_to_hub(
        self,
        repo_id: str,
        *,
        processor=None,
        base_model_name_or_path=None,
        base_model_revision=None,
        card=True,
        save_code=False,
        tags=None,
        commit_message="Upload prompts",
        **hub,
    ):
        """Share the prompts alone on the Hub, in one commit.

        Args:
            repo_id (`str`): such as `"me/anomalyclip-prompts"`; made if absent.
            processor, base_model_name_or_path, base_model_revision, card, save_code, tags: as in
                [`~AnomalyCLIPModel.save_prompts`]. The base model must be on the Hub too.
            commit_message, **hub: as in [`~AnomalyCLIPModel.push_to_hub`].

        Raises:
            ValueError: if the base model is a local folder, which nobody else has.
            ConnectionError: if the Hub can't be reached. What it refuses is the Hub client's own error.
        """
        validate_repo_id(repo_id)
        base = self.get_prompts(base_model_name_or_path, base_model_revision).config.base_model_name_or_path
        if base is not None and os.path.isabs(base):
            raise ValueError(
                f"the prompts' base model is the local folder {base!r}, which nobody else has; give "
                "base_model_name_or_path=... (the repository it came from), or share everything with push_to_hub"
            )
        with tempfile.TemporaryDirectory(prefix="anomalyclip-") as folder:
            self.save_prompts(
                folder, processor, base_model_name_or_path, base_model_revision, card, save_code, tags, repo_id
            )
            return upload(Path(folder), repo_id, commit_message=commit_message, **hub)

    def save_pretrained(self, save_directory, *, push_to_hub=False, save_code=False, **kwargs) -> None:
        """Save everything, as `PreTrainedModel.save_pretrained` does; each file appears complete or not at all.

        Args:
            save_directory (`str` or `os.PathLike`): folder, made if absent.
            push_to_hub (`bool`, defaults to `False`): also push it, to `repo_id` or the folder's name.
            save_code (`bool`, defaults to `False`): add the code that `trust_remote_code=True` runs.
            **kwargs: as in `PreTrainedModel.save_pretrained` and [`~AnomalyCLIPModel.push_to_hub`].
        """
        names = ("repo_id", "commit_message", "commit_description", "private", "create_pr", "revision", "tags")
        hub = {name: kwargs.pop(name) for name in names if name in kwargs}
        if kwargs.get("distributed_checkpoint"):
            return super().save_pretrained(save_directory, **kwargs)
        with whole_folder(save_directory) as stage:
            super().save_pretrained(stage, **kwargs)
            self._add_code(stage, save_code)
        if push_to_hub:
            repo_id = hub.pop("repo_id", Path(save_directory).resolve().name)
            self.push_to_hub(repo_id, save_code=save_code, token=kwargs.get("token"), **hub)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        processor=None,
        card=True,
        save_code=False,
        tags=None,
        max_shard_size="50GB",
        variant=None,
        commit_message="Upload model",
        **hub,
    ):
        """Share everything on the Hub, in one commit: weights, configuration, processor and card.

        Args:
            repo_id (`str`): such as `"me/anomalyclip"`; made if absent.
            processor, card, save_code, tags: as in [`~AnomalyCLIPModel.save_prompts`].
            max_shard_size (`int` or `str`), variant (`str`, *optional*): as in `PreTrainedModel.save_pretrained`.
            commit_message (`str`).
            **hub: `commit_description`, `private`, `token`, `revision`, `create_pr` as in
                `PreTrainedModel.push_to_hub`; `dry_run=True` sends nothing and returns `{path: bytes}`.

        Raises:
            ConnectionError: if the Hub can't be reached. What it refuses is the Hub client's own error.
        """
        validate_repo_id(repo_id)
        with tempfile.TemporaryDirectory(prefix="anomalyclip-") as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size, variant=variant)
            (processor or self.default_processor()).save_pretrained(folder)
            self._add_code(Path(folder), save_code)
            add_card(Path(folder), self, card, tags, repo_id=repo_id)
            return upload(Path(folder), repo_id, commit_message=commit_message, **hub)

    def _add_code(self, folder: Path, wanted: bool) -> None:
        """Code goes with what is saved where it is asked for, and where the model itself came with its code."""
        if wanted or self.is_remote_code():
            add_code(folder, type(self))
