"""Pretrained EfficientNets with a head for the proxy task: weights and levels (section 4.3).

timm is imported only when a backbone is built.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from cplib import augment, record
from cplib.config import TransferConfig

TASK = augment.TASKS["cutpaste_3way"]
POOL = "pool"


class BackboneError(RuntimeError):
    """A backbone cannot be built or its weights do not fit; the message says why."""


class WeightsMissingError(BackboneError):
    """The weights are not on this machine; the message says how to get them."""


class TransferClassifier(nn.Module):
    """Classifier of the proxy task on a pretrained EfficientNet, for `train.fit`.

    The backbone stays in evaluation mode, so that BatchNorm keeps its statistics (section A.4). The head is
    that of `model.ProxyClassifier`, as wide as the embedding; its own BatchNorm is new and does learn.

    Args:
        backbone: of timm, without classifier.
        mean, std: of the input that the weights were trained on, by channel.
        n_classes: classes of the proxy task.
        head_layers: hidden layers of the head.
    """

    def __init__(
        self,
        backbone: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        n_classes: int,
        head_layers: int = 1,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.backbone = backbone
        width = backbone.num_features
        hidden = [
            layer
            for _ in range(head_layers)
            for layer in (nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU())
        ]
        self.head = nn.Sequential(*hidden, nn.Linear(width, n_classes))

    def train(self, mode: bool = True) -> TransferClassifier:
        super().train(mode)
        self.backbone.eval()
        return self

    def learn(self, backbone: bool) -> None:
        """Choose what training changes: the head, and all layers of the backbone but BatchNorm if wanted."""
        self.requires_grad_(True)
        self.backbone.requires_grad_(backbone)
        for layer in self.backbone.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.requires_grad_(False)

    def levels(self, images: Tensor) -> dict[str, Tensor]:
        """Spatial means of all levels: level1 (stem), level2, ... (stages) and pool (last convolution).

        Args:
            images: (n, 3, height, width), float in [0, 1].

        Returns:
            By level, (n, channels) float32; for EfficientNet-B4 level7 has 272 channels, pool 1792.
        """
        net = self.backbone
        x = net.bn1(net.conv_stem((images - self.mean) / self.std))
        found = {"level1": _spatial_mean(x)}
        for number, stage in enumerate(net.blocks, 2):
            x = stage(x)
            found[f"level{number}"] = _spatial_mean(x)
        found[POOL] = _spatial_mean(net.bn2(net.conv_head(x)))
        return found

    def embed(self, images: Tensor) -> Tensor:
        """Pooled features (n, channels) of images (n, 3, height, width), float in [0, 1]."""
        return self.levels(images)[POOL]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, n_classes) of images (n, 3, height, width), float in [0, 1]."""
        return self.head(self.embed(images))


def _spatial_mean(x: Tensor) -> Tensor:
    return x.float().mean((2, 3))


def weights_file(config: TransferConfig) -> Path | None:
    """File that `transfer.weights` names; None for "pretrained" (of timm) and "none" (random).

    A relative path is taken below the repository, else by its name in the folder that the environment
    variable CUTPASTE_WEIGHTS names; there also a longer name will do (<stem>_*.safetensors), if only one.

    Raises:
        WeightsMissingError: no such file.
    """
    if config.weights in ("pretrained", "none"):
        return None
    path = Path(config.weights).expanduser()
    if path.is_file():
        return path
    shared = os.environ.get("CUTPASTE_WEIGHTS")
    if shared:
        folder = Path(shared).expanduser()
        if (folder / path.name).is_file():
            return folder / path.name
        longer = list(folder.glob(f"{path.stem}_*{path.suffix}"))
        if len(longer) == 1:
            return longer[0]
    looked = f"{path} and {shared}" if shared else str(path)
    raise WeightsMissingError(
        f"weights missing: no file {path.name}, looked in {looked}; get it by python -m cplib.transfer "
        f"--fetch, or put weights of timm's {config.backbone} there or into the folder that CUTPASTE_WEIGHTS "
        "names"
    )


