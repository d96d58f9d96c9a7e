"""Measure what a solver promises, on models whose score is exact."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.networks.exact import GaussianMixture
from scoreline.sampling import integrate
from scoreline.schedules.base import Schedule
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.spacings import Polynomial, Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.adaptive import Adaptive
from scoreline.solvers.deis import scaled_residual
from scoreline.solvers.frames import Velocity
from scoreline.solvers.measured_frame import MeasuredFrame
from scoreline.solvers.tableau import Solver, Tableau
from scoreline.verification.weak_error import gaussian_variance

SPAN = (80.0, 0.002)
SPACING = Power(7)
BUDGETS = (400, 800)
"""NFE between which a slope is measured: past the transient, before round-off (error 2e-8 for the best)."""
SLACK = 0.15
"""Largest difference of a measured order from the declared one."""
ROUND_OFF = 1e-10
"""Largest consistency residual that counts as round-off."""
SPREAD = 0.5
"""Standard deviation of the Gaussian on which weak orders are measured."""


def _mixture_2d() -> GaussianMixture:
    """Two unequal, off-centre components in the plane."""
    return _mixture([[1.2, -0.4], [-0.7, 0.9]], [0.5, 0.3], [0.35, 0.65])


def _mixture_3d() -> GaussianMixture:
    """Three unequal components in space, one of them narrow."""
    return _mixture([[0.9, 0.1, -0.5], [-0.8, 0.6, 0.2], [0.1, -1.1, 0.7]], [0.25, 0.45, 0.6], [0.3, 0.5, 0.2])


def _mixture(means: list[list[float]], stds: list[float], weights: list[float]) -> GaussianMixture:
    return GaussianMixture(*(torch.tensor(part, dtype=torch.float64) for part in (means, stds, weights)))


MODELS: dict[str, Callable[[], GaussianMixture]] = {"mixture 2-D": _mixture_2d, "mixture 3-D": _mixture_3d}


@dataclass(frozen=True)
class Certificate:
    """The measurements of one solver.

    Attributes:
        theory: the order it declares (`Solver.convergence`).
        orders: measured order, by model; the weak order of a stochastic method is that of the variance.
        residual: consistency residual, relative.
        nfe: (requested, counted) for every budget that was tried.
        setup_ms: milliseconds to build a tableau of NFE 50 on discrete betas, the slowest case; median of 5.
        breaches: a sentence for each broken promise.
    """

    name: str
    theory: float
    orders: dict[str, float]
    residual: float
    nfe: tuple[tuple[int, int], ...]
    setup_ms: float
    breaches: tuple[str, ...]


def certify(name: str, make: Callable[[Schedule], Any]) -> Certificate:
    """Measure one solver.

    The range is EDM's, 80 to 0.002, on the Karras grid. The order is that of the error at 0.002 between NFE 400 and
    800, against SciPy's DOP853 at 1e-13. Smooth functions stand for a measured scale or frame, because the kinks
    between measured levels would show in the order, and S_noise is 1. An adaptive method has no order: its error must
    be below 100 rtol. Use it to test a solver of your own, as `scoreline certify` tests those that ship.

    Args:
        name: of the solver.
        make: returns the solver for the noise schedule in whose time it may interpolate.
    """
    solver = make(LinearVP())
    if isinstance(solver, Adaptive):
        return _adaptive(name, solver)
    nominal = _nominal(solver)
    table = nominal(SPACING, *SPAN, BUDGETS[0])
    orders = _weak_order(nominal) if bool(table.B.any()) else _orders(nominal)
    scale = getattr(solver, "scale", None)
    residual = table.residual if scale is None else scaled_residual(solver(SPACING, *SPAN, BUDGETS[0]), scale)
    spent = tuple(_spent(nominal))
    certificate = Certificate(name, nominal.convergence, orders, residual, spent, _setup_ms(make(DiscreteVP())), ())
    return replace(certificate, breaches=tuple(_breaches(certificate, getattr(solver, "budget", "exact") == "fixed")))


def _nominal(solver: Any) -> Any:
    """Return the bare method: a smooth scale and frame instead of a record's, and S_noise 1."""
    changes: dict[str, Any] = {}
    if isinstance(getattr(solver, "frame", None), MeasuredFrame):
        changes["frame"] = Velocity(SPREAD)
    if getattr(solver, "scale", None) is not None:
        changes["scale"] = GaussianScale(SPREAD)
    if getattr(solver, "S_noise", 1.0) != 1.0:
        changes["S_noise"] = 1.0
    return replace(solver, **changes)


@dataclass(frozen=True)
class GaussianScale:
    """Mean |eps| of N(0, c^2), up to a constant: w = rho / sqrt(c^2 + rho^2)."""

    c: float

    def __call__(self, rho: Tensor) -> Tensor:
        return rho / (self.c**2 + rho**2).sqrt()

    def knots(self) -> Tensor:
        return torch.empty(0, dtype=torch.float64)


def _breaches(certificate: Certificate, fixed: bool) -> list[str]:
    breaches = [
        f"order {order:.2f} on {model}, not {certificate.theory:g}"
        for model, order in certificate.orders.items()
        if not abs(order - certificate.theory) <= SLACK
    ]
    if not certificate.residual <= ROUND_OFF:
        breaches.append(f"residual {certificate.residual:.1e}")
    wrong = [pair for pair in certificate.nfe if pair[1] > pair[0] or (pair[1] != pair[0] and not fixed)]
    return breaches + [f"NFE {counted} where {budget} were requested" for budget, counted in wrong]


