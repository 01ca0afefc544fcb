"""What a camera adds: light, lens, sensor and compression; drawn alike for flawless and damaged pictures."""

from __future__ import annotations

import io
import math

import numpy as np


def photograph(image: np.ndarray, rng: np.random.Generator, difficulty: float, *, medical: bool = False) -> np.ndarray:
    """Turns a drawn scene, float32 (H, W, 3) in 0 to 1, into a uint8 photograph.

    The random stream decides everything, so that two scenes with equal streams are photographed alike.
    """
    height, width = image.shape[:2]
    unit = min(height, width) / 96.0
    image = _light(image, rng, 0.1 + 0.9 * difficulty, medical)
    image = _lens(image, rng, difficulty, unit)
    image = _sensor(image, rng, 0.15 + 0.85 * difficulty, medical)
    pixels = (np.clip(image, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    return _compress(pixels, rng, difficulty)


def _light(image: np.ndarray, rng: np.random.Generator, amount: float, medical: bool) -> np.ndarray:
    height, width = image.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    light = np.ones((height, width), np.float32)
    if rng.random() < 0.6:
        light += np.float32(0.3 * amount * rng.uniform(-1, 1)) * x + np.float32(0.3 * amount * rng.uniform(-1, 1)) * y
    if rng.random() < 0.4:
        light -= np.float32(0.25 * amount * rng.random()) * (x * x + y * y)
    kind, t, reach, soft = rng.random(), rng.uniform(0, 2 * math.pi), rng.uniform(-0.7, 0.7), rng.uniform(0.15, 0.6)
    depth = rng.uniform(0.1, 0.45) * amount
    cx, cy, wide, glow = *rng.uniform(-1, 1, 2), rng.uniform(0.3, 1.0), rng.uniform(0, 0.3) * amount
    if not medical and kind < 0.2 * amount:  # a wide soft shadow
        across = x * math.cos(t) + y * math.sin(t) - reach
        light *= 1 - np.float32(depth) * np.clip(0.5 + across / np.float32(2 * soft), 0, 1)
    image = image * light[..., None]
    if not medical and 0.2 < kind < 0.2 + 0.2 * amount:  # a wide soft reflection
        image = image + (np.float32(glow) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / np.float32(wide)))[..., None]
    return image


def _lens(image: np.ndarray, rng: np.random.Generator, difficulty: float, unit: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    draw, sigma, sharpen = rng.random(), rng.uniform(0.3, 0.5 + 0.6 * difficulty) * unit, rng.uniform(0.2, 0.8)
    if draw < 0.25 + 0.25 * difficulty:
        return gaussian_filter(image, (sigma, sigma, 0), truncate=3)
    if draw > 0.85:
        return image + np.float32(sharpen) * (image - gaussian_filter(image, (0.7 * unit, 0.7 * unit, 0), truncate=3))
    return image


def _sensor(image: np.ndarray, rng: np.random.Generator, amount: float, medical: bool) -> np.ndarray:
    exposure, gamma, contrast = np.exp(rng.normal(0, 0.14 * amount, 3))
    cast = np.exp(rng.normal(0, 0.06 * amount, 3)).astype(np.float32)
    gray, sigma, fine, dust = rng.random(), rng.exponential(0.012) * amount, rng.random(), rng.integers(0, 2**31)
    image = np.clip(image, 0, 1.3) * np.float32(exposure)
    if not medical:
        image = image * cast
    image = np.float32(0.5) + np.float32(contrast) * (image - np.float32(0.5))
    image = np.clip(image, 0, 1) ** np.float32(gamma)
    if gray < 0.05 + 0.15 * amount:
        image = np.repeat((image @ np.array([0.3, 0.59, 0.11], np.float32))[..., None], 3, axis=2)
    noise = np.random.default_rng(int(dust))
    shape = image.shape[:2] + ((1,) if gray < 0.2 or fine < 0.5 else (3,))
    return image + np.float32(min(sigma, 0.05)) * noise.standard_normal(shape, dtype=np.float32)


def _compress(pixels: np.ndarray, rng: np.random.Generator, difficulty: float) -> np.ndarray:
    from PIL import Image

    draw, quality = rng.random(), int(rng.uniform(95 - 50 * difficulty, 96))
    if draw > 0.5 * difficulty:
        return pixels
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))
