"""Drawn circuit boards and medical-scan-like pictures."""

from __future__ import annotations

import math

import numpy as np

from .assembled import draw_phantom
from .painter import Painter, Scene, box, circle, lumpy, segment
from .textures import Canvas, edge


def _route(p: Painter, width: float) -> tuple[np.ndarray, list[tuple[np.ndarray, tuple[float, float, float]]]]:
    """Conductors: bundles of bent traces, pads with holes, solid areas. Signed distance and the pads' holes."""
    rng = p.rng
    metal = np.full(p.x.shape, 50, np.float32)
    for _ in range(int(rng.integers(2, 6))):
        pitch, count = width * rng.uniform(2.2, 3.4), int(rng.integers(1, 6))
        x0, y0 = rng.uniform(-60, 60, 2)
        heading, legs = rng.integers(0, 8), []
        for _ in range(int(rng.integers(2, 5))):
            legs.append((heading * math.pi / 4, rng.uniform(14, 50)))
            heading += rng.choice([-1, 1, -2, 2])
        bundle = np.full(p.x.shape, 50, np.float32)
        x, y = x0, y0
        for turn, length in legs:
            x1, y1 = x + length * math.cos(turn), y + length * math.sin(turn)
            # a bundle of parallel traces is one wide band with stripes across it
            across = (p.x - x) * -math.sin(turn) + (p.y - y) * math.cos(turn)
            along = (p.x - x) * math.cos(turn) + (p.y - y) * math.sin(turn)
            lane = np.abs(
                across
                - np.clip(np.round(across / pitch + (count - 1) / 2), 0, count - 1) * pitch
                + (count - 1) / 2 * pitch
            )
            reach = np.maximum(np.maximum(-along, along - length), 0)
            bundle = np.minimum(bundle, np.hypot(lane, reach).astype(np.float32) - np.float32(width / 2))
            x, y = x1, y1
        metal = np.minimum(metal, bundle)
    holes = []
    for _ in range(int(rng.integers(2, 10))):
        cx, cy, size = *rng.uniform(-46, 46, 2), rng.uniform(2.2, 6)
        pad = (
            circle(p, cx, cy, size) if rng.random() < 0.6 else box(p, cx, cy, size * rng.uniform(0.7, 1.8), size * 0.8)
        )
        metal = np.minimum(metal, pad)
        holes.append((pad, (cx, cy, size * 0.45 if rng.random() < 0.6 else 0.0)))
    if rng.random() < 0.4:
        cx, cy = rng.choice([-1, 1], 2) * rng.uniform(25, 50, 2)
        metal = np.minimum(metal, box(p, cx, cy, rng.uniform(10, 34), rng.uniform(10, 34), rng.uniform(0, 8)))
    return metal, holes


def _bare_board(p: Painter) -> dict:
    dark = p.rng.random() < 0.8
    ground, ink = (np.full(3, 0.98), np.full(3, 0.02)) if dark else (np.full(3, 0.02), np.full(3, 0.98))
    p.image = p.background = np.broadcast_to(ground.astype(np.float32), (*p.x.shape, 3))
    metal, holes = _route(p, p.rng.uniform(1.6, 5))
    p.paint(metal, ink)
    for pad, (cx, cy, hole) in holes:
        if hole:
            p.paint(circle(p, cx, cy, hole), ground)
        p.parts.append((p.alpha(pad), p.background))
    drilled = p.alpha(metal) * (np.abs(p.image[..., 0] - ink[0]) < 0.5)
    p.color, p.noun = "black and white", "circuit board artwork"
    return {"traces": drilled.astype(np.float32), "conductor": ink.astype(np.float32)}


