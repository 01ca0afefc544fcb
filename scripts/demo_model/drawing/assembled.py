"""Things put together at random, so that no two are of one kind: parts, food, panels, phantoms, mixed surfaces.

A named class teaches what that class looks like; these teach what holds for things at large.
"""

from __future__ import annotations

import math

import numpy as np

from .painter import Painter, box, circle, lumpy, polygon, segment
from .textures import LAYERS, TEXTURE_TABLE, Canvas, draw_texture, edge


def _turned(p: Painter, angle: float) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return cos * p.x + sin * p.y, cos * p.y - sin * p.x


def _primitive(p: Painter, r: float, near: float = 0.0) -> np.ndarray:
    """Signed distance of one random simple shape of about radius r; `near` shifts it off the middle."""
    rng, kind = p.rng, int(p.rng.integers(0, 7))
    x, y = p.x, p.y
    p.x, p.y = _turned(p, float(rng.choice([0, math.pi / 4, math.pi / 2, rng.uniform(0, math.pi)])))
    p.x, p.y = p.x - np.float32(near * r * rng.uniform(-1, 1)), p.y - np.float32(near * r * rng.uniform(-1, 1))
    flat = rng.uniform(0.35, 1.0)
    if kind == 0:
        shape = circle(p, 0, 0, r)
    elif kind == 1:
        shape = polygon(p, int(rng.integers(3, 9)), r * 0.85) - np.float32(rng.uniform(0, 0.1) * r)
    elif kind == 2:
        shape = box(p, 0, 0, r, r * flat, rng.uniform(0, 0.35) * r)
    elif kind == 3:
        shape = segment(p, -r * (1 - flat * 0.8), 0, r * (1 - flat * 0.8), 0, r * flat * 0.8)
    elif kind == 4:
        shape = lumpy(p, r * 0.9, rng.uniform(0.02, 0.15), int(rng.integers(3, 8)))
    elif kind == 5:  # between a diamond and a square
        power = np.float32(rng.uniform(1.2, 5))
        sides = np.abs(p.x / r) ** power + np.abs(p.y / (r * flat)) ** power
        shape = (sides ** (1 / power) - 1) * np.float32(r * flat)
    else:  # lobes, as flowers and knobs have them
        lobes, depth = int(rng.integers(3, 12)), rng.uniform(0.04, 0.2)
        wave = np.cos(lobes * np.arctan2(p.y, p.x))
        shape = np.hypot(p.x, p.y) - np.float32(r * 0.85) * (1 + np.float32(depth) * wave)
    p.x, p.y = x, y
    return shape.astype(np.float32)


def _body(p: Painter) -> np.ndarray:
    """A body of one to three shapes, joined or cut, often mirrored or turned about its middle."""
    rng, x, y = p.rng, p.x, p.y
    fold = rng.random()
    if fold < 0.4:
        p.x = np.abs(p.x)
    elif fold < 0.55:
        sector = 2 * math.pi / int(rng.integers(2, 7))
        angle, d = np.arctan2(p.y, p.x), np.hypot(p.x, p.y)
        angle = np.abs((angle + sector / 2) % sector - sector / 2)
        p.x, p.y = (d * np.cos(angle)).astype(np.float32), (d * np.sin(angle)).astype(np.float32)
    body = _primitive(p, p.r)
    for _ in range(int(rng.integers(0, 3))):
        other = _primitive(p, p.r * rng.uniform(0.3, 0.7), 0.9)
        body = np.minimum(body, other) if rng.random() < 0.6 else np.maximum(body, -other)
    p.x, p.y = x, y
    return body


def _material(p: Painter, body: np.ndarray) -> np.ndarray:
    """What the body is made of: plain, grained, textured, two-colored, striped or shaded."""
    rng, kind = p.rng, p.rng.random()
    base = p.pick()
    if kind < 0.25:
        return base * p.grain(rng.uniform(0.02, 0.45), int(rng.integers(8, 30)))
    if kind < 0.45:
        texture, p.color = draw_texture(p.c, str(rng.choice(LAYERS)), 0)
        return texture
    if kind < 0.55:
        cut = edge(_turned(p, rng.uniform(0, math.pi))[0] - np.float32(rng.uniform(-0.4, 0.4) * p.r), 0.5)[..., None]
        return base * (1 - cut) + p.other() * cut
    if kind < 0.65:
        wave = np.sin(_turned(p, rng.uniform(0, math.pi))[0] * np.float32(2 * math.pi / rng.uniform(4, 16)))
        stripe = edge(wave - np.float32(rng.uniform(-0.6, 0.6)), 0.15)[..., None] * rng.uniform(0.2, 1)
        return base * (1 - stripe) + p.other() * stripe
    if kind < 0.8:  # round: lit in the middle
        dome = np.sqrt(np.clip(-body / (0.6 * p.r), 0, 1))
        return base * (0.55 + 0.6 * dome)[..., None] * p.grain(rng.uniform(0, 0.2))
    if kind < 0.9:  # rings, as turning leaves them
        ring = np.sin(np.hypot(p.x, p.y) * np.float32(2 * math.pi / rng.uniform(2.5, 9)))
        return base * (1 + rng.uniform(0.05, 0.25) * ring)[..., None]
    return np.broadcast_to(base, (*body.shape, 3))