def build(config: TransferConfig, seed: int, head_layers: int = 1) -> TransferClassifier:
    """The backbone with its weights, and a head with random weights that depend on the seed alone.

    Raises:
        BackboneError: timm is not there or does not know the backbone, or the file does not fit.
        WeightsMissingError: the weights are not on this machine and cannot be downloaded.
    """
    path = weights_file(config)  # before timm is imported: a missing file is told at once
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # random weights are the same for all seeds, as real ones are
        net = _create(config.backbone, config.weights == "pretrained")
        if path is not None:
            _load(net, path, config.backbone)
        settings = net.pretrained_cfg
        torch.default_generator.manual_seed(seed)
        return TransferClassifier(net, settings["mean"], settings["std"], len(TASK), head_layers)


def _create(name: str, pretrained: bool) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise BackboneError(f"timm cannot be imported ({error}): pip install timm") from None
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('.')[0][:16]}*")[:5])
        raise BackboneError(f"transfer.backbone {name!r}: timm has no such model; near it: {near or 'none'}")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells each of its retries twice
    try:
        net = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:  # noqa: BLE001 - the hub raises many kinds where there is no network
        if not pretrained:
            raise BackboneError(f"transfer.backbone {name!r}: {error}") from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsMissingError(
            f"weights missing: timm cannot download those of {name} ({reason}); run python -m cplib.transfer "
            "--fetch on a machine with network, or set transfer.weights to a .safetensors file of them"
        ) from None
    if not all(hasattr(net, part) for part in ("conv_stem", "bn1", "blocks", "conv_head", "bn2")):
        raise BackboneError(
            f"transfer.backbone {name!r}: not an EfficientNet, on whose stages levels are counted"
        )
    return net


def _load(net: nn.Module, path: Path, name: str) -> None:
    """Load a file into the backbone; a classifier in it is passed over."""
    try:
        found = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise BackboneError(f"{path}: not a readable .safetensors file ({error})") from None
    found = {k: v for k, v in found.items() if not k.startswith("classifier.")}
    own = net.state_dict()
    counters = {k for k in own if k.endswith("num_batches_tracked")}  # no part of the function
    faults = {
        "missing": sorted(own.keys() - found.keys() - counters),
        "unknown": sorted(found.keys() - own.keys()),
        "of another shape": [
            f"{k} {tuple(v.shape)} instead of {tuple(own[k].shape)}"
            for k, v in found.items()
            if k in own and v.shape != own[k].shape
        ],
    }
    told = [
        f"{len(names)} {fault}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for fault, names in faults.items()
        if names
    ]
    if told:
        raise BackboneError(f"{path}: does not fit {name}; tensors {'; '.join(told)}")
    net.load_state_dict(found, strict=False)


def fetch(config: TransferConfig) -> Path | None:
    """Download the weights by timm: to the file of `transfer.weights`, or to timm's own cache.

    Returns:
        The file, or None for timm's cache.
    """
    if config.weights == "none":
        raise BackboneError("transfer.weights is none: there is nothing to fetch")
    if config.weights == "pretrained":
        _create(config.backbone, pretrained=True)
        return None
    path = Path(config.weights).expanduser()
    if not path.exists():
        state = _create(config.backbone, pretrained=True).state_dict()
        path.parent.mkdir(parents=True, exist_ok=True)
        record.replace_bytes(path, safetensors.torch.save({k: v.contiguous() for k, v in state.items()}))
    return path


def digest(net: TransferClassifier) -> str:
    """SHA-256 of the backbone's weights, wherever they came from, and of its input normalisation."""
    sha = hashlib.sha256(json.dumps([net.mean.flatten().tolist(), net.std.flatten().tolist()]).encode())
    for name, value in sorted(net.backbone.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            sha.update(name.encode())
            sha.update(value.cpu().contiguous().numpy())
    return sha.hexdigest()
