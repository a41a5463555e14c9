"""GradCAM: its maps are gradient times activation, summed; their sign is that of the anomaly score."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cplib import gde, gradcam, model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def net():
    return model.build(3, 0).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()


@pytest.fixture(scope="module", params=["ledoit_wolf", "ridge"])
def density(request):
    embeddings = np.random.default_rng(0).random((20, 512))
    return gde.density(request.param).fit(embeddings)


def test_differentiable_score_is_that_of_the_density(net, images, density):
    score = gradcam.density_score(density, torch.device("cpu"))
    with torch.no_grad():
        found = score(net, images / 255)
        expected = density.score_samples(net.embed(images / 255).numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def activations(net, images):
    """Output of the last convolutional block."""
    kept = []
    with net.encoder.layer4[-1].register_forward_hook(lambda module, x, y: kept.append(y.detach())):
        net.embed(images / 255)
    return kept[0]


def test_map_is_the_change_of_the_score_with_each_place(net, images):
    """The embedding is the mean over places of the activations A, so what GradCAM weights a place with is
    the derivative of the score as the embedding moves along A there: checked by finite differences."""
    density = gde.density("ledoit_wolf").fit(np.random.default_rng(0).random((20, 512)))
    maps = gradcam.maps(net, images, gradcam.density_score(density, images.device), batch_size=2)
    a = activations(net, images).double()
    assert maps.shape == (3, 2, 2) and maps.dtype == np.float32
    embedding = a.mean((2, 3))
    for i in range(2):
        for j in range(2):
            step = 1e-5 * a[:, :, i, j] / 4  # 4 places share the mean
            ahead, behind = (density.score_samples((embedding + s * step).numpy()) for s in (1, -1))
            np.testing.assert_allclose(maps[:, i, j], (ahead - behind) / 2e-5, rtol=1e-2, atol=1e-3)


def test_density_maps_sum_to_zero(net, images, density):
    score = gradcam.density_score(density, images.device)
    maps = gradcam.maps(net, images, score)
    assert np.abs(maps.sum((1, 2))).max() < 1e-3 * np.abs(maps).max()


def test_a_place_that_looks_like_another_direction_is_high():
    """A net whose last block passes two colours on: normal images are red, a green corner is anomalous."""

    class Toy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.Module()
            self.encoder.layer4 = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1, bias=False))
            self.encoder.layer4[0].weight.data = torch.eye(3).view(3, 3, 1, 1)

        def embed(self, x):
            return self.encoder.layer4(x).mean((2, 3))

    normal = np.random.default_rng(0).normal([1, 0.1, 0.1], 0.02, (50, 3))
    density = gde.density("ridge").fit(normal)
    image = torch.tensor([250, 25, 25]).byte().view(1, 3, 1, 1).repeat(1, 1, 4, 4)
    image[:, :, 3, 0] = torch.tensor([25, 250, 25]).byte().view(3)[None]
    (cam,) = gradcam.maps(Toy(), image, gradcam.density_score(density, image.device))
    assert cam.argmax() == 4 * 3 and cam[3, 0] > 0 and (np.delete(cam.ravel(), 12) < 0).all()


def test_logit_target_is_the_log_odds_against_normal(net, images):
    with torch.no_grad():
        odds = gradcam.logit_score(net, images / 255).exp()
        share = net(images / 255).softmax(1)
    torch.testing.assert_close(odds, (1 - share[:, 0]) / share[:, 0])
    assert np.isfinite(gradcam.maps(net, images, gradcam.logit_score)).all()


def test_density_without_gradient_is_named():
    density = gde.density("kde").fit(np.random.default_rng(0).random((5, 4)))
    with pytest.raises(gde.DensityError, match="ledoit_wolf or ridge"):
        gradcam.density_score(density, torch.device("cpu"))


def test_no_images(net):
    images = torch.zeros(0, 3, 64, 64, dtype=torch.uint8)
    assert len(gradcam.maps(net, images, gradcam.logit_score)) == 0
