"""Every fixed-step method unrolled into one table."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.schedules.base import Schedule


@dataclass(frozen=True)
class Tableau:
    """x_{k+1} = sum_j S_kj x_j + sum_j N_kj eps(x_j, rho_j) + B_k z_k,  k = 0 .. K-1.

    Attributes:
        rho: noise levels of the states x_0 .. x_K, (K + 1,) float64.
        S: weights of states, (K, K) float64, lower triangular, rows sum to one.
        N: weights of noise estimates, (K, K) float64, lower triangular. An estimate is a network call exactly where
            its column has a non-zero entry.
        B: standard deviation of fresh noise z_k ~ N(0, I), (K,) float64; zero for deterministic methods.

    A row that keeps the noise level (its column of N empty) costs nothing, so correctors and changes of variable are
    rows too.

    Raises:
        ValueError: if shapes disagree, an entry is not finite or lies above the diagonal, or a row of S does not sum
            to one.
    """

    rho: Tensor
    S: Tensor
    N: Tensor
    B: Tensor

    def __post_init__(self) -> None:
        rows = len(self.rho) - 1
        if self.S.shape != (rows, rows) or self.N.shape != (rows, rows) or self.B.shape != (rows,):
            raise ValueError(f"{rows} rows asked for by rho, S {self.S.shape}, N {self.N.shape}, B {self.B.shape}")
        for name, part in (("rho", self.rho), ("S", self.S), ("N", self.N), ("B", self.B)):
            if part.dtype != torch.float64 or not bool(part.isfinite().all()):
                raise ValueError(f"{name} must be finite float64, got {part.dtype}")
        if bool(self.S.triu(1).any() | self.N.triu(1).any()):
            raise ValueError("a row reads a state that does not exist yet")
        if float((self.S.sum(1) - 1).abs().max()) > 1e-9:
            raise ValueError("the rows of S must sum to one: the method would not preserve a constant")

    @classmethod
    def single_term(cls, rho: Tensor, N: Tensor) -> "Tableau":
        """Rows that start from the state before: S = I. This is the form of all Adams-Bashforth methods."""
        rows = len(rho) - 1
        return cls(rho, torch.eye(rows, dtype=torch.float64), N, torch.zeros(rows, dtype=torch.float64))

    @cached_property
    def calls(self) -> tuple[bool, ...]:
        """For each state x_0 .. x_{K-1}, whether eps(x_j, rho_j) is evaluated."""
        return tuple(self.N.ne(0).any(0).tolist())

    @property
    def nfe(self) -> int:
        """Network evaluations per image."""
        return sum(self.calls)

    @property
    def residual(self) -> float:
        """max_k |sum_j S_kj rho_j + sum_j N_kj - rho_{k+1}| / rho_0: zero when the method is exact for constant eps."""
        return float((self.S @ self.rho[:-1] + self.N.sum(1) - self.rho[1:]).abs().max() / self.rho[0])


def denoise_last(tableau: Tableau) -> Tableau:
    """One more row and one more call: x_{K+1} = x_K - rho_K eps(x_K, rho_K) = E[x_0 | x_K], at rho = 0.

    After Heun's rows this is EDM's last Euler step to zero (Karras et al., 2022, arXiv:2206.00364, Alg. 1).

    Raises:
        ValueError: if the tableau ends at rho = 0 already.
    """
    last = float(tableau.rho[-1])
    if last == 0:
        raise ValueError("the tableau ends at rho = 0 already")
    rows = len(tableau.B)
    rho, B = torch.nn.functional.pad(tableau.rho, (0, 1)), torch.nn.functional.pad(tableau.B, (0, 1))
    S, N = (torch.nn.functional.pad(part, (0, 1, 0, 1)) for part in (tableau.S, tableau.N))
    S[rows, rows], N[rows, rows] = 1.0, -last
    return replace(tableau, rho=rho, S=S, N=N, B=B)


class Solver(Protocol):
    """A frozen object whose fields are the method's options."""

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        """The table that goes from sigma_max to sigma_min in exactly `nfe` network calls.

        Args:
            schedule: where the steps are uniform.
            sigma_max, sigma_min: noise levels of the first and last state.
            nfe: network evaluations per image, at least 1.

        Raises:
            InputError: if the budget or the range is impossible for the method.
        """
        ...


def build(solver: Solver, schedule: Schedule, sigma_range: tuple[float, float], nfe: int, final: str) -> Tableau:
    """The tableau of a whole run, the last hop included in the budget.

    Args:
        sigma_range: (sigma_max, sigma_min).
        nfe: network evaluations per image, all of them.
        final: `none` ends at sigma_min; `denoise` spends the last evaluation on E[x_0 | x] (`denoise_last`).

    Raises:
        InputError: for nfe < 1, an unknown `final`, or nfe < 2 with `denoise`.
    """
    if final not in ("none", "denoise"):
        raise InputError(f"final={final}: choose none (stop at sigma_min) or denoise (one more call, to clean data)")
    steps_nfe = nfe - (final == "denoise")
    if steps_nfe < 1:
        raise InputError(f"nfe={nfe}: needs at least {2 if final == 'denoise' else 1} with final={final}")
    tableau = solver(schedule, *sigma_range, steps_nfe)
    return denoise_last(tableau) if final == "denoise" else tableau
