"""Drawn manufactured objects: one short function per kind of object."""

from __future__ import annotations

import math

import numpy as np

from .assembled import draw_food, draw_part, draw_tray
from .painter import Painter, Scene, box, circle, lumpy, polygon, segment
from .textures import LAYERS, TEXTURE_TABLE, Canvas, draw_texture, edge, shifted

METAL = ("silver", "silver", "grey", "dark grey", "golden")


def _nut(p):
    hexagon = polygon(p, 6, p.r * 0.85)
    p.shadow(hexagon)
    p.paint(hexagon, p.pick(METAL) * p.grain(0.2), 3)
    p.paint(circle(p, 0, 0, p.r * 0.72), p.c.base * 1.12 * p.grain(0.15), 2)
    hole = p.r * p.rng.uniform(0.38, 0.5)
    p.paint(circle(p, 0, 0, hole), p.c.base * 0.55)
    p.paint(circle(p, 0, 0, hole - 2), p.background)


def _washer(p):
    ring = circle(p, 0, 0, p.r)
    hole = circle(p, 0, 0, p.r * p.rng.uniform(0.4, 0.62))
    p.shadow(ring)
    p.paint(ring, p.pick(METAL) * p.grain(0.2), 2.5)
    p.paint(hole, p.background)
    p.fg *= 1 - p.alpha(hole)


def _screw(p):
    r = p.r
    shaft = box(p, r * 0.15, 0, r * 0.85, r * 0.2, 2)
    head = box(p, -r * 0.75, 0, r * 0.22, r * 0.45, r * 0.12)
    p.shadow(np.minimum(shaft, head))
    base = p.pick(METAL)
    thread = np.abs(np.sin(np.pi * (p.x + 0.35 * p.y) / np.float32(p.rng.uniform(3.5, 6))))
    p.paint(shaft, base * ((0.55 + 0.6 * thread) * (1.1 - np.abs(p.y) / (r * 0.3)))[..., None])
    p.paint(head, base * p.grain(0.15), 3)


def _gear(p):
    teeth = int(p.rng.integers(9, 20))
    angle, d = np.arctan2(p.y, p.x), np.hypot(p.x, p.y)
    wheel = (d - p.r * (0.88 + 0.11 * np.clip(2.2 * np.sin(teeth * angle), -1, 1))).astype(np.float32)
    p.shadow(wheel)
    p.paint(wheel, p.pick(METAL + ("white", "blue", "black", "yellow")) * p.grain(0.15), 2.5)
    p.paint(circle(p, 0, 0, p.r * 0.66), p.c.base * 0.85, 2)
    count = int(p.rng.integers(0, 7))
    for k in range(count if count > 2 else 0):
        turn = 2 * math.pi * k / count
        p.paint(
            circle(p, 0.44 * p.r * math.cos(turn), 0.44 * p.r * math.sin(turn), p.r * 0.12), p.background, part=True
        )
    p.paint(circle(p, 0, 0, p.r * 0.2), p.background)


def _bearing(p):
    ring = circle(p, 0, 0, p.r)
    p.shadow(ring)
    p.paint(ring, p.pick(METAL) * p.grain(0.15), 2.5)
    p.paint(circle(p, 0, 0, p.r * 0.8), p.c.base * 0.35)
    count = int(p.rng.integers(7, 12))
    for k in range(count):
        turn = 2 * math.pi * k / count
        p.paint(
            circle(p, 0.66 * p.r * math.cos(turn), 0.66 * p.r * math.sin(turn), p.r * 0.125),
            p.c.base * 1.1,
            1.5,
            part=True,
        )
    p.paint(circle(p, 0, 0, p.r * 0.5), p.c.base * 0.95, 2)
    p.paint(circle(p, 0, 0, p.r * 0.33), p.background)


