"""U-Nets as saved by guided-diffusion and improved-diffusion: a file is a state dict, one set of weights.

Source: Nichol & Dhariwal (2021), arXiv:2102.09672; Dhariwal & Nichol (2021), arXiv:2105.05233.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn

from scoreline.descriptions.specs import Spec
from scoreline.errors import InputError
from scoreline.foreign.translation import (
    ForeignModel,
    Rule,
    check_groups,
    described_network,
    float_weights,
    layer,
    layers,
    translate,
)
from scoreline.networks.adm import DhariwalUNet
from scoreline.networks.fir_resampling import Resample, ResampledConv, fir_kernel
from scoreline.networks.layers import Down, Up
from scoreline.networks.residual_block import ResidualBlock

INERT: frozenset[str] = frozenset()
MODELS = (
    *("imagenet64_guided", "imagenet128_guided", "imagenet256_guided", "imagenet256_uncond_guided"),
    *("imagenet512_guided", "lsun_bedroom256_guided", "lsun_cat256_guided", "lsun_horse256_guided"),
    *("imagenet64_iddpm", "imagenet64_cond_iddpm", "cifar10_iddpm", "lsun_bedroom256_iddpm"),
    *("cifar10_deis_sn", "church64_ddpm"),
)
KNOWN_BY = {
    "time_embed.0.weight",
    "input_blocks.0.0.weight",
    "middle_block.1.qkv.weight",
    "output_blocks.0.0.in_layers.0.weight",
}

PARTS = {
    **{"norm0": "in_layers.0", "conv0": "in_layers.2", "affine": "emb_layers.1"},
    **{"norm1": "out_layers.0", "conv1": "out_layers.3"},
}
PAIR = (1.0, 1.0)
"""Taps of the means of 2x2 pixels."""


def recognises(tree: Any) -> bool:
    """Return whether this is the content of such a file."""
    return isinstance(tree, dict) and set(tree) >= KNOWN_BY


def read_model(tree: Any, model: Spec | None, weights: str) -> ForeignModel:
    """Translate the content of such a file.

    The file does not say whether its weights are an average: they serve for `ema` and `raw` alike, and the notes say
    so. They become float32. `model.network.qkv_order` is heads_first, or qkv_first for a network with
    use_new_attention_order; no weight tells the two apart.

    Raises:
        InputError: without a description, for one of another network or another order of the channels, and if its
            parts disagree on a learned variance.
    """
    network = described_network(model, DhariwalUNet, "guided_diffusion", MODELS, without=("augment_dim",))
    assert model is not None
    check_groups(network, "guided_diffusion")
    _check_conventions(model)
    if not recognises(tree):
        raise InputError("holds no U-Net of guided-diffusion or improved-diffusion; name another family")
    translated = translate(float_weights(tree), table(network), network)
    shape = (int(model["network"]["channels"]), network.resolution, network.resolution)
    return ForeignModel(
        model, translated, shape, network.num_classes, {"weights": "as stored: one set, average or not"}
    )


def table(network: DhariwalUNet) -> dict[str, Rule]:
    """Map the names of our weights to rules over theirs."""
    rules = layer("map_layer0", "time_embed.0") | layer("map_layer1", "time_embed.2")
    rules |= layer("out_norm", "out.0") | layer("out_conv", "out.2")
    if network.map_label is not None:
        rules["map_label.weight"] = Rule(("label_emb.weight",), Tensor.t)
    return rules | _encoder(network) | _decoder(network)


def _encoder(network: DhariwalUNet) -> dict[str, Rule]:
    rules: dict[str, Rule] = {}
    for index, (name, module) in enumerate(network.enc.items()):
        ours, theirs = f"enc.{name}", f"input_blocks.{index}"
        if name.endswith("_conv"):
            rules |= layer(ours, f"{theirs}.0")
        elif name.endswith("_down"):
            rules |= _resampler(ours, f"{theirs}.0", module)
        else:
            rules |= _block(ours, f"{theirs}.0", f"{theirs}.1", module)
    return rules


def _decoder(network: DhariwalUNet) -> dict[str, Rule]:
    """Rules of the decoder, where a layer that doubles the resolution is the last part of the block before it."""
    rules: dict[str, Rule] = {}
    index, parts = -1, 0
    for name, module in network.dec.items():
        ours = f"dec.{name}"
        if name.endswith("_in0"):
            rules |= _block(ours, "middle_block.0", "middle_block.1", module)
        elif name.endswith("_in1"):
            rules |= _block(ours, "middle_block.2", "", module)
        elif name.endswith("_up"):
            rules |= _resampler(ours, f"output_blocks.{index}.{parts}", module)
        else:
            index += 1
            rules |= _block(ours, f"output_blocks.{index}.0", f"output_blocks.{index}.1", module)
            parts = 2 if module.heads else 1
    return rules


def _resampler(ours: str, theirs: str, module: nn.Module) -> dict[str, Rule]:
    if isinstance(module, Down):
        return layer(f"{ours}.conv", f"{theirs}.op")
    if isinstance(module, Up):
        return layer(f"{ours}.conv", f"{theirs}.conv")
    if isinstance(module, Resample):
        return _filter(ours)
    return _block(ours, theirs, "", module)


def _block(ours: str, residual: str, attention: str, module: nn.Module) -> dict[str, Rule]:
    assert isinstance(module, ResidualBlock)
    rules = layers(ours, residual, PARTS)
    if isinstance(module.conv0, ResampledConv):
        rules |= _filter(f"{ours}.conv0")
    if isinstance(module.skip, Resample):
        rules |= _filter(f"{ours}.skip")
    if isinstance(module.skip, nn.Conv2d):
        rules |= layer(f"{ours}.skip", f"{residual}.skip_connection")
    if module.heads:
        rules |= layer(f"{ours}.norm2", f"{attention}.norm")
        for mine, other in (("qkv", "qkv"), ("proj", "proj_out")):
            rules |= layer(f"{ours}.{mine}", f"{attention}.{other}")
            rules[f"{ours}.{mine}.weight"] = Rule((f"{attention}.{other}.weight",), _over_images)
    return rules


def _filter(ours: str) -> dict[str, Rule]:
    return {f"{ours}.resample_filter": Rule((), partial(fir_kernel, PAIR))}


def _over_images(weight: Tensor) -> Tensor:
    """Reshape a convolution over positions (C', C, 1) to (C', C, 1, 1)."""
    return weight.unsqueeze(-1)


def _check_conventions(model: Spec) -> None:
    order = model["network"].get("qkv_order", "interleaved")
    if order == "interleaved":
        raise InputError(
            "model.network.qkv_order=interleaved: files of guided_diffusion are heads_first, "
            "or qkv_first if they were trained with use_new_attention_order; give one of these"
        )
    network, used = (model[part].get("output_factor", 1) for part in ("network", "parameterisation"))
    if network != used:
        raise InputError(f"model.parameterisation.output_factor={used}: the network's is {network}; give both the same")
