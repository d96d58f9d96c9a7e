"""Folders that diffusers' save_pretrained writes: UNet2DModel with a scheduler, and the autoencoder of its latents.

Weights are read from safetensors, or from .bin files by `torch_files.read`; descriptions are JSON. No class that a
folder names is imported. UNet2DModel comes from `networks.diffusers_unet`, autoencoders come from
`networks.diffusers_decoder`, and their arguments are plain values.
"""

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.descriptions.specs import Spec
from scoreline.errors import InputError, did_you_mean
from scoreline.foreign.diffusers_files import FOLDER_MARKS, read_json, stored_name, tensors, weight_files, word
from scoreline.foreign.diffusers_latents import AUTOENCODERS, described_decoder
from scoreline.foreign.diffusers_process import described_process, minus_output, prediction
from scoreline.foreign.diffusers_settings import sentences, settings
from scoreline.foreign.translation import INCOMPLETE, ForeignModel, Rule, skeleton, translate
from scoreline.networks.diffusers_unet import DiffusersUNet
from scoreline.values import is_whole

INERT: frozenset[str] = frozenset()

AVERAGING = (
    *("decay", "inv_gamma", "min_decay", "optimization_step"),
    *("power", "update_after_step", "use_ema_warmup"),
)
"""Keys that EMAModel.save_pretrained adds to the configuration of a model."""


@dataclass(frozen=True)
class Places:
    """Paths inside a folder, and whether it also holds averages; `autoencoder` of a model of latents."""

    unet: Path
    scheduler: Path
    autoencoder: Path | None
    pipeline: dict[str, Any]
    both: bool


def recognises(tree: Any) -> bool:
    """Return whether this is the path of a pipeline or a model."""
    return isinstance(tree, Path) and any((tree / name).is_file() for name in FOLDER_MARKS)


def read_model(folder: Path, model: Spec | None, weights: str, size: tuple[int, int] | None = None) -> ForeignModel:
    """Translate the UNet2DModel of a pipeline's folder or of its own, with the process of its scheduler.

    Time labels are whole numbers in training and in the schedulers of diffusers. Here they are fractional if a solver
    steps between two levels (`round_labels: false`); with schedule=time_quadratic_integer they are whole.

    Args:
        folder: the folder.
        model: must be None, since the folder describes its model.
        weights: `ema` takes the folder `unet_ema` that training writes beside `unet`, `raw` the variant `non_ema`. If
            there is only one set of weights, both take it, and the notes say so.
        size: (H, W) of the network's images, in place of the folder's `sample_size`.

    Raises:
        InputError: for another kind of model, process or prediction, with its reason; for `model`; for a file that is
            missing, damaged or does not fit.
    """
    if model is not None:
        raise InputError("model: a folder of diffusers says itself what it holds; leave model out")
    places = _places(folder, weights)
    config, scheduler = _config(places.unet), read_json(places.scheduler)
    described = {"network": _network(config, size), **described_process(scheduler, _factor(config))}
    network = skeleton(described["network"])
    files = weight_files(places.unet, weights)
    state = tensors(files)
    rules = _with_sign(table(network, state)) if minus_output(scheduler) else table(network, state)
    translation = translate(state, rules, network, remedy=INCOMPLETE)
    shape = int(config.get("in_channels", 3)), *_sides(described["network"]["sample_size"])
    if places.autoencoder is not None:
        decoder = described_decoder(places.autoencoder, shape)
        described["decoder"], translation = decoder.description, translation | decoder.weights
    notes = _notes(places, config, scheduler, files, state, weights)
    return ForeignModel(described, translation, shape, int(config.get("num_class_embeds") or 0), notes)


def unfollowed(folder: Path) -> list[str]:
    """Return a sentence for each setting of a folder's scheduler that sampling does not follow by itself."""
    return sentences(settings(read_json(_places(folder, "ema").scheduler)))


def table(network: nn.Module, names: Collection[str]) -> dict[str, Rule]:
    """Map each weight to its own name behind `model.`, or to its old name if the file has that, in float32."""
    return {
        name: Rule((stored_name(name.removeprefix("model."), names),), torch.Tensor.float)
        for name in network.state_dict()
    }


def _with_sign(rules: dict[str, Rule]) -> dict[str, Rule]:
    """Change the sign of the last layer, for a network that predicts minus F."""
    last = ("model.conv_out.weight", "model.conv_out.bias")
    return rules | {name: Rule(rules[name].sources, _minus) for name in last}


def _minus(weight: Tensor) -> Tensor:
    return -weight.float()