def _bottle(p):
    outer = circle(p, 0, 0, p.r * 1.15)
    p.shadow(outer)
    base = p.pick(("brown", "dark brown", "green", "teal", "light blue", "white", "grey"))
    p.paint(outer, base * 0.75, 3)
    for radius, gain in ((0.98, 1.25), (0.85, 0.6), (0.72, 1.0), (0.55, 0.45)):
        radius += p.rng.uniform(-0.04, 0.04)
        p.paint(circle(p, 0, 0, p.r * radius), base * (gain + p.rng.uniform(-0.1, 0.1)), 2)
    turn = np.arctan2(p.y, p.x)
    glint = np.clip(np.cos(turn - p.light) - 0.8, 0, 1) * np.exp(-((np.hypot(p.x, p.y) - 0.9 * p.r) ** 2) / 6)
    p.image = p.image + 2.0 * glint.astype(np.float32)[..., None]


def _capsule(p):
    half = segment(p, -p.r * 0.55, 0, p.r * 0.55, 0, p.r * 0.4)
    p.shadow(half)
    left, right = p.pick(), p.other()
    tone = 1.15 - 0.45 * (p.y / (p.r * 0.4)) ** 2
    p.paint(half, np.where((p.x < p.r * p.rng.uniform(-0.1, 0.1))[..., None], left, right) * tone[..., None], 2)
    if p.rng.random() < 0.5:
        _text(p, -0.45 * p.r, 0.45 * p.r, -3, 3, right * 0.3)


def _pill(p):
    disc = circle(p, 0, 0, p.r) if p.rng.random() < 0.5 else segment(p, -p.r * 0.4, 0, p.r * 0.4, 0, p.r * 0.55)
    p.shadow(disc)
    base = p.pick(("white", "white", "pink", "yellow", "light blue", "orange", "beige", "red"))
    p.paint(disc, base * p.grain(0.1), 4)
    if p.rng.random() < 0.4:
        p.paint(np.maximum(np.abs(p.x) - 1.2, disc + 2), base * 0.75)
    else:
        _text(p, -0.45 * p.r, 0.45 * p.r, -4, 4, base * 0.6)


def _text(p, x0, x1, y0, y1, color):
    """Letter-like strokes in a box of local coordinates; the whole word is one part."""
    before, ends, x = p.image, [], x0
    while x < x1:
        w = (y1 - y0) * p.rng.uniform(0.35, 0.65)
        for _ in range(int(p.rng.integers(2, 4))):
            heights = p.rng.choice([y0, y1, (y0 + y1) / 2], 2)
            ends.append((x + w * p.rng.integers(0, 2), heights[0], x + w * p.rng.integers(0, 2), heights[1]))
        x += w * 1.6
    ink = p.strokes(ends, max(1.2, (y1 - y0) * 0.17))
    p.blend(ink, color)
    p.parts.append((ink, before))


def _cookie(p):
    shape = lumpy(p, p.r, 0.07) + 2.0 * (p.c.fractal(14, 3, 0.8) - 0.5)
    p.shadow(shape)
    base = p.pick(("golden", "golden", "beige", "brown", "dark brown", "orange"))
    tone = p.grain(0.45, 20) * (1 - 0.25 * np.clip(np.hypot(p.x, p.y) / p.r, 0, 1.2) ** 6)[..., None]
    if p.rng.random() < 0.5:  # gentle folds, as baking makes them
        fold = 1 - np.abs(2 * p.c.fractal(4, 3) - 1)
        tone = tone * (1 - 0.25 * edge(fold - 0.93, 0.05))[..., None]
    p.paint(shape, base * tone, 4)
    chip = np.array([0.2, 0.12, 0.09], np.float32) if p.rng.random() < 0.8 else p.other()
    for _ in range(int(p.rng.integers(0, 11))):
        turn, d = p.rng.uniform(0, 6.3), p.r * 0.85 * math.sqrt(p.rng.random())
        cx, cy, size = d * math.cos(turn), d * math.sin(turn), p.rng.uniform(1.5, 4.2)
        blob = circle(p, cx, cy, size) + 2.2 * (p.c.smooth(14) - 0.5)
        p.paint(np.maximum(blob, shape + 1), chip * p.rng.uniform(0.8, 1.3), 1.2, part=True)


