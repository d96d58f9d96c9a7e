"""The Frechet distance between two sets of features, each described by its mean and covariance."""

import math
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.metrics.jackknife import Replicates, second_order
from scoreline.runtime.threads import in_turn, one_core_each

AT_ONCE = 4
"""Blocks of rows at a time."""

CHUNK = 1024
"""Rows of a block; at d = 2048 it takes some matrices of 17 MB."""

NULL = 1e-13
"""Share of the largest eigenvalue below which one counts as zero; its root is 3e-7 of the largest root."""

PAIRS = 256
"""Rows of which all pairs are left out for the second order of the error."""

STEP = 1.5
"""Step of the quadrature in log t; the trapezoidal rule is then right to exp(-4 pi^2 / 3), 2e-6."""

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


def frechet_replicates(x: Tensor, reference: GaussianStatistics, group: Tensor | None = None) -> Replicates:
    """Compute `frechet_distance` of x (n, d) from `reference`: of all rows, and without each row.

    The work is one eigenvalue decomposition and two products of x with a matrix, not one decomposition a row. Let S be
    the scatter of x, R the root of the reference, l_k the eigenvalues of R S R^T, and z_i the row R (x_i - mean) in its
    eigenvectors. Since sqrt(l) = 1/(2 pi) int t^(-1/2) log(1 + l/t) dt, and the determinant of a matrix less a product
    z z^T is known, leaving out row i changes tr (R S R^T)^(1/2) by

        1/(2 pi) int_0^inf t^(-1/2) log(1 - n/(n-1) h_ii(t)) dt,     h_ij(t) = sum_k z_ik z_jk / (l_k + t)

    and leaving out rows i and j takes the determinant of a 2x2 matrix of the same h. This holds for any n, also where
    the covariance is singular.

    When to use it: for the error of a Frechet distance from one set of images.

    Args:
        x: the features.
        reference: the other side, whose chance is not in the error.
        group: without effect; callers from before 0.14 give the groups that were left out then.

    Raises:
        ValueError: for fewer than 3 rows, or unequal d.
    """
    if len(x) < 3 or x.shape[1:] != reference.mean.shape:
        raise ValueError(
            f"the error of a Frechet distance needs at least 3 rows of {len(reference.mean)} features, got "
            f"{tuple(x.shape)}"
        )
    whole = reduce(GaussianStatistics.merge, in_turn(GaussianStatistics.of, torch.split(x, CHUNK), AT_ONCE))
    removal = one_core_each(lambda side: _Removal.of(side, reference), [whole])[0]
    changes = torch.cat(one_core_each(removal.changes, torch.split(x, CHUNK), AT_ONCE))
    full, without = frechet_distance(whole, reference), removal.without(changes)
    chosen = torch.arange(min(PAIRS, len(x))) * len(x) // min(PAIRS, len(x))
    second = one_core_each(lambda rows: removal.second(x[rows], changes[rows]), [chosen])[0] if len(x) > 3 else 0.0
    return Replicates(full, full + without, torch.ones(len(x), dtype=torch.int64), second)


class _Removal(NamedTuple):
    """What leaving out rows of `whole` does to its distance from a reference.

    Attributes:
        whole: the statistics of all rows.
        gap: difference of the means (d,).
        values: positive eigenvalues of R S R^T (r,), and `basis` (d, r), which takes y_i to z_i.
        levels: t (K,), and `weights` (K,), which make the integral a sum.
    """

    whole: GaussianStatistics
    gap: Tensor
    values: Tensor
    basis: Tensor
    levels: Tensor
    weights: Tensor

    @classmethod
    def of(cls, whole: GaussianStatistics, reference: GaussianStatistics) -> "_Removal":
        values, vectors = torch.linalg.eigh(reference.root @ whole.scatter @ reference.root.T)
        kept = values > NULL * values[-1].clamp(min=0)
        values, basis = values[kept], reference.root.T @ vectors[:, kept]
        # below and above these ends the integrand decays as exp(u / 2) and exp(-3 u / 2) in u = log t
        low, high = (float(values[k].log()) for k in (0, -1)) if len(values) else (0.0, 0.0)
        levels = torch.arange(low - 32, high + 12, STEP, dtype=torch.float64).exp()
        return cls(whole, whole.mean - reference.mean, values, basis, levels, STEP * levels.sqrt() / (2 * math.pi))

    def changes(self, rows: Tensor) -> Tensor:
        """Return, for each of `rows` (b, d), y . gap, |y|^2 and the change of the trace of the root, as (b, 3)."""
        y = rows.double() - self.whole.mean
        squares, shares = self._shares(y @ self.basis)
        # the linear term is exact; the rest of the logarithm decays fast enough for a sum
        rest = (torch.log1p(-shares) + shares) @ self.weights
        return torch.stack([y @ self.gap, y.square().sum(1), rest - squares @ self.values.rsqrt() / 2], 1)

    def without(self, changes: Tensor) -> Tensor:
        """Return the change of the distance without each row (n,)."""
        along, square, root = changes.T
        return self._difference(1, along, square, square, root)

    def second(self, rows: Tensor, changes: Tensor) -> float:
        """Return the second order of the variance (`jackknife.second_order`), from all pairs of `rows` (b, d)."""
        n, (along, square, root) = self.whole.n, (both[:, None] + both for both in changes.T)
        y = rows.double() - self.whole.mean
        together = square + 2 * y @ y.T
        pair = self._difference(2, along, together, square, root + self._interaction(y @ self.basis))
        one = self.without(changes)
        values = (n - 2) * pair - (n - 1) * (one[:, None] + one)
        return second_order(values[*torch.triu_indices(len(rows), len(rows), 1)])

    def _shares(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return n/(n-1) z^2 (b, r), and n/(n-1) h_ii at each level (b, K), at most 1 but for rounding."""
        squares = z.square() * (self.whole.n / (self.whole.n - 1))
        return squares, (squares @ (self.values[:, None] + self.levels).reciprocal()).clamp(max=1 - 1e-15)

    def _interaction(self, z: Tensor) -> Tensor:
        """Return what leaving out two rows changes the trace of the root by beyond the sum of both changes, (b, b)."""
        n = self.whole.n
        left = (n - 1) / n * (1 - self._shares(z)[1])
        total = torch.zeros(len(z), len(z), dtype=torch.float64)
        for level, weight, own in zip(self.levels, self.weights, left.T, strict=True):
            common = (z / (self.values + level)) @ z.T + 1 / n
            overlap = common.square() / (own[:, None] * own)
            total += weight * (torch.log1p(-overlap.clamp(max=1 - 1e-15)) + math.log((n - 1) ** 2 / (n * (n - 2))))
        return total

    def _difference(self, count: int, along: Tensor, together: Tensor, square: Tensor, root: Tensor) -> Tensor:
        """Return the change of the distance without sets of `count` rows, from sums over each set.

        Args:
            count: number of rows left out at a time.
            along: y . gap.
            together: |sum of y|^2.
            square: sum of |y|^2.
            root: the change of the trace of the root.
        """
        before, kept = self.whole.n, self.whole.n - count
        trace, roots = self.whole.scatter.trace(), self.values.sqrt().sum()
        mean = together / (kept * kept) - 2 * along / kept
        spread = (trace - square - together / kept) / (kept - 1) - trace / (before - 1)
        return mean + spread - 2 * ((roots + root) / math.sqrt(kept - 1) - roots / math.sqrt(before - 1))
