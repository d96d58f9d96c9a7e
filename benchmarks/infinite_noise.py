"""Solvers from infinite noise, t = 1 of a flow model, on exact models: `python benchmarks/infinite_noise.py`.

Prints, for each solver, the order measured in float64 between NFE 400 and 800 on the Karras grid, beside the order that
`scoreline certify` measures from 80, and the error at few evaluations in float32 over that of Euler's method in t with
steps uniform in t, what flow models are usually sampled with.
"""

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import torch
from numpy.typing import NDArray
from torch import Tensor

from scoreline.interface.named_choices import solver_named
from scoreline.networks.exact import GaussianMixture
from scoreline.sampling import Eps, integrate
from scoreline.schedules.base import Schedule
from scoreline.schedules.flow import RectifiedFlow
from scoreline.schedules.spacings import Polynomial, Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.tableau import build
from scoreline.verification.certification import BUDGETS, MODELS

END = 0.002
"""Last noise level."""

SOLVERS = ("ddim", "deis_tab2", "deis_tab3", "dpmpp_2m", "unipc_3", "heun", "velocity_ab3", "ipndm4", "deis_rho_rk4")
SPACINGS: dict[str, Schedule] = {"flow_time": RectifiedFlow(), "linear_vp_few": Polynomial(LinearVP(), 2.4)}
FEW = (5, 10, 20)
STATES = 256


def estimate(model: GaussianMixture, dtype: torch.dtype = torch.float64) -> Eps:
    """Return eps of a mixture on states of a type, and the mean of the data at infinite noise, where that is D."""
    mean = model.moments()[0]

    def eps(x: Tensor, rho: float) -> Tensor:
        return (mean.expand_as(x) if rho == math.inf else model.eps(x.double(), rho)).to(dtype)

    return eps


@cache
def noise(name: str, states: int = 16) -> Tensor:
    """Return initial states y (states, d) of standard normal noise."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(states, MODELS[name]().means.shape[1], generator=generator, dtype=torch.float64)


@cache
def truth(name: str, states: int = 16) -> Tensor:
    """Return the exact flow of `noise` from t = 1 to the end, by SciPy's DOP853 on dz/dt = eps - D at 1e-12."""
    from scipy.integrate import solve_ivp

    model, shape = MODELS[name](), noise(name, states).shape
    last = END / (1 + END)

    def velocity(t: float, flat: NDArray) -> NDArray:
        z = torch.from_numpy(flat).reshape(shape)
        if t == 1:
            return (z - model.moments()[0]).numpy().ravel()
        rho = t / (1 - t)
        x = z * (1 + rho)
        eps = model.eps(x, rho)
        return (eps - (x - rho * eps)).numpy().ravel()

    start = noise(name, states).numpy().ravel()
    solved = solve_ivp(velocity, (1, last), start, method="DOP853", rtol=1e-12, atol=1e-12)
    return torch.from_numpy(solved.y[:, -1]).reshape(shape) * (1 + END)


def order(solver: str, name: str) -> float:
    """Return the order at which the error falls between NFE 400 and 800 on the Karras grid, in float64."""
    method = solver_named(solver, RectifiedFlow(), 0.8)
    errors = []
    for nfe in BUDGETS:
        run = build(method, Power(7), (math.inf, END), nfe, "none")
        errors.append(float((integrate(estimate(MODELS[name]()), noise(name), run) - truth(name)).norm()))
    return math.log(errors[0] / errors[1]) / math.log(BUDGETS[1] / BUDGETS[0])


def errors(solver: str, schedule: Schedule, name: str, budgets: Sequence[int] = FEW) -> list[float]:
    """Return the mean distance from the exact flow at each budget, with float32 states."""
    method, found = solver_named(solver, RectifiedFlow(), 0.8), []
    for nfe in budgets:
        run = build(method, schedule, (math.inf, END), nfe, "none")
        end = integrate(estimate(MODELS[name](), torch.float32), noise(name, STATES).float(), run)
        found.append(float((end.double() - truth(name, STATES)).norm(dim=1).mean()))
    return found


def euler(name: str, nfe: int) -> float:
    """Return the mean distance of Euler's method in t, z' = z + (t' - t) v, written out, with float32 states."""
    model, z = MODELS[name](), noise(name, STATES).float()
    times = torch.linspace(1, END / (1 + END), nfe + 1, dtype=torch.float64).tolist()
    for t, after in pairwise(times):
        if t == 1:
            v = z - model.moments()[0].float()
        else:
            x = z.double() / (1 - t)
            eps = model.eps(x, t / (1 - t))
            v = (eps - (x - t / (1 - t) * eps)).float()
        z = z + (after - t) * v
    return float((z.double() * (1 + END) - truth(name, STATES)).norm(dim=1).mean())


def main() -> None:
    torch.set_num_threads(1)
    names = list(MODELS)
    print(f"| solver | order ({', '.join(names)}) | {' | '.join(f'NFE {nfe}, {s}' for s in SPACINGS for nfe in FEW)} |")
    print(f"|--|--|{'--|' * len(FEW) * len(SPACINGS)}")
    base = {(name, nfe): euler(name, nfe) for name in names for nfe in FEW}
    for solver in SOLVERS:
        orders = ", ".join(f"{order(solver, name):.2f}" for name in names)
        cells = []
        for schedule in SPACINGS.values():
            found = {name: errors(solver, schedule, name) for name in names}
            for i, nfe in enumerate(FEW):
                cells.append(" ".join(f"{found[name][i] / base[name, nfe]:.2f}" for name in names))
        print(f"| {solver} | {orders} | {' | '.join(cells)} |", flush=True)
    print("\nEuler in t:", {nfe: [round(base[name, nfe], 4) for name in names] for nfe in FEW})


if __name__ == "__main__":
    main()
