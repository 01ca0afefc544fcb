"""Canvas, noise and the drawn textures. Lengths are in units of 1/96 of the shorter image side."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

COLORS: dict[str, tuple[float, float, float]] = {
    "white": (0.90, 0.89, 0.87),
    "silver": (0.70, 0.71, 0.73),
    "grey": (0.50, 0.50, 0.51),
    "dark grey": (0.30, 0.30, 0.31),
    "black": (0.15, 0.15, 0.16),
    "red": (0.70, 0.18, 0.16),
    "orange": (0.85, 0.48, 0.16),
    "yellow": (0.86, 0.75, 0.25),
    "golden": (0.76, 0.60, 0.30),
    "beige": (0.79, 0.71, 0.58),
    "brown": (0.47, 0.32, 0.20),
    "dark brown": (0.29, 0.19, 0.13),
    "green": (0.22, 0.50, 0.26),
    "teal": (0.16, 0.48, 0.48),
    "blue": (0.20, 0.34, 0.66),
    "light blue": (0.52, 0.68, 0.83),
    "purple": (0.45, 0.27, 0.55),
    "pink": (0.85, 0.58, 0.62),
}
ANY = tuple(COLORS)
METALS = ("silver", "silver", "grey", "dark grey", "golden", "beige")
GREYS = ("white", "silver", "grey", "grey", "dark grey", "black")
EARTHS = ("beige", "golden", "brown", "dark brown", "grey")
FADED = ("white", "silver", "grey", "beige", "light blue", "pink", "teal", "golden")


class Canvas:
    """A drawing area with its random stream, centered coordinates and warped pattern coordinates `u`, `v`."""

    def __init__(self, rng: np.random.Generator, height: int, width: int):
        self.rng, self.height, self.width = rng, height, width
        self.unit = min(height, width) / 96.0
        y, x = np.mgrid[:height, :width].astype(np.float32)
        self.x = (x - np.float32((width - 1) / 2)) / np.float32(self.unit)
        self.y = (y - np.float32((height - 1) / 2)) / np.float32(self.unit)
        self.u, self.v = self.x, self.y
        self.base = np.full(3, 0.5, np.float32)
        self.second = self.base

    def orient(self, warp: float = 1.0) -> None:
        """Turns, zooms and bends the pattern coordinates."""
        rng = self.rng
        angle = rng.choice([0.0, math.pi / 2, rng.uniform(0, 2 * math.pi)])
        zoom = float(np.exp(rng.uniform(-0.35, 0.45)))
        cos, sin = np.float32(math.cos(angle) / zoom), np.float32(math.sin(angle) / zoom)
        x, y = self.x, self.y
        if warp and rng.random() < 0.5:
            bend = np.float32(warp * rng.uniform(1.0, 6.0))
            x = x + bend * (self.smooth(3) - 0.5)
            y = y + bend * (self.smooth(3) - 0.5)
        self.u = cos * x + sin * y + np.float32(rng.uniform(0, 60))
        self.v = cos * y - sin * x + np.float32(rng.uniform(0, 60))

    def pick_colors(self, palette: tuple[str, ...]) -> str:
        """Chooses the base color (returned by name) and a second one that goes with it."""
        rng = self.rng
        name = str(rng.choice(palette))
        jitter = rng.uniform(-0.05, 0.05, 3) + rng.uniform(-0.07, 0.07)
        self.base = np.clip(np.array(COLORS[name]) + jitter, 0.06, 0.95).astype(np.float32)
        if rng.random() < 0.5:
            self.second = np.clip(self.base * rng.choice([0.55, 0.7, 1.3, 1.5]), 0.04, 0.97).astype(np.float32)
        else:
            self.second = np.array(COLORS[str(rng.choice(palette))], np.float32)
        return name

    def smooth(self, cells: int, cells_y: int | None = None) -> np.ndarray:
        """Smooth noise, float32 (H, W), about 0 to 1."""
        from PIL import Image

        grid = self.rng.random((max(2, cells_y or cells), max(2, cells)), dtype=np.float32)
        image = Image.fromarray(grid).resize((self.width, self.height), Image.Resampling.BICUBIC)
        return np.asarray(image, np.float32)

    def fractal(self, cells: int = 3, octaves: int = 4, gain: float = 0.55) -> np.ndarray:
        """Fractal noise with mean 0.5, float32 (H, W)."""
        total, weight, norm = np.zeros((self.height, self.width), np.float32), 1.0, 0.0
        for octave in range(octaves):
            total += np.float32(weight) * (self.smooth(min(cells * 2**octave, self.width)) - 0.5)
            norm += weight * 0.55
            weight *= gain
        return 0.5 + total / np.float32(norm)

    def white(self) -> np.ndarray:
        """Uniform pixel noise, float32 (H, W), 0 to 1, of the same grain at every size."""
        return self.smooth(96) if self.unit > 1.2 else self.rng.random((self.height, self.width), dtype=np.float32)

    def lookup(self, freq_u: float, freq_v: float) -> np.ndarray:
        """Value noise along the pattern coordinates with the given frequencies (cells per unit)."""
        grid = self.rng.random((64, 64), dtype=np.float32)
        u, v = self.u * np.float32(freq_u), self.v * np.float32(freq_v)
        iu, iv = np.floor(u), np.floor(v)
        fu, fv = u - iu, v - iv
        fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
        iu, iv = iu.astype(np.int32) & 63, iv.astype(np.int32) & 63
        ju, jv = (iu + 1) & 63, (iv + 1) & 63
        top = grid[iv, iu] * (1 - fu) + grid[iv, ju] * fu
        return top * (1 - fv) + (grid[jv, iu] * (1 - fu) + grid[jv, ju] * fu) * fv

    def cells(self, period: float, jitter: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Voronoi cells of jittered points: nearest and second distance (in periods), and a random value per cell."""
        rng = self.rng
        offsets = rng.random((64, 64, 2), dtype=np.float32) * np.float32(jitter) + np.float32((1 - jitter) / 2)
        values = rng.random((64, 64), dtype=np.float32)
        u, v = self.u / np.float32(period), self.v / np.float32(period)
        iu, iv = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
        first = np.full(u.shape, 9, np.float32)
        second, value = first.copy(), first.copy()
        for dv in (-1, 0, 1):
            for du in (-1, 0, 1):
                ku, kv = (iu + du) & 63, (iv + dv) & 63
                point = offsets[kv, ku]
                distance = np.hypot(iu + du + point[..., 0] - u, iv + dv + point[..., 1] - v)
                second = np.minimum(second, np.maximum(first, distance))
                value = np.where(distance < first, values[kv, ku], value)
                first = np.minimum(first, distance)
        return first.astype(np.float32), second.astype(np.float32), value

    def shade(self, tone: np.ndarray, amount: float) -> np.ndarray:
        """Base color times a tone whose middle is 0.5."""
        return self.base * (1 + np.float32(2 * amount) * (tone - np.float32(0.5)))[..., None]

    def mix(self, tone: np.ndarray) -> np.ndarray:
        """Blend from the base color (0) to the second (1)."""
        tone = np.clip(tone, 0, 1)[..., None]
        return self.base * (1 - tone) + self.second * tone


