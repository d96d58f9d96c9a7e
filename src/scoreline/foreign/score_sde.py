"""Checkpoints of score_sde in PyTorch (`checkpoint_N.pth`): NCSN++, and DDPM++ as one of its settings.

Such a file names its weights by their place in a list, `all_modules.N`, and its EMA not at all; network and process
stand in a configuration beside it. The user therefore gives a model, and places are counted along our network.

Source: Song et al. (2021), arXiv:2011.13456, App. H.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.descriptions.specs import Spec, rebuild
from scoreline.errors import InputError
from scoreline.foreign.translation import (
    ForeignModel,
    Rule,
    described_network,
    float_weights,
    interleave,
    translate,
    unchanged,
)
from scoreline.networks.embeddings import Fourier
from scoreline.networks.fir_resampling import ConvThenHalve, Resample, ResampledConv, fir_kernel
from scoreline.networks.residual_block import ResidualBlock
from scoreline.networks.song_unet import SongUNet
from scoreline.parameterisations import NoisePrediction, Parameterisation
from scoreline.schedules.base import NoiseSchedule
from scoreline.schedules.ve import VE

INERT: frozenset[str] = frozenset()
MODELS = (
    *("cifar10_ddpmpp_vp", "cifar10_ddpmpp_deep_vp", "cifar10_ncsnpp_vp", "cifar10_ncsnpp_deep_vp"),
    *("cifar10_ddpmpp_subvp", "cifar10_ddpmpp_deep_subvp", "cifar10_ncsnpp_subvp", "cifar10_ncsnpp_deep_subvp"),
    *("cifar10_ncsnpp_ve", "cifar10_ncsnpp_deep_ve", "bedroom256_ncsnpp_ve", "church256_ncsnpp_ve"),
    *("ffhq256_ncsnpp_ve", "ffhq1024_ncsnpp_ve"),
    *("cifar10_ddpmpp_discrete_vp", "cifar10_ncsnpp_discrete_vp", "cifar10_ncsnpp_discrete_ve"),
    "celeba64_ncsnpp_discrete_ve",
)
LEVELS = "sigmas"
FREQUENCIES = "all_modules.0.W"
PIXEL = 2.0
"""Noise of images in [-1, 1] over that of the same images in [0, 1], in which score_sde's VE process works."""

SAME = 1e-4
"""Relative difference up to which two ends of a VE process are equal; the file has them in float32."""

Rules = Iterator[tuple[str, Rule]]


def recognises(tree: Any) -> bool:
    """Return whether a file holds the weights of a network that is a list of modules."""
    weights = tree.get("model") if isinstance(tree, dict) else None
    return isinstance(weights, dict) and any("all_modules." in str(name) for name in weights)


def read_model(tree: Any, model: Spec | None, weights: str) -> ForeignModel:
    """Translate the described model with the weights of a file.

    A VE network returns minus eps. If the description says that it predicts eps (discrete VE), the last convolution
    changes its sign.

    Raises:
        InputError: without a model or with one that the file does not fit, for weights that the file does not hold,
            and for files of other networks of that project.
    """
    network = described_network(model, SongUNet, "score_sde", MODELS, without=("num_classes", "augment_dim"))
    assert model is not None
    if not recognises(tree):
        raise InputError("holds no DDPM++ or NCSN++ of score_sde; name another family")
    state = _named(tree["model"])
    _check_levels(state, model)
    chosen = state if weights == "raw" else _averaged(tree, state)
    return ForeignModel(
        model,
        translate(chosen, table(network, _turned(model)), network, ignored=(LEVELS,)),
        (int(model["network"]["channels"]), network.resolution, network.resolution),
        0,
        _notes(tree, weights),
    )


def table(network: SongUNet, turned: bool = False) -> dict[str, Rule]:
    """Map the names of our weights to places in their list, counted along our layers, which have the same order.

    Args:
        network: our network.
        turned: whether to change the sign of the output.
    """
    return dict(_rules(network, count(), turned))


def _rules(network: SongUNet, places: Iterator[int], turned: bool) -> Rules:
    if isinstance(network.map_noise, Fourier):
        yield "map_noise.freqs", Rule((f"{_at(places)}.W",))
    for name in ("map_layer0", "map_layer1"):
        yield from _same(name, _at(places))
    for branch, layers in (("enc", network.enc), ("dec", network.dec)):
        for name, layer in layers.items():
            yield from _layer(f"{branch}.{name}", layer, places, turned)


def _layer(name: str, layer: nn.Module, places: Iterator[int], turned: bool) -> Rules:
    if isinstance(layer, Resample):
        yield _filter(name, layer.taps)
    elif isinstance(layer, ResidualBlock):
        yield from _block(name, layer, places)
    elif isinstance(layer, ConvThenHalve):
        yield from _same(name, f"{_at(places)}.Conv2d_0")
        yield _filter(name, layer.taps)
    elif name.endswith("_aux_skip"):
        yield from _same(name, f"{_at(places)}.Conv_0")
    else:
        yield from _same(name, _at(places), torch.neg if turned and name.endswith("_aux_conv") else unchanged)


