"""The tableau: every fixed-step method written as one linear recursion; and `build`, which makes the one of a run."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from scoreline.errors import InputError, mismatch
from scoreline.schedules.base import Schedule, check_map, grid
from scoreline.schedules.tabulated import Tabulated
from scoreline.solvers.frames import FLOW, NOISE, Frame
from scoreline.values import check_final

if TYPE_CHECKING:
    from scoreline.solvers.adaptive import Adaptive, AdaptiveRun


class Sum(NamedTuple):
    """A row of a tableau as the sparse sum that `sampling.trajectory` evaluates.

    Attributes:
        terms: (is a state, number, weight); a state whose memory the sum may overwrite comes first.
        noise: standard deviation of the row's fresh noise.
        call: whether the row starts with a network call, eps(x_k, q_k).
        dead: the states (True) and estimates (False), by number, that no later row reads.
    """

    terms: list[tuple[bool, int, float]]
    noise: float
    call: bool
    dead: list[tuple[bool, int]]


@dataclass(frozen=True)
class Tableau:
    """A whole run as K rows:

        x_{k+1} = sum_j S_kj x_j + sum_j N_kj eps(x_j, q_j) + B_k z_k,    k = 0 .. K-1.

    Every fixed-step solver returns one; use it to inspect a method's weights, to count its calls (`nfe`), or to run it
    (`sampling.integrate`). States are in unit-signal coordinates. A row that needs no call (its column of N is empty)
    costs nothing, so correctors and changes of variable are rows too.

    A tableau names its frame (`frames`), the form of the ODE in which its weights were computed. With amplitude a and
    gain l of the frame, y = x / a(rho) and F_j = eps_j - l(q_j) x_j the rows read

        y_{k+1} = sum_j P_kj y_j + sum_j W_kj F_j,    P_kj = (S_kj + N_kj l(q_j)) a_j / a_{k+1},  W_kj = N_kj / a_{k+1},

    and the rows of P sum to one: where F vanishes the run is exact at any budget. In noise prediction (a = 1, l = 0)
    P is S, and a constant stays as it is. A last row to rho = 0 may also be E[x_0 | x], whose row of S sums to one.

    rho_0 may be infinite, where flow models and zero terminal SNR begin. There x_0 stands for x_0 / rho_0, standard
    normal noise, and eps(x_0, q_0) for D(x_0, q_0): these are what column 0 of S and N weighs, and in the frame's own
    coordinates column 0 of P and W weighs the limits of y and of the slope G (`Frame.limit`).

    Attributes:
        rho: noise levels of the states x_0 .. x_K, (K + 1,) float64.
        S: weights of states, (K, K) float64, lower triangular.
        N: weights of noise estimates, (K, K) float64, lower triangular. An estimate is a network call exactly where
            its column has a non-zero entry.
        B: standard deviation of fresh noise z_k ~ N(0, I), (K,) float64; zero for deterministic methods.
        frame: the frame whose invariant the rows keep.
        query: q, the noise levels that the network is given, (K,) float64, which a learned tableau may choose apart
            from those of the states; None is rho_0 .. rho_{K-1} (`query_levels`).

    Raises:
        ValueError: if shapes disagree, an entry is not finite or lies above the diagonal, or a row does not keep the
            frame's invariant.
    """

    rho: Tensor
    S: Tensor
    N: Tensor
    B: Tensor
    frame: Frame = NOISE
    query: Tensor | None = None

    def __post_init__(self) -> None:
        rows = len(self.rho) - 1
        shapes = (self.S.shape, self.N.shape, self.B.shape, self.query_levels.shape)
        if shapes != ((rows, rows), (rows, rows), (rows,), (rows,)):
            raise ValueError(f"rho has {rows} rows, but S, N, B and query are {[tuple(shape) for shape in shapes]}")
        parts = (("rho", self.rho), ("S", self.S), ("N", self.N), ("B", self.B), ("query", self.query_levels))
        for name, part in parts:
            finite = part[1:] if self.from_infinity and name in ("rho", "query") else part
            if part.dtype != torch.float64 or not bool(finite.sum().isfinite()):
                raise ValueError(f"{name} must be finite float64, got {part.dtype}")
        if bool(self.S.triu(1).any() | self.N.triu(1).any()):
            raise ValueError("a row reads a state that does not exist yet")
        off = (self.in_frame()[0].sum(1) - 1).abs()
        clean = (self.rho[1:] == 0) & ((self.S.sum(1) - 1).abs() <= 1e-9)
        if bool((~clean & (off > 1e-9)).any()):
            frame = type(self.frame).__name__
            raise ValueError(f"the rows of S must sum to one in the frame {frame}, or a run would not keep a constant")

    @classmethod
    def single_term(cls, rho: Tensor, W: Tensor, frame: Frame = NOISE, query: Tensor | None = None) -> "Tableau":
        """Return y_{k+1} = y_k + sum_j W_kj F_j, P = I: the form of all Adams-Bashforth methods.

        In noise prediction this is x_{k+1} = x_k + sum_j W_kj eps_j.
        """
        rows = len(rho) - 1
        eye, B = torch.eye(rows, dtype=torch.float64), torch.zeros(rows, dtype=torch.float64)
        if bool(rho[0].detach().isinf()):
            return _from_infinity(rho, W, frame, query)
        if frame == NOISE:
            return cls(rho, eye, W, B, frame, query)
        amplitude, gain = frame.amplitude(rho), frame.gain(rho[:-1] if query is None else query)
        N = amplitude[1:, None] * W
        return cls(rho, eye * amplitude[1:, None] / amplitude[:-1] - N * gain, N, B, frame, query)

    @property
    def from_infinity(self) -> bool:
        """Whether the run begins at rho = infinity."""
        return bool(self.rho[0].detach().isinf())

    @property
    def initial_scale(self) -> float:
        """The factor of standard normal noise in the initial state: rho_0, or 1 at infinity."""
        return initial_scale(float(self.rho[0].detach()))

    @property
    def query_levels(self) -> Tensor:
        """The noise levels q_0 .. q_{K-1} that the network is given, (K,)."""
        return self.rho[:-1] if self.query is None else self.query

    def in_frame(self) -> tuple[Tensor, Tensor]:
        """Return P and W, the weights of y_j and F_j in the frame's own coordinates, (K, K) each."""
        if self.frame == NOISE and not self.from_infinity:
            return self.S, self.N
        amplitude, gain = self.frame.amplitude(self.rho), self.frame.gain(self.query_levels)
        P, W = (self.S + self.N * gain) * amplitude[:-1] / amplitude[1:, None], self.N / amplitude[1:, None]
        if self.from_infinity:  # column 0: from x / rho and D to the frame's state and slope
            column = torch.stack([self.S[:, 0], self.N[:, 0]], 1) @ self.frame.limit.inverse()
            P[:, 0], W[:, 0] = (column / amplitude[1:, None]).unbind(1)
        return P, W

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
        """Return the same method with one row a call, y_{k+1} = y_k + sum_j W_kj F_j (`single_term`).

        A first state without a call keeps its row. From infinite noise a method in noise prediction takes this form in
        flow prediction. Rows of P sum to one, so every y_k is y_0 + sum_j M_kj F_j; W is
        the difference of M between calls.

        Raises:
            ValueError: for a stochastic tableau, whose noise would have to be added up too, and for one that ends with
                E[x_0 | x] in a frame where this row does not keep the invariant.
        """
        if bool(self.B.any()):
            raise ValueError("a stochastic tableau has no such form")
        if self.from_infinity and self.frame == NOISE:  # a method that keeps constants and noise keeps their sum
            return replace(self, frame=FLOW).unrolled()
        rows, (P, W) = len(self.B), self.in_frame()
        if float((P.sum(1) - 1).abs().max()) > 1e-9:
            raise ValueError("a tableau that ends with E[x_0 | x] has no such form in its frame")
        M = torch.zeros(rows + 1, rows, dtype=torch.float64)
        for k in range(rows):
            M[k + 1] = P[k] @ M[:-1] + W[k]
        read = torch.tensor([k for k in range(rows) if self.calls[k] or k == 0])
        kept = torch.cat([read, torch.tensor([rows])])
        query = None if self.query is None else self.query[read]
        return Tableau.single_term(self.rho[kept], M[kept][:, read].diff(dim=0), self.frame, query)

    @property
    def nfe(self) -> int:
        """Network evaluations (NFE) per image: the columns of N with an entry."""
        return sum(self.calls)

    @property
    def residual(self) -> float:
        """max_k |hypot(sum_j S_kj x_j + sum_j N_kj eps_j, B_k) - x_{k+1}| / x_0 for the x and eps of `Frame.exact`.

        It is zero if every row keeps the data that the frame is exact for: in noise prediction a single point, x = rho
        and eps = 1, where each row ends with exactly the noise that its level says (its mean part and its fresh noise
        add in squares); in velocity prediction a Gaussian. A last row that is E[x_0 | x] counts in the former only.
        """
        x, eps = self.frame.exact(self.rho, self.query_levels)
        kept = self.S @ x[:-1] + self.N @ eps
        off = torch.where(self.B > 0, kept.hypot(self.B), kept) - x[1:]
        largest = x.max() if self.from_infinity else x[0]
        return float(off[(self.rho[1:] > 0) | (self.frame == NOISE)].abs().max() / largest)