def edge(x: np.ndarray, softness: float | np.floating) -> np.ndarray:
    """0 below zero, 1 above, soft between."""
    return np.clip(x / np.float32(2 * softness) + np.float32(0.5), 0, 1)


def shifted(x: np.ndarray, step: int) -> np.ndarray:
    """Moved down and right by `step` pixels, the first rows and columns repeated."""
    return np.pad(x, ((step, 0), (step, 0)), mode="edge")[:-step, :-step]


def _wave(x: np.ndarray, period: float) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(x * np.float32(2 * math.pi / period))


def _brushed(c):
    tone = 0.5 * c.lookup(0.015, 0.45) + 0.3 * c.lookup(0.04, 0.25) + 0.2 * c.lookup(0.1, 0.6)
    return c.shade(tone, c.rng.uniform(0.12, 0.4))


def _satin(c):
    return c.shade(0.7 * c.fractal(2, 2) + 0.3 * c.white(), c.rng.uniform(0.05, 0.15))


def _rolled(c):
    tone = 0.45 * c.lookup(0.01, 0.12) + 0.25 * c.white() + 0.3 * c.fractal(3, 3)
    return c.shade(tone, c.rng.uniform(0.12, 0.3))


def _turned(c):
    cu, cv = c.rng.uniform(-80, 140, 2)
    radius = np.hypot(c.u - np.float32(cu), c.v - np.float32(cv))
    tone = 0.6 * _wave(radius + c.lookup(0.05, 0.05), c.rng.uniform(3, 7)) + 0.4 * c.white()
    return c.shade(tone, c.rng.uniform(0.06, 0.2))


