"""`scoreline.sample`, the call for any model, without a checkpoint or a config."""

import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from scoreline.denoiser import Denoising, functions_in
from scoreline.errors import InputError, NotFiniteError
from scoreline.interface.conditions import Denoise, as_denoiser
from scoreline.interface.named_choices import schedule_from, solver_named
from scoreline.runtime import seeded_noise
from scoreline.sampling import Draw, integrate
from scoreline.schedules.base import NoiseSchedule, Schedule
from scoreline.schedules.flow import RectifiedFlow
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.adaptive import Adaptive
from scoreline.solvers.tableau import Solver, Tableau, build
from scoreline.verification.weak_error import noise_left

SOLVER, SCHEDULE = "velocity_abm2_open", "linear_vp_quadratic"
"""The choices without an argument, those of sample.py."""

LARGE = 200.0
"""The sigma_max above which a state is held in float64."""

Generators = torch.Generator | Sequence[torch.Generator] | Sequence[int]
"""A generator for the batch, or one generator or seed for each image."""

GENERATORS = "give a torch.Generator, or a list of generators or of seeds"


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
    half precision loses up to 1 in multistep methods, and float64 from a finite sigma_max above 200, since float32
    loses the data there. Functions get x_init's dtype whatever the state's, networks that of their parameters.

    Args:
        denoise: denoise(x, sigma, **condition) -> E[x_0 | x_0 + sigma eps = x], EDM's convention: x (B, *) with unit
            signal and x_init's dtype, sigma a tensor of shape () of the same dtype and device; it must not write to x.
            Called `nfe` times. A denoiser of `predictions`, or another `Denoising`, also gives the range. At sigma =
            infinity, where flow models begin, x stands for x / sigma, standard normal noise.
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
    _check_kinds(denoise, x_init, condition)
    denoiser = as_denoiser(denoise)
    process = noise_schedule or denoiser.noise_schedule
    span = _span(process, sigma_max, sigma_min, schedule)
    native = process or (RectifiedFlow() if span[0] == math.inf else LinearVP())
    chosen = _solver(solver, native, sigma_data)
    steps = schedule_from(schedule, native)
    first = span[0] == math.inf and not getattr(chosen, "from_infinity", False)  # the step that `build` makes
    own_calls = _whole(nfe) - (final == "denoise") - first
    run = build(_spending(chosen, own_calls), steps, span, _whole(nfe), final)
    if isinstance(run, Tableau) and (sentence := noise_left(run, sigma_data)):
        warnings.warn(f"solver={solver!r:.60}, {sentence}", UserWarning, stacklevel=2)
    if grad and not isinstance(run, Tableau):
        raise InputError(
            f"grad=True: no gradient flows through {chosen}, which SciPy drives; use a solver of fixed steps"
        )
    work = _Estimates(denoiser, dict(condition or {}), callback)
    state = (x_init if grad else x_init.detach()).to(state_dtype(x_init.dtype, float(run.rho[0])))
    if span[0] == math.inf:  # a run may begin at the finite level that stands for infinite noise
        state = state * run.initial_scale
    with torch.set_grad_enabled(grad), functions_in(x_init.dtype):
        end = integrate(work, state, run, fresh_noise(generator, state), reuse=not grad and callback is None)
        work.check_finite(x_init)
        return end.to(x_init.dtype)


def _check_kinds(denoise: Any, x_init: Any, condition: Any) -> None:
    if not callable(denoise):
        raise InputError(f"denoise={denoise!r:.40}: give a function denoise(x, sigma)")
    if not isinstance(x_init, Tensor) or not x_init.is_floating_point() or x_init.ndim < 1:
        found = f"{x_init.dtype} {tuple(x_init.shape)}" if isinstance(x_init, Tensor) else type(x_init).__name__
        raise InputError(f"x_init: {found} is no state; give a tensor of floats (B, ..), such as torch.from_numpy(..)")
    if not isinstance(condition, Mapping | None):
        raise InputError(f"condition={condition!r:.40}: give keywords of denoise, such as {{'y': labels}}")


def state_dtype(dtype: torch.dtype, sigma_max: float) -> torch.dtype:
    """Return the dtype of a run's states for inputs of `dtype`: float32, and float64 from a large finite sigma_max.

    There x - D of float32 loses D, up to 0.08 of it from 1e4.
    """
    return torch.promote_types(dtype, torch.float64 if LARGE < sigma_max < math.inf else torch.float32)


def _span(process: NoiseSchedule | None, sigma_max: Any, sigma_min: Any, schedule: Any) -> tuple[float, float]:
    listed = schedule if hasattr(schedule, "__len__") and not isinstance(schedule, str | Mapping) else None
    ends = []
    for name, given, place in (("sigma_max", sigma_max, 0), ("sigma_min", sigma_min, -1)):
        if given is None and listed is not None and len(listed):
            given = listed[place]
        if given is None and process is None:
            raise InputError(f"{name}: the denoiser does not know its process; give both sigma_max and sigma_min")
        try:
            ends.append(float(getattr(process, name) if given is None else given))
        except (TypeError, ValueError, RuntimeError) as error:
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
    whole = getattr(solver, "budget", None) != "fixed" or nfe % int(getattr(solver, "order", 2)) == 0
    return cast(Solver | Adaptive, solver if whole else replace(solver, budget="agile"))


def _whole(nfe: Any) -> int:
    try:
        if int(nfe) == nfe:
            return int(nfe)
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"nfe={nfe!r:.40}: must be a whole number of evaluations, such as 10")


@dataclass
class _Estimates:
    """The estimates eps (x, rho) of a run, D at rho = infinity, with their checks."""

    denoiser: Denoising
    condition: dict[str, Any]
    callback: Callable[[Step], object] | None
    levels: list[float] = field(default_factory=list)
    finite: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, rho: float) -> Tensor:
        estimate = self.denoiser.estimate(x, rho, **self.condition)
        estimate = estimate if torch.is_grad_enabled() else estimate.detach()
        self.levels.append(rho)
        self.finite.append(estimate.detach().isfinite().all())
        if self.callback is not None:
            clean = estimate if rho == math.inf else x - rho * estimate
            self.callback(Step(len(self.levels) - 1, rho, x, clean))
        return estimate

    def check_finite(self, x_init: Tensor) -> None:
        """Raise NotFiniteError, naming the first level, unless every estimate was finite: one transfer for the run."""
        finite = torch.stack(self.finite).tolist()
        if not all(finite):
            if not bool(x_init.isfinite().all()):
                raise NotFiniteError("x_init: its numbers are")
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
    try:
        sources: list[Any] = list(generator)
    except TypeError as error:
        raise InputError(f"generator={generator!r:.40}: {GENERATORS}") from error
    if len(sources) != len(x):
        raise InputError(f"generator: {len(sources)} of them for {len(x)} images; give one for each image")
    if sources and all(isinstance(each, torch.Generator) for each in sources):
        return lambda row: torch.stack(
            [torch.randn(x.shape[1:], generator=each, dtype=x.dtype, device=x.device) for each in sources]
        )
    seeds = _seeds(sources)
    return lambda row: seeded_noise.normal(seeds, tuple(x.shape[1:]), "solver", row).to(x)


def _seeds(sources: list[Any]) -> list[int]:
    try:
        seeds = [operator.index(each) for each in sources]
    except TypeError as error:
        raise InputError(f"generator: {GENERATORS}, all of one kind") from error
    if not all(0 <= seed < 2**64 for seed in seeds):
        raise InputError(f"generator: {GENERATORS}, each in 0 .. 2^64 - 1")
    return seeds