def _sparse(part: Tensor) -> list[list[tuple[int, float]]]:
    """Return (column, value) of the non-zero entries of each row."""
    rows: list[list[tuple[int, float]]] = [[] for _ in range(len(part))]
    at = part.nonzero(as_tuple=True)
    for k, j, value in zip(at[0].tolist(), at[1].tolist(), part[at].tolist(), strict=True):
        rows[k].append((j, value))
    return rows


def initial_scale(rho: float) -> float:
    """Return the factor of standard normal noise in a run's initial state: rho_0, or 1 at infinity (`Tableau`)."""
    return 1.0 if rho == math.inf else rho


def _from_infinity(rho: Tensor, W: Tensor, frame: Frame, query: Tensor | None) -> Tableau:
    """Return the single-term tableau from rho_0 = infinity; column 0 of W weighs G_0, the frame's slope there.

    In noise prediction the first step, x_1 = x_0 + (rho_1 - rho_0) eps_0, is D_0 + rho_1 eps_0.
    """
    rows = len(rho) - 1
    amplitude, gain = frame.amplitude(rho), frame.gain(rho[:-1] if query is None else query)
    W = W.clone()
    if frame == NOISE:
        W[0, 0] = rho[1]
    P, N = torch.eye(rows, dtype=torch.float64), amplitude[1:, None] * W
    S = P * amplitude[1:, None] / amplitude[:-1] - N * gain
    column = torch.stack([P[:, 0], W[:, 0]], 1) @ frame.limit
    S[:, 0], N[:, 0] = (column * amplitude[1:, None]).unbind(1)
    return Tableau(rho, S, N, torch.zeros(rows, dtype=torch.float64), frame, query)


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
    query = None if tableau.query is None else torch.cat([tableau.query, tableau.rho[-1:]])
    S, N = (torch.nn.functional.pad(part, (0, 1, 0, 1)) for part in (tableau.S, tableau.N))
    S[rows, rows], N[rows, rows] = 1.0, -last
    return replace(tableau, rho=rho, S=S, N=N, B=B, query=query)