def _hammered(c):
    first, _, value = c.cells(c.rng.uniform(8, 16))
    return c.shade(0.9 - first + 0.2 * value, c.rng.uniform(0.15, 0.35))


def _diamond(c):
    period = c.rng.uniform(11, 18)
    iu, iv = np.floor(c.u / np.float32(period)), np.floor(c.v / np.float32(period))
    lu, lv = c.u / np.float32(period) - iu - 0.5, c.v / np.float32(period) - iv - 0.5
    flip = np.where((iu + iv) % 2 > 0, 1.0, -1.0).astype(np.float32)
    along, across = (lu + flip * lv) * 0.7, (lu - flip * lv) * 0.7
    shape = 1 - np.hypot(along / 0.38, across / 0.15)
    raised = edge(shape, 0.15)
    return c.shade(0.4 + raised * (0.25 - 2.2 * across * 0.6) + 0.15 * c.fractal(4, 3), c.rng.uniform(0.3, 0.55))


def _leather(c):
    first, second, value = c.cells(c.rng.uniform(4.5, 10))
    tone = 0.75 * np.clip((second - first) * 2.2, 0, 1) + 0.15 * value + 0.2 * c.fractal(3, 3)
    return c.shade(tone, c.rng.uniform(0.15, 0.4))


def _weave(c):
    period = np.float32(c.rng.uniform(4, 9))
    over = (np.floor(c.u / period) + np.floor(c.v / period)) % 2
    wu, wv = np.abs(np.sin(np.pi * c.u / period)), np.abs(np.sin(np.pi * c.v / period))
    tone = np.where(over > 0, wu * (0.55 + 0.45 * wv), wv * (0.55 + 0.45 * wu))
    image = c.mix(over * c.rng.uniform(0, 0.8)) if c.rng.random() < 0.6 else np.broadcast_to(c.base, (*c.u.shape, 3))
    return image * (0.55 + 0.5 * tone + 0.15 * c.lookup(0.3, 0.3))[..., None]


def _denim(c):
    period = c.rng.uniform(3.5, 6)
    tone = 0.6 * _wave(c.u + c.v, period) + 0.25 * c.lookup(0.5, 0.06) + 0.2 * c.white()
    return c.mix(0.15 + 0.5 * (tone - 0.3)) if c.rng.random() < 0.5 else c.shade(tone, c.rng.uniform(0.15, 0.35))


def _corduroy(c):
    tone = np.abs(np.sin(np.pi * c.u / np.float32(c.rng.uniform(5, 12)))) ** 0.7
    return c.shade(0.75 * tone + 0.25 * c.lookup(0.3, 0.3), c.rng.uniform(0.25, 0.5))


def _knit(c):
    pu, pv = np.float32(c.rng.uniform(6, 11)), np.float32(c.rng.uniform(4, 7))
    local = np.abs(c.u / pu - np.floor(c.u / pu) - 0.5)
    tone = np.abs(np.sin(np.pi * (c.v / pv + 1.6 * local))) * (0.55 + 0.9 * np.sqrt(local * (0.5 - local)) * 2)
    return c.shade(0.85 * tone + 0.2 * c.lookup(0.5, 0.5), c.rng.uniform(0.3, 0.5))


