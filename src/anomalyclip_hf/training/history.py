"""What a run writes about itself: a line of JSON per step and epoch, and a picture of the curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..data.files import atomic_path

LOG_NAME, PICTURE_NAME = "training_log.jsonl", "training_curves.png"
PLOTTED = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro")


class TrainingLog:
    """Appends rows to `training_log.jsonl`.

    Args:
        folder: output folder.
        up_to_step (`int`): rows of later steps, left by a run that was cut off, are removed.
        up_to_epoch (`int`): likewise.
    """

    def __init__(self, folder: Path, up_to_step: int = 0, up_to_epoch: int = 0):
        self.path = folder / LOG_NAME
        folder.mkdir(parents=True, exist_ok=True)
        kept = [
            row
            for row in read_log(folder)
            if row["step"] <= up_to_step and (row["kind"] == "step" or row["epoch"] <= up_to_epoch)
        ]
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def add(self, kind: str, **values: Any) -> None:
        """Write one row; `kind` is "step" or "epoch"."""
        with open(self.path, "a") as file:
            file.write(json.dumps({"kind": kind, **values}) + "\n")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All whole rows of a run's log; a last line that was cut off is left out."""
    path = folder / LOG_NAME
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def plot_training(folder: Path) -> Path | None:
    """Draw `training_curves.png`: losses, and validation metrics if there are any; None if nothing was logged."""
    from ..evaluation.plots import plot_curves

    rows = read_log(folder)
    epochs = [row for row in rows if row["kind"] == "epoch"]
    # A run of one epoch is better seen by its steps.
    by_step = len(epochs) < 2
    history: list[dict[str, Any]] = [_entry(row) for row in rows if row["kind"] == ("step" if by_step else "epoch")]
    if not history:
        return None
    plot_curves(history, folder / PICTURE_NAME, x="step" if by_step else "epoch", title="Training of the prompts")
    return folder / PICTURE_NAME


def _entry(row: dict[str, Any]) -> dict[str, Any]:
    validation = row.get("validation") or {}
    chosen = {key: validation[key] for key in PLOTTED if validation.get(key) is not None}
    losses = {"global loss": row["global_loss"], "local loss": row["local_loss"], "loss": row["loss"]}
    if validation.get("loss") is not None:
        losses["validation loss"] = validation["loss"]
    return {"epoch": row["epoch"], "step": row["step"], **losses, **chosen}
