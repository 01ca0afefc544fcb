"""What a run writes about itself: a line of JSON per step and epoch, a picture of the curves, facts for its card."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data.files import json_line, read_lines, write_text

if TYPE_CHECKING:
    from .arguments import PromptTrainingArguments
    from .checkpoint import TrainingState
    from .samples import TrainingSamples

LOG_NAME, PICTURE_NAME = "training_log.jsonl", "training_curves.png"
PLOTTED = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro")


def start_log(folder: Path, step: int = 0, epoch: int = 0) -> None:
    """Begin `training_log.jsonl`, or remove the rows after a step and an epoch, left by a run that was cut off."""
    kept = [
        row for row in read_log(folder) if row["step"] <= step and (row["kind"] == "step" or row["epoch"] <= epoch)
    ]
    write_text(folder / LOG_NAME, "".join(map(json_line, kept)))


def add_to_log(folder: Path, kind: str, row: dict[str, Any]) -> None:
    """Append one row; `kind` is "step" or "epoch"."""
    with open(folder / LOG_NAME, "a") as file:
        file.write(json_line({"kind": kind, **row}))


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All whole rows of a run's log."""
    path = folder / LOG_NAME
    return list(read_lines(path)) if path.exists() else []


def plot_training(folder: Path) -> None:
    """Draw `training_curves.png`: losses, and validation metrics if there are any; none if nothing was logged."""
    from ..evaluation.plots import plot_curves

    rows = read_log(folder)
    # A run of one epoch is better seen by its steps.
    kind = "epoch" if sum(row["kind"] == "epoch" for row in rows) > 1 else "step"
    history = []
    for row in (row for row in rows if row["kind"] == kind):
        found = row.get("validation") or {}
        losses = {name.replace("_", " "): row[name] for name in ("loss", "global_loss", "local_loss")}
        judged = {name: found.get(name) for name in PLOTTED}
        history.append({kind: row[kind], **losses, **judged, "validation loss": found.get("loss")})
    if history:
        plot_curves(history, folder / PICTURE_NAME, x=kind)


def describe_training(
    samples: TrainingSamples, args: PromptTrainingArguments, state: TrainingState, num_used: int
) -> dict[str, Any]:
    """What the card says of a training on `num_used` images, as `make_model_card` takes it; what nobody stated is left
    out."""
    source, info = getattr(args, "source", None), getattr(samples.dataset, "info", None)
    split = getattr(args, "train_split", None) or getattr(samples.dataset, "split", None)
    # Known data sets carry their title and home page; repositories may have pages of text there.
    title = getattr(info, "description", None) if getattr(info, "homepage", None) else None
    if not title or len(title) >= 80:
        # A path of this machine tells others nothing, and may tell too much.
        title = os.path.basename(os.path.abspath(source)) if source and os.path.exists(source) else source
    facts = {
        "dataset": title,
        "dataset_license": getattr(info, "license", None),
        "split": str(split) if split and source != "synthetic" else None,
        "classes": ", ".join(sorted({value for value in samples.class_names if value})),
        "images": num_used,
        "drawn anomalies": "on each normal image" if args.synthetic_anomalies else None,
        "recipe": args.recipe,
        "epochs": state.epoch,
        "best epoch": f"{state.best_epoch}, by {args.metric} on other data" if state.best_epoch is not None else None,
        "steps": state.global_step,
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "seed": args.seed,
        "balanced": "both kinds drawn equally often" if args.balanced else None,
        "weight of the global loss": args.global_loss_weight if args.global_loss_weight != 1 else None,
        "weight of the local loss": args.local_loss_weight if args.local_loss_weight != 1 else None,
    }
    return {key: value for key, value in facts.items() if value is not None and value != ""}


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peak memory of this process in GB where the system tells it, and of the GPU if there is one."""
    found = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes elsewhere
        found["peak_memory_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)
    if device.type == "cuda":
        found["peak_gpu_memory_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
    return found
