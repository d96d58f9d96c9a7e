"""k-diffusion's samplers, from a clone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from peers.clones import load
from peers.models import Model
from peers.pairs import Missing, Pair, Preconditioned
from scoreline.denoiser import Denoiser
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.dpm_multistep import DPMMultistep
from scoreline.solvers.dpm_solver import DPMSolver
from scoreline.solvers.rho_ab import RhoAB
from scoreline.solvers.runge_kutta import heun
from scoreline.solvers.tableau import Solver, build_tableau

PEER, REPOSITORY = "k-diffusion", "crowsonkb/k-diffusion"
UNUSED = ("torchdiffeq", "torchsde", "torchvision", "torchvision.transforms")
"""What the module imports for adaptive and stochastic samplers and for image files."""

ENTRIES: tuple[tuple[str, dict[str, Any], int, str, Solver], ...] = (
    ("sample_euler", {}, 1, "ddim", DDIM()),
    ("sample_heun", {}, 2, "heun", heun()),
    ("sample_lms", {"order": 4}, 1, "lms", RhoAB(3)),
    ("sample_dpmpp_2m", {}, 1, "dpmpp_2m", DPMMultistep(2, "data")),
    ("sample_dpmpp_2s_ancestral", {"eta": 0.0}, 2, "dpmpp_2s", DPMSolver(2, "data")),
)
"""Name there, options, calls a step, name and solver here."""


def pairs(model: Model, nfe: int, path: Path) -> list[Pair | Missing]:
    """On the model's levels, which end at sigma_min; a zero is not appended."""
    module = load(path, "k_diffusion.sampling", UNUSED, package=True)
    found: list[Pair | Missing] = []
    for name, options, calls, ours, solver in ENTRIES:
        steps = nfe // calls
        run = build_tableau(solver, model.spacing, model.ends, steps * calls, "none")
        theirs = _sampler(getattr(module, name), options, model.levels(steps).float())
        remark = "".join(f", {key}={value:g}" for key, value in options.items())
        found.append(Pair(PEER, name + remark, theirs, steps * calls, ours, run))
    return found


def _sampler(function: Callable[..., Tensor], options: dict[str, Any], sigmas: Tensor) -> Any:
    def theirs(denoiser: Denoiser, latents: Tensor) -> Tensor:
        levels = sigmas.to(latents.device)
        return function(Preconditioned(denoiser), latents * levels[0], levels, disable=True, **options)

    return theirs
