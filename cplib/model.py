"""The network of stage 1: an encoder and a projection head (section A.1), ResNet-18 or pretrained (section 4.3)."""

import logging
import os
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from cplib.data import find

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POOL = "pool"  # the average-pooled feature of the last layer
# First layers, and how much they shrink the image: ImageNet's, or a 3x3 convolution as in the authors' earlier code
STEMS = {"imagenet": 4, "3x3_stride1": 1, "3x3_stride2": 2}


class BackboneError(RuntimeError):
    """A pretrained encoder cannot be built or its weights do not fit. The message says why."""


class WeightsMissingError(BackboneError):
    """The weights are not on this machine. The message says how to get them."""


class _Conv3x3(nn.Conv2d):
    """A 3 x 3 convolution, faster on a CPU where it gives at most 2 x 2 places: usual ones work on padding there."""

    def forward(self, x: Tensor) -> Tensor:
        n, channels, *size = x.shape
        stride, weight = self.stride[0], self.weight
        rows, columns = ((side - 1) // stride + 1 for side in size)
        if x.device.type != "cpu" or max(rows, columns) > 2 or size[0] != size[1]:
            return super().forward(x)
        if rows == 1:  # all that the kernel sees beyond its middle and what follows is padding
            seen = weight[:, :, 1 : 1 + size[0], 1 : 1 + size[0]]
            return nn.functional.linear(x.flatten(1), seen.flatten(1))[:, :, None, None]
        padded = nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        windows = padded.unfold(1, 3, stride).unfold(2, 3, stride).permute(0, 1, 2, 4, 5, 3)
        y = nn.functional.linear(windows.reshape(4 * n, 9 * channels), weight.permute(0, 2, 3, 1).flatten(1))
        return y.view(n, 2, 2, len(weight)).permute(0, 3, 1, 2)


class ProxyClassifier(nn.Module):
    """Classifier of the proxy task. Its encoder gives the embedding that the density sees.

    The paper does not describe the head; this is that of its authors' earlier code: `head_layers` hidden layers (linear
    without bias, BatchNorm, ReLU) as wide as the embedding, and a linear one. `norm`: mean and std of the input.
    `frozen` keeps the statistics of a pretrained encoder's BatchNorm, as section A.4 does.
    """

    def __init__(self, encoder: nn.Module, n_classes: int, head_layers: int, norm: tuple, frozen: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(norm[0]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(norm[1]).view(1, 3, 1, 1))
        self.encoder, self.frozen_norm = encoder, frozen
        width, hidden = encoder.num_features, []
        for _ in range(head_layers):
            hidden += [nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        self.head = nn.Sequential(*hidden, nn.Linear(width, n_classes))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen_norm:
            self.encoder.eval()
        return self

    def learn(self, encoder: bool) -> None:
        """Choose what training changes: the head alone, or all layers but frozen BatchNorm."""
        self.requires_grad_(True)
        self.encoder.requires_grad_(encoder)
        for layer in self.encoder.modules() if self.frozen_norm else ():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.requires_grad_(False)

    def maps(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Feature maps (n, channels, rows, columns) of images (n, 3, height, width), float in [0, 1], one level after
        the other: of an EfficientNet level1 (stem), level2, ... (stages), of a ResNet-18 level1 to 3; then `pool`."""
        x, net = (images - self.mean) / self.std, self.encoder
        if hasattr(net, "conv_stem"):
            x, stages, last = net.bn1(net.conv_stem(x)), net.blocks, lambda x: net.bn2(net.conv_head(x))
            yield "level1", x
        else:
            x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
            stages, last = (net.layer1, net.layer2, net.layer3), net.layer4
        for number, stage in enumerate(stages, 2 if hasattr(net, "conv_stem") else 1):
            x = stage(x)
            yield f"level{number}", x
        yield POOL, last(x)

    def levels(self, images: Tensor) -> dict[str, Tensor]:
        """Averages (n, channels) of `maps` by level, as `embed` gives; of a ResNet-18 `pool` alone."""
        if not hasattr(self.encoder, "conv_stem"):
            return {POOL: self.encoder((images - self.mean) / self.std)}
        return {name: x.float().mean((2, 3)) for name, x in self.maps(images)}

    def embed(self, images: Tensor) -> Tensor:
        """Pooled features (n, channels) of images (n, 3, height, width), float in [0, 1]."""
        return self.levels(images)[POOL]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, n_classes) of images (n, 3, height, width), float in [0, 1]."""
        return self.head(self.embed(images))


def build(
    n_classes: int, seed: int, head_layers: int = 1, normalize: str = "imagenet", stem: str = "imagenet"
) -> ProxyClassifier:
    """ResNet-18 and head with random weights of the seed; `normalize`: "imagenet" (its mean and std) or "none"."""
    norm = (IMAGENET_MEAN, IMAGENET_STD) if normalize == "imagenet" else ((0.0,) * 3, (1.0,) * 3)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed GPUs too
        encoder = resnet18(weights=None)
        if stem != "imagenet":
            encoder.conv1 = nn.Conv2d(3, 64, 3, stride=STEMS[stem], padding=1, bias=False)
            nn.init.kaiming_normal_(encoder.conv1.weight, mode="fan_out", nonlinearity="relu")
            encoder.maxpool = nn.Identity()
        for layer in encoder.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                layer.__class__ = _Conv3x3
        encoder.num_features, encoder.fc = encoder.fc.in_features, nn.Identity()
        return ProxyClassifier(encoder, n_classes, head_layers, norm, frozen=False)


def build_pretrained(backbone: str, weights: str, n_classes: int, seed: int, head_layers: int = 1) -> ProxyClassifier:
    """EfficientNet of timm and a head of the seed; `weights`: as for `weights_file`, "none": random."""
    path = weights_file(backbone, weights)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # random weights are the same for all seeds, as real ones are
        net = _create(backbone)
        if path is not None:
            _load(net, path, backbone)
        torch.default_generator.manual_seed(seed)
        norm = net.pretrained_cfg["mean"], net.pretrained_cfg["std"]
        return ProxyClassifier(net, n_classes, head_layers, norm, frozen=True)


def weights_file(backbone: str, weights: str) -> Path | None:
    """File of pretrained weights; None for "none". It is `weights`, searched as by `data.find`, or for "pretrained"
    that of the backbone in the folder weights/ or $CUTPASTE_WEIGHTS, or what timm downloads."""
    if weights == "none":
        return None
    places = [Path("weights"), Path(os.environ.get("CUTPASTE_WEIGHTS") or "weights").expanduser()]
    stored = [f for place in places for f in (place, *sorted(place.glob(f"{backbone}*.safetensors"))) if f.is_file()]
    path = find(weights) if weights != "pretrained" else stored[0] if stored else _download(backbone)
    if not isinstance(path, Path) or not path.is_file():
        get = f"put {backbone}.safetensors of timm into weights/ or $CUTPASTE_WEIGHTS"
        raise WeightsMissingError(f"weights missing: {path}; {get}")
    return path


@cache
def _download(backbone: str) -> Path | str:
    """timm's weights from the hub, in its cache; or why there are none, which is found out once."""
    import huggingface_hub  # here as timm, for only pretrained encoders need them
    import timm

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells each of five attempts
    try:
        repository = timm.get_pretrained_cfg(backbone).hf_hub_id
        return Path(huggingface_hub.hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # noqa: BLE001 - the hub raises many kinds where there is no network
        return f"no download of {backbone} ({(str(error).strip() or type(error).__name__).splitlines()[0]})"


def is_folded(path: Path | None) -> bool:
    """Whether the BatchNorm of a file's weights is folded into its convolutions: it divides by nothing."""
    import safetensors.torch  # here, for only files of weights need it

    found = safetensors.torch.load_file(path) if path else {}
    variances = [v for k, v in found.items() if k.endswith("running_var")]
    return bool(variances) and all((v == v.flatten()[0]).all() for v in variances)


def _create(name: str) -> nn.Module:
    """EfficientNet of timm without classifier, with random weights. A BackboneError says why there is none."""
    import timm

    if not timm.is_model(name):
        raise BackboneError(f"transfer.backbone {name!r}: timm has no such model")
    net = timm.create_model(name, num_classes=0)
    if not all(hasattr(net, part) for part in ("conv_stem", "bn1", "blocks", "conv_head", "bn2")):
        raise BackboneError(f"transfer.backbone {name!r}: not an EfficientNet, whose stages are the levels")
    return net


def _load(net: nn.Module, path: Path, name: str) -> None:
    """Load a file into the encoder. A classifier in it is passed over, and it may lack what BatchNorm counts."""
    import safetensors.torch

    counts = {k: v for k, v in net.state_dict().items() if k.endswith("num_batches_tracked")}
    try:
        found = {k: v for k, v in safetensors.torch.load_file(path).items() if not k.startswith("classifier.")}
        net.load_state_dict(counts | found)
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        raise BackboneError(f"{path}: no weights of {name} ({textwrap.shorten(str(error), 500)})") from None
