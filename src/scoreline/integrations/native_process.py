"""The process, the steps and the timesteps of a diffusers scheduler, in the terms of this package."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor

from scoreline.descriptions.specs import rebuild
from scoreline.errors import InputError
from scoreline.foreign.diffusers_process import described_process, minus_output
from scoreline.parameterisations import (
    EDMPreconditioning,
    FlowVelocity,
    Numbers,
    Parameterisation,
    Scalings,
    VelocityPrediction,
)
from scoreline.schedules.base import NoiseSchedule
from scoreline.schedules.flow import RectifiedFlow
from scoreline.schedules.ve import EDM
from scoreline.schedules.vp import CosineVP

FLOW, EDM_CLASS, VP = "FlowMatchEulerDiscreteScheduler", "EDMDPMSolverMultistepScheduler", "DPMSolverMultistepScheduler"
DDIM, EULER = "DDIMScheduler", "EulerDiscreteScheduler"

CLASSES = {
    **{name: name for name in (FLOW, EDM_CLASS, VP, DDIM, EULER)},
    **{name: name for name in ("DDPMScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler")},
    **{name: name for name in ("DEISMultistepScheduler", "UniPCMultistepScheduler", "EDMEulerScheduler")},
    **{"IPNDMScheduler": "IPNDMScheduler", "PNDMScheduler": DDIM, "DDIMParallelScheduler": DDIM},
    **{"DDPMParallelScheduler": "DDPMScheduler", "HeunDiscreteScheduler": EULER, "KDPM2DiscreteScheduler": EULER},
    **{"KDPM2AncestralDiscreteScheduler": EULER, "DPMSolverSDEScheduler": EULER, "SASolverScheduler": VP},
    **{"DPMSolverSinglestepScheduler": VP, "CosineDPMSolverMultistepScheduler": EDM_CLASS},
    **{"FlowMatchHeunDiscreteScheduler": FLOW},
}
"""Schedulers of diffusers -> the class whose steps are taken; of a method with two calls a step, Euler's."""

Config = Mapping[str, Any]


@dataclass(frozen=True)
class SignedEDM(EDMPreconditioning):
    """EDM's preconditioning of a network that predicts -F, which diffusers calls v_prediction.

    With sigma_data = 1 it is v prediction with Stable Video Diffusion's labels, ln(rho) / 4.
    """

    def __call__(self, rho: Tensor) -> Scalings:
        scalings = super().__call__(rho)
        return scalings._replace(out=-scalings.out)


@dataclass(frozen=True)
class ToInfinity(CosineVP):
    """The process of `IPNDMScheduler`, alpha = cos(pi t / 2), from t = 1, where rho is infinite."""

    s: float = 0.0
    t_max: float = 1.0

    def inverse(self, u: Tensor) -> Tensor:
        return torch.where(u >= 1, math.inf, super().inverse(u))


@dataclass(frozen=True)
class Process:
    """A pipeline's process, its network's prediction and its timesteps.

    Attributes:
        parameterisation: D = skip x + out F(in x, timestep), x in unit-signal coordinates.
        noise_schedule: the map between noise level and native time, for solvers and schedules that read it.
        level: the noise levels of timesteps, float64.
        scaled: whether pipelines hold in(rho) x, the native state of VP and flow models, or x itself, as with EDM.
    """

    parameterisation: Parameterisation
    noise_schedule: NoiseSchedule
    level: Callable[[Tensor], Tensor]
    scaled: bool = True

    def at(self, rho: float) -> Numbers:
        """Return skip, out, in and the timestep of a level.

        Raises:
            InputError: at infinite noise, for a network whose prediction says nothing of the data there.
        """
        return self.parameterisation.at(rho)

    def timestep(self, rho: float) -> float:
        """Return the timestep of a level; that of a level in float32 on a whole one is whole."""
        timestep = self.at(rho).noise
        return float(round(timestep)) if abs(timestep - round(timestep)) < 1e-3 else timestep

    def scale(self, rho: float) -> float:
        """Return the factor between x and the state that pipelines hold."""
        return self.parameterisation.at(rho).in_ if self.scaled else 1.0


def own_name(config: Config) -> str:
    """Return the diffusers class whose steps a config describes: `steps_of`, or what its keys say.

    Raises:
        InputError: for a name that is not one of `CLASSES`.
    """
    if (name := config["steps_of"]) is not None:
        if name not in CLASSES:
            raise InputError(f"steps_of={name!r}: choose from {', '.join(sorted(CLASSES))}")
        return str(name)
    discrete = config["beta_start"] is not None or config["trained_betas"] is not None
    if config["use_flow_sigmas"] or discrete:
        return VP
    if config["shift"] is not None:
        return FLOW
    return VP if config["sigma_data"] is None else EDM_CLASS


REFUSED = {
    "invert_sigmas": "its network runs from data to noise",
    "stochastic_sampling": "its model is distilled for new noise in every step",
    "snr_shift_scale": "its process is another one than its betas say",
    "original_inference_steps": "its model is distilled to jump to clean data in every step",
}
"""Keys of other schedulers' configs that mean another process, if they are set."""


