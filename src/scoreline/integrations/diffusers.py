"""A scheduler for pipelines of diffusers: every solver, schedule and learned record of this package by name.

pipe.scheduler = ScorelineScheduler.from_config(pipe.scheduler.config, solver="deis_tab3")
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Generator, Tensor

from scoreline.errors import InputError
from scoreline.integrations.native_process import (
    CLASSES,
    Request,
    Steps,
    check_followed,
    is_flow,
    noise_alone,
    own_scheduler,
    owner,
    process_of,
    steps_of,
)
from scoreline.interface.named_choices import schedule_named, solver_named
from scoreline.interface.sample_function import state_dtype
from scoreline.records import read_record
from scoreline.runtime.seeded_noise import normal
from scoreline.sampling import Stepper
from scoreline.schedules.tabulated import Tabulated
from scoreline.solvers.adaptive import Adaptive
from scoreline.solvers.edm import EDMHeun
from scoreline.solvers.late_start import first_call, late_start
from scoreline.solvers.learned import Learned, learned_in
from scoreline.solvers.rows import Rows
from scoreline.solvers.tableau import Solver, Tableau, build_tableau
from scoreline.thresholding import dynamic_threshold


class Levels(NamedTuple):
    """Noise levels and timesteps of the network calls of a run.

    Attributes:
        rho: level of each state that the network sees.
        told: level that it is told.
        timesteps: the same as the pipeline's timesteps.
        end: level of the sample.
    """

    rho: list[float]
    told: list[float]
    timesteps: list[float]
    end: float


class ScorelineScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers' types are not read
    """This package's solvers as a scheduler of diffusers: network calls = num_inference_steps = len(timesteps).

    Use `from_config(pipe.scheduler.config, solver=..)` in any pipeline whose scheduler predicts noise, v, the sample or
    a flow's velocity on a VP process, a flow or EDM's process. Without `schedule` or `learned` it visits the noise
    levels that the pipeline's own scheduler would, and ends like it; the last step to clean data is the network's
    estimate E[x_0 | x]. Every run is one tableau, which a `Stepper` evaluates in float32 whatever the pipeline's dtype,
    and in float64 from a finite level above 200; a pipeline that leaves the samples alone keeps that state.

    img2img starts in the middle: a closed form is built again on the remaining levels; a learned tableau, or another
    method with levels of its own, goes on with the first slope that it has (`late_start`).

    The noise of stochastic solvers is each image's own: its seed is drawn from its generator at the first step of a
    run, one after the other if the images share one, so an image depends on its place but not on its batch's size.

    Args:
        solver: name of a solver, as `scoreline show solver` lists them.
        schedule: name of a schedule; None visits the levels of `steps_of`.
        learned: path of a record of tableaus, which brings its own levels and one method for each number of steps.
        steps_of: diffusers class whose steps are visited; `from_config` finds it. None decides by the other fields:
            a flow if `shift` is set and no `beta_start`, EDM if `sigma_data` is, else multistep DPM-Solver.
        num_train_timesteps: number of training steps.
        beta_start: first beta, as all fields from here on a field of diffusers' schedulers; None is the default there.
        beta_end: last beta.
        beta_schedule: how betas lie between them.
        trained_betas: the betas themselves.
        rescale_betas_zero_snr: rescale them so that the last level is pure noise.
        prediction_type: `epsilon`, `v_prediction`, `sample` or `flow_prediction`.
        timestep_spacing: `linspace`, `leading` or `trailing`.
        steps_offset: added to `leading` timesteps.
        set_alpha_to_one: whether DDIM's last step ends in clean data.
        final_sigmas_type: `zero` ends in clean data, `sigma_min` at the lowest level.
        interpolation_type: Euler's levels between whole timesteps.
        timestep_type: `continuous` gives timesteps ln(sigma) / 4.
        lambda_min_clipped: smallest half log-SNR of DPM-Solver's steps.
        use_karras_sigmas: Karras's steps, as diffusers spaces them.
        use_exponential_sigmas: steps even in ln(sigma).
        use_beta_sigmas: steps by quantiles of a beta distribution.
        use_lu_lambdas: steps even in lambda.
        use_flow_sigmas: a flow model on the steps of a class for VP processes.
        flow_shift: shift of such a flow's time.
        shift: shift of a flow's time.
        use_dynamic_shifting: take the shift from the pipeline, which knows the resolution.
        base_shift: mu at `base_image_seq_len`, which pipelines read.
        max_shift: mu at `max_image_seq_len`.
        base_image_seq_len: tokens of the smallest images.
        max_image_seq_len: tokens of the largest images.
        shift_terminal: stretch a flow's levels to end here.
        time_shift_type: `exponential` or `linear`.
        sigma_data: standard deviation of the data, for EDM's networks and solvers in velocity prediction (else 1).
        sigma_schedule: EDM's steps, `karras` or `exponential`.
        rho: exponent of EDM's steps.
        sigma_min: lowest level of EDM, and of a named schedule.
        sigma_max: highest level of EDM, and of a named schedule.
        clip_sample: clamp the denoised image.
        clip_sample_range: to plus and minus this.
        thresholding: threshold the denoised image dynamically.
        dynamic_thresholding_ratio: at this quantile.
        sample_max_value: largest threshold.
        variance_type: of networks that also predict a variance, which is not used.

    Raises:
        InputError: for a name that does not exist and a request that a solver cannot meet.
    """

    _compatibles = sorted(CLASSES)
    order = 1

    timesteps: Tensor
    sigmas: Tensor
    _begin_index: int | None
    _step_index: int | None
    _stepper: Stepper | None
    _next: Tensor | None

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        solver: str = "dpmpp_2m",
        schedule: str | None = None,
        learned: str | None = None,
        steps_of: str | None = None,
        num_train_timesteps: int = 1000,
        beta_start: float | None = None,
        beta_end: float | None = None,
        beta_schedule: str | None = None,
        trained_betas: list[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        prediction_type: str | None = None,
        timestep_spacing: str | None = None,
        steps_offset: int = 1,
        set_alpha_to_one: bool | None = None,
        final_sigmas_type: str | None = None,
        interpolation_type: str | None = None,
        timestep_type: str | None = None,
        lambda_min_clipped: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float | None = None,
        shift: float | None = None,
        use_dynamic_shifting: bool = False,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        shift_terminal: float | None = None,
        time_shift_type: str | None = None,
        sigma_data: float | None = None,
        sigma_schedule: str | None = None,
        rho: float | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        variance_type: str | None = None,
    ) -> None:
        own = own_scheduler(self.config)
        for name in ("betas", "alphas", "alphas_cumprod"):
            if hasattr(own, name):
                setattr(self, name, getattr(own, name))
        self.num_inference_steps: int | None = None
        self._process = process_of(self.config)
        self._solver = self._named_solver()
        self._tableau: Tableau | None = None
        levels = self._process.level(own.timesteps).tolist()
        self.set_levels(Levels(levels, levels, own.timesteps.tolist(), 0.0), own.timesteps)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Build the scheduler from the config of a pipeline's own, with fields of this class in addition.

        Args:
            config: `pipe.scheduler.config`, of this class or of one of diffusers.
            return_unused_kwargs: return keywords that are no fields, too.
            **kwargs: fields, such as solver="unipc_2".

        Raises:
            InputError: for a config of another process than an ODE's from noise to data.
        """
        if isinstance(config, dict) and "steps_of" not in config:
            # another class's: a field that it left at its default means that class's default, not this one's
            config = {key: value for key, value in config.items() if key != "_use_default_values"}
            if "steps_of" not in kwargs:
                check_followed(config)
                kwargs["steps_of"] = owner(config)
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    def _named_solver(self) -> Solver:
        config = self.config
        if config.learned is not None:
            return _learned(config.learned)
        solver = solver_named(config.solver, self._process.noise_schedule, config.sigma_data or 1.0)
        if isinstance(solver, Adaptive):
            raise InputError(f"solver={config.solver}: it chooses its steps as it goes; a pipeline plans them")
        return solver

    @property
    def init_noise_sigma(self) -> float:
        """The factor of standard normal noise in the first sample."""
        first = self._levels.rho[0]
        apart = self._levels.told[0] != first  # as the first call of a learned tableau may be told
        if first < math.inf and (apart or noise_alone(self.config)):
            return first * self._scale(0)
        return 1.0 if self._process.scaled else math.hypot(first, 1)

    @property
    def step_index(self) -> int | None:
        """The number of the next step, None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The number of the first step, None for the one whose timestep is nearest."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Set the number of the first step."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        timesteps: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Plan a run of this many network calls.

        Args:
            num_inference_steps: number of calls.
            device: where `timesteps` go.
            sigmas: the levels instead, of a flow before its shift; a named schedule reads their number only.
            timesteps: the timesteps instead, likewise.
            mu: logarithm of a flow's shift, read if `use_dynamic_shifting`.

        Raises:
            InputError: unless one of the three is given, and as the solver does.
        """
        request = Request(num_inference_steps, _numbers(sigmas), _numbers(timesteps), mu)
        if request.steps is None and sigmas is None and timesteps is None:
            raise InputError("set_timesteps: give num_inference_steps, sigmas or timesteps")
        self._process = process_of(self.config, mu)
        self._solver = self._named_solver()
        steps = steps_of(self.config, self._process, request)
        self._tableau = first_call(self._plan(steps, request.calls(is_flow(self.config))))
        levels = self._levels_of(self._tableau, steps)
        self._process.at(levels.told[0])  # refuses a level at which the network says nothing, before the first call
        self.set_levels(levels, device)

    def _plan(self, steps: Steps, calls: int) -> Tableau:
        """Return the tableau of the run."""
        config, solver = self.config, self._solver
        if isinstance(solver, Learned):
            if calls not in solver.tableaus:
                has = ", ".join(map(str, sorted(solver.tableaus)))
                raise InputError(
                    f"num_inference_steps={calls}: the record of {config.learned} holds runs of {has} calls"
                )
            return solver.tableaus[calls]
        if config.schedule is None:
            return listed_run(solver, steps.levels, steps.end)
        native = self._process.noise_schedule
        ends = [config.sigma_max, config.sigma_min] if not is_flow(config) else [None, None]
        span = (native.sigma_max if ends[0] is None else ends[0], native.sigma_min if ends[1] is None else ends[1])
        schedule = schedule_named(config.schedule, native)
        if calls == 1 and steps.end == 0:
            return listed_run(solver, [span[0]], 0.0)
        return build_tableau(solver, schedule, span, calls, _final(solver, steps.end))

    def _levels_of(self, tableau: Tableau, steps: Steps) -> Levels:
        """Return the levels of a run's calls, with the timesteps of `steps` if these are its levels."""
        called = torch.tensor(tableau.calls)
        told = tableau.query_levels[called].tolist()
        timesteps = steps.timesteps if told == steps.levels else [self._process.timestep(level) for level in told]
        return Levels(tableau.rho[:-1][called].tolist(), told, timesteps, float(tableau.rho[-1]))

    def set_levels(self, levels: Levels, like: "Tensor | str | torch.device | None") -> None:
        """Publish the levels of a run and forget the last one.

        Args:
            levels: those of its network calls.
            like: where `timesteps` go: a device, or that of a tensor.
        """
        self._levels, self.num_inference_steps = levels, len(levels.rho)
        whole = all(timestep == int(timestep) for timestep in levels.timesteps)
        device = like.device if isinstance(like, Tensor) else like
        dtype = torch.int64 if whole and not is_flow(self.config) else torch.float32
        self.timesteps = torch.tensor(levels.timesteps, dtype=dtype, device=device)
        sigmas = torch.tensor([*levels.rho, levels.end], dtype=torch.float64)
        if is_flow(self.config):
            sigmas = 1 / (1 + 1 / sigmas)
        self.sigmas = sigmas.float()
        self._begin_index = None
        self._step_index = None
        self._stepper = None
        self._idle = 0  # calls that the rest of a run has no use for
        self._next = None
        self._noise = _Noise()

    def index_for_timestep(self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None) -> int:
        """Return the number of the step whose timestep is nearest; the second of two with the same.

        Args:
            timestep: on or off the grid.
            schedule_timesteps: the grid; None is `timesteps`.
        """
        grid = self.timesteps if schedule_timesteps is None else schedule_timesteps
        off = (grid.double().cpu() - float(timestep)).abs()
        nearest = (off == off.min()).nonzero().flatten()
        return int(nearest[1 if len(nearest) > 1 and float(off.min()) == 0 else 0])

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """Return the network's input for a sample: itself, times EDM's factor with that process.

        Args:
            sample: what the pipeline holds.
            timestep: the current timestep.
        """
        if self._process.scaled:
            return sample
        index = self._index(timestep)
        return sample * self._process.at(self._levels.told[min(index, len(self._levels.told) - 1)]).in_

    def _index(self, timestep: float | Tensor | None) -> int:
        """Return the number of the current step."""
        if self._step_index is not None:
            return self._step_index
        if self._begin_index is not None:
            return self._begin_index
        return 0 if timestep is None else self.index_for_timestep(timestep)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: "Generator | list[Generator] | None" = None,
        return_dict: bool = True,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """Go on to the sample of the next timestep.

        Args:
            model_output: the network's prediction (B, *) for the sample, or with a variance in as many more channels.
            timestep: of the sample; read at the first step.
            sample: what the pipeline holds (B, *).
            generator: source of a stochastic solver's noise, or one for each image; read at the first step.
            return_dict: whether to return an object or a tuple.
            eta: must be 0; a stochastic solver has its own.
            use_clipped_model_output: not read: eps always belongs to the clipped image.

        Returns:
            the next sample and the denoised image, of sample's dtype.

        Raises:
            InputError: before `set_timesteps`, and for another eta.
        """
        if eta:
            raise InputError(f"eta={eta}: choose solver=euler_ancestral for noise in each step, and eta=0")
        if self._tableau is None:
            raise InputError("step: call set_timesteps first")
        if self._stepper is None or (self._stepper.state.done and not self._idle):
            self._step_index = None
            self._step_index = self._begin(self._index(timestep), sample, generator)
        stepper, index = self._stepper, self._step_index
        assert stepper is not None
        assert index is not None
        denoised = self.denoised(model_output, self._state(sample, index), index)
        self._step_index = index + 1
        if self._idle:
            self._idle -= 1
            output = (sample, denoised.to(sample.dtype))
        else:
            self._next = stepper.step(denoised).x * self._scale(index + 1)
            output = (self._next.to(sample.dtype), denoised.to(sample.dtype))
        return DDIMSchedulerOutput(*output) if return_dict else output

    def _begin(self, index: int, sample: Tensor, generator: "Generator | list[Generator] | None") -> int:
        """Start the run at a step; return its number."""
        assert self._tableau is not None
        tableau = self._tableau if index == 0 else self._rest(index)
        self._idle = len(self._levels.rho) - index - tableau.nfe
        if bool(tableau.B.any()):
            self._noise.start(sample, generator)
        self._stepper = Stepper(tableau, self._noise)
        self._stepper.start(self._unscaled(sample, index))
        self._next = None
        return index

    def _rest(self, index: int) -> Tableau:
        """Return the run from a step in its middle."""
        assert self._tableau is not None
        levels, solver = self._levels, self._solver
        if not getattr(solver, "own_levels", False) and _falling(levels.rho[index:]):
            run = listed_run(solver, levels.rho[index:], levels.end)
            called = run.query_levels[torch.tensor(run.calls)]
            if called.tolist() == levels.told[index:]:
                return run
        try:
            return late_start(self._tableau, index)
        except ValueError as error:
            raise InputError(f"solver={self.config.solver}: it cannot start in the middle ({error})") from error

    def _scale(self, index: int) -> float:
        """Return the factor between the state in unit-signal coordinates and the sample before a step."""
        levels = self._levels
        return self._process.scale(levels.told[index] if index < len(levels.told) else levels.end)

    def _unscaled(self, sample: Tensor, index: int) -> Tensor:
        on_mps = sample.device.type == "mps"  # which has no float64
        return sample.to(state_dtype(sample.dtype, 0 if on_mps else self._levels.rho[0])) / self._scale(index)

    def _state(self, sample: Tensor, index: int) -> Tensor:
        """Return the state of a step: the stepper's own unless the pipeline changed the sample."""
        assert self._stepper is not None
        wider = self._stepper.state.x.dtype != sample.dtype  # else the sample is the state, to rounding
        if not (wider and self._next is not None and torch.equal(sample, self._next.to(sample.dtype))):
            self._stepper.replace(self._unscaled(sample, index))
        return self._stepper.state.x

    def denoised(self, model_output: Tensor, x: Tensor, index: int) -> Tensor:
        """Return E[x_0 | x] of a prediction, clipped as the config says.

        Args:
            model_output: the network's prediction (B, *), or with a variance in as many more channels.
            x: its state in unit-signal coordinates (B, *).
            index: number of its step.
        """
        numbers, config = self._process.at(self._levels.told[index]), self.config
        if model_output.ndim > 1 and model_output.shape[1] == 2 * x.shape[1]:
            model_output = model_output[:, : x.shape[1]]
        denoised = numbers.skip * x + numbers.out * model_output.to(x.dtype)
        if config.thresholding:
            return dynamic_threshold(denoised, config.dynamic_thresholding_ratio, config.sample_max_value)
        return denoised.clamp(-config.clip_sample_range, config.clip_sample_range) if config.clip_sample else denoised

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the samples of a timestep for images and noise: alpha x_0 + sigma eps.

        Args:
            original_samples: images x_0 (B, *).
            noise: eps (B, *).
            timesteps: (B,).
        """
        count, levels = len(timesteps), self._levels
        if self._begin_index is None:
            indices = [self.index_for_timestep(timestep) for timestep in timesteps]
        else:
            indices = [self._index(None)] * count
        rho = [levels.rho[min(index, len(levels.rho) - 1)] for index in indices]
        parts = [(self._scale(index), level) for index, level in zip(indices, rho, strict=True)]
        signal = [0.0 if level == math.inf else scale for scale, level in parts]
        spread = [scale if level == math.inf else scale * level for scale, level in parts]
        shape = (-1, *[1] * (original_samples.ndim - 1))
        alpha, sigma = (original_samples.new_tensor(part).reshape(shape) for part in (signal, spread))
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Return `add_noise`, under the name and with the order of arguments that pipelines of flow models use.

        Args:
            sample: images x_0 (B, *).
            timestep: (B,).
            noise: eps (B, *).
        """
        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)


