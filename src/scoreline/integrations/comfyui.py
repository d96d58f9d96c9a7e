"""Nodes for ComfyUI: a sampler, sigmas, and both from a learned record.

ComfyUI loads them from one file in its folder `custom_nodes`, such as scoreline_nodes.py, of the line

    from scoreline.integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

ComfyUI's own modules are imported when a node runs, and of the package only what needs no more than ComfyUI has.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.integrations.k_diffusion import FlowTime, NoiseLevel, Sampler, learned_sigmas, sampler
from scoreline.interface.named_choices import names, schedule_named, solver_named
from scoreline.schedules.base import NoiseSchedule, grid
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.flow import RectifiedFlow
from scoreline.schedules.ve import EDM
from scoreline.schedules.vp import LinearVP

Inputs = dict[str, dict[str, tuple[Any, ...]]]
"""Inputs of a node by group and name: a type, or the list of a choice, and its options."""

MODEL = ("MODEL",)
ETA = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 100.0, "step": 0.01, "round": False})
COORDINATES = (["rho", "t"], {"default": "rho"})


class ScorelineSampler:
    """The node `Scoreline sampler`: a solver by name.

    Inputs:
        solver: a choice of `scoreline show solver` that reads no record.
        eta: strength of the fresh noise of stochastic solvers; others do not read it.
        s_noise: factor of that noise.
        coordinates: for flow models, `rho` makes the steps in rho = t / (1 - t), `t` in their own time, which the noise
            of stochastic solvers does not allow.
    """

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "sampler"
    CATEGORY = "sampling/custom_sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802  ComfyUI's name
        """Return the inputs of the node."""
        return {
            "required": {"solver": (names("solver"), {"default": "dpmpp_2m"})},
            "optional": {"eta": ETA, "s_noise": ETA, "coordinates": COORDINATES},
        }

    def sampler(self, solver: str, eta: float = 1.0, s_noise: float = 1.0, coordinates: str = "rho") -> tuple[Any]:
        """Return ComfyUI's sampler object."""
        solver_named(solver, LinearVP(), 1.0)  # a name that does not exist fails here, before the model is loaded

        def function(process: Any) -> tuple[Sampler, dict[str, Any]]:
            method = solver_named(solver, _process(process), float(getattr(process, "sigma_data", 1.0)))
            options: dict[str, Any] = {"eta": eta} if hasattr(method, "eta") else {}
            if _is_flow(process) and coordinates == "t":
                options["noise_sampler"] = _refuse_noise
            return sampler(method, flow=_is_flow(process) and coordinates == "rho"), options

        return (_ksampler(function, s_noise),)


