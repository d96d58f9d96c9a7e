"""The denoiser inside a pipeline of diffusers: its own network call with text, guidance and all, at any noise level."""

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any, cast

import torch
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Generator, Tensor, nn

from scoreline.errors import InputError, NotFiniteError, did_you_mean
from scoreline.integrations.diffusers import Levels, ScorelineScheduler
from scoreline.integrations.native_process import process_of
from scoreline.schedules.base import NoiseSchedule

OWN = ("latents", "num_inference_steps", "timesteps", "sigmas", "generator", "num_images_per_prompt")
"""Keywords of a pipeline that `PipelineDenoiser` sets."""

CALLS = 2
"""Steps of a pipeline: its first network call is at the state in question if it takes latents, else its second one."""


class _Prediction(Exception):  # noqa: N818  it is no error: a pipeline is left with it
    """What a pipeline's network predicts, and the sample that it belongs to."""

    def __init__(self, output: Tensor, sample: Tensor) -> None:
        super().__init__()
        self.output, self.sample = output, sample


class OneLevel(ScorelineScheduler):
    """A scheduler at one noise level, which leaves the pipeline with the prediction for one state."""

    question: Tensor | None = None
    dtype = torch.float32
    level = 1.0
    mu: float | None = None
    handed_over = False

    @property
    def noise_schedule(self) -> NoiseSchedule:
        """The process, with the shift of the latest call."""
        return self._process.noise_schedule

    @property
    def span(self) -> tuple[float, float]:
        """(sigma_max, sigma_min): the config's for EDM's process, else the process's; 1000 for infinite noise."""
        native, given = self.noise_schedule, (self.config.sigma_max, self.config.sigma_min)
        high, low = (None, None) if self._process.scaled else given
        return float(high or native.finite_sigma_max), float(low or native.sigma_min)

    @property
    def init_noise_sigma(self) -> float:
        """1: a pipeline's latents are the state itself."""
        return 1.0

    def ask(self, x: Tensor | None, level: float) -> Tensor | None:
        """Set the state and the level of the next call; return the state as pipelines hold it.

        Args:
            x: the state in unit-signal coordinates (B, *); None is the pipeline's own noise.
            level: its noise level.
        """
        self.level, self.handed_over = level, False
        self.question = None if x is None else (x * self._process.scale(level)).to(self.dtype)
        return self.question

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Any = None,
        timesteps: Any = None,
        mu: float | None = None,
    ) -> None:
        """Plan `CALLS` calls at the level, whatever is asked for."""
        if mu != self.mu:
            self._process, self.mu = process_of(self.config, mu), mu
        timestep, levels = self._process.timestep(self.level), [self.level] * CALLS
        self.set_levels(Levels(levels, levels, [timestep] * CALLS, 0.0), device)

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
        """Leave the pipeline with the prediction if it is for the state in question, else hand the state over.

        Raises:
            InputError: if the pipeline does not call its network with the sample that it was given.
        """
        if self.question is None:
            raise _Prediction(model_output, sample)
        # some pipelines hold each image twice, for guidance
        state = torch.cat([self.question] * max(1, len(sample) // len(self.question)))
        if torch.equal(state, sample):
            raise _Prediction(model_output, sample)
        if self.handed_over:
            raise InputError("pipe: it changes its sample between two steps; such pipelines are not followed")
        self.handed_over = True
        return DDIMSchedulerOutput(state, state) if return_dict else (state, state)

    def initial_scale(self, level: float) -> float:
        """Return the factor of standard normal noise in the first state, x, of a run from a level."""
        self.set_levels(Levels([level], [level], [self._process.timestep(level)], 0.0), None)
        return float(super().init_noise_sigma) / self._process.scale(level)


class PipelineDenoiser:
    """denoise(x, sigma, **call) -> E[x_0 | x] by the network call of a pipeline of diffusers, for `scoreline.sample`.

    A call runs the pipeline up to its network's prediction for x at this level, with its own text encoders, guidance
    and embeddings, so it costs what a step of the pipeline costs, and twice that for pipelines that take no latents,
    such as `DDPMPipeline` and `DiTPipeline`. The results of `encode_prompt` for the latest prompts are kept. It is
    differentiable in x. The pipeline itself stays as it is. Use this to measure a pipeline, or to sample it by a solver
    that has no place in a scheduler.

    Args:
        pipe: the pipeline, whose scheduler's config says what its network predicts.
        call: keywords of one call, such as {"prompt": ["a cat"], "guidance_scale": 5.0}.

    Attributes:
        shape: shape of a state of one image, as the pipeline holds it.
        device: device of that state.
        fingerprint: SHA-256 of its network's prediction for some noise; it depends on the machine by rounding.
        noise_schedule: the process, with the flow shift of these images' size.

    Raises:
        InputError: for anything but a pipeline with a scheduler, and for a keyword that this class sets.
    """

    def __init__(self, pipe: Any, call: Mapping[str, Any]) -> None:
        refuse_other(pipe)
        self.pipe = copy(pipe)
        names = {"solver": "ddim", "schedule": None, "learned": None}
        self.scheduler = OneLevel.from_config(pipe.scheduler.config, **names)
        self.pipe.scheduler = self.scheduler
        self.pipe.set_progress_bar_config(disable=True)
        if hasattr(pipe, "encode_prompt"):
            self.pipe.encode_prompt = _Kept(self.pipe.encode_prompt)
        self.run = inspect.unwrap(type(pipe).__call__)  # without diffusers' no_grad
        self.names = set(inspect.signature(self.run).parameters)
        _check_names(call, self.names)
        first = self._first(call)
        sample = first.sample
        self.shape, self.device, self.scheduler.dtype = tuple(sample.shape[1:]), sample.device, sample.dtype
        self.fingerprint = hashlib.sha256(first.output.float().cpu().numpy().tobytes()).hexdigest()

    @torch.no_grad()
    def _first(self, call: Mapping[str, Any]) -> _Prediction:
        """Return the prediction for noise of the pipeline's own.

        Raises:
            InputError: if the pipeline refuses the call.
        """
        try:
            return self._predict(None, self.scheduler.noise_schedule.finite_sigma_max, call)
        except InputError:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"pipe={type(self.pipe).__name__}: it refuses this call: {error}") from error

    @property
    def noise_schedule(self) -> NoiseSchedule:
        return cast(NoiseSchedule, self.scheduler.noise_schedule)

    @property
    def span(self) -> tuple[float, float]:
        """(sigma_max, sigma_min) of the pipeline's scheduler, 1000 for infinite noise."""
        return cast(tuple[float, float], self.scheduler.span)

    def initial_scale(self, level: float) -> float:
        """Return the factor of standard normal noise in the first state of the pipeline's runs from a level."""
        return float(self.scheduler.initial_scale(level))

    def __call__(self, x: Tensor, sigma: Tensor | float, **call: Any) -> Tensor:
        """Return E[x_0 | x] (B, *).

        Args:
            x: states in unit-signal coordinates (B, *).
            sigma: their level, ().
            call: keywords of the pipeline for these images.

        Raises:
            NotFiniteError: for states that are not.
        """
        if not bool(x.isfinite().all()):
            raise NotFiniteError(f"sigma={float(sigma):.6g}: numbers of the state are")
        follow = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        # ordinary tensors, since modules may keep some of them for later calls
        with torch.inference_mode(mode=False), torch.set_grad_enabled(follow):
            x = x.clone() if x.is_inference() else x
            output = self._predict(x, float(sigma), call).output
            if x.requires_grad and follow and not output.requires_grad:
                raise InputError(
                    f"pipe={type(self.pipe).__name__}: it calls its network without derivatives, which learning needs"
                )
            return cast(Tensor, self.scheduler.denoised(output[: len(x)], x, 0))

    def _predict(self, x: Tensor | None, level: float, call: Mapping[str, Any]) -> _Prediction:
        """Return the pipeline's prediction."""
        own = {"num_inference_steps": CALLS, "generator": torch.Generator().manual_seed(0)}
        own["latents"] = self.scheduler.ask(x, level)
        try:
            self.run(self.pipe, **call, **{name: value for name, value in own.items() if name in self.names})
        except _Prediction as prediction:
            return prediction
        raise InputError(f"pipe={type(self.pipe).__name__}: it never called the step of its scheduler")


def refuse_other(pipe: Any) -> None:
    """Refuse anything but a pipeline with a scheduler.

    Raises:
        InputError: naming its class.
    """
    if not (callable(pipe) and hasattr(getattr(pipe, "scheduler", None), "config")):
        raise InputError(f"pipe={type(pipe).__name__}: it has no scheduler; give a pipeline of diffusers")


def _check_names(call: Mapping[str, Any], names: set[str]) -> None:
    """Refuse keywords of a call that the pipeline does not have, or that are not the caller's.

    Raises:
        InputError: naming the first one.
    """
    for name in call:
        if name in OWN:
            raise InputError(f"{name}: this keyword is set for each noise level; leave it out")
        if name not in names and "kwargs" not in names:
            raise InputError(f"{name}: the pipeline has no such keyword{did_you_mean(name, names)}")


class _Kept:
    """A pipeline's `encode_prompt`, whose latest results for plain arguments are kept."""

    MOST = 4

    def __init__(self, encode: Any) -> None:
        self.encode = encode
        self.results: dict[str, Any] = {}

    def __call__(self, *args: Any, **options: Any) -> Any:
        if any(isinstance(value, Tensor | nn.Module) for value in (*args, *options.values())):
            return self.encode(*args, **options)
        key = repr((args, options))
        if key not in self.results:
            while len(self.results) >= self.MOST:
                self.results.pop(next(iter(self.results)))
            with torch.no_grad():
                self.results[key] = self.encode(*args, **options)
        return self.results[key]


@contextmanager
def frozen(pipe: Any) -> Iterator[None]:
    """Let no parameter of a pipeline ask for a derivative meanwhile."""
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    free = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    for weight in free:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in free:
            weight.requires_grad_(True)
