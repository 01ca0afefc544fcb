"""References that a data set gives itself: good images of a class, which are then not judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from .baselines import Method

if TYPE_CHECKING:
    import datasets
    from PIL import Image

    from .. import AnomalyCLIPModel, AnomalyCLIPProcessor
    from ..references_anomalyclip import References


def draw_references(
    model: AnomalyCLIPModel,
    processor: AnomalyCLIPProcessor,
    dataset: datasets.Dataset,
    good: Sequence[int],
    methods: Mapping[str, Method],
) -> tuple[dict[str, References], dict[str, set[int]]]:
    """Draw references from the good images of a class.

    Each draw has an order of its own, decided by its number alone: the references of a smaller number are among those
    of a larger one. Images that can't be read are passed over.

    Args:
        good: positions of the normal images of the class.

    Returns:
        name to references, and to their positions; of the methods that leave good images to be judged.
    """
    found: dict[str, References] = {}
    drawn: dict[str, set[int]] = {}
    weight = None if model.references is None else model.references.weight
    for name, method in methods.items():
        order = np.random.default_rng([method.draw]).permutation(good).tolist()
        if 0 < method.references < len(good):
            chosen = dict(islice(_readable(dataset, order), method.references))
            images = list(chosen.values())
            found[name] = model.make_references(images, processor=processor, reference_weight=weight, batch_size=1)
            drawn[name] = set(chosen)
    return found, drawn


def _readable(dataset: datasets.Dataset, order: Sequence[int]) -> Iterator[tuple[int, Image.Image]]:
    for index in order:
        try:
            yield index, dataset[index]["image"]
        except Exception:  # decoders raise anything; the scoring loop reports it
            continue
