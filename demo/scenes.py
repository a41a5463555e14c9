"""Scenes of the demo data and their defects: plain-woven cloth and a screwed metal plate.

A scene is a function of coordinates in [0, 1] (x to the right, y down, lengths in image widths). A
defect is drawn into the scene, not onto its photograph. `demo.dataset` photographs and saves them.

Each scene takes a generator, its size in pixels, a kind of defect (of `DEFECTS`) or None, and a generator
for the defect. It returns (n, n, 3), float32, about [0, 1]. The same draws are made with and without
defect, so that the rest of the scene is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from demo.drawing import (
    Array,
    Rng,
    arch,
    blob,
    box,
    colour,
    grid,
    label,
    over,
    ridge,
    rotate,
    scale,
    scratch,
    smooth,
    stain,
    step,
    streaks,
    stroke,
)


def weave(rng: Rng, n: int, defect: str | None, flaw: Rng) -> Array:
    """Checked cloth in plain weave, as a relief: threads wave over and under, the higher one is seen."""
    x, y = grid(n)
    u, v = rotate(x - 0.5, y - 0.5, rng.uniform(-4, 4))
    pitch = rng.uniform(17, 18)  # threads per image width
    u = pitch * (u + 0.005 * smooth(rng, n, 4, 4)) + rng.uniform(64, 66)
    v = pitch * (v + 0.005 * smooth(rng, n, 4, 4)) + rng.uniform(64, 66)
    col, row = flaw.integers(int(0.2 * n), int(0.8 * n), 2)
    dx, dy = x - x[row, col], y - y[row, col]
    if defect in ("patch", "shifted"):  # sewn on, or woven with a fault: the checks do not meet
        turn = flaw.uniform(-12, 12) if defect == "patch" else 0
        half_x, half_y = flaw.uniform(0.06, 0.12, 2)
        piece = box(*rotate(dx, dy, turn), half_x, half_y, 0.01)
        u = np.where(piece < 0, u + flaw.uniform(3, 5), u)
        v = np.where(piece < 0, v + flaw.uniform(3, 5), v)
    i, j = u.astype(np.int16), v.astype(np.int16)
    width = rng.normal(0.9, 0.05, (2, 128)).astype(np.float32)
    tone = rng.normal(1, 0.03, (2, 128)).astype(np.float32)
    across_u, across_v = 2 * (u - i - 0.5) / width[0][i], 2 * (v - j - 0.5) / width[1][j]
    gap_u, gap_v = np.float32(0.3) * (across_u**2 > 1), np.float32(0.3) * (across_v**2 > 1)
    over_u, over_v = (i % 2 - np.float32(0.5)), (j % 2 - np.float32(0.5))
    warp = arch(across_u) + 0.9 * over_u * np.sin(np.pi * v) - gap_u
    weft = arch(across_v) - 0.9 * over_v * np.sin(np.pi * u) - gap_v

    t, s = rotate(dx / 1.7, dy / 1.7, flaw.uniform(0, 180))
    thread, along = i[row, col], v - v[row, col]
    if defect == "missing_thread":
        gone = step(flaw.uniform(3, 6) - np.abs(along), 0.3)
        warp = warp - 3 * (i == thread) * gone

    top = warp > weft
    relief = np.maximum(np.maximum(warp, weft), -0.35)
    light = rng.uniform(0, 2 * np.pi)
    slope_y, slope_x = np.gradient(relief, pitch / n)
    slope = np.clip(math.cos(light) * slope_x + math.sin(light) * slope_y, -5, 5)
    fibres = np.where(top, streaks(rng, v, u, 1.2, 9), streaks(rng, u, v, 1.2, 9))
    shade = (0.80 + 0.16 * relief + 0.03 * slope) * (1 + 0.06 * fibres)
    shade = np.clip(shade * np.where(top, tone[0][i], tone[1][j]), 0.12, 1.5)
    # bands of dyed and of undyed threads make checks
    dyed, undyed = colour(0.16, 0.30, 0.58, rng), colour(0.80, 0.77, 0.68, rng)
    threads = np.where(top, i, j)
    yarn = np.where((threads // 7 % 2)[..., None] == 0, dyed, undyed)
    rgb = scale(yarn, shade)

    if defect == "patch":  # its hem throws a shadow
        rgb = scale(rgb, 1 - 0.5 * ridge(piece, 0.008))
    if defect == "cut":
        frayed = s + 0.006 * smooth(flaw, n, 50, 50)
        length, wide = flaw.uniform(0.16, 0.3), flaw.uniform(0.026, 0.042)
        slit, ends = stroke(flaw, t, frayed, length, wide, 0.4 * wide)
        rgb = over(over(rgb, 0.5 * ends, 1.25 * yarn), 0.85 * slit, 0.16)
    return stain(flaw, rgb, t, s) if defect == "stain" else rgb


def plate(rng: Rng, n: int, defect: str | None, flaw: Rng) -> Array:
    """Brushed plate with four cross-head screws, three-pole socket, printed bars and a cable."""
    x, y = grid(n)
    pixel = 1.5 / n
    zoom = rng.uniform(0.96, 1.04)
    px, py = (x - rng.uniform(0.41, 0.47)) / zoom, (y - rng.uniform(0.46, 0.54)) / zoom
    px, py = rotate(px, py, rng.uniform(-9, 9))
    light = rng.uniform(-2.6, -0.5)  # from above
    lx, ly = math.cos(light), math.sin(light)

    # the table, with the shadows of plate and cable
    grain = rng.uniform(0.85, 1.1) + 0.012 * smooth(rng, n, 60, 60)
    rgb = grain[..., None] * colour(0.05, 0.07, 0.08, rng)  # a dark mat
    outline = box(px, py, 0.34, 0.26, 0.05)
    if defect == "chip":  # broken out of the rim
        k = flaw.uniform(-0.8, 0.8)
        edges = ((0.34 * k, -0.26), (0.34 * k, 0.26), (-0.34, 0.26 * k))
        at = edges[flaw.integers(3)]
        bite = blob(flaw, px - at[0], py - at[1], flaw.uniform(0.055, 0.09), 0.25)
        outline = np.maximum(outline, bite)
    sag, swing = rng.uniform(-0.25, 0.25), rng.uniform(-0.03, 0.03)
    run = np.maximum(px - 0.3, 0)
    wire = (py - sag * run * run - swing * np.sin(16 * run) - 0.02) / 0.036
    cable = np.where(px > 0.3, 0.036 * np.abs(wire) - 0.036, np.float32(1))
    for distance, depth in ((cable, 0.02), (outline, 0.03)):
        rows = np.clip(np.arange(n) + round(ly * depth * n), 0, n - 1)
        cols = np.clip(np.arange(n) + round(lx * depth * n), 0, n - 1)
        rgb = scale(rgb, 1 - 0.42 * step(-distance[np.ix_(rows, cols)], 2.5 * depth))
    rgb = scale(rgb, 1 - 0.4 * ridge(np.maximum(outline, 0), 0.016))

    sheath = ((0.75, 0.72, 0.66), (0.25, 0.40, 0.70), (0.75, 0.25, 0.18))[rng.integers(3)]
    hue = scale(np.float32(sheath), 0.45 + 0.75 * arch(wire))
    hue = hue + 0.3 * ridge(wire + 0.4, 0.28)[..., None]
    rgb = over(rgb, step(-cable, pixel), hue)

    # the plate, in grey: brushed metal with a bevelled rim
    glint = px * rng.uniform(0.5, 1) + py - rng.uniform(-0.3, 0.3)
    metal = rng.uniform(0.46, 0.56) + 0.035 * streaks(rng, px, py, 4, 200)
    metal = metal + rng.uniform(0.08, 0.2) * ridge(glint, rng.uniform(0.1, 0.25))
    slope_y, slope_x = np.gradient(outline, 1 / n)
    bevel = 0.25 * ridge(outline + 0.009, 0.007)
    metal = metal + bevel * np.clip(lx * slope_x + ly * slope_y, -1, 1)

    # the print: eight bars and a dashed line
    ink = rng.uniform(0.12, 0.2)
    half = np.float32((5, 3, 7, 3, 3, 6, 4, 5)) * np.float32(0.0011)
    prints = [(px - 0.15, py)]
    if defect == "misprint":  # printed a second time, askew
        at = flaw.uniform(0.02, 0.16), flaw.choice((-1, 1)) * flaw.uniform(0.1, 0.16)
        prints.append(rotate(px - at[0], py - at[1], flaw.choice((-1, 1)) * flaw.uniform(20, 60)))
    for qx, qy in prints:
        k = np.clip(np.rint((qx + 0.075) / 0.021), 0, 7).astype(np.int8)
        bars = box(qx + 0.075 - np.float32(0.021) * k, qy + 0.025, half[k], 0.06, 0.001)
        line = box(qx, qy - 0.072, 0.08, 0.012, 0.002)
        line = np.maximum(line, 0.0035 - np.abs((qx + 1) % 0.03 - 0.015))
        metal = over(metal, 0.85 * step(-np.minimum(bars, line), pixel), ink)
    if defect == "scratch":
        at = ((0.02, -0.17), (0.03, 0.17), (0.2, 0.0), (0.13, -0.13))[flaw.integers(4)]
        t, s = px - at[0] - flaw.normal(0, 0.015), py - at[1] - flaw.normal(0, 0.015)
        metal = metal * scratch(flaw, *rotate(t / 1.7, s / 1.7, flaw.uniform(-45, 45)))

    # the socket
    hx = px + 0.11
    hub, facing = np.hypot(hx, py) - 0.125, (hx * lx + py * ly) / 0.125
    rim = 0.10 * ridge(hub + 0.012, 0.009) * (1 + 1.6 * np.clip(facing, -0.5, 1))
    plastic = 0.13 + rim + 0.05 * step(hub + 0.03, 0.01) - 0.03 * facing
    metal = over(metal * (1 - 0.45 * step(0.004 - hub, 0.03)), step(-hub, pixel), plastic)

    # the screws, all four at once by symmetry
    sx, sy = (np.abs(px) - 0.275) * np.sign(px), (np.abs(py) - 0.195) * np.sign(py)
    corner = (px > 0) + 2 * (py > 0)
    head, facing = np.hypot(sx, sy) - 0.042, (sx * lx + sy * ly) / 0.042
    steel = rng.uniform(0.62, 0.72) + 0.22 * facing + 0.15 * ridge(facing - 0.5, 0.2)
    turn = rng.uniform(0, 0.5 * np.pi, 4).astype(np.float32)
    c, s = np.cos(turn)[corner], np.sin(turn)[corner]
    cx, cy = np.abs(c * sx + s * sy), np.abs(c * sy - s * sx)
    cross = np.maximum(np.minimum(cx, cy) - 0.0075, np.maximum(cx, cy) - 0.026)
    steel = over(steel - 0.3 * ridge(head, 0.006), step(-cross, pixel), 0.17)
    metal = metal * (1 - 0.35 * ridge(np.maximum(head, 0), 0.012))
    metal = over(metal, step(-head, pixel), steel)
    rgb = over(rgb, step(-outline, pixel), metal[..., None] * colour(1, 1, 1.02))

    if defect == "label":  # of another product, stuck on askew
        rgb = label(flaw, rgb, px - flaw.uniform(-0.2, 0.25), py - flaw.uniform(-0.2, 0.2))

    ring, shine = np.float32(1), np.float32(0.75)  # the poles of the socket
    for a, b in ((0, 1), (-0.866, -0.5), (0.866, -0.5)):
        ox, oy = hx + 0.055 * a, py + 0.055 * b
        pole = np.hypot(ox, oy) - 0.021
        ring, shine = np.minimum(ring, pole), shine + 12 * (ox * lx + oy * ly) * (pole < 0)
    brass = (shine * step(ring + 0.009, pixel) + 0.08)[..., None] * colour(0.62, 0.52, 0.30)
    return over(rgb, step(-ring, pixel), brass)


SCENES: dict[str, Callable[..., Array]] = {"weave": weave, "plate": plate}
DEFECTS = {
    "weave": ("cut", "missing_thread", "patch", "shifted", "stain"),
    "plate": ("chip", "label", "misprint", "scratch"),
}
