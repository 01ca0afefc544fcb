"""Values of pixels: how arrays of any depth become 8 bits.

Importing this needs numpy and PIL only.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

BIT_DEPTHS = (8, 10, 12, 14, 16)
PERCENTILES = (1.0, 99.0)  # of the values of an image: the ends of the window "percentile"
WINDOWED = "anomalyclip_windowed"  # in the info of an image to which a window was applied, which is done once
Window = str | Sequence[float] | None
_WINDOW_HINT = "window=(low, high) or 'percentile' (--window) scales it"


class ImageReadError(ValueError):
    """An image or a mask that cannot be read; the message names the file and the reason."""


def is_deep(image: Image.Image) -> bool:
    """Whether a PIL image has one channel of integers above 8 bits, or of floats."""
    return image.mode in ("F", "I") or image.mode.startswith("I;16")


def to_array(image: Any, name: str) -> np.ndarray:
    """An array or a tensor (of any device and dtype) as an array."""
    if type(image).__module__.partition(".")[0] == "torch":  # not imported for this: most images are no tensors
        image = image.detach().cpu()
        image = image.float().numpy() if str(image.dtype) == "torch.bfloat16" else image.numpy()
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{name} is a {type(image).__name__}, expected a PIL image, an array or a tensor")
    return image


def check_window(window: Any) -> Any:
    """A window as `to_uint8` takes it: None, "percentile" or `(low, high)`; words of a command line are understood.

    Raises:
        ValueError: it is none of these, or low is not below high.
    """
    if window is None or window == "percentile":
        return window
    try:
        words = [window] if isinstance(window, str) else list(window)
        if words == ["percentile"]:
            return "percentile"
        low, high = map(float, words)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not (low < high and np.isfinite((low, high)).all()):
        raise ValueError(f"window={window!r}, expected 'percentile' or two stored values, low < high, as (0, 4095)")
    return low, high


def check_channels(channels: Any) -> tuple[int, int, int] | None:
    """Three numbers of channels from 0, the red, green and blue of what is shown; None stays.

    Raises:
        ValueError: it is no such thing.
    """
    try:
        chosen = None if channels is None else tuple(int(number) for number in channels)
    except (TypeError, ValueError, OverflowError):
        chosen = ()
    if chosen is not None and (len(chosen) != 3 or min(chosen) < 0):
        raise ValueError(f"channels={channels!r}, expected the numbers of three channels from 0, as (2, 1, 0)")
    return chosen


def channels_last(array: np.ndarray, name: str, channels: Sequence[int] | None = None) -> np.ndarray:
    """An array as `(H, W)` or `(H, W, C)` with 3 or 4 channels.

    Args:
        array: `(H, W)`, `(H, W, C)` or `(C, H, W)`; where neither end is 1, 3 or 4 and `channels` are given, the
            shorter end is C.
        name: what to call it in errors.
        channels (*optional*): the three to take where there are neither 1, 3 nor 4.
    """
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4):
        is_first = array.shape[0] in (1, 3, 4) or (channels is not None and array.shape[0] < array.shape[-1])
        array = np.moveaxis(array, 0, -1) if is_first else array
    return three_channels(array, name, channels)


def three_channels(array: np.ndarray, name: str, channels: Sequence[int] | None = None) -> np.ndarray:
    """As [`channels_last`], of an array whose channels are last already."""
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and channels is not None:
        if max(channels) >= array.shape[-1]:
            raise ImageReadError(f"channels={tuple(channels)}, but {name} has {array.shape[-1]}, counted from 0")
        array = array[..., list(channels)]
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise ImageReadError(
            f"{name} has shape {array.shape}, expected (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4; of other "
            "numbers of channels choose three, as channels=(2, 1, 0) (--channels 2 1 0)"
        )
    return array


def bit_depth_of(image: Image.Image | np.ndarray) -> int:
    """Bits per channel that an image makes use of: the least of 8, 10, 12, 14 and 16 that hold its highest value.

    Cameras of 10, 12 and 14 bits write files of 16, whose highest value says so; read in the full range of 16 bits,
    12-bit data would be as good as black. 8 for images of 8 bits and of floats. Of 16-bit colors, which PIL reads as 8
    bits, only [`open_image`] knows.
    """
    if isinstance(image, Image.Image):
        if not is_deep(image) or image.mode == "F":
            return image.info.get("bit_depth", 8)
        image = pixels_of(image)
    highest = int(image.max()) if np.issubdtype(image.dtype, np.integer) and image.size else 0
    return next((depth for depth in BIT_DEPTHS if highest < 1 << depth), 16)


def to_uint8(array: np.ndarray, name: str, window: Window = None) -> np.ndarray:
    """Scale values to 0 .. 255.

    Args:
        array: `(H, W)`, or `(H, W, C)` with 3 or 4 channels, of which the fourth is alpha and has no window.
        name: what to call it in errors.
        window: None: integers by their bit depth (`bit_depth_of`), floats from [0, 1]. `(low, high)`: these stored
            values become 0 and 255, what lies beyond is clipped. "percentile": so with the 1st and the 99th percentile
            of the image, all colors together; images are then scaled each by its own, and scores less comparable.

    Raises:
        ImageReadError: NaN or infinite values, no window and values out of range, or none within the window.
    """
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise ImageReadError(f"{name} holds NaN or infinite values; replace them")
    if window is not None:
        if array.ndim == 3 and array.shape[-1] == 4:
            alpha = to_uint8(array[..., 3], name)
            return np.dstack([to_uint8(array[..., :3], name, window), alpha])
        low, high = _ends(array.astype(np.uint8) * 255 if array.dtype == bool else array, name, window)
        if low == high:
            return np.full(array.shape, 128, np.uint8)
        few = array.dtype.kind == "u" and array.dtype.itemsize <= 2  # values, each of which is scaled once
        stored = np.arange(1 << 8 * array.dtype.itemsize, dtype=array.dtype) if few else array
        values = np.clip(stored.astype(np.float64 if array.dtype.itemsize > 2 else np.float32), low, high)
        scaled = np.rint((values - low) * (255 / (high - low))).astype(np.uint8)
        return scaled[array] if few else scaled
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise ImageReadError(f"{name} holds floats from {low:g} to {high:g}, expected [0, 1]; {_WINDOW_HINT}")
        return np.rint(array * 255).astype(np.uint8)
    if np.issubdtype(array.dtype, np.integer):
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > 65535:
            raise ImageReadError(
                f"{name} holds integers from {low} to {high}, expected 8 or 16 bit unsigned values; {_WINDOW_HINT}"
            )
        most = (1 << bit_depth_of(array)) - 1
        table = ((np.arange(most + 1) * 510 + most) // (2 * most)).astype(np.uint8)  # round(255 value / most)
        return table[array.astype(np.uint16, copy=False)]
    raise ImageReadError(f"{name} has dtype {array.dtype}, expected bool, uint8, uint16 or float")


def _ends(values: np.ndarray, name: str, window: Any) -> tuple[float, float]:
    """The values of an image that become black and white; the same where all of its values are."""
    least, most = float(values.min()), float(values.max())
    if window == "percentile":
        low, high = map(float, np.percentile(values, PERCENTILES))
        return (low, high) if low < high else (least, most)
    low, high = map(float, window)
    if most < low or least > high:  # all black or all white
        raise ImageReadError(
            f"{name} holds values from {least:g} to {most:g}, none of them in window=({low:g}, {high:g})"
        )
    return low, high


def pixels_of(image: Image.Image, rows: int = 256) -> np.ndarray:
    """As `np.asarray(image)`, in strips: at once it would take three times the image's memory."""
    image.load()
    (width, height), first = image.size, np.asarray(image.crop((0, 0, 1, 1)))
    pixels = np.empty((height, width, *first.shape[2:]), first.dtype)
    for top in range(0, height, rows):
        pixels[top : top + rows] = np.asarray(image.crop((0, top, width, min(top + rows, height))))
    return pixels
