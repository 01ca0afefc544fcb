"""Rows of the one schema through the model: what is prepared of a row, and its score and map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..data.images import fit_mask

if TYPE_CHECKING:
    from .. import AnomalyCLIPModel, AnomalyCLIPProcessor


class PreparedRow(NamedTuple):
    """One row as the model takes it.

    Args:
        pixel_values: `(3, H, W)` float32.
        size: `(height, width)` of the image in pixels.
        label: 0 normal, 1 anomalous, None unknown.
        mask: `(h, w)` bool truth at the size that pixels are judged at, all False for a normal image; None where it is
            unknown.
        class_name: what baselines call the object.
    """

    pixel_values: torch.Tensor
    size: tuple[int, int]
    label: int | None
    mask: np.ndarray | None
    class_name: str = "object"


def prepare_row(
    row: Mapping[str, Any], processor: AnomalyCLIPProcessor, map_size: int | str | None = None
) -> PreparedRow:
    """Prepare a row of `load_anomaly_dataset`.

    Args:
        row: `image`, `mask` (None where there is none) and `label`.
        processor: of the model.
        map_size: size that pixels are judged at: None is the model's input, "original" the image's own, a number so
            many pixels square.

    Raises:
        ImageReadError: the mask does not fit the image.
    """
    image, label = row["image"], row["label"] if row["label"] in (0, 1) else None
    mask = row["mask"]
    if mask is not None:
        mask = fit_mask(mask, image.size, f"of {row.get('path', 'the image')}")
    elif label == 0:
        mask = Image.new("L", image.size, 0)
    inputs = processor(image, masks=[mask], return_tensors="pt")
    size = (image.height, image.width)
    if mask is None:
        truth = None
    elif map_size is None:
        truth = inputs["masks"][0].numpy() > 0.5
    else:
        if isinstance(map_size, int):
            mask = mask.resize((map_size, map_size), resample=Image.Resampling.BILINEAR)
        truth = np.asarray(mask) > 127.5
    return PreparedRow(inputs["pixel_values"][0], size, label, truth, str(row.get("class_name") or "object"))


@torch.no_grad()
def score_rows(
    model: AnomalyCLIPModel, processor: AnomalyCLIPProcessor, rows: Sequence[PreparedRow]
) -> list[tuple[float, np.ndarray]]:
    """Score and map `(H, W)` float32 of each row, at the model's input size, smoothed as the processor does it."""
    pixel_values = torch.stack([row.pixel_values for row in rows]).to(model.device)
    found = processor.post_process_anomaly_detection(
        model(pixel_values, return_dict=True), score_rule=model.config.score_rule
    )
    return [(one["score"], one["anomaly_map"].float().cpu().numpy()) for one in found]
