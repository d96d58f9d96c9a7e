"""Compare first-order solvers with DDIM in the coordinates of the process."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from scoreline.denoiser import Denoiser
from scoreline.parameterisations import NoisePrediction
from scoreline.sampling import Progress, integrate
from scoreline.schedules.base import NoiseSchedule
from scoreline.solvers.deis import DEIS
from scoreline.solvers.dpm_multistep import DPMMultistep
from scoreline.solvers.rho_ab import RhoAB
from scoreline.solvers.tableau import Solver, build_tableau
from scoreline.verification.verdicts import Verdict

DDIM_STEPS = 9
"""Odd, so that no native time of a discrete process is half-way between two labels, where rounding would decide."""


DDIM_TOLERANCE = 1e-5
"""Largest relative difference at which two solvers count as the same."""


@torch.inference_mode()
def ddim(denoiser: Denoiser, process: NoiseSchedule, z: Tensor, steps: int, label: Tensor | None = None) -> Tensor:
    """Deterministic DDIM in the process's own coordinates, uniform in its time, states float64; the end over alpha.

        x_s = alpha_s (x_t - sigma_t eps) / alpha_t + sigma_s eps,    eps = eps_theta(x_t, t)

    This code shares nothing with the solvers nor, for networks that predict eps, with `Denoiser`: it calls the network
    with the native state and the label of the native time of `process`.

    Args:
        z: standard normal noise (B, *); x_T = sigma_T z.

    Source: Song, Meng & Ermon (2021), arXiv:2010.02502, Eq. 12 with sigma = 0.
    """
    times = torch.linspace(process.t_max, process.t_min, steps + 1, dtype=torch.float64)
    x = z.double() * float(process.sigma(times[0]))
    for t, s in pairwise(times):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        if alpha == 0:  # pure noise
            eps, clean = x, denoiser(x, math.inf, label=label)
        else:
            eps = _native_eps(denoiser, x, (float(t), alpha, sigma), label)
            clean = (x - sigma * eps) / alpha
        x = float(process.alpha(s)) * clean + float(process.sigma(s)) * eps
    return x / float(process.alpha(times[-1]))


def _native_eps(denoiser: Denoiser, x: Tensor, place: tuple[float, float, float], label: Tensor | None) -> Tensor:
    t, alpha, sigma = place
    model, dtype = denoiser.parameterisation, next(denoiser.parameters()).dtype
    if not isinstance(model, NoisePrediction):
        clean: Tensor = denoiser(x / alpha, sigma / alpha, label=label)
        return (x - alpha * clean) / sigma
    time = t * model.label_scale + model.label_shift
    noise_label = torch.full((len(x),), round(time) if model.round_labels else time, dtype=dtype, device=x.device)
    eps: Tensor = denoiser.network(x.to(dtype), noise_label, label=label)
    return eps[:, : x.shape[1]].double()


def first_order(process: NoiseSchedule) -> dict[str, Solver]:
    """Return solvers that all equal DDIM."""
    return {"deis_tab0": DEIS(0, process), "deis_rhoab0": RhoAB(0), "dpm_solver, order 1": DPMMultistep(1)}


@torch.inference_mode()
def ddim_differences(
    denoiser: Denoiser, process: NoiseSchedule, z: Tensor, label: Tensor | None, progress: Progress
) -> dict[str, float]:
    """Compute max |x - x'| / max |x'| after DDIM_STEPS float64 steps, x by each of `first_order`, x' by `ddim`."""
    exact = ddim(denoiser, process, z, DDIM_STEPS, label)
    progress(len(z) * DDIM_STEPS)
    differences = {}
    for name, solver in first_order(process).items():
        table = build_tableau(solver, process, (process.sigma_max, process.sigma_min), DDIM_STEPS, "none")
        start = z.double() * table.initial_scale
        end = integrate(lambda x, rho: denoiser.estimate(x, rho, label=label), start, table)
        differences[name] = float((end - exact).abs().max() / exact.abs().max())
        progress(len(z) * DDIM_STEPS)
    return differences


def judge_ddim(differences: dict[str, float], dtype: torch.dtype) -> Verdict:
    """Fail above `DDIM_TOLERANCE`, which grows with the rounding of networks that are coarser than float32.

    States are float64, because float32 would show its own rounding from a large sigma_max (20291 for cosine betas).
    """
    allowed = DDIM_TOLERANCE * max(1.0, torch.finfo(dtype).eps / torch.finfo(torch.float32).eps)
    worst = max(differences.values(), key=lambda value: math.inf if math.isnan(value) else value)
    if worst <= allowed:
        return Verdict("ddim", "pass", f"first-order solvers are DDIM in native coordinates to {worst:.1e}")
    return Verdict(
        "ddim",
        "fail",
        f"first-order solvers end {worst:.1e} from DDIM in native coordinates (allowed {allowed:.0e}); the noise "
        "schedule of the card and that of its parameterisation disagree, or alpha does not reach the network",
    )
