"""Colour jitter of batches, on any device: equal to torchvision's functions, with one draw per sample. What is
applied to a sample does not depend on its neighbours in the batch."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
TOGETHER = {"cpu": 1}  # images that are jittered together: on a CPU the planes of one stay in the cache, elsewhere all


class Jitter(NamedTuple):
    """Draws of colour jitter for n samples, on the CPU."""

    factors: Tensor  # (n, 4) brightness, contrast, saturation (1 changes nothing) and hue shift in turns (0 likewise)
    order: Tensor  # (n, 4) the operation to apply first, second, third and fourth


def draw_jitter(n: int, strength: float, generator: Generator) -> Jitter:
    """Factors uniform in 1 ± strength, hue in ± strength, order uniform, for each of n samples."""
    factors = 1 + strength * (2 * torch.rand(n, 4, generator=generator) - 1)
    factors[:, HUE] -= 1
    return Jitter(factors, torch.rand(n, 4, generator=generator).argsort(1))


def color_jitter_(images: Tensor, jitter: Jitter) -> Tensor:
    """Jitter images in place, each with its own factors in its own order: equal to torchvision's `adjust_brightness`,
    `adjust_contrast`, `adjust_saturation` and `adjust_hue` one after the other. Images are (n, 3, height, width), float
    in [0, 1], contiguous."""
    blends, hue = blend_weights(jitter), jitter.factors[:, HUE]
    step = TOGETHER.get(images.device.type, len(images))
    for rows in (slice(i, i + step) for i in range(0, len(images), step)):
        pixels = images[rows].flatten(2).transpose(0, 1)
        jitter_pixels_(pixels, blends[..., rows], hue[rows], lambda v: v[:, None], lambda plane: plane.mean(1))
    return images


def blend_weights(jitter: Jitter) -> Tensor:
    """Colour jitter as one sequence of steps that serves all orders: up to three blends, the hue, up to three blends.

    Brightness, contrast and saturation are all x <- clamp(f x + (1 - f) reference), the reference 0, the mean grey of
    the image or the grey of the pixel. Returns (6, 3, n): of each blend f, (1 - f) for the mean grey and that for the
    grey. They are 1, 0, 0 for samples whose order has no blend there.
    """
    factors, order = jitter
    turn = (order == HUE).float().argmax(1)
    step = torch.tensor([0, 1, 2, 1, 2, 3])[:, None]  # places in the order: three before the hue, three after it
    active = torch.cat([step[:3] < turn, step[3:] > turn])
    operation = order.T[step[:, 0]]
    factor = torch.where(active, factors.gather(1, operation.T).T, 1.0)
    to_mean = torch.where(operation == CONTRAST, 1 - factor, 0.0)
    to_grey = torch.where(operation == SATURATION, 1 - factor, 0.0)
    return torch.stack([factor, to_mean, to_grey], 1)


def jitter_pixels_(x: Tensor, blends: Tensor, hue: Tensor, spread: Callable, mean: Callable) -> None:
    """Jitter x of shape (3, *pixels) in place by `blend_weights` and shifts (n,) of the hue, both on the CPU. `spread`
    takes (n,) values to the pixels of each sample, `mean` a plane of pixels to the (n,) means over each sample."""
    needed = (blends != torch.tensor([1.0, 0.0, 0.0])[:, None]).any(-1).tolist()
    weights = blends.to(x.device)
    for index, (any_factor, any_mean, any_grey) in enumerate(needed):
        if index == 3 and hue.any():
            _shift_hue(x, spread(hue.to(x.device)))
        if not any_factor:
            continue
        factor, to_mean, to_grey = weights[index]
        offset = None
        if any_mean or any_grey:
            grey = (x[0] * 0.2989).add_(x[1], alpha=0.587).add_(x[2], alpha=0.114)
            if any_mean:
                offset = spread(mean(grey) * to_mean)
            if any_grey:
                grey.mul_(spread(to_grey))
                offset = grey if offset is None else grey.add_(offset)
        x.mul_(spread(factor))
        if offset is not None:
            x.add_(offset)
        x.clamp_(0, 1)


def _shift_hue(x: Tensor, shift: Tensor) -> None:
    """Turn the hue by `shift` turns. Maximum and minimum of a pixel stay, so no full HSV is needed: each channel is
    minimum + chroma * (a trapezoid of the hue, which is in sixths of a turn here)."""
    r, g, b = x.unbind(0)
    green, blue, chroma, low, hue, part = x.new_empty(6, *x.shape[1:]).unbind(0)
    # 1.0 where green or blue is the largest. Sums of products with these masks are exact and, on a CPU, several times
    # faster than `where`, which is not vectorised
    torch.gt(g, r, out=green)
    torch.maximum(r, g, out=chroma)
    torch.gt(b, chroma, out=blue)
    torch.gt(green, blue, out=green)
    torch.maximum(chroma, b, out=chroma)
    torch.minimum(r, g, out=low)
    torch.minimum(low, b, out=low)
    chroma.sub_(low)
    # offset and difference of the sector of the largest channel: red 0, g-b; green 2, b-r; blue 4, r-g
    torch.add(green, blue, out=part).neg_().add_(1)
    torch.sub(g, b, out=hue).mul_(part)
    hue.addcmul_(torch.sub(b, r, out=part), green)
    hue.addcmul_(torch.sub(r, g, out=part), blue)
    hue.div_(torch.clamp(chroma, min=1e-12, out=part))
    hue.add_(green, alpha=2).add_(blue, alpha=4).add_(shift * 6)
    hue.sub_(torch.div(hue, 6, out=part).floor_(), alpha=6)
    torch.sub(hue, 3, out=r).abs_().sub_(1)
    torch.sub(hue, 2, out=g).abs_().neg_().add_(2)
    torch.sub(hue, 4, out=b).abs_().neg_().add_(2)
    x.clamp_(0, 1).mul_(chroma).add_(low)
