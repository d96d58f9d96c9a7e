"""DDPM U-Nets as saved by pytorch_diffusion, DDIM and PNDM.

A file is a state dict, one set of weights; or a list of a state dict (with the prefix `module.` of DataParallel), the
optimiser, epoch, step and, with DDIM, the averaged parameters.

Source: Ho et al. (2020), arXiv:2006.11239; Song et al. (2021), arXiv:2010.02502; Liu et al. (2022), arXiv:2202.09778.
"""

from collections.abc import Mapping
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
    interleave,
    layer,
    layers,
    level_and_kind,
    translate,
)
from scoreline.networks.ddpm_unet import DDPMUNet
from scoreline.networks.residual_block import ResidualBlock

INERT: frozenset[str] = frozenset()
MODELS = (
    *("cifar10_ddpm", "celeba64_ddpm", "celeba64_pndm"),
    *("lsun_bedroom256_ddpm", "lsun_cat256_ddpm", "lsun_church256_ddpm"),
)
PREFIX = "module."
KNOWN_BY = {"temb.dense.0.weight", "mid.block_1.temb_proj.weight", "mid.attn_1.q.weight"}
AVERAGE, EPOCH, STEP = 4, 2, 3
"""Places in the list of DDIM; PNDM's ends before the first."""

MIDDLE = {"in0": ("mid.block_1", "mid.attn_1"), "in1": ("mid.block_2", "")}
"""Kind of layer -> residual block and attention of the bottleneck."""

PARTS = {"norm0": "norm1", "conv0": "conv1", "affine": "temb_proj", "norm1": "norm2", "conv1": "conv2"}


def recognises(tree: Any) -> bool:
    """Return whether this is the content of such a file."""
    state = tree[0] if _is_list(tree) else tree
    return isinstance(state, dict) and {str(name).removeprefix(PREFIX) for name in state} >= KNOWN_BY


def read_model(tree: Any, model: Spec | None, weights: str) -> ForeignModel:
    """Translate the content of such a file.

    A file of one set of weights does not say whether they are an average: they serve for `ema` and `raw` alike, and
    the notes say so.

    Raises:
        InputError: without a description, for one of another network, and for weights that the file does not hold.
    """
    network = described_network(model, DDPMUNet, "ddpm", MODELS, without=("num_classes", "augment_dim"))
    assert model is not None
    check_groups(network, "ddpm")
    if not recognises(tree):
        raise InputError("holds no U-Net of pytorch_diffusion, DDIM or PNDM; name another family")
    state, notes = _chosen(tree, weights)
    shape = (int(model["network"]["channels"]), network.resolution, network.resolution)
    return ForeignModel(model, translate(state, table(network), network), shape, 0, notes)


def table(network: DDPMUNet) -> dict[str, Rule]:
    """Map the names of our weights to rules over theirs."""
    rules = layer("map_layer0", "temb.dense.0") | layer("map_layer1", "temb.dense.1")
    rules |= layer("out_norm", "norm_out") | layer("out_conv", "conv_out")
    for side, parts in (("enc", network.enc), ("dec", network.dec)):
        for name, module in parts.items():
            rules |= _layer(side, name, network.resolution, module)
    return rules


def _layer(side: str, name: str, resolution: int, module: nn.Module) -> dict[str, Rule]:
    """Rules of one layer of the encoder (side enc) or the decoder (dec)."""
    ours, (level, kind) = f"{side}.{name}", level_and_kind(name, resolution)
    if kind == "conv":
        return layer(ours, "conv_in")
    if kind == "down":
        return layer(f"{ours}.conv", f"down.{level - 1}.downsample.conv")
    if kind == "up":
        return layer(f"{ours}.conv", f"up.{level + 1}.upsample.conv")
    if kind in MIDDLE:
        return _block(ours, *MIDDLE[kind], module)
    index, theirs = kind.removeprefix("block"), {"enc": "down", "dec": "up"}[side]
    return _block(ours, f"{theirs}.{level}.block.{index}", f"{theirs}.{level}.attn.{index}", module)


def _block(ours: str, residual: str, attention: str, module: nn.Module) -> dict[str, Rule]:
    assert isinstance(module, ResidualBlock)
    rules = layers(ours, residual, PARTS)
    if isinstance(module.skip, nn.Conv2d):
        rules |= layer(f"{ours}.skip", f"{residual}.nin_shortcut")
    if module.heads:
        rules |= layers(ours, attention, {"norm2": "norm", "proj": "proj_out"})
        for kind in ("weight", "bias"):
            rules[f"{ours}.qkv.{kind}"] = Rule(tuple(f"{attention}.{part}.{kind}" for part in "qkv"), interleave)
    return rules


def _is_list(tree: Any) -> bool:
    return isinstance(tree, list | tuple) and len(tree) > STEP


def _chosen(tree: Any, weights: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights by their names in the network, and notes on them."""
    if not _is_list(tree):
        return _state(tree), {"weights": "as stored: one set, average or not"}
    notes = {"weights": weights, "epoch": tree[EPOCH], "step": tree[STEP]}
    if weights == "raw":
        return _state(tree[0]), notes
    if len(tree) <= AVERAGE:
        raise InputError(
            "weights=ema: the file holds no averaged weights; give weights=raw, or import the file of them"
        )
    return _state(tree[AVERAGE]), notes


def _state(tree: Mapping[str, Any]) -> dict[str, Tensor]:
    return float_weights({str(name).removeprefix(PREFIX): value for name, value in tree.items()})
