"""Samplers with k-diffusion's signature: `sample_dpmpp_2m` and every other solver, and `sampler` for their options.

    from scoreline.integrations.k_diffusion import sample_dpmpp_2m

    x = sample_dpmpp_2m(model, x, sigmas)

k-diffusion's convention is EDM's: x = x_0 + sigma eps, and model(x, sigma * ones(B)) returns E[x_0 | x]. A flow model
is called with the state z = (1 - t) x_0 + t eps and sigma = t. Since dz/dt = eps - x_0 = (z - D) / t is the same
equation with t in the place of sigma, every deterministic method runs unchanged in t; `flow=True` runs it in the
coordinates of the theory instead, x = z / (1 - t) and rho = t / (1 - t), with infinite rho at t = 1.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoreline.errors import InputError, did_you_mean
from scoreline.integrations.given_levels import first_calls, tableau_through
from scoreline.interface.named_choices import names, solver_named
from scoreline.interface.outputs import tensor_like
from scoreline.interface.sample_function import Generators, fresh_noise
from scoreline.records import read_record
from scoreline.sampling import Draw, State, Stepper
from scoreline.schedules.base import NoiseSchedule
from scoreline.schedules.flow import RectifiedFlow
from scoreline.schedules.tabulated import SAME, Tabulated
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.adaptive import Adaptive
from scoreline.solvers.frames import FLOW, NOISE
from scoreline.solvers.learned import Learned, learned_in
from scoreline.solvers.runge_kutta import RungeKutta
from scoreline.solvers.tableau import Solver, Tableau, build, denoise_last
from scoreline.values import check_final

SIGMA_DATA = 0.5
"""Default deviation of the data, for solvers in velocity prediction."""

CEILING = 10_000
"""Most evaluations of an adaptive solver."""

OPTIONS = {"s_churn": "S_churn", "s_tmin": "S_min", "s_tmax": "S_max"}
"""k-diffusion's names of options of `EDMHeun` -> ours."""

NoiseSampler = Callable[[Tensor, Tensor], Tensor]
"""k-diffusion's source of noise: standard normal noise of x's shape for the step between two sigmas, tensors ()."""

Sampler = Callable[..., Tensor]
"""A function f(model, x, sigmas, extra_args=None, callback=None, disable=None, **options), as k-diffusion has them."""


def sampler(
    solver: str | Solver | Adaptive = "dpmpp_2m",
    *,
    learned: str | Path | None = None,
    flow: bool = False,
    final: str = "denoise",
    noise_schedule: NoiseSchedule | None = None,
    sigma_data: float = SIGMA_DATA,
) -> Sampler:
    """Return a function f(model, x, sigmas, extra_args, callback, disable, **options) that samples with a solver.

    Use it wherever a program takes one of k-diffusion's samplers. The sigmas are the levels between which it steps; a
    method of several calls a step spends them on every step. They decrease, may start anywhere, and may end in 0: the
    last evaluation is then E[x_0 | x] at the last positive level. The state has x's precision, float32 at least; the
    network has x's own.

    f's options:
        noise_sampler: fresh noise of stochastic solvers, k-diffusion's noise_sampler(sigma, sigma_next).
        generator: instead of it a generator, or a list of one generator or seed for each image, with which an image
            does not depend on its batch; None is torch's own, as in k-diffusion.
        s_noise: factor of the noise.
        others: fields of the solver, such as eta; s_churn, s_tmin and s_tmax are those of `edm`.

    f calls `callback` with {"x", "i", "sigma", "sigma_hat", "denoised"} at the beginning of step i, where a step of
    several calls makes the first of them, and for adaptive solvers at every evaluation.

    Args:
        solver: the name of a choice, or an object of `scoreline.solvers`.
        learned: a record of learned tableaus, in place of a solver; its sigmas are `learned_sigmas`.
        flow: whether the model is a flow model whose steps shall be made in rho = t / (1 - t). Stochastic solvers
            need it for flow models, since their noise is that of rho.
        final: with sigmas that end in 0, `denoise`, or `none` to let the solver step to 0 by itself.
        noise_schedule: the process whose time a solver reads; None is linear VP, with `flow` rectified flow.
        sigma_data: the data's standard deviation, for solvers in velocity prediction.

    Raises:
        InputError: for a solver or a record that does not exist.
    """
    check_final(final)
    if learned is not None:
        method: Solver | Adaptive = _load(learned)
    elif isinstance(solver, str):
        method = solver_named(solver, noise_schedule or (RectifiedFlow() if flow else LinearVP()), sigma_data)
    else:
        method = solver
    if flow and isinstance(method, RungeKutta) and method.frame == NOISE:
        method = replace(method, frame=FLOW)  # as it is from t = 1, so that a part of a run is that of the whole
    coordinates = FlowTime() if flow else NoiseLevel()

    @torch.no_grad()
    def sample(
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        disable: bool | None = None,
        *,
        noise_sampler: NoiseSampler | None = None,
        generator: Generators | None = None,
        s_noise: float = 1.0,
        **options: Any,
    ) -> Tensor:
        sigmas = _levels(sigmas, x)
        if len(sigmas) < 2:
            return x
        network = _Network(model, extra_args or {}, x.dtype, coordinates)
        report = _Report(callback, sigmas, x.dtype, coordinates, disable)
        noise = _Noise(noise_sampler, generator, s_noise, sigmas, coordinates)
        return _run(_with(method, options), network, x, sigmas, final, noise, report)

    sample.__name__ = sample.__qualname__ = f"sample_{'learned' if learned else _name(solver)}"
    sample.__doc__ = f"Sample with {method!r:.200}. See `scoreline.integrations.k_diffusion.sampler`."
    return sample


