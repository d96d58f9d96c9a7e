"""The sliced 2-Wasserstein distance between the pixels of two sets of images."""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from scoreline.metrics.features import FeatureExtractor
from scoreline.metrics.jackknife import Replicates, group_pairs, replicates_of_groups
from scoreline.runtime.threads import one_core_each
from scoreline.storage.pictures import to_unit

CHUNK = 4096
SEED = 0


def directions(dimension: int, count: int, seed: int = 0) -> Tensor:
    """Draw `count` independent uniform directions on the unit sphere, (dimension, count) float64 columns.

    They are normalised standard normals from NumPy's PCG64 keyed by `seed`, equal on every machine.
    """
    normal = np.random.Generator(np.random.PCG64(seed)).standard_normal((count, dimension))
    return torch.from_numpy(normal / np.linalg.norm(normal, axis=1, keepdims=True)).T


def project(images: Tensor, along: Tensor) -> Tensor:
    """Project images uint8 (N, C, H, W), as pixels in [-1, 1], on directions (C H W, L); rows (L, N) float64."""
    return torch.cat([to_unit(part).double().flatten(1) @ along for part in torch.split(images, CHUNK)]).T


class Projections(FeatureExtractor):
    """Pixels in [-1, 1] projected on `count` directions of a fixed seed, (N, count).

    When to use it: as the features of `sliced_wasserstein_distance`.

    Args:
        count: the number of directions.
    """

    name, shape = "projections", None

    def __init__(self, count: int) -> None:
        self.dimension, self.digest = count, f"{SEED} {count}"

    def check(self, shape: tuple[int, ...], what: str = "the images") -> None:
        """Accept images of any shape."""

    def __call__(self, images: Tensor) -> Tensor:
        return project(images, _directions(math.prod(images.shape[1:]), self.dimension)).T.contiguous()


@lru_cache(maxsize=4)
def _directions(values: int, count: int) -> Tensor:
    """Return the directions, drawn once for all parts of a pass."""
    return directions(values, count, SEED)


def squared_wasserstein(x: Tensor, y: Tensor) -> Tensor:
    """Exact squared 2-Wasserstein distance (L,) between the samples in ascending rows x (L, n) and y (L, m):

        W_2^2 = integral over u in [0, 1] of (F^-1(u) - G^-1(u))^2 du

    Both quantile functions are steps, so that the integral is a sum over the union of their steps {i/n} and {j/m}:
    nothing is interpolated, and for n = m it is the mean of (x_(i) - y_(i))^2.
    """
    n, m = x.shape[1], y.shape[1]
    # ends of the steps in units of 1/(n m), exact as integers
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m) * n]).sort().values
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    gaps = x[:, starts // m] - y[:, starts // n]
    return torch.mv(gaps.square(), (ends - starts).double() / (n * m))


def sliced_wasserstein_distance(x: Tensor, y: Tensor) -> float:
    """Root of the mean over the L directions of the exact W_2^2, of ascending projections x (L, n) and y (L, m).

    The unit is that of pixels in [-1, 1]: a shift of every pixel by c is at |c|, up to the choice of directions,
    for any image size. Sampling biases it upwards: two finite sets of one distribution are not at 0.

    When to use it: as a check in pixels beside the distances in features; it sees wrong brightness and noise.

    Source: Rabin et al. (2012), doi:10.1007/978-3-642-24785-9_37; Bonneel et al. (2015), doi:10.1007/s10851-014-0506-3.

    Raises:
        ValueError: for an empty side or unequal numbers of directions.
    """
    if min(x.shape[1], y.shape[1]) < 1 or len(x) != len(y):
        raise ValueError(f"need (L, n) and (L, m) with n, m >= 1, got {tuple(x.shape)} and {tuple(y.shape)}")
    return float(squared_wasserstein(x, y).mean().sqrt())


def sliced_wasserstein_replicates(projected: Tensor, reference: Tensor, group: Tensor) -> Replicates:
    """Compute `sliced_wasserstein_distance` of x (L, n) from ascending `reference` (L, m), with its replicates.

    Rows are sorted once, since leaving some out keeps the order of the others.
    """
    x, order = projected.sort(1)
    owner, sizes = group[order], torch.bincount(group)

    def without_groups(left_out: tuple[int, ...]) -> float:
        kept = ~torch.isin(owner, torch.tensor(left_out))
        return sliced_wasserstein_distance(x[kept].reshape(len(x), -1), reference)

    left_out = [*((j,) for j in range(len(sizes))), *group_pairs(len(sizes))]
    values = torch.tensor(one_core_each(without_groups, left_out), dtype=torch.float64)
    full = sliced_wasserstein_distance(x, reference)
    return replicates_of_groups(full, values[: len(sizes)], values[len(sizes) :], sizes)
