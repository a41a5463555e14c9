"""Densities of good photographs at places of an image, for the detector: one for each place, or the nearest of all.

Unlike `patch_maps`, which embeds each patch alone as the paper does, vectors come from the feature maps of a
whole image, and each photograph is also scored as if the density had not seen it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cplib.localize.patch_maps import shrinkage

_BANK = 2000  # places of good photographs among which the nearest is looked for
_POOL = 40_000  # places drawn at random, from which these are taken


class Density(nn.Module):
    """What good features are like. `describe` gives vectors (n, rows, columns, d) of places, `forward` their distances
    (n, rows, columns) from good ones; `fit` fills the buffers, which are all that is saved.

    Args:
        levels: of the network.
        stride: pixels between places; 0: one place, the average.
        width: of vectors, reduced to the directions in which good ones vary most; 0: all.
        unit: whether vectors are scaled to length 1.
    """

    def __init__(self, levels: Sequence[str], stride: int, width: int, unit: bool) -> None:
        super().__init__()
        self.levels, self.stride, self.width, self.unit = tuple(levels), stride, width, unit

    def keep(self, **tensors: Tensor) -> None:
        """Buffers by name, made or replaced."""
        for name, value in tensors.items():
            self.register_buffer(name, value)

    def features(self, maps: dict[str, Tensor], grid: tuple[int, int]) -> Tensor:
        """Vectors (n, rows, columns, channels) on a grid, of feature maps by level, averaged over 3 x 3 places; without
        a stride, of the average of each tile. All levels weigh alike."""
        found = []
        for k, level in enumerate(self.levels):
            x = maps[level]
            if not self.stride or x.shape[2] > grid[0]:
                x = nn.functional.avg_pool2d(x, (x.shape[2] // grid[0], x.shape[3] // grid[1]))
            x = nn.functional.normalize(x, dim=1) if self.unit else x / self.sizes[k]
            if x.shape[2] < grid[0]:
                x = nn.functional.interpolate(x, grid, mode="bilinear", align_corners=False)
            found.append(x)
        x = torch.cat(found, 1)
        if self.stride:
            x = nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return x.permute(0, 2, 3, 1)

    def describe(self, maps: dict[str, Tensor], grid: tuple[int, int]) -> Tensor:
        """`features`, reduced to those directions in which good ones vary most."""
        x = self.features(maps, grid)
        return (x - self.center) @ self.basis if self.width else x

    def scale(self, maps: dict[str, Tensor], grid: tuple[int, int]) -> None:
        """Choose what features are divided by, and the directions that are kept, by maps of some good photographs."""
        self.keep(
            sizes=torch.stack([maps[level].std((0, 2, 3)).square().mean().sqrt() + 1e-9 for level in self.levels])
        )
        if self.width:
            flat = self.features(maps, grid).flatten(0, 2)
            _, vectors = torch.linalg.eigh(torch.cov(flat.T.double()))
            self.keep(center=flat.mean(0), basis=vectors.flip(1)[:, : self.width].float().contiguous())

    def fit(self, good: Tensor, copies: Tensor, generator: torch.Generator) -> Tensor:
        """Fit to vectors (n, rows, columns, d) of good photographs and of copies of them. Returns the distances
        (n, rows, columns) of the good ones from what the density would be without the photograph itself."""
        raise NotImplementedError


class PerLocation(Density):
    """A Gaussian for each place with Ledoit-Wolf shrinkage; the Mahalanobis distance (equation 2, section 4.2)."""

    def fit(self, good: Tensor, copies: Tensor, generator: torch.Generator) -> Tensor:
        n, grid, d = len(good), good.shape[1:3], good.shape[3]
        both = torch.cat([good, copies]).flatten(1, 2).transpose(0, 1)  # (places, photographs and copies, d)
        count, each = both.shape[1], both.shape[1] // n
        means, whitens, own = [], [], []
        for x in both.split(max(1, 2**25 // (d * (d + 2 * count)))):
            mean = x.double().mean(1, keepdim=True)
            x = x.double() - mean
            covariance, lengths = x.mT @ x / count, x.square().sum(2)
            trace = lengths.sum(1) / count
            share = shrinkage(trace, covariance.square().sum((1, 2)), lengths.square().sum(1), count, d)[:, None, None]
            eye = torch.eye(d, dtype=torch.float64, device=x.device)
            shrunk = (1 - share) * covariance + (share * trace[:, None, None] / d + 1e-9) * eye
            whiten = torch.linalg.solve_triangular(torch.linalg.cholesky(shrunk), eye, upper=False).mT
            white = (x @ whiten).unflatten(1, (each, n))
            own.append(torch.cat([_left_out(white[:, :, rows], count, share) for rows in _blocks(n)], 1))
            means.append(mean[:, 0].float())
            whitens.append(whiten.float())
        self.keep(mean=torch.cat(means), whiten=torch.cat(whitens).contiguous())
        return torch.cat(own).T.reshape(n, *grid).sqrt().float()

    def forward(self, vectors: Tensor) -> Tensor:
        x = (vectors.flatten(1, 2) - self.mean).transpose(0, 1)
        return (x @ self.whiten).square().sum(2).sqrt().T.reshape(vectors.shape[:3])


class Nearest(Density):
    """The distance to the nearest of some places of good photographs, wherever it is. These are taken one by one, each
    the farthest from those before (the coreset of PatchCore, Roth et al. 2022): rare places are among them too."""

    def fit(self, good: Tensor, copies: Tensor, generator: torch.Generator) -> Tensor:
        flat, places = torch.cat([good, copies]).flatten(0, 2), good.shape[1] * good.shape[2]
        pool = torch.randperm(len(flat), generator=generator)[:_POOL].to(flat.device)
        chosen = pool[_spread(flat[pool].float(), _BANK)]
        self.keep(bank=flat[chosen].float())
        photo, found = chosen // places % len(good), []
        for rows in _blocks(len(good)):
            left_out = (photo >= rows.start) & (photo < rows.stop)
            found += [self(x[None], left_out) for x in good[rows]]
        return torch.cat(found)

    def forward(self, vectors: Tensor, left_out: Tensor | None = None) -> Tensor:
        """`left_out` (k,), bool: which places of the bank do not count."""
        x = vectors.flatten(0, 2)
        squared = self.bank.square().sum(1) - 2 * (x @ self.bank.T)
        if left_out is not None:
            squared = squared.masked_fill(left_out, torch.inf)
        nearest = squared.amin(1) + x.square().sum(1)
        return nearest.clamp(min=0).sqrt().reshape(vectors.shape[:3])


def _spread(x: Tensor, count: int) -> Tensor:
    """Indices of at most `count` of the vectors (n, d): the first, then ever the farthest from all before."""
    lengths, nearest, chosen = x.square().sum(1), torch.full((len(x),), torch.inf, device=x.device), [0]
    for _ in range(min(count, len(x)) - 1):
        nearest = nearest.minimum(lengths + lengths[chosen[-1]] - 2 * (x @ x[chosen[-1]]))
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen, device=x.device)


def _blocks(n: int) -> list[slice]:
    """Photographs left out together: a tenth, one after the other, as those often show the same part or day."""
    size = max(1, n // 10)
    return [slice(start, start + size) for start in range(0, n, size)]


def _left_out(x: Tensor, count: int, share: Tensor) -> Tensor:
    """Squared distances (places, k) of photographs from Gaussians without them all and their copies, of which x
    (places, 1 + copies, k, d) are whitened and centred by the Gaussians with them, out of `count` samples.

    Without m samples X the mean moves by the sum of X over -(count - m), and the covariance loses w X^T B X, with B of
    1 on the diagonal and 1 / (count - m) added everywhere. So sample i differs from the mean by X^T a, where a is
    column i of B, and by Woodbury's identity its distance is a^T G (1 - w B G)^-1 a, where G = X X^T.
    """
    k, x = x.shape[2], x.flatten(1, 2)
    gram, one = x @ x.mT, torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    lost = one + 1 / (count - x.shape[1])
    a = lost[:, :k]
    solved = torch.linalg.solve(one - (1 - share) / count * (lost @ gram), a)
    return ((gram @ a) * solved).sum(1).clamp(min=0)