def _spent(solver: Solver) -> list[tuple[int, int]]:
    """Requested budgets and counted calls, without the budgets that the method refuses as below one step."""
    pairs = []
    for nfe in (1, 2, 3, 5, 6, 7, 10, 20):
        try:
            table = solver(SPACING, *SPAN, nfe)
        except InputError as error:
            if not str(error).startswith("nfe="):
                raise
            continue
        pairs.append((nfe, _count(table)))
    return pairs


def _count(table: Tableau) -> int:
    calls = 0

    def eps(x: Tensor, rho: float) -> Tensor:
        nonlocal calls
        calls += 1
        return x / (1 + rho)

    integrate(eps, torch.ones(1, dtype=torch.float64), table, lambda row: torch.ones(1, dtype=torch.float64))
    return calls


def _orders(solver: Solver) -> dict[str, float]:
    tables = [_to_end(solver(SPACING, *SPAN, nfe)) for nfe in BUDGETS]
    orders = {}
    for name, make in MODELS.items():
        ends = [integrate(make().eps, start(name), table) for table in tables]
        orders[name] = _slope(tables, [float((end - truth(name)).norm()) for end in ends])
    return orders


def _slope(tables: Sequence[Tableau], errors: Sequence[float]) -> float:
    return math.log(errors[0] / errors[1]) / math.log(tables[1].nfe / tables[0].nfe)


def start(model: str) -> Tensor:
    """Sixteen initial states (16, d), the same in every run."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(16, MODELS[model]().means.shape[1], generator=generator, dtype=torch.float64) * SPAN[0]


@cache
def truth(model: str) -> Tensor:
    """Return the exact flow of `start` to the end of the range, by an independent adaptive method."""
    reference = Adaptive("DOP853", rtol=1e-13, atol=1e-13).between(*SPAN, 100_000)
    return reference(MODELS[model]().eps, start(model))


def _weak_order(solver: Solver) -> dict[str, float]:
    """Slope of the variance's error on a Gaussian, for a start with the exact law (`gaussian_variance`)."""
    tables = [_to_end(solver(SPACING, *SPAN, nfe)) for nfe in BUDGETS]
    exact = SPREAD**2 + SPAN[1] ** 2
    errors = [abs(gaussian_variance(table, SPREAD, SPREAD**2 + SPAN[0] ** 2) - exact) for table in tables]
    return {"Gaussian (weak)": _slope(tables, errors)}


def _to_end(table: Tableau) -> Tableau:
    """Return the rows up to the end of the range, since some methods go on to rho = 0 by themselves."""
    rows = int((table.rho == SPAN[1]).nonzero()[-1])
    if rows == len(table.B):
        return table
    S, N, B = table.S[:rows, :rows], table.N[:rows, :rows], table.B[:rows]
    return replace(table, rho=table.rho[: rows + 1], S=S, N=N, B=B, query=table.query_levels[:rows])


def _adaptive(name: str, solver: Adaptive) -> Certificate:
    run, counted, breaches = solver.between(*SPAN, 100_000), [], []
    for model in MODELS:
        calls, eps = 0, MODELS[model]().eps

        def counting(x: Tensor, rho: float, eps: Callable[[Tensor, float], Tensor] = eps) -> Tensor:
            nonlocal calls
            calls += 1
            return eps(x, rho)

        error = float((run(counting, start(model)) - truth(model)).abs().max())
        counted.append((calls, calls))
        if not error <= 100 * solver.rtol:
            breaches.append(f"error {error:.1e} on {model} at rtol {solver.rtol:g}")
    return Certificate(name, math.nan, {}, 0.0, tuple(counted), 0.0, tuple(breaches))


def _setup_ms(solver: Solver) -> float:
    native = DiscreteVP()
    spacing = Polynomial(native, 2)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        solver(spacing, native.sigma_max, native.sigma_min, 50)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def markdown(certificates: Sequence[Certificate]) -> str:
    """Return a Markdown table with a row per solver; `20 > 18` where a fixed budget leaves calls unspent."""
    models = list(dict.fromkeys(model for certificate in certificates for model in certificate.orders))
    head = ["solver", "order", *models, "residual", "NFE", "set-up", ""]
    lines = ["| " + " | ".join(head) + " |", "|--" * len(head) + "|"]
    for certificate in certificates:
        orders = [f"{certificate.orders[model]:.2f}" if model in certificate.orders else "-" for model in models]
        row = [
            certificate.name,
            f"{certificate.theory:g}",
            *orders,
            f"{certificate.residual:.0e}",
            _budget(certificate),
        ]
        lines.append(
            "| " + " | ".join([*row, f"{certificate.setup_ms:.1f} ms", "; ".join(certificate.breaches) or "ok"]) + " |"
        )
    return "\n".join(lines)


def _budget(certificate: Certificate) -> str:
    budget, counted = certificate.nfe[-1]
    return str(counted) if budget == counted else f"{budget} > {counted}"