def _cracker(p):
    body = box(p, 0, 0, p.r * 0.9, p.r * p.rng.uniform(0.6, 0.9), 3) + 1.2 * (p.c.smooth(24) - 0.5)
    p.shadow(body)
    base = p.pick(("golden", "beige", "beige", "brown", "orange"))
    p.paint(body, base * p.grain(0.3), 4)
    step = p.r * p.rng.uniform(0.35, 0.5)
    for cx in np.arange(-1, 2) * step:
        for cy in np.arange(-1, 2) * step * 0.9:
            p.paint(circle(p, cx, cy, 1.5), base * 0.45, part=True)


def _hazelnut(p):
    shape = lumpy(p, p.r * 0.9, 0.05, 5)
    p.shadow(shape)
    base = p.pick(("brown", "golden", "dark brown", "orange"))
    streak = np.cos(np.arctan2(p.y + 0.9 * p.r, p.x) * 22 + 3 * p.c.smooth(6))
    p.paint(shape, base * (p.grain(0.25) * (1 + 0.1 * streak)[..., None]), 7)
    cap = np.maximum(shape + 1.5, circle(p, 0, -p.r * 1.0, p.r * 0.62))
    p.paint(cap, base * 1.35 * p.grain(0.4))


def _macaroni(p):
    arc = np.abs(np.hypot(p.x, p.y) - p.r * 0.62) - p.r * 0.26
    arc = np.maximum(arc, -p.y - p.r * 0.15).astype(np.float32)
    p.shadow(arc)
    p.paint(arc, p.pick(("golden", "yellow", "beige", "orange")) * p.grain(0.15), 4)


def _coin(p):
    disc = circle(p, 0, 0, p.r)
    p.shadow(disc)
    base = p.pick(("golden", "silver", "brown", "grey"))
    p.paint(disc, base * p.grain(0.15), 2)
    p.paint(circle(p, 0, 0, p.r * 0.88), base * 0.85 * p.grain(0.15), 1.5)
    relief = p.c.smooth(9)
    face = np.maximum(lumpy(p, p.r * 0.5, 0.2), -9)
    p.paint(face, base * (1 + 1.2 * (relief - shifted(relief, 2)))[..., None], 2)
    _text(p, -0.5 * p.r, 0.5 * p.r, p.r * 0.58, p.r * 0.72, base * 1.2)


def _button(p):
    disc = circle(p, 0, 0, p.r)
    p.shadow(disc)
    base = p.pick()
    p.paint(disc, base * p.grain(0.08), 4)
    p.paint(circle(p, 0, 0, p.r * 0.7), base * 0.88, 2.5)
    count = int(p.rng.choice([2, 4]))
    for k in range(count):
        turn = 2 * math.pi * (k + 0.5) / count
        p.paint(circle(p, 0.3 * p.r * math.cos(turn), 0.3 * p.r * math.sin(turn), p.r * 0.11), base * 0.2, part=True)


def _casting(p):
    disc = circle(p, 0, 0, p.r * 1.2)
    p.shadow(disc)
    base = p.pick(("grey", "dark grey", "silver", "golden", "black"))
    p.paint(disc, base * p.grain(0.3), 3)
    p.paint(circle(p, 0, 0, p.r * 0.98), base * 0.7 * p.grain(0.2), 2)
    p.paint(circle(p, 0, 0, p.r * 0.9), base * 1.05 * p.grain(0.3), 3)
    p.paint(circle(p, 0, 0, p.r * 0.35), base * 1.2, 2)
    p.paint(circle(p, 0, 0, p.r * 0.17), base * 0.25)


