"""Drawn defects: each changes a flawless scene inside a region, weakly or strongly, small or large."""

from __future__ import annotations

import math

import numpy as np

from .damage import Damage
from .textures import LAYERS, draw_texture, edge, shifted


def scratch(d: Damage):
    rng = d.rng
    first = d.walk(max(10, 3.5 * d.r) * rng.uniform(0.8, 2.0), rng.choice([0.0, 0.03, 0.12]))
    paths = [first + rng.normal(0, 3, 2) * k for k in range(int(rng.choice([1, 1, 2, 3])))]
    line = d.lines(paths, rng.uniform(0.6, 1.4))
    level = d.amount(0.10, 0.45) * d.sign()
    image = d.add(level * line)
    if rng.random() < 0.4:
        image = d.add(-0.6 * level * shifted(line, 1) * (1 - line), image)
        line = np.maximum(line, shifted(line, 1))
    return image, line


def crack(d: Damage):
    rng = d.rng
    trunk = d.walk(max(14, 4 * d.r), 0.45, 2.2)
    paths = [trunk]
    for _ in range(int(rng.integers(0, 4))):
        start = trunk[rng.integers(0, len(trunk))]
        branch = d.walk(max(6, 1.5 * d.r), 0.4, 2.2)
        paths.append(branch - branch[0] + start)
    line = d.lines(paths, rng.uniform(0.6, 1.2 + 0.8 * d.s))
    dark = d.image * (1 - min(0.95, d.amount(0.3, 0.75))) - 0.03
    return d.over(dark, line), line


def cut(d: Damage):
    length, t = max(8, 2.5 * d.r), d.rng.uniform(0, math.pi)
    cx, cy = d.spot()
    dx, dy = d.c.x - cx, d.c.y - cy
    a, b = dx * math.cos(t) + dy * math.sin(t), dy * math.cos(t) - dx * math.sin(t)
    gap = d.rng.uniform(0.8, 1.5) + 0.12 * d.r * d.s
    slit = np.abs(b + 0.01 * a * a * d.rng.normal() / length * 10) - gap * (1 - (a / length) ** 2)
    core = d.inside(slit.astype(np.float32), 0.5)
    lip = d.inside((slit - 1.0).astype(np.float32), 0.5) - core
    image = d.over(d.image * (1 - min(0.95, d.amount(0.35, 0.8))), core)
    return d.add(0.25 * d.s * lip, image), np.maximum(core, lip)


def hole(d: Damage):
    shape = d.blob(0.8 * d.r, 0.15)
    core = d.inside(shape)
    under = (
        d.scene.background if not d.full and d.rng.random() < 0.4 else d.image * (1 - min(0.95, d.amount(0.4, 0.85)))
    )
    rim = np.exp(-((shape / 1.2) ** 2)) * (d.scene.foreground if not d.full else 1)
    return d.add(rim * 0.2 * d.s * d.sign(), d.over(under, core)), d.inside(shape - 1)


def stain(d: Damage):
    rng, shape = d.rng, d.blob(d.r, 0.4)
    alpha = d.inside(shape, rng.choice([0.8, 2.0, 4.0]))
    if rng.random() < 0.4:
        alpha = alpha * (0.6 + 0.5 * np.exp(-((shape / 2) ** 2)))
    ink = d.color(("brown", "dark brown", "black", "golden", "grey", "white", "red", "blue", "green"))
    level = min(0.9, d.amount(0.2, 0.65))
    soaked = d.image * (0.35 + 0.65 * ink) if rng.random() < 0.5 else ink
    return d.over(soaked, alpha * level), alpha


def dent(d: Damage):
    shape = d.blob(d.r, 0.15)
    bowl = np.clip(-shape / d.r, 0, 1)
    bowl = bowl * bowl * (3 - 2 * bowl)
    region = d.inside(shape, 1)
    image = d.relief(d.r * bowl, region, gain=d.amount(0.1, 0.5))
    return d.add(-0.5 * d.amount(0.05, 0.25) * bowl * region, image), region


