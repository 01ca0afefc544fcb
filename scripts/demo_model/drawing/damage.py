"""What every drawn defect needs: places, irregular spots, lines, reliefs; and the mask of what can be seen."""

from __future__ import annotations

import math

import numpy as np

from .painter import Scene
from .textures import ANY, COLORS, Canvas, edge


class Damage:
    """One attempt at a defect on a scene: random stream, strength (0 to 1) and radius (1/96 of the shorter side)."""

    def __init__(self, scene: Scene, rng: np.random.Generator, strength: float, area: float):
        self.scene, self.rng, self.s = scene, rng, strength
        self.image = scene.image
        self.c = Canvas(rng, *scene.image.shape[:2])
        solid = scene.foreground > 0.9
        share = float(solid.mean())
        self.solid = solid if share > 0.01 else np.ones_like(solid)
        frame = self.c.height * self.c.width / self.c.unit**2
        self.r = math.sqrt(min(area, 0.35 * max(share, 0.05)) * frame / math.pi)
        self.full = share > 0.97
        self.noise = float(
            np.abs(self.image[::2, 1::2] - self.image[::2, ::2][:, : self.image[::2, 1::2].shape[1]]).mean()
        )

    def spot(self, margin: float = 4.0) -> tuple[float, float]:
        """A random place on the foreground."""
        m = max(1, int(margin * self.c.unit))
        inner = self.solid[m:-m, m:-m]
        places = np.flatnonzero(inner)
        if places.size == 0:
            return 0.0, 0.0
        row, col = divmod(int(self.rng.choice(places)), inner.shape[1])
        return float(self.c.x[row + m, col + m]), float(self.c.y[row + m, col + m])

    def blob(self, r: float, rough: float = 0.3, at: tuple[float, float] | None = None) -> np.ndarray:
        """Signed distance (negative inside) of an irregular, stretched spot."""
        rng = self.rng
        cx, cy = at or self.spot()
        t, aspect = rng.uniform(0, math.pi), math.exp(rng.uniform(0, 0.5))
        dx, dy = self.c.x - np.float32(cx), self.c.y - np.float32(cy)
        a = (dx * math.cos(t) + dy * math.sin(t)) / aspect
        b = (dy * math.cos(t) - dx * math.sin(t)) * aspect
        d = np.hypot(a, b) - r
        if rough:
            cells = int(np.clip(1.5 * 96 / max(r, 2), 5, 40))
            d = d + np.float32(2 * rough * r) * (self.c.fractal(cells, 2) - 0.5)
        return d.astype(np.float32)

    def inside(self, distance: np.ndarray, softness: float = 0.7) -> np.ndarray:
        """Coverage of the region with negative distance, cut to the foreground."""
        return edge(-distance, max(softness, 0.6 / self.c.unit)) * (self.scene.foreground if not self.full else 1)

    def amount(self, low: float, high: float) -> float:
        """A change that stands out from the scene's own grain."""
        return low + (high - low) * self.s + min(0.8 * self.noise, 0.12)

    def sign(self) -> float:
        return float(self.rng.choice([-1.0, 1.0]))

    def color(self, palette: tuple[str, ...] = ANY) -> np.ndarray:
        return np.array(COLORS[str(self.rng.choice(palette))], np.float32)

    def over(self, color, alpha: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
        image = self.image if image is None else image
        return image * (1 - alpha[..., None]) + np.asarray(color, np.float32) * alpha[..., None]

    def add(self, value: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
        return (self.image if image is None else image) + value.astype(np.float32)[..., None]

    def lines(self, paths: list[np.ndarray], width: float) -> np.ndarray:
        """Antialiased polylines (points in local units) as coverage."""
        from PIL import Image, ImageDraw

        zoom = 3 if self.c.unit < 3 else 1
        scale = self.c.unit * zoom
        canvas = Image.new("L", (self.c.width * zoom, self.c.height * zoom))
        pen = ImageDraw.Draw(canvas)
        half = np.array([self.c.width * zoom / 2, self.c.height * zoom / 2])
        for path in paths:
            pen.line(
                [tuple(q) for q in path * scale + half], fill=255, width=max(1, round(width * scale)), joint="curve"
            )
        small = canvas.reduce(zoom) if zoom > 1 else canvas
        return np.asarray(small, np.float32) / 255 * (self.scene.foreground if not self.full else 1)

    def walk(self, length: float, turn: float, step: float = 2.5) -> np.ndarray:
        """A random walk of the given length whose middle lies on the foreground."""
        count = max(3, int(length / step))
        heading = self.rng.uniform(0, 2 * math.pi) + np.cumsum(self.rng.normal(0, turn, count))
        points = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1) * step, 0)
        return points - points[count // 2] + np.array(self.spot())

    def blur(self, values: np.ndarray, sigma: float) -> np.ndarray:
        from scipy.ndimage import gaussian_filter

        sigma *= self.c.unit
        return gaussian_filter(values, (sigma, sigma) + (0,) * (values.ndim - 2), truncate=2.5)

    def relief(self, height: np.ndarray, alpha: np.ndarray, image: np.ndarray | None = None, gain: float = 1.0):
        """Shades a height field, lit from a random side."""
        gy, gx = np.gradient(height)
        t = self.rng.uniform(0, 2 * math.pi)
        slope = (gx * math.cos(t) + gy * math.sin(t)) * self.c.unit
        shade = np.clip(slope * gain, -1, 1) * alpha
        image = self.image if image is None else image
        return image * (1 + 0.7 * shade[..., None]) + 0.15 * shade[..., None]


def finish_mask(before: np.ndarray, after: np.ndarray, region: np.ndarray, unit: float) -> np.ndarray:
    """Where the change is perceptible: the region's pixels that differ, closed over small gaps, bool (H, W)."""
    from scipy.ndimage import binary_closing, binary_fill_holes, gaussian_filter

    change = np.abs(after - before).max(2)
    change = np.maximum(0.7 * change, gaussian_filter(change, 0.8 * unit, truncate=2))
    mask = change > max(0.03, 0.22 * float(np.quantile(change[region > 0.3], 0.95)) if (region > 0.3).any() else 1)
    mask &= region > 0.12
    steps = max(1, round(1.5 * unit))
    padded = np.pad(mask, steps)
    closed = binary_closing(padded, iterations=steps)[steps:-steps, steps:-steps]
    return np.asarray(binary_fill_holes(closed)) & ((region > 0.12) | mask)