def _checkered(c):
    period = c.rng.uniform(9, 24)
    stripe_u, stripe_v = edge(_wave(c.u, period) - 0.5, 0.1), edge(_wave(c.v, period) - 0.5, 0.1)
    weave = 0.9 + 0.2 * _wave(c.u, 3) * _wave(c.v, 3) + 0.1 * (c.white() - 0.5)
    return c.mix(0.5 * (stripe_u + stripe_v)) * weave[..., None]


def _striped(c):
    tone = edge(_wave(c.u, c.rng.uniform(8, 26)) - c.rng.uniform(0.3, 0.7), 0.12)
    return c.mix(tone) * (0.88 + 0.16 * _wave(c.v, 3.2) + 0.1 * c.white())[..., None]


def _carpet(c):
    tone = 0.45 * c.lookup(0.45, 0.45) + 0.35 * c.white() + 0.25 * c.fractal(5, 3)
    return c.shade(tone, c.rng.uniform(0.3, 0.6))


def _felt(c):
    tone = 0.4 * c.lookup(0.08, 0.5) + 0.4 * c.lookup(0.5, 0.1) + 0.25 * c.fractal(6, 3)
    return c.shade(tone, c.rng.uniform(0.1, 0.3))


def _wood(c):
    rings = _wave(c.v + 9 * c.lookup(0.012, 0.035), c.rng.uniform(5, 14))
    tone = 0.5 * rings + 0.3 * c.lookup(0.03, 0.6) + 0.2 * c.lookup(0.01, 0.1)
    return c.mix(0.8 * tone) if c.rng.random() < 0.4 else c.shade(tone, c.rng.uniform(0.15, 0.35))


def _marble(c):
    vein = 1 - np.abs(2 * c.fractal(2, 4, 0.5) - 1)
    return c.mix(0.65 * vein**3 + 0.25 * c.fractal(3, 3))


def _tile(c):
    period = np.float32(c.rng.uniform(18, 34))
    u, v = c.u / period, c.v / period
    gap = np.minimum(0.5 - np.abs(u - np.floor(u) - 0.5), 0.5 - np.abs(v - np.floor(v) - 0.5)) * period
    face = c.shade(0.6 * c.fractal(3, 4) + 0.2 * c.white(), c.rng.uniform(0.05, 0.25))
    body = edge(gap - np.float32(c.rng.uniform(0.8, 1.6)), 0.7)[..., None]
    return face * body + c.second * 0.7 * (1 - body)


def _brick(c):
    pu, pv = np.float32(c.rng.uniform(24, 34)), np.float32(c.rng.uniform(10, 15))
    row = np.floor(c.v / pv)
    u = c.u / pu + 0.5 * (row % 2)
    gap = np.minimum((0.5 - np.abs(u - np.floor(u) - 0.5)) * pu, (0.5 - np.abs(c.v / pv - row - 0.5)) * pv)
    body = edge(gap - 1.0, 0.8)[..., None]
    return c.shade(0.5 * c.fractal(8, 3) + 0.4 * c.white(), 0.25) * body + (0.6 + 0.2 * c.base) * (1 - body)


def _concrete(c):
    return c.shade(0.55 * c.fractal(3, 5, 0.7) + 0.45 * c.white(), c.rng.uniform(0.12, 0.35))


def _stucco(c):
    relief = c.fractal(10, 3, 0.7)
    return c.shade(0.5 + 2.0 * (relief - shifted(relief, 1)), c.rng.uniform(0.35, 0.9))


def _paper(c):
    return c.shade(0.5 * c.lookup(0.3, 0.3) + 0.5 * c.white(), c.rng.uniform(0.02, 0.08))


def _plastic(c):
    ramp = (c.x * c.rng.uniform(-1, 1) + c.y * c.rng.uniform(-1, 1)) / 96
    return c.shade(0.5 + 0.6 * ramp + 0.12 * (c.white() - 0.5), c.rng.uniform(0.08, 0.25))


def _glaze(c):
    spot = np.exp(
        -((c.x - c.rng.uniform(-60, 60)) ** 2 + (c.y - c.rng.uniform(-60, 60)) ** 2) / c.rng.uniform(1500, 4000)
    )
    return c.shade(0.5 + 0.5 * (c.fractal(2, 2) - 0.5), 0.15) + np.float32(c.rng.uniform(0.05, 0.25)) * spot[..., None]


