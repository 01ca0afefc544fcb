"""Anomalies drawn on normal images of one's own, for training where there are no anomalous ones.

Three kinds, as known from DRAEM and CutPaste: patches of Perlin noise blended in, pieces of the image pasted
elsewhere, and thin scars. The same image and seed give the same bytes on one machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .images import read_image

DEFECTS = ("noise", "cut_paste", "scar")
MIN_SIDE = 8  # pixels
CHANGE = 0.04  # of full brightness, in some channel: what changes less is no anomaly, and is put back
MIN_SHARE, MAX_SHARE = 0.001, 0.3  # of the image, in the mask
_ATTEMPTS = 12
_DIRECTIONS = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (0.6, 0.8), (-0.6, 0.8), (0.8, -0.6), (-0.8, -0.6)])


def draw_anomaly_on(
    image: Any, *, seed: int | Sequence[int] = 0, defect: str | None = None
) -> tuple[np.ndarray, np.ndarray, str]:
    """Draw an anomaly on a normal image.

    Args:
        image: path, PIL image, array or whatever else `read_image` takes; sides of at least 8 pixels.
        seed (`int` or several, 0 or more): decides everything; such as `(seed, index)` for an image of a set.
        defect (`str`, *optional*): one of `DEFECTS`; drawn from the seed by default.

    Returns:
        the damaged image uint8 `(H, W, 3)`, its mask bool `(H, W)`, and the kind. On a plain background the anomaly
        lies on the object; on a gray image it is gray. Outside the mask the image is as it was.

    Raises:
        ValueError: if the image can't be read or is too small, or an argument is out of its range.
    """
    if defect is not None and defect not in DEFECTS:
        raise ValueError(f"defect={defect!r}, expected one of: {', '.join(DEFECTS)}")
    before = np.asarray(read_image(image))
    if min(before.shape[:2]) < MIN_SIDE:
        height, width = before.shape[:2]
        raise ValueError(f"image of {width} x {height} pixels, expected sides of at least {MIN_SIDE}")
    rng = np.random.default_rng(seed)
    kind = defect or DEFECTS[rng.integers(len(DEFECTS))]
    pixels = before.astype(np.float32) / 255
    place, gray = _foreground(pixels), bool((np.ptp(before, axis=2) == 0).all())
    spots = np.argwhere(place)
    for attempt in range(_ATTEMPTS + 1):
        # Stronger ones while nothing shows; at last a contrast that shows on any image.
        push = attempt / _ATTEMPTS
        opacity = min(1.0, rng.uniform(0.625, 1) + push)
        area = math.exp(rng.uniform(math.log(0.0125), math.log(0.12)))
        center = spots[rng.integers(len(spots))]
        content, alpha = _DRAW[kind](rng, pixels, center, area)
        if attempt == _ATTEMPTS:
            content = np.where(pixels > 0.5, 0.0, 1.0)
            alpha = _near(before.shape[:2], center, max(1.5, 0.1 * min(before.shape[:2]))) > 0
        if gray:
            content = np.repeat(content.mean(2, keepdims=True), 3, axis=2)
        alpha = np.clip(alpha * place * opacity, 0, 1)[..., None]
        after = np.rint(255 * (pixels + alpha * (np.clip(content, 0, 1) - pixels))).astype(np.uint8)
        mask = _changed(before, after)
        if mask.any() and MIN_SHARE <= mask.mean() <= MAX_SHARE:
            break
    return np.where(mask[..., None], after, before), mask, kind


def _changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Where two images differ enough to be seen, bool `(H, W)`; pixels between that happen to be alike count too."""
    from scipy.ndimage import binary_closing

    change = np.abs(after.astype(np.int16) - before).max(2) >= round(255 * CHANGE)
    return binary_closing(np.pad(change, 1), np.ones((3, 3), bool))[1:-1, 1:-1]


