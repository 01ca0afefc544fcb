"""Checkpoints of a training run: prompts, optimizer, position and random numbers, without the backbone.

accelerate writes and reads them (`save_state`, `load_state`; it opens its pickles with `weights_only`). They are
filled under a temporary name and then renamed, so that a run killed at any moment leaves whole ones alone;
accelerate's automatic naming fills them in place, and would take up a half one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.logging import get_logger
from safetensors.torch import load_file, save_file
from torch import Tensor

from .features import describe_processor, fingerprint_backbone

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..image_processing_anomalyclip import AnomalyCLIPImageProcessor
    from ..modeling_anomalyclip import AnomalyCLIPModel
    from .arguments import PromptTrainingArguments
    from .samples import TrainingSamples

logger = get_logger(__name__)

PREFIX, UNFINISHED = "step-", ".unfinished"
STATE, PROMPTS, BEST_PROMPTS = "state.json", "prompts.safetensors", "best_prompts.safetensors"
# A run can only be taken up again with the same ones.
FIXED = (
    "batch_size learning_rate adam_beta1 adam_beta2 seed max_grad_norm global_loss_weight local_loss_weight "
    "initial_prompts balanced synthetic_anomalies no_cache cache_dtype metric"
)
FIXED_CONFIG = (
    "prompt_type image_size temperature feature_layers dpam_layers dpam_attention prompt_length deep_prompt_depth "
    "deep_prompt_length prompt_token_ids base_model_revision"
)


class OtherRunError(ValueError):
    """A checkpoint belongs to a run with other settings."""


@dataclass
class TrainingState:
    """Where a run stands."""

    epoch: int = 0  # of the next step to be done, counted from 0
    step_in_epoch: int = 0  # likewise
    global_step: int = 0  # optimizer steps done
    best_metric: float | None = None
    best_epoch: int | None = None  # counted from 1
    epochs_without_improvement: int = 0
    seconds: float = 0.0  # spent in training
    images: int = 0  # seen in training
    epoch_losses: list[float] = field(default_factory=lambda: [0.0, 0.0])  # sums of this epoch: global, local
    settings: dict[str, Any] = field(default_factory=dict)  # what must not change when the run is taken up again
    stopped: str | None = None  # why it ended early


@contextmanager
def keep_prompts_alone(accelerator: Accelerator, model: AnomalyCLIPModel) -> Iterator[None]:
    """Let accelerate write and read the prompts in place of the whole model."""

    def save(models: list, weights: list, folder: str) -> None:
        weights.clear()
        if accelerator.is_main_process:
            save_file(prompt_tensors(model), Path(folder, PROMPTS))

    def load(models: list, folder: str) -> None:
        models.clear()
        model.prompt_learner.load_state_dict(load_file(Path(folder, PROMPTS)))

    hooks = accelerator.register_save_state_pre_hook(save), accelerator.register_load_state_pre_hook(load)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def save_checkpoint(
    root: Path, accelerator: Accelerator, state: TrainingState, best_prompts: Mapping[str, Tensor], keep_last: int
) -> None:
    """Write `root/step-XXXXXXXX` and remove all but the last `keep_last`; called by all processes, within
    `keep_prompts_alone`. `best_prompts` are those of the best epoch, empty without a validation set."""
    folder, temporary = root / f"{PREFIX}{state.global_step:08d}", root / UNFINISHED
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed run
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if best_prompts:
            save_file(dict(best_prompts), temporary / BEST_PROMPTS)
        (temporary / STATE).write_text(json.dumps(asdict(state), indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        for old in list_checkpoints(root)[:-keep_last]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_last_checkpoint(
    root: Path, accelerator: Accelerator, settings: dict[str, Any]
) -> tuple[TrainingState, dict[str, Tensor]] | None:
    """Restore prompts, optimizer and random numbers from the newest checkpoint that can be read, within
    `keep_prompts_alone`.

    Returns:
        the state, and the prompts of the best epoch ({} if there is none); None if there is no checkpoint.

    Raises:
        ValueError: if there are checkpoints but none can be read, or their settings differ.
    """
    paths = list_checkpoints(root)
    for path in reversed(paths):
        try:
            state = TrainingState(**json.loads((path / STATE).read_text()))
            _check_settings(state.settings, settings)
            best_prompts = load_file(path / BEST_PROMPTS) if state.best_epoch is not None else {}
            accelerator.load_state(str(path))
            return state, best_prompts
        except OtherRunError:
            raise
        except Exception as error:  # safetensors, JSON, pickle and the system each have their own
            logger.warning(f"checkpoint {path} is damaged ({error}); trying the one before")
    if paths:
        raise ValueError(
            f"none of the checkpoints in {root} can be read; start anew with overwrite=True, or restore them"
        )
    return None


def list_checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(root.glob(f"{PREFIX}[0-9]*"))


def prompt_tensors(model: AnomalyCLIPModel) -> dict[str, Tensor]:
    """Copies of the learned prompts, by the names that `model.prompt_learner` has for them."""
    return {name: value.detach().cpu().clone() for name, value in model.prompt_learner.state_dict().items()}


def fixed_settings(
    args: PromptTrainingArguments,
    model: AnomalyCLIPModel,
    processor: AnomalyCLIPImageProcessor,
    accelerator: Accelerator,
    samples: TrainingSamples,
    validation: TrainingSamples | None,
) -> dict[str, Any]:
    """All that decides the result of a run, as JSON knows it."""
    settings = {name: getattr(args, name) for name in FIXED.split()}
    settings |= {name: getattr(model.config, name) for name in FIXED_CONFIG.split()}
    settings |= {f"the processor's {name}": value for name, value in describe_processor(processor).items()}
    settings["the processor's sigma"] = processor.sigma
    settings["dtype"] = str(model.dtype).removeprefix("torch.")
    settings["mixed_precision"] = str(accelerator.mixed_precision)
    # What is known by its digest alone comes last: the names above tell more of a difference.
    settings["backbone"] = fingerprint_backbone(model, "")
    for name, data in (("training images", samples), ("validation images", validation)):
        settings[name] = data and f"{len(data)} with contents {data.fingerprint()[:16]}"
    settings["number of processes"] = accelerator.num_processes
    return json.loads(json.dumps(settings))


def _check_settings(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse to go on with settings that would give another result, naming the first difference."""
    for name in {**new, **old}:
        was, now = old.get(name), new.get(name)
        if was != now and name == "number of processes":
            logger.warning(f"{name} was {was} and is {now}: results may differ in the last digits")
        elif was != now:
            raise OtherRunError(
                f"can't go on from this checkpoint: {name} was {was!r} and is {now!r}; restore it, or start anew with "
                "overwrite=True"
            )