def _rubber(c):
    return c.shade(0.5 * c.lookup(0.3, 0.3) + 0.5 * c.white(), c.rng.uniform(0.08, 0.25))


def _glass(c):
    return 0.35 + 0.6 * c.shade(0.6 * c.fractal(4, 2) + 0.4 * c.lookup(0.4, 0.4), c.rng.uniform(0.05, 0.2))


def _mesh(c):
    period = np.float32(c.rng.uniform(6, 13))
    width = c.rng.uniform(0.12, 0.24)
    du, dv = np.abs(c.u / period - np.floor(c.u / period) - 0.5), np.abs(c.v / period - np.floor(c.v / period) - 0.5)
    wire_u, wire_v = edge(width - du, 0.5 / period), edge(width - dv, 0.5 / period)
    wire = np.maximum(wire_u, wire_v)
    tone = np.maximum(wire_u * (1 - du / width * 0.6), wire_v * (1 - dv / width * 0.6))
    back = c.rng.choice([0.1, 0.25, 0.85])
    return back * (1 - wire[..., None]) + c.base * wire[..., None] * (0.55 + 0.5 * np.clip(tone, 0, 1))[..., None]


def _perforated(c):
    period = np.float32(c.rng.uniform(8, 17))
    v = c.v / period
    u = c.u / period + (0.5 * (np.floor(v) % 2) if c.rng.random() < 0.5 else 0)
    radius = np.hypot(u - np.floor(u) - 0.5, v - np.floor(v) - 0.5)
    hole = edge(c.rng.uniform(0.2, 0.36) - radius, 0.6 / period)[..., None]
    back = np.float32(c.rng.choice([0.06, 0.15, 0.8]))
    return c.shade(0.6 * c.fractal(2, 2) + 0.4 * c.lookup(0.02, 0.5), 0.1) * (1 - hole) + back * hole


def _cork(c):
    _, _, value = c.cells(c.rng.uniform(4, 8))
    return c.mix(0.5 * edge(value - 0.8, 0.1)) * (0.75 + 0.35 * c.fractal(8, 4, 0.8) + 0.2 * value - 0.05)[..., None]


def _sponge(c):
    first, _, value = c.cells(c.rng.uniform(5, 10))
    pore = edge(0.22 + 0.25 * value - first, 0.12)
    return c.shade(0.6 - 0.5 * pore + 0.2 * (c.white() - 0.5), c.rng.uniform(0.3, 0.6))


def _foam(c):
    first, _, _ = c.cells(c.rng.uniform(2.6, 4.5))
    return c.shade(0.25 + 0.5 * first + 0.2 * c.white(), c.rng.uniform(0.12, 0.35))


def _sandpaper(c):
    tone = 0.8 * c.white() ** 2 + 0.3 * c.lookup(0.5, 0.5)
    return c.shade(tone, c.rng.uniform(0.3, 0.55))


def _cardboard(c):
    tone = 0.45 * _wave(c.v, c.rng.uniform(5, 11)) + 0.3 * c.white() + 0.3 * c.lookup(0.1, 0.4)
    return c.shade(tone, c.rng.uniform(0.06, 0.2))


def _terrazzo(c):
    first, second, value = c.cells(c.rng.uniform(7, 13))
    chip = edge(second - first - 0.22, 0.08) * (value > 0.35)
    return c.mix(chip * (0.3 + 0.7 * value)) * (0.92 + 0.15 * c.white())[..., None]


def _asphalt(c):
    _, _, value = c.cells(2.8)
    return c.shade(0.55 * value + 0.35 * c.white() + 0.1 * c.fractal(3, 3), c.rng.uniform(0.3, 0.6))


def _carbon(c):
    period = np.float32(c.rng.uniform(7, 12))
    over = (np.floor(c.u / period) + np.floor(c.v / period)) % 2
    fine = np.where(over > 0, _wave(c.u, 3.0), _wave(c.v, 3.0))
    return c.shade(0.35 * over + 0.3 * fine + 0.2, c.rng.uniform(0.3, 0.6))


