"""Encoder and decoder of the published U-Nets: layers in order, with EDM's names by resolution."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Step = Callable[[nn.Module, Tensor], Tensor]
"""(layer, image) -> output of the layer."""


@dataclass(frozen=True)
class Plan:
    """Sizes of a U-Net.

    Attributes:
        channels: channels of the images.
        resolution: height and width of the images.
        stem: channels after the first convolution.
        widths: channels of each level, the first at full resolution, each further one at half of the one before.
        blocks: residual blocks of a level of the encoder; the decoder has one more.
        attention: resolutions at which the blocks attend.
        attend_last: whether only the last block of such a level of the decoder attends.
    """

    channels: int
    resolution: int
    stem: int
    widths: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    attend_last: bool = False

    def at(self, level: int) -> str:
        """Return the prefix of the names of a level."""
        size = self.resolution >> level
        return f"{size}x{size}"

    def attends(self, level: int) -> bool:
        """Return whether blocks of this level attend."""
        return self.resolution >> level in self.attention

    def skips(self) -> list[int]:
        """Return the channels of the skip connections, in the order of the encoder."""
        channels = [self.stem]
        for level, width in enumerate(self.widths):
            channels += channels[-1:] if level else []
            channels += [width] * self.blocks
        return channels


@dataclass(frozen=True)
class Kinds:
    """Constructors of the kinds of layers.

    Attributes:
        block: (inputs, outputs, attends) -> residual block.
        down: channels -> layer to half the resolution.
        up: channels -> layer to twice the resolution.
        decoder_block: `block` for the levels of the decoder, if it differs there.
    """

    block: Callable[[int, int, bool], nn.Module]
    down: Callable[[int], nn.Module]
    up: Callable[[int], nn.Module]
    decoder_block: Callable[[int, int, bool], nn.Module] | None = None


def encoder_layers(plan: Plan, kinds: Kinds) -> dict[str, nn.Module]:
    """Build {R}x{R}_conv or {R}x{R}_down, then {R}x{R}_block{i}, level by level."""
    layers: dict[str, nn.Module] = {}
    current = plan.stem
    for level, width in enumerate(plan.widths):
        if level:
            layers[f"{plan.at(level)}_down"] = kinds.down(current)
        else:
            layers[f"{plan.at(level)}_conv"] = nn.Conv2d(plan.channels, plan.stem, 3, padding=1)
        for index in range(plan.blocks):
            layers[f"{plan.at(level)}_block{index}"] = kinds.block(current, width, plan.attends(level))
            current = width
    return layers


def decoder_layers(plan: Plan, kinds: Kinds) -> dict[str, nn.Module]:
    """Build {R}x{R}_in0 and _in1 or {R}x{R}_up, then {R}x{R}_block{i}, level by level, the coarsest first."""
    layers: dict[str, nn.Module] = {}
    block = kinds.decoder_block or kinds.block
    skips, current = plan.skips(), plan.widths[-1]
    for level, width in reversed(list(enumerate(plan.widths))):
        if level == len(plan.widths) - 1:
            layers[f"{plan.at(level)}_in0"] = kinds.block(current, current, True)
            layers[f"{plan.at(level)}_in1"] = kinds.block(current, current, False)
        else:
            layers[f"{plan.at(level)}_up"] = kinds.up(current)
        for index in range(plan.blocks + 1):
            attends = plan.attends(level) and (index == plan.blocks or not plan.attend_last)
            layers[f"{plan.at(level)}_block{index}"] = block(current + skips.pop(), width, attends)
            current = width
    return layers


def encode(layers: Iterable[nn.Module], x: Tensor, step: Step) -> list[Tensor]:
    """Return the outputs of all layers."""
    skips = []
    for layer in layers:
        x = step(layer, x)
        skips.append(x)
    return skips


def decode(layers: Iterable[tuple[str, nn.Module]], skips: list[Tensor], step: Step) -> Tensor:
    """Return the output of the last layer; each {R}x{R}_block{i} takes the last of `skips` beside its input."""
    x = skips[-1]
    for name, layer in layers:
        x = step(layer, torch.cat([x, skips.pop()], dim=1) if "_block" in name else x)
    return x
