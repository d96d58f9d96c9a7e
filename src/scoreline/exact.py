"""Data distributions whose denoiser is known exactly: the oracles of tests and certification."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianMixture:
    """x_0 ~ sum_i w_i N(m_i, s_i^2 I). One component is a Gaussian; s_i = 0 is an empirical distribution.

    With V_i = s_i^2 + rho^2 and responsibilities r_i(x) ~ w_i V_i^(-d/2) exp(-|x - m_i|^2 / (2 V_i)),
    E[x_0 | x] = sum_i r_i (s_i^2 x + rho^2 m_i) / V_i and eps = (x - E[x_0 | x]) / rho = rho sum_i r_i (x - m_i) / V_i.

    Attributes:
        means: (M, d) float64.
        stds: (M,) float64.
        weights: (M,) float64, positive, any sum.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor

    def eps(self, x: Tensor, rho: float) -> Tensor:
        """E[eps | x]: (B, d) -> (B, d)."""
        variance = self.stds**2 + rho**2
        offset = x[:, None, :] - self.means
        height = torch.sub(self._log_weights, variance.log(), alpha=self.means.shape[1] / 2)
        share = torch.addcdiv(height, offset.square().sum(-1), variance, value=-0.5).softmax(1) / variance
        return rho * torch.addmm(share.sum(1, keepdim=True) * x, share, self.means, alpha=-1)

    @cached_property
    def _log_weights(self) -> Tensor:
        return self.weights.log()

    def denoise(self, x: Tensor, rho: float) -> Tensor:
        """E[x_0 | x]: (B, d) -> (B, d)."""
        return x - rho * self.eps(x, rho)
