"""The trainer of the prompts: [`train_prompts`], and what it does from top to bottom."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import set_seed
from torch import Tensor
from tqdm.auto import tqdm

from ..configuration_anomalyclip import PROMPT_STD
from ..data.files import remove_leftovers, write_json
from ..evaluation.model_card import prompts_checksum
from ..options_anomalyclip import THRESHOLDS
from .arguments import PromptTrainingArguments
from .checkpoint import (
    TrainingState,
    fixed_settings,
    keep_prompts_alone,
    list_checkpoints,
    load_last_checkpoint,
    prompt_tensors,
    save_checkpoint,
)
from .features import FeatureCache, UncachedImages
from .history import PICTURE_NAME, add_to_log, describe_training, peak_memory, plot_training, read_log, start_log
from .samples import SyntheticAnomalies, TrainingSamples, check_training_set, check_validation_set
from .step import NonFiniteLossError, StepLosses, training_step
from .validation import validate

if TYPE_CHECKING:
    from ..image_processing_anomalyclip import AnomalyCLIPImageProcessor
    from ..modeling_anomalyclip import AnomalyCLIPModel
    from .samples import Rows

logger = get_logger(__name__)  # which speaks in the main process

ROUNDING = 1e-6  # an epoch that is better by less is as good: other machines would see it the other way round
SUMMARY_NAME, ARGUMENTS_NAME = "training_summary.json", "training_arguments.json"


@dataclass
class TrainingResult:
    """What [`train_prompts`] returns; the model then carries the prompts it speaks of."""

    output_dir: Path
    history: list[dict[str, Any]]  # one entry per epoch: losses, and the validation's metrics
    best_epoch: int | None  # with a validation set; counted from 1
    best_metric: float | None
    summary: dict[str, Any]  # time, images per second, memory and the rest of training_summary.json
    card_facts: dict[str, Any]  # what the card says of the training, as `make_model_card` takes it


def train_prompts(
    model: AnomalyCLIPModel,
    processor: AnomalyCLIPImageProcessor,
    train_dataset: Rows,
    args: PromptTrainingArguments | None = None,
    validation_dataset: Rows | None = None,
    accelerator: Accelerator | None = None,
) -> TrainingResult:
    """Learn the two prompts on labelled images (section 3 of the paper); the backbone stays as it is.

    Args:
        model ([`AnomalyCLIPModel`]): its prompts are trained in place.
        processor ([`AnomalyCLIPImageProcessor`]).
        train_dataset: `datasets.Dataset` as of `load_anomaly_dataset`, or any sequence of dicts with `image`, `label`
            (0 or 1) and optionally `mask`, `path` and `class_name`.
        args ([`PromptTrainingArguments`], *optional*): the authors' recipe if absent.
        validation_dataset (*optional*): likewise; judged after every epoch, and the best epoch's prompts are kept.
        accelerator (`Accelerator`, *optional*): one is made from args if absent. It must have prepared nothing yet,
            and has let go of everything afterwards.

    Raises:
        ValueError: for a data set that can't be learned from, or settings that contradict each other.
        FileExistsError: if output_dir holds checkpoints, and neither resume nor overwrite is set.
        NonFiniteLossError: if a loss is NaN or infinite; a checkpoint from before that step is kept.
    """
    return PromptTrainer(model, processor, train_dataset, args, validation_dataset, accelerator).train()


class PromptTrainer:
    """A run of [`train_prompts`], which has the arguments: checks them, and `train` does the rest."""

    def __init__(
        self,
        model: AnomalyCLIPModel,
        processor: AnomalyCLIPImageProcessor,
        train_dataset: Rows,
        args: PromptTrainingArguments | None = None,
        validation_dataset: Rows | None = None,
        accelerator: Accelerator | None = None,
    ):
        self.args = args or PromptTrainingArguments()
        self.model, self.processor, self.wrapped, self.state = model, processor, model, TrainingState()
        self.best_prompts: dict[str, Tensor] = {}
        self.output_dir = Path(self.args.output_dir)
        self.checkpoints = self.output_dir / "checkpoints"
        if model.config.vision_only:
            raise ValueError(
                "this is a vision-only model: its prompts are folded and can't be trained; load the full one"
            )
        size, side = (processor.size["height"], processor.size["width"]), model.config.image_size
        if size != (side, side):
            raise ValueError(
                f"the processor makes images of {size[0]}x{size[1]} pixels but the model's image_size is {side}; load "
                "both from the same checkpoint with the same image_size"
            )
        self.samples = TrainingSamples(train_dataset)
        if self.args.synthetic_anomalies:
            self.samples = SyntheticAnomalies(self.samples, self.args.seed)
        notices = check_training_set(self.samples, self.args.balanced, self.args.loss_weights)
        self.validation: TrainingSamples | None = None
        if validation_dataset is not None:
            self.validation = TrainingSamples(validation_dataset, "validation_dataset")
            check_validation_set(self.samples, self.validation, self.args.metric)
        elif self.args.patience is not None:
            raise ValueError(f"patience={self.args.patience} but there is no validation set; give one")
        # What args leave open comes from `accelerate launch` or `accelerate config`.
        self.accelerator = accelerator or Accelerator(
            mixed_precision=self.args.mixed_precision,
            cpu=self.args.cpu,
            log_with=self.args.report_to,
            project_dir=self.output_dir,
        )
        for notice in notices:
            logger.warning(notice)

    def train(self) -> TrainingResult:
        """Run from the start or from the last checkpoint to the end."""
        deterministic = torch.are_deterministic_algorithms_enabled()
        if self.args.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        set_seed(self.args.seed, deterministic=self.args.deterministic)
        self._claim_output_dir()
        try:
            self._prepare()
            with keep_prompts_alone(self.accelerator, self.model):
                self._resume()
                self._run()
            return self._finish()
        finally:
            # The caller's model as it was, without accelerate's wrappers and hooks.
            torch.use_deterministic_algorithms(deterministic)
            self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
            self.accelerator.free_memory()
            self.model.freeze_backbone()

    # Before

    def _claim_output_dir(self) -> None:
        """Find out now what would fail when saving after hours, and take the folder."""
        args, found = self.args, list_checkpoints(self.checkpoints)
        if found and not args.resume and not args.overwrite:
            raise FileExistsError(
                f"{self.output_dir} holds checkpoints of an earlier run, such as {found[-1].name}: set resume=True "
                "to go on from there, overwrite=True to discard them, or another output_dir"
            )
        self.saves_prompts_alone = self.model.config.base_model_name_or_path is not None
        if self.saves_prompts_alone and (self.output_dir / "model.safetensors").exists():
            raise FileExistsError(
                f"{self.output_dir} holds a full checkpoint (model.safetensors), which prompts alone must not "
                "overwrite: give another output_dir"
            )
        if not self.saves_prompts_alone:
            logger.warning("nothing names the backbone of this model, so it will be saved whole")
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            remove_leftovers(self.output_dir)
            if args.overwrite and not args.resume:
                shutil.rmtree(self.checkpoints, ignore_errors=True)
                # What an earlier run left must not be taken for this one's.
                for name in ("prompts.safetensors", SUMMARY_NAME, PICTURE_NAME):
                    (self.output_dir / name).unlink(missing_ok=True)
            write_json(self.output_dir / ARGUMENTS_NAME, args.to_dict())
        self.accelerator.wait_for_everyone()

    def _prepare(self) -> None:
        """Features of the images, prompts as they are at the start, and their optimizer."""
        args, accelerator, model = self.args, self.accelerator, self.model
        model.to(accelerator.device).eval()
        if old := [f"{name}={value:g}" for name in THRESHOLDS if (value := getattr(model.config, name)) is not None]:
            logger.warning(
                f"{' and '.join(old)} belong to the prompts before training and are removed; calibrate the new"
            )
        model.config.image_threshold = model.config.pixel_threshold = None
        self.initial_prompts = prompts_checksum(model) if args.initial_prompts == "model" else "fresh"
        if args.initial_prompts == "fresh":
            draw_fresh_prompts(model, args.seed)
        self.source = self._open_source(self.samples)
        self.members = np.flatnonzero(self.source.readable)
        check_training_set(self.samples, args.balanced, args.loss_weights, self.members)
        if self.validation is not None:
            self.validation_source = self._open_source(self.validation)
        model.freeze_backbone()
        for parameter in model.prompt_learner.parameters():
            # A deep prompt of depth 1 has no elements and gets no gradient.
            parameter.requires_grad_(parameter.numel() > 0)
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        adam = torch.optim.Adam(learned, lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2))
        self.wrapped, self.optimizer = accelerator.prepare(model, adam)
        if args.report_to:
            loggable = {k: v for k, v in args.to_dict().items() if isinstance(v, int | float | str | bool)}
            accelerator.init_trackers("anomalyclip_hf", loggable)

    def _open_source(self, samples: TrainingSamples) -> FeatureCache | UncachedImages:
        if self.args.no_cache:
            return UncachedImages(samples, self.processor, self.args.num_workers)
        return FeatureCache.build(self.model, self.processor, samples, self.args, self.accelerator)

    def _resume(self) -> None:
        args, model, accelerator = self.args, self.model, self.accelerator
        settings = fixed_settings(args, model, self.processor, accelerator, self.samples, self.validation)
        found = load_last_checkpoint(self.checkpoints, accelerator, settings) if args.resume else None
        if found is not None:
            self.state, self.best_prompts = found
            if args.patience is None or self.state.epochs_without_improvement < args.patience:
                self.state.stopped = None
            logger.warning(f"going on from step {self.state.global_step} (epoch {self.state.epoch + 1})")
        elif args.resume:
            logger.warning(f"{self.checkpoints} holds no checkpoint: starting from the beginning")
        self.state.settings = settings
        if accelerator.is_main_process:
            start_log(self.output_dir, self.state.global_step, self.state.epoch)

    # The run

    def _run(self) -> None:
        args, state, members = self.args, self.state, self.members
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        per_epoch = math.ceil(len(members) / args.batch_size)
        total = min(args.epochs * per_epoch, args.max_steps or sys.maxsize)
        bar = self._bar(total=total, initial=state.global_step, desc="training", unit="step")
        while not state.stopped and state.global_step < total:
            # 1. The batches of this epoch that are still to be done, and this process's share of each, in parts.
            # accelerate's sampler would repeat images to make shares equal; with unequal ones, n processes equal one.
            order = members[epoch_order(self.samples.labels[members], args.seed, state.epoch, args.balanced)]
            last = min(per_epoch, state.step_in_epoch + total - state.global_step)
            todo = [order[step * args.batch_size :][: args.batch_size] for step in range(state.step_in_epoch, last)]
            splits = [np.array_split(rows, world * args.gradient_accumulation_steps)[rank::world] for rows in todo]
            shares = [[part for part in parts if len(part)] for parts in splits]
            # A process without a share of a small batch takes part in the exchange with an image that doesn't count.
            parts = [part for rows, own in zip(todo, shares, strict=True) for part in own or [rows[:1]]]
            batches = self._batches(self.samples, self.source, parts)

            # 2. A step for each.
            for indices, own in zip(todo, shares, strict=True):
                started = time.perf_counter()
                losses = self._step(indices, own, batches)
                state.seconds += time.perf_counter() - started
                state.images += len(indices)
                state.step_in_epoch += 1
                state.global_step += 1
                state.epoch_losses = np.add(state.epoch_losses, losses).tolist()
                self._log("step", losses)
                bar.set_postfix({"global": f"{losses[0]:.4f}", "local": f"{losses[1]:.4f}"}, refresh=False)
                bar.update()
                if args.save_steps and state.global_step % args.save_steps == 0 and state.step_in_epoch < per_epoch:
                    self._save()

            # 3. Validation, and a checkpoint; `max_steps` within an epoch keeps the position for a longer run.
            means = StepLosses(*(total / max(state.step_in_epoch, 1) for total in state.epoch_losses))
            found = self._validate()
            self._log("epoch", means, found)
            if state.step_in_epoch == per_epoch:
                self._close_epoch(found)
            self._save()
        bar.close()

    def _batches(
        self, samples: TrainingSamples, source: FeatureCache | UncachedImages, parts: Sequence[np.ndarray]
    ) -> Iterator[dict[str, Tensor]]:
        """Inputs of the model for each part, with labels, and with masks where there are any to learn from."""
        for indices, batch in zip(parts, source.iterate(parts), strict=True):
            if not samples.uses_masks:
                del batch["masks"]
            yield {**batch, "labels": torch.from_numpy(samples.labels[indices])}

    def _step(self, indices: np.ndarray, own: list[np.ndarray], batches: Iterator[dict[str, Tensor]]) -> StepLosses:
        args, parts = self.args, list(islice(batches, len(own) or 1))
        try:
            return training_step(
                self.wrapped,
                parts,
                self.optimizer,
                self.accelerator,
                max_grad_norm=args.max_grad_norm,
                padding=not own,
                loss_weights=args.loss_weights,
            )
        except NonFiniteLossError as error:
            # Prompts of the last good step; they were not touched by this one.
            if all(torch.isfinite(tensor).all() for tensor in prompt_tensors(self.model).values()):
                self._save()
            kept = list_checkpoints(self.checkpoints)
            where = f", the last good prompts are in {kept[-1]}" if kept else ""
            advice = "Try a lower learning_rate or max_grad_norm"
            if not all(torch.isfinite(value).all() for part in parts for value in part.values()):
                advice = "The features of the batch are not finite"
            raise NonFiniteLossError(
                f"step {self.state.global_step + 1} (epoch {self.state.epoch + 1}): {error}. Training has "
                f"stopped{where}. {advice}. Its images: {', '.join(self.samples.paths[i] for i in indices)}"
            ) from error

    def _validate(self) -> dict[str, Any] | None:
        if self.validation is None:
            return None
        members = np.flatnonzero(self.validation_source.readable)
        own = members[self.accelerator.process_index :: self.accelerator.num_processes]
        size = self.args.encode_batch_size
        parts = [own[start : start + size] for start in range(0, len(own), size)]
        names = [[self.validation.class_names[index] for index in part] for part in parts]
        batches = zip(names, self._batches(self.validation, self.validation_source, parts), strict=True)
        shown = self._bar(batches, total=len(parts), desc="validation", unit="batch", leave=False)
        return validate(self.model, self.processor, shown, self.accelerator, self.args.loss_weights)

    def _close_epoch(self, found: dict[str, Any] | None) -> None:
        """Keep the prompts of the best epoch, stop without a better one, and go on to the next."""
        state, metric, patience = self.state, self.args.metric, self.args.patience
        state.epoch += 1
        state.step_in_epoch, state.epoch_losses = 0, [0.0, 0.0]
        if found is None:
            return
        value, best = found[metric], state.best_metric
        gain = 0.0 if value is None or best is None else (best - value if metric == "loss" else value - best)
        if value is not None and (best is None or gain > ROUNDING * max(1.0, abs(best))):
            state.best_metric, state.best_epoch, state.epochs_without_improvement = value, state.epoch, 0
            self.best_prompts = prompt_tensors(self.model)
        else:
            state.epochs_without_improvement += 1
        if patience is not None and state.epochs_without_improvement >= patience:
            state.stopped = f"no better {metric} in {patience} epochs"

    def _log(self, kind: str, losses: StepLosses, validation: dict[str, Any] | None = None) -> None:
        """Add a row to the log, the tracker and, for epochs, the terminal."""
        values = {"loss": losses.loss, **losses._asdict()}
        row = {"step": self.state.global_step, "epoch": self.state.epoch + 1, **values}
        if validation is not None:
            row["validation"] = validation
        if self.accelerator.is_main_process:
            add_to_log(self.output_dir, kind, row)
            if kind == "epoch" and not self.args.disable_tqdm:
                shown = {"loss": losses.loss, **(validation or {})}
                names = [k for k in ("loss", "image_auroc", "pixel_auroc", "aupro") if shown.get(k) is not None]
                tqdm.write(f"epoch {row['epoch']}: {', '.join(f'{k} {shown[k]:.4f}' for k in names)}")
        tracked = {f"train/{key}": value for key, value in values.items()} if kind == "step" else {}
        tracked |= {f"validation/{k}": value for k, value in (validation or {}).items() if isinstance(value, float)}
        self.accelerator.log(tracked, step=row["step"])

    def _bar(self, batches=None, **fields) -> tqdm:
        return tqdm(batches, disable=self.args.disable_tqdm or not self.accelerator.is_main_process, **fields)

    def _save(self) -> None:
        save_checkpoint(self.checkpoints, self.accelerator, self.state, self.best_prompts, self.args.keep_last)

    # Afterwards

    def _finish(self) -> TrainingResult:
        state, accelerator, model = self.state, self.accelerator, self.model
        if state.best_epoch is not None:
            model.prompt_learner.load_state_dict(self.best_prompts)
        facts = describe_training(self.samples, self.args, state, len(self.members))
        summary = {
            "epochs": state.epoch,
            "steps": state.global_step,
            "images": state.images,
            "seconds": round(state.seconds, 3),
            "images_per_second": round(state.images / max(state.seconds, 1e-9), 2),
            "num_processes": accelerator.num_processes,
            "device": str(accelerator.device),
            **peak_memory(accelerator.device),
            "training_images": len(self.members),
            "unreadable_images": len(self.samples) - len(self.members),
            "metric": self.args.metric if self.validation is not None else None,
            "best_epoch": state.best_epoch,
            "best_metric": state.best_metric,
            "stopped": state.stopped,
            "curves": PICTURE_NAME,
            "base_model": model.config.base_model_name_or_path,
            "initial_prompts": self.initial_prompts,
            "prompts_sha256": prompts_checksum(model),
        }
        summary = {key: value for key, value in summary.items() if value is not None}
        accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        if accelerator.is_main_process:
            if self.saves_prompts_alone:
                model.save_prompts(self.output_dir, processor=self.processor, card={"training": facts})
            else:
                model.save_pretrained(self.output_dir)
                self.processor.save_pretrained(self.output_dir)
            write_json(self.output_dir / SUMMARY_NAME, {**summary, "card": facts})
            plot_training(self.output_dir)
        accelerator.wait_for_everyone()
        if self.args.report_to:
            accelerator.end_training()
        history = [row for row in read_log(self.output_dir) if row["kind"] == "epoch"]
        return TrainingResult(self.output_dir, history, state.best_epoch, state.best_metric, summary, facts)


def draw_fresh_prompts(model: AnomalyCLIPModel, seed: int) -> None:
    """Put new prompts into a model, N(0, 0.02), drawn from the seed alone (section 3.2); N(0, 0.2) for free ones."""
    generator, std = torch.Generator().manual_seed(seed), PROMPT_STD[model.config.prompt_type]
    for parameter in model.prompt_learner.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * std)


def epoch_order(labels: np.ndarray, seed: int, epoch: int, balanced: bool = False) -> np.ndarray:
    """Order `(N,)` of images in an epoch: a function of these alone, so that any run can be taken up again.

    With `balanced`, half of the N draws are normal and half anomalous (labels `(N,)`, 0 or 1); the rarer kind is
    repeated, the more frequent one takes turns over the epochs.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    chosen, count = np.arange(len(labels)), len(labels)
    if balanced:
        draws = []
        for label, wanted in ((0, count // 2), (1, count - count // 2)):
            # Each image of a kind is drawn once before any is drawn again.
            kind = np.flatnonzero(labels == label)
            rounds = -(-wanted // len(kind))
            shuffled = [kind[torch.randperm(len(kind), generator=generator).numpy()] for _ in range(rounds)]
            draws.append(np.concatenate(shuffled)[:wanted])
        chosen = np.concatenate(draws)
    return chosen[torch.randperm(len(chosen), generator=generator).numpy()]
