"""The network of stage 1: ResNet-18 encoder and projection head (section A.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ProxyClassifier(nn.Module):
    """Classifier of the proxy task; its encoder gives the embedding that the density sees.

    Args:
        n_classes: classes of the proxy task.
        head_layers: hidden layers of the projection head, each linear without bias, batch
            normalisation and ReLU, as wide as the embedding; the last linear layer comes on top.
            The paper does not describe its head; this is that of its authors' earlier public code.
        normalize: "imagenet" to shift and scale the input by ImageNet's mean and deviation, or "none".
    """

    def __init__(self, n_classes: int, head_layers: int = 1, normalize: str = "imagenet") -> None:
        super().__init__()
        imagenet = normalize == "imagenet"
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if imagenet else ((0.0,) * 3, (1.0,) * 3)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.encoder = resnet18(weights=None)
        width = self.encoder.fc.in_features
        self.encoder.fc = nn.Identity()
        hidden = [
            layer
            for _ in range(head_layers)
            for layer in (nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU())
        ]
        self.head = nn.Sequential(*hidden, nn.Linear(width, n_classes))

    def embed(self, images: Tensor) -> Tensor:
        """Average-pooled features (n, 512) of images (n, 3, height, width), float in [0, 1]."""
        return self.encoder((images - self.mean) / self.std)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, n_classes) of images (n, 3, height, width), float in [0, 1]."""
        return self.head(self.embed(images))


def build(n_classes: int, seed: int, head_layers: int = 1, normalize: str = "imagenet") -> nn.Module:
    """A `ProxyClassifier` with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed GPUs too
        return ProxyClassifier(n_classes, head_layers, normalize)
