"""Stage 1: learn the representation by the proxy task (sections 2.1 and A.1), and embed images with it."""

import logging
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from cplib.augment import views
from cplib.model import ProxyClassifier
from cplib.sections import AugmentConfig, TrainConfig

log = logging.getLogger(__name__)

tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a process that is killed would leave behind
HISTORY_ROWS = 50  # at most so many rows of loss and accuracy per training


class TrainingError(RuntimeError):
    """Training cannot go on. The message says at which update and why."""


def default_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute on so many threads of the CPU, 0 for as many as before. How sums are split over threads decides their
    last bits, and training amplifies these: with another number of threads the same seed ends elsewhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def learning_rate(update: int, config: TrainConfig) -> float:
    """One cosine cycle from `config.learning_rate` to 0 over all updates, without restarts; it begins with
    `config.warmup` updates of linear warm-up."""
    ramp = min(1.0, (update + 1) / (config.warmup + 1))
    return ramp * config.learning_rate * 0.5 * (1 + math.cos(math.pi * update / config.updates))


def update_generator(seed: int, update: int) -> Generator:
    """CPU generator of one update. Each has its own, so that a resumed run draws the same. It uses the lowest 32 bits
    of what it is given, which seed and update share; a ValueError tells of one too large."""
    if not (0 <= seed < 2**12 and 0 <= update < 2**20):
        raise ValueError(f"seed {seed} must be below 4096 and update {update} below 1048576")
    return Generator().manual_seed((seed << 20) + update)


def fit(
    net: ProxyClassifier,
    images: Tensor,
    task: tuple[str, ...],
    augment: AugmentConfig,
    config: TrainConfig,
    seed: int,
    crop: int = 0,
    checkpoint: Path | None = None,
    key: str = "",
    checkpoint_seconds: float = 30.0,
) -> list[dict[str, float]]:
    """Train the classifier of a proxy task on normal images to the last update.

    Args:
        net: changed, those of its parameters that require a gradient; left in evaluation mode.
        images: (n, 3, size, size) uint8, on the device to train on; n may be below `config.sources`.
        task, crop: as for `views.make_batch`.
        config: also says on how many threads of a CPU; the result depends on it.
        seed: of the choice of source images and of all augmentations.
        checkpoint: file to save the state to about every `checkpoint_seconds` and to resume from; it stays at the end.
            The result does not depend on interruptions. A checkpoint of another `key` is refused.

    Returns:
        Rows of update, learning_rate, loss and accuracy, the latter two means over the updates since the row before.
        A TrainingError tells of a loss that is not finite, and of a checkpoint that belongs to something else.
    """
    n, device, memory_format = len(images), images.device, layout(config)
    net.to(device, memory_format=memory_format)
    optimizer, mean = _optimizer(net, config), None
    parts = {"model": net, "optimizer": optimizer}  # of what a checkpoint keeps the state
    if config.average:
        parts["average"] = mean = AveragedModel(
            net, multi_avg_fn=get_ema_multi_avg_fn(config.average), use_buffers=True
        )
    start, history, sums = 0, [], torch.zeros(2, device=device)
    if checkpoint is not None and checkpoint.exists():
        state = _load_checkpoint(checkpoint, key, device)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        start, history, sums = state["update"], state["history"], state["sums"].to(device)
        log.info("resumed %s at update %d of %d", checkpoint, start, config.updates)

    step = torch.compile(net) if config.compile else net
    net.train()
    every = max(1, math.ceil(config.updates / HISTORY_ROWS))
    saved = time.monotonic()
    bar = tqdm(range(start, config.updates), "training", initial=start, total=config.updates, disable=None)
    is_bfloat16 = resolved_precision(device, config.precision) == "bfloat16"
    with threads(config.threads):
        for update in bar:
            generator = update_generator(seed, update)
            # without repetition as far as there are images
            order = [torch.randperm(n, generator=generator) for _ in range(math.ceil(config.sources / n))]
            chosen = torch.cat(order)[: config.sources].to(device)
            batch, labels = views.make_batch(images[chosen], task, augment, generator, crop, config.crop_place)
            batch = batch.contiguous(memory_format=memory_format)
            optimizer.param_groups[0]["lr"] = rate = learning_rate(update, config)
            with torch.autocast(device.type, torch.bfloat16, enabled=is_bfloat16):
                logits = step(batch)
                loss = nn.functional.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if mean is not None:
                mean.update_parameters(net)
            sums += torch.stack([loss.detach().float(), (logits.detach().argmax(1) == labels).float().mean()])

            done = update + 1
            if done % every == 0 or done == config.updates:
                count = done - (history[-1]["update"] if history else 0)
                row = dict(zip(("loss", "accuracy"), (sums / count).tolist(), strict=True))
                if not math.isfinite(row["loss"]):
                    raise TrainingError(
                        f"the loss is not finite between updates {done - count} and {done} (seed {seed}, learning "
                        f"rate {rate:.3g}); lower train.learning_rate or set train.precision: float32"
                    )
                bar.set_postfix({k: f"{v:.3f}" for k, v in row.items()})
                history.append({"update": done, "learning_rate": rate, **{k: round(v, 5) for k, v in row.items()}})
                sums.zero_()
            if checkpoint is not None and time.monotonic() - saved > checkpoint_seconds:
                state = {"key": key, "update": done, "history": history, "sums": sums}
                _save_checkpoint(checkpoint, state | {name: part.state_dict() for name, part in parts.items()})
                saved = time.monotonic()
    if mean is not None:
        net.load_state_dict(mean.module.state_dict())
    net.eval()
    return history


