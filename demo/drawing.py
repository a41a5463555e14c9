"""Tools that draw the demo data: noise, shapes by signed distance, soft edges, strokes and stains.

Lengths are in image widths; an image is an array (n, n) or (n, n, 3) of float32 in [0, 1].
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from scipy import ndimage

Array = np.ndarray
Rng = np.random.Generator


def grid(n: int) -> tuple[Array, Array]:
    """Coordinates x and y, (n, n) each, of the pixels' centres in [0, 1]."""
    axis = (np.arange(n, dtype=np.float32) + 0.5) / n
    return np.broadcast_to(axis, (n, n)), np.broadcast_to(axis[:, None], (n, n))


def rotate(x: Array, y: Array, degrees: float) -> tuple[Array, Array]:
    """Coordinates along axes that are turned by an angle, clockwise as seen."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return c * x + s * y, c * y - s * x


def colour(red: float, green: float, blue: float, rng: Rng | None = None) -> Array:
    """A colour as float32; with `rng`, each channel off by 1.5 % (std)."""
    return np.float32((red, green, blue)) * np.float32(rng.normal(1, 0.015, 3) if rng else 1)


def smooth(rng: Rng, n: int, rows: int, cols: int) -> Array:
    """Smooth noise (n, n), about unit variance, with `rows` x `cols` bumps over the image."""
    lattice = rng.standard_normal((rows + 1, cols + 1), dtype=np.float32)
    return np.asarray(Image.fromarray(lattice).resize((n, n), Image.Resampling.BICUBIC))


def streaks(rng: Rng, u: Array, v: Array, along: float, across: float) -> Array:
    """Noise with `along` bumps per unit of u and `across` per unit of v: fibres, brushed metal."""
    lattice = rng.standard_normal((256, 64), dtype=np.float32)
    where = np.stack([v * across + 128, u * along + 32])
    return ndimage.map_coordinates(lattice, where, order=1, mode="grid-wrap")


def step(distance: Array, width: float) -> Array:
    """0 where distance <= -width / 2, 1 where >= width / 2, smooth between."""
    t = np.clip(distance / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def ridge(distance: Array, width: float) -> Array:
    """1 where distance is 0, falling off smoothly on both sides."""
    return np.exp(-((distance / width) ** 2))


def arch(t: Array) -> Array:
    """Half circle over [-1, 1], 0 elsewhere: the profile of anything round."""
    return np.sqrt(np.clip(1 - t * t, 0, 1))


def box(x: Array, y: Array, half_x: Array | float, half_y: Array | float, corner: float) -> Array:
    """Signed distance to a rounded rectangle about the origin, negative inside."""
    qx, qy = np.abs(x) - half_x + corner, np.abs(y) - half_y + corner
    outside = np.hypot(np.maximum(qx, 0), np.maximum(qy, 0))
    return outside + np.minimum(np.maximum(qx, qy), 0) - corner


def over(below: Array, alpha: Array, above: Array | float) -> Array:
    """Lay a colour or grey over an image, by (n, n) opacities."""
    return below + (alpha[..., None] if below.ndim == 3 else alpha) * (above - below)


def scale(rgb: Array, factor: Array) -> Array:
    """Brightness times an (n, n) factor."""
    return rgb * factor[..., None]


# Defects, in their own coordinates (t, s) with the origin in the middle of the defect


def stroke(flaw: Rng, t: Array, s: Array, length: float, width: float, aside: float = 0) -> tuple:
    """Alphas of a bent line along t that thins out at its ends, and of its copy `aside` of it."""
    bend, wobble, phase = flaw.uniform(-0.8, 0.8), flaw.uniform(15, 40), flaw.uniform(0, 6)
    s = s - bend * t * t - 0.15 * width * np.sin(wobble * t + phase)
    half = 0.5 * width * arch(2 * t / length)
    soft = 1.5 / len(t)
    return tuple(step(half - np.abs(s - d), soft) * (half > 0) for d in (0, aside))


def blob(flaw: Rng, t: Array, s: Array, radius: float, rough: float) -> Array:
    """Distance to an irregular closed outline, positive inside (exact for a circle only)."""
    theta, outline = np.arctan2(s, t), 1
    for k in range(2, 8):
        outline = outline + rough / k * flaw.normal() * np.sin(k * theta + flaw.uniform(0, 6))
    return radius * outline - np.hypot(t * flaw.uniform(0.7, 1.1), s)


def stain(flaw: Rng, rgb: Array, t: Array, s: Array) -> Array:
    """A dried drop: tints what lies below, patchy, with a darker rim."""
    radius = flaw.uniform(0.05, 0.1)
    inside = blob(flaw, t, s, radius, 0.22)
    patchy = np.clip(1 + 0.35 * smooth(flaw, len(t), 24, 24), 0.4, 1.6)
    strength = flaw.uniform(0.2, 0.34) * step(inside, 0.35 * radius) * patchy
    strength = strength * (0.75 + 0.6 * ridge(inside, 0.12 * radius))
    tint = ((0.2, 0.5, 0.9), (0.6, 0.8, 1.0), (1.0, 0.9, 0.8))[flaw.integers(3)]
    return rgb * (1 - strength[..., None] * np.float32(tint))


def label(flaw: Rng, rgb: Array, x: Array, y: Array) -> Array:
    """A printed paper label, stuck on askew about the origin, with its shadow."""
    t, s = rotate(x, y, flaw.uniform(-40, 40))
    half_x, half_y = flaw.uniform(0.09, 0.14), flaw.uniform(0.05, 0.08)
    outline, soft = box(t, s, half_x, half_y, 0.01), 1.5 / len(t)
    text = step(0.3 - np.abs((s / half_y) * 3 % 1 - 0.5), 0.2) * (np.abs(t) < 0.8 * half_x)
    rgb = scale(rgb, 1 - 0.4 * ridge(outline, 0.01))
    return over(rgb, step(-outline, soft), (0.82 - 0.5 * text)[..., None] * colour(1, 0.97, 0.88, flaw))


def scratch(flaw: Rng, t: Array, s: Array) -> Array:
    """Factor on the brightness: one flank of the groove catches light, the other has none."""
    length, width = flaw.uniform(0.16, 0.4), flaw.uniform(0.012, 0.018)
    core, flank = stroke(flaw, t, s, length, width, 0.6 * width)
    depth = flaw.uniform(0.3, 0.5) * float(flaw.choice((-1, 1)))
    return 1 + depth * (core - 0.7 * flank * (1 - core))