class Solver(Protocol):
    """A solver: a frozen object whose fields are the method's options.

    `convergence` is the order at which the error falls with NFE: the theoretical one, or the measured one where the
    solver's docstring explains the difference. `scoreline certify` checks it. Write a class with these members for a
    method of your own; it need not inherit from this one. A method whose formulas have a limit at sigma_max = infinity
    has an attribute `from_infinity`, true; `build` makes the first step of others.
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
    sigma_max, sigma_min = sigma_range
    if not type(schedule).__module__.startswith("scoreline."):
        check_map(schedule, sigma_max, sigma_min)
    if reason := mismatch(solver, (schedule, sigma_max, sigma_min, steps_nfe), {}):
        raise InputError(
            f"solver: {solver!s:.80} cannot be called as solver(schedule, sigma_max, sigma_min, nfe): {reason}"
        )
    run: Tableau | AdaptiveRun
    try:
        if sigma_max == math.inf and not getattr(solver, "from_infinity", False):
            run = _first_step_to(solver, schedule, sigma_min, steps_nfe)
        else:
            run = solver(schedule, sigma_max, sigma_min, steps_nfe)
    except InputError as error:
        if final == "denoise":  # name the user's own number
            message = str(error).replace(f"nfe={steps_nfe}:", f"nfe={nfe} with final=denoise:", 1)
            raise InputError(message) from error
        raise
    except ValueError as error:
        if sigma_max < sigma_min:
            raise _no_inversion(sigma_max, sigma_min) from error
        raise
    _check_run(solver, run, steps_nfe)
    if not isinstance(run, Tableau):
        return replace(run, nfe=nfe).denoised() if final == "denoise" else run
    if sigma_max < sigma_min and (bool(run.B.any()) or float(run.rho[-1]) != sigma_min):
        raise _no_inversion(sigma_max, sigma_min)
    if bool((run.query_levels[torch.tensor(run.calls)] == 0).any()):
        raise InputError("sigma_min=0: this solver evaluates the network there; use sigma_min above 0, final=denoise")
    if final == "none":
        return run
    if float(run.rho[-1]) == 0:
        raise InputError("final=denoise: this run ends at clean data already; use final=none")
    return denoise_last(run)


def _check_run(solver: "Solver | Adaptive", run: object, nfe: int) -> None:
    """Refuse what is no run, or one of another budget."""
    from scoreline.solvers.adaptive import AdaptiveRun

    name = type(solver).__name__
    if not isinstance(run, Tableau | AdaptiveRun):
        raise InputError(f"solver: {name} returned a {type(run).__name__}, not a Tableau; return rows.tableau()")
    if isinstance(run, Tableau) and run.nfe > nfe:
        raise InputError(
            f"solver: {name} returned a tableau of {run.nfe} evaluations for nfe={nfe}; spend at most these, or raise "
            "InputError for a budget that is too small"
        )


def _no_inversion(sigma_max: float, sigma_min: float) -> InputError:
    return InputError(
        f"sigma_max={sigma_max:g} below sigma_min={sigma_min:g}: a run from data to noise solves the ODE upwards, and "
        "this solver adds noise or ends at clean data; use another one, such as velocity_abm2_open or ddim"
    )


def _first_step_to(solver: "Solver | Adaptive", schedule: Schedule, sigma_min: float, nfe: int) -> Tableau:
    """Build the run of a method that cannot start at rho = infinity: a first step by DDIM, one call, then the method.

    In the limit of infinite noise, methods in ln rho make that step anyway.
    """
    levels = grid(schedule, math.inf, sigma_min, nfe)
    if nfe == 1:
        return _ddim_from_infinity(levels)
    rest = replace(schedule, levels=tuple(levels[1:].tolist())) if isinstance(schedule, Tabulated) else schedule
    try:
        run = solver(rest, float(levels[1]), sigma_min, nfe - 1)
    except InputError as error:  # name the budget that was asked for
        raise InputError(str(error).replace(f"nfe={nfe - 1}:", f"nfe={nfe} from infinite noise:", 1)) from error
    if not isinstance(run, Tableau) or run.frame != NOISE:
        raise InputError(f"sigma_max=inf: {solver} has no step from infinite noise; use a finite sigma_max")
    return after_infinity(run)


def after_infinity(run: Tableau) -> Tableau:
    """Return a run in noise prediction with a first step before it, by DDIM from rho = infinity, one more call."""
    first = _ddim_from_infinity(torch.tensor([math.inf, float(run.rho[0])], dtype=torch.float64))
    S, N = torch.nn.functional.pad(torch.stack([run.S, run.N]), (1, 0, 1, 0))
    S[0, 0], N[0, 0] = first.S[0, 0], first.N[0, 0]
    query = None if run.query is None else torch.cat([first.rho[:1], run.query])
    return Tableau(torch.cat([first.rho[:1], run.rho]), S, N, torch.cat([first.B, run.B]), NOISE, query)


def _ddim_from_infinity(levels: Tensor) -> Tableau:
    return Tableau.single_term(levels, torch.tensor([[-math.inf]], dtype=torch.float64))


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
