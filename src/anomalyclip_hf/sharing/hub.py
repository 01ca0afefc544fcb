"""The way to the Hub: cards, and one commit for all files of a folder."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard, ModelCardData
from transformers import PreTrainedModel

from ..options_anomalyclip import installed
from .writing import WEIGHTS_PATTERNS


def add_card(
    folder: Path, model: PreTrainedModel, card: bool | dict | str | ModelCard = True, tags=None, **facts: Any
) -> None:
    """Write README.md into a saved checkpoint.

    Args:
        card (`bool`, `dict`, `str` or `ModelCard`): False = none; True or a dict of arguments = made by
            `make_model_card`.
        tags (`str` or `list[str]`, *optional*): added to the card's metadata.
        **facts: what `make_model_card` takes, beneath the card's own.
    """
    if card is True or isinstance(card, dict):
        facts["with_code"] = (folder / "modeling_anomalyclip.py").is_file()
        arguments = {**facts, **(card if isinstance(card, dict) else {})}
        card = installed("evaluation.model_card").make_model_card(model, **arguments)
    if tags:
        empty = ModelCard.from_template(ModelCardData(), template_str="---\n{{ card_data }}\n---\n")
        card = ModelCard(str(card or empty))
        data: Any = card.data
        data.tags = list(dict.fromkeys([*(data.tags or []), *([tags] if isinstance(tags, str) else tags)]))
    if card:
        (folder / "README.md").write_text(str(card), encoding="utf-8")


def upload(
    folder: str | os.PathLike,
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
    """Send all of a folder to the Hub in one commit, and delete weights there that are no longer part of it.

    Args:
        folder, repo_id, commit_message, ..., create_pr: as in every `push_to_hub`; the repository is made if absent.
        dry_run (`bool`): make no contact, and return what would be sent: `{path: bytes}`.

    Raises:
        ConnectionError: if the Hub can't be reached.
        ValueError: the repository exists and is public, but private=True.
        What the Hub refuses is its client's own error.
    """
    if dry_run:
        files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.repo_info(repo_id).private:
            raise ValueError(f"private=True but {repo_id} exists and is public: make it private there first")
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=Path(folder),
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            delete_patterns=[*WEIGHTS_PATTERNS],
        )
    except (OSError, ValueError):
        raise
    except Exception as error:  # the HTTP client's own, which names neither the repository nor the address
        raise ConnectionError(f"can't push to {repo_id}: the connection to {api.endpoint} failed ({error})") from error