def _circuit_board(p: Painter) -> dict:
    rng, c = p.rng, p.c
    color = c.pick_colors(("green", "green", "teal", "blue", "red", "black", "dark grey"))
    mask = c.base.copy()
    p.image = p.background = mask * p.grain(0.08)
    metal, holes = _route(p, rng.uniform(1.8, 4))
    tone = mask * rng.uniform(1.25, 1.7) + 0.04 if rng.random() < 0.7 else p.other(("golden", "silver"))
    tone = np.clip(tone, 0, 0.95).astype(np.float32)
    p.paint(metal, tone)
    solder = p.other(("silver", "golden"))
    for pad, (cx, cy, hole) in holes:
        p.paint(pad, solder, 1.5, part=True)
        if hole:
            p.paint(circle(p, cx, cy, hole), (0.08, 0.08, 0.08))
    for _ in range(int(rng.integers(0, 5))):
        cx, cy, a, b = *rng.uniform(-40, 40, 2), rng.uniform(3, 11), rng.uniform(2.5, 8)
        before, shape = p.image, box(p, cx, cy, a, b, 1)
        p.paint(box(p, cx, cy, a + 1.8, b * 0.8), solder, 1)
        p.paint(shape, p.other(("black", "dark grey", "beige", "brown", "blue")), 2)
        p.parts.append((np.maximum(p.alpha(shape), p.alpha(box(p, cx, cy, a + 1.8, b * 0.8))), before))
    p.color, p.noun = color, "circuit board"
    return {"traces": p.alpha(metal), "conductor": tone}


def _tissue(p: Painter, amount: float) -> np.ndarray:
    return 1 + np.float32(amount) * (p.c.fractal(6, 4, 0.75) - 0.5)


def _grey(value: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(value, np.float32)[..., None], 3, axis=2)


def _brain(p: Painter) -> dict:
    rng = p.rng
    r, tall = rng.uniform(34, 42), rng.uniform(0.72, 0.88)
    p.image = p.background = _grey(np.full(p.x.shape, rng.uniform(0.0, 0.06)))
    p.place(rng.uniform(-3, 3), rng.uniform(-3, 3), r, rng.normal() * 0.08)
    p.x = p.x / np.float32(tall)
    head = lumpy(p, r, 0.02, 4)
    skull, white, gray = rng.uniform(0.35, 0.9), rng.uniform(0.45, 0.65), rng.uniform(0.3, 0.5)
    p.paint(head, np.full(3, skull), body=False)
    p.paint(head + 2.5, np.full(3, 0.06), body=False)
    folds = 1 - np.abs(2 * p.c.fractal(9, 2) - 1)
    depth = np.clip(-(head + 4.5) / r, 0, 1)
    tone = (gray + (white - gray) * edge(depth - 0.16 - 0.12 * (folds - 0.5), 0.06)) * _tissue(p, 0.15)
    p.paint(head + 4.5, _grey(tone * (1 - 0.35 * edge(folds - 0.9, 0.08) * (depth < 0.28))))
    p.paint(np.maximum(np.abs(p.x) - 0.7, head + 7), np.full(3, 0.12), body=False)
    low = rng.uniform(0.06, 0.85) if rng.random() < 0.3 else 0.1
    size = rng.uniform(0.75, 1.15)
    for side in (-1, 1):
        p.paint(
            segment(p, side * 3, -r * 0.28 * size, side * 5, r * 0.12 * size, 2.6 * size), np.full(3, low), body=False
        )
        p.paint(
            segment(p, side * 5, r * 0.12 * size, side * 9, r * 0.3 * size, 2.0 * size), np.full(3, low), body=False
        )
    p.noun = "brain"
    return {"scan": "scan"}


def _ultrasound(p: Painter) -> dict:
    rng, c = p.rng, p.c
    wide, top = rng.uniform(0.45, 0.85), rng.uniform(48, 75)
    y, fan = c.y + np.float32(top), None
    angle, radius = np.arctan2(c.x, y), np.hypot(c.x, y)
    fan = np.maximum(np.maximum((np.abs(angle) - wide) * radius, top - 44 - radius), radius - top - 42).astype(
        np.float32
    )
    if rng.random() < 0.4:
        fan = box(p, 0, 0, 46, 46)
    layers = 0.5 + 0.5 * np.sin(radius / np.float32(rng.uniform(5, 12)) + 5 * c.smooth(3))
    speckle = 0.55 * c.white() + 0.8 * c.fractal(24, 2)
    tone = (0.10 + 0.25 * layers + 0.35 * c.fractal(3, 3) ** 2) * (0.35 + speckle) * rng.uniform(0.7, 1.3)
    p.image = p.background = _grey(np.full(p.x.shape, 0.02))
    p.paint(fan, _grey(np.clip(tone, 0, 0.95)))
    p.noun = "tissue"
    return {"scan": "ultrasound scan"}


