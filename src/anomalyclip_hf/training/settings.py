"""What must stay as it is for a run to be taken up again, and what must fit together for it to start."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from .feature_cache import describe_processor, fingerprint_backbone

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .arguments import TrainingArguments
    from .samples import TrainingSamples

logger = logging.get_logger(__name__)

# A run can only be taken up again with the same ones.
FIXED = (
    "batch_size",
    "learning_rate",
    "adam_beta1",
    "adam_beta2",
    "seed",
    "max_grad_norm",
    "global_loss_weight",
    "local_loss_weight",
    "initial_prompts",
    "balanced",
    "synthetic_anomalies",
    "no_cache",
    "cache_dtype",
    "metric",
)
FIXED_CONFIG = (
    "image_size",
    "temperature",
    "feature_layers",
    "dpam_layers",
    "dpam_attention",
    "prompt_length",
    "deep_prompt_depth",
    "deep_prompt_length",
    "prompt_token_ids",
    "base_model_revision",
)


def fixed_settings(
    args: TrainingArguments,
    model: Any,
    processor: Any,
    accelerator: Accelerator,
    samples: TrainingSamples,
    validation: TrainingSamples | None,
) -> dict[str, Any]:
    """All that decides the result of a run, as JSON knows it."""
    settings = {name: getattr(args, name) for name in FIXED}
    settings |= {name: getattr(model.config, name) for name in FIXED_CONFIG}
    settings |= {f"the processor's {name}": value for name, value in describe_processor(processor).items()}
    settings["the processor's sigma"] = processor.sigma
    settings["dtype"] = str(model.dtype).removeprefix("torch.")
    settings["mixed_precision"] = str(accelerator.mixed_precision)
    # What is known by its digest alone comes last: the names above tell more of a difference.
    settings["backbone"] = fingerprint_backbone(model, "")
    settings["training images"] = _describe_samples(samples)
    settings["validation images"] = _describe_samples(validation)
    settings["number of processes"] = accelerator.num_processes
    return json.loads(json.dumps(settings))


def _describe_samples(samples: TrainingSamples | None) -> str | None:
    return None if samples is None else f"{len(samples)} with contents {samples.fingerprint()[:16]}"


def check_model(model, processor) -> None:
    """Refuse what can't be trained.

    Raises:
        ValueError: if the model is vision-only, or model and processor disagree on the size of images.
    """
    if model.config.vision_only:
        raise ValueError("this is a vision-only model: its prompts are folded and can't be trained; load the full one")
    size, side = (processor.size["height"], processor.size["width"]), model.config.image_size
    if tuple(size) != (side, side):
        raise ValueError(
            f"the processor makes images of {size[0]}x{size[1]} pixels but the model's image_size is {side}; load "
            "both from the same checkpoint with the same image_size"
        )


def check_settings(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse to go on with settings that would give another result.

    Args:
        old, new (`dict`): what [`fixed_settings`] gave to the run that was cut off, and gives now.

    Raises:
        ValueError: naming the first difference.
    """
    for name in {**new, **old}:
        if old.get(name) == new.get(name):
            continue
        if name == "number of processes":
            logger.warning(f"{name} was {old.get(name)} and is {new.get(name)}: results may differ in the last digits")
            continue
        raise ValueError(
            f"can't go on from this checkpoint: {name} was {old.get(name)!r} and is {new.get(name)!r}; restore it, or "
            "start anew with overwrite=True"
        )