class ScorelineSigmas:
    """The node `Scoreline sigmas`: the levels of a schedule between the model's own, followed by 0.

    Inputs:
        model: the model, whose sampling object gives the range, and the process whose time some schedules read.
        schedule: a choice of `scoreline show schedule` that reads no file; for a flow model in rho = t / (1 - t).
        steps: number of steps; each costs one evaluation with a multistep solver.
        denoise: below 1, the last steps of a run of steps / denoise, for image to image.
    """

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "sigmas"
    CATEGORY = "sampling/custom_sampling/schedulers"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        """Return the inputs of the node."""
        return {
            "required": {
                "model": MODEL,
                "schedule": (names("schedule"), {"default": "time_quadratic"}),
                "steps": ("INT", {"default": 10, "min": 1, "max": 10000}),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def sigmas(self, model: Any, schedule: str, steps: int, denoise: float = 1.0) -> tuple[Tensor]:
        """Return the sigmas (steps + 1,), on the CPU."""
        if denoise <= 0:
            return (torch.empty(0),)
        total = int(steps / denoise) if denoise < 1 else steps
        levels = _levels(model.get_model_object("model_sampling"), schedule, total)
        return (torch.tensor([*levels, 0.0], dtype=torch.float32)[-(steps + 1) :],)


class ScorelineLearned:
    """The node `Scoreline learned`: a sampler and its sigmas from a record of learned tableaus.

    Inputs:
        model: the model that it was learned for.
        record: path of the record.
        nfe: a budget that was learned.
    """

    RETURN_TYPES = ("SAMPLER", "SIGMAS")
    FUNCTION = "learned"
    CATEGORY = "sampling/custom_sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        """Return the inputs of the node."""
        return {
            "required": {
                "model": MODEL,
                "record": ("STRING", {"default": ""}),
                "nfe": ("INT", {"default": 6, "min": 1, "max": 4096}),
            }
        }

    def learned(self, model: Any, record: str, nfe: int) -> tuple[Any, Tensor]:
        """Return ComfyUI's sampler object, and the sigmas of the record."""
        flow = _is_flow(model.get_model_object("model_sampling"))
        sigmas = learned_sigmas(record, nfe, flow=flow)
        return _ksampler(lambda process: (sampler(learned=record, flow=_is_flow(process)), {})), sigmas


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "ScorelineSampler": ScorelineSampler,
    "ScorelineSigmas": ScorelineSigmas,
    "ScorelineLearned": ScorelineLearned,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "ScorelineSampler": "Scoreline sampler",
    "ScorelineSigmas": "Scoreline sigmas",
    "ScorelineLearned": "Scoreline learned",
}


def _ksampler(function: Callable[[Any], tuple[Sampler, dict[str, Any]]], s_noise: float = 1.0) -> Any:
    """Return ComfyUI's sampler object.

    Args:
        function: from a model's sampling object to its sampler and the sampler's options.
        s_noise: factor of fresh noise.
    """
    from comfy.samplers import KSAMPLER  # type: ignore[import-not-found]

    def sample(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, *given: Any, **options: Any) -> Tensor:
        draw, own = function(model.inner_model.model_patcher.get_model_object("model_sampling"))
        seed = (extra_args or {}).get("seed")
        if seed is not None and "noise_sampler" not in own:
            own["generator"] = [_image_seed(seed, image) for image in range(len(x))]
        return draw(model, x, sigmas, extra_args, *given, s_noise=s_noise, **own, **options)

    return KSAMPLER(sample)


def _refuse_noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    raise InputError("coordinates=t: fresh noise has another strength in a flow model's time; choose coordinates=rho")


def _image_seed(seed: int, image: int) -> int:
    """Return the seed of the fresh noise of an image of a batch, whatever the size of the batch."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{image}".encode()).digest()[:8], "little")


def _is_flow(process: Any) -> bool:
    """Return whether a model's state is (1 - t) x_0 + t eps, and its sigma is t."""
    from comfy.model_sampling import CONST  # type: ignore[import-not-found]

    return isinstance(process, CONST)


def _process(process: Any) -> NoiseSchedule:
    """Return the process of a model's sampling object, from its table of sigmas.

    Flow models have a shift of rectified flow; discrete processes their betas; all others have EDM's.
    """
    from comfy.model_sampling import ModelSamplingDiscrete

    table = torch.tensor(sorted(set(process.sigmas.tolist())), dtype=torch.float64)
    if _is_flow(process):
        t, s = 0.5, float(table[len(table) // 2 - 1])  # s = k t / (1 + (k - 1) t), entry i at t = (i + 1) / len
        return RectifiedFlow(s * (1 - t) / (t * (1 - s)))
    if not isinstance(process, ModelSamplingDiscrete):
        return EDM()
    signal = torch.nn.functional.pad(1 / (1 + table**2), (1, 0), value=1.0)
    return DiscreteVP(steps=len(table), betas=(1 - signal[1:] / signal[:-1]).tolist())


def _levels(process: Any, schedule: str, steps: int) -> list[float]:
    """Return the sigmas of `steps` states between the model's own ends."""
    first, last = float(process.sigma_max), float(process.sigma_min)
    if steps == 1:
        return [first]
    spacing = schedule_named(schedule, _process(process))
    coordinates = FlowTime() if _is_flow(process) else NoiseLevel()
    levels = grid(spacing, coordinates.rho(first), coordinates.rho(last), steps - 1)
    return [coordinates.label(rho) for rho in levels.tolist()]
