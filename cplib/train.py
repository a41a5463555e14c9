"""Stage 1: learn the representation by the proxy task (sections 2.1 and A.1), and embed images with it."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

from cplib import augment, model
from cplib.config import AugmentConfig, TrainConfig

log = logging.getLogger(__name__)

HISTORY_ROWS = 100  # at most so many rows of loss and accuracy per training


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which update and why."""


def default_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute on so many threads of the CPU, 0 for as many as before.

    How sums are split over threads decides their last bits, and training amplifies these: with another number
    of threads the same seed ends elsewhere.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def learning_rate(update: int, config: TrainConfig) -> float:
    """One cosine cycle from `config.learning_rate` to 0 over all updates, without restarts."""
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * update / config.updates))


def update_generator(seed: int, update: int) -> Generator:
    """CPU generator of one update. Each update has its own, so that a resumed run draws the same.

    Raises:
        ValueError: a seed or number of updates too large to be told apart.
    """
    # The generator uses the lowest 32 bits of what it is given, so seed and update must share them
    if not (0 <= seed < 2**12 and 0 <= update < 2**20):
        raise ValueError(f"seed {seed} must be below 4096 and update {update} below 1048576")
    return Generator().manual_seed((seed << 20) + update)


def fit(
    images: Tensor,
    task: tuple[str, ...],
    augment_config: AugmentConfig,
    config: TrainConfig,
    seed: int,
    checkpoint: Path | None = None,
    fingerprint: str = "",
    checkpoint_seconds: float = 30.0,
    crop: int = 0,
    net: nn.Module | None = None,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train the classifier of a proxy task on normal images, from scratch, to the last update.

    Args:
        images: (n, 3, size, size) uint8, on the device to train on; n may be below `config.sources`.
        task: views to tell apart, one of `augment.TASKS`.
        seed: of the initial weights, the choice of source images and all augmentations.
        checkpoint: file to save the state to about every `checkpoint_seconds` and to resume from.
            The result does not depend on interruptions. It is left in place at the end.
        fingerprint: names what is trained; a checkpoint of another fingerprint is refused.
        crop: if not 0, train on random crops of so many pixels squared (the patch model, section 2.4).
        config: also says on how many threads of a CPU; the result depends on it.
        net: train this one, with `embed` and `forward` like `model.ProxyClassifier`, instead of a new one:
            those of its parameters that require a gradient.

    Returns:
        The model, in evaluation mode, and rows of update, learning_rate, loss and accuracy, the
        latter two means over the updates since the row before.

    Raises:
        TrainingError: the loss is not finite, or the checkpoint belongs to something else.
    """
    device = images.device
    if net is None:
        net = model.build(len(task), seed, config.head_layers, config.normalize, config.stem)
    net = net.to(device)
    if config.channels_last:
        net = net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        [p for p in net.parameters() if p.requires_grad],
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    start, history, sums = 0, [], torch.zeros(2, device=device)
    if checkpoint is not None and checkpoint.exists():
        state = _load_checkpoint(checkpoint, fingerprint, device)
        net.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, history, sums = state["update"], state["history"], state["sums"].to(device)
        log.info("resumed %s at update %d of %d", checkpoint, start, config.updates)

    step = torch.compile(net) if config.compile else net
    net.train()
    every = max(1, math.ceil(config.updates / HISTORY_ROWS))
    saved = time.monotonic()
    bar = tqdm(range(start, config.updates), "training", initial=start, total=config.updates, disable=None)
    with threads(config.threads):
        for update in bar:
            generator = update_generator(seed, update)
            chosen = _choose(len(images), config.sources, generator).to(device)
            batch, labels = augment.make_batch(images[chosen], task, augment_config, generator, crop)
            if config.channels_last:
                batch = batch.contiguous(memory_format=torch.channels_last)
            rate = learning_rate(update, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with autocast(device, config.precision):
                logits = step(batch)
                loss = nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            accuracy = (logits.detach().argmax(1) == labels).float().mean()
            sums += torch.stack([loss.detach().float(), accuracy])

            done = update + 1
            if done % every == 0 or done == config.updates:
                count = done - (history[-1]["update"] if history else 0)
                mean_loss, mean_accuracy = (sums / count).tolist()
                if not math.isfinite(mean_loss):
                    raise TrainingError(
                        f"the loss is not finite between updates {done - count} and {done} (seed {seed}, "
                        f"learning rate {rate:.3g}); lower train.learning_rate or set "
                        "train.precision: float32"
                    )
                history.append(
                    {
                        "update": done,
                        "learning_rate": rate,
                        "loss": round(mean_loss, 5),
                        "accuracy": round(mean_accuracy, 5),
                    }
                )
                bar.set_postfix(loss=f"{mean_loss:.3f}", accuracy=f"{mean_accuracy:.3f}")
                sums.zero_()
            if checkpoint is not None and time.monotonic() - saved > checkpoint_seconds:
                state = {
                    "fingerprint": fingerprint,
                    "update": done,
                    "model": net.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "history": history,
                    "sums": sums,
                }
                _save_checkpoint(checkpoint, state)
                saved = time.monotonic()
    return net.eval(), history


@torch.inference_mode()
def embed(net: nn.Module, images: Tensor, config: TrainConfig, batch_size: int = 64) -> Tensor:
    """Embeddings of images as they are, without augmentation.

    Args:
        net: model in evaluation mode, on the device of the images.
        images: (n, 3, size, size) uint8.

    Returns:
        (n, 512) float32, on the CPU.
    """
    parts = []
    with threads(config.threads), autocast(images.device, config.precision):
        for batch in images.split(batch_size):
            x = batch.float().div_(255)
            if config.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            parts.append(net.embed(x).float().cpu())
    return torch.cat(parts) if parts else torch.empty(0, 512)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Context of the given precision: "float32", "bfloat16", or "auto": bfloat16 where the device
    computes it natively (measured faster there), else float32."""
    if precision == "auto":
        precision = "bfloat16" if _native_bfloat16(device) else "float32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    # AMX tiles or AVX-512 BF16; without either, bfloat16 on a CPU is emulated and no faster
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def _choose(n: int, sources: int, generator: Generator) -> Tensor:
    """Indices of the source images of one update, without repetition as far as there are images."""
    rounds = [torch.randperm(n, generator=generator) for _ in range(math.ceil(sources / n))]
    return torch.cat(rounds)[:sources]


def _save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def _load_checkpoint(path: Path, fingerprint: str, device: torch.device) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises many kinds for a damaged file
        raise TrainingError(f"{path}: damaged checkpoint ({error}); delete it to start anew") from None
    if not isinstance(state, dict) or state.get("fingerprint") != fingerprint:
        raise TrainingError(
            f"{path}: checkpoint of another configuration; delete it to start anew, or restore the "
            "parameters and sources that it was made with"
        )
    return state