def broken(d: Damage):
    rng = d.rng
    if d.full:
        return _chipped(d)
    border = (d.scene.foreground > 0.5) & (d.blur(d.scene.foreground, 2) < 0.75)
    places = np.flatnonzero(border)
    if places.size == 0:
        return _chipped(d)
    row, col = divmod(int(rng.choice(places)), d.c.width)
    at = (float(d.c.x[row, col]), float(d.c.y[row, col]))
    if rng.random() < 0.3:  # a straight snap instead of a bite
        t = math.atan2(at[1], at[0]) + rng.normal() * 0.5
        reach = (d.c.x - at[0]) * math.cos(t) + (d.c.y - at[1]) * math.sin(t)
        shape = (0.7 * d.r - (reach + 1.2 * d.r) + 4 * (d.c.fractal(12, 2) - 0.5)).astype(np.float32)
    else:
        shape = d.blob(1.3 * d.r, rng.choice([0.2, 0.4]), at)
    gone = edge(-shape, 0.5)
    lip = np.exp(-((np.maximum(shape, 0) / 1.5) ** 2)) * (1 - gone) * d.scene.foreground
    image = d.image * (1 + rng.choice([-0.45, 0.3]) * lip[..., None] * (0.4 + 0.6 * d.s))
    image = d.over(d.scene.background, gone, image)
    for _ in range(int(rng.integers(0, 5))):  # crumbs
        cx, cy = at[0] + rng.normal() * d.r, at[1] + rng.normal() * d.r
        crumb = edge(-(np.hypot(d.c.x - cx, d.c.y - cy) - rng.uniform(0.5, 1.6)).astype(np.float32), 0.5) * gone
        image = d.over(d.image[d.solid].mean(0), crumb * 0.9, image)
    return image, np.maximum(gone, lip * 0.5)


def _chipped(d: Damage):
    shape = d.blob(d.r, 0.4)
    gone = d.inside(shape)
    facet = d.c.fractal(10, 3)
    inner = d.image.reshape(-1, 3).mean(0) * (1 + d.sign() * d.amount(0.2, 0.5)) * (0.75 + 0.5 * facet)[..., None]
    inner = d.relief(3 * facet, gone, inner, 0.7)
    return d.over(inner, gone * min(1, 0.6 + 0.5 * d.s)), gone


def bump(d: Damage):
    r = max(2.0, 0.7 * d.r)
    at = d.spot()
    shape = d.blob(r, 0.25, at)
    core = d.inside(shape)
    own = d.rng.random() < 0.3
    color = d.image if own else d.over(d.color(), np.full_like(core, min(1.0, 0.4 + d.amount(0.1, 0.6))))
    image = d.over(color, core)
    dome = np.sqrt(np.clip(-shape / r, 0, 1))
    image = d.relief(r * dome, core, image, d.amount(0.15, 0.45))
    shift = max(1, int(1.5 * d.c.unit))
    shade = shifted(core, shift) * (1 - core)
    return image * (1 - 0.3 * d.s * shade[..., None]), np.maximum(core, shade * (d.s > 0.3))


def thread(d: Damage):
    rng = d.rng
    path = d.walk(max(14, 5 * d.r), 0.2, 2.0)
    line = d.lines([path], rng.uniform(0.6, 1.5))
    gray = float(d.image[d.solid].mean())
    color = d.color(("white", "silver", "beige", "yellow") if gray < 0.5 else ("black", "dark brown", "red", "blue"))
    shade = shifted(line, 1) * (1 - line)
    image = d.image * (1 - 0.3 * d.s * shade[..., None])
    return d.over(color, line * min(1, d.amount(0.3, 0.95)), image), line


