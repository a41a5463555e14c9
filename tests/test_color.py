"""Colour jitter: torchvision's operations in each sample's own order, whatever else is in the batch."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from cplib.augment import color
from cplib.augment.color import Jitter, color_jitter_, draw_jitter

ADJUST = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
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


def equals_torchvision(out: Tensor, images: Tensor, jitter: Jitter) -> bool:
    """Whether torchvision, image by image, gives the same from the same draws."""
    expected = []
    for image, factors, order in zip(images, jitter.factors.tolist(), jitter.order.tolist(), strict=True):
        for operation in order:
            image = ADJUST[operation](image, factors[operation])
        expected.append(image)
    return torch.allclose(out, torch.stack(expected), atol=1e-5, rtol=0)


def all_orders(strength: float) -> Jitter:
    return draw_jitter(len(ORDERS), strength, seeded(0))._replace(order=torch.tensor(ORDERS))


@pytest.mark.parametrize("whole", [False, True], ids=["image by image", "whole batches, as on a GPU"])
@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
    strength=st.sampled_from([0.0, 0.02, 0.1, 0.5]),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_equals_torchvision_in_range(whole, kind, seed, strength, shape):
    images = make_images(kind, 5, *shape, seed)
    jitter = draw_jitter(5, strength, seeded(seed))
    with pytest.MonkeyPatch.context() as patch:
        if whole:
            patch.setattr(color, "TOGETHER", {})
        out = color_jitter_(images.clone(), jitter)
    assert equals_torchvision(out, images, jitter) and out.min() >= 0 and out.max() <= 1
    assert strength or torch.equal(out, images)


@pytest.mark.parametrize("kind", ["noise", "corners"])
def test_equals_torchvision_in_each_of_the_24_orders(kind):
    images, jitter = make_images(kind, len(ORDERS)), all_orders(0.5)
    assert equals_torchvision(color_jitter_(images.clone(), jitter), images, jitter)


def test_a_sample_depends_neither_on_its_batch_nor_on_the_memory_layout():
    images, jitter = make_images("noise", len(ORDERS), 16, 16), all_orders(0.3)
    jitter.factors[5] = torch.tensor([1.0, 1, 1, 0])  # one that changes nothing among those that do
    batch = color_jitter_(images.clone(), jitter)
    assert torch.equal(batch[5], images[5])
    assert torch.equal(color_jitter_(images.clone(memory_format=torch.channels_last), jitter), batch)
    parts = [color_jitter_(images[k : k + 1], Jitter(*(field[k : k + 1] for field in jitter))) for k in range(24)]
    assert torch.equal(torch.cat(parts), batch)


def test_factors_are_uniform_in_their_range_independent_and_of_every_order():
    jitter = draw_jitter(24_000, 0.1, seeded(0))
    centered = (jitter.factors.double() - torch.tensor([1, 1, 1, 0])) / 0.1
    for column in centered.T:
        assert stats.kstest(column.numpy(), stats.uniform(-1, 2).cdf).pvalue > 0.001
    correlation = torch.corrcoef(torch.cat([centered[1:], centered[:-1]], 1).T) - torch.eye(8)
    assert correlation.abs().max() < 0.05  # between operations and from sample to sample
    codes, counts = (jitter.order @ torch.tensor([64, 16, 4, 1])).unique(return_counts=True)
    assert len(codes) == 24 and stats.chisquare(counts.numpy()).pvalue > 0.001