def _drilled(p):
    body = box(p, 0, 0, p.r * 1.1, p.r * p.rng.uniform(0.6, 1.05), p.rng.uniform(1, 8))
    p.shadow(body)
    plate, p.color = draw_texture(p.c, str(p.rng.choice(["brushed_metal", "satin_steel", "plastic", "wood"])), 0)
    p.paint(body, plate, 2)
    nx, ny = int(p.rng.integers(1, 5)), int(p.rng.integers(1, 4))
    size = min(p.rng.uniform(2.5, 5.5), 0.7 * p.r / max(nx, ny))
    for cx in (np.arange(nx) - (nx - 1) / 2) * 1.7 * p.r / nx:
        for cy in (np.arange(ny) - (ny - 1) / 2) * 1.0 * p.r / ny:
            before = p.image
            p.paint(circle(p, cx, cy, size + 1), np.clip(plate * 1.2, 0, 1))
            p.paint(circle(p, cx, cy, size), p.background * 0.6)
            p.parts.append((p.alpha(circle(p, cx, cy, size + 1)), before))


def _chip(p):
    a, b = p.r * 0.75, p.r * p.rng.uniform(0.35, 0.7)
    body = box(p, 0, 0, a, b, 2)
    metal, pins = p.other(("silver", "golden")), int(p.rng.integers(4, 9))
    for k in range(pins):
        cx = (k - (pins - 1) / 2) * 1.8 * a / pins
        for side in (-1, 1):
            p.paint(box(p, cx, side * (b + 5), a * 0.4 / pins, 6), metal, 1, part=True)
    p.paint(body, p.pick(("black", "dark grey", "grey", "green")) * p.grain(0.15), 3)
    p.paint(circle(p, -a * 0.78, b * 0.6, 2), p.c.base * 0.6)
    _text(p, -0.55 * a, 0.6 * a, -3.5, 3.5, p.c.base * 0.4 + 0.45)


def _connector(p):
    a, b = p.r * 1.15, p.r * p.rng.uniform(0.35, 0.5)
    body = box(p, 0, 0, a, b, 3)
    p.shadow(body)
    base, metal = p.pick(("white", "black", "blue", "grey", "beige", "green", "red")), p.other(("silver", "golden"))
    p.paint(body, base, 3)
    p.paint(box(p, 0, 0, a * 0.9, b * 0.72, 2), base * 0.45)
    columns = int(p.rng.integers(4, 9))
    for k in range(columns):
        for cy in (-b * 0.36, b * 0.36):
            p.paint(box(p, (k - (columns - 1) / 2) * 1.7 * a / columns, cy, 1.9, 1.9, 0.5), metal, 1, part=True)


def _candles(p):
    nx, ny = int(p.rng.integers(2, 5)), int(p.rng.integers(1, 4))
    base, step = p.pick(("white", "beige", "red", "yellow", "pink", "green", "blue")), 88 / max(nx, ny, 2)
    for j in range(ny):
        for i in range(nx):
            cx, cy = (i - (nx - 1) / 2) * step, (j - (ny - 1) / 2) * step
            disc = circle(p, cx, cy, step * 0.4)
            p.shadow(disc)
            p.paint(disc, base * p.grain(0.06), 3)
            p.paint(circle(p, cx, cy, step * 0.3), base * 0.93)
            wick = segment(p, cx, cy, cx + p.rng.uniform(-3, 3), cy + p.rng.uniform(-3, 3), 1.1)
            p.paint(wick, (0.2, 0.18, 0.15), part=True)


def _blister(p):
    nx, ny = int(p.rng.integers(2, 5)), int(p.rng.integers(2, 4))
    step = min(88 / nx, 80 / ny)
    p.paint(
        box(p, 0, 0, nx * step / 2 + 3, ny * step / 2 + 3, 4), p.other(("silver", "white", "grey")) * p.grain(0.12), 2
    )
    base, oval = p.pick(), p.rng.uniform(0.22, 0.36)
    for j in range(ny):
        for i in range(nx):
            cx, cy = (i - (nx - 1) / 2) * step, (j - (ny - 1) / 2) * step
            p.paint(circle(p, cx, cy, step * 0.42), p.image * 0.85, 2)
            p.paint(box(p, cx, cy, step * 0.34, step * oval, step * oval), base, 2.5, part=True)


