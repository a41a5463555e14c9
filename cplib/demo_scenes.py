"""Scenes of the demo data: plain-woven cloth, a planed board, a screwed plate, and their defects.

A scene is a function of coordinates in [0, 1] (x to the right, y down, lengths in image widths). A
defect is drawn into the scene, not onto its photograph. `cplib.demo` photographs and saves them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

Array = np.ndarray
Rng = np.random.Generator


# --- drawing tools -------------------------------------------------------------------------------


def grid(n: int) -> tuple[Array, Array]:
    axis = (np.arange(n, dtype=np.float32) + 0.5) / n
    return np.broadcast_to(axis, (n, n)), np.broadcast_to(axis[:, None], (n, n))


def _rotate(x: Array, y: Array, degrees: float) -> tuple[Array, Array]:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return c * x + s * y, c * y - s * x


def colour(red: float, green: float, blue: float, rng: Rng | None = None) -> Array:
    """A colour as float32; with `rng`, each channel off by 1.5 % (standard deviation)."""
    return np.float32((red, green, blue)) * np.float32(rng.normal(1, 0.015, 3) if rng else 1)


def _smooth(rng: Rng, n: int, rows: int, cols: int) -> Array:
    """Smooth noise (n, n), about unit variance, with `rows` x `cols` bumps over the image."""
    lattice = rng.standard_normal((rows + 1, cols + 1), dtype=np.float32)
    return np.asarray(Image.fromarray(lattice).resize((n, n), Image.Resampling.BICUBIC))


def _streaks(rng: Rng, u: Array, v: Array, along: float, across: float) -> Array:
    """Noise with `along` bumps per unit of u and `across` per unit of v: fibres, brushed metal."""
    lattice = rng.standard_normal((256, 64), dtype=np.float32)
    where = np.stack([v * across + 128, u * along + 32])
    return ndimage.map_coordinates(lattice, where, order=1, mode="grid-wrap")


def _step(distance: Array, width: float) -> Array:
    """0 where distance <= -width / 2, 1 where >= width / 2, smooth between."""
    t = np.clip(distance / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def _ridge(distance: Array, width: float) -> Array:
    return np.exp(-((distance / width) ** 2))


def _arch(t: Array) -> Array:
    """Half circle over [-1, 1], 0 elsewhere: the profile of anything round."""
    return np.sqrt(np.clip(1 - t * t, 0, 1))


def _box(x: Array, y: Array, half_x: Array | float, half_y: Array | float, corner: float) -> Array:
    """Signed distance to a rounded rectangle about the origin, negative inside."""
    qx, qy = np.abs(x) - half_x + corner, np.abs(y) - half_y + corner
    outside = np.hypot(np.maximum(qx, 0), np.maximum(qy, 0))
    return outside + np.minimum(np.maximum(qx, qy), 0) - corner


def _over(below: Array, alpha: Array, above: Array | float) -> Array:
    return below + (alpha[..., None] if below.ndim == 3 else alpha) * (above - below)


def scale(rgb: Array, factor: Array) -> Array:
    return rgb * factor[..., None]


# --- defects in their own coordinates (t, s), origin in the middle of the defect ------------------


def _stroke(flaw: Rng, t: Array, s: Array, length: float, width: float, aside: float = 0) -> tuple:
    """Alphas of a bent line along t that thins out at its ends, and of its copy `aside` of it."""
    bend, wobble, phase = flaw.uniform(-0.8, 0.8), flaw.uniform(15, 40), flaw.uniform(0, 6)
    s = s - bend * t * t - 0.15 * width * np.sin(wobble * t + phase)
    half = 0.5 * width * _arch(2 * t / length)
    soft = 1.5 / len(t)
    return tuple(_step(half - np.abs(s - d), soft) * (half > 0) for d in (0, aside))


def _blob(flaw: Rng, t: Array, s: Array, radius: float, rough: float) -> Array:
    """Distance to an irregular closed outline, positive inside (exact for a circle only)."""
    theta, outline = np.arctan2(s, t), 1
    for k in range(2, 8):
        outline = outline + rough / k * flaw.normal() * np.sin(k * theta + flaw.uniform(0, 6))
    return radius * outline - np.hypot(t * flaw.uniform(0.7, 1.1), s)


def _stain(flaw: Rng, rgb: Array, t: Array, s: Array) -> Array:
    """A dried drop: tints what lies below, patchy, with a darker rim."""
    radius = flaw.uniform(0.05, 0.1)
    inside = _blob(flaw, t, s, radius, 0.22)
    patchy = np.clip(1 + 0.35 * _smooth(flaw, len(t), 24, 24), 0.4, 1.6)
    strength = flaw.uniform(0.2, 0.34) * _step(inside, 0.35 * radius) * patchy
    strength = strength * (0.75 + 0.6 * _ridge(inside, 0.12 * radius))
    tint = ((0.2, 0.5, 0.9), (0.6, 0.8, 1.0), (1.0, 0.9, 0.8))[flaw.integers(3)]
    return rgb * (1 - strength[..., None] * np.float32(tint))


def _scratch(flaw: Rng, t: Array, s: Array) -> Array:
    """Factor on the brightness: one flank of the groove catches light, the other has none."""
    length, width = flaw.uniform(0.16, 0.4), flaw.uniform(0.009, 0.015)
    core, flank = _stroke(flaw, t, s, length, width, 0.6 * width)
    depth = flaw.uniform(0.25, 0.42) * float(flaw.choice((-1, 1)))
    return 1 + depth * (core - 0.7 * flank * (1 - core))


# --- scenes: (rng, n, defect, flaw) to RGB (n, n, 3), about [0, 1] -------------------------------
# `rng` draws the normal scene, `flaw` the defect, so that both versions share all but the defect.


def _weave(rng: Rng, n: int, defect: str | None, flaw: Rng) -> Array:
    """Plain weave as a relief: threads wave over and under each other, the higher one is seen."""
    x, y = grid(n)
    u, v = _rotate(x - 0.5, y - 0.5, rng.uniform(-4, 4))
    pitch = rng.uniform(22, 24)  # threads per image width
    u = pitch * (u + 0.005 * _smooth(rng, n, 4, 4)) + rng.uniform(64, 66)
    v = pitch * (v + 0.005 * _smooth(rng, n, 4, 4)) + rng.uniform(64, 66)
    i, j = u.astype(np.int16), v.astype(np.int16)
    width = rng.normal(0.9, 0.05, (2, 128)).astype(np.float32)
    tone = rng.normal(1, 0.03, (2, 128)).astype(np.float32)
    across_u, across_v = 2 * (u - i - 0.5) / width[0][i], 2 * (v - j - 0.5) / width[1][j]
    gap_u, gap_v = np.float32(0.3) * (across_u**2 > 1), np.float32(0.3) * (across_v**2 > 1)
    over_u, over_v = (i % 2 - np.float32(0.5)), (j % 2 - np.float32(0.5))
    warp = _arch(across_u) + 0.9 * over_u * np.sin(np.pi * v) - gap_u
    weft = _arch(across_v) - 0.9 * over_v * np.sin(np.pi * u) - gap_v

    col, row = flaw.integers(int(0.15 * n), int(0.85 * n), 2)
    t, s = _rotate(x - x[row, col], y - y[row, col], flaw.uniform(0, 180))
    thread, along = i[row, col], v - v[row, col]
    if defect == "missing_thread":
        gone = _step(flaw.uniform(1.5, 3.5) - np.abs(along), 0.3)
        warp = warp - 3 * (i == thread) * gone
    if defect == "slub":  # one thread swells to twice its width
        bulge = _arch(along / flaw.uniform(1.8, 3.6))
        offset = (u - thread - 0.5) / (flaw.uniform(0.75, 1.05) * bulge + 1e-3)
        lump = _arch(offset) * (0.7 + 0.7 * bulge) + 0.2 * np.sin(np.pi * v)
        warp = np.where((offset**2 < 1) & (bulge > 0), np.maximum(warp, lump), warp)

    top = warp > weft
    relief = np.maximum(np.maximum(warp, weft), -0.35)
    light = rng.uniform(0, 2 * np.pi)
    slope_y, slope_x = np.gradient(relief, pitch / n)
    slope = np.clip(math.cos(light) * slope_x + math.sin(light) * slope_y, -5, 5)
    fibres = np.where(top, _streaks(rng, v, u, 1.2, 9), _streaks(rng, u, v, 1.2, 9))
    shade = (0.86 + 0.10 * relief + 0.015 * slope) * (1 + 0.06 * fibres)
    shade = np.clip(shade * np.where(top, tone[0][i], tone[1][j]), 0.12, 1.5)
    yarn = colour(0.36, 0.50, 0.70, rng)
    rgb = scale(np.where(top[..., None], yarn, colour(0.25, 0.38, 0.62, rng)), shade)

    if defect == "cut":
        frayed = s + 0.006 * _smooth(flaw, n, 50, 50)
        length, wide = flaw.uniform(0.16, 0.3), flaw.uniform(0.026, 0.042)
        slit, ends = _stroke(flaw, t, frayed, length, wide, 0.4 * wide)
        rgb = _over(_over(rgb, 0.5 * ends, 1.25 * yarn), 0.85 * slit, 0.16)
    if defect == "fibre":  # a loose end lies on the cloth and throws a shadow
        curl = flaw.uniform(0.01, 0.025) * np.sin(flaw.uniform(20, 34) * t + flaw.uniform(0, 6))
        length, wide = flaw.uniform(0.22, 0.42), flaw.uniform(0.02, 0.03)
        end, shadow = _stroke(flaw, t, s + curl, length, wide, 0.012)
        rgb = _over(scale(rgb, 1 - 0.45 * shadow), 0.9 * end, flaw.uniform(0.9, 1.5) * yarn)
    return _stain(flaw, rgb, t, s) if defect == "stain" else rgb


def _board(rng: Rng, n: int, defect: str | None, flaw: Rng) -> Array:
    """Flat-sawn board: year rings cut at a low angle, fibres and pores along the grain (u)."""
    x, y = grid(n)
    u, v = _rotate(x - 0.5, y - 0.5, rng.uniform(84, 96))
    v = v + 0.025 * _smooth(rng, n, 2, 3) + 0.0025 * _smooth(rng, n, 6, 12)
    col, row = flaw.integers(int(0.15 * n), int(0.85 * n), 2)
    t, s = _rotate(x - x[row, col], y - y[row, col], flaw.uniform(-60, 60))
    if defect == "plug":  # a repair: a piece from elsewhere, its grain a little off
        inlay = _blob(flaw, t, s, flaw.uniform(0.05, 0.09), 0.03)
        turned = _rotate(u, v, flaw.choice((-1, 1)) * flaw.uniform(8, 35))
        u = np.where(inlay > 0, turned[0] + 0.37, u)
        v = np.where(inlay > 0, turned[1] + flaw.uniform(0.1, 0.3), v)

    heart, slant, end = rng.uniform(-0.9, 0.9), rng.uniform(0.05, 0.16), rng.uniform(-2, 2)
    radius = np.hypot(v - heart, slant * (u - end) + 0.05)
    ring = (radius * rng.uniform(9, 16) + 0.12 * _streaks(rng, u, v, 2, 12)) % 1
    # a ring darkens slowly towards autumn and ends at once
    late = np.where(ring < 0.86, (ring / 0.86) ** 2.5, (1 - ring) / 0.14)
    fibres = _streaks(rng, u, v, 3, 110)
    pores = np.clip(_streaks(rng, u, v, 14, 90) - 1.5, 0, 1.2)
    light = colour(0.74, 0.56, 0.38, rng)
    dark = light * colour(0.70, 0.60, 0.50) * rng.uniform(0.92, 1.12)
    mix = rng.uniform(0.5, 0.95) * late + 0.12 * fibres + 0.1 * _smooth(rng, n, 3, 3)
    rgb = _over(np.broadcast_to(light, (n, n, 3)), np.clip(mix, -0.3, 1.4), dark)
    rgb = scale(rgb, 1 + 0.03 * fibres - 0.28 * pores)

    if defect == "plug":
        rgb = scale(rgb, 1 - flaw.uniform(0.25, 0.45) * _ridge(inlay, 0.004))
        rgb = scale(rgb, 1 + flaw.uniform(-0.07, 0.07) * _step(inlay, 0.004))
    if defect == "crack":  # opens along the grain
        line = v - v[row, col] + 0.003 * _smooth(flaw, n, 24, 24)
        taper = np.clip(1 - (2 * (u - u[row, col]) / flaw.uniform(0.18, 0.45)) ** 2, 0, None)
        depth = 0.8 * _step(flaw.uniform(0.005, 0.009) * taper - np.abs(line), 0.006)
        rgb = _over(rgb, depth * (taper > 0), 0.3 * dark)
    if defect == "hole":  # worm holes
        for _ in range(flaw.integers(1, 4)):
            size, to, so = flaw.uniform(0.013, 0.026), flaw.normal(0, 0.07), flaw.normal(0, 0.07)
            inside = _blob(flaw, t - to, s - so, size, 0.15)
            rgb = _over(rgb, 0.4 * _step(inside + 0.3 * size, 0.6 * size), 1.15 * light)
            floor = np.clip(0.25 + 8 * (t - to + s - so), 0.15, 0.6)
            rgb = _over(rgb, 0.9 * _step(inside, 0.008), floor[..., None] * dark)
    if defect == "scratch":
        rgb = scale(rgb, _scratch(flaw, t, s))
    return _stain(flaw, rgb, t, s) if defect == "stain" else rgb


def _plate(rng: Rng, n: int, defect: str | None, flaw: Rng) -> Array:
    """Brushed plate with four cross-head screws, three-pole socket, printed bars and a cable."""
    x, y = grid(n)
    pixel = 1.5 / n
    zoom = rng.uniform(0.96, 1.04)
    px, py = (x - rng.uniform(0.41, 0.47)) / zoom, (y - rng.uniform(0.46, 0.54)) / zoom
    px, py = _rotate(px, py, rng.uniform(-9, 9))
    light = rng.uniform(-2.6, -0.5)  # from above
    lx, ly = math.cos(light), math.sin(light)

    # the table, with the shadows of plate and cable
    grain = rng.uniform(0.85, 1.1) + 0.012 * _smooth(rng, n, 60, 60)
    rgb = grain[..., None] * colour(0.62, 0.64, 0.66, rng)
    outline = _box(px, py, 0.34, 0.26, 0.05)
    if defect == "chip":  # broken out of the rim
        k = flaw.uniform(-0.8, 0.8)
        edges = ((0.34 * k, -0.26), (0.34 * k, 0.26), (-0.34, 0.26 * k))
        at = edges[flaw.integers(3)]
        bite = _blob(flaw, px - at[0], py - at[1], flaw.uniform(0.03, 0.055), 0.25)
        outline = np.maximum(outline, bite)
    sag, swing = rng.uniform(-0.25, 0.25), rng.uniform(-0.03, 0.03)
    run = np.maximum(px - 0.3, 0)
    wire = (py - sag * run * run - swing * np.sin(16 * run) - 0.02) / 0.036
    cable = np.where(px > 0.3, 0.036 * np.abs(wire) - 0.036, np.float32(1))
    for distance, depth in ((cable, 0.02), (outline, 0.03)):
        rows = np.clip(np.arange(n) + round(ly * depth * n), 0, n - 1)
        cols = np.clip(np.arange(n) + round(lx * depth * n), 0, n - 1)
        rgb = scale(rgb, 1 - 0.42 * _step(-distance[np.ix_(rows, cols)], 2.5 * depth))
    rgb = scale(rgb, 1 - 0.4 * _ridge(np.maximum(outline, 0), 0.016))

    sheath = ((0.13, 0.13, 0.14), (0.16, 0.18, 0.26), (0.24, 0.13, 0.12))[rng.integers(3)]
    hue = scale(np.float32(sheath), 0.45 + 0.75 * _arch(wire))
    hue = hue + 0.3 * _ridge(wire + 0.4, 0.28)[..., None]
    if defect == "cut_cable":  # the sheath is nicked, copper shows
        rough = 0.006 * _smooth(flaw, n, 40, 40) - 0.0126 * wire
        nick = flaw.uniform(0.016, 0.035) - np.abs(run - flaw.uniform(0.1, 0.19) + rough)
        side = float(flaw.choice((-1, 1))) * wire > -0.35
        copper = (0.5 + 0.35 * np.sin(18 * wire))[..., None] * colour(0.66, 0.40, 0.22)
        hue = _over(hue, _step(nick, 0.008) * side, copper)
    rgb = _over(rgb, _step(-cable, pixel), hue)

    # the plate, in grey: brushed metal with a bevelled rim
    glint = px * rng.uniform(0.5, 1) + py - rng.uniform(-0.3, 0.3)
    metal = rng.uniform(0.46, 0.56) + 0.035 * _streaks(rng, px, py, 4, 200)
    metal = metal + rng.uniform(0.08, 0.2) * _ridge(glint, rng.uniform(0.1, 0.25))
    slope_y, slope_x = np.gradient(outline, 1 / n)
    bevel = 0.25 * _ridge(outline + 0.009, 0.007)
    metal = metal + bevel * np.clip(lx * slope_x + ly * slope_y, -1, 1)

    # the print: eight bars and a dashed line
    ink = rng.uniform(0.12, 0.2)
    half = np.float32((5, 3, 7, 3, 3, 6, 4, 5)) * np.float32(0.0011)
    top, bottom = np.full(8, -0.085, np.float32), np.full(8, 0.035, np.float32)
    if defect == "misprint":  # neighbouring bars are lost, smeared together or slipped
        first, kind = flaw.integers(0, 5), flaw.integers(3)
        hit = slice(first, first + flaw.integers(2, 4))
        if kind == 0:
            bottom[hit] = top[hit] + flaw.uniform(0, 0.05)
        elif kind == 1:
            half[hit] = 0.0135
        else:
            top[hit], bottom[hit] = top[hit] + 0.035, bottom[hit] + 0.035
    k = np.clip(np.rint((px - 0.075) / 0.021), 0, 7).astype(np.int8)
    middle, height = (top + bottom) / 2, (bottom - top) / 2
    bars = _box(px - 0.075 - np.float32(0.021) * k, py - middle[k], half[k], height[k], 0.001)
    line = _box(px - 0.15, py - 0.072, 0.08, 0.012, 0.002)
    line = np.maximum(line, 0.0035 - np.abs((px + 1) % 0.03 - 0.015))
    metal = _over(metal, 0.85 * _step(-np.minimum(bars, line), pixel), ink)
    if defect == "scratch":
        at = ((0.02, -0.17), (0.03, 0.17), (0.2, 0.0), (0.13, -0.13))[flaw.integers(4)]
        t, s = px - at[0] - flaw.normal(0, 0.015), py - at[1] - flaw.normal(0, 0.015)
        metal = metal * _scratch(flaw, *_rotate(t, s, flaw.uniform(-45, 45)))

    # the socket
    hx = px + 0.11
    hub, facing = np.hypot(hx, py) - 0.125, (hx * lx + py * ly) / 0.125
    rim = 0.10 * _ridge(hub + 0.012, 0.009) * (1 + 1.6 * np.clip(facing, -0.5, 1))
    plastic = 0.13 + rim + 0.05 * _step(hub + 0.03, 0.01) - 0.03 * facing
    metal = _over(metal * (1 - 0.45 * _step(0.004 - hub, 0.03)), _step(-hub, pixel), plastic)

    # the screws, all four at once by symmetry
    sx, sy = (np.abs(px) - 0.275) * np.sign(px), (np.abs(py) - 0.195) * np.sign(py)
    corner = (px > 0) + 2 * (py > 0)
    head, facing = np.hypot(sx, sy) - 0.042, (sx * lx + sy * ly) / 0.042
    steel = rng.uniform(0.62, 0.72) + 0.22 * facing + 0.15 * _ridge(facing - 0.5, 0.2)
    turn = rng.uniform(0, 0.5 * np.pi, 4).astype(np.float32)
    c, s = np.cos(turn)[corner], np.sin(turn)[corner]
    cx, cy = np.abs(c * sx + s * sy), np.abs(c * sy - s * sx)
    cross = np.maximum(np.minimum(cx, cy) - 0.0075, np.maximum(cx, cy) - 0.026)
    steel = _over(steel - 0.3 * _ridge(head, 0.006), _step(-cross, pixel), 0.17)
    if defect == "missing_screw":
        bore = np.clip(0.10 - 0.12 * facing, 0.04, 0.3)
        bore = _over(0.42 - 0.2 * facing, _step(-(head + 0.012), pixel), bore)
        steel = np.where(corner == flaw.integers(4), bore, steel)
    metal = metal * (1 - 0.35 * _ridge(np.maximum(head, 0), 0.012))
    metal = _over(metal, _step(-head, pixel), steel)
    rgb = _over(rgb, _step(-outline, pixel), metal[..., None] * colour(1, 1, 1.02))

    ring, shine = np.float32(1), np.float32(0.75)  # the poles of the socket
    for a, b in ((0, 1), (-0.866, -0.5), (0.866, -0.5)):
        ox, oy = hx + 0.055 * a, py + 0.055 * b
        pole = np.hypot(ox, oy) - 0.021
        ring, shine = np.minimum(ring, pole), shine + 12 * (ox * lx + oy * ly) * (pole < 0)
    brass = (shine * _step(ring + 0.009, pixel) + 0.08)[..., None] * colour(0.62, 0.52, 0.30)
    return _over(rgb, _step(-ring, pixel), brass)


SCENES: dict[str, Callable[..., Array]] = {"weave": _weave, "board": _board, "plate": _plate}
