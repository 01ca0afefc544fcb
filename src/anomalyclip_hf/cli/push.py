"""`anomalyclip push`: share a model on the Hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.options import option
from ..export.engines import is_exported
from .running import dashed

PASSED_ON = ("token", "revision", "commit_message", "create_pr", "dry_run")


@dataclass
class Settings:
    """Share a model on the Hub: the prompts alone, everything, or the vision-only form.

    anomalyclip push outputs/prompts me/anomalyclip-prompts --license mit --dry-run

    The card says what the training left in the folder, and the results given. Exit status: 0 done, 2 nothing was sent.
    """

    model: str | None = option(None, "Folder or Hub repository: prompts alone or a full AnomalyCLIP.", argument=True)
    repo_id: str | None = option(None, "Where to push, such as me/anomalyclip-prompts; made if absent.", argument=True)
    prompts_only: bool = option(False, "The prompts alone, which is the default.", group="What is sent")
    full: bool = option(False, "Everything, the backbone too.", group="What is sent")
    vision_only: bool = option(False, "No text tower; can't be trained.", group="What is sent")
    with_code: bool = option(False, "Add the code that trust_remote_code=True runs.", group="What is sent")
    dry_run: bool = option(False, "List what would be sent, and send nothing.")
    base_model: str | None = option(
        None, "Name of the base model on the Hub, where the prompts name another place.", group="Card"
    )
    base_revision: str | None = option(None, "Its revision.", group="Card")
    results: str | None = option(None, "The results.json of an evaluation.", group="Card")
    training: str | None = option(None, "JSON file on the training; by default the folder's own.", group="Card")
    license: str | None = option(None, "License of what is pushed, such as mit.", group="Card")
    private: bool = option(False, "Make the new repository private.", group="Hub")
    revision: str | None = option(None, "Branch to push to; made if absent.", group="Hub")
    commit_message: str = option("Upload AnomalyCLIP", "Of the commit.", group="Hub")
    create_pr: bool = option(False, "Propose the change instead of making it.", group="Hub")
    token: str | None = option(None, "The one kept by `hf auth login` if absent.", group="Hub")

    def __post_init__(self):
        if not self.model or not self.repo_id:
            raise ValueError("give what to push and where to: MODEL REPO_ID")
        forms = [dashed(name) for name in ("prompts_only", "full", "vision_only") if getattr(self, name)]
        if len(forms) > 1:
            raise ValueError(f"{' and '.join(forms)} exclude each other: give one of them")
        if (self.full or self.vision_only) and (self.base_model or self.base_revision):
            given = "base_model" if self.base_model else "base_revision"
            raise ValueError(
                f"{given}={getattr(self, given)!r} is for prompts alone, but {forms[0]} sends the backbone"
            )


def run(settings: Settings) -> int:
    """Load a model with its processor and share it; see [`Settings`] for the exit status."""
    from .. import AnomalyCLIPImageProcessor, AnomalyCLIPModel

    source, repo_id = str(settings.model), str(settings.repo_id)
    if is_exported(source):
        raise ValueError(
            f"model={source!r} is an exported model; push the one that it was made of, or its files: hf upload"
        )
    model = AnomalyCLIPModel.from_pretrained(source)
    card = {"results": settings.results, "training": _training(settings), "license": settings.license}
    shared: dict[str, Any] = {name: getattr(settings, name) for name in PASSED_ON}
    shared |= {"card": card, "save_code": settings.with_code, "private": settings.private or None}
    shared["processor"] = AnomalyCLIPImageProcessor.from_pretrained(source)
    if settings.vision_only:
        done = model.to_vision_only().push_to_hub(repo_id, **shared)
    elif settings.full:
        done = model.push_to_hub(repo_id, **shared)
    else:
        base = {"base_model_name_or_path": settings.base_model, "base_model_revision": settings.base_revision}
        done = model.push_prompts_to_hub(repo_id, **base, **shared)
    if settings.dry_run:
        for path, size in done.items():
            print(f"{size:>13,}  {path}")
        print(f"{sum(done.values()):>13,}  bytes, {len(done)} files would be sent to {repo_id}; nothing was sent")
    else:
        print(f"Pushed: {done.commit_url}")
    return 0


def _training(settings: Settings) -> Any:
    """What the card says of the training: the file given, or the facts that the training left beside its prompts."""
    summary = Path(str(settings.model), "training_summary.json")
    if settings.training is None and summary.is_file():
        return json.loads(summary.read_text(encoding="utf-8")).get("card")
    return settings.training
