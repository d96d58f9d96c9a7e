"""The linearisation of a run in the parameters of its tableau, from evaluations of the model alone."""

from collections.abc import Callable

import torch
from torch import Tensor

from scoreline.solvers.tableau import Tableau

LevelEps = Callable[[Tensor, Tensor], Tensor]
"""eps(x (R, *), rho (R,)) -> (R, *): every row has its own noise level."""

STEP = 3e-3
"""Length of a difference quotient, in units of the noise level: truncation and float32 rounding stay below 1 %."""


def linearise(
    eps: LevelEps, x: Tensor, tableau: Tableau, slopes: tuple[Tensor, Tensor], step: float = STEP
) -> tuple[Tensor, Tensor]:
    """Return the sample x_K (B, *) and its derivatives d x_K / d theta (P, B, *), in forward mode:

        d x_{k+1} = d x_k + sum_j (dN_kj eps_j + N_kj d eps_j),
        d eps_j = (eps(x_j + h d x_j, rho_j + h d rho_j) - eps_j) / h.

    The difference quotient is one more evaluation for every parameter that state j depends on. So the model need not be
    differentiable, no activations of a network are kept, and memory is P states for each estimate.

    Args:
        eps: the model.
        x: noise (B, *) at the first level.
        tableau: a tableau with one row a call.
        slopes: d rho / d theta (P, K + 1) and dN / d theta (P, K, K), see `Neighbourhood.slopes`.
        step: length of a difference, in units of the noise level.
    """
    d_rho, d_N = slopes
    rho, N = tableau.rho.tolist(), tableau.N.tolist()
    d_x = x.new_zeros(len(d_rho), *x.shape)
    estimates: list[Tensor] = []
    changes: list[Tensor] = []
    for k in range(tableau.nfe):
        estimates.append(eps(x, torch.full((len(x),), rho[k], dtype=torch.float64, device=x.device)))
        changes.append(_differences(eps, x, rho[k], estimates[k], d_x, d_rho[:, k], step))
        for j in range(k + 1):
            x = x + N[k][j] * estimates[j]
            weights = d_N[:, k, j].to(x)
            d_x = d_x + N[k][j] * changes[j] + _column(weights, x) * estimates[j]
    return x, d_x


def _differences(
    eps: LevelEps, x: Tensor, rho: float, estimate: Tensor, d_x: Tensor, d_rho: Tensor, step: float
) -> Tensor:
    """Return d eps / d theta (P, B, *) at a state with the derivatives d_x and d_rho."""
    size = torch.maximum(d_x.flatten(1).square().mean(1).sqrt().double(), d_rho.abs().to(x.device))
    changes = torch.zeros_like(d_x)
    for p in size.nonzero().flatten().tolist():  # a state does not depend on the parameters of later rows
        h = step * rho / float(size[p])
        level = torch.full((len(x),), rho + h * float(d_rho[p]), dtype=torch.float64, device=x.device)
        changes[p] = (eps(x + h * d_x[p], level) - estimate) / h
    return changes


def _column(weights: Tensor, x: Tensor) -> Tensor:
    return weights.reshape(-1, *[1] * x.ndim)
