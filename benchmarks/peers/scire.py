"""The released SciRE-Solver, from a clone."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peers.clones import load
from peers.models import Model
from peers.pairs import Missing, Pair, called
from scoreline.denoiser import Denoiser
from scoreline.parameterisations import NoisePrediction
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.scire import SciRE
from scoreline.solvers.scire_multistep import SciREMultistep
from scoreline.solvers.tableau import Solver, build_tableau

PEER, REPOSITORY = "SciRE", "ShiguiLi/SciRE-Solver"
ENTRIES: tuple[tuple[str, int, str, Solver], ...] = (
    (
        "multistep",
        2,
        "scire_multistep_2, lower_order_final",
        SciREMultistep(2, lower_order_final=True),
    ),
    (
        "multistep",
        3,
        "scire_multistep_3, lower_order_final",
        SciREMultistep(3, lower_order_final=True),
    ),
    ("singlestep_fixed", 2, "scire_v1_2, per_step", SciRE(2, per_step=True)),
)


def pairs(model: Model, nfe: int, path: Path) -> list[Pair | Missing]:
    """SciRE-V1 on its quadratic time grid, the model's own, for networks that predict eps of the linear VP process."""
    process, parameterisation = model.noise_schedule, model.denoiser.parameterisation
    if not (isinstance(process, LinearVP) and isinstance(parameterisation, NoisePrediction)):
        return [Missing(PEER, "all", "its code takes VP processes only")]
    module = load(path, "scire_solver")
    schedule = module.NoiseScheduleVP("linear", continuous_beta_0=process.beta_min, continuous_beta_1=process.beta_max)
    found: list[Pair | Missing] = []
    for method, order, ours, solver in ENTRIES:
        calls = order if method == "singlestep_fixed" else 1
        run = build_tableau(solver, model.spacing, model.ends, nfe // calls * calls, "none")
        options = {"steps": nfe, "order": order, "method": method, "skip_type": "time_quadratic"}
        theirs = _sampler(module.SciRE_Solver, schedule, process, parameterisation.label_scale, options)
        signal = (1 + model.ends[1] ** 2) ** -0.5
        found.append(Pair(PEER, f"scire_v1 {method} {order}", theirs, run.nfe, ours, run, signal))
    return found


def _sampler(solver: Any, schedule: Any, process: LinearVP, label_scale: float, options: dict[str, Any]) -> Any:
    """Their wrapper of networks has labels of its own; the solver also takes any function of x and t."""
    start = float(process.sigma(torch.tensor(process.t_max, dtype=torch.float64)))

    def theirs(denoiser: Denoiser, latents: Tensor) -> Tensor:
        def eps(x: Tensor, t: Tensor) -> Tensor:
            return called(denoiser, x, t * label_scale)

        released = solver(eps, schedule, algorithm_type="scire_v1")
        return released.sample(latents * start, t_start=process.t_max, t_end=process.t_min, **options)  # type: ignore[no-any-return]

    return theirs
