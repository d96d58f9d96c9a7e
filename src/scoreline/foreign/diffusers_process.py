"""The process and the parameterisation that the scheduler of a diffusers folder stands for."""

from collections.abc import Mapping
from typing import Any

from scoreline.descriptions.specs import Spec, rebuild
from scoreline.errors import InputError
from scoreline.foreign.diffusers_files import word
from scoreline.parameterisations import Parameterisation
from scoreline.schedules.base import NoiseSchedule
from scoreline.schedules.discrete import DiscreteVP
from scoreline.values import is_number

DISCRETE = (
    *("DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler"),
    *("DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler"),
    *("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler", "PNDMScheduler"),
    *("SASolverScheduler", "UniPCMultistepScheduler"),
)
"""Schedulers of one and the same process: betas in their configuration, whole times, a VP state."""

FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
"""Schedulers of rectified flow: the state (1 - t) x_0 + t eps, times 0 .. num_train_timesteps."""

EDM = ("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler")
"""Schedulers of EDM's process and preconditioning."""

BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
"""beta_schedule -> betas of `DiscreteVP`."""

ENDS = {"beta_start": "beta_min", "beta_end": "beta_max"}
"""Keys of the ends of the betas -> arguments of `DiscreteVP`."""

PREDICTIONS = ("epsilon", "v_prediction", "sample")

SCHEDULES, PARAMETERISATIONS = "scoreline.schedules", "scoreline.parameterisations"


def described_process(scheduler: Mapping[str, Any], factor: int) -> dict[str, Spec]:
    """Describe `noise_schedule` and `parameterisation`.

    A flow's `shift` spaces the steps of its sampler and is no part of its process; `diffusers_settings` names it.

    Args:
        scheduler: the content of scheduler_config.json.
        factor: how many times the image's channels the network returns; 2 with a learned variance.

    Raises:
        InputError: for another process or prediction, with its reason.
    """
    name = scheduler.get("_class_name")
    if name in EDM:
        return _checked(_edm(scheduler, factor))
    if name in FLOW or scheduler.get("use_flow_sigmas") is True:
        return _checked(_flow(scheduler, factor))
    if name not in DISCRETE:
        known = ", ".join((*DISCRETE, *FLOW, *EDM))
        raise InputError(f"scheduler_config.json is of {word(name)}, which is no process known here; known: {known}")
    process = _discrete(scheduler)
    _check_betas(process)
    return _checked({"noise_schedule": process, "parameterisation": _of_betas(scheduler, process, factor)})


def prediction(scheduler: Mapping[str, Any]) -> str:
    """Return what the network predicts, by diffusers' name.

    Raises:
        InputError: for a prediction that cannot be imported.
    """
    if scheduler.get("_class_name") in FLOW:
        return "flow_prediction"
    kind = scheduler.get("prediction_type", "epsilon")
    if scheduler.get("predict_epsilon") is False:
        kind = "sample"
    known = ("flow_prediction",) if scheduler.get("use_flow_sigmas") is True else PREDICTIONS
    if kind not in known:
        raise InputError(
            f"scheduler_config.json: prediction_type={word(kind)} cannot be imported here; known: {', '.join(known)}"
        )
    return str(kind)


def minus_output(scheduler: Mapping[str, Any]) -> bool:
    """Return whether the network predicts minus EDM's F: `v_prediction` of an EDM scheduler."""
    return scheduler.get("_class_name") in EDM and prediction(scheduler) == "v_prediction"


def _checked(described: dict[str, Spec]) -> dict[str, Spec]:
    rebuild(described["noise_schedule"], NoiseSchedule)
    rebuild(described["parameterisation"], Parameterisation)
    return described


def _edm(scheduler: Mapping[str, Any], factor: int) -> dict[str, Spec]:
    kind = prediction(scheduler)
    if kind == "sample":
        raise InputError("scheduler_config.json: an EDM scheduler has prediction_type epsilon or v_prediction")
    _refuse_variance(factor, "EDM's preconditioning")
    low, high = _positive(scheduler, "sigma_min"), _positive(scheduler, "sigma_max")
    if low >= high:
        raise InputError(f"scheduler_config.json: sigma_min={low:g} is not below sigma_max={high:g}; correct them")
    deviation = _positive(scheduler, "sigma_data")
    return {
        "noise_schedule": {"_target_": f"{SCHEDULES}.ve.EDM", "t_min": low, "t_max": high},
        "parameterisation": {"_target_": f"{PARAMETERISATIONS}.EDMPreconditioning", "sigma_data": deviation},
    }


