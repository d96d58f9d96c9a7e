"""The adjoint method: derivatives of a run's end by its tableau, backwards through the run, one call at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.solvers.tableau import Tableau

LevelEps = Callable[[Tensor, Tensor], Tensor]
"""eps(x (B, *), q (B,)) -> (B, *), differentiable in both."""

EndLoss = Callable[[Tensor], Tensor]
"""x_K (B, *) -> the loss of every image (B,)."""


class Slope(NamedTuple):
    """The loss of every image (B,), and for every image its derivatives by S, N (B, K, K), q (B, K) and x_0 (B, *)."""

    loss: Tensor
    S: Tensor
    N: Tensor
    query: Tensor
    noise: Tensor


def slope(eps: LevelEps, x: Tensor, tableau: Tableau, loss: EndLoss, memory: float = 0.0) -> Slope:
    """Compute the loss at the end of a run, x_{k+1} = sum_j S_kj x_j + sum_j N_kj eps(x_j, q_j), and its derivatives.

    With l_k = dL / d x_k, complete once all later rows have added to it:

        dL / dS_kj = <l_{k+1}, x_j>,   dL / dN_kj = <l_{k+1}, eps_j>,   m_j = sum_k N_kj l_{k+1},
        l_j = sum_k S_kj l_{k+1} + (d eps_j / dx)^T m_j,                dL / dq_j = <m_j, d eps_j / dq>.

    The run keeps K states and K estimates. Calls keep what their derivatives need as long as it fits in `memory`; the
    others are repeated, which costs a third more and holds the activations of one call at a time.

    Args:
        eps: the model.
        x: noise (B, *) at the first level.
        tableau: a tableau with one row a call, perhaps without one in the first row.
        loss: the loss of an image as a function of its end.
        memory: bytes of activations that may wait for the way back.

    Source: Chen et al. (2018), Neural Ordinary Differential Equations, arXiv:1806.07366, in its discrete form.
    """
    S, N, K = tableau.S.detach(), tableau.N.detach(), len(tableau.B)
    calls = _Calls(eps, tableau.query_levels.detach(), memory)
    states, estimates = [x], list[Tensor]()
    for k in range(K):
        estimates.append(calls(k, states[k]) if tableau.calls[k] else torch.zeros_like(x))
        states.append(_sum(S[k], states) + _sum(N[k], estimates))
    values, left = _end(loss, states.pop())
    by_state, by_estimate = [torch.zeros_like(x)] * K, [torch.zeros_like(x)] * K
    by_S, by_N = torch.zeros(2, len(x), K, K, dtype=torch.float64)
    by_query = torch.zeros(len(x), K, dtype=torch.float64)
    for k in range(K - 1, -1, -1):  # `left` is l_{k+1}
        for j in range(k + 1):
            by_S[:, k, j], by_N[:, k, j] = _dot(left, states[j]), _dot(left, estimates[j])
            by_state[j] = by_state[j] + float(S[k, j]) * left
            by_estimate[j] = by_estimate[j] + float(N[k, j]) * left
        left = by_state[k]
        if tableau.calls[k]:
            by_x, by_query[:, k] = calls.vector_jacobian(k, states[k], by_estimate[k])
            left = left + by_x
    return Slope(values, by_S, by_N, by_query, left)


@dataclass
class _Calls:
    """The calls of a run, with the graphs of those that fit in memory."""

    eps: LevelEps
    query: Tensor
    left: float

    def __post_init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(self, k: int, x: Tensor) -> Tensor:
        if self.left <= 0:
            with torch.no_grad():
                return self.eps(x, self.query[k].expand(len(x)).to(x.device))
        with torch.autograd.graph.saved_tensors_hooks(self._count, lambda kept: kept):
            graph = self._graph(k, x)
        if self.left > 0:
            self.kept[k] = graph
        return graph[2].detach()

    def _count(self, kept: Tensor) -> Tensor:
        self.left -= kept.nbytes
        return kept

    def _graph(self, k: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            level = self.query[k].expand(len(x)).to(x.device, copy=True).requires_grad_()
            return x, level, self.eps(x, level)

    def vector_jacobian(self, k: int, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """Return (d eps / dx)^T m and <m, d eps / dq> of every image."""
        x, level, estimate = self.kept.pop(k) if k in self.kept else self._graph(k, x)
        by_x, by_level = torch.autograd.grad(estimate, (x, level), m, materialize_grads=True)
        return by_x, by_level.cpu()


def _end(loss: EndLoss, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        values = loss(x)
        (left,) = torch.autograd.grad(values.sum(), x)
    return values.detach().double().cpu(), left


def _sum(weights: Tensor, parts: list[Tensor]) -> Tensor:
    total = torch.zeros_like(parts[0])
    for weight, part in zip(weights.tolist(), parts, strict=False):
        total = total + weight * part if weight else total
    return total


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).flatten(1).sum(1, dtype=torch.float64).cpu()