def _optimizer(net: ProxyClassifier, config: TrainConfig) -> torch.optim.Optimizer:
    learnt = [p for p in net.parameters() if p.requires_grad]
    own = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(learnt, **own)
    return torch.optim.SGD(learnt, momentum=config.momentum, **own)


@torch.inference_mode()
def embed(net: ProxyClassifier, images: Tensor, config: TrainConfig, batch_size: int = 64) -> dict[str, Tensor]:
    """By level, as `ProxyClassifier.levels` names them, embeddings (n, channels) float32 on the CPU, of images
    (n, 3, size, size) uint8 as they are; n may be 0. The net is in evaluation mode. The precision is always float32, as
    the density looks at small differences."""
    found = []
    with threads(config.threads), float32():
        for batch in images.split(batch_size):
            levels = net.levels(batch.float().div_(255).contiguous(memory_format=layout(config)))
            found.append({name: value.float().cpu() for name, value in levels.items()})
    return {name: torch.cat([levels[name] for levels in found]) for name in found[0]}


def float32() -> AbstractContextManager:
    """Context in which float32 is float32: a GPU would convolve in TF32, of 10 bits."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def made_on(device: torch.device, config: TrainConfig, is_trained: bool) -> str:
    """What results depend on beside parameters and images, such as "cpu-bfloat16-1": type of the device, precision of
    training (float32 without any), threads of a CPU."""
    precision = resolved_precision(device, config.precision) if is_trained else "float32"
    threads = config.threads or torch.get_num_threads()
    return "-".join([device.type, precision, *([str(threads)] if device.type == "cpu" else [])])


def resolved_precision(device: torch.device, precision: str) -> str:
    """ "float32" or "bfloat16": what "auto" means on a device. bfloat16 is faster where it is native."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device)[0] >= 8
    else:  # AMX tiles or AVX-512 BF16; without either, bfloat16 on a CPU is emulated and no faster
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        native = any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return "bfloat16" if native else "float32"


def layout(config: TrainConfig) -> torch.memory_format:
    """Memory layout of images and networks."""
    return torch.channels_last if config.channels_last else torch.contiguous_format


def _save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def _load_checkpoint(path: Path, key: str, device: torch.device) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises many kinds for a damaged file
        raise TrainingError(f"{path}: damaged checkpoint ({error}); delete it to start again") from None
    if not isinstance(state, dict) or state.get("key") != key:
        raise TrainingError(f"{path}: checkpoint of other parameters; delete it to start again")
    return state
