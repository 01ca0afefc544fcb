"""What sharing needs beside weights: whole files or none, the code that travels, the card, and uploads."""

import importlib
import inspect
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

# Files that travel with a checkpoint, so that it runs without this package.
CODE_FILES = (
    "configuration_anomalyclip.py",
    "hub_anomalyclip.py",
    "images_anomalyclip.py",
    "loss_anomalyclip.py",
    "modeling_anomalyclip.py",
    "pipeline_anomalyclip.py",
    "cpu_anomalyclip.py",
    "processing_anomalyclip.py",
    "prompts_anomalyclip.py",
    "sharing_anomalyclip.py",
    "weights_anomalyclip.py",
)
AUTO_MAP = {
    "AutoConfig": "configuration_anomalyclip.AnomalyCLIPConfig",
    "AutoModel": "modeling_anomalyclip.AnomalyCLIPModel",
    "AutoImageProcessor": "processing_anomalyclip.AnomalyCLIPProcessor",
    "AutoProcessor": "processing_anomalyclip.AnomalyCLIPProcessor",
}
CUSTOM_PIPELINES = {
    "zero-shot-anomaly-detection": {
        "impl": "pipeline_anomalyclip.ZeroShotAnomalyDetectionPipeline",
        "pt": ["AutoModel"],
        "type": "image",
    }
}
WEIGHTS_PATTERN = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?|prompts\.safetensors")
PACKAGE = "anomalyclip_hf"
SETTINGS_PAGE = "https://huggingface.co/settings/tokens"


@contextmanager
def staged_folder(folder: str | os.PathLike | None) -> Iterator[Path]:
    """A hidden folder inside `folder`; when all went well, its files take their places, config.json last.

    Args:
        folder (`str` or `os.PathLike`, *optional*): made if absent; None = a temporary folder, deleted in the end.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="anomalyclip-") as temporary:
            yield Path(temporary)
        return
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, expected a folder to save into")
    existed = folder.is_dir()
    stage = folder / f".saving-{uuid.uuid4().hex}"
    stage.mkdir(parents=True)
    try:
        yield stage
        files = sorted((path for path in stage.iterdir()), key=lambda path: (path.name == "config.json", path.name))
        names = {path.name for path in files}
        if any(WEIGHTS_PATTERN.fullmatch(name) for name in names):
            for old in folder.iterdir():
                if WEIGHTS_PATTERN.fullmatch(old.name) and old.name not in names:
                    old.unlink()
        for path in files:
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if not existed and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def refuse_full_checkpoint(folder: str | os.PathLike) -> None:
    """Keep prompts from being saved over a full checkpoint, whose config.json they would replace."""
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if Path(folder, name).exists():
            raise ValueError(f"{folder} holds a full checkpoint ({name}); save the prompts to another folder")


def add_code(folder: Path, wanted: bool = True) -> None:
    """Copy the code that travels beside a config.json and name its classes there; or take both out."""
    here = Path(__file__).parent
    # A checkpoint that itself came with its code may have brought only part of the files.
    files = [name for name in CODE_FILES if wanted and (here / name).is_file()]
    for name in CODE_FILES:
        if name in files:
            shutil.copyfile(here / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    modules = {name.removesuffix(".py") for name in files}
    auto_map = {auto: name for auto, name in AUTO_MAP.items() if name.split(".")[0] in modules}
    pipelines = CUSTOM_PIPELINES if "pipeline_anomalyclip" in modules else None
    _set_fields(folder / "config.json", auto_map=auto_map, custom_pipelines=pipelines)
    images = {auto: name for auto, name in auto_map.items() if auto == "AutoImageProcessor"}
    _set_fields(folder / "preprocessor_config.json", auto_map=images)


def _set_fields(path: Path, **fields: Any) -> None:
    """Set fields of a JSON file, if it is there; what is empty is taken out."""
    if path.is_file():
        stored = {**json.loads(path.read_text(encoding="utf-8")), **fields}
        stored = {key: value for key, value in stored.items() if key not in fields or value}
        path.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def add_card(folder: Path, model: Any, card: Any = True, **facts: Any) -> None:
    """Write README.md: the card given, or one that the package makes, where it is installed.

    Args:
        card (`bool`, `dict` or `ModelCard`): False = none; a dict adds to what is told to `make_model_card`.
    """
    if card is False or card is None:
        return
    if card is True or isinstance(card, dict):
        try:
            maker = importlib.import_module(f"{PACKAGE}.evaluation.model_card")
        except ModuleNotFoundError:
            return
        card = maker.make_model_card(model, **{**facts, **(card if isinstance(card, dict) else {})})
    (Path(folder) / "README.md").write_text(str(card), encoding="utf-8")


def upload(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload model",
    create_pr: bool = False,
    dry_run: bool = False,
    commit_description: str | None = None,
):
    """Send a folder to the Hub in one commit; weights that are no longer part of it are deleted there.

    Args:
        folder (`str` or `os.PathLike`): everything in it is sent.
        repo_id (`str`): made if absent.
        private (`bool`, *optional*): of a new repository.
        token (`str` or `bool`, *optional*): the one kept by `hf auth login` if absent.
        revision (`str`, *optional*): branch, made if absent.
        commit_message (`str`).
        create_pr (`bool`): propose the change instead of making it.
        dry_run (`bool`): send nothing, and make no contact.
        commit_description (`str`, *optional*): what the commit says beside its message.

    Returns:
        `huggingface_hub.CommitInfo`; with `dry_run`, what would be sent: `{path: bytes}`.

    Raises:
        OSError: (`PermissionError`, `FileNotFoundError`, `ConnectionError`) saying what to do.
        ValueError: if `repo_id` is no name of a repository.
    """
    if dry_run:
        return list_upload(folder)
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        operations = _operations(api, Path(folder), repo_id, None if create_pr else revision)
        return api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    except Exception as error:
        if (explained := explain_hub_error(error, repo_id, api.endpoint)) is not None:
            raise explained from error
        raise


def check_upload(repo_id: str, options: dict[str, Any]) -> dict[str, Any]:
    """Check the arguments of a push before anything is written or sent.

    Args:
        repo_id (`str`): as in [`upload`]; a name without a user is the token's own.
        options (`dict`): arguments of [`upload`]; None leaves them as they are there.

    Returns:
        the options without those that are None.

    Raises:
        TypeError: if one is unknown.
        ValueError: if `repo_id` is no name of a repository.
    """
    known = [name for name in inspect.signature(upload).parameters if name not in ("folder", "repo_id")]
    if unknown := sorted(set(options) - set(known)):
        raise TypeError(f"unknown arguments {unknown}; known are {known}")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise explain_hub_error(error, repo_id, "") from error  # type: ignore[misc]
    return {name: value for name, value in options.items() if value is not None}


def add_tags(folder: Path, tags: str | list[str] | None) -> None:
    """Add tags to the metadata of a folder's README.md, which is made if absent."""
    if not tags:
        return
    path = Path(folder) / "README.md"
    card = (
        ModelCard.load(path)
        if path.is_file()
        else ModelCard.from_template(ModelCardData(), template_str="---\n{{ card_data }}\n---\n")
    )
    added = [tags] if isinstance(tags, str) else list(tags)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *added]))
    path.write_text(str(card), encoding="utf-8")


