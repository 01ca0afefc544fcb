"""What a model gets of an image, and how its maps are smoothed.

Importing this needs numpy and PIL only: what was exported is scored by it without torch.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image


def normalized_pixels(
    image: Image.Image,
    size: tuple[int, int] | None,
    resample: int,
    rescale_factor: float | None,
    mean_and_std: tuple[Sequence[float], Sequence[float]] | None,
) -> np.ndarray:
    """What a model gets of an image: `(3, H, W)` float32.

    Args:
        image: upright, of any mode with 8 bits a channel.
        size: width and height in pixels; None leaves the image as it is.
        resample: filter of PIL.
        rescale_factor: of values 0 .. 255; None leaves them.
        mean_and_std: three of each, for values that are rescaled; None leaves them.
    """
    image = image.convert("RGB") if size is None else _resized_rgb(image, size, resample)
    array = np.asarray(image).astype(np.float32)
    if rescale_factor is not None:
        array *= np.float32(rescale_factor)
    if mean_and_std is not None:
        array -= np.asarray(mean_and_std[0], dtype=np.float32)
        array /= np.asarray(mean_and_std[1], dtype=np.float32)
    return np.ascontiguousarray(np.moveaxis(array, -1, 0))


def _resized_rgb(image: Image.Image, size: tuple[int, int], resample: Any) -> Image.Image:
    """As `image.convert("RGB").resize(...)` to the bit, without a copy of four bytes a pixel where the mode allows."""
    if image.mode in ("L", "1", "LA"):
        return image.convert("L").resize(size, resample=resample).convert("RGB")
    if image.mode == "RGBA":
        return Image.merge("RGB", [image.getchannel(name).resize(size, resample=resample) for name in "RGB"])
    return (image if image.mode == "RGB" else image.convert("RGB")).resize(size, resample=resample)


@lru_cache(maxsize=32)
def smoothing_matrix(size: int, sigma: float) -> np.ndarray:
    """Gaussian smoothing along one axis as a matrix `(size, size)` float32, as scipy does it (reflect, truncate 4).

    A map is smoothed by `down @ map @ across.T`.
    """
    radius = int(4.0 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    matrix = np.zeros((size, size))
    rows = np.repeat(np.arange(size), len(offsets))
    columns = (np.arange(size)[:, None] + offsets[None]).ravel() % (2 * size)
    columns = np.where(columns >= size, 2 * size - 1 - columns, columns)
    np.add.at(matrix, (rows, columns), np.tile(weights, size))
    return matrix.astype(np.float32)