def _block(name: str, block: ResidualBlock, places: Iterator[int]) -> Rules:
    at = _at(places)
    theirs = {"norm0": "GroupNorm_0", "conv0": "Conv_0", "affine": "Dense_0", "norm1": "GroupNorm_1", "conv1": "Conv_1"}
    if not isinstance(block.skip, nn.Identity):
        theirs["skip"] = "Conv_2"
    for our, their in theirs.items():
        yield from _same(f"{name}.{our}", f"{at}.{their}")
        layer = getattr(block, our)
        if isinstance(layer, ResampledConv):
            yield _filter(f"{name}.{our}", layer.taps)
    if block.heads:
        yield from _attention(name, _at(places))


def _attention(name: str, at: str) -> Rules:
    yield from _same(f"{name}.norm2", f"{at}.GroupNorm_0")
    yield f"{name}.qkv.weight", Rule(tuple(f"{at}.NIN_{part}.W" for part in range(3)), _joined)
    yield f"{name}.qkv.bias", Rule(tuple(f"{at}.NIN_{part}.b" for part in range(3)), interleave)
    yield f"{name}.proj.weight", Rule((f"{at}.NIN_3.W",), _convolution)
    yield f"{name}.proj.bias", Rule((f"{at}.NIN_3.b",))


def _same(name: str, at: str, make: Any = unchanged) -> Rules:
    for kind in ("weight", "bias"):
        yield f"{name}.{kind}", Rule((f"{at}.{kind}",), make)


def _filter(name: str, taps: tuple[float, ...]) -> tuple[str, Rule]:
    """Rule of a constant that their files do not hold."""
    return f"{name}.resample_filter", Rule((), lambda: fir_kernel(taps))


def _at(places: Iterator[int]) -> str:
    return f"all_modules.{next(places)}"


def _convolution(matrix: Tensor) -> Tensor:
    """Turn a matrix [in, out] into a convolution (out, in, 1, 1)."""
    return matrix.T[:, :, None, None]


def _joined(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return interleave(_convolution(q), _convolution(k), _convolution(v))


def _named(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Strip the prefix of DataParallel."""
    return {str(name).removeprefix("module."): weight for name, weight in float_weights(weights).items()}


def _turned(model: Spec) -> bool:
    """Return whether the description says eps where score_sde's network returns minus eps, as all VE networks do."""
    predicted = rebuild(model["parameterisation"], Parameterisation)
    return isinstance(predicted, NoisePrediction) and isinstance(predicted.noise_schedule, VE)


def _check_levels(state: Mapping[str, Tensor], model: Spec) -> None:
    """Check that the file's noise levels, which it also has for a VP process, are those of a described VE process."""
    levels, process = state.get(LEVELS), rebuild(model["noise_schedule"], NoiseSchedule)
    if levels is None or not levels.numel() or not isinstance(process, VE):
        return
    for key, level in (("scale_max", levels.max()), ("scale_min", levels.min())):
        described, held = float(getattr(process, key)), PIXEL * float(level)
        if not math.isclose(described, held, rel_tol=SAME):
            raise InputError(
                f"model.noise_schedule.{key}={described:g}: the file was trained with {held / PIXEL:.6g} for images in "
                f"[0, 1]; use {held:.6g}"
            )


def _averaged(tree: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return trained weights from the EMA, which is a list in the order of the weights, and the others as they are."""
    average = tree.get("ema")
    shadows = average.get("shadow_params") if isinstance(average, dict) else None
    if not isinstance(shadows, list) or not shadows:
        raise InputError("weights=ema: this file of score_sde holds no EMA; use weights=raw")
    names = [name for name in state if name not in (LEVELS, FREQUENCIES)]
    if len(names) != len(shadows):
        raise InputError(f"weights=ema: {len(shadows)} averages for {len(names)} weights; the file is damaged")
    averages = float_weights(dict(zip(names, shadows, strict=True)))
    for name, shadow in averages.items():
        if shadow.shape != state[name].shape:
            raise InputError(
                f"weights=ema: the average of {name} has shape {tuple(shadow.shape)}, the weight "
                f"{tuple(state[name].shape)}; the file is damaged"
            )
    return {**state, **averages}


def _notes(tree: Mapping[str, Any], weights: str) -> dict[str, Any]:
    average = tree.get("ema")
    notes = {"step": tree.get("step")}
    if weights == "ema" and isinstance(average, dict):
        notes |= {"decay": average.get("decay"), "updates": average.get("num_updates")}
    return {key: value for key, value in notes.items() if isinstance(value, int | float)}
