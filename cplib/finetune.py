"""Fine-tuning a pretrained backbone by 3-way CutPaste in two phases (section A.4), and its embeddings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cplib import train
from cplib.backbone import TASK, TransferClassifier
from cplib.config import AugmentConfig, Config, TrainConfig

# The second phase draws from another stream of updates than the first, which shares its seed
_SECOND_PHASE = 2**11


def phases(config: Config, updates: int) -> tuple[TrainConfig, TrainConfig]:
    """Parameters of both phases: head alone, then all layers. Each is a cosine cycle of its own (the paper
    does not say); what section A.4 does not change is that of stage 1."""
    transfer = config.transfer
    common = replace(
        config.train,
        sources=transfer.sources,
        precision=transfer.precision,
        normalize=TrainConfig.normalize,  # without effect here: the weights bring their own
        stem=TrainConfig.stem,
    )
    return (
        replace(common, updates=transfer.head_updates, learning_rate=transfer.head_learning_rate),
        replace(common, updates=updates, learning_rate=transfer.learning_rate),
    )


def fit_head(
    net: TransferClassifier,
    images: Tensor,
    augment_config: AugmentConfig,
    config: TrainConfig,
    seed: int,
    **files: Any,
) -> list[dict[str, float]]:
    """First phase: the head learns, the backbone stays as it is; returns the history of `train.fit`.

    Args:
        images: (n, 3, size, size) uint8, normal images.
        files: checkpoint and fingerprint, as `train.fit` takes them.
    """
    net.learn(backbone=False)
    return train.fit(images, TASK, augment_config, config, seed, net=net, **files)[1]


def fit_all(
    net: TransferClassifier,
    images: Tensor,
    augment_config: AugmentConfig,
    config: TrainConfig,
    seed: int,
    **files: Any,
) -> list[dict[str, float]]:
    """Second phase: all layers learn but BatchNorm of the backbone. Arguments as those of `fit_head`."""
    net.learn(backbone=True)
    return train.fit(images, TASK, augment_config, config, seed + _SECOND_PHASE, net=net, **files)[1]


@torch.inference_mode()
def embed_levels(
    net: TransferClassifier, images: Tensor, config: TrainConfig, batch_size: int = 32
) -> dict[str, Tensor]:
    """All levels of images as they are, without augmentation, in one pass.

    Always in float32: it costs seconds, and the density looks at small differences.

    Args:
        net: in evaluation mode, on the device of the images.
        images: (n, 3, size, size) uint8.

    Returns:
        By level, (n, channels) float32 on the CPU, n may be 0.
    """
    parts = []
    for batch in images.split(batch_size):
        x = batch.float().div_(255)
        if config.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        parts.append({name: value.cpu() for name, value in net.levels(x).items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