# name -> (draw, noun in captions, palette)
TEXTURE_TABLE: dict[str, tuple[Callable, str, tuple[str, ...]]] = {
    "brushed_metal": (_brushed, "brushed metal plate", METALS),
    "satin_steel": (_satin, "steel sheet", METALS),
    "rolled_steel": (_rolled, "rolled steel strip", GREYS),
    "turned_metal": (_turned, "machined metal surface", METALS),
    "hammered_metal": (_hammered, "hammered metal", METALS),
    "diamond_plate": (_diamond, "tread plate", METALS),
    "leather": (_leather, "leather", ANY),
    "woven_fabric": (_weave, "woven fabric", ANY),
    "denim": (_denim, "denim cloth", ANY),
    "corduroy": (_corduroy, "corduroy", ANY),
    "knit": (_knit, "knitted wool", ANY),
    "checkered_cloth": (_checkered, "checkered cloth", ANY),
    "striped_cloth": (_striped, "striped cloth", ANY),
    "carpet": (_carpet, "carpet", ANY),
    "felt": (_felt, "felt", ANY),
    "wood": (_wood, "wood board", EARTHS),
    "marble": (_marble, "marble slab", GREYS + ("beige", "green", "brown")),
    "tile": (_tile, "tile", ANY),
    "brick_wall": (_brick, "brick wall", ("red", "orange", "brown", "beige", "grey")),
    "concrete": (_concrete, "concrete", ("grey", "silver", "beige", "dark grey")),
    "stucco": (_stucco, "plaster wall", FADED),
    "paper": (_paper, "paper sheet", FADED),
    "plastic": (_plastic, "plastic panel", ANY),
    "glazed_ceramic": (_glaze, "glazed ceramic", ANY),
    "rubber": (_rubber, "rubber mat", ("black", "dark grey", "grey", "red", "blue", "green")),
    "frosted_glass": (_glass, "frosted glass", FADED),
    "mesh": (_mesh, "wire mesh", METALS),
    "perforated_sheet": (_perforated, "perforated sheet", METALS + ("black", "blue")),
    "cork": (_cork, "cork", ("beige", "golden", "brown")),
    "sponge": (_sponge, "sponge", ("yellow", "beige", "pink", "blue", "grey", "orange")),
    "foam": (_foam, "foam block", FADED + ("dark grey", "yellow")),
    "sandpaper": (_sandpaper, "sandpaper", ("brown", "golden", "grey", "dark grey", "red")),
    "cardboard": (_cardboard, "cardboard", ("beige", "golden", "brown", "white")),
    "terrazzo": (_terrazzo, "terrazzo", FADED + ("dark grey",)),
    "asphalt": (_asphalt, "asphalt", ("dark grey", "grey", "black")),
    "carbon_fiber": (_carbon, "carbon fiber", ("black", "dark grey", "grey", "blue")),
}
HELD_OUT_TEXTURES = ("tile", "cork", "sponge", "terrazzo")
LAYERS = tuple(name for name in TEXTURE_TABLE if name not in HELD_OUT_TEXTURES)


def draw_texture(c: Canvas, name: str, difficulty: float) -> tuple[np.ndarray, str]:
    """Draws a flawless texture, float32 (H, W, 3) in 0 to 1, and names its color."""
    draw, _, palette = TEXTURE_TABLE[name]
    color = c.pick_colors(palette)
    c.orient(0.3 + 0.7 * difficulty)
    image = np.asarray(draw(c), np.float32)
    if c.rng.random() < 0.3 * difficulty:
        c.orient()
        layer = np.asarray(TEXTURE_TABLE[str(c.rng.choice(LAYERS))][0](c), np.float32).mean(2)
        contrast = np.float32(c.rng.uniform(0.03, 0.1) / (layer.std() + 0.02))
        image = image * (1 + contrast * (layer - layer.mean()))[..., None]
    return np.clip(image, 0.02, 0.98), color
