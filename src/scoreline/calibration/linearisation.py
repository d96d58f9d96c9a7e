"""How the end of a run changes with its table, from evaluations of the model alone."""

from collections.abc import Callable

import torch
from torch import Tensor

from scoreline.solvers.tableau import Tableau

LevelEps = Callable[[Tensor, Tensor], Tensor]
"""eps(x (R, *), rho (R,)) -> (R, *): every row has its own noise level."""

STEP = 3e-3
"""Length of a difference, in units of the noise level: truncation and float32 rounding both stay below 1 %."""


def linearise(
    eps: LevelEps, x: Tensor, table: Tableau, slopes: tuple[Tensor, Tensor], step: float = STEP
) -> tuple[Tensor, Tensor]:
    """The sample x_K (B, *) and its derivatives d x_K / d theta (P, B, *).

    Derivatives go along with the run: d x_{k+1} = d x_k + sum_j (dN_kj eps_j + N_kj d eps_j), where
    d eps_j = (eps(x_j + h d x_j, rho_j + h d rho_j) - eps_j) / h is one more evaluation for every parameter that
    state j depends on. So a model needs no derivatives of its own, nothing of a network's inside is kept, and memory is
    P states for each estimate.

    Args:
        table: with one row a call.
        slopes: d rho / d theta (P, K + 1) and dN / d theta (P, K, K), see `Neighbourhood.slopes`.
        step: length of a difference, in units of the noise level.
    """
    d_rho, d_N = slopes
    rho, N = table.rho.tolist(), table.N.tolist()
    moved = x.new_zeros(len(d_rho), *x.shape)
    estimates: list[Tensor] = []
    changes: list[Tensor] = []
    for k in range(table.nfe):
        estimates.append(eps(x, torch.full((len(x),), rho[k], dtype=torch.float64, device=x.device)))
        changes.append(_differences(eps, x, rho[k], estimates[k], moved, d_rho[:, k], step))
        for j in range(k + 1):
            x = x + N[k][j] * estimates[j]
            weights = d_N[:, k, j].to(x)
            moved = moved + N[k][j] * changes[j] + _column(weights, x) * estimates[j]
    return x, moved


def _differences(
    eps: LevelEps, x: Tensor, rho: float, estimate: Tensor, moved: Tensor, d_rho: Tensor, step: float
) -> Tensor:
    """d eps / d theta (P, B, *) at a state whose derivatives are `moved` and d_rho."""
    size = torch.maximum(moved.flatten(1).square().mean(1).sqrt().double(), d_rho.abs().to(x.device))
    changes = torch.zeros_like(moved)
    for p in size.nonzero().flatten().tolist():
        h = step * rho / float(size[p])
        level = torch.full((len(x),), rho + h * float(d_rho[p]), dtype=torch.float64, device=x.device)
        changes[p] = (eps(x + h * moved[p], level) - estimate) / h
    return changes


def _column(weights: Tensor, x: Tensor) -> Tensor:
    return weights.reshape(-1, *[1] * x.ndim)
