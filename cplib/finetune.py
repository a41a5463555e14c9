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


def fit(
    net: TransferClassifier,
    images: Tensor,
    augment_config: AugmentConfig,
    config: TrainConfig,
    seed: int,
    backbone: bool,
    **files: Any,
) -> list[dict[str, float]]:
    """One phase: the head learns alone, or all layers do but BatchNorm of the backbone.

    Args:
        images: (n, 3, size, size) uint8, normal images.
        backbone: whether this is the second phase, in which the backbone learns too.
        files: checkpoint and fingerprint, as `train.fit` takes them.

    Returns:
        The history of `train.fit`.
    """
    net.learn(backbone=backbone)
    stream = seed + _SECOND_PHASE * backbone
    return train.fit(images, TASK, augment_config, config, stream, net=net, **files)[1]


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