def _brush(p):
    p.paint(box(p, 0, 0, p.r * 1.25, p.r * 0.55, p.r * 0.3), p.other(("white", "light blue", "pink", "black")), 3)
    nx, ny = int(p.rng.integers(6, 10)), int(p.rng.integers(3, 5))
    color, second = p.pick(), p.other()
    for i in range(nx):
        for j in range(ny):
            cx, cy = (i - (nx - 1) / 2) * 2.2 * p.r / nx, (j - (ny - 1) / 2) * 0.9 * p.r / ny
            tuft = circle(p, cx + p.rng.uniform(-0.6, 0.6), cy + p.rng.uniform(-0.6, 0.6), 0.38 * p.r * 2.2 / nx)
            p.paint(tuft, (second if i % 3 == 1 else color) * p.rng.uniform(0.85, 1.1), 1.5, part=True)


def _zipper(p):
    cloth, p.color = draw_texture(p.c, str(p.rng.choice(["denim", "woven_fabric", "felt"])), 0)
    p.paint(np.abs(p.y) - p.r * 1.0, cloth)
    metal, pitch = p.other(("silver", "golden", "black", "grey", "white")), p.rng.uniform(4.5, 7)
    p.paint(np.abs(p.y) - 7, p.image * 0.7)
    x, before = p.x, p.image
    for side in (-1, 1):
        shift = pitch / 2 if side > 0 else 0
        p.x = ((x - shift + pitch / 2) % pitch - pitch / 2).astype(np.float32)
        p.paint(box(p, 0, side * 2.6, pitch * 0.3, 4.2, 1), metal, 1)
        p.x = x
        for k in p.rng.integers(-5, 6, 3):
            p.parts.append((p.alpha(box(p, k * pitch + shift, side * 2.6, pitch * 0.45, 4.7, 1)), before))


def _cable(p):
    outer = circle(p, 0, 0, p.r * 1.15)
    p.shadow(outer)
    p.paint(outer, p.pick(("grey", "black", "white", "silver", "dark grey")) * p.grain(0.1), 3)
    count, copper = int(p.rng.choice([3, 3, 4, 2])), p.rng.random() < 0.7
    for k in range(count):
        turn = 2 * math.pi * k / count
        cx, cy = 0.56 * p.r * math.cos(turn), 0.56 * p.r * math.sin(turn)
        before, size = p.image, p.r * (0.46 if count < 4 else 0.38)
        p.paint(circle(p, cx, cy, size), p.other(), 2)
        metal = np.array([0.72, 0.45, 0.28] if copper else [0.7, 0.7, 0.72], np.float32)
        strands = np.abs(np.sin(p.x * 1.3) * np.sin(p.y * 1.3))
        p.paint(circle(p, cx, cy, size * 0.72), metal * (0.6 + 0.6 * strands)[..., None])
        p.parts.append((p.alpha(circle(p, cx, cy, size)), before))


def _label(p):
    body = box(p, 0, 0, p.r * 1.25, p.r * p.rng.uniform(0.6, 1.0), p.rng.uniform(0, 5))
    p.shadow(body)
    base = p.pick(("white", "white", "yellow", "silver", "light blue", "beige", "red", "blue", "black"))
    ink = base * 0.2 if base.mean() > 0.4 else 1 - 0.3 * (1 - base)
    p.paint(body, base * p.grain(0.05), 1)
    rows = int(p.rng.integers(2, 5))
    for k in range(rows):
        y, h = (k - (rows - 1) / 2) * p.r * 1.1 / rows, p.r * 0.34 / rows
        _text(p, -p.r, p.r * p.rng.uniform(0.1, 0.9), y - h, y + h, ink)