def _chest(p: Painter) -> dict:
    rng = p.rng
    p.image = p.background = _grey(np.full(p.x.shape, 0.04))
    body = box(p, 0, 6, rng.uniform(40, 47), 52, 18)
    p.paint(body, _grey(rng.uniform(0.45, 0.62) * _tissue(p, 0.1)))
    before = p.fg
    p.fg = np.zeros_like(before)
    for side in (-1, 1):
        lung = segment(p, side * 15, -20, side * 20, 18, rng.uniform(11, 13.5))
        p.paint(lung + 2 * (p.c.smooth(6) - 0.5), _grey(rng.uniform(0.16, 0.28) * _tissue(p, 0.35)))
    ribs = np.sin((p.y + 0.012 * p.x**2) * np.float32(2 * math.pi / rng.uniform(9, 13))) > 0.45
    p.image = (
        p.image
        + np.float32(0.07)
        * (p.c.fractal(30, 1) * 0.2 + 0.9)[..., None]
        * ribs[..., None]
        * p.alpha(body + 5)[..., None]
    )
    p.paint(np.abs(p.x) - 4, p.image * 0.5 + 0.36, body=False)
    p.paint(circle(p, 6, 18, rng.uniform(10, 14)), np.full(3, 0.62), 4, body=False)
    p.fg = np.maximum(p.fg * 1.0, before * 0.0)
    p.noun = "chest"
    return {"scan": "x-ray"}


def _colon(p: Painter) -> dict:
    rng, c = p.rng, p.c
    p.place(rng.uniform(-25, 25), rng.uniform(-25, 25), 40, 0)
    d = np.hypot(p.x, p.y) + 10 * (c.smooth(4) - 0.5)
    folds = 0.5 + 0.5 * np.sin(d / np.float32(rng.uniform(4, 7)) + 2 * c.smooth(3))
    base = np.array([0.80, 0.42, 0.34], np.float32) + rng.uniform(-0.08, 0.08, 3).astype(np.float32)
    vessels = 1 - np.abs(2 * c.fractal(6, 2) - 1)
    light = np.clip(0.3 + d / 55, 0.15, 1.1) * (0.78 + 0.3 * folds) * _tissue(p, 0.1)
    image = base * light[..., None]
    image = image * (1 - np.array([0.05, 0.3, 0.3], np.float32) * edge(vessels - 0.9, 0.06)[..., None])
    glint = np.zeros_like(d)
    for _ in range(int(rng.integers(0, 5))):  # wet tissue shines; that is no flaw
        gx, gy, wide = *rng.uniform(-44, 44, 2), rng.uniform(0.6, 2.5)
        glint += np.float32(0.4) * np.exp(-(((c.x - gx) / wide) ** 2 + ((c.y - gy) / rng.uniform(0.8, 3.0)) ** 2))
    p.image = p.background = np.zeros((*p.x.shape, 3), np.float32) + 0.02
    p.place(0, 0, 40, 0)
    frame = box(p, 0, 0, 47, 47, rng.uniform(2, 30)) if rng.random() < 0.6 else box(p, 0, 0, 60, 60)
    p.paint(frame, image + glint[..., None])
    p.noun = "bowel wall"
    return {"scan": "endoscopy image"}


def _skin(p: Painter) -> dict:
    rng, c = p.rng, p.c
    base = np.array([0.85, 0.64, 0.54], np.float32) * np.float32(rng.uniform(0.45, 1.08))
    c.orient()
    first, second, _ = c.cells(rng.uniform(5, 9))
    tone = (
        1
        + 0.1 * (np.clip(2 * (second - first), 0, 1) - 0.6)
        + 0.16 * (c.fractal(3, 4) - 0.5)
        + 0.05 * (c.white() - 0.5)
    )
    p.image = p.background = np.full((*p.x.shape, 3), 0.03, np.float32)
    frame = circle(p, 0, 0, 50) if rng.random() < 0.2 else box(p, 0, 0, 60, 60)
    image = base * tone[..., None]
    p.paint(frame, image)
    for _ in range(int(rng.integers(0, 6)) if rng.random() < 0.4 else 0):  # body hair is no flaw
        x, y, t = *rng.uniform(-45, 45, 2), rng.uniform(0, 6.3)
        p.paint(segment(p, x, y, x + 22 * math.cos(t), y + 22 * math.sin(t), 0.35), base * 0.45, body=False)
    p.noun = "skin"
    return {"scan": "skin image"}


