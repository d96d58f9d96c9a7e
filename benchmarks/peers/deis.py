"""The official DEIS for torch (th_deis), from a clone; its coefficients are computed by jax."""

import importlib.util
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
from scoreline.solvers.deis import DEIS
from scoreline.solvers.ipndm import IPNDM
from scoreline.solvers.tableau import build_tableau

PEER, REPOSITORY = "DEIS", "qsh-zh/deis"


def pairs(model: Model, nfe: int, path: Path) -> list[Pair | Missing]:
    """tAB of degree 3 on the quadratic time grid, the model's own, and iPNDM on its even one."""
    process, parameterisation = model.noise_schedule, model.denoiser.parameterisation
    if not (isinstance(process, LinearVP) and isinstance(parameterisation, NoisePrediction)):
        return [Missing(PEER, "all", "its code takes VP processes only")]
    if importlib.util.find_spec("jax") is None:
        return [Missing(PEER, "th_deis", "its coefficients need jax, which is not installed")]
    _name_as_before()
    module = load(path, "th_deis")
    sde = module.VPSDE(*module.get_linear_alpha_fns(process.beta_min, process.beta_max), process.t_min, process.t_max)
    start, end = (float(process.sigma(torch.tensor(t, dtype=torch.float64))) for t in (process.t_max, process.t_min))
    signal = end / process.sigma_min
    found: list[Pair | Missing] = []
    for method, options, ours, solver, spacing in (
        ("t_ab", {"ts_phase": "t", "ts_order": 2, "ab_order": 3}, "deis_tab3", DEIS(3, process), model.spacing),
        ("ipndm", {"ts_phase": "t", "ts_order": 1}, "ipndm4", IPNDM(4), process),
    ):
        run = build_tableau(solver, spacing, model.ends, nfe, "none")
        theirs = Sampler(module, sde, nfe, method, options, parameterisation.label_scale, start)
        found.append(Pair(PEER, f"th_deis {method}", theirs, nfe, ours, run, signal))
    return found


def _name_as_before() -> None:
    """Their code of 2022 asks jax for a function by the name that it had then; it is public within jax since."""
    now, then = (importlib.import_module(f"jax._src.numpy.{name}") for name in ("util", "lax_numpy"))
    if not hasattr(then, "_promote_dtypes_inexact"):
        then._promote_dtypes_inexact = now.promote_dtypes_inexact  # type: ignore[attr-defined]


class Sampler:
    """One of their samplers, its coefficients made once; the network is that of the call."""

    def __init__(
        self,
        module: Any,
        sde: Any,
        nfe: int,
        method: str,
        options: dict[str, Any],
        label_scale: float,
        start: float,
    ) -> None:
        self.start, self.label_scale = start, label_scale
        self.denoiser: Denoiser | None = None
        self.sampler = module.get_sampler(sde, self._eps, num_step=nfe, method=method, **options)

    def _eps(self, x: Tensor, t: Tensor) -> Tensor:
        assert self.denoiser is not None
        return called(self.denoiser, x, t * self.label_scale)

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, latents: Tensor) -> Tensor:
        self.denoiser = denoiser
        return self.sampler(latents * self.start)  # type: ignore[no-any-return]
