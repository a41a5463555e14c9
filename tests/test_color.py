"""Colour jitter: torchvision's operations in each sample's own order, whatever else is in the batch."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from cplib import color
from cplib.color import BRIGHTNESS, CONTRAST, HUE, SATURATION, Jitter, color_jitter, draw_jitter

ADJUST = {
    BRIGHTNESS: tv.adjust_brightness,
    CONTRAST: tv.adjust_contrast,
    SATURATION: tv.adjust_saturation,
    HUE: tv.adjust_hue,
}
ORDERS = list(itertools.permutations(range(4)))
KINDS = ("noise", "levels", "corners", "grey", "nearly grey", "constant")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_images(kind: str, n: int = 4, height: int = 7, width: int = 9, seed: int = 0) -> Tensor:
    """(n, 3, height, width) float32 in [0, 1]; `corners` are those of the colour cube."""
    x = torch.rand(n, 3, height, width, generator=seeded(seed))
    return {
        "noise": x,
        "levels": (255 * x).round() / 255,
        "corners": x.round(),
        "grey": x[:, :1].expand_as(x).clone(),
        "nearly grey": (x[:, :1] + 1e-6 * x).clamp(0, 1),
        "constant": x[:, :, :1, :1].expand_as(x).clone(),
    }[kind]


def fixed(
    n: int, brightness: float = 1, contrast: float = 1, saturation: float = 1, hue: float = 0
) -> Jitter:
    factors = torch.tensor([brightness, contrast, saturation, hue], dtype=torch.float32)
    return Jitter(factors.repeat(n, 1), torch.arange(4).repeat(n, 1))


def torchvision_jitter(images: Tensor, jitter: Jitter) -> Tensor:
    """The same draws applied by torchvision, image by image."""
    out = []
    for image, factors, order in zip(images, jitter.factors.tolist(), jitter.order.tolist(), strict=True):
        for operation in order:
            image = ADJUST[operation](image, factors[operation])
        out.append(image)
    return torch.stack(out)


def close(a: Tensor, b: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def all_orders(strength: float, seed: int = 0) -> Jitter:
    return draw_jitter(len(ORDERS), strength, seeded(seed))._replace(order=torch.tensor(ORDERS))


# --- what is applied ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
    strength=st.sampled_from([0.02, 0.1, 0.5]),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
)
def test_equals_torchvision_in_range_and_leaves_its_input(kind, seed, strength, height, width):
    images = make_images(kind, 5, height, width, seed)
    before, jitter = images.clone(), draw_jitter(5, strength, seeded(seed))
    out = color_jitter(images, jitter)
    close(out, torchvision_jitter(images, jitter))
    assert out.min() >= 0 and out.max() <= 1
    assert torch.equal(images, before) and out.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("kind", ["noise", "corners"])
def test_equals_torchvision_in_each_of_the_24_orders(kind):
    images, jitter = make_images(kind, len(ORDERS)), all_orders(0.5)
    close(color_jitter(images, jitter), torchvision_jitter(images, jitter))


def test_order_matters():
    """So that agreement with torchvision in each order is not agreement of one result."""
    images = make_images("noise", 1).expand(len(ORDERS), -1, -1, -1)
    factors = torch.tensor([[1.4, 0.6, 1.5, 0.2]]).repeat(len(ORDERS), 1)
    out = color_jitter(images, Jitter(factors, torch.tensor(ORDERS)))
    distance = torch.cdist(out.flatten(1), out.flatten(1), p=torch.inf)
    same = [(i, j) for i, j in itertools.combinations(range(len(ORDERS)), 2) if distance[i, j] < 1e-3]
    assert len(same) < len(ORDERS)  # a few neighbours do commute


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in ("brightness", "contrast", "saturation") for value in (0.0, 0.9, 2.0)]
    + [("hue", value) for value in (-0.5, -0.1, 0.1, 0.5)],
)
def test_each_operation_alone_equals_torchvision(name, value):
    images = torch.cat([make_images(kind) for kind in KINDS])
    expected = getattr(tv, f"adjust_{name}")(images, value)
    close(color_jitter(images, fixed(len(images), **{name: value})), expected)


def test_hue_turns_the_colour_circle():
    red, green, blue, olive = [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0.5, 0.5, 0]
    images = torch.tensor([red, green, blue, olive])[:, :, None, None]
    close(
        color_jitter(images, fixed(4, hue=1 / 3))[:, :, 0, 0], torch.tensor([green, blue, red, [0, 0.5, 0.5]])
    )
    noise = make_images("noise")
    turned = color_jitter(noise, fixed(4, hue=0.37))
    for extreme in (torch.amax, torch.amin):
        close(extreme(turned, 1), extreme(noise, 1))
    close(color_jitter(turned, fixed(4, hue=-0.37)), noise)


@pytest.mark.parametrize("kind", KINDS)
def test_factors_that_change_nothing(kind):
    images = make_images(kind)
    assert torch.equal(color_jitter(images, fixed(4)), images)
    assert torch.equal(color_jitter(images, draw_jitter(4, 0.0, seeded(0))), images)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), strength=st.floats(0, 0.5))
def test_grey_stays_grey(seed, strength):
    out = color_jitter(make_images("grey", seed=seed), draw_jitter(4, strength, seeded(seed)))
    assert (out.amax(1) - out.amin(1)).max() < 1e-6


def test_contrast_is_about_the_mean_of_the_own_image():
    dark, light = 0.2 * make_images("noise", 1), 0.8 + 0.2 * make_images("noise", 1)
    out = color_jitter(torch.cat([dark, light]), fixed(2, contrast=0.5))
    for image, before in zip(out, (dark, light), strict=True):
        close(image.mean(), before.mean(), 0.02)
        close(image.std(), before.std() / 2, 1e-5)


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_a_sample_does_not_depend_on_its_batch(strength):
    images, jitter = make_images("noise", len(ORDERS), 16, 16), all_orders(strength)
    jitter.factors[5] = torch.tensor([1.0, 1, 1, 0])  # one that changes nothing among those that do
    jitter.factors[6, HUE] = 0
    batch = color_jitter(images, jitter)
    for k in range(len(images)):
        rows = slice(k, k + 1)
        alone = color_jitter(images[rows], Jitter(jitter.factors[rows], jitter.order[rows]))
        assert torch.equal(alone[0], batch[k])
    assert torch.equal(batch[5], images[5])
    half = color_jitter(images[::2], Jitter(jitter.factors[::2], jitter.order[::2]))
    assert torch.equal(half, batch[::2])


@pytest.mark.parametrize("kind", KINDS)
def test_whole_batches_at_once_as_on_a_gpu(kind, monkeypatch):
    monkeypatch.setattr(color, "chunks", lambda images: [slice(0, len(images))])
    images, jitter = make_images(kind, len(ORDERS)), all_orders(0.5)
    close(color_jitter(images, jitter), torchvision_jitter(images, jitter))


def test_memory_layout_makes_no_difference():
    images, jitter = make_images("noise", 4, 8, 8), draw_jitter(4, 0.3, seeded(1))
    expected = color_jitter(images, jitter)
    wide = torch.rand(4, 3, 8, 20)
    wide[..., 5:13] = images
    for layout in (images.contiguous(memory_format=torch.channels_last), wide[..., 5:13]):
        assert torch.equal(color_jitter(layout, jitter), expected)


def test_bfloat16_agrees_within_its_resolution():
    images, jitter = make_images("noise", 24, 16, 16).bfloat16(), all_orders(0.1)
    out, expected = color_jitter(images, jitter), color_jitter(images.float(), jitter)
    assert out.dtype == torch.bfloat16
    error = (out.float() - expected).abs()
    # a few roundings of 2^-9 each; the hue, counted in sixths of a turn up to 6, costs ten times as much
    assert error.mean() < 0.006 and error.max() < 0.06
    still = jitter._replace(factors=jitter.factors.index_fill(1, torch.tensor(HUE), 0.0))
    error = (color_jitter(images, still).float() - color_jitter(images.float(), still)).abs()
    assert error.max() < 0.02


# --- draws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.1, 0.4])
def test_factors_are_uniform_in_their_range_and_independent(strength):
    factors = draw_jitter(10_000, strength, seeded(0)).factors.double()
    centered = (factors - torch.tensor([1, 1, 1, 0])) / strength
    assert centered.abs().max() <= 1 + 1e-5
    for column in centered.T:
        assert stats.kstest(column.numpy(), stats.uniform(-1, 2).cdf).pvalue > 0.001
    correlation = torch.corrcoef(torch.cat([centered[1:], centered[:-1]], 1).T) - torch.eye(8)
    assert correlation.abs().max() < 0.05  # between operations and from sample to sample


def test_each_order_is_equally_likely_whatever_the_factors():
    jitter = draw_jitter(24_000, 0.1, seeded(0))
    assert (jitter.order.sort(1).values == torch.arange(4)).all()
    codes, counts = (jitter.order @ torch.tensor([64, 16, 4, 1])).unique(return_counts=True)
    assert len(codes) == 24 and stats.chisquare(counts.numpy()).pvalue > 0.001
    first = [jitter.factors[jitter.order[:, 0] == operation, BRIGHTNESS].mean() for operation in range(4)]
    assert all(abs(mean - 1) < 0.005 for mean in first)


def test_draws_repeat_by_generator_alone():
    torch.manual_seed(1)
    one = draw_jitter(8, 0.1, seeded(3))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two, other = draw_jitter(8, 0.1, seeded(3)), draw_jitter(8, 0.1, seeded(4))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one.factors, other.factors)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(one.factors.unique(dim=0)) == 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_equals_cpu(kind):
    images, jitter = make_images(kind, len(ORDERS), 32, 32), all_orders(0.3)
    close(color_jitter(images.cuda(), jitter).cpu(), color_jitter(images, jitter))
