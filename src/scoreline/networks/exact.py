"""Data distributions whose denoiser is known exactly: the oracles of certification and of tests."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianMixture:
    """x_0 ~ sum_i w_i N(m_i, s_i^2 I). One component is a Gaussian; s_i = 0 is an empirical distribution.

    Use this to test a solver without a network.

    With V_i = s_i^2 + rho^2 and responsibilities r_i(x) ~ w_i V_i^(-d/2) exp(-|x - m_i|^2 / (2 V_i)),
    E[x_0 | x] = sum_i r_i (s_i^2 x + rho^2 m_i) / V_i and eps = (x - E[x_0 | x]) / rho = rho sum_i r_i (x - m_i) / V_i.

    rho is a float, or (B, 1) float64 for a level per row.

    Attributes:
        means: (M, d) float64.
        stds: (M,) float64.
        weights: (M,) float64, positive, any sum.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor

    def eps(self, x: Tensor, rho: Tensor | float) -> Tensor:
        """Return E[eps | x]: (B, d) -> (B, d)."""
        variance = self.stds**2 + rho**2
        offset = x[:, None, :] - self.means
        height = torch.sub(self._log_weights, variance.log(), alpha=self.means.shape[1] / 2)
        share = torch.addcdiv(height, offset.square().sum(-1), variance, value=-0.5).softmax(1) / variance
        return rho * torch.addmm(share.sum(1, keepdim=True) * x, share, self.means, alpha=-1)

    @cached_property
    def _log_weights(self) -> Tensor:
        return self.weights.log()

    def denoise(self, x: Tensor, rho: Tensor | float) -> Tensor:
        """Return E[x_0 | x]: (B, d) -> (B, d)."""
        return x - rho * self.eps(x, rho)

    def responsibilities(self, x: Tensor, rho: Tensor | float) -> Tensor:
        """Return r_i(x), the probability that x (B, d) comes from component i: (B, M), each row of sum 1.

        |x - m|^2 = |x|^2 + |m|^2 - 2 x.m takes one matrix product and memory B M in place of B M d; rounding shifts
        the exponents by about 1e-16 (|x|^2 + |m|^2) / V_i.
        """
        variance = self.stds**2 + rho**2
        norms = x.square().sum(1, keepdim=True) + self.means.square().sum(1)
        distance = torch.addmm(norms, x, self.means.T, alpha=-2)
        height = torch.sub(self._log_weights, variance.log(), alpha=self.means.shape[1] / 2)
        return torch.addcdiv(height, distance, variance, value=-0.5).softmax(1)

    def eps_by_products(self, x: Tensor, rho: Tensor | float) -> Tensor:
        """Return `eps` from `responsibilities`, with their rounding: 20 times as fast for thousands of components."""
        share = self.responsibilities(x, rho) / (self.stds**2 + rho**2)
        return rho * torch.addmm(share.sum(1, keepdim=True) * x, share, self.means, alpha=-1)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return the mean (d,) and the covariance (d, d) of x_0."""
        share = self.weights / self.weights.sum()
        own = (share @ self.stds**2) * torch.eye(self.means.shape[1]).to(self.means)
        return _moments(share, self.means, own)

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw independent samples of x_0: (count, d); the generator is on the device of the means."""
        chosen = self.weights.multinomial(count, replacement=True, generator=generator)
        return self.means[chosen] + self.stds[chosen, None] * _normal(self.means, count, generator)


@dataclass(frozen=True)
class FullGaussianMixture:
    """x_0 ~ sum_i w_i N(m_i, C_i), C_i = U_i diag(c_i^2) U_i^T: any covariances, given by their eigenvectors.

    With V_i = diag(c_i^2 + rho^2), z_i = U_i^T (x - m_i) and responsibilities
    r_i(x) ~ w_i det(V_i)^(-1/2) exp(-z_i^T V_i^-1 z_i / 2),

        eps = rho sum_i r_i U_i V_i^-1 z_i,

    without cancellation at small rho. Use this as an exact model of data with classes. rho is a float, or (B, 1)
    float64 for a level per row.

    Attributes:
        means: (M, d) float64.
        variances: (M, d) float64, c_i^2 >= 0.
        axes: (M, d, d) float64, orthogonal; column k of axes[i] belongs to variances[i, k].
        weights: (M,) float64, positive, any sum.
    """

    means: Tensor
    variances: Tensor
    axes: Tensor
    weights: Tensor

    def eps(self, x: Tensor, rho: Tensor | float) -> Tensor:
        """Return E[eps | x]: (B, d) -> (B, d)."""
        along, variance = self._along(x, rho)
        pull = self._posterior(along, variance)[..., None] * along / variance
        flat = pull.permute(1, 0, 2).reshape(len(x), -1)
        return rho * (flat @ self.axes.transpose(1, 2).reshape(flat.shape[1], -1))

    def denoise(self, x: Tensor, rho: Tensor | float) -> Tensor:
        """Return E[x_0 | x]: (B, d) -> (B, d)."""
        return x - rho * self.eps(x, rho)

    def responsibilities(self, x: Tensor, rho: Tensor | float) -> Tensor:
        """Return r_i(x), the probability that x (B, d) comes from component i: (B, M), each row of sum 1."""
        return self._posterior(*self._along(x, rho)).T

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return the mean (d,) and the covariance (d, d) of x_0."""
        share = self.weights / self.weights.sum()
        scaled = self.axes * (share[:, None] * self.variances)[:, None, :]
        return _moments(share, self.means, (scaled @ self.axes.transpose(1, 2)).sum(0))

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw independent samples of x_0: (count, d); the generator is on the device of the means."""
        chosen = self.weights.multinomial(count, replacement=True, generator=generator)
        along = self.variances[chosen].sqrt() * _normal(self.means, count, generator)
        drawn = torch.empty_like(along)
        for i in range(len(self.means)):
            mine = chosen == i
            drawn[mine] = self.means[i] + along[mine] @ self.axes[i].T
        return drawn

    def _along(self, x: Tensor, rho: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return z (M, B, d) and the diagonals of V, (M, 1, d) or (M, B, d)."""
        return (x - self.means[:, None, :]) @ self.axes, self.variances[:, None, :] + rho**2

    def _posterior(self, along: Tensor, variance: Tensor) -> Tensor:
        """Return responsibilities (M, B) of `_along`."""
        height = self.weights.log()[:, None] - variance.log().sum(-1) / 2
        return (height - (along.square() / variance).sum(-1) / 2).softmax(0)


def _moments(share: Tensor, means: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """m = sum_i w_i m_i and sum_i w_i C_i + sum_i w_i (m_i - m)(m_i - m)^T; `own` (d, d) is the first sum of the two.

    Args:
        share: weights (M,) of sum 1.
    """
    mean = share @ means
    offset = means - mean
    return mean, own + (share[:, None] * offset).T @ offset


def _normal(like: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    return torch.randn(count, like.shape[1], generator=generator, dtype=like.dtype, device=like.device)
