"""`scoreline.sample`, the call for any model, without a checkpoint or a config."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from scoreline.denoiser import Denoising
from scoreline.errors import InputError, NotFiniteError
from scoreline.interface.conditions import Denoise
from scoreline.interface.named_choices import schedule_from, solver_named
from scoreline.interface.outputs import check_denoised
from scoreline.runtime import seeded_noise
from scoreline.sampling import Draw, integrate
from scoreline.schedules.base import NoiseSchedule, Schedule
from scoreline.schedules.flow import RectifiedFlow
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.adaptive import Adaptive, AdaptiveRun
from scoreline.solvers.tableau import Solver, Tableau, build
from scoreline.verification.weak_error import gaussian_variance

SOLVER, SCHEDULE = "velocity_ab3", "linear_vp_few"
"""The choices without an argument, those of sample.py."""

FEW, NOISY = 20, 3.0
"""Up to this NFE a run is tried on Gaussian data, and this many times their deviation is noise."""

Generators = torch.Generator | Sequence[torch.Generator] | Sequence[int]
"""A generator for the batch, or one generator or seed for each image."""


class Step(NamedTuple):
    """One evaluation of the denoiser.

    Attributes:
        row: number of the evaluation, from 0.
        rho: noise level sigma.
        x: state (B, *) that is evaluated; at rho = infinity x / rho.
        denoised: D(x, rho) (B, *).
    """

    row: int
    rho: float
    x: Tensor
    denoised: Tensor

    @property
    def sigma(self) -> float:
        """The noise level, by the name that `denoise` has for it."""
        return self.rho


def sample(
    denoise: Denoise,
    x_init: Tensor,
    solver: str | Solver | Adaptive = SOLVER,
    schedule: str | Schedule | Sequence[float] | Tensor = SCHEDULE,
    *,
    nfe: int = 10,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    sigma_data: float = 0.5,
    noise_schedule: NoiseSchedule | None = None,
    final: str = "none",
    generator: Generators | None = None,
    condition: Mapping[str, Any] | None = None,
    callback: Callable[[Step], object] | None = None,
    grad: bool = False,
) -> Tensor:
    """Sample with any model, without a checkpoint or a config.

    Use this for a model of your own in a few lines; sample.py draws images from checkpoints, in shards and with
    metrics, and `Stepper` serves a loop that you own.

    With sigma_max below sigma_min the run goes from data to noise (inversion); from a level in the middle of the range
    it changes an image (x_init = image + sigma_max noise). The state has x_init's precision, float32 at least, since
    half precision loses up to 1 in multistep methods.

    Args:
        denoise: denoise(x, sigma, **condition) -> E[x_0 | x_0 + sigma eps = x], EDM's convention: x (B, *) with unit
            signal and x_init's dtype, sigma a tensor of shape () of the same dtype and device; called `nfe` times. A
            denoiser of `predictions`, or another `Denoising`, also gives the range. At sigma = infinity, where flow
            models begin, x stands for x / sigma, standard normal noise.
        x_init: state (B, *) at sigma_max, usually sigma_max * torch.randn(...), at infinity torch.randn(...); not
            modified. Its shape need not be that of images.
        solver: a name, such as `deis_tab3` (`scoreline show solver` lists them), or an object of `scoreline.solvers`.
        schedule: the coordinate in which steps are even: a name, such as `karras`, an object of `scoreline.schedules`,
            or the noise levels themselves.
        nfe: evaluations of `denoise`, the final denoising step included; a ceiling for `Adaptive` solvers. Solvers of
            several calls a step spend what is left over in a shorter one (`budget="agile"`).
        sigma_min: last noise level; None is that of a list of levels, else of the denoiser's own process.
        sigma_max: first noise level; None as for sigma_min.
        sigma_data: the data's standard deviation, for solvers chosen by name that read it; its value hardly matters.
        noise_schedule: the process in whose time solvers and schedules chosen by name may step; None is the denoiser's
            own, else `LinearVP`, or `RectifiedFlow` from infinite noise.
        final: `none` ends at sigma_min; `denoise` spends the last evaluation on E[x_0 | x].
        generator: source of fresh noise for stochastic solvers, on x_init's device; None is torch's own. With a list of
            generators or seeds, one for each image, an image does not depend on its batch; a seed gives sample.py's.
        condition: keywords of `denoise`, of any type.
        callback: called with a `Step` after each evaluation; `steps.append` keeps the whole run.
        grad: whether gradients flow through the run. Without it, `denoise` may still take gradients of its own under
            `torch.enable_grad()`.

    Returns:
        the sample (B, *), of x_init's shape, dtype and device.

    Raises:
        InputError: if the budget or the range is impossible for the solver, an argument is of another kind, or
            `denoise` returns anything but a tensor of x's shape.
        NotFiniteError: a FloatingPointError, if `denoise` returns NaN or infinity; the message names the level.

    Warns:
        UserWarning: if the solver at this budget returns noise even for Gaussian data, as Heun's method does at NFE 2.
    """
    process = noise_schedule or getattr(denoise, "noise_schedule", None)
    span = _span(process, sigma_max, sigma_min, schedule)
    native = process or (RectifiedFlow() if span[0] == math.inf else LinearVP())
    chosen = _solver(solver, native, sigma_data)
    steps = schedule_from(schedule, native)
    run = build(_spending(chosen, _whole(nfe) - (final == "denoise")), steps, span, _whole(nfe), final)
    _warn_of_noise(run, solver, sigma_data)
    work = _Estimates(denoise, x_init.dtype, dict(condition or {}), callback)
    state = x_init.to(torch.promote_types(x_init.dtype, torch.float32))
    if span[0] == math.inf:  # a run may begin at the finite level that stands for infinite noise
        state = state * run.initial_scale
    with torch.set_grad_enabled(grad):
        end = integrate(work, state, run, fresh_noise(generator, state), reuse=not grad and callback is None)
        work.check_finite()
        return end.to(x_init.dtype)


def _span(process: NoiseSchedule | None, sigma_max: Any, sigma_min: Any, schedule: Any) -> tuple[float, float]:
    listed = schedule if isinstance(schedule, Sequence | Tensor) and not isinstance(schedule, str) else None
    ends = []
    for name, given, place in (("sigma_max", sigma_max, 0), ("sigma_min", sigma_min, -1)):
        if given is None and listed is not None and len(listed):
            given = listed[place]
        if given is None and process is None:
            raise InputError(f"{name}: the denoiser does not know its process; give both sigma_max and sigma_min")
        try:
            ends.append(float(getattr(process, name) if given is None else given))
        except (TypeError, ValueError) as error:
            raise InputError(f"{name}={given!r:.40}: must be a number, such as 80.0") from error
    return ends[0], ends[1]


def _solver(solver: Any, process: NoiseSchedule, sigma_data: float) -> Solver | Adaptive:
    if isinstance(solver, str):
        named: Solver | Adaptive = solver_named(solver, process, sigma_data)
        return named
    if isinstance(solver, type) or not callable(solver):
        raise InputError(f"solver={solver!r:.60}: give a name such as 'dpmpp_2m', or an object such as DDIM()")
    chosen: Solver | Adaptive = solver
    return chosen


def _spending(solver: Any, nfe: int) -> Solver | Adaptive:
    """Return the solver with `budget="agile"` where its whole steps would leave some of nfe unspent."""
    if getattr(solver, "budget", None) != "fixed" or nfe % int(getattr(solver, "order", 2)) == 0:
        return cast(Solver | Adaptive, solver)
    return replace(solver, budget="agile")


def _whole(nfe: Any) -> int:
    try:
        if int(nfe) == nfe:
            return int(nfe)
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"nfe={nfe!r:.40}: must be a whole number of evaluations, such as 10")


def _warn_of_noise(run: Tableau | AdaptiveRun, solver: Any, sigma_data: float) -> None:
    """Warn of a run that leaves noise in Gaussian data of deviation s, of which the ODE leaves sqrt(s^2 + sigma^2)."""
    if not isinstance(run, Tableau) or run.nfe > FEW or float(run.rho[-1]) > sigma_data:
        return
    left = math.sqrt(gaussian_variance(run, sigma_data)) / math.hypot(sigma_data, float(run.rho[-1]))
    if left > NOISY:
        warnings.warn(
            f"solver={solver!r:.60} at nfe={run.nfe}: the sample is noise, {left:.3g} times as large as Gaussian data "
            "should be; use more evaluations, or a multistep solver such as dpmpp_2m",
            UserWarning,
            stacklevel=3,
        )


@dataclass
class _Estimates:
    """The estimates eps (x, rho) of a run from a stranger's `denoise`, D at rho = infinity, with their checks."""

    denoise: Denoise
    dtype: torch.dtype
    condition: dict[str, Any]
    callback: Callable[[Step], object] | None
    levels: list[float] = field(default_factory=list)
    finite: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, rho: float) -> Tensor:
        if isinstance(self.denoise, Denoising):
            estimate = self.denoise.estimate(x, rho, **self.condition)
        else:
            denoised = self._denoised(x, rho)
            estimate = denoised if rho == math.inf else (x - denoised) / rho
        self.levels.append(rho)
        self.finite.append(estimate.detach().isfinite().all())
        if self.callback is not None:
            clean = estimate if rho == math.inf else x - rho * estimate
            self.callback(Step(len(self.levels) - 1, rho, x, clean))
        return estimate

    def _denoised(self, x: Tensor, rho: float) -> Tensor:
        given = x.to(self.dtype)
        sigma = torch.full((), rho, dtype=given.dtype, device=x.device)
        return check_denoised(self.denoise(given, sigma, **self.condition), given).to(x.dtype)

    def check_finite(self) -> None:
        """Raise NotFiniteError, naming the first level, unless every estimate was finite: one transfer for the run."""
        finite = torch.stack(self.finite).tolist()
        if not all(finite):
            level = self.levels[finite.index(False)]
            raise NotFiniteError(f"sigma={level:g}: numbers that denoise returns are")


def fresh_noise(generator: Generators | None, x: Tensor) -> Draw:
    """Return the source of fresh noise of x's shape, dtype and device.

    Args:
        generator: as in `sample`.
        x: the state (B, *).

    Raises:
        InputError: for another number of generators or seeds than images, or a list of both.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return lambda row: torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    if len(generator) != len(x):
        raise InputError(f"generator: {len(generator)} of them for {len(x)} images; give one for each image")
    own = [each for each in generator if isinstance(each, torch.Generator)]
    if len(own) == len(x):
        return lambda row: torch.stack(
            [torch.randn(x.shape[1:], generator=each, dtype=x.dtype, device=x.device) for each in own]
        )
    try:
        seeds = [int(each) for each in generator if not isinstance(each, torch.Generator)]
    except (TypeError, ValueError) as error:
        raise InputError("generator: give a torch.Generator, or a list of generators or of seeds") from error
    if own:
        raise InputError("generator: some are generators and some are seeds; give a list of one kind")
    return lambda row: seeded_noise.normal(seeds, tuple(x.shape[1:]), "solver", row).to(x)
