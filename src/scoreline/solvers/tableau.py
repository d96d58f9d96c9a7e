"""The tableau: every fixed-step method written as one linear recursion; and `build`, which makes the one of a run."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.schedules.base import Schedule
from scoreline.values import check_final

if TYPE_CHECKING:
    from scoreline.solvers.adaptive import Adaptive, AdaptiveRun


class Sum(NamedTuple):
    """A row of a tableau as the sparse sum that `sampling.trajectory` evaluates.

    Attributes:
        terms: (is a state, number, weight); a state whose memory the sum may overwrite comes first.
        noise: standard deviation of the row's fresh noise.
        call: whether the row starts with a network call, eps(x_k, rho_k).
        dead: the states (True) and estimates (False), by number, that no later row reads.
    """

    terms: list[tuple[bool, int, float]]
    noise: float
    call: bool
    dead: list[tuple[bool, int]]


@dataclass(frozen=True)
class Tableau:
    """A whole run as K rows:

        x_{k+1} = sum_j S_kj x_j + sum_j N_kj eps(x_j, rho_j) + B_k z_k,    k = 0 .. K-1.

    Every fixed-step solver returns one; use it to inspect a method's weights, to count its calls (`nfe`), or to run it
    (`sampling.integrate`). States are in unit-signal coordinates. A row that needs no call (its column of N is empty)
    costs nothing, so correctors and changes of variable are rows too.

    Attributes:
        rho: noise levels of the states x_0 .. x_K, (K + 1,) float64.
        S: weights of states, (K, K) float64, lower triangular, rows sum to one.
        N: weights of noise estimates, (K, K) float64, lower triangular. An estimate is a network call exactly where
            its column has a non-zero entry.
        B: standard deviation of fresh noise z_k ~ N(0, I), (K,) float64; zero for deterministic methods.

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
            raise ValueError(f"rho has {rows} rows, but S is {self.S.shape}, N {self.N.shape}, B {self.B.shape}")
        for name, part in (("rho", self.rho), ("S", self.S), ("N", self.N), ("B", self.B)):
            if part.dtype != torch.float64 or not bool(part.sum().isfinite()):
                raise ValueError(f"{name} must be finite float64, got {part.dtype}")
        if bool(self.S.triu(1).any() | self.N.triu(1).any()):
            raise ValueError("a row reads a state that does not exist yet")
        if float((self.S.sum(1) - 1).abs().max()) > 1e-9:
            raise ValueError("the rows of S must sum to one: the method would not preserve a constant")

    @classmethod
    def single_term(cls, rho: Tensor, N: Tensor) -> "Tableau":
        """Return x_{k+1} = x_k + sum_j N_kj eps_j, that is S = I: the form of all Adams-Bashforth methods."""
        rows = len(rho) - 1
        return cls(rho, torch.eye(rows, dtype=torch.float64), N, torch.zeros(rows, dtype=torch.float64))

    @cached_property
    def calls(self) -> tuple[bool, ...]:
        """For each state x_0 .. x_{K-1}, whether eps(x_j, rho_j) is evaluated."""
        return tuple(self.N.ne(0).any(0).tolist())

    @cached_property
    def sums(self) -> tuple[Sum, ...]:
        """The rows as `sampling.trajectory` evaluates them."""
        S, N = _sparse(self.S), _sparse(self.N)
        # The last row that reads each state (True, j) and each estimate (False, j): it is dead after that row.
        last = {(True, j): j for j in range(len(S))}
        for k in range(len(S)):
            last |= {(True, j): k for j, _ in S[k]} | {(False, j): k for j, _ in N[k]}
        dead: list[list[tuple[bool, int]]] = [[] for _ in S]
        for term, k in last.items():
            dead[k].append(term)
        rows = []
        for k, noise in enumerate(self.B.tolist()):
            terms = [(True, j, weight) for j, weight in S[k]] + [(False, j, weight) for j, weight in N[k]]
            free = {term for term in dead[k] if term > (True, 0)}  # states, but x_0, which belongs to the caller
            # First a state that dies here, whose memory takes the sum; then a unit weight, which costs no product.
            terms.sort(key=lambda term: (term[:2] not in free, term[2] != 1.0))
            rows.append(Sum(terms, noise, self.calls[k], dead[k]))
        return tuple(rows)

    @cached_property
    def peak_tensors(self) -> int:
        """The most tensors of a batch's shape that the sampling loop holds at once, outside of the network.

        These are the states and estimates that this row or a later one reads, memory that waits to be used again, and
        fresh noise.
        """
        alive, spare, most = {(True, 0)}, 0, 1
        for k, row in enumerate(self.sums):
            alive |= {(False, k)} if row.call else set()
            free = spare + sum(is_state and j > 0 for is_state, j in row.dead)
            most = max(most, len(alive) + spare + bool(row.noise) + (free == 0))
            alive = (alive - set(row.dead)) | {(True, k + 1)}
            spare = min(1, max(0, free - 1))
        return most

    def unrolled(self) -> "Tableau":
        """Return the same method with one row a call, x_{k+1} = x_k + sum_j N_kj eps_j.

        Rows of S sum to one, so every state is x_0 + sum_j M_kj eps_j; N is the difference of M between calls.

        Raises:
            ValueError: for a stochastic tableau, whose noise would have to be added up too.
        """
        if bool(self.B.any()):
            raise ValueError("a stochastic tableau has no such form")
        rows = len(self.B)
        M = torch.zeros(rows + 1, rows, dtype=torch.float64)
        for k in range(rows):
            M[k + 1] = self.S[k] @ M[:-1] + self.N[k]
        called = [k for k in range(rows) if self.calls[k]]
        kept = torch.tensor([*called, rows])
        return Tableau.single_term(self.rho[kept], M[kept][:, torch.tensor(called)].diff(dim=0))

    @property
    def nfe(self) -> int:
        """Network evaluations (NFE) per image: the columns of N with an entry."""
        return sum(self.calls)

    @property
    def residual(self) -> float:
        """max_k |hypot(sum_j S_kj rho_j + sum_j N_kj, B_k) - rho_{k+1}| / rho_0.

        It is zero if every row ends with exactly the noise that its level says: for data at a single point, x is rho
        times a standard normal, and a row's mean part and its fresh noise add in squares. Without B this is exactness
        for constant eps.
        """
        kept = self.S @ self.rho[:-1] + self.N.sum(1)
        return float((torch.where(self.B > 0, kept.hypot(self.B), kept) - self.rho[1:]).abs().max() / self.rho[0])