def _stack(p):
    count, color = int(p.rng.integers(3, 7)), p.pick()
    height, mixed = 1.9 * p.r / count, p.rng.random() < 0.4
    for k in range(count):
        cy, a = (k - (count - 1) / 2) * height, p.r * p.rng.uniform(0.88, 1.0)
        tone = p.other() if mixed else color * p.rng.uniform(0.9, 1.1)
        p.paint(box(p, p.rng.uniform(-2, 2), cy, a, height * 0.47, 2), tone * p.grain(0.15), 2.5, part=True)


# name -> (draw, noun in captions, several instances allowed)
OBJECT_TABLE = {
    "nut": (_nut, "hex nut", True),
    "washer": (_washer, "washer", True),
    "screw": (_screw, "screw", True),
    "gear": (_gear, "gear wheel", True),
    "bearing": (_bearing, "ball bearing", False),
    "casting": (_casting, "cast metal part", False),
    "bottle": (_bottle, "bottle seen from above", False),
    "capsule": (_capsule, "capsule", True),
    "pill": (_pill, "pill", True),
    "cookie": (_cookie, "cookie", True),
    "cracker": (_cracker, "cracker", True),
    "hazelnut": (_hazelnut, "hazelnut", True),
    "pasta": (_macaroni, "macaroni", True),
    "coin": (_coin, "coin", True),
    "button": (_button, "button", True),
    "drilled_plate": (_drilled, "drilled plate", False),
    "chip": (_chip, "microchip", False),
    "connector": (_connector, "connector with pins", False),
    "candles": (_candles, "set of candles", False),
    "blister": (_blister, "blister of tablets", False),
    "brush": (_brush, "brush", False),
    "zipper": (_zipper, "zipper", False),
    "cable": (_cable, "cable cross-section", False),
    "label": (_label, "printed label", False),
    "stack": (_stack, "stack of blocks", False),
    "part": (draw_part, "machine part", True),
    "food": (draw_food, "piece of food", True),
    "tray": (draw_tray, "tray of parts", False),
}


def paint_background(p: Painter) -> None:
    """Plain, graded or textured, light or dark."""
    rng, kind = p.rng, p.rng.random()
    if kind < 0.25 + 0.25 * p.difficulty:
        p.image, _ = draw_texture(p.c, str(rng.choice(LAYERS)), 0)
        p.image = p.image * np.float32(rng.uniform(0.5, 1.0)) + np.float32(rng.uniform(0, 0.1))
    else:
        p.c.pick_colors(
            ("white", "black", "dark grey", "grey", "silver")
            if rng.random() < 0.7
            else tuple(TEXTURE_TABLE["felt"][2])
        )
        ramp = (p.c.x * rng.uniform(-1, 1) + p.c.y * rng.uniform(-1, 1)) / 96 if kind > 0.6 else np.zeros_like(p.c.x)
        p.image = p.c.shade(0.5 + ramp.astype(np.float32) + 0.08 * (p.c.white() - 0.5), 0.25)
    p.background = p.image


def draw_object(c: Canvas, name: str, difficulty: float) -> Scene:
    """Draws one or several flawless objects of one kind."""
    draw, noun, several = OBJECT_TABLE[name]
    p, rng = Painter(c, difficulty), c.rng
    paint_background(p)
    angle = rng.uniform(0, 2 * math.pi) if rng.random() < 0.6 else rng.normal() * 0.05
    if several and rng.random() < 0.25:
        count, wide = int(rng.integers(2, 5)), rng.random() < 0.5
        for k in range(count):
            across, down = (k % 2 - 0.5) * 46, (k // 2 - 0.5) * 46 if count > 2 else 0
            cx, cy = (across, down) if wide else (down, across)
            p.place(
                cx + rng.uniform(-2, 2), cy + rng.uniform(-2, 2), rng.uniform(15, 19), angle + rng.uniform(-0.5, 0.5)
            )
            draw(p)
    else:
        shift = 5 + 7 * difficulty
        p.place(rng.uniform(-shift, shift), rng.uniform(-shift, shift), rng.uniform(24, 40), angle)
        draw(p)
    return Scene(np.clip(p.image, 0.01, 0.99), p.background, p.fg, noun, p.color, parts=p.parts)
