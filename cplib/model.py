"""The network of stage 1: ResNet-18 encoder and projection head (section A.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# First layers by name, and how much they shrink the image: 7x7 convolution and max-pooling, as for ImageNet,
# or a 3x3 convolution alone, as the authors' earlier public code has it for images of 32 and 64 pixels
STEMS = {"imagenet": 4, "3x3_stride1": 1, "3x3_stride2": 2}


class ProxyClassifier(nn.Module):
    """Classifier of the proxy task; its encoder gives the embedding that the density sees.

    Args:
        n_classes: classes of the proxy task.
        head_layers: hidden layers of the projection head, each linear without bias, batch
            normalisation and ReLU, as wide as the embedding; the last linear layer comes on top.
            The paper does not describe its head; this is that of its authors' earlier public code.
        normalize: "imagenet" to shift and scale the input by ImageNet's mean and deviation, or "none".
        stem: one of `STEMS`; small images and crops need one that shrinks them less.
    """

    def __init__(
        self, n_classes: int, head_layers: int = 1, normalize: str = "imagenet", stem: str = "imagenet"
    ) -> None:
        super().__init__()
        imagenet = normalize == "imagenet"
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if imagenet else ((0.0,) * 3, (1.0,) * 3)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.encoder = resnet18(weights=None)
        if stem != "imagenet":
            self.encoder.conv1 = nn.Conv2d(3, 64, 3, stride=STEMS[stem], padding=1, bias=False)
            nn.init.kaiming_normal_(self.encoder.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.encoder.maxpool = nn.Identity()
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


def build(
    n_classes: int, seed: int, head_layers: int = 1, normalize: str = "imagenet", stem: str = "imagenet"
) -> nn.Module:
    """A `ProxyClassifier` with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed GPUs too
        return ProxyClassifier(n_classes, head_layers, normalize, stem)