class _Noise:
    """The noise of a stochastic run, image by image: a function of the image's seed and the row."""

    def __init__(self) -> None:
        self._seeds: list[int] = []
        self._like = torch.empty(0)

    def start(self, like: Tensor, generator: "Generator | list[Generator] | None") -> None:
        """Draw a seed for each image.

        Args:
            like: a sample (B, *).
            generator: one for all or for each image; None is torch's own.
        """
        count = len(like)
        generators = generator if isinstance(generator, list) else [generator]
        if len(generators) not in (1, count):
            raise InputError(f"generator: {len(generators)} for {count} images; give one for each")
        each = count // len(generators)
        self._seeds = [seed for one in generators for seed in _seeds(one, each)]
        self._like = like

    def __call__(self, row: int) -> Tensor:
        noise = normal(self._seeds, tuple(self._like.shape[1:]), "diffusers", row)
        return noise.to(self._like.device)


def _seeds(generator: Generator | None, count: int) -> list[int]:
    device = "cpu" if generator is None else generator.device
    drawn = torch.randint(2**62, (count,), generator=generator, device=device)
    return [int(seed) for seed in drawn.tolist()]


def listed_run(solver: Solver, levels: list[float], end: float) -> Tableau:
    """Return the run of a solver whose calls are at these levels, if it makes one a step.

    Args:
        solver: the method.
        levels: falling noise levels.
        end: level of the sample; 0 adds the final denoising step, for which the last call pays.
    """
    calls = len(levels)
    final = _final(solver, end)
    if calls == 1 and end == 0:
        rows = Rows(levels[0])
        rows.clean(0)
        return rows.tableau()
    levels = levels if end == 0 else [*levels, end]
    return build_tableau(solver, Tabulated(tuple(levels)), (levels[0], levels[-1]), calls, final)


def _falling(levels: list[float]) -> bool:
    return all(high > low for high, low in pairwise(levels))


def _final(solver: Solver, end: float) -> str:
    return "denoise" if end == 0 and not isinstance(solver, EDMHeun) else "none"


def _numbers(values: "Sequence[float] | Tensor | None") -> list[float] | None:
    return None if values is None else [float(value) for value in values]


def _learned(path: str) -> Learned:
    """Return the tableaus of a record, whatever model they were learned for."""
    return learned_in(read_record(path, ("tableau",), None, "learned"))