def _foreground(pixels: np.ndarray) -> np.ndarray:
    """The object on a plain background, bool `(H, W)`; the whole image where there is none."""
    from scipy.ndimage import binary_fill_holes, binary_opening

    rim = max(1, min(pixels.shape[:2]) // 32)
    edges = pixels[:rim], pixels[-rim:], pixels[:, :rim], pixels[:, -rim:]
    border = np.concatenate([edge.reshape(-1, 3) for edge in edges])
    color = np.median(border, axis=0)
    if np.quantile(np.abs(border - color).max(1), 0.8) > 0.1:
        return np.ones(pixels.shape[:2], bool)
    found = binary_fill_holes(binary_opening(np.abs(pixels - color).max(2) > 0.15, iterations=rim))
    return found if 0.04 < found.mean() < 0.9 else np.ones(pixels.shape[:2], bool)


def _near(shape: tuple[int, ...], center: Any, radius: float) -> np.ndarray:
    """1 at the center, 0 from the radius (pixels) on, float32 `(H, W)`."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    distance = ((y - center[0]) ** 2 + (x - center[1]) ** 2) / radius**2
    return np.clip(1 - distance, 0, 1).astype(np.float32)


def _perlin(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> np.ndarray:
    """Perlin noise of so many cells along the shorter side, about -0.7 to 0.7, float32 `(H, W)`."""
    height, width = shape[:2]
    cell = min(height, width) / cells
    slopes = _DIRECTIONS[rng.integers(0, 8, (math.ceil(height / cell) + 1, math.ceil(width / cell) + 1))]
    slopes = slopes.astype(np.float32)
    y, x = (np.arange(side, dtype=np.float32) / np.float32(cell) for side in (height, width))
    row, column = y.astype(int), x.astype(int)
    y, x = (y - row)[:, None], (x - column)[None]

    def corner(down: int, right: int) -> np.ndarray:
        slope = slopes[row + down][:, column + right]
        return slope[..., 0] * (x - right) + slope[..., 1] * (y - down)

    across, along = (t * t * t * (t * (t * 6 - 15) + 10) for t in (x, y))
    upper = corner(0, 0) + across * (corner(0, 1) - corner(0, 0))
    lower = corner(1, 0) + across * (corner(1, 1) - corner(1, 0))
    return upper + along * (lower - upper)


def _foreign(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """What is foreign to the image, `(H, W, 3)`: noise of two colors, or the image itself moved and recolored."""
    if rng.random() < 0.5:
        grain = np.clip(0.5 + _perlin(rng, pixels.shape, int(rng.integers(4, 33))), 0, 1)[..., None]
        own = pixels.reshape(-1, 3)[rng.integers(pixels.shape[0] * pixels.shape[1], size=2)]
        one, other = own + rng.uniform(-0.5, 0.5, (2, 3))
        return one * grain + other * (1 - grain)
    moved = np.roll(pixels, rng.integers(0, pixels.shape[:2]), axis=(0, 1))[:: rng.choice((1, -1))]
    return moved[..., rng.permutation(3)] * rng.uniform(0.5, 1.5) + rng.uniform(-0.2, 0.2)


def _draw_noise(rng: np.random.Generator, pixels: np.ndarray, center: Any, area: float):
    """A patch with an irregular outline around the center, of foreign content."""
    height, width = pixels.shape[:2]
    radius = max(2.0, 1.6 * math.sqrt(area * height * width / math.pi))
    cells = max(2, round(min(height, width) / radius))
    field = _near(pixels.shape, center, radius) - 0.5 + 0.8 * _perlin(rng, pixels.shape, cells)
    inside = _near(pixels.shape, center, 1.3 * radius) > 0
    return _foreign(rng, pixels), np.clip(field * radius / 3 + 0.5, 0, 1) * inside


def _draw_cut_paste(rng: np.random.Generator, pixels: np.ndarray, center: Any, area: float):
    """A rectangle of the image in another place, its colors changed a little."""
    height, width = pixels.shape[:2]
    aspect = math.exp(rng.uniform(-1, 1))
    tall, wide = (
        int(np.clip(round(math.sqrt(area * height * width * ratio)), 2, side // 2))
        for ratio, side in ((aspect, height), (1 / aspect, width))
    )
    top, left = np.clip(center - np.array((tall, wide)) // 2, 0, (height - tall, width - wide))
    from_top, from_left = rng.integers(0, (height - tall + 1, width - wide + 1))
    piece = pixels[from_top : from_top + tall, from_left : from_left + wide]
    content, alpha = pixels.copy(), np.zeros((height, width), np.float32)
    content[top : top + tall, left : left + wide] = piece * rng.uniform(0.8, 1.2, 3) + rng.uniform(-0.15, 0.15)
    alpha[top : top + tall, left : left + wide] = 1
    return content, alpha


def _draw_scar(rng: np.random.Generator, pixels: np.ndarray, center: Any, area: float):
    """A thin strip at any angle, slightly bent: dark, bright or of foreign content."""
    side = min(pixels.shape[:2])
    angle, half_length = rng.uniform(0, math.pi), side * rng.uniform(0.08, 0.3)
    half_width = max(0.8, side * area * rng.uniform(0.1, 0.3))
    y, x = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
    along = (x - center[1]) * math.cos(angle) + (y - center[0]) * math.sin(angle)
    across = (y - center[0]) * math.cos(angle) - (x - center[1]) * math.sin(angle)
    across = across + rng.uniform(-0.3, 0.3) * along**2 / half_length
    alpha = np.clip(half_width + 0.5 - np.abs(across), 0, 1) * np.clip(half_length + 0.5 - np.abs(along), 0, 1)
    tone = rng.integers(3)
    return (_foreign(rng, pixels) if tone == 2 else np.full_like(pixels, rng.uniform(-0.1, 0.15) + 0.9 * tone)), alpha


_DRAW = {"noise": _draw_noise, "cut_paste": _draw_cut_paste, "scar": _draw_scar}
