"""diffusers' schedulers for EDM's networks."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from peers.diffusers_vp import PEER
from peers.models import Model
from peers.pairs import Missing, Pair, called
from scoreline.denoiser import Denoiser
from scoreline.parameterisations import EDMPreconditioning
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.dpm_multistep import DPMMultistep
from scoreline.solvers.tableau import Solver, build_tableau

ENTRIES: tuple[tuple[str, str, dict[str, Any], str, Solver], ...] = (
    ("EDMEulerScheduler", "", {}, "ddim, final=denoise", DDIM()),
    (
        "EDMDPMSolverMultistepScheduler",
        " 2M",
        {"solver_order": 2, "lower_order_final": False},
        "dpmpp_2m, final=denoise",
        DPMMultistep(2, "data"),
    ),
    (
        "EDMDPMSolverMultistepScheduler",
        " 3M, lower_order_final=False",
        {"solver_order": 3, "lower_order_final": False},
        "dpmpp_3m_released, final=denoise",
        DPMMultistep(3, "data", released=True),
    ),
)


def pairs(model: Model, nfe: int) -> list[Pair | Missing]:
    """Their Karras levels end at rho = 0, which a last step of order 1 reaches."""
    import diffusers

    high, low = model.ends
    parameterisation = model.denoiser.parameterisation
    assert isinstance(parameterisation, EDMPreconditioning)
    process = {"sigma_min": low, "sigma_max": high, "sigma_data": parameterisation.sigma_data}
    found: list[Pair | Missing] = []
    for name, remark, options, ours, solver in ENTRIES:
        scheduler = getattr(diffusers, name)(**process, **options)
        run = build_tableau(solver, model.spacing, (high, low), nfe, "denoise")
        found.append(Pair(PEER, name + remark, partial(loop, scheduler, nfe, high), nfe, ours, run))
    return found


@torch.no_grad()
def loop(scheduler: Any, nfe: int, sigma_max: float, denoiser: Denoiser, latents: Tensor) -> Tensor:
    """The loop of a pipeline; a timestep is the network's noise label."""
    sample = latents * sigma_max
    scheduler.set_timesteps(nfe, device=latents.device)
    for t in scheduler.timesteps:
        x = scheduler.scale_model_input(sample, t)
        sample = scheduler.step(called(denoiser, x, t), t, sample).prev_sample
    return sample
