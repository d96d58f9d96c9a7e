"""Folders that diffusers' save_pretrained writes: UNet2DModel with a scheduler of discrete betas.

Weights are read from safetensors, or from .bin files by `torch_files.read`; descriptions are JSON. No class that a
folder names is imported. UNet2DModel comes from `networks.diffusers_unet`, and its arguments are plain values.
"""

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.descriptions.specs import Spec, rebuild
from scoreline.errors import InputError, did_you_mean
from scoreline.foreign.diffusers_files import read_json, tensors, weight_files, word
from scoreline.foreign.translation import INCOMPLETE, ForeignModel, Rule, skeleton, translate
from scoreline.networks.diffusers_unet import DiffusersUNet
from scoreline.parameterisations import Parameterisation
from scoreline.schedules.discrete import DiscreteVP

INERT: frozenset[str] = frozenset()

SCHEDULERS = (
    *("DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler"),
    *("DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler"),
    *("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler", "PNDMScheduler"),
    *("SASolverScheduler", "UniPCMultistepScheduler"),
)
"""Schedulers of one and the same process: betas in their configuration, whole times, a VP state."""

BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
"""beta_schedule -> betas of `DiscreteVP`."""

AVERAGING = (
    *("decay", "inv_gamma", "min_decay", "optimization_step"),
    *("power", "update_after_step", "use_ema_warmup"),
)
"""Keys that EMAModel.save_pretrained adds to the configuration of a model."""

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Layers of attention -> their names in files before diffusers 0.15."""


@dataclass(frozen=True)
class Places:
    """Paths inside a folder, and whether it also holds averages."""

    unet: Path
    scheduler: Path
    pipeline: dict[str, Any]
    both: bool


def recognises(tree: Any) -> bool:
    """Return whether this is the path of a pipeline or a model."""
    return isinstance(tree, Path) and any((tree / name).is_file() for name in ("model_index.json", "config.json"))


def read_model(folder: Path, model: Spec | None, weights: str) -> ForeignModel:
    """Translate the UNet2DModel of a pipeline's folder or of its own, with the process of its scheduler.

    Time labels are whole numbers in training and in the schedulers of diffusers. Here they are fractional if a solver
    steps between two levels (`round_labels: false`); with schedule=time_quadratic_integer they are whole.

    Args:
        folder: the folder.
        model: must be None, since the folder describes its model.
        weights: `ema` takes the folder `unet_ema` that training writes beside `unet`, `raw` the variant `non_ema`. If
            there is only one set of weights, both take it, and the notes say so.

    Raises:
        InputError: for another kind of model, process or prediction, with its reason; for `model`; for a file that is
            missing, damaged or does not fit.
    """
    if model is not None:
        raise InputError("model: a folder of diffusers says itself what it holds; leave model out")
    places = _places(folder, weights)
    config, scheduler = _config(places.unet), read_json(places.scheduler)
    described = {
        "network": _network(config),
        "noise_schedule": _process(scheduler),
        "parameterisation": _parameterisation(config, scheduler),
    }
    network = skeleton(described["network"])
    _check_process(described["noise_schedule"])
    rebuild(described["parameterisation"], Parameterisation)
    files = weight_files(places.unet, weights)
    state = tensors(files)
    translation = translate(state, table(network, state), network, remedy=INCOMPLETE)
    channels, size = int(config.get("in_channels", 3)), int(described["network"]["sample_size"])
    notes = _notes(places, config, scheduler, files, state, weights)
    return ForeignModel(described, translation, (channels, size, size), int(config.get("num_class_embeds") or 0), notes)


def table(network: nn.Module, names: Collection[str]) -> dict[str, Rule]:
    """Map each weight to its own name behind `model.`, or to its old name if the file has that, in float32."""
    return {
        name: Rule((_source(name.removeprefix("model."), names),), torch.Tensor.float) for name in network.state_dict()
    }


def _source(name: str, names: Collection[str]) -> str:
    for now, once in OLD_NAMES.items():
        old = name.replace(f".{now}.", f".{once}.")
        if name not in names and old in names:
            return old
    return name


def _places(folder: Path, weights: str) -> Places:
    index = folder / "model_index.json"
    pipeline = read_json(index) if index.is_file() else {}
    _check_parts(pipeline)
    subfolders = ["unet_ema", "unet"] if weights == "ema" else ["unet"]
    unet = next((folder / name for name in subfolders if (folder / name / "config.json").is_file()), folder)
    around = [folder / "scheduler", folder]
    if not pipeline and folder.resolve().name in ("unet", "unet_ema"):
        around.append(folder.resolve().parent / "scheduler")
    schedulers = [place / "scheduler_config.json" for place in around if (place / "scheduler_config.json").is_file()]
    if not schedulers:
        raise InputError(
            "scheduler_config.json is not there, so the noise schedule is unknown; put the one that the model was "
            "trained with into the folder (scheduler.save_pretrained)"
        )
    if weights == "raw" and unet.resolve().name == "unet_ema":
        raise InputError("weights=raw: unet_ema holds averages; use weights=ema, or the folder unet beside it")
    return Places(unet, schedulers[0], pipeline, both=(unet.resolve().parent / "unet_ema").is_dir())


def _check_parts(pipeline: Mapping[str, Any]) -> None:
    parts = {name for name, value in pipeline.items() if isinstance(value, list) and any(value)}
    if others := sorted(parts - {"unet", "scheduler"}):
        raise InputError(
            f"pipeline {word(pipeline.get('_class_name'))} works with {', '.join(map(word, others))} besides a U-Net;"
            " only models of pixels without text or latents can be imported"
        )


def _config(folder: Path) -> dict[str, Any]:
    """Read the configuration of the U-Net."""
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise InputError(
            f"config.json is of {word(config.get('_class_name'))}; only UNet2DModel, of pixels without text or "
            "latents, can be imported"
        )
    return config


def _network(config: Mapping[str, Any]) -> Spec:
    arguments = set(inspect.signature(DiffusersUNet.__init__).parameters) - {"self", "label_dropout", "checkpointing"}
    passed = (*AVERAGING, "num_train_timesteps")
    options = {name: value for name, value in config.items() if not name.startswith("_") and name not in passed}
    if unknown := sorted(set(options) - arguments):
        raise InputError(
            f"config.json: {word(unknown[0])} is no argument of UNet2DModel that is known here"
            f"{did_you_mean(unknown[0], arguments - set(options))}; it may be of a later diffusers"
        )
    size = options.get("sample_size")
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        options["sample_size"] = size[0]
    elif isinstance(size, list) or size is None:
        raise InputError(f"config.json: sample_size={word(size)} is not the side of square images; write it there")
    return {"_target_": "scoreline.networks.diffusers_unet.DiffusersUNet", **options}


def _process(scheduler: Mapping[str, Any]) -> Spec:
    name = scheduler.get("_class_name")
    if name not in SCHEDULERS:
        raise InputError(
            f"scheduler_config.json is of {word(name)}, which is no process of discrete betas; "
            f"can be imported: {', '.join(SCHEDULERS)}"
        )
    if scheduler.get("timestep_type", "discrete") != "discrete" or scheduler.get("use_flow_sigmas"):
        raise InputError(
            "scheduler_config.json: timestep_type=continuous and use_flow_sigmas=true mean labels or states of another "
            "process; only models of whole time steps and a VP state can be imported"
        )
    if scheduler.get("rescale_betas_zero_snr"):
        raise InputError(
            "scheduler_config.json: rescale_betas_zero_snr=true ends in pure noise, rho = infinity, where this package "
            "has no level to start from; models trained so cannot be imported"
        )
    spec: Spec = {
        "_target_": "scoreline.schedules.discrete.DiscreteVP",
        "steps": _needed(scheduler, "num_train_timesteps"),
    }
    if scheduler.get("trained_betas") is not None:
        return {**spec, "betas": scheduler["trained_betas"]}
    kind = _needed(scheduler, "beta_schedule")
    if not isinstance(kind, str) or kind not in BETAS:
        raise InputError(f"scheduler_config.json: beta_schedule={word(kind)} is not known; known: {', '.join(BETAS)}")
    if kind == "squaredcos_cap_v2":
        return {**spec, "betas": "cosine"}
    ends = {"beta_min": _needed(scheduler, "beta_start"), "beta_max": _needed(scheduler, "beta_end")}
    return {**spec, **ends, "betas": BETAS[kind]}


ENDS = {"beta_start": "beta_min", "beta_end": "beta_max"}


def _check_process(described: Spec) -> None:
    try:
        variance = rebuild(described, DiscreteVP).noise_variance
        usable = bool((variance.diff() > 0).all() and variance[-1] < 1)
    except InputError:
        if "beta_min" not in described:
            raise
        usable = False
    if not usable:
        ends = " ".join(f"{theirs}={word(described.get(ours))}" for theirs, ours in ENDS.items())
        raise InputError(f"scheduler_config.json: {ends} give no betas between 0 and 1; copy the folder again")


def _parameterisation(config: Mapping[str, Any], scheduler: Mapping[str, Any]) -> Spec:
    kind, factor = _prediction(scheduler), _factor(config)
    described = {"noise_schedule": _process(scheduler), "label_scale": 1.0}
    if kind == "epsilon":
        return {
            "_target_": "scoreline.parameterisations.NoisePrediction",
            **described,
            "round_labels": False,
            **({"output_factor": factor} if factor > 1 else {}),
        }
    if factor > 1:
        raise InputError("config.json: a learned variance with v_prediction cannot be imported; only with epsilon")
    return {"_target_": "scoreline.parameterisations.VelocityPrediction", **described}


def _prediction(scheduler: Mapping[str, Any]) -> str:
    kind = str(scheduler.get("prediction_type", "epsilon"))
    if scheduler.get("predict_epsilon") is False:
        kind = "sample"
    if kind not in ("epsilon", "v_prediction"):
        raise InputError(
            f"scheduler_config.json: prediction_type={word(kind)} cannot be imported; epsilon and v_prediction can"
        )
    return kind


def _factor(config: Mapping[str, Any]) -> int:
    inputs, outputs = (config.get(name, 3) for name in ("in_channels", "out_channels"))
    if not isinstance(inputs, int) or outputs not in (inputs, 2 * inputs):
        raise InputError(
            f"config.json: in_channels={word(inputs)} and out_channels={word(outputs)}; a denoiser returns as many "
            "channels as it is given, or twice as many with a learned variance"
        )
    return 2 if outputs == 2 * inputs else 1


def _notes(
    places: Places,
    config: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    files: Collection[Path],
    state: Mapping[str, Tensor],
    weights: str,
) -> dict[str, Any]:
    chosen = places.both or any(places.unet.glob("*.non_ema.*"))
    averaging = {name: value for name, value in config.items() if name in AVERAGING}
    return {
        "pipeline": places.pipeline.get("_class_name"),
        "diffusers_version": config.get("_diffusers_version"),
        "scheduler": scheduler["_class_name"],
        "prediction_type": _prediction(scheduler),
        "labels": "whole in training, fractional here (round_labels: false)",
        "files": [path.name for path in files],
        "which": weights if chosen else "the only weights of the folder, which does not say whether they are averages",
        "stored_as": sorted({str(value.dtype).removeprefix("torch.") for value in state.values()}),
        **({"average": averaging} if averaging else {}),
    }


def _needed(scheduler: Mapping[str, Any], key: str) -> Any:
    if key not in scheduler:
        raise InputError(f"scheduler_config.json: {key} is not there; write the value that the model was trained with")
    return scheduler[key]