def __getattr__(name: str) -> Sampler:
    """Return `sample_NAME`, the sampler of the solver NAME with its default options."""
    if not name.startswith("sample_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return sampler(name.removeprefix("sample_"))
    except InputError as error:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: {error}") from error


def __dir__() -> list[str]:
    """Return the public names, those of samplers included."""
    own = [name for name in globals() if not name.startswith("_")]
    return [*own, *(f"sample_{name}" for name in names("solver"))]


def learned_sigmas(learned: str | Path, nfe: int, final: str = "none", flow: bool = False) -> Tensor:
    """Return the sigmas of a learned tableau, for `sampler(learned=...)`: (steps + 1,) float32.

    Args:
        learned: the record.
        nfe: a budget that was learned.
        final: `denoise` appends a 0, for one more evaluation.
        flow: whether to return t = rho / (1 + rho), for flow models.

    Raises:
        InputError: for a budget that was not learned.
    """
    tableaus = _load(learned).tableaus
    if nfe not in tableaus:
        raise InputError(f"nfe={nfe}: {learned} has tables for NFE {', '.join(map(str, sorted(tableaus)))}")
    levels = tableaus[nfe].rho.tolist() + [0.0] * (check_final(final) == "denoise")
    coordinates = FlowTime() if flow else NoiseLevel()
    return torch.tensor([coordinates.label(level) for level in levels], dtype=torch.float32)


class NoiseLevel:
    """k-diffusion's coordinates: sigma is rho and x = x_0 + rho eps, the solvers' own."""

    def rho(self, sigma: float) -> float:
        """Return the solvers' noise level."""
        return sigma

    def label(self, rho: float) -> float:
        """Return the sigma that the network is given."""
        return rho

    def unit(self, x: Tensor, sigma: float) -> Tensor:
        """Return the solvers' state."""
        return x

    def native(self, x: Tensor, rho: float) -> Tensor:
        """Return the state that the network is given."""
        return x


class FlowTime(NoiseLevel):
    """A flow model's: sigma is t, z = (1 - t) x_0 + t eps, rho = t / (1 - t) and x = z / (1 - t); y = z at t = 1.

    x is float64, since near t = 1 float32 would lose x_0 in it; on Apple's GPUs, which have no float64, it is float32.
    """

    def rho(self, sigma: float) -> float:
        if sigma > 1:
            raise InputError(f"sigmas: {sigma:g} is no time of a flow model; with flow=True give times from 1 to 0")
        return sigma / (1 - sigma) if sigma < 1 else math.inf

    def label(self, rho: float) -> float:
        return rho / (1 + rho) if rho < math.inf else 1.0

    def unit(self, x: Tensor, sigma: float) -> Tensor:
        state = x if x.device.type == "mps" else x.double()
        return state / (1 - sigma) if sigma < 1 else state

    def native(self, x: Tensor, rho: float) -> Tensor:
        return x / (1 + rho) if rho < math.inf else x


@dataclass(frozen=True)
class _Network:
    """The model as the solvers call it: D(x (B, *), rho) in the state's own dtype."""

    model: Callable[..., Tensor]
    extra_args: Mapping[str, Any]
    dtype: torch.dtype
    coordinates: NoiseLevel

    def __call__(self, x: Tensor, level: float) -> Tensor:
        native = self.coordinates.native(x, level).to(self.dtype)
        sigma = native.new_full((len(x),), self.coordinates.label(level))
        return tensor_like("model", self.model(native, sigma, **self.extra_args), x).to(x.dtype)


@dataclass(frozen=True)
class _Report:
    """The callback, with tensors of the model's dtype, and the progress bar."""

    callback: Callable[[dict[str, Any]], object] | None
    sigmas: Tensor
    dtype: torch.dtype
    coordinates: NoiseLevel
    disable: bool | None

    def bar(self, total: int | None) -> AbstractContextManager[Any]:
        """Return tqdm's bar, or nothing where there is no tqdm."""
        try:
            from tqdm.auto import tqdm
        except ImportError:
            return nullcontext()
        bar: AbstractContextManager[Any] = tqdm(total=total, disable=self.disable)
        return bar

    def step(self, i: int, state: State, denoised: Tensor, bar: Any, sigma: Tensor | None = None) -> None:
        """Report step i, which begins with the answer to this state."""
        if bar is not None:
            bar.update()
        if self.callback is None or state.sigma is None:
            return
        told = self.sigmas.new_tensor(self.coordinates.label(state.sigma))
        x = self.coordinates.native(state.x, state.sigma).to(self.dtype)
        sigma = told if sigma is None else sigma
        self.callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": told, "denoised": denoised.to(self.dtype)})


@dataclass(frozen=True)
class _Noise:
    """Fresh noise of stochastic rows."""

    sampler: NoiseSampler | None
    generator: Generators | None
    scale: float
    sigmas: Tensor
    coordinates: NoiseLevel

    def draw(self, tableau: Tableau, x: Tensor) -> Draw:
        """Return the source of z_k for the rows of a tableau, of x's shape, dtype and device."""
        noise = fresh_noise(self.generator, x) if self.sampler is None else self._between(tableau, self.sampler)
        return lambda row: noise(row).to(x) * self.scale

    def _between(self, tableau: Tableau, sampler: NoiseSampler) -> Draw:
        """Return the noise of a sampler between the levels of each row, above clean states."""
        levels = tableau.rho.tolist()

        def noise(row: int) -> Tensor:
            before = next(level for level in reversed(levels[: row + 1]) if level > 0)
            ends = (self.sigmas.new_tensor(self.coordinates.label(level)) for level in (before, levels[row + 1]))
            return sampler(*ends)

        return noise


def _run(
    solver: Solver | Adaptive,
    network: _Network,
    x: Tensor,
    sigmas: Tensor,
    final: str,
    noise: _Noise,
    report: _Report,
) -> Tensor:
    """Return the sample in the model's coordinates and x's dtype."""
    coordinates, given = network.coordinates, sigmas.tolist()
    levels = [coordinates.rho(sigma) for sigma in given]
    if levels[-1] == math.inf:
        raise InputError("sigmas: they rise to t = 1, where rho is infinite; a run to there takes flow=False")
    state = coordinates.unit(x.float() if x.dtype.itemsize < 4 else x, given[0])
    if isinstance(solver, Adaptive):
        sample = _adaptive(solver, network, state, levels, final, report)
    else:
        sample = _fixed(_tableau(solver, levels, final), network, state, levels, noise, report)
    return coordinates.native(sample, levels[-1]).to(x.dtype)


def _fixed(
    tableau: Tableau, network: _Network, x: Tensor, levels: list[float], noise: _Noise, report: _Report
) -> Tensor:
    begins = first_calls(tableau, levels)
    stepper = Stepper(tableau, noise.draw(tableau, x))
    state = stepper.start(x)
    with report.bar(len(levels) - 1) as bar:
        while state.sigma is not None:
            denoised = network(state.x, state.sigma)
            if state.row in begins:
                step = begins[state.row]
                report.step(step, state, denoised, bar, report.sigmas[step])
            state = stepper.step(denoised)
    return state.x


def _adaptive(
    solver: Adaptive, network: _Network, x: Tensor, levels: list[float], final: str, report: _Report
) -> Tensor:
    """Return the end of an adaptive run from the first to the last positive level."""
    clean = levels[-1] == 0 and final == "denoise"
    first, last = levels[0], levels[-2] if clean else levels[-1]
    if clean and len(levels) == 2:
        return network(x, first)
    run = build(solver, Tabulated((first, last)), (first, last), CEILING, "denoise" if clean else "none")
    count = 0

    def eps(state: Tensor, rho: float) -> Tensor:
        nonlocal count
        denoised = network(state, rho)
        report.step(count, State(count, rho, state, rho), denoised, bar)
        count += 1
        return (state - denoised) / rho

    with report.bar(None) as bar:
        assert not isinstance(run, Tableau)
        return run(eps, x)


def _tableau(solver: Solver, levels: list[float], final: str) -> Tableau:
    """Return the tableau of a solver, or the learned one that has these levels."""
    if not isinstance(solver, Learned):
        return tableau_through(solver, levels, final)
    count = len(levels) - (levels[-1] == 0)
    for tableau in solver.tableaus.values():
        own = tableau.rho.tolist()
        if len(own) == count and all(math.isclose(a, b, rel_tol=SAME) for a, b in zip(own, levels, strict=False)):
            return denoise_last(tableau) if count < len(levels) else tableau
    raise InputError(
        f"sigmas: none of the learned tables has these {count} levels from {levels[0]:g} on; use those of "
        f"learned_sigmas, for NFE {', '.join(map(str, sorted(solver.tableaus)))}"
    )


def _levels(sigmas: Any, x: Tensor) -> Tensor:
    """Return the sigmas as a tensor.

    Raises:
        InputError: unless they are a list of numbers.
    """
    levels = torch.as_tensor(sigmas, device=x.device if not isinstance(sigmas, Tensor) else None)
    if levels.ndim != 1 or levels.is_complex():
        raise InputError(f"sigmas: shape {tuple(levels.shape)}; give decreasing noise levels in one dimension")
    return levels if levels.is_floating_point() else levels.to(x.dtype)


def _with(solver: Solver | Adaptive, options: Mapping[str, Any]) -> Solver | Adaptive:
    """Return the solver with some of its fields replaced.

    Raises:
        InputError: for an option that it does not have.
    """
    if not options:
        return solver
    own = [field.name for field in fields(solver)] if is_dataclass(solver) else []
    changes = {OPTIONS.get(name, name) if name not in own else name: value for name, value in options.items()}
    for name in changes:
        if name not in own:
            hint = did_you_mean(name, own) or f"; it has {', '.join(own) or 'none'}"
            raise InputError(f"{name}: {type(solver).__name__} has no such option{hint}")
    return replace(solver, **changes)  # type: ignore[type-var]


def _name(solver: str | Solver | Adaptive) -> str:
    return solver if isinstance(solver, str) else type(solver).__name__


def _load(path: str | Path) -> Learned:
    """Load the tableaus of a record, for whatever model the program has: it knows no digest of a checkpoint."""
    record = read_record(path, ("tableau",), None, "learned")
    try:
        return learned_in(record)
    except ValueError as error:
        raise InputError(f"learned={path}: not a record of tableaus ({error})") from error
