"""Patch model: embeddings of all patches of an image, densities on them, maps of their scores (sections 2.4, 4.2, A.5).

As in `cplib.gde`: Gaussians with Ledoit-Wolf shrinkage on embeddings of length 1, here one for each location or one
shared by all; the score is the squared Mahalanobis distance (equation 2).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from cplib import gde
from cplib.model import STEMS
from cplib.sections import TrainConfig
from cplib.train import float32, layout

WIDTH = 512  # of the embeddings of a ResNet-18
_MOST_PATCHES = 50_000  # that a shared density is fitted to, a hundred for each dimension
_LEAST_VARIANCE = 1e-12  # as cplib.gde: keeps the inverse where all embeddings are equal
_BLOCK_BYTES = 128 * 2**20  # of float64 numbers at a time, where there is a Gaussian per location
CHUNK_BYTES = 512 * 2**20  # of embeddings of test images that are scored together


@torch.inference_mode()
def unit_patches(net: nn.Module, images: Tensor, patch_size: int, stride: int, config: TrainConfig) -> Tensor:
    """Embeddings (n, rows, columns, 512), scaled to length 1, of all patches of images (n, 3, size, size) uint8. The
    net is in evaluation mode, on the device of the images.

    Entry (i, j) is the encoder's output for the crop whose first pixel is (i stride, j stride): each patch is seen
    alone, as in training. Convolving the image once would be cheaper, but pads nowhere inside it. The precision is
    always float32: bfloat16 hides differences between patches from untrained networks, and so flattered ours.
    """
    side = (images.shape[-1] - patch_size) // stride + 1
    # batches of nearly equal size: kernels are prepared for each new shape
    count = math.ceil(side**2 / _batch_size(patch_size, config.stem, images.device))
    batches = torch.arange(side**2, device=images.device).chunk(count)
    out = torch.empty(len(images), side, side, WIDTH, dtype=torch.float32, device=images.device)
    for k, image in enumerate(tqdm(images, "patches", unit="image", disable=None, leave=False, delay=2)):
        patches = image.unfold(1, patch_size, stride).unfold(2, patch_size, stride).permute(1, 2, 0, 3, 4)
        chosen = (patches[b // side, b % side].contiguous(memory_format=layout(config)) for b in batches)
        with float32():
            found = torch.cat([net.embed(x.float().div_(255)) for x in chosen])
        out[k] = nn.functional.normalize(found).view(side, side, -1)
    return out


def _batch_size(patch_size: int, stem: str, device: torch.device) -> int:
    """So many patches that the 64 channels of the first layer fill 16 MiB on a CPU, 1 GiB on a GPU.

    Measured on a CPU: 64 patches take the least time, of 32 and of 64 px; more leave its cache.
    """
    one = 4 * 64 * (patch_size // min(2, STEMS[stem])) ** 2  # the pooling that STEMS counts comes after
    most, budget = (64, 16 * 2**20) if device.type == "cpu" else (4096, 2**30)
    return max(1, min(most, budget // one))


def shared(normal: Tensor) -> Callable[[Tensor], Tensor]:
    """One Gaussian for all locations: what scores patches, fitted to at most `_MOST_PATCHES` of the normal ones, drawn
    at random. Shapes are as for `per_location`."""
    patches = normal.flatten(0, 2)
    chosen = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:_MOST_PATCHES]
    density = gde.density("ledoit_wolf").fit(patches[chosen.to(patches.device)].cpu().numpy())

    def score(test: Tensor) -> Tensor:
        found = [density.score_samples(image.flatten(0, 1).cpu().numpy()) for image in test]
        return torch.tensor(np.array(found, np.float32)).view(test.shape[:-1])

    return score


def per_location(normal: Tensor, test: Tensor) -> Tensor:
    """Squared Mahalanobis distances (m, rows, columns) float32 of patches (m, rows, columns, d) from a Gaussian for
    each location of those of normal images (n, rows, columns, d), for aligned objects (section 4.2).

    There are fewer images than dimensions, so covariances are never formed: with the centred samples X (n, d), their
    Gram matrix G = X X^T, and the shrunk covariance C = c X^T X + v I,

        y^T C^-1 y = (y^T y - c (X y)^T (v I + c G)^-1 (X y)) / v    (Woodbury's identity),

    for a block of locations at a time in float64. Factors are recreated for each call, which takes seconds; kept, they
    would take more memory than the embeddings.
    """
    samples, points = normal.flatten(1, 2), test.flatten(1, 2)
    n, (m, locations, d) = len(samples), points.shape
    out = torch.empty(m, locations, device=points.device)
    # samples and points, and these centred; the Gram matrix, with a diagonal, and its factor
    block = max(1, _BLOCK_BYTES // (8 * (2 * (n + m) * d + 3 * n**2)))
    for first in tqdm(range(0, locations, block), "locations", disable=None, leave=False, delay=2):
        rows = slice(first, first + block)
        x, y = (a[:, rows].transpose(0, 1).double() for a in (samples, points))
        out[:, rows] = _mahalanobis(x, y).T.float()
    return out.view(test.shape[:3])


def _mahalanobis(samples: Tensor, points: Tensor) -> Tensor:
    """Squared distances (locations, m) of points (locations, m, d) from the Gaussians of samples (locations, n, d)."""
    n, d = samples.shape[1:]
    mean = samples.mean(1, keepdim=True)
    x, y = samples - mean, points - mean
    gram = x @ x.mT
    lengths = gram.diagonal(dim1=1, dim2=2)
    trace = lengths.sum(1) / n
    a = shrinkage(trace, gram.square().sum((1, 2)) / n**2, lengths.square().sum(1), n, d)
    least = (a * trace / d + _LEAST_VARIANCE)[:, None]
    c = ((1 - a) / n)[:, None, None]
    factor = torch.linalg.cholesky(c * gram + torch.diag_embed(least.expand(-1, n)))
    explained = torch.linalg.solve_triangular(factor, x @ y.mT, upper=False).square().sum(1)
    return (y.square().sum(2) - c[..., 0] * explained) / least


def shrinkage(trace: Tensor, squares: Tensor, fourth: Tensor, n: int, d: int) -> Tensor:
    """Shrinkage in [0, 1] of a covariance towards its mean variance (Ledoit and Wolf 2004, as scikit-learn), from its
    trace and sums of its squared entries and of the fourth powers of the distances of n samples from their mean."""
    distance = squares - trace**2 / d
    error = (fourth / n - squares) / n
    share = error.clamp(min=0).minimum(distance) / distance.clamp(min=1e-300)
    return torch.where(distance > 0, share, torch.zeros_like(share))


# by patches of normal images, what scores those of test images
PLACEMENTS = {"per_location": lambda normal: partial(per_location, normal), "shared": shared}


def score_maps(
    net: nn.Module,
    train: Tensor,
    test: Tensor,
    patch_size: int,
    stride: int,
    config: TrainConfig,
    densities: Sequence[str] = tuple(PLACEMENTS),
) -> dict[str, np.ndarray]:
    """Fit densities, of `PLACEMENTS`, to the patches of normal images and score those of m test images: by density,
    maps (m, rows, columns) float32 of squared Mahalanobis distances. Arguments are as `unit_patches` takes them."""
    normal = unit_patches(net, train, patch_size, stride, config)
    scorers = {name: PLACEMENTS[name](normal) for name in densities}
    maps = {name: np.empty((len(test), *normal.shape[1:3]), np.float32) for name in densities}
    chunk = max(1, CHUNK_BYTES // normal[0].nbytes)
    for first in range(0, len(test), chunk):
        rows = slice(first, first + chunk)
        embeddings = unit_patches(net, test[rows], patch_size, stride, config)
        for name, score in scorers.items():
            maps[name][rows] = score(embeddings).cpu().numpy()
    return maps
