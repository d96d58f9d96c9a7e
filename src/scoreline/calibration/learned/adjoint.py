"""The adjoint method: derivatives of a run's end by its tableau, backwards through the run, one call at a time."""

from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.calibration.learned.linearisation import LevelEps
from scoreline.solvers.tableau import Tableau


class Slope(NamedTuple):
    """The sum over a batch of the RMS distances, and its derivatives by the levels (K + 1,) and weights (K, K)."""

    distance: float
    rho: Tensor
    N: Tensor


def slope(eps: LevelEps, x: Tensor, end: Tensor, tableau: Tableau) -> Slope:
    """Compute sum_b sqrt(mean (x_K - end)^2) and its derivatives, for x_{k+1} = x_k + sum_j N_kj eps_j.

    With l_k = dL / d x_k: dL / dN_kj = <l_{k+1}, eps_j>, m_j = sum_{k >= j} N_kj l_{k+1},
    l_j = l_{j+1} + (d eps_j / d x)^T m_j and dL / d rho_j = <m_j, d eps_j / d rho>. The run keeps K states and K
    estimates; each call is repeated for its derivatives, so only one call's activations are in memory.

    Args:
        eps: differentiable in both arguments.
        x: noise (B, *) at the first level.
        end: the end (B, *) of the fine run.
        tableau: a tableau with one row a call (`Tableau.unrolled`).

    Source: Chen et al. (2018), Neural Ordinary Differential Equations, arXiv:1806.07366, in its discrete form.
    """
    rho, N, K = tableau.rho, tableau.N, tableau.nfe
    states, estimates = _run(eps, x, rho, N)
    residual = states.pop() - end
    size = residual.flatten(1).square().mean(1).sqrt()
    left = residual / (size.clamp(min=torch.finfo(size.dtype).tiny) * residual[0].numel()).reshape(-1, *_ones(x))
    carried = torch.zeros(K, *x.shape, dtype=x.dtype, device=x.device)  # m_j, as far as it is known
    by_rho, by_N = torch.zeros(K + 1, dtype=torch.float64), torch.zeros(K, K, dtype=torch.float64)
    for k in range(K - 1, -1, -1):  # `left` is l_{k+1}
        for j in range(k + 1):
            by_N[k, j] = float((left * estimates[j]).sum(dtype=torch.float64))
            carried[j] += float(N[k, j]) * left
        by_x, by_level = _vector_jacobian(eps, states[k], rho[k], carried[k])
        by_rho[k], left = by_level, left + by_x
    return Slope(float(size.double().sum()), by_rho, by_N)


def _run(eps: LevelEps, x: Tensor, rho: Tensor, N: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    states, estimates = [x], []
    with torch.no_grad():
        for k in range(len(N)):
            estimates.append(eps(x, rho[k].expand(len(x)).to(x.device)))
            for j in range(k + 1):
                x = x + float(N[k, j]) * estimates[j]
            states.append(x)
    return states, estimates


def _vector_jacobian(eps: LevelEps, x: Tensor, rho: Tensor, m: Tensor) -> tuple[Tensor, float]:
    """Return (d eps / d x)^T m and <m, d eps / d rho>."""
    with torch.enable_grad():
        x, level = x.detach().requires_grad_(), rho.detach().to(x.device).requires_grad_()
        by_x, by_level = torch.autograd.grad(eps(x, level.expand(len(x))), (x, level), m, materialize_grads=True)
    return by_x, float(by_level)


def _ones(x: Tensor) -> list[int]:
    return [1] * (x.ndim - 1)