def _flow(scheduler: Mapping[str, Any], factor: int) -> dict[str, Spec]:
    prediction(scheduler)
    _refuse_variance(factor, "a flow")
    process: Spec = {"_target_": f"{SCHEDULES}.flow.RectifiedFlow"}
    scale = _positive(scheduler, "num_train_timesteps")
    velocity = {"_target_": f"{PARAMETERISATIONS}.FlowVelocity", "noise_schedule": process, "label_scale": scale}
    return {"noise_schedule": process, "parameterisation": velocity}


def _discrete(scheduler: Mapping[str, Any]) -> Spec:
    if scheduler.get("timestep_type", "discrete") != "discrete" or scheduler.get("use_flow_sigmas"):
        raise InputError(
            "scheduler_config.json: timestep_type=continuous means labels of another process, and use_flow_sigmas must "
            "be true or false; only models of whole time steps and a VP state can be imported"
        )
    spec: Spec = {"_target_": f"{SCHEDULES}.discrete.DiscreteVP", "steps": _needed(scheduler, "num_train_timesteps")}
    if _switch(scheduler, "rescale_betas_zero_snr"):
        spec["zero_terminal_snr"] = True
    if scheduler.get("trained_betas") is not None:
        return {**spec, "betas": scheduler["trained_betas"]}
    kind = _needed(scheduler, "beta_schedule")
    if not isinstance(kind, str) or kind not in BETAS:
        raise InputError(f"scheduler_config.json: beta_schedule={word(kind)} is not known; known: {', '.join(BETAS)}")
    if kind == "squaredcos_cap_v2":
        return {**spec, "betas": "cosine"}
    ends = {ours: _needed(scheduler, theirs) for theirs, ours in ENDS.items()}
    return {**spec, **ends, "betas": BETAS[kind]}


def _check_betas(described: Spec) -> None:
    endless = described.get("zero_terminal_snr", False)
    try:
        variance = rebuild(described, DiscreteVP).noise_variance
        usable = bool((variance.diff() > 0).all() and (variance[-1] < 1 or endless))
    except InputError:
        if "beta_min" not in described:
            raise
        usable = False
    if not usable:
        ends = " ".join(f"{theirs}={word(described.get(ours))}" for theirs, ours in ENDS.items())
        raise InputError(f"scheduler_config.json: {ends} give no betas between 0 and 1; copy the folder again")


def _of_betas(scheduler: Mapping[str, Any], process: Spec, factor: int) -> Spec:
    kind = prediction(scheduler)
    described: Spec = {"noise_schedule": process, "label_scale": 1.0}
    variance = {"output_factor": factor} if factor > 1 else {}
    if kind == "v_prediction":
        return {"_target_": f"{PARAMETERISATIONS}.VelocityPrediction", **described, **variance}
    if kind == "sample":
        return {"_target_": f"{PARAMETERISATIONS}.DataPrediction", **described, **variance}
    if process.get("zero_terminal_snr"):
        raise InputError(
            "scheduler_config.json: rescale_betas_zero_snr=true with prediction_type=epsilon predicts nothing at pure "
            "noise, where it starts; only v_prediction and sample can be imported with it"
        )
    return {"_target_": f"{PARAMETERISATIONS}.NoisePrediction", **described, "round_labels": False, **variance}


def _refuse_variance(factor: int, what: str) -> None:
    if factor > 1:
        raise InputError(f"config.json: a learned variance is no part of {what}; out_channels must equal in_channels")


def _needed(scheduler: Mapping[str, Any], key: str) -> Any:
    if key not in scheduler:
        raise InputError(f"scheduler_config.json: {key} is not there; write the value that the model was trained with")
    return scheduler[key]


def _positive(scheduler: Mapping[str, Any], key: str) -> float:
    value = _needed(scheduler, key)
    if not is_number(value) or not 0 < value < 1e6:
        raise InputError(f"scheduler_config.json: {key}={word(value)} is not a number above 0; copy the folder again")
    return float(value)


def _switch(scheduler: Mapping[str, Any], key: str) -> bool:
    value = scheduler.get(key, False)
    if not isinstance(value, bool | None):
        raise InputError(f"scheduler_config.json: {key}={word(value)} must be true or false; copy the folder again")
    return bool(value)
