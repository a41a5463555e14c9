"""GradCAM: its maps are gradient times activation, summed; their sign is that of the anomaly score."""

import numpy as np
import pytest
import torch

from cplib import gde, model
from cplib.localize import gradcam

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def net():
    return model.build(3, 0).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()


@pytest.fixture(scope="module", params=["ledoit_wolf", "ridge"])
def density(request):
    return gde.density(request.param).fit(np.random.default_rng(0).random((20, 512)))


def test_maps_are_the_gradient_of_the_score_times_the_activation(net, images, density):
    """By hand: the weight of a channel is the mean over places of the gradient there."""
    kept, inverse = [], torch.from_numpy(density.precision)
    with net.encoder.layer4[-1].register_forward_hook(lambda module, x, y: kept.append(y)):
        z = torch.nn.functional.normalize(net.embed(images / 255).double()) - torch.from_numpy(density.mean)
    values = torch.einsum("ni,ij,nj->n", z, inverse, z)
    np.testing.assert_allclose(values.detach(), density.score_samples(net.embed(images / 255).detach()), rtol=1e-5)
    (gradient,) = torch.autograd.grad(values.sum(), kept)
    expected = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1).detach()
    maps = gradcam.maps(net, images, density, batch_size=2)
    assert maps.shape == (3, 2, 2) and maps.dtype == np.float32
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert np.abs(maps.sum((1, 2))).max() < 1e-3 * np.abs(maps).max(), "length of an embedding changes no score"
