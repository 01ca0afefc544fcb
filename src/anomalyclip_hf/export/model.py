"""An exported folder where commands take a model."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..configuration_anomalyclip import AnomalyCLIPConfig
from ..modeling_anomalyclip import AnomalyCLIPOutput, AnomalyCLIPPreTrainedModel
from ..sharing.references import References
from .engines import load_engine, multiple_of_sides, read_facts

TEXT_EMBEDS = "text_embeds.npy"


class ExportedModel(AnomalyCLIPPreTrainedModel):
    """Scores and maps of an exported graph, as [`AnomalyCLIPModel`] gives them: no weights, losses or embeddings.

    Its configuration, profiles and processor are those beside the graph, so that it is calibrated and evaluated, and
    put into the pipeline, as the model that it was made of.

    Args:
        folder (`str` or `os.PathLike`): that `anomalyclip export` wrote.

    Raises:
        OSError: there is no exported model.
        ImportError: its engine isn't installed.
        ValueError: it is damaged.
    """

    def __init__(self, folder: str | os.PathLike):
        self.facts = read_facts(folder)
        super().__init__(AnomalyCLIPConfig.from_pretrained(folder))
        self.engine = load_engine(folder, self.facts)
        embeds = torch.from_numpy(np.load(os.path.join(folder, TEXT_EMBEDS), allow_pickle=False))
        self.folded_text_embeds = nn.Parameter(embeds, requires_grad=False)
        # What tells one graph from another, where others have weights.
        number = int("".join(self.facts["files"].values())[:6], 16) / 2**24
        self.graph = nn.Parameter(torch.tensor([[number]]), requires_grad=False)
        self.name_or_path = os.fspath(folder)
        self._processor_source: tuple[str, dict[str, Any]] = (os.path.abspath(folder), {})
        self.eval()

    def make_references(self, images: Any, *args: Any, **kwargs: Any) -> References:
        """Refuse references: the graph has no features to compare.

        Raises:
            ValueError: always.
        """
        raise ValueError("an exported model takes no references; score with the model that it was made of")

    @property
    def multiple(self) -> int | None:
        """What height and width of the input are multiples of; None where the graph takes squares of one size."""
        return multiple_of_sides(self.facts)

    @property
    def is_exact(self) -> bool:
        """Whether it computes in float32 throughout."""
        return self.facts["precision"] == "float32"

    def forward(
        self, pixel_values: Tensor, return_dict: bool | None = None, outputs: str = "all", **kwargs: Any
    ) -> AnomalyCLIPOutput | tuple[Tensor, ...]:
        """Logits and maps of normalised images `(B, 3, S, S)`, float, of the size that was exported, or `(B, 3, H, W)`
        of any that the graph takes; it makes both, whichever of them `outputs` asks for.

        Raises:
            ValueError: another size.
        """
        side, shape = self.config.image_size, tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1] != 3 or (self.multiple is None and shape[2:] != (side, side)):
            raise ValueError(
                f"pixel_values has shape {shape}, but the model was exported for (B, 3, {side}, {side}): "
                "resize='square', tiles no larger than the image, or export with dynamic_size=True"
            )
        found = self.engine(pixel_values.detach().float().cpu().contiguous().numpy())
        logits, maps = (torch.from_numpy(np.ascontiguousarray(one)).to(pixel_values.device) for one in found)
        output = AnomalyCLIPOutput(
            logits=None if outputs == "maps" else logits, anomaly_maps=None if outputs == "score" else maps
        )
        return output if return_dict is not False else output.to_tuple()


__all__ = ["ExportedModel"]
