"""Patch model: embeddings of all patches of an image, Gaussian densities on them, maps of their scores
(sections 2.4, 4.2 and A.5).

Densities are as in `cplib.gde`: Gaussians with Ledoit-Wolf shrinkage on L2-normalised embeddings, one for
each location or one shared by all; the score is the squared Mahalanobis distance (equation 2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from cplib.config import TrainConfig
from cplib.gde import DensityError
from cplib.model import STEMS

WIDTH = 512  # of the embeddings of a ResNet-18
_LEAST_VARIANCE = 1e-12  # as cplib.gde: keeps the inverse where all embeddings are equal
_BLOCK_BYTES = 128 * 2**20  # of float64 numbers at a time, where there is a Gaussian per location
_BUFFER_IMAGES = 64
_CHUNK_BYTES = 512 * 2**20  # of embeddings of test images that are scored together


def grid_side(image_size: int, patch_size: int, stride: int) -> int:
    """Number of patches along a side of the image: 49 for 64 px, 57 for 32 px, both at stride 4 of 256 px."""
    return (image_size - patch_size) // stride + 1


def embed_patches(
    net: nn.Module,
    images: Tensor,
    patch_size: int,
    stride: int,
    config: TrainConfig,
    batch_size: int = 0,
    title: str = "patches",
) -> Iterator[Tensor]:
    """Embeddings of all patches, image after image. Only a batch of patches is in memory at a time.

    Entry (i, j) is the encoder's output for the crop whose first pixel is (i stride, j stride): each patch is
    seen alone, as in training. Convolving the image once would be cheaper, but pads nowhere inside it.

    Args:
        net: model with `embed`, in evaluation mode, on the device of the images.
        images: (n, 3, size, size) uint8.
        stride: of the patches, in pixels.
        config: for the stem and the memory layout. The precision is always float32: bfloat16 hides
            differences between patches from untrained networks, and so flattered ours beside the control.
        batch_size: most patches at a time; 0 for what the device's memory and cache bear.
        title: of the progress bar.

    Yields:
        (rows, columns, 512) float32, on the device.
    """
    batch_size = batch_size or _batch_size(patch_size, config.stem, images.device)
    for image in tqdm(images, title, unit="image", disable=None, leave=False, delay=2):
        patches = image.unfold(1, patch_size, stride).unfold(2, patch_size, stride).permute(1, 2, 0, 3, 4)
        rows, columns = patches.shape[:2]
        order = torch.arange(rows * columns, device=images.device)
        # batches of nearly equal size: kernels are prepared for each new shape
        batches = order.chunk(math.ceil(len(order) / batch_size))
        parts = [_embed(net, patches[k // columns, k % columns], config) for k in batches]
        yield torch.cat(parts).view(rows, columns, -1)


@torch.inference_mode()
def _embed(net: nn.Module, patches: Tensor, config: TrainConfig) -> Tensor:
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return net.embed(patches.contiguous(memory_format=layout).float().div_(255))


def _batch_size(patch_size: int, stem: str, device: torch.device) -> int:
    """So many patches that the 64 channels of the first layer fill 16 MiB on a CPU, 1 GiB on a GPU.

    Measured on a CPU: 64 patches take the least time, of 32 and of 64 px; more leave its cache.
    """
    shrink = 1 if stem == "3x3_stride1" else 2
    one = 4 * 64 * (patch_size // min(shrink, STEMS[stem])) ** 2
    most, budget = (64, 16 * 2**20) if device.type == "cpu" else (4096, 2**30)
    return max(1, min(most, budget // one))


def unit_length(embeddings: Tensor) -> Tensor:
    """Embeddings (..., d) scaled to length 1, in float16: what densities are fitted on and score.

    Raises:
        DensityError: an embedding is not finite.
    """
    scaled = nn.functional.normalize(embeddings.float(), dim=-1)
    if not torch.isfinite(scaled).all():
        raise DensityError("embedding of a patch is not finite")
    return scaled.half()


class PatchDensity(Protocol):
    """A density of patches, fitted to one normal image after another."""

    def partial_fit(self, embeddings: Tensor) -> None:
        """Add the embeddings (rows, columns, d) of an image."""
        ...

    def score(self, embeddings: Tensor) -> Tensor:
        """Squared Mahalanobis distances (m, rows, columns), float32, of embeddings (m, rows, columns, d)."""
        ...


class SharedGaussian:
    """One Gaussian for all locations, from sums over patches: no embedding is kept."""

    def __init__(self) -> None:
        self.count = 0

    def partial_fit(self, embeddings: Tensor) -> None:
        x = embeddings.reshape(-1, embeddings.shape[-1]).double()
        if not self.count:
            # Sums of what is left after a shift near the mean lose no digits
            self._shift = x.mean(0)
            self._sums: list[Tensor | float] = [0.0] * 5
        x = x - self._shift
        square = x.square().sum(1)
        parts = (x.sum(0), x.T @ x, square.sum(), square @ x, square.square().sum())
        self._sums = [a + b for a, b in zip(self._sums, parts, strict=True)]
        self.count += len(x)
        self._whitening = None

    def moments(self) -> tuple[Tensor, Tensor, float]:
        """Mean (d,) and covariance (d, d) of all patches, and the shrinkage that Ledoit-Wolf finds."""
        if self.count < 2:
            raise DensityError(f"a density needs at least 2 patches, got {self.count}")
        n = self.count
        total, products, squares, weighted, fourth = self._sums
        mean = total / n
        covariance = products / n - torch.outer(mean, mean)
        # Sum over patches of |x - mean|^4, multiplied out
        m2 = mean @ mean
        fourth = (
            fourth
            + 4 * mean @ products @ mean
            + n * m2**2
            - 4 * mean @ weighted
            + 2 * m2 * squares
            - 4 * m2 * (mean @ total)
        )
        shrinkage = _ledoit_wolf(covariance.trace(), covariance.square().sum(), fourth, n, len(mean))
        return mean + self._shift, covariance, float(shrinkage)

    def score(self, embeddings: Tensor) -> Tensor:
        if self._whitening is None:
            self._mean, covariance, a = self.moments()
            d = len(covariance)
            least = a * covariance.trace() / d + _LEAST_VARIANCE
            eye = torch.eye(d, dtype=torch.float64, device=covariance.device)
            factor = torch.linalg.cholesky((1 - a) * covariance + least * eye)
            self._whitening = torch.linalg.solve_triangular(factor, eye, upper=False).T
        # Into one array: results in a list each split the memory that a passing image leaves, 2 GiB in all
        out = torch.empty(embeddings.shape[:-1], device=embeddings.device)
        for k, image in enumerate(embeddings):
            out[k] = ((image.double() - self._mean) @ self._whitening).square().sum(-1)
        return out


class LocationGaussians:
    """A Gaussian for each location, for aligned objects (section 4.2).

    There are fewer images than dimensions, so covariances are never formed: with the centred samples X
    (n, d), their Gram matrix G = X X^T, and the shrunk covariance C = c X^T X + v I,

        y^T C^-1 y = (y^T y - c (X y)^T (v I + c G)^-1 (X y)) / v    (Woodbury's identity),

    for a block of locations at a time in float64. Factors are made anew for each call of `score`, which takes
    seconds; kept, they would take more memory than the embeddings.
    """

    def __init__(self) -> None:
        # Embeddings (images, locations, d) in float16. Image by image, they would scatter over the heap among
        # passing arrays, whose gaps took as much memory again
        self._buffers: list[Tensor] = []
        self._count = 0

    def partial_fit(self, embeddings: Tensor) -> None:
        x, place = embeddings.flatten(0, 1), self._count % _BUFFER_IMAGES
        if not place:
            self._buffers.append(x.new_empty(_BUFFER_IMAGES, *x.shape, dtype=torch.half))
        self._buffers[-1][place] = x
        self._count += 1

    def score(self, embeddings: Tensor) -> Tensor:
        n = self._count
        if n < 2:
            raise DensityError(f"a density needs at least 2 normal images, got {n}")
        points = embeddings.flatten(1, 2)
        m, locations, d = points.shape
        out = torch.empty(m, locations, device=points.device)
        # samples and points, and these centred; the Gram matrix, with a diagonal, and its factor
        block = max(1, _BLOCK_BYTES // (8 * (2 * (n + m) * d + 3 * n**2)))
        steps = range(0, locations, block)
        for first in tqdm(steps, "locations", disable=None, leave=False, delay=2):
            part = slice(first, first + block)
            x = torch.cat([b[:, part] for b in self._buffers])[:n].transpose(0, 1).double()
            y = points[:, part].transpose(0, 1).double()
            out[:, part] = _mahalanobis(x, y).T.float()
        return out.view(embeddings.shape[:3])


def _mahalanobis(samples: Tensor, points: Tensor) -> Tensor:
    """Squared distances (locations, m) of points (locations, m, d) from the Gaussians of samples
    (locations, n, d); float64."""
    n, d = samples.shape[1:]
    mean = samples.mean(1, keepdim=True)
    x, y = samples - mean, points - mean
    gram = x @ x.mT
    lengths = gram.diagonal(dim1=1, dim2=2)
    trace = lengths.sum(1) / n
    a = _ledoit_wolf(trace, gram.square().sum((1, 2)) / n**2, lengths.square().sum(1), n, d)
    least = (a * trace / d + _LEAST_VARIANCE)[:, None]
    c = ((1 - a) / n)[:, None, None]
    factor = torch.linalg.cholesky(c * gram + torch.diag_embed(least.expand(-1, n)))
    explained = torch.linalg.solve_triangular(factor, x @ y.mT, upper=False).square().sum(1)
    return (y.square().sum(2) - c[..., 0] * explained) / least


def _ledoit_wolf(trace: Tensor, squares: Tensor, fourth: Tensor, n: int, d: int) -> Tensor:
    """Shrinkage in [0, 1] of a covariance towards its mean variance (Ledoit and Wolf 2004, as scikit-learn).

    Args:
        trace: of the covariance.
        squares: sum of its squared entries.
        fourth: sum over samples of the fourth power of their distance from the mean.
    """
    distance = squares - trace**2 / d
    error = (fourth / n - squares) / n
    share = error.clamp(min=0).minimum(distance) / distance.clamp(min=1e-300)
    return torch.where(distance > 0, share, torch.zeros_like(share))


DENSITIES: dict[str, type[SharedGaussian] | type[LocationGaussians]] = {
    "per_location": LocationGaussians,
    "shared": SharedGaussian,
}


def score_maps(
    net: nn.Module,
    train: Tensor,
    test: Tensor,
    patch_size: int,
    stride: int,
    config: TrainConfig,
    densities: Sequence[str] = tuple(DENSITIES),
    batch_size: int = 0,
) -> dict[str, np.ndarray]:
    """Fit densities to the patches of normal images and score those of test images.

    Args:
        net: model in evaluation mode, on the device of the images.
        train, test: (n, 3, size, size) and (m, 3, size, size) uint8.
        densities: names in `DENSITIES`.

    Returns:
        By density, maps (m, rows, columns) float32 of squared Mahalanobis distances, an entry per patch.
    """
    fitted: dict[str, PatchDensity] = {name: DENSITIES[name]() for name in densities}
    for embeddings in embed_patches(net, train, patch_size, stride, config, batch_size, "train patches"):
        for density in fitted.values():
            density.partial_fit(unit_length(embeddings))
    side = grid_side(test.shape[-1], patch_size, stride)
    parts: dict[str, list[Tensor]] = {name: [torch.empty(0, side, side)] for name in densities}
    chunk = max(1, _CHUNK_BYTES // (side**2 * WIDTH * 2))
    for images in test.split(chunk) if len(test) else ():
        stream = embed_patches(net, images, patch_size, stride, config, batch_size, "test patches")
        embeddings = images.new_empty(len(images), side, side, WIDTH, dtype=torch.half)
        for k, image in enumerate(stream):  # a list and its stack would take twice the memory
            embeddings[k] = unit_length(image)
        for name, density in fitted.items():
            parts[name].append(density.score(embeddings).cpu())
    return {name: torch.cat(maps).numpy() for name, maps in parts.items()}