def contamination(d: Damage):
    rng, shape = d.rng, d.blob(d.r, 0.25)
    core = d.inside(shape)
    wet = d.blur(d.image, 1.0) * (1 + d.sign() * d.amount(0.12, 0.4))
    tint = d.color()
    wet = wet * (1 - 0.3 * d.s) + (0.3 * d.s) * wet * (0.4 + tint)
    image = d.over(wet, core)
    rim = np.exp(-((shape / 1.3) ** 2)) * core
    image = d.add(rim * d.sign() * d.amount(0.08, 0.3), image)
    gx, gy = rng.uniform(-0.5, 0.5, 2) * d.r
    bright = core * np.exp(
        -((d.c.x - d.c.x[core.argmax() // d.c.width, core.argmax() % d.c.width] - gx) ** 2 + gy**2) / 3
    )
    return d.add(0.2 * d.s * bright, image), core


def burn(d: Damage):
    shape = d.blob(1.15 * d.r, 0.35)
    alpha = np.clip(-shape / (0.5 * d.r), 0, 1) * (d.scene.foreground if not d.full else 1)
    char = np.array(d.rng.choice([(0.16, 0.11, 0.08), (0.28, 0.16, 0.07), (0.08, 0.08, 0.09)]), np.float32)
    level = min(0.95, d.amount(0.25, 0.8))
    return d.over(char * (0.6 + 0.8 * d.c.fractal(8, 3))[..., None], alpha * level), alpha


def discoloration(d: Damage):
    shape = d.blob(d.r, d.rng.choice([0.1, 0.4]))
    alpha = d.inside(shape, d.rng.choice([0.7, 3.0]))
    gain = 1 + d.sign() * d.rng.uniform(0.3, 1.0, 3) * d.amount(0.2, 0.55)
    if d.rng.random() < 0.5:
        gain = 1 + np.roll([1.0, -0.3, -0.7], d.rng.integers(0, 3)) * d.amount(0.25, 0.7) * d.sign()
    return d.over(np.clip(d.image * gain + 0.03 * (gain - 1), 0, 1), alpha), alpha


def missing_part(d: Damage):
    parts = [q for q in d.scene.parts if 0.0015 < float((q[0] > 0.5).mean()) < 0.16]
    if d.scene.traces is not None and d.rng.random() < 0.6:
        return _open(d)
    if parts:
        alpha, under = parts[int(d.rng.integers(0, len(parts)))]
        return d.over(under, alpha), alpha
    shape = d.blob(d.r, 0.2)
    alpha = d.inside(shape)
    worn = d.blur(d.image, 4) * (1 + d.sign() * d.amount(0.06, 0.35))
    return d.over(worn, alpha), alpha


def _trace_spot(d: Damage):
    assert d.scene.traces is not None
    middle = (d.blur(d.scene.traces, 1.5) > 0.25) & (d.blur(d.scene.traces, 1.5) < 0.75)
    middle[:4], middle[-4:], middle[:, :4], middle[:, -4:] = False, False, False, False
    places = np.flatnonzero(middle)
    if places.size == 0:
        return d.spot()
    row, col = divmod(int(d.rng.choice(places)), d.c.width)
    return float(d.c.x[row, col]), float(d.c.y[row, col])


def _open(d: Damage):
    """A bite out of, or a gap in, a conductor."""
    traces = d.scene.traces
    shape = d.blob(max(1.8, min(0.8 * d.r, 5.5)), 0.3, _trace_spot(d))
    alpha = edge(-shape, 0.4) * traces
    return d.over(d.scene.background, alpha), alpha


def extra_part(d: Damage):
    rng, scene = d.rng, d.scene
    if scene.traces is not None and scene.conductor is not None:
        at, r = _trace_spot(d), max(1.8, min(0.9 * d.r, 6))
        if rng.random() < 0.5:  # spur or spot of copper
            shape = d.blob(r, 0.3, at if rng.random() < 0.7 else None)
            alpha = edge(-shape, 0.4) * (1 - scene.traces)
        else:
            t, length = rng.uniform(0, math.pi), r * rng.uniform(2, 4)
            ends = np.array([at, at]) + np.array([[1], [-1]]) * np.array([math.cos(t), math.sin(t)]) * length / 2
            alpha = d.lines([ends], rng.uniform(1.2, 2.5)) * (1 - scene.traces)
        return d.over(scene.conductor, alpha), alpha
    cx, cy = d.spot(8)
    dx, dy, r = d.c.x - cx, d.c.y - cy, max(2.0, 0.75 * d.r)
    t = rng.uniform(0, math.pi)
    a, b = dx * math.cos(t) + dy * math.sin(t), dy * math.cos(t) - dx * math.sin(t)
    kind = rng.random()
    if kind < 0.35:
        shape = np.hypot(a, b) - r
    elif kind < 0.6:
        shape = np.abs(np.hypot(a, b) - r) - 0.3 * r
    else:
        shape = np.maximum(np.abs(a) / 1.5, np.abs(b) * 1.5) - 0.9 * r
    alpha = edge(-shape.astype(np.float32), 0.6)
    color = d.color() * (1 - 0.15 * np.clip(shape / r + 0.6, 0, 1))[..., None]
    return d.over(color, alpha * min(1, 0.45 + d.amount(0.1, 0.5))), alpha


def print_smear(d: Damage):
    rng = d.rng
    shape = d.blob(1.2 * d.r, 0.25)
    if d.scene.parts and rng.random() < 0.8:
        part = d.scene.parts[int(rng.integers(0, len(d.scene.parts)))][0]
        weight = part * d.solid
        if weight.sum() > 4:
            row, col = divmod(int(weight.argmax()), d.c.width)
            shape = d.blob(1.2 * d.r, 0.25, (float(d.c.x[row, col]), float(d.c.y[row, col])))
    alpha = d.inside(shape, 2)
    shift = max(2, int(rng.uniform(3, 7) * d.c.unit))
    axis = int(rng.integers(0, 2))
    steps = range(0, shift + 1, max(1, shift // 4))
    reach = np.arange(d.image.shape[axis])
    ghost = np.mean([np.take(d.image, np.maximum(reach - k, 0), axis) for k in steps], axis=0)
    ink = d.color(("black", "dark grey", "blue", "red", "white"))
    streak = np.clip(d.c.smooth(4, 30) if axis else d.c.smooth(30, 4), 0, 1) * d.amount(0.1, 0.5)
    return d.over(ink, alpha * streak, d.over(ghost, alpha)), alpha


def bend(d: Damage):
    from scipy.ndimage import map_coordinates

    rng = d.rng
    shape = d.blob(1.5 * d.r, 0.0, _edge_spot(d))
    fall = np.clip(-shape / (1.5 * d.r), 0, 1) ** 0.7
    push = d.amount(2.0, 7.0) * d.c.unit
    t = rng.uniform(0, 2 * math.pi)
    rows, cols = np.mgrid[: d.c.height, : d.c.width].astype(np.float32)
    rows, cols = rows + fall * push * math.sin(t), cols + fall * push * math.cos(t)
    moved = [map_coordinates(d.image[..., k], [rows, cols], order=1, mode="reflect") for k in range(3)]
    return np.stack(moved, -1), edge(-shape, 0.5)


def _edge_spot(d: Damage):
    """A place with visible structure, where a warp shows."""
    gray = d.image.mean(2)
    energy = np.abs(gray - d.blur(gray, 3)) * d.solid
    m = max(2, int(5 * d.c.unit))
    energy[:m], energy[-m:], energy[:, :m], energy[:, -m:] = 0, 0, 0, 0
    places = np.flatnonzero(energy > 0.6 * energy.max()) if energy.max() > 0 else np.zeros(0, int)
    if places.size == 0:
        return d.spot()
    row, col = divmod(int(d.rng.choice(places)), d.c.width)
    return float(d.c.x[row, col]), float(d.c.y[row, col])


def lesion(d: Damage):
    rng, shape = d.rng, d.blob(1.1 * d.r, rng_rough := float(d.rng.choice([0.1, 0.3, 0.5])))
    soft = rng.uniform(0.15, 0.6) * d.r
    alpha = d.inside(shape, soft) * (0.8 + 0.4 * d.c.fractal(8, 3) * (1 + rng_rough))
    level = d.amount(0.12, 0.5) * d.sign()
    if d.image[d.solid].mean() > 0.75:
        level = -abs(level)
    image = d.add(level * alpha)
    if rng.random() < 0.4:  # a core of the other sign
        core = d.inside(shape + 0.55 * d.r, soft * 0.6)
        image = d.add(-0.8 * level * core, image)
    if np.ptp(d.image[d.solid].mean(0)) > 0.06:  # colored tissue: brown, red or pale
        tint = np.array(
            rng.choice([(0.7, 0.5, 0.45), (1.1, 0.65, 0.6), (0.55, 0.42, 0.4), (1.15, 1.1, 1.0)]), np.float32
        )
        image = d.over(np.clip(d.image * tint, 0, 1), np.clip(alpha, 0, 1) * min(1, d.amount(0.35, 0.95)))
    return image, np.clip(alpha, 0, 1)


def polyp(d: Damage):
    r, at = 1.1 * d.r, d.spot(8)
    shape = d.blob(r, 0.1, at)
    core = d.inside(shape, 0.8)
    dome = np.sqrt(np.clip(-shape / r, 0, 1))
    tone = d.blur(d.image, 3) * (1 + 0.12 * (d.c.fractal(14, 3) - 0.5))[..., None]
    warm = 1 + np.array([0.08, -0.12, -0.1], np.float32) * d.sign() * d.amount(0.2, 1.0)
    image = d.over(np.clip(tone * warm, 0, 1), core * 0.85)
    image = d.relief(r * dome, core, image, d.amount(0.15, 0.45))
    rim = np.exp(-((shape / 1.5) ** 2))
    image = image * (1 - d.amount(0.1, 0.35) * rim[..., None])
    gx, gy = at[0] + d.rng.normal() * 0.25 * r, at[1] + d.rng.normal() * 0.25 * r
    glint = np.exp(-((d.c.x - gx) ** 2 + (d.c.y - gy) ** 2) / (0.05 * r * r + 0.5)) * core
    return d.add(0.5 * d.s * glint, image), d.inside(shape - 1, 0.8)


def mold(d: Damage):
    rng, at = d.rng, d.spot()
    spread, alpha = 1.4 * d.r, np.zeros_like(d.c.x)
    for _ in range(int(rng.integers(5, 16))):
        cx, cy = at[0] + rng.normal() * spread * 0.5, at[1] + rng.normal() * spread * 0.5
        dot = np.hypot(d.c.x - cx, d.c.y - cy) - rng.uniform(0.8, 1.2 + 0.22 * d.r)
        alpha = np.maximum(alpha, d.inside(dot.astype(np.float32), 0.9))
    color = np.array(
        rng.choice([(0.25, 0.3, 0.2), (0.12, 0.13, 0.12), (0.8, 0.82, 0.76), (0.35, 0.4, 0.38)]), np.float32
    )
    return d.over(color, alpha * min(0.95, d.amount(0.3, 0.85))), alpha


def texture_swap(d: Damage):
    rng = d.rng
    patch, _ = draw_texture(d.c, str(rng.choice(LAYERS)), 0.0)
    alpha = d.inside(d.blob(d.r, 0.3), 0.7)
    if rng.random() < 0.7 * (1 - d.s) + 0.2:  # same mean color: only the structure differs
        patch = patch - patch.mean((0, 1)) + d.blur(d.image, 5) + d.sign() * d.amount(0.02, 0.12)
    return d.over(np.clip(patch, 0, 1), alpha * min(1, 0.5 + 0.6 * d.s)), alpha


def abrasion(d: Damage):
    """A rubbed patch: many fine parallel or crossing marks."""
    shape = d.blob(1.1 * d.r, 0.3)
    alpha = d.inside(shape, 2.5)
    d.c.orient(0)
    marks = np.clip(d.c.lookup(0.03, 0.5) * 1.6 - 0.4, 0, 1)
    level = d.amount(0.08, 0.28) * d.sign()
    return d.add(level * alpha * (0.25 + marks)), alpha


# name -> (draw, adjectives, what a damaged thing "has")
DEFECT_TABLE = {
    "scratch": (scratch, ("scratched", "scraped"), ("a scratch", "scratches")),
    "crack": (crack, ("cracked", "fractured"), ("a crack", "a fracture")),
    "cut": (cut, ("cut", "slit", "torn"), ("a cut", "a tear")),
    "hole": (hole, ("pierced", "punctured"), ("a hole", "a pit")),
    "stain": (stain, ("stained", "dirty"), ("a stain", "a dirty spot")),
    "dent": (dent, ("dented", "pressed in"), ("a dent", "an imprint")),
    "broken": (broken, ("broken", "chipped"), ("a missing piece", "a broken part")),
    "bump": (bump, ("bumpy", "polluted"), ("a bump", "a foreign particle")),
    "thread": (thread, ("linty", "contaminated"), ("a loose thread", "a stray fiber")),
    "contamination": (contamination, ("contaminated", "wet"), ("a drop of liquid", "contamination")),
    "burn": (burn, ("burnt", "scorched"), ("a burn mark", "a scorch mark")),
    "discoloration": (discoloration, ("discolored", "faded"), ("a color defect", "a discolored area")),
    "missing_part": (missing_part, ("incomplete", "worn"), ("a missing part", "something missing")),
    "extra_part": (extra_part, ("faulty", "wrong"), ("an extra part", "a foreign object")),
    "print_smear": (print_smear, ("smeared", "misprinted"), ("a smear", "a print defect")),
    "bend": (bend, ("bent", "deformed"), ("a bent part", "a deformation")),
    "lesion": (lesion, ("blemished", "abnormal"), ("an abnormal spot", "a lesion")),
    "polyp": (polyp, ("swollen", "abnormal"), ("a growth", "a swelling")),
    "mold": (mold, ("moldy",), ("mold", "moldy spots")),
    "texture_swap": (texture_swap, ("patched", "irregular"), ("an irregular patch", "a wrong texture")),
    "abrasion": (abrasion, ("abraded", "rubbed"), ("an abrasion", "a rubbed area")),
}
HELD_OUT_DEFECTS = ("mold",)
# What tissue can show; board artwork has its own.
MEDICAL_DEFECTS = (
    "lesion",
    "lesion",
    "lesion",
    "polyp",
    "polyp",
    "stain",
    "texture_swap",
    "hole",
    "discoloration",
    "mold",
)
BOARD_DEFECTS = ("missing_part", "missing_part", "extra_part", "extra_part", "hole", "scratch", "stain", "bump", "cut")
