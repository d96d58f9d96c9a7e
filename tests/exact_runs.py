"""Data ~ N(0, 1/4) and the solvers by name, for tests of `scoreline.sample` and of the stepper."""

import warnings
from typing import Any

import torch
from torch import Tensor

import scoreline
from scoreline.interface.named_choices import names, solver_named
from scoreline.schedules.spacings import Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.adaptive import Adaptive
from scoreline.solvers.tableau import Tableau, build

SPAN = {"sigma_min": 0.002, "sigma_max": 80.0}
X = 80 * torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
VARIANCE = 0.25


def gauss(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x] of N(0, 1/4)."""
    return x * (VARIANCE / (VARIANCE + sigma**2))


def run(
    denoise: Any = gauss, x: Tensor = X, solver: Any = "dpmpp_2m", schedule: Any = "karras", **options: Any
) -> Tensor:
    """`scoreline.sample` of ten evaluations from 80 to 0.002, whatever it warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return scoreline.sample(denoise, x, solver, schedule, **{"nfe": 10, **SPAN, **options})


def table(name: str, nfe: int = 12) -> Tableau:
    """The run of a named solver."""
    tableau = build(solver_named(name, LinearVP(), 0.5), Power(7), (80.0, 0.002), nfe, "none")
    assert isinstance(tableau, Tableau)
    return tableau


NAMES = names("solver")
ADAPTIVE = [name for name in NAMES if isinstance(solver_named(name, LinearVP(), 0.5), Adaptive)]
FIXED = [name for name in NAMES if name not in ADAPTIVE]
STOCHASTIC = [name for name in FIXED if bool(table(name).B.any())]
DETERMINISTIC = [name for name in FIXED if name not in STOCHASTIC]
