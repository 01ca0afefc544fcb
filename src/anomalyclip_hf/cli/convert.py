"""`anomalyclip convert`: prompts from a checkpoint of the authors' program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..data.options import option

PRESETS = ("released", "paper")


@dataclass
class Settings:
    """Convert a checkpoint of the authors' program (epoch_N.pth) to prompts of this package.

    anomalyclip convert epoch_15.pth --output-dir prompts

    Only the tensors are read. The backbone's weights are not needed, unless --base-model is a local folder, which is
    then checked against the word embeddings in the file. Exit status: 0 done, 2 nothing was written.
    """

    checkpoint: str | None = option(None, "The authors' file, such as epoch_15.pth.", argument=True, rule="path")
    output_dir: str | None = option(None, "Folder for the prompts (about 172 KB for ViT-L).", short="o", rule="folder")
    base_model: str | None = option(None, "CLIP that they were learned on, folder or name; by default the authors'.")
    base_config: str | None = option(None, "Folder with that CLIP's config.json, where its weights are not at hand.")
    preset: str = option("released", f"Feature layers: {' or '.join(PRESETS)}.")
    image_size: int | None = option(None, "Side of the input in pixels; 518 by default.")

    def __post_init__(self):
        if not self.checkpoint or not self.output_dir:
            raise ValueError("give the file to convert and the folder to write: CHECKPOINT --output-dir FOLDER")
        if self.preset not in PRESETS:
            raise ValueError(f"preset={self.preset!r}, expected one of {', '.join(PRESETS)}")


def run(settings: Settings) -> int:
    """Convert a checkpoint; see [`Settings`] for the exit status."""
    from ..conversion import AUTHORS_BACKBONE, convert_checkpoint

    size: dict[str, Any] = {} if settings.image_size is None else {"image_size": settings.image_size}
    convert_checkpoint(
        str(settings.checkpoint),
        settings.base_model or AUTHORS_BACKBONE,
        settings.output_dir,
        preset=settings.preset,
        base_config=settings.base_config,
        **size,
    )
    folder = settings.output_dir
    print(f"Prompts written to {folder}. Load them with AnomalyCLIPModel.from_pretrained({folder!r}).")
    return 0
