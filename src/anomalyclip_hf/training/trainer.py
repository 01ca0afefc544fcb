"""The trainer of the prompts: [`train_prompts`] and what it does, epoch by epoch."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.files import atomic_path, remove_leftovers
from ..evaluation.model_card import prompts_checksum
from .arguments import TrainingArguments
from .batches import CachedBatches, ImageBatches, iterate_batches
from .checkpoint import (
    BEST_PREFIX,
    TrainingState,
    get_rng_state,
    list_checkpoints,
    load_last_checkpoint,
    load_prompt_tensors,
    prompt_tensors,
    remove_unfinished,
    save_checkpoint,
    set_rng_state,
    write_folder,
)
from .environment import delay_interruption, deterministic_algorithms, make_accelerator
from .feature_cache import FeatureCache
from .history import PICTURE_NAME, TrainingLog, plot_training, read_log
from .record import describe_training, summarize_run
from .sampler import epoch_order, split_batch
from .samples import (
    SyntheticAnomalies,
    SyntheticSamples,
    TrainingSamples,
    check_kinds,
    check_metric,
    check_training_set,
    check_validation_set,
)
from .settings import check_model, check_settings, fixed_settings
from .step import BatchTotals, NonFiniteLossError, StepLosses, training_step
from .validation import validate

logger = logging.get_logger(__name__)

ROUNDING = 1e-6  # an epoch that is better by less is as good: other machines would see it the other way round
SUMMARY_NAME, ARGUMENTS_NAME = "training_summary.json", "training_arguments.json"


@dataclass
class TrainingResult:
    """What [`train_prompts`] answers; the model then carries the prompts it speaks of.

    Args:
        output_dir (`Path`): where everything lies.
        history (`list[dict]`): one entry per epoch: losses, and the validation's metrics.
        best_epoch (`int`, *optional*), best_metric (`float`, *optional*): with a validation set; counted from 1.
        summary (`dict`): time, images per second, memory and the rest of `training_summary.json`.
        card_facts (`dict`): what the card says of the training, as `make_model_card` takes it.
    """

    output_dir: Path
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None
    best_metric: float | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    card_facts: dict[str, Any] = field(default_factory=dict)


def train_prompts(
    model,
    processor,
    train_dataset: Any,
    args: TrainingArguments | None = None,
    validation_dataset: Any = None,
    accelerator: Accelerator | None = None,
) -> TrainingResult:
    """Learn the two prompts on labelled images (section 3 of the paper); the backbone stays as it is.

    Args:
        model ([`AnomalyCLIPModel`]): its prompts are trained in place.
        processor ([`AnomalyCLIPProcessor`]).
        train_dataset: `datasets.Dataset` as of `load_anomaly_dataset`, or any sequence of dicts with `image`, `label`
            (0 or 1) and optionally `mask`, `path` and `class_name`.
        args ([`TrainingArguments`], *optional*): the authors' recipe if absent.
        validation_dataset (*optional*): likewise; judged after every epoch, and the best epoch's prompts are kept.
        accelerator (`Accelerator`, *optional*): one is made from args if absent.

    Returns:
        [`TrainingResult`].

    Raises:
        ValueError: for a data set that can't be learned from, or settings that contradict each other.
        FileExistsError: if output_dir holds checkpoints, and neither resume nor overwrite is set.
        NonFiniteLossError: if a loss is NaN or infinite; a checkpoint from before that step is kept.
    """
    return PromptTrainer(model, processor, train_dataset, args, validation_dataset, accelerator).train()


class PromptTrainer:
    """Holds a run together; arguments as of [`train_prompts`], which is all that most need."""

    def __init__(self, model, processor, train_dataset, args=None, validation_dataset=None, accelerator=None):
        self.args: TrainingArguments = args or TrainingArguments()
        self.model, self.processor = model, processor
        self.output_dir = Path(self.args.output_dir)
        check_model(model, processor)
        self.accelerator = accelerator or make_accelerator(self.args)
        self.samples = TrainingSamples(train_dataset)
        self.loss_weights = (self.args.global_loss_weight, self.args.local_loss_weight)
        balanced = self.args.balanced
        notices = check_training_set(self.samples, self.args.synthetic_anomalies, balanced, self.loss_weights)
        if self.args.synthetic_anomalies:
            self.samples = SyntheticSamples(SyntheticAnomalies(self.samples, self.args.seed))
        self.validation: TrainingSamples | None = None
        if validation_dataset is not None:
            self.validation = TrainingSamples(validation_dataset, "validation_dataset")
            check_validation_set(self.samples, self.validation)
            check_metric(self.validation, self.args.metric)
        elif self.args.patience is not None:
            raise ValueError(f"patience={self.args.patience} but there is no validation set; give one")
        if self.accelerator.is_main_process:
            for notice in notices:
                logger.warning(notice)
        self.state = TrainingState()
        self.between_steps = True

    def train(self) -> TrainingResult:
        """Run from the start or from the last checkpoint to the end."""
        with deterministic_algorithms(self.args.deterministic):
            set_seed(self.args.seed)
            self._claim_output_dir()
            self._prepare()
            self._restore()
            try:
                self._run()
                return self._finish()
            finally:
                # Take accelerate's wrappers off again, so that the caller's model is as it was.
                self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
                self.model.freeze_backbone()

    # Preparation

    @property
    def checkpoints(self) -> Path:
        return self.output_dir / "checkpoints"

    @property
    def saves_prompts_alone(self) -> bool:
        return not self.args.save_full and self.model.config.base_model_name_or_path is not None

    def _claim_output_dir(self) -> None:
        found, args = list_checkpoints(self.checkpoints), self.args
        if found and not args.resume and not args.overwrite:
            raise FileExistsError(
                f"{self.output_dir} holds checkpoints of an earlier run, such as {found[-1].name}: set resume=True "
                "to go on from there, overwrite=True to discard them, or another output_dir"
            )
        # What would fail when saving after hours should fail now.
        if self.saves_prompts_alone and (self.output_dir / "model.safetensors").exists():
            raise FileExistsError(
                f"{self.output_dir} holds a full checkpoint (model.safetensors), which prompts alone must not "
                "overwrite: give another output_dir, or save_full=True"
            )
        if not self.saves_prompts_alone and not args.save_full and self.accelerator.is_main_process:
            logger.warning("nothing names the backbone of this model, so it will be saved whole")
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.output_dir)
            remove_unfinished(self.checkpoints)
            if args.overwrite and not args.resume:
                shutil.rmtree(self.checkpoints, ignore_errors=True)
                # What an earlier run left must not be taken for this one's.
                for name in ("prompts.safetensors", SUMMARY_NAME, PICTURE_NAME):
                    (self.output_dir / name).unlink(missing_ok=True)
            with atomic_path(self.output_dir / ARGUMENTS_NAME) as temporary:
                temporary.write_text(args.to_json())
        self.accelerator.wait_for_everyone()

    def _prepare(self) -> None:
        args, accelerator = self.args, self.accelerator
        self.model.to(accelerator.device).eval()
        forget_thresholds(self.model, say=accelerator.is_main_process)
        self.initial_prompts = prompts_checksum(self.model) if args.initial_prompts == "model" else "fresh"
        if args.initial_prompts == "fresh":
            draw_fresh_prompts(self.model, args.seed)
        self.source, readable = self._open_source(self.samples)
        self.members = np.flatnonzero(readable)
        check_kinds(self.samples, self.members, balanced=args.balanced, loss_weights=self.loss_weights)
        if self.validation is not None:
            self.validation_source, readable = self._open_source(self.validation)
            self.validation_members = np.flatnonzero(readable)
        # A deep prompt of depth 1 has no elements and gets no gradient.
        self.model.freeze_backbone()
        learned = [p.requires_grad_(p.numel() > 0) for p in self.model.parameters() if p.requires_grad]
        learned = [p for p in learned if p.requires_grad]
        adam = torch.optim.Adam(learned, lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2))
        self.wrapped, self.optimizer = accelerator.prepare(self.model, adam)
        if args.report_to:
            accelerator.init_trackers("anomalyclip_hf", _loggable(args.to_dict()))

    def _open_source(self, samples: TrainingSamples) -> tuple[Any, np.ndarray]:
        """Where batches come from, and which images can be read."""
        args = self.args
        if args.no_cache:
            return ImageBatches(samples, self.processor, samples.uses_masks), np.ones(len(samples), dtype=bool)
        cache = FeatureCache.build(
            self.model,
            self.processor,
            samples,
            cache_dir=args.cache_dir,
            dtype=args.cache_dtype,
            batch_size=args.encode_batch_size,
            limit_gb=args.cache_limit_gb,
            num_workers=args.num_workers,
            accelerator=self.accelerator,
            show_progress=not args.disable_tqdm,
        )
        return CachedBatches(samples, cache, samples.uses_masks), cache.readable

    def _restore(self) -> None:
        settings = fixed_settings(
            self.args, self.model, self.processor, self.accelerator, self.samples, self.validation
        )
        restored = None
        if self.args.resume:
            check = partial(check_settings, new=settings)
            restored = load_last_checkpoint(self.checkpoints, self.model, self.optimizer, check)
        if restored is None:
            if self.args.resume and self.accelerator.is_main_process:
                logger.warning(f"{self.checkpoints} holds no checkpoint: starting from the beginning")
            self.state = TrainingState(settings=settings)
        else:
            self.state, rng, scaler = restored
            self.state.settings = settings
            patience = self.args.patience
            if patience is None or self.state.epochs_without_improvement < patience:
                self.state.stopped = None
            if len(rng) == self.accelerator.num_processes:
                set_rng_state(rng[self.accelerator.process_index])
            if scaler is not None and self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(scaler)
            if self.accelerator.is_main_process:
                logger.warning(f"going on from step {self.state.global_step} (epoch {self.state.epoch + 1})")
        if self.accelerator.is_main_process:
            self.log = TrainingLog(self.output_dir, self.state.global_step, self.state.epoch)

    # The run

    def _run(self) -> None:
        args, state = self.args, self.state
        steps_per_epoch = math.ceil(len(self.members) / args.batch_size)
        total = args.epochs * steps_per_epoch
        total = min(total, args.max_steps or total)
        hidden = args.disable_tqdm or not self.accelerator.is_main_process
        with tqdm(total=total, initial=state.global_step, desc="training", unit="step", disable=hidden) as self.bar:
            while state.stopped is None and state.epoch < args.epochs and state.global_step < total:
                try:
                    self._run_epoch(steps_per_epoch, total)
                    if state.step_in_epoch == steps_per_epoch:
                        self._end_epoch()
                    else:
                        self._end_early()
                except BaseException as error:
                    # Several processes are not interrupted at the same step, and would wait for one another.
                    alone = self.accelerator.num_processes == 1
                    if not isinstance(error, Exception) and self.between_steps and alone:
                        self._save()
                    raise

    @contextmanager
    def _as_a_whole(self) -> Iterator[None]:
        """A block during which the state is no one that a run could be taken up from."""
        with delay_interruption():
            self.between_steps = False
            yield
            self.between_steps = True

    def _run_epoch(self, steps_per_epoch: int, total: int) -> None:
        args, state = self.args, self.state
        order = self.members[epoch_order(self.samples.labels[self.members], args.seed, state.epoch, args.balanced)]
        last = min(steps_per_epoch, state.step_in_epoch + total - state.global_step)
        todo = [order[step * args.batch_size :][: args.batch_size] for step in range(state.step_in_epoch, last)]
        parts = [self._own_parts(indices) for indices in todo]
        # A process without a share of a small batch takes part in the exchange with an image that doesn't count.
        flat = [part if len(part) else indices[:1] for own, indices in zip(parts, todo, strict=True) for part in own]
        batches = iterate_batches(self.source, flat, args.num_workers)
        for indices, own in zip(todo, parts, strict=True):
            with self._as_a_whole():
                started = time.perf_counter()
                losses = self._step(indices, own, batches)
                state.seconds += time.perf_counter() - started
                self._count_step(losses, len(indices))
            if args.save_steps and state.global_step % args.save_steps == 0 and state.step_in_epoch < steps_per_epoch:
                self._save()

    def _own_parts(self, indices: np.ndarray) -> list[np.ndarray]:
        accelerator = self.accelerator
        parts = self.args.gradient_accumulation_steps
        return split_batch(indices, accelerator.num_processes, accelerator.process_index, parts)

    def _step(self, indices: np.ndarray, parts: list[np.ndarray], batches) -> StepLosses:
        totals = BatchTotals(len(indices), int(self.samples.in_local_loss[indices].sum()))
        sums = np.zeros(2)
        batch: dict[str, Any] = {}
        try:
            for number, part in enumerate(parts):
                batch = next(batches)
                sums += training_step(
                    self.wrapped,
                    batch,
                    self.optimizer,
                    self.accelerator,
                    totals=totals,
                    max_grad_norm=self.args.max_grad_norm,
                    sync=number == len(parts) - 1,
                    padding=len(part) == 0,
                    global_loss_weight=self.args.global_loss_weight,
                    local_loss_weight=self.args.local_loss_weight,
                )
        except NonFiniteLossError as error:
            raise NonFiniteLossError(self._explain(error, indices, batch)) from error
        return StepLosses(*sums.tolist())

    def _explain(self, error: Exception, indices: np.ndarray, batch: dict[str, Any]) -> str:
        state = self.state
        # Prompts of the last good step; they were not touched by this one.
        if all(torch.isfinite(tensor).all() for tensor in prompt_tensors(self.model).values()):
            self._save()
        kept = list_checkpoints(self.checkpoints)
        floats = [value.flatten(1) for value in batch.values() if value.ndim > 1]
        broken = not all(torch.isfinite(value).all() for value in floats)
        return (
            f"step {state.global_step + 1} (epoch {state.epoch + 1}): {error}. Training has stopped"
            + (f", the last good prompts are in {kept[-1]}. " if kept else ". ")
            + (
                "The features of the batch are not finite. "
                if broken
                else "Try a lower learning_rate or max_grad_norm. "
            )
            + f"Its images: {', '.join(self.samples.paths[i] for i in indices)}"
        )

    def _count_step(self, losses: StepLosses, images: int) -> None:
        state = self.state
        state.step_in_epoch += 1
        state.global_step += 1
        state.images += images
        state.epoch_losses = [
            a + b for a, b in zip(state.epoch_losses, (losses.global_loss, losses.local_loss, 1), strict=True)
        ]
        row = {"loss": losses.loss, "global_loss": losses.global_loss, "local_loss": losses.local_loss}
        self.bar.set_postfix({key: f"{value:.4f}" for key, value in row.items() if key != "loss"}, refresh=False)
        self.bar.update()
        if self.accelerator.is_main_process:
            self.log.add("step", step=state.global_step, epoch=state.epoch + 1, **row)
        self.accelerator.log({f"train/{key}": value for key, value in row.items()}, step=state.global_step)

    def _end_epoch(self) -> None:
        row = self._judge_epoch()
        with self._as_a_whole():
            self._close_epoch(row)

    def _close_epoch(self, row: dict[str, Any]) -> None:
        state = self.state
        improved = self._update_best(row)
        state.epoch += 1
        state.step_in_epoch = 0
        state.epoch_losses = [0.0, 0.0, 0.0]
        if improved:
            self._save_best()
        patience = self.args.patience
        if patience is not None and state.epochs_without_improvement >= patience:
            state.stopped = f"no better {self.args.metric} in {patience} epochs"
        self._log_epoch(row)
        self._save()
        self._remove_old_best()

    def _end_early(self) -> None:
        """`max_steps` within an epoch: report, and keep the position in the epoch for a longer run."""
        self._save()
        self._log_epoch(self._judge_epoch())

    def _judge_epoch(self) -> dict[str, Any]:
        state = self.state
        total_global, total_local, steps = state.epoch_losses
        row: dict[str, Any] = {"epoch": state.epoch + 1, "step": state.global_step}
        row |= {"global_loss": total_global / max(steps, 1), "local_loss": total_local / max(steps, 1)}
        row["loss"] = row["global_loss"] + row["local_loss"]
        if self.validation is not None:
            row["validation"] = validate(
                self.model,
                self.validation_source,
                self.validation,
                self.validation_members,
                self.accelerator,
                sigma=self.processor.sigma,
                batch_size=self.args.encode_batch_size,
                num_workers=self.args.num_workers,
                show_progress=not self.args.disable_tqdm,
                loss_weights=self.loss_weights,
            )
        return row

    def _log_epoch(self, row: dict[str, Any]) -> None:
        validation = row.get("validation") or {}
        shown = [f"loss {row['loss']:.4f}"]
        shown += [f"{k} {validation[k]:.4f}" for k in ("image_auroc", "pixel_auroc", "aupro") if validation.get(k)]
        if self.accelerator.is_main_process:
            self.log.add("epoch", **row)
            if not self.args.disable_tqdm:
                self.bar.write(f"epoch {row['epoch']}: {', '.join(shown)}")
        numbers = {k: v for k, v in validation.items() if isinstance(v, float)}
        self.accelerator.log({f"validation/{k}": v for k, v in numbers.items()}, step=row["step"])

    def _update_best(self, row: dict[str, Any]) -> bool:
        if self.validation is None:
            return False
        state, value = self.state, row["validation"][self.args.metric]
        sign = -1 if self.args.metric == "loss" else 1
        better = state.best_metric is None or (
            value is not None and sign * (value - state.best_metric) > ROUNDING * max(1.0, abs(state.best_metric))
        )
        if value is not None and better:
            state.best_metric, state.best_epoch, state.epochs_without_improvement = value, row["epoch"], 0
            return True
        state.epochs_without_improvement += 1
        return False

    # Files

    def _save(self) -> None:
        accelerator = self.accelerator
        rng = accelerator.gather(get_rng_state()[None].to(accelerator.device)).cpu()
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
        if accelerator.is_main_process:
            save_checkpoint(self.checkpoints, self.state, self.model, self.optimizer, rng, scaler, self.args.keep_last)
        accelerator.wait_for_everyone()

    def _best_folder(self) -> Path:
        return self.checkpoints / f"{BEST_PREFIX}{self.state.best_epoch:04d}"

    def _save_best(self) -> None:
        if self.accelerator.is_main_process:
            tensors = prompt_tensors(self.model)
            write_folder(self._best_folder(), lambda folder: save_file(tensors, folder / "prompts.safetensors"))

    def _remove_old_best(self) -> None:
        # Only after the checkpoint that names the new one is complete.
        if self.accelerator.is_main_process and self.state.best_epoch is not None:
            for old in self.checkpoints.glob(f"{BEST_PREFIX}*"):
                if old != self._best_folder():
                    shutil.rmtree(old)

    def _finish(self) -> TrainingResult:
        state, accelerator = self.state, self.accelerator
        accelerator.wait_for_everyone()
        if state.best_epoch is not None:
            load_prompt_tensors(self.model, load_file(self._best_folder() / "prompts.safetensors"))
        metric = self.args.metric if self.validation is not None else None
        summary = summarize_run(state, accelerator, len(self.samples), len(self.members), metric)
        summary |= {
            "base_model": self.model.config.base_model_name_or_path,
            "initial_prompts": self.initial_prompts,
            "prompts_sha256": prompts_checksum(self.model),
        }
        facts = describe_training(self.samples, self.args, state, len(self.members))
        accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        if accelerator.is_main_process:
            self._save_output(summary, facts)
        accelerator.wait_for_everyone()
        if self.args.report_to:
            accelerator.end_training()
        history = [row for row in read_log(self.output_dir) if row["kind"] == "epoch"]
        return TrainingResult(self.output_dir, history, state.best_epoch, state.best_metric, summary, facts)

    def _save_output(self, summary: dict[str, Any], facts: dict[str, Any]) -> None:
        if self.saves_prompts_alone:
            self.model.save_prompts(self.output_dir, processor=self.processor, card={"training": facts})
        else:
            self.model.save_pretrained(self.output_dir)
            self.processor.save_pretrained(self.output_dir)
        with atomic_path(self.output_dir / SUMMARY_NAME) as temporary:
            temporary.write_text(json.dumps({**summary, "card": facts}, indent=2) + "\n")
        plot_training(self.output_dir)


def forget_thresholds(model, say: bool = True) -> None:
    """Take thresholds off a model whose prompts are about to change: they were chosen for the scores of the old ones.

    Args:
        model ([`AnomalyCLIPModel`]).
        say (`bool`): warn, if there are any.
    """
    names = [name for name in ("image_threshold", "pixel_threshold") if getattr(model.config, name) is not None]
    if names and say:
        values = " and ".join(f"{name}={getattr(model.config, name):g}" for name in names)
        logger.warning(f"{values} belong to the prompts before training and are removed; calibrate the new prompts")
    for name in names:
        setattr(model.config, name, None)


@torch.no_grad()
def draw_fresh_prompts(model, seed: int) -> None:
    """Put new prompts into a model, N(0, 0.02), drawn from the seed alone (section 3.2)."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in (model.prompt_learner.context, model.prompt_learner.deep_prompts):
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)


def _loggable(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if isinstance(value, int | float | str | bool)}
