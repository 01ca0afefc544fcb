"""A scene, and a painter that remembers the parts it painted; signed distances of simple shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from .textures import ANY, COLORS, Canvas


@dataclass
class Scene:
    """A flawless scene and what the defects need to know of it."""

    image: np.ndarray  # float32 (H, W, 3), 0 to 1
    background: np.ndarray  # the same without the object: what a missing chunk uncovers
    foreground: np.ndarray  # float32 (H, W), 0 to 1
    noun: str
    color: str = ""
    scan: str = ""  # "scan", "image" ... for scan-like classes, "" for photographs
    parts: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)  # (alpha, what lies beneath)
    traces: np.ndarray | None = None  # float32 (H, W): conductors, for opens and shorts
    conductor: np.ndarray | None = None  # their color


class Painter:
    """Paints one scene; `x`, `y` are local coordinates of the object being drawn, `r` its radius (1/96 of a side)."""

    def __init__(self, c: Canvas, difficulty: float):
        self.c, self.rng, self.difficulty = c, c.rng, difficulty
        self.x, self.y, self.r, self.angle, self.center = c.x, c.y, 34.0, 0.0, (0.0, 0.0)
        self.image: np.ndarray = np.empty(0, np.float32)
        self.background: np.ndarray = self.image
        self.fg = np.zeros((c.height, c.width), np.float32)
        self.parts: list[tuple[np.ndarray, np.ndarray]] = []
        self.color, self.light = "", c.rng.uniform(0, 2 * math.pi)
        self.noun = ""
        self.item_seed: int | None = None  # decides what assembled things on one picture share

    def place(self, cx: float, cy: float, r: float, angle: float) -> None:
        cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        dx, dy = self.c.x - np.float32(cx), self.c.y - np.float32(cy)
        self.x, self.y, self.r, self.angle = cos * dx + sin * dy, cos * dy - sin * dx, r, angle
        self.center = (cx, cy)

    def alpha(self, distance: np.ndarray) -> np.ndarray:
        """Coverage of the region with negative distance."""
        return np.clip(np.float32(0.5) - distance * np.float32(self.c.unit), 0, 1)

    def pick(self, palette: tuple[str, ...] = ANY) -> np.ndarray:
        """Main color of the object; the first one names it."""
        if not self.color:
            self.color = self.c.pick_colors(palette)
        return self.c.base

    def other(self, palette: tuple[str, ...] = ANY) -> np.ndarray:
        rgb = np.array(COLORS[str(self.rng.choice(palette))]) + self.rng.uniform(-0.05, 0.05)
        return np.clip(rgb, 0.05, 0.95).astype(np.float32)

    def paint(self, distance, color, bevel: float = 0.0, part: bool = False, body: bool = True) -> None:
        """Paints the region with negative distance; a bevel shades its rim; a part can go missing."""
        a = self.alpha(distance)
        if part and a.sum() > 8:
            self.parts.append((a, self.image))
        color = np.asarray(color, np.float32)
        if bevel:
            tilt = (self.x * math.cos(self.light - self.angle) + self.y * math.sin(self.light - self.angle)) / self.r
            rim = np.exp(np.minimum(distance, 0) / np.float32(bevel))
            color = (
                color * np.clip(1 + 0.16 * tilt + rim * (0.22 * tilt - 0.18), 0.3, 1.5).astype(np.float32)[..., None]
            )
        a3 = a[..., None]
        self.image = self.image * (1 - a3) + color * a3
        if body:
            self.fg = np.maximum(self.fg, a)

    def blend(self, alpha: np.ndarray, color) -> None:
        self.image = self.image * (1 - alpha[..., None]) + np.asarray(color, np.float32) * alpha[..., None]

    def strokes(self, ends: list[tuple], width: float) -> np.ndarray:
        """Coverage of straight strokes (x0, y0, x1, y1) in local coordinates."""
        from PIL import Image, ImageDraw

        zoom = 3 if self.c.unit < 3 else 1
        sheet = Image.new("L", (self.c.width * zoom, self.c.height * zoom))
        pen, scale = ImageDraw.Draw(sheet), self.c.unit * zoom
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        for x0, y0, x1, y1 in ends:
            points = [
                (cos * x - sin * y + self.center[0], sin * x + cos * y + self.center[1])
                for x, y in ((x0, y0), (x1, y1))
            ]
            shifted = [(x * scale + sheet.width / 2, y * scale + sheet.height / 2) for x, y in points]
            pen.line(shifted, fill=255, width=max(1, round(width * scale)))
        return np.asarray(sheet.reduce(zoom) if zoom > 1 else sheet, np.float32) / np.float32(255)

    def shadow(self, distance: np.ndarray) -> None:
        """A soft contact shadow around the body about to be painted; it belongs to the background."""
        soft = np.clip(1 - distance / np.float32(self.rng.uniform(2, 7)), 0, 1) ** 2
        self.image = self.image * (1 - np.float32(self.rng.uniform(0.1, 0.5)) * soft)[..., None]

    def grain(self, amount: float, cells: int = 24) -> np.ndarray:
        return (1 + np.float32(amount) * (0.6 * self.c.fractal(cells // 4, 3, 0.8) + 0.5 * self.c.white() - 0.55))[
            ..., None
        ]


def circle(p, cx, cy, r):
    return np.hypot(p.x - np.float32(cx), p.y - np.float32(cy)) - np.float32(r)


def box(p, cx, cy, a, b, rounding=0.0):
    dx, dy = (
        np.abs(p.x - np.float32(cx)) - np.float32(a - rounding),
        np.abs(p.y - np.float32(cy)) - np.float32(b - rounding),
    )
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - np.float32(rounding)


def segment(p, x0, y0, x1, y1, r):
    dx, dy = x1 - x0, y1 - y0
    t = np.clip(((p.x - x0) * dx + (p.y - y0) * dy) / (dx * dx + dy * dy + 1e-6), 0, 1)
    return (np.hypot(p.x - x0 - t * dx, p.y - y0 - t * dy) - r).astype(np.float32)


def polygon(p, sides, r):
    sector = 2 * math.pi / sides
    angle = np.arctan2(p.y, p.x)
    return (np.hypot(p.x, p.y) * np.cos((angle + sector / 2) % sector - sector / 2) - r).astype(np.float32)


def lumpy(p, r, amount, lobes=7):
    """A disc with an irregular outline."""
    angle, d = np.arctan2(p.y, p.x), np.hypot(p.x, p.y)
    outline = np.zeros_like(d)
    for k in range(2, lobes):
        outline += np.cos(k * angle + np.float32(p.rng.uniform(0, 6.3))) * np.float32(p.rng.normal() / k)
    return d - np.float32(r) * (1 + np.float32(amount) * outline)
