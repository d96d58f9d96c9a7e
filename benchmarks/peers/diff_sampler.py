"""diff-sampler's solvers, from a clone."""

from pathlib import Path
from typing import Any

from torch import Tensor

from peers.clones import load
from peers.models import Model
from peers.pairs import Missing, Pair, Preconditioned
from scoreline.denoiser import Denoiser
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.deis import DEIS
from scoreline.solvers.dpm_multistep import DPMMultistep
from scoreline.solvers.ipndm import IPNDM
from scoreline.solvers.runge_kutta import heun
from scoreline.solvers.tableau import Solver, build_tableau
from scoreline.solvers.unipc import UniPC

PEER, REPOSITORY = "diff-sampler", "zju-pi/diff-sampler"
THRESHOLDS = "theirs thresholds every D"
NOISE = {"max_order": 3, "predict_x0": False}


def pairs(model: Model, nfe: int, path: Path) -> list[Pair | Missing]:
    """On the model's levels (`t_steps`), which end at sigma_min.

    Their data prediction always thresholds, so DPM-Solver++ and UniPC are held to ours in noise prediction.
    """
    solvers, helpers = (load(path / "diff-solvers-main", name) for name in ("solvers", "solver_utils"))
    levels = model.levels(nfe).float()
    _, first, last = helpers.edm2t(levels)
    time = LinearVP(beta_min=float(first), beta_max=float(last))
    coefficients = helpers.get_deis_coeff_list(levels, 4, deis_mode="tab")
    deis = {"max_order": 4, "coeff_list": coefficients}
    dpm = DPMMultistep(3, "noise", released=True, lower_order_final=True)
    data = DPMMultistep(3, "data", released=True, lower_order_final=True)
    unipc = UniPC(3, prediction="noise", lower_order_final=True)
    entries: tuple[tuple[str, str, dict[str, Any], int, str, Solver, str], ...] = (
        ("euler_sampler", "", {}, 1, "ddim", DDIM(), ""),
        ("heun_sampler", "", {}, 2, "heun", heun(), ""),
        ("ipndm_sampler", "", {"max_order": 4}, 1, "ipndm4", IPNDM(4), ""),
        ("deis_sampler", " tab", deis, 1, "deis_tab3 in its time", DEIS(3, time), ""),
        ("dpm_pp_sampler", " 3", {"max_order": 3}, 1, "dpmpp_3m_released, lower_order_final", data, THRESHOLDS),
        ("dpm_pp_sampler", " 3, predict_x0=False", NOISE, 1, "dpm_solver_3m_released, lower_order_final", dpm, ""),
        ("unipc_sampler", " 3, predict_x0=False", NOISE, 1, "unipc_3_noise, lower_order_final", unipc, ""),
    )
    found: list[Pair | Missing] = []
    for name, remark, options, calls, ours, solver, differs in entries:
        steps = nfe // calls
        run = build_tableau(solver, model.spacing, model.ends, steps * calls, "none")
        theirs = _sampler(getattr(solvers, name), options, model.levels(steps).float())
        found.append(Pair(PEER, name + remark, theirs, steps * calls, ours, run, differs=differs))
    return found


def _sampler(function: Any, options: dict[str, Any], t_steps: Tensor) -> Any:
    def theirs(denoiser: Denoiser, latents: Tensor) -> Tensor:
        levels = t_steps.to(latents.device)
        return function(Preconditioned(denoiser), latents, num_steps=len(levels), t_steps=levels, **options)  # type: ignore[no-any-return]

    return theirs