def check_followed(config: Config) -> None:
    """Refuse a config with a setting that this scheduler would have to follow and does not.

    Raises:
        InputError: naming the key.
    """
    for key, reason in REFUSED.items():
        if config.get(key):
            raise InputError(f"{key}={config[key]}: not followed here, {reason}; steps_of=.. leaves it out")


def owner(config: Config) -> str | None:
    """Return the diffusers class that wrote a config: the one named, else that of `CLASSES` with the most of its keys.

    Args:
        config: of any scheduler; without `_class_name` unless it was loaded from a file.

    Raises:
        InputError: for another class of diffusers.
    """
    name = config.get("_class_name")
    if name in CLASSES:
        return str(name)
    if name in dir(diffusers):  # hasattr would import what a file names
        raise InputError(f"{name}: its steps are not known here; name steps_of=.., one of {', '.join(sorted(CLASSES))}")
    counts = {name: len(keys) for name in CLASSES if (keys := init_keys(name)) and keys <= config.keys()}
    return max(counts, key=lambda name: counts[name]) if counts else None


def init_keys(name: str) -> set[str]:
    """Return the names of a diffusers class's arguments, none for one whose requirements are not installed."""
    return set(signature(getattr(diffusers, name)).parameters) - {"args", "kwargs"}


def own_scheduler(config: Config, **changes: Any) -> Any:
    """Return the diffusers scheduler whose steps are taken, built from the fields of a config that are set."""
    name = CLASSES[own_name(config)]
    fields = {**config, **changes}
    if name == FLOW and fields["shift"] is None:
        fields["shift"] = fields["flow_shift"]
    if fields["use_flow_sigmas"] and fields["prediction_type"] is None:
        fields["prediction_type"] = "flow_prediction"
    if name != FLOW and not fields["use_flow_sigmas"] and fields["prediction_type"] == "flow_prediction":
        raise InputError("prediction_type=flow_prediction: set use_flow_sigmas=True for a flow model")
    return getattr(diffusers, name)(**{key: fields[key] for key in init_keys(name) if fields.get(key) is not None})


def is_flow(config: Config) -> bool:
    """Return whether a config describes a flow model."""
    return CLASSES[own_name(config)] == FLOW or bool(config["use_flow_sigmas"])


def process_of(config: Config, mu: float | None = None) -> Process:
    """Return the process that a config describes.

    Args:
        config: of `ScorelineScheduler`.
        mu: logarithm of a flow model's shift, where it depends on the resolution.

    Raises:
        InputError: for a prediction that the process does not have, and betas that make none.
    """
    own, zero = own_scheduler(config, rescale_betas_zero_snr=False), bool(config["rescale_betas_zero_snr"])
    if isinstance(own, diffusers.IPNDMScheduler):
        cosine = ToInfinity()
        return Process(VelocityPrediction(cosine, 1.0), cosine, _level_of(cosine, 1.0))
    described = {**own.config, "_class_name": type(own).__name__}
    if described.get("timestep_type") == "continuous" and described["prediction_type"] == "v_prediction":
        return _edm(SignedEDM(1.0), EDM())  # timesteps ln(sigma) / 4, as Stable Video Diffusion has them
    described["timestep_type"] = "discrete"  # it matters to v_prediction alone
    if (betas := described.get("trained_betas")) is not None:
        described |= {"trained_betas": [float(beta) for beta in betas], "num_train_timesteps": len(betas)}
    parts = described_process(described, 1)
    schedule = rebuild(parts["noise_schedule"], NoiseSchedule)
    network = rebuild(parts["parameterisation"], Parameterisation)
    if isinstance(network, EDMPreconditioning):
        return _edm(SignedEDM(network.sigma_data) if minus_output(described) else network, schedule)
    if isinstance(network, FlowVelocity):
        return Process(network, RectifiedFlow(shift_of(config, mu)), _level_of(schedule, network.label_scale))
    if zero:
        schedule = replace(schedule, zero_terminal_snr=True)
        network = replace(network, noise_schedule=schedule)
    return Process(network, schedule, _level_of(schedule, 1.0))


def _edm(network: Parameterisation, schedule: NoiseSchedule) -> Process:
    return Process(network, schedule, lambda timesteps: (4 * timesteps.double()).exp(), scaled=False)


def _level_of(noise_schedule: NoiseSchedule, label_scale: float) -> Callable[[Tensor], Tensor]:
    def level(timesteps: Tensor) -> Tensor:
        return noise_schedule.inverse((timesteps.double() / label_scale).clamp(max=noise_schedule.t_max))

    return level


def shift_of(config: Config, mu: float | None) -> float:
    """Return the shift of a flow model's time."""
    if config["use_dynamic_shifting"] and mu is not None:
        return math.exp(mu)
    return float(next((config[key] for key in ("shift", "flow_shift") if config[key] is not None), 1.0))