def _retina(p: Painter) -> dict:
    rng = p.rng
    p.image = p.background = np.full((*p.x.shape, 3), 0.02, np.float32)
    base = np.array([0.72, 0.34, 0.14], np.float32) * np.float32(rng.uniform(0.7, 1.2))
    disc = circle(p, 0, 0, 44)
    p.paint(disc, base * _tissue(p, 0.15)[..., None], 9)
    side = rng.choice([-1, 1])
    strokes: list[list[tuple]] = [[] for _ in range(5)]
    for up in (-1, 1):
        for k in range(4):
            x, y, t = side * 20.0, 0.0, (0 if side < 0 else math.pi) + up * (0.5 + 0.35 * k)
            for step in range(5):
                x1, y1 = x + 11 * math.cos(t), y + 11 * math.sin(t)
                strokes[step].append((x, y, x1, y1))
                x, y, t = x1, y1, t + rng.normal() * 0.25 - up * 0.08
    vessels = np.max([p.strokes(group, 1.9 - 0.26 * k) for k, group in enumerate(strokes)], axis=0) * p.alpha(disc + 1)
    p.blend(vessels, base * np.array([0.6, 0.35, 0.4], np.float32))
    p.paint(circle(p, side * 20, 0, 5.5), np.clip(base * 1.5 + 0.1, 0, 0.97), 2, body=False)
    p.paint(np.hypot(p.x + side * 6, p.y).astype(np.float32) - 5, p.image * 0.85, body=False)
    p.noun = "eye fundus"
    return {"scan": "image"}


def _body_slice(p: Painter) -> dict:
    rng = p.rng
    p.image = p.background = _grey(np.full(p.x.shape, 0.02))
    p.y = p.y / np.float32(rng.uniform(0.68, 0.85))
    body = lumpy(p, rng.uniform(40, 45), 0.02, 4)
    p.paint(body, np.full(3, rng.uniform(0.15, 0.3)), body=False)
    p.paint(body + 4, _grey(0.38 * _tissue(p, 0.25)))
    organ = circle(p, -16, -4, 21) + 6 * (p.c.smooth(5) - 0.5)
    p.paint(np.maximum(organ, body + 6), _grey(rng.uniform(0.5, 0.62) * _tissue(p, 0.12)))
    p.paint(circle(p, 20, -6, rng.uniform(8, 12)) + 4 * (p.c.smooth(6) - 0.5), np.full(3, rng.uniform(0.08, 0.5)))
    for side in (-1, 1):
        p.paint(circle(p, side * 17, 19, 6.5), np.full(3, 0.6) * rng.uniform(0.8, 1.1), 2)
    p.paint(circle(p, 0, 24, 6.5), np.full(3, 0.88), 2)
    p.noun = "abdomen"
    return {"scan": "scan"}


SCAN_TABLE = {
    "bare_board": _bare_board,
    "circuit_board": _circuit_board,
    "brain_scan": _brain,
    "ultrasound": _ultrasound,
    "chest_xray": _chest,
    "body_slice": _body_slice,
    "colon": _colon,
    "skin_patch": _skin,
    "retina": _retina,
    "phantom": draw_phantom,
}
MEDICAL = ("brain_scan", "ultrasound", "chest_xray", "body_slice", "colon", "skin_patch", "retina", "phantom")


def draw_scan(c: Canvas, name: str, difficulty: float) -> Scene:
    """Draws a flawless circuit board or scan."""
    p = Painter(c, difficulty)
    turn = float(c.rng.choice([0, math.pi / 2, math.pi])) if name not in MEDICAL else c.rng.normal() * 0.08
    p.place(0, 0, 40, turn)
    extra = SCAN_TABLE[name](p)
    board = name not in MEDICAL
    foreground = np.ones_like(p.fg) if board else p.fg
    image = np.clip(p.image, 0.0, 1.0).astype(np.float32)
    return Scene(image, p.background, foreground, p.noun, p.color, parts=p.parts, **extra)