def _places(p: Painter, reach: float) -> list[tuple[float, float]]:
    """Where like features sit: on a ring, on a grid, in a row, or anywhere."""
    rng, kind = p.rng, p.rng.random()
    if kind < 0.4:
        count, d, start = int(rng.integers(2, 10)), reach * rng.uniform(0.35, 0.85), rng.uniform(0, 6.3)
        turns = [start + 2 * math.pi * k / count for k in range(count)]
        return [(d * math.cos(t), d * math.sin(t)) for t in turns]
    if kind < 0.65:
        nx, ny = int(rng.integers(1, 6)), int(rng.integers(1, 5))
        step = 1.5 * reach / max(nx, ny)
        return [(step * (i - (nx - 1) / 2), step * (j - (ny - 1) / 2)) for i in range(nx) for j in range(ny)]
    if kind < 0.8:
        return [(0.0, 0.0)]
    return [tuple(rng.uniform(-0.6, 0.6, 2) * reach) for _ in range(int(rng.integers(2, 9)))]  # type: ignore[misc]


def _repeated(p: Painter, body: np.ndarray) -> None:
    """Holes, knobs, dots or chips, all alike, each of which can go missing."""
    rng, places = p.rng, _places(p, p.r)
    size = p.r * min(rng.uniform(0.06, 0.26), 0.6 / math.sqrt(len(places)))
    kind, color, bevel = rng.random(), p.other(), rng.choice([0.0, 1.0, 2.5])
    square, rim = rng.random() < 0.3, rng.random() < 0.4
    for cx, cy in places:
        dot = box(p, cx, cy, size, size * 0.8, 0.2 * size) if square else circle(p, cx, cy, size)
        before = p.image
        if rim:
            p.paint(np.maximum(dot - 1, body + 1), np.clip(p.image * 1.25, 0, 1), body=False)
        if kind < 0.45:
            through = kind < 0.25
            p.paint(np.maximum(dot, body + 1), p.background * 0.8 if through else p.image * 0.35, body=False)
            if through:
                p.fg = p.fg * (1 - p.alpha(np.maximum(dot + 1, body + 2)))
        else:
            dot = dot if kind < 0.8 else dot + np.float32(0.5 * size) * (p.c.smooth(14) - 0.5)
            p.paint(np.maximum(dot, body + 1), color, float(bevel), body=False)
        alpha = p.alpha(np.maximum(dot - 1, body))
        if alpha.sum() > 8:
            p.parts.append((alpha, before))


def _inset(p: Painter, body: np.ndarray) -> None:
    depth = p.r * p.rng.uniform(0.08, 0.45)
    tone = p.other() if p.rng.random() < 0.3 else np.clip(p.image * p.rng.uniform(0.6, 1.35), 0, 1)
    p.paint(body + np.float32(depth), tone, float(p.rng.choice([0.0, 1.5, 3.0])), body=False)


