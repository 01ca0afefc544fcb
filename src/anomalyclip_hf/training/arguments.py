"""Settings of a training run, with the authors' recipe as the default."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ..data.options import option
from ..evaluation.metrics import IMAGE_METRICS, PIXEL_METRICS

JUDGES = (*IMAGE_METRICS, *PIXEL_METRICS, "loss")
CHOICES: dict[str, tuple[str | None, ...]] = {
    "recipe": ("authors",),
    "cache_dtype": ("float32", "float16"),
    "metric": JUDGES,
    "initial_prompts": ("model", "fresh"),
    "mixed_precision": (None, "no", "bf16", "fp16"),
}
OPTIONAL = ("max_steps", "patience", "save_steps", "max_grad_norm", "cache_limit_gb")
# What a number must be: names of fields, the test, and how an error says it.
RANGES = (
    (
        "epochs batch_size gradient_accumulation_steps encode_batch_size keep_last max_steps patience save_steps",
        lambda value: value >= 1,
        "1 or more",
    ),
    ("learning_rate max_grad_norm cache_limit_gb", lambda value: value > 0, "a number above 0"),
    ("adam_beta1 adam_beta2", lambda value: 0 <= value < 1, "a number in [0, 1)"),
    ("global_loss_weight local_loss_weight", lambda value: 0 <= value < math.inf, "a finite number, 0 or more"),
    ("seed num_workers", lambda value: value >= 0, "0 or more"),
)


@dataclass
class PromptTrainingArguments:
    """Settings of [`train_prompts`]; by default those of the paper (section 5) and of the authors' train.py.

    Raises:
        ValueError: if a field is out of its range; the message names it.
    """

    output_dir: str = option("outputs/prompts", "Folder for prompts, checkpoints, log and curves.", short="o")
    recipe: str = option("authors", "Whose defaults these are; there is no other recipe yet.")
    epochs: int = option(15, "Passes over the training set.")
    batch_size: int = option(8, "Images per optimizer step, over all processes together.")
    learning_rate: float = option(1e-3, "Of Adam, constant.")
    adam_beta1: float = option(0.5, "Of Adam.")
    adam_beta2: float = option(0.999, "Of Adam.")
    seed: int = option(111, "Of shuffling, fresh prompts and drawn anomalies.")
    max_steps: int | None = option(None, "Stop after this many optimizer steps.")
    gradient_accumulation_steps: int = option(1, "Parts into which each process splits its share of a batch.")
    max_grad_norm: float | None = option(None, "Clip the gradient's norm; none by default.")
    global_loss_weight: float = option(1.0, "Factor on the image loss, the paper's first term; 0: without it.")
    local_loss_weight: float = option(1.0, "Factor on the loss of maps, the paper's second term; 0: without it.")
    initial_prompts: str = option(
        "model", "'model': the model's own (fresh for a CLIP checkpoint); 'fresh': drawn anew from the seed."
    )
    balanced: bool = option(False, "Draw normal and anomalous images equally often.")
    synthetic_anomalies: bool = option(False, "Also draw an anomaly, with its mask, onto each normal image.")
    no_cache: bool = option(False, "Run the vision tower on every image in every epoch.")
    cache_dir: str | None = option(None, "Folder of kept features; below HF_HOME by default.")
    cache_dtype: str = option("float16", "float16 or float32.")
    cache_limit_gb: float | None = option(100.0, "Refuse to write more kept features than this.")
    encode_batch_size: int = option(8, "Images per forward of the vision tower, in each process.")
    num_workers: int = option(0, "Processes that decode images, per training process.")
    metric: str = option("image_auroc", f"Chooses the best epoch: {', '.join(JUDGES)}.")
    patience: int | None = option(None, "Stop after this many epochs without a better metric.")
    save_steps: int | None = option(None, "Also write a checkpoint every so many steps (always after an epoch).")
    keep_last: int = option(2, "Checkpoints kept.")
    resume: bool = option(False, "Go on from the last checkpoint in output_dir, if there is one.")
    overwrite: bool = option(False, "Discard checkpoints of an earlier run in output_dir.")
    mixed_precision: str | None = option(None, "no, bf16 or fp16; accelerate's own setting by default.")
    cpu: bool = option(False, "Train on the CPU even if there is an accelerator.")
    deterministic: bool = option(False, "Use deterministic algorithms only.")
    report_to: str | None = option(None, "Tracker of accelerate, such as tensorboard; none by default.")
    disable_tqdm: bool = option(False, "Show no progress bars.")

    def __post_init__(self):
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}, expected one of {', '.join(map(str, allowed))}")
        for names, holds, expected in RANGES:
            for name in names.split():
                value = getattr(self, name)
                if not (name in OPTIONAL if value is None else holds(value)):
                    raise ValueError(f"{name}={value}, expected {expected}")
        if self.global_loss_weight == self.local_loss_weight == 0:
            raise ValueError("global_loss_weight=0 and local_loss_weight=0 leave nothing to learn; raise one of them")

    @property
    def loss_weights(self) -> tuple[float, float]:
        """Of the global and of the local loss."""
        return self.global_loss_weight, self.local_loss_weight

    def to_dict(self) -> dict[str, Any]:
        """All fields, as saved beside the prompts; `anomalyclip train --config` takes them as a settings file."""
        return dataclasses.asdict(self)