def list_upload(folder: str | os.PathLike) -> dict[str, int]:
    """What [`upload`] sends of a folder: path in the repository and size in bytes."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _operations(api: HfApi, folder: Path, repo_id: str, revision: str | None) -> list:
    files = list_upload(folder)
    additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name)) for name in files]
    there = api.list_repo_files(repo_id, revision=revision)
    stale = [name for name in there if WEIGHTS_PATTERN.fullmatch(name) and name not in files]
    return [*additions, *(CommitOperationDelete(path_in_repo=name) for name in stale)]


def explain_hub_error(error: BaseException, repo_id: str, endpoint: str) -> Exception | None:
    """What went wrong with the Hub and what to do; None if the error has another cause."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    if isinstance(error, HFValidationError):
        return ValueError(f"repo_id={repo_id!r} is no name of a repository, expected 'user/name': {error}")
    for cause in causes:
        if isinstance(cause, OfflineModeIsEnabled):
            return ConnectionError(f"can't push to {repo_id}: HF_HUB_OFFLINE is set; unset it and push again")
        if isinstance(cause, HfHubHTTPError):
            return _explain_status(cause, repo_id)
        if type(cause).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests"):
            return ConnectionError(
                f"can't push to {repo_id}: the connection to {endpoint} failed ({cause}). Check the "
                "network and push again; what arrived already is not sent twice"
            )
    return None


def _explain_status(error: HfHubHTTPError, repo_id: str) -> OSError:
    status = error.response.status_code if error.response is not None else 0
    said = getattr(error, "server_message", None) or str(error)
    advice: dict[int, tuple[type[OSError], str]] = {
        401: (PermissionError, f"log in with `hf auth login`, or give token=... (made at {SETTINGS_PAGE})"),
        403: (
            PermissionError,
            f"the token may not write to {repo_id.split('/')[0]!r}; make one that may at {SETTINGS_PAGE}",
        ),
        404: (
            FileNotFoundError,
            "check the name of the repository and of the revision, and that the token may see it",
        ),
        409: (OSError, "the repository changed or exists with other settings; look at it and push again"),
        412: (OSError, "the repository changed meanwhile; push again"),
        429: (OSError, "too many requests; wait some minutes and push again"),
    }
    kind, what = advice.get(status, (OSError, "nothing was committed"))
    if status >= 500:
        what = "the Hub has a problem of its own and nothing was committed; try again later (status.huggingface.co)"
    return kind(f"can't push to {repo_id}: the Hub answered {status} ({said}). What to do: {what}")


__all__ = ["list_upload", "upload"]
