"""The Frechet distance between two sets of features, each described by its mean and covariance."""

from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from torch import Tensor

from scoreline.metrics.jackknife import Replicates
from scoreline.runtime.threads import in_turn, one_core_each

AT_ONCE = 2
"""Large replicates at a time; each holds several matrices of 34 MB at d = 2048."""

LARGE = 256
"""Number of dimensions above which replicates come from eigenvalues, which is faster."""

SINGULAR = 1e-5
"""Ratio of the Cholesky root's pivots below which eigenvalues replace it; squared it is 1e-10 of the variance."""


@dataclass(frozen=True)
class GaussianStatistics:
    """Count, mean and scatter of rows in float64; the statistics of disjoint sets merge into those of their union.

    When to use it: to stream features of any number of images, and to leave groups out for the jackknife.

    Attributes:
        n: number of rows.
        mean: (d,).
        scatter: sum_i (x_i - mean)(x_i - mean)^T, (d, d).
    """

    n: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "GaussianStatistics":
        """Compute the statistics of rows (n, d), n >= 1.

        Raises:
            ValueError: without rows, or if one is not finite.
        """
        if rows.ndim != 2 or len(rows) == 0:
            raise ValueError(f"features must be (n, d) with n >= 1, got {tuple(rows.shape)}")
        if not bool(rows.isfinite().all()):
            raise ValueError(f"{int((~rows.isfinite()).any(1).sum())} of {len(rows)} feature rows are not finite")
        x = rows.double()
        mean = x.mean(0)
        return cls(len(x), mean, (x - mean).T @ (x - mean))

    def merge(self, other: "GaussianStatistics") -> "GaussianStatistics":
        """Return the statistics of both sets: S = S_a + S_b + (n_a n_b / n) delta delta^T, delta = mean_b - mean_a.

        Source: Chan, Golub & LeVeque (1983), doi:10.1080/00031305.1983.10483115.
        """
        n = self.n + other.n
        delta = other.mean - self.mean
        scatter = self.scatter + other.scatter + (self.n * other.n / n) * torch.outer(delta, delta)
        return GaussianStatistics(n, self.mean + delta * (other.n / n), scatter)

    def without(self, part: "GaussianStatistics") -> "GaussianStatistics":
        """Return the statistics of the rows that are not in `part`: `merge` solved for one of its sides.

        Raises:
            ValueError: if no row is left.
        """
        n = self.n - part.n
        if n < 1:
            raise ValueError(f"{part.n} of {self.n} rows cannot be left out")
        mean = self.mean + (self.mean - part.mean) * (part.n / n)
        delta = part.mean - mean
        return GaussianStatistics(
            n, mean, self.scatter - part.scatter - (n * part.n / self.n) * torch.outer(delta, delta)
        )

    @property
    def covariance(self) -> Tensor:
        """scatter / (n - 1), (d, d).

        Raises:
            ValueError: for fewer than 2 rows.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 rows, got {self.n}")
        return self.scatter / (self.n - 1)

    @cached_property
    def root(self) -> Tensor:
        """R (d, d) with R^T R = covariance: Cholesky's, or where it is nearly singular that of its eigenvalues."""
        lower: Tensor
        # Cholesky is a tenth of the work; it serves while no pivot drowns in rounding
        lower, failed = torch.linalg.cholesky_ex(self.covariance)
        pivots = lower.diagonal()
        if not bool(failed) and bool(pivots.min() > SINGULAR * pivots.max()):
            return lower.T
        # symmetric root: rows are eigenvectors, scaled by roots of eigenvalues; rounding below zero is cut off
        values, vectors = torch.linalg.eigh(self.covariance)
        return torch.mul(values.clamp(min=0).sqrt()[:, None], vectors.T)


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """Squared 2-Wasserstein distance between N(mu_a, S_a) and N(mu_b, S_b):

        d^2 = |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))

    The last trace is the sum of the singular values of R_a R_b^T, where S = R^T R. No root of a non-symmetric matrix
    is needed, so that nothing becomes complex and no multiple of the identity is added when n <= d. The unit is that
    of the features, squared; the bias is upwards and of order 1/n.

    When to use it: of Inception features it is the FID. Compare only values of equal n; for few images `kid` is better.

    Source: Dowson & Landau (1982), doi:10.1016/0047-259X(82)90077-X; as a distance between sets of images Heusel et
    al. (2017), arXiv:1706.08500.

    Raises:
        ValueError: for fewer than 2 rows on a side or unequal d.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and of {len(b.mean)} dimensions have no distance")
    cross = torch.linalg.svdvals(a.root @ b.root.T).sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(float(distance), 0.0)


def frechet_replicates(x: Tensor, reference: GaussianStatistics, group: Tensor) -> Replicates:
    """Compute `frechet_distance` of x (n, d) from `reference`: of all rows, and without each group of `group` (n,).

    Above LARGE dimensions each replicate takes one eigenvalue decomposition, and several run side by side.
    """
    if x.shape[1] > LARGE:
        return _large_replicates(x, reference, group)
    sizes = torch.bincount(group)
    parts = [GaussianStatistics.of(x[group == j]) for j in range(len(sizes))]
    kept = [parts[:j] + parts[j + 1 :] for j in range(len(sizes))]
    without = [frechet_distance(reduce(GaussianStatistics.merge, rest), reference) for rest in kept]
    full = frechet_distance(reduce(GaussianStatistics.merge, parts), reference)
    return Replicates(full, torch.tensor(without, dtype=torch.float64), sizes)


def _large_replicates(x: Tensor, reference: GaussianStatistics, group: Tensor) -> Replicates:
    """Return replicates as differences of `_by_eigenvalues`, in which the rounding of a null space cancels.

    The statistics of a group are computed twice and never kept: those of 20 groups would take 0.7 GB at d = 2048.
    """
    sizes = torch.bincount(group)

    def part(j: int) -> GaussianStatistics:
        return GaussianStatistics.of(x[group == j])

    def replicate(j: int) -> float:
        return _by_eigenvalues(whole if j < 0 else whole.without(part(j)), reference)

    whole = reduce(GaussianStatistics.merge, in_turn(part, range(len(sizes)), AT_ONCE))
    full = frechet_distance(whole, reference)
    whole_again, *without_each = one_core_each(replicate, range(-1, len(sizes)), AT_ONCE)  # -1 leaves nothing out
    without = torch.tensor(without_each, dtype=torch.float64)
    return Replicates(full, full + (without - whole_again), sizes)


def _by_eigenvalues(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """Return `frechet_distance` with tr (S_a S_b)^(1/2) as the sum of the roots of the eigenvalues of R_b S_a R_b^T.

    It takes a tenth of the time of the singular values; a null direction adds up to 1e-8 of the largest root instead
    of 1e-16.
    """
    roots = torch.linalg.eigvalsh(b.root @ a.covariance @ b.root.T).clamp(min=0).sqrt()
    gap = (a.mean - b.mean).square().sum()
    return float(gap + a.covariance.trace() + b.covariance.trace() - 2 * roots.sum())