def _grooves(p: Painter, body: np.ndarray) -> None:
    rng = p.rng
    across, width = _turned(p, float(rng.choice([0, math.pi / 2, rng.uniform(0, 3)])))[0], rng.uniform(0.6, 2.5)
    period, count = p.r * rng.uniform(0.2, 0.8), int(rng.integers(1, 5))
    lane = np.abs(across - np.clip(np.round(across / period), -(count // 2), count // 2) * np.float32(period))
    p.paint(np.maximum(lane - np.float32(width), body + 1.5), p.image * rng.uniform(0.45, 1.4), 1.0, body=False)


def _writing(p: Painter, body: np.ndarray) -> None:
    rng, h = p.rng, p.r * p.rng.uniform(0.08, 0.2)
    ends, x, y = [], -0.6 * p.r, p.r * rng.uniform(-0.4, 0.4)
    while x < p.r * rng.uniform(0.2, 0.7):
        for _ in range(int(rng.integers(2, 4))):
            (a, b), (u, v) = rng.choice([y - h, y, y + h], 2), rng.integers(0, 2, 2)
            ends.append((x + h * u, a, x + h * v, b))
        x += 1.8 * h
    before, ink = p.image, p.strokes(ends, max(1.0, 0.35 * h)) * p.alpha(body + 1)
    p.blend(ink, p.other() if rng.random() < 0.5 else p.c.base * 0.4)
    if ink.sum() > 8:
        p.parts.append((ink, before))


def _gloss(p: Painter, body: np.ndarray) -> None:
    rng = p.rng
    gx, gy, wide = *rng.uniform(-0.5, 0.5, 2) * p.r, (p.r * rng.uniform(0.08, 0.4)) ** 2
    glint = np.exp(-((p.x - gx) ** 2 + (p.y - gy) ** 2) / np.float32(wide)) * p.alpha(body)
    p.image = np.clip(p.image + np.float32(rng.uniform(0.1, 0.5)) * glint[..., None], 0, 1)


_FEATURES = (_repeated, _repeated, _inset, _inset, _grooves, _writing, _gloss)


def draw_part(p: Painter) -> None:
    """A part that never existed; several on one picture are alike."""
    if p.item_seed is None:
        p.item_seed = int(p.rng.integers(0, 2**31))
    own, own_canvas = p.rng, p.c.rng
    p.rng = p.c.rng = np.random.default_rng(p.item_seed)
    p.color = ""  # picked again, alike
    body = _body(p)
    p.shadow(body)
    p.paint(body, _material(p, body), float(p.rng.choice([0.0, 1.5, 3.0, 6.0])))
    for k in p.rng.integers(0, len(_FEATURES), int(p.rng.integers(0, 5))):
        _FEATURES[int(k)](p, body)
    p.rng, p.c.rng = own, own_canvas


def draw_food(p: Painter) -> None:
    """Something lumpy: baked, grown or molded, each one a little different."""
    if p.item_seed is None:
        p.item_seed = int(p.rng.integers(0, 2**31))
    kind = np.random.default_rng(p.item_seed)  # what all of them share
    rough, bevel, spots = kind.uniform(0.01, 0.12), kind.uniform(2, 9), int(kind.integers(0, 14))
    tall, fine, wavy = kind.uniform(0.5, 1.0), kind.uniform(0, 4), int(kind.integers(6, 24))
    y = p.y
    p.y = p.y / np.float32(tall)
    body = lumpy(p, p.r * 0.9, rough, int(kind.integers(3, 9))) + np.float32(fine) * (p.c.fractal(wavy, 2) - 0.5)
    p.shadow(body)
    base = p.pick(("golden", "beige", "brown", "dark brown", "orange", "red", "yellow", "green", "white", "pink"))
    tone = p.grain(kind.uniform(0.05, 0.6), int(kind.integers(8, 28)))
    if kind.random() < 0.3:
        lines = np.cos(np.arctan2(p.y, p.x) * int(kind.integers(6, 24)) + 3 * p.c.smooth(6))
        tone = tone * (1 + 0.12 * lines)[..., None]
    p.paint(body, base * tone, bevel)
    second, size = p.other(), kind.uniform(0.03, 0.12) * p.r
    for _ in range(spots):
        turn, d = p.rng.uniform(0, 6.3), 0.8 * p.r * math.sqrt(p.rng.random())
        dot = circle(p, d * math.cos(turn), d * math.sin(turn), size * p.rng.uniform(0.7, 1.4))
        p.paint(np.maximum(dot + 2 * (p.c.smooth(14) - 0.5), body + 1), second, 1.0, part=True, body=False)
    p.y = y


def draw_tray(p: Painter) -> None:
    """A grid of like things, as trays, blisters and assemblies show."""
    rng = p.rng
    nx, ny = int(rng.integers(2, 6)), int(rng.integers(1, 5))
    step, draw = 84 / max(nx, ny), (draw_part, draw_part, draw_food)[int(rng.integers(0, 3))]
    if rng.random() < 0.5:
        frame = box(p, 0, 0, step * nx / 2 + 2, step * ny / 2 + 2, rng.uniform(0, 5))
        p.paint(frame, p.other() * p.grain(0.15), 2, body=False)
        p.background = p.image
    angle, radius = p.angle, step * rng.uniform(0.3, 0.45)
    cos, sin = math.cos(angle), math.sin(angle)
    for j in range(ny):
        for i in range(nx):
            cx, cy = (i - (nx - 1) / 2) * step, (j - (ny - 1) / 2) * step
            before = p.image
            p.place(cos * cx - sin * cy, sin * cx + cos * cy, radius, angle)
            own = p.fg
            p.fg = np.zeros_like(own)
            draw(p)
            if rng.random() < 0.5:  # a whole one can go missing
                p.parts.append((p.fg, before))
            p.fg = np.maximum(own, p.fg)


def draw_phantom(p: Painter) -> dict:
    """Nested tissue in shades of gray (or of one tint), as scans of bodies show it, of no organ in particular."""
    rng, c = p.rng, p.c
    tint = np.ones(3, np.float32)
    if rng.random() < 0.25:
        tint = np.array(
            rng.choice([(1.0, 0.6, 0.5), (1.0, 0.75, 0.65), (0.9, 0.6, 0.9), (0.8, 0.5, 0.25)]), np.float32
        )
    dark = np.float32(rng.uniform(0, 0.08)) if rng.random() < 0.85 else np.float32(rng.uniform(0.7, 1))
    p.image = p.background = np.full((*p.x.shape, 3), dark, np.float32)
    p.place(rng.uniform(-4, 4), rng.uniform(-4, 4), rng.uniform(34, 46), rng.normal() * 0.1)
    y = p.y
    p.y = p.y / np.float32(rng.uniform(0.65, 1.0))
    body = (
        box(p, 0, 0, p.r, p.r, rng.uniform(2, p.r))
        if rng.random() < 0.3
        else lumpy(p, p.r, rng.uniform(0, 0.05), int(rng.integers(3, 7)))
    )
    speckle = rng.uniform(0.05, 0.5)

    def tissue(level: float) -> np.ndarray:
        grain = 1 + np.float32(speckle) * (0.6 * c.fractal(int(rng.integers(4, 16)), 3, 0.75) + 0.4 * c.white() - 0.5)
        return np.clip(level * grain, 0, 1)[..., None] * tint

    depth = 0.0
    for _ in range(int(rng.integers(1, 4))):
        p.paint(body + np.float32(depth), tissue(rng.uniform(0.15, 0.85)), body=depth == 0)
        depth += rng.uniform(1.5, 9)
    paired = rng.random() < 0.6
    for _ in range(int(rng.integers(0, 5))):
        size, level, at = p.r * rng.uniform(0.08, 0.4), rng.uniform(0.05, 0.9), rng.uniform(-0.55, 0.55, 2) * p.r
        x = p.x
        if paired:
            p.x, at[0] = np.abs(p.x), abs(at[0])
        organ = segment(p, at[0], at[1], at[0] + size * rng.uniform(-0.8, 0.8), at[1] + size, size * 0.7)
        p.x = x
        organ = organ + 3 * (c.smooth(int(rng.integers(4, 9))) - 0.5)
        p.paint(np.maximum(organ, body + 3), tissue(level), float(rng.choice([0, 2, 4])), body=False)
    if rng.random() < 0.3:
        ribs = edge(np.sin((p.y + 0.01 * p.x**2) * np.float32(2 * math.pi / rng.uniform(6, 15))) - 0.4, 0.3)
        p.blend(ribs * p.alpha(body + 3) * np.float32(rng.uniform(0.1, 0.35)), tint * rng.uniform(0.1, 0.9))
    if rng.random() < 0.35:
        vessel = edge(1 - np.abs(2 * c.fractal(int(rng.integers(3, 7)), 2) - 1) - 0.9, 0.06)
        p.blend(vessel * p.alpha(body + 2) * np.float32(rng.uniform(0.2, 0.6)), tint * rng.uniform(0.1, 0.9))
    if rng.random() < 0.4:
        p.blend(p.alpha(np.abs(p.x) - np.float32(rng.uniform(0.5, 5))) * p.alpha(body + 4), tint * rng.uniform(0, 0.9))
    p.y, p.noun = y, "tissue"
    return {"scan": str(rng.choice(["scan", "x-ray", "ultrasound scan", "image"]))}


def draw_mixed_surface(c: Canvas, difficulty: float) -> tuple[np.ndarray, str]:
    """A surface between two of the named ones: blended, one printed on the other, or joined along a line."""
    rng = c.rng
    names = [str(name) for name in rng.choice(LAYERS, 2, replace=False)]
    first, color = draw_texture(c, names[0], difficulty)
    c.orient(1.0)
    second = np.asarray(TEXTURE_TABLE[names[1]][0](c), np.float32)
    kind, share = rng.random(), np.float32(rng.uniform(0.2, 0.8))
    if kind < 0.4:
        image = first * (1 - share) + second * share
    elif kind < 0.75:  # the second's relief on the first's color
        tone = second.mean(2)
        image = first * (1 + share * (tone - tone.mean()) / (tone.std() + 0.05))[..., None]
    else:
        angle, at = rng.choice([0, math.pi / 2, rng.uniform(0, 6.3)]), rng.uniform(-25, 25)
        across = c.x * np.float32(math.cos(angle)) + c.y * np.float32(math.sin(angle)) - np.float32(at)
        joint = edge(across, rng.uniform(0.5, 2))[..., None]
        image = first * (1 - joint) + second * joint
    return np.clip(image, 0.02, 0.98).astype(np.float32), color