def _sparse(part: Tensor) -> list[list[tuple[int, float]]]:
    """Return (column, value) of the non-zero entries of each row."""
    rows: list[list[tuple[int, float]]] = [[] for _ in range(len(part))]
    at = part.nonzero(as_tuple=True)
    for k, j, value in zip(at[0].tolist(), at[1].tolist(), part[at].tolist(), strict=True):
        rows[k].append((j, value))
    return rows


def denoise_last(tableau: Tableau) -> Tableau:
    """Append the final denoising step: x_{K+1} = x_K - rho_K eps(x_K, rho_K) = E[x_0 | x_K], one more call.

    After Heun's rows this is EDM's last Euler step to zero (Karras et al., 2022, arXiv:2206.00364, Alg. 1). Use it
    where a protocol ends like this, as EDM's does; `build_tableau` applies it for `final="denoise"`.

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
    """A solver: a frozen object whose fields are the method's options.

    `convergence` is the order at which the error falls with NFE: the theoretical one, or the measured one where the
    solver's docstring explains the difference. `scoreline certify` checks it. Write a class with these members for a
    method of your own; it need not inherit from this one.
    """

    @property
    def convergence(self) -> float: ...

    def __call__(self, schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Tableau:
        """Return the tableau that goes from sigma_max to sigma_min in exactly `nfe` network calls.

        Methods with `budget: fixed` spend the largest multiple of their order that nfe holds; see `Tableau.nfe`.

        Args:
            schedule: the coordinate in which steps are uniform.
            sigma_max: noise level of the first state.
            sigma_min: noise level of the last state.
            nfe: network evaluations per image, at least 1.

        Raises:
            InputError: if the budget or the range is impossible for the method.
        """
        ...


def build(
    solver: "Solver | Adaptive", schedule: Schedule, sigma_range: tuple[float, float], nfe: int, final: str
) -> "Tableau | AdaptiveRun":
    """Build a whole run: a tableau, or an `AdaptiveRun` for solvers that choose their steps as they go.

    Use this rather than calling a solver: the budget here includes the final denoising step.

    Args:
        solver: the method.
        schedule: the coordinate in which steps are uniform.
        sigma_range: (sigma_max, sigma_min).
        nfe: all network evaluations per image; a ceiling for adaptive solvers.
        final: `none` ends at sigma_min; `denoise` spends the last evaluation on E[x_0 | x] (`denoise_last`).

    Raises:
        InputError: for nfe < 1, an unknown `final`, nfe < 2 with `denoise`, a second final denoising step, or a network
            call at rho = 0, where eps is not defined.
    """
    check_final(final)
    steps_nfe = nfe - (final == "denoise")
    if steps_nfe < 1:
        raise InputError(f"nfe={nfe}: needs at least {2 if final == 'denoise' else 1} with final={final}")
    run = solver(schedule, *sigma_range, steps_nfe)
    if not isinstance(run, Tableau):
        return replace(run, nfe=nfe).denoised() if final == "denoise" else run
    if bool((run.rho[:-1][torch.tensor(run.calls)] == 0).any()):
        raise InputError("sigma_min=0: this solver evaluates the network there; use sigma_min above 0, final=denoise")
    if final == "none":
        return run
    if float(run.rho[-1]) == 0:
        raise InputError("final=denoise: this run ends at clean data already; use final=none")
    return denoise_last(run)


def build_tableau(
    solver: Solver, schedule: Schedule, sigma_range: tuple[float, float], nfe: int, final: str
) -> Tableau:
    """Build the tableau of a whole run, the final denoising step included.

    Use this rather than calling a solver if you want to look at the tableau, or to `integrate` it many times.

    Args:
        solver: the method; one that chooses its steps as it runs has no tableau.
        schedule: the coordinate in which steps are uniform.
        sigma_range: (sigma_max, sigma_min).
        nfe: all network evaluations per image.
        final: `none` ends at sigma_min; `denoise` spends the last evaluation on E[x_0 | x] (`denoise_last`).

    Raises:
        InputError: as `build`, and for an adaptive solver.
    """
    run = build(solver, schedule, sigma_range, nfe, final)
    if not isinstance(run, Tableau):
        raise InputError(f"solver: {solver} chooses its steps as it runs and has no tableau; use another one here")
    return run
