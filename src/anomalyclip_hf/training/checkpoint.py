"""Checkpoints of a training run: prompts, optimizer, position and random numbers, without the backbone.

Tensors are kept in safetensors and numbers in JSON; a folder is written under a temporary name, then renamed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import logging

logger = logging.get_logger(__name__)

PREFIX, BEST_PREFIX, TEMPORARY = "step-", "best-epoch-", ".unfinished-"
PROMPTS = "prompt_learner."


@dataclass
class TrainingState:
    """Where a run stands.

    Args:
        epoch, step_in_epoch (`int`): the next step to be done, both counted from 0.
        global_step (`int`): optimizer steps done.
        best_metric (`float`, *optional*), best_epoch (`int`, *optional*): so far; epochs counted from 1.
        epochs_without_improvement (`int`): since then.
        seconds (`float`), images (`int`): spent and seen in training.
        epoch_losses (`list`): sums of this epoch so far: global loss, local loss, steps.
        settings (`dict`): what must not change when the run is taken up again.
        stopped (`str`, *optional*): why it ended, if it did.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    global_step: int = 0
    best_metric: float | None = None
    best_epoch: int | None = None
    epochs_without_improvement: int = 0
    seconds: float = 0.0
    images: int = 0
    epoch_losses: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    settings: dict[str, Any] = field(default_factory=dict)
    stopped: str | None = None


def prompt_tensors(model) -> dict[str, Tensor]:
    """Copies of the learned prompts, under the model's own names."""
    return {k: v.detach().cpu().clone() for k, v in model.state_dict().items() if k.startswith(PROMPTS)}


@torch.no_grad()
def load_prompt_tensors(model, tensors: Mapping[str, Tensor]) -> None:
    """Put prompts into the model, strictly.

    Raises:
        ValueError: if names or shapes differ.
    """
    own = {name: p for name, p in model.named_parameters() if name.startswith(PROMPTS)}
    expected = {name: tuple(p.shape) for name, p in own.items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if expected != found:
        raise ValueError(f"the prompts are {found}, expected {expected}")
    for name, parameter in own.items():
        parameter.copy_(tensors[name])


def save_checkpoint(
    root: Path, state: TrainingState, model, optimizer, rng: Tensor, scaler: dict | None = None, keep_last: int = 2
) -> Path:
    """Write `root/step-XXXXXXXX` atomically and remove old ones beyond `keep_last`."""
    tensors, numbers = split_state(optimizer.state_dict())

    def write(folder: Path) -> None:
        save_file(prompt_tensors(model), folder / "prompts.safetensors")
        save_file(tensors, folder / "optimizer.safetensors")
        save_file({"rng": rng}, folder / "rng.safetensors")
        content = {"state": dataclasses.asdict(state), "optimizer": numbers, "scaler": scaler}
        (folder / "state.json").write_text(json.dumps(content, indent=1))

    path = write_folder(root / f"{PREFIX}{state.global_step:08d}", write)
    for old in list_checkpoints(root)[:-keep_last]:
        shutil.rmtree(old)
    return path


def write_folder(path: Path, write) -> Path:
    """Let `write(folder)` fill a temporary folder, then put it in the place of `path`."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    for file in temporary.iterdir():
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
    if path.exists():
        shutil.rmtree(path)
    os.rename(temporary, path)
    return path


def list_checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(root.glob(f"{PREFIX}[0-9]*")) if root.is_dir() else []


def remove_unfinished(root: Path) -> None:
    """Remove folders that a killed run began to write."""
    for path in root.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def load_last_checkpoint(
    root: Path, model, optimizer, check: Callable[[dict[str, Any]], None] = lambda settings: None
) -> tuple[TrainingState, Tensor, dict | None] | None:
    """Restore prompts and optimizer from the newest checkpoint that can be read.

    Args:
        root, model, optimizer: as of [`save_checkpoint`].
        check: called with the settings of the checkpoint before anything is changed; raises where they don't fit.

    Returns:
        state, random numbers and the state of the gradient scaler; None if there is no checkpoint.

    Raises:
        ValueError: if there are checkpoints but none can be read.
    """
    paths = list_checkpoints(root)
    for path in reversed(paths):
        try:
            content = json.loads((path / "state.json").read_text())
            state = TrainingState(**content["state"])
            prompts, tensors = load_file(path / "prompts.safetensors"), load_file(path / "optimizer.safetensors")
            rng = load_file(path / "rng.safetensors")["rng"]
        except Exception as error:  # safetensors, JSON and the system each have their own
            logger.warning(f"checkpoint {path} is damaged ({error}); trying the one before")
            continue
        check(state.settings)
        load_prompt_tensors(model, prompts)
        optimizer.load_state_dict(join_state(tensors, content["optimizer"]))
        return state, rng, content["scaler"]
    if paths:
        raise ValueError(f"none of the checkpoints in {root} can be read; start anew with overwrite=True")
    return None


def split_state(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Part an optimizer's state into tensors, by the name `index.key`, and numbers."""
    tensors, numbers = {}, {}
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value.detach().cpu().contiguous()
            else:
                numbers[f"{index}.{key}"] = value
    return tensors, {"state": numbers, "param_groups": state["param_groups"]}


def join_state(tensors: Mapping[str, Tensor], numbers: dict[str, Any]) -> dict[str, Any]:
    """The reverse of [`split_state`]."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **numbers["state"]}.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in numbers["param_groups"]]
    return {"state": state, "param_groups": groups}


def get_rng_state() -> Tensor:
    """States of torch's, numpy's and Python's random numbers (and the current GPU's) as one uint8 tensor."""
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    parts = [
        torch.get_rng_state().numpy(),
        np.asarray(keys, dtype=np.uint32),
        np.array([position, has_gauss], dtype=np.int64),
        np.array([cached, np.nan if gauss is None else gauss], dtype=np.float64),
        np.array(words, dtype=np.uint32),
    ]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_rng_state().numpy())
    return torch.from_numpy(np.concatenate([np.frombuffer(part.tobytes(), np.uint8) for part in parts]).copy())


def set_rng_state(state: Tensor) -> None:
    """The reverse of [`get_rng_state`]."""
    data = state.cpu().numpy().tobytes()
    sizes = [len(torch.get_rng_state()), 624 * 4, 16, 16, 625 * 4]
    ends = np.cumsum(sizes)
    pieces = [data[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    torch.set_rng_state(torch.frombuffer(bytearray(pieces[0]), dtype=torch.uint8))
    position, has_gauss = np.frombuffer(pieces[2], np.int64)
    cached, gauss = np.frombuffer(pieces[3], np.float64)
    keys = np.frombuffer(pieces[1], np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), float(cached)))
    words = tuple(np.frombuffer(pieces[4], np.uint32).tolist())
    random.setstate((3, words, None if np.isnan(gauss) else float(gauss)))
    rest = data[ends[-1] :]
    if rest and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.frombuffer(bytearray(rest), dtype=torch.uint8))