def _places(folder: Path, weights: str) -> Places:
    index = folder / "model_index.json"
    pipeline = read_json(index) if index.is_file() else {}
    _check_parts(folder, pipeline)
    subfolders = ["unet_ema", "unet"] if weights == "ema" else ["unet"]
    unet = next((folder / name for name in subfolders if (folder / name / "config.json").is_file()), folder)
    root = folder.resolve().parent if not pipeline and folder.resolve().name in ("unet", "unet_ema") else folder
    around = [folder / "scheduler", folder, root / "scheduler"]
    schedulers = [place / "scheduler_config.json" for place in around if (place / "scheduler_config.json").is_file()]
    if not schedulers:
        raise InputError(
            "scheduler_config.json is not there, so the noise schedule is unknown; put the one that the model was "
            "trained with into the folder (scheduler.save_pretrained)"
        )
    if weights == "raw" and unet.resolve().name == "unet_ema":
        raise InputError("weights=raw: unet_ema holds averages; use weights=ema, or the folder unet beside it")
    both = (unet.resolve().parent / "unet_ema").is_dir()
    return Places(unet, schedulers[0], _autoencoder(root, pipeline), pipeline, both)


def _autoencoder(root: Path, pipeline: Mapping[str, Any]) -> Path | None:
    """Return the folder of the autoencoder, which a pipeline names, or None for a model of pixels.

    Raises:
        InputError: if the pipeline names one that is not there.
    """
    named = [name for name in AUTOENCODERS if any(_part(pipeline, name))]
    there = [name for name in AUTOENCODERS if (root / name / "config.json").is_file()]
    if pipeline and named and not there:
        raise InputError(f"{named[0]}/config.json is not there, though the pipeline names it; copy the folder again")
    return root / there[0] if there and (named or not pipeline) else None


def _part(pipeline: Mapping[str, Any], name: str) -> list[Any]:
    value = pipeline.get(name)
    return value if isinstance(value, list) else []


def _check_parts(folder: Path, pipeline: Mapping[str, Any]) -> None:
    """Refuse a pipeline of other parts than a U-Net, its scheduler and an autoencoder.

    Raises:
        InputError: naming the part.
    """
    parts = {name for name in pipeline if any(_part(pipeline, name))}
    if "transformer" in parts or (not parts and (folder / "transformer" / "config.json").is_file()):
        raise InputError(
            "transformer: networks of this kind cannot be imported, only UNet2DModel; sample the pipeline with "
            "scoreline.integrations.diffusers.ScorelineScheduler instead"
        )
    if others := sorted(parts - {"unet", "scheduler", *AUTOENCODERS}):
        raise InputError(
            f"pipeline {word(pipeline.get('_class_name'))} works with {', '.join(map(word, others))} besides a U-Net;"
            " only models of pixels, or of an autoencoder's latents, without text can be imported"
        )


def _config(folder: Path) -> dict[str, Any]:
    """Read the configuration of the U-Net."""
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise InputError(
            f"config.json is of {word(config.get('_class_name'))}; only UNet2DModel, without text, can be imported"
        )
    return config


def _network(config: Mapping[str, Any], size: tuple[int, int] | None) -> Spec:
    arguments = set(inspect.signature(DiffusersUNet.__init__).parameters) - {"self", "label_dropout", "checkpointing"}
    passed = (*AVERAGING, "num_train_timesteps")
    options = {name: value for name, value in config.items() if not name.startswith("_") and name not in passed}
    if unknown := sorted(set(options) - arguments):
        raise InputError(
            f"config.json: {word(unknown[0])} is no argument of UNet2DModel that is known here"
            f"{did_you_mean(unknown[0], arguments - set(options))}; it may be of a later diffusers"
        )
    options["sample_size"] = _sample_size(options.get("sample_size"), size)
    return {"_target_": "scoreline.networks.diffusers_unet.DiffusersUNet", **options}


def _sample_size(given: Any, size: tuple[int, int] | None) -> Any:
    """Return R for squares, else [H, W].

    Raises:
        InputError: if neither the folder nor the user says it.
    """
    sides = list(size) if size is not None else given
    if isinstance(sides, list) and len(sides) == 2 and all(map(is_whole, sides)):
        return sides[0] if sides[0] == sides[1] else sides
    if not is_whole(sides):
        raise InputError(
            f"config.json: sample_size={word(given)} is no size of images; give it with import.size=64 or "
            "import.size=[64,96] (height, width); in scoreline import it is size=64"
        )
    return sides


def _sides(size: int | list[int]) -> tuple[int, int]:
    return (size[0], size[1]) if isinstance(size, list) else (size, size)


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
        "prediction_type": prediction(scheduler),
        "labels": "whole in training, fractional here (round_labels: false)",
        "files": [path.name for path in files],
        "which": weights if chosen else "the only weights of the folder, which does not say whether they are averages",
        "stored_as": sorted({str(value.dtype).removeprefix("torch.") for value in state.values()}),
        **({"average": averaging} if averaging else {}),
        **settings(scheduler),
    }