class Steps(NamedTuple):
    """The steps of a run as another scheduler plans them.

    Attributes:
        levels: noise levels of the calls, falling.
        timesteps: what the network is told there.
        end: noise level of the sample, 0 for clean data.
    """

    levels: list[float]
    timesteps: list[float]
    end: float


class Request(NamedTuple):
    """What `set_timesteps` was asked for: a number of steps, or their sigmas or timesteps; mu of a flow model."""

    steps: int | None
    sigmas: list[float] | None
    timesteps: list[float] | None
    mu: float | None

    def calls(self, flow: bool) -> int:
        """Return the number of network calls. But for a flow's, the last sigma is the end of the run."""
        if self.timesteps is not None:
            return len(self.timesteps)
        if self.sigmas is not None:
            return len(self.sigmas) - (not flow)
        assert self.steps is not None
        return self.steps


def steps_of(config: Config, process: Process, request: Request) -> Steps:
    """Return the steps that the diffusers class of a config takes.

    Sigmas are taken as they are given, the last one as the end; those of a flow model are shifted and end in clean
    data. Both as `EulerDiscreteScheduler` and `FlowMatchEulerDiscreteScheduler` read them.
    """
    flow = is_flow(config)
    if flow and request.sigmas is not None:
        config = {**config, "use_flow_sigmas": False, "steps_of": FLOW, "shift": shift_of(config, None)}
    own = own_scheduler(config)
    given = _accepted(own, request, flow)
    asked: dict[str, Any] = given or {"num_inference_steps": request.calls(flow)}
    if "mu" in signature(own.set_timesteps).parameters and config["use_dynamic_shifting"]:
        asked["mu"] = request.mu
    own.set_timesteps(**asked)
    labels, levels, end = own.timesteps.double().tolist(), _levels(own, process, flow), _end(own, flow)
    if request.timesteps is not None and not given:
        labels = request.timesteps
        levels = process.level(torch.tensor(labels, dtype=torch.float64)).tolist()
    elif request.sigmas is not None and not given:
        levels, end = request.sigmas[:-1], request.sigmas[-1]
        labels = [process.timestep(level) for level in levels]
    levels = _falling(_exact(levels, labels, process))
    return Steps(levels, labels, end if end < levels[-1] else 0.0)


def _accepted(own: Any, request: Request, flow: bool) -> dict[str, Any]:
    """Return the sigmas or timesteps of a request if the scheduler takes them; DPM-Solver's takes whole timesteps."""
    accepted = signature(own.set_timesteps).parameters
    if request.sigmas is not None and "sigmas" in accepted:
        return {"sigmas": request.sigmas}
    if request.timesteps is None or flow or "timesteps" not in accepted:
        return {}
    whole = all(timestep == int(timestep) for timestep in request.timesteps)
    return {"timesteps": request.timesteps} if whole or isinstance(own, diffusers.EulerDiscreteScheduler) else {}


def _levels(own: Any, process: Process, flow: bool) -> list[float]:
    if not hasattr(own, "sigmas"):
        levels: list[float] = process.level(own.timesteps).tolist()
        return levels
    sigmas: list[float] = own.sigmas[: len(own.timesteps)].double().tolist()
    return [level_of_flow(sigma) for sigma in sigmas] if flow else sigmas


ONE = 1 - 1.5e-6
"""A flow's time from here on is 1: `UniPCMultistepScheduler` writes 1 - 1e-6 for it."""


def level_of_flow(sigma: float) -> float:
    """Return rho of sigma, a flow model's time."""
    return sigma / (1 - sigma) if sigma < ONE else math.inf


def noise_alone(config: Config) -> bool:
    """Return whether pipelines start from noise of the first level's deviation, instead of the first state's, 1."""
    own = CLASSES[own_name(config)]
    spread = own in (EULER, "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler")
    return spread and config["timestep_spacing"] in (None, "linspace", "trailing")


def _end(own: Any, flow: bool) -> float:
    if hasattr(own, "sigmas"):
        end = float(own.sigmas[len(own.timesteps)])  # Euler's `log_linear` has one more
        return level_of_flow(end) if flow else end
    signal = float(getattr(own, "final_alpha_cumprod", 1.0))
    return math.sqrt(1 / signal - 1)


def _exact(levels: list[float], timesteps: list[float], process: Process) -> list[float]:
    """Return the levels without the rounding of float32 to those of whole timesteps."""
    exact = process.level(torch.tensor(timesteps, dtype=torch.float64)).tolist()
    return [
        other if timestep == int(timestep) and math.isclose(level, other, rel_tol=1e-5) else level
        for level, other, timestep in zip(levels, exact, timesteps, strict=True)
    ]


def _falling(levels: list[float]) -> list[float]:
    """Return the levels with each that repeats the one before it moved halfway to the next lower one.

    Timesteps that are rounded to whole numbers repeat where there are as many steps as there are timesteps.
    """
    result = list(levels)
    for i in range(1, len(result)):
        if result[i] == result[i - 1]:
            lower = next((level for level in result[i + 1 :] if level < result[i]), 0.0)
            result[i] = (result[i] + lower) / 2
    return result
