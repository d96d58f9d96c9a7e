"""The autoencoder of a latent pipeline of diffusers, as the decoder of a model file."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoreline.checkpoints import DECODER
from scoreline.descriptions.specs import Spec
from scoreline.errors import InputError, did_you_mean
from scoreline.foreign.diffusers_files import read_json, stored_name, tensors, weight_files, word
from scoreline.foreign.translation import INCOMPLETE, Rule, skeleton, translate
from scoreline.networks.diffusers_decoder import KLDecoder, VQDecoder
from scoreline.networks.latents import LatentDecoder

AUTOENCODERS = ("vae", "vqvae")
"""Folders of autoencoders in a pipeline."""

DECODERS: dict[str, type[LatentDecoder]] = {"AutoencoderKL": KLDecoder, "VQModel": VQDecoder}
"""Class in config.json -> decoder; the text of the file chooses from these and nothing else."""

WITHOUT_EFFECT = ("sample_size", "force_upcast", "latents_mean", "latents_std")
"""Keys of a configuration that do not enter the decoding of a latent."""


class Decoder(NamedTuple):
    """Description and weights of a decoder, as in a model file."""

    description: Spec
    weights: dict[str, Tensor]


def described_decoder(folder: Path, latents: tuple[int, int, int]) -> Decoder:
    """Translate the autoencoder in a folder.

    Args:
        folder: the folder `vae` or `vqvae`.
        latents: (C, H, W) of the diffusion model.

    Raises:
        InputError: for another class, unknown arguments, other channels than the U-Net's, or weights that do not fit.
    """
    try:
        description = _description(read_json(folder / "config.json"), latents[0])
        decoder = skeleton(description)
        state = tensors(weight_files(folder, "ema"))
        weights = translate(state, _rules(decoder, state), decoder, remedy=INCOMPLETE)
    except InputError as error:
        raise InputError(f"{folder.name}: {error}") from error
    return Decoder(description, {DECODER + name: weight for name, weight in weights.items()})


def _description(config: Mapping[str, Any], channels: int) -> Spec:
    kind = config.get("_class_name")
    if not isinstance(kind, str) or kind not in DECODERS:
        raise InputError(f"config.json is of {word(kind)}; latents are decoded by {' or '.join(DECODERS)} only")
    arguments = set(inspect.signature(DECODERS[kind].__init__).parameters) - {"self"}
    _refuse_statistics(config)
    options = {key: value for key, value in config.items() if not key.startswith("_") and key not in WITHOUT_EFFECT}
    if unknown := sorted(set(options) - arguments):
        raise InputError(
            f"config.json: {word(unknown[0])} is no argument of {kind} that is known here"
            f"{did_you_mean(unknown[0], arguments - set(options))}; it may be of a later diffusers"
        )
    if options.get("latent_channels", channels) != channels:
        raise InputError(
            f"config.json: latent_channels={word(options['latent_channels'])}, but the U-Net has {channels} channels"
        )
    return {"_target_": f"{DECODERS[kind].__module__}.{DECODERS[kind].__name__}", **options}


def _refuse_statistics(config: Mapping[str, Any]) -> None:
    for key in ("latents_mean", "latents_std"):
        if config.get(key) is not None:
            raise InputError(f"config.json: {key} scales each channel, which no decoder here does; only scaling_factor")


def _rules(decoder: nn.Module, names: Mapping[str, Tensor]) -> dict[str, Rule]:
    sources = {name: name.removeprefix("model.") for name in decoder.state_dict()}
    return {name: Rule((stored_name(source, names),), torch.Tensor.float) for name, source in sources.items()}
