"""diffusers' schedulers for networks that predict eps of a VP process."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from peers.models import Model
from peers.pairs import Missing, Pair, called
from scoreline.denoiser import Denoiser
from scoreline.schedules.spacings import LogSNR
from scoreline.schedules.tabulated import Tabulated
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.deis import DEIS
from scoreline.solvers.dpm_multistep import DPMMultistep
from scoreline.solvers.ipndm import IPNDM
from scoreline.solvers.runge_kutta import heun
from scoreline.solvers.tableau import Solver, build_tableau
from scoreline.solvers.unipc import UniPC

PEER = "diffusers"


@dataclass(frozen=True)
class Entry:
    """A scheduler of one call a step, and what it is with us.

    Attributes:
        unit: its state has unit signal; others have the native one of the VP process.
        offset: their `steps_offset` under which `leading` timesteps are steps .. 1.
    """

    scheduler: str
    remark: str
    ours: str
    solver: Solver
    options: dict[str, Any] = field(default_factory=dict)
    offset: int = 0
    unit: bool = False


LAST = {"final_sigmas_type": "sigma_min"}
ENTRIES = (
    Entry("DDIMScheduler", "", "ddim", DDIM(), {"clip_sample": False}, 1),
    Entry(
        "DPMSolverMultistepScheduler",
        " 2M",
        "dpmpp_2m, lower_order_final",
        DPMMultistep(2, "data", lower_order_final=True),
        LAST | {"solver_order": 2},
    ),
    Entry(
        "DPMSolverMultistepScheduler",
        " 3M",
        "dpmpp_3m_released, lower_order_final",
        DPMMultistep(3, "data", released=True, lower_order_final=True),
        LAST | {"solver_order": 3},
    ),
    Entry(
        "DEISMultistepScheduler",
        " order 3, lower_order_final=False",
        "deis_logrhoab2",
        DEIS(2, LogSNR()),
        {"solver_order": 3, "lower_order_final": False},
    ),
    Entry(
        "UniPCMultistepScheduler",
        " order 3",
        "unipc_3, lower_order_final",
        UniPC(3, lower_order_final=True),
        LAST | {"solver_order": 3},
    ),
    Entry("EulerDiscreteScheduler", "", "ddim", DDIM(), dict(LAST), 1, unit=True),
)


def pairs(model: Model, nfe: int) -> list[Pair | Missing]:
    """Every scheduler that can be held to the model's own noise levels.

    They know discrete processes only: they get one of nfe + 1 betas, whose levels are exactly those of the steps.
    """
    import diffusers

    found: list[Pair | Missing] = [_one_call_a_step(diffusers, model, nfe, entry) for entry in ENTRIES]
    return [*found, _heun(diffusers, model, nfe), _ipndm(diffusers, model, nfe), _pndm(model)]


def betas(levels: Tensor) -> list[float]:
    """The discrete VP process of these decreasing noise levels: abar_k = 1 / (1 + rho_k^2), the lowest first."""
    abar = 1 / (1 + levels.flip(0) ** 2)
    return [1 - float(abar[0]), *(1 - abar[1:] / abar[:-1]).tolist()]


def exact(levels: Tensor) -> Tabulated:
    """These levels as a spacing."""
    return Tabulated(tuple(levels.double().tolist()))


@torch.no_grad()
def loop(
    scheduler: Any, times: dict[str, Any], labels: Tensor, scale: float, denoiser: Denoiser, latents: Tensor
) -> Tensor:
    """The loop of a pipeline: `times` goes to set_timesteps, `labels` are those of the timesteps 0, 1, .."""
    labels = labels.to(latents.device)
    sample = latents * scale
    scheduler.set_timesteps(device=latents.device, **times)
    for t in scheduler.timesteps:
        x = scheduler.scale_model_input(sample, t)
        sample = scheduler.step(called(denoiser, x, labels[t.long()]), t, sample).prev_sample
    return sample


def _one_call_a_step(diffusers: Any, model: Model, nfe: int, entry: Entry) -> Pair:
    common = {"timestep_spacing": "leading", "steps_offset": entry.offset}
    scheduler = _scheduler(diffusers, entry.scheduler, model.levels(nfe), common | entry.options)
    scheduler.set_timesteps(nfe)
    abar = scheduler.alphas_cumprod.double()
    stepped = getattr(scheduler, "sigmas", None)
    levels = ((1 - abar) / abar).sqrt().flip(0) if stepped is None else stepped.double()
    high, low = float(levels[0]), float(levels[-1])
    theirs = partial(
        loop, scheduler, {"num_inference_steps": nfe}, _labels(model, levels), high if entry.unit else _sigma(high)
    )
    run = build_tableau(entry.solver, exact(levels), (high, low), nfe, "none")
    signal = 1.0 if entry.unit else _alpha(low)
    return Pair(PEER, entry.scheduler + entry.remark, theirs, nfe, entry.ours, run, signal)


def _heun(diffusers: Any, model: Model, nfe: int) -> Pair:
    """Two calls a step and one for the last, to rho = 0: an odd number."""
    steps = (nfe + 1) // 2
    scheduler = _scheduler(diffusers, "HeunDiscreteScheduler", model.levels(steps - 1), {})
    times = {"timesteps": list(range(steps))[::-1]}
    scheduler.set_timesteps(**times)
    levels = scheduler.sigmas.double().unique_consecutive()[:-1]
    high, low = float(levels[0]), float(levels[-1])
    run = build_tableau(heun(), exact(levels), (high, low), 2 * steps - 1, "denoise")
    theirs = partial(loop, scheduler, times, _labels(model, levels), high)
    return Pair(PEER, "HeunDiscreteScheduler", theirs, run.nfe, "heun, final=denoise", run)


def _ipndm(diffusers: Any, model: Model, nfe: int) -> Pair:
    """Its betas are sigma of the state, its alphas sqrt(1 - betas^2) in float32. It takes v = alpha eps - sigma x_0,
    which is (eps - sigma x) / alpha for a network that predicts eps."""
    asked = model.levels(nfe)
    scheduler = diffusers.IPNDMScheduler(trained_betas=(asked / (1 + asked**2).sqrt()).tolist())
    scheduler.set_timesteps(nfe)
    sigma, alpha = scheduler.betas.double(), scheduler.alphas.double()
    levels = sigma / alpha
    labels = model.denoiser.parameterisation(levels[:-1]).noise.float()

    @torch.no_grad()
    def theirs(denoiser: Denoiser, latents: Tensor) -> Tensor:
        marks = labels.to(latents.device)
        sample = latents * float(sigma[0])
        scheduler.set_timesteps(nfe, device=latents.device)
        for k, t in enumerate(scheduler.timesteps):
            eps = called(denoiser, sample, marks[k])
            v = (eps - sample * scheduler.betas[k]) / scheduler.alphas[k]
            sample = scheduler.step(v, t, sample).prev_sample
        return sample

    run = build_tableau(IPNDM(4), exact(levels), (float(levels[0]), float(levels[-1])), nfe, "none")
    return Pair(PEER, "IPNDMScheduler, eps as v", theirs, nfe, "ipndm4", run, float(alpha[-1]))


def _pndm(model: Model) -> Missing:
    return Missing(PEER, "PNDMScheduler", "its pseudo Runge-Kutta start is no method of ours; IPNDMScheduler is")


def _scheduler(diffusers: Any, name: str, levels: Tensor, options: dict[str, Any]) -> Any:
    make: Callable[..., Any] = getattr(diffusers, name)
    return make(num_train_timesteps=len(levels), trained_betas=betas(levels), **options)


def _labels(model: Model, levels: Tensor) -> Tensor:
    """Noise labels of the timesteps 0, 1, .. of decreasing levels."""
    return model.denoiser.parameterisation(levels.flip(0)).noise.float()


def _alpha(rho: float) -> float:
    return float((1 + rho**2) ** -0.5)


def _sigma(rho: float) -> float:
    return rho * _alpha(rho)
