"""What is painted in a mask: its pixels as anomalous or not, at its image's size.

Importing this needs numpy and PIL only.
"""

from typing import Any

import numpy as np
from PIL import Image

from .pixels import ImageReadError, bit_depth_of, channels_last, is_deep, pixels_of, to_array
from .reader import upright


def painted(image: Image.Image, threshold: int = 0) -> np.ndarray:
    """Which pixels of a mask are anomalous, as bool (H, W) on the stored pixels.

    Those whose largest color channel exceeds the threshold. Where the transparent pixels have a color (paint on
    transparent white), alpha has to exceed it too; where one color, be it black, is drawn on nothing, alpha decides.

    Args:
        image: opened PIL image of any mode.
        threshold (`int`, 0 to 254): largest 8-bit value that is background; scaled to the bit depth of deeper masks.

    Raises:
        ImageReadError: if it holds NaN or infinite values.
    """
    if is_deep(image):
        values = pixels_of(image)
        if image.mode == "F":
            if not np.isfinite(values).all():
                raise ImageReadError("it holds NaN or infinite values")
            return values > (threshold / 255 if values.max() <= 1 else threshold)
        inside = values > threshold * ((1 << bit_depth_of(values)) - 1) / 255
        clear = image.info.get("transparency")
        return inside & (values != clear) if isinstance(clear, int) else inside
    has_alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if image.mode in ("1", "L") and not has_alpha:
        return np.asarray(image.convert("L")) > threshold
    pixels = np.asarray(image.convert("RGBA" if has_alpha else "RGB"))
    return painted_channels(pixels, threshold)


def painted_channels(pixels: np.ndarray, threshold: float = 0) -> np.ndarray:
    """As [`painted`], of an array (H, W, 3) or (H, W, 4)."""
    colors, inside = pixels[..., :3], pixels[..., :3].max(axis=-1) > threshold
    if pixels.shape[-1] == 3:
        return inside
    alpha = pixels[..., 3]
    if alpha.min() == alpha.max():  # it says nothing of single pixels
        nothing = alpha.max() == 0 and bool((colors == colors[:1, :1]).all())
        return np.zeros_like(inside) if nothing else inside
    seen = alpha > threshold
    if seen.all():
        return inside
    if np.median(colors[~seen].max(axis=-1)) <= threshold:  # transparent black is background by its color already
        return inside if inside.any() else seen
    shown = colors[seen]
    return seen if bool((shown == shown[:1]).all()) else inside & seen


def binary_mask(mask: Any, name: str, threshold: int = 0) -> Image.Image:
    """A mask of any kind as an 8-bit image of 0 and 255, made binary before it is resized, as the authors do.

    Args:
        mask: PIL image, array or tensor; anomalous is what is above 0 in any color, or above 0.5 in floats.
        name (`str`): what to call it in errors.
        threshold (`int`, 0 to 254): of PIL images, as of [`painted`], and of whole numbers.
    """
    if isinstance(mask, Image.Image):
        inside = painted(upright(mask, name), threshold)
    else:
        mask = channels_last(to_array(mask, name), name)
        if np.isnan(mask).any():
            raise ValueError(f"{name} holds NaN, expected 0 where normal and more where anomalous")
        level = 0.5 if np.issubdtype(mask.dtype, np.floating) and mask.max() <= 1 else threshold
        inside = painted_channels(mask, level) if mask.ndim == 3 else mask > level
    return Image.fromarray(inside.astype(np.uint8) * 255)


def fit_mask(mask: Image.Image, size: tuple[int, int], name: str = "mask") -> Image.Image:
    """Bring a mask to its image's size, where only the scale differs (aspect ratios within 1 %).

    Args:
        mask (`PIL.Image.Image`): mode L.
        size (`tuple[int, int]`): (W, H) of the image.
        name (`str`): file name for the message.

    Raises:
        ImageReadError: the aspect ratios differ, so the mask belongs to another image or to a crop.
    """
    if mask.size == tuple(size):
        return mask
    ratio = (mask.size[0] * size[1]) / (mask.size[1] * size[0])
    if abs(ratio - 1) > 0.01:
        raise ImageReadError(
            f"mask {name} is {mask.size[0]}x{mask.size[1]} but its image is {size[0]}x{size[1]} (width x height): "
            "the shapes differ, so it is not the same picture; check the pairing of images and masks"
        )
    return mask.resize(size, Image.Resampling.NEAREST)
