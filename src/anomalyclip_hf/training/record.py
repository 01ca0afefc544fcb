"""What is said of a run that is done: the summary of its costs, and the training facts of the card."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .environment import peak_memory
from .history import PICTURE_NAME

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .arguments import TrainingArguments
    from .checkpoint import TrainingState
    from .samples import TrainingSamples


def summarize_run(
    state: TrainingState, accelerator: Accelerator, num_samples: int, num_used: int, metric: str | None
) -> dict[str, Any]:
    """What `training_summary.json` holds: time, images per second, memory, best epoch.

    Args:
        state ([`TrainingState`]), accelerator (`Accelerator`): of the run.
        num_samples, num_used (`int`): images of the training set, and those of them that could be read.
        metric (`str`, *optional*): what chose the best epoch; None without a validation set.
    """
    summary = {
        "epochs": state.epoch,
        "steps": state.global_step,
        "images": state.images,
        "seconds": round(state.seconds, 3),
        "images_per_second": round(state.images / max(state.seconds, 1e-9), 2),
        "num_processes": accelerator.num_processes,
        "device": str(accelerator.device),
        **peak_memory(accelerator.device),
        "training_images": num_used,
        "unreadable_images": num_samples - num_used,
        "metric": metric,
        "best_epoch": state.best_epoch,
        "best_metric": state.best_metric,
        "stopped": state.stopped,
        "curves": PICTURE_NAME,
    }
    return {key: value for key, value in summary.items() if value is not None}


def describe_training(
    samples: TrainingSamples, args: TrainingArguments, state: TrainingState, num_used: int
) -> dict[str, Any]:
    """What the card says of the training, as `make_model_card` takes it; what nobody stated is left out.

    Args:
        samples ([`TrainingSamples`]), args ([`TrainingArguments`]), state ([`TrainingState`]): of the run.
        num_used (`int`): images learned from.
    """
    source, dataset = getattr(args, "source", None), samples.source
    split = None if source == "synthetic" else getattr(args, "train_split", None) or getattr(dataset, "split", None)
    facts = {
        "dataset": _name_data(dataset, source),
        "dataset_license": getattr(getattr(dataset, "info", None), "license", None),
        "split": str(split) if split else None,
        "classes": ", ".join(sorted({value for value in samples.class_names if value})),
        "num_images": num_used,
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


def _name_data(dataset: Any, source: str | None) -> str | None:
    info = getattr(dataset, "info", None)
    # Known data sets carry their title and home page; repositories may have pages of text there.
    title = getattr(info, "description", None) if getattr(info, "homepage", None) else None
    if title and len(title) < 80:
        return title
    # A path of this machine tells others nothing, and may tell too much.
    return os.path.basename(os.path.abspath(source)) if source and os.path.exists(source) else source
