"""Encoder and decoder of the published U-Nets: layers in order, named by their resolution as EDM's checkpoints do."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Step = Callable[[nn.Module, Tensor], Tensor]
"""(layer, image) -> what the layer makes of the image."""


@dataclass(frozen=True)
class Plan:
    """Sizes of a U-Net.

    Attributes:
        channels: of the images.
        resolution: of the images, which are square.
        stem: channels after the first convolution.
        widths: channels of each level, the first at full resolution, each further at half that of the one before.
        blocks: residual blocks of a level of the encoder; the decoder has one more.
        attention: resolutions at which the blocks attend.
        attend_last: in the decoder only the last block of such a level attends.
    """

    channels: int
    resolution: int
    stem: int
    widths: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    attend_last: bool = False

    def at(self, level: int) -> str:
        """What the layers of a level are called by."""
        size = self.resolution >> level
        return f"{size}x{size}"

    def attends(self, level: int) -> bool:
        """Whether blocks of this level attend."""
        return self.resolution >> level in self.attention

    def skips(self) -> list[int]:
        """Channels of what the encoder hands to the decoder, in the order of the encoder."""
        found = [self.stem]
        for level, width in enumerate(self.widths):
            found += found[-1:] if level else []
            found += [width] * self.blocks
        return found


@dataclass(frozen=True)
class Kinds:
    """How each kind of layer is made.

    Attributes:
        block: (inputs, outputs, attends) -> residual block.
        down, up: channels -> layer to half or twice the resolution.
        decoder_block: as `block`, for the levels of the decoder, if it differs there.
    """

    block: Callable[[int, int, bool], nn.Module]
    down: Callable[[int], nn.Module]
    up: Callable[[int], nn.Module]
    decoder_block: Callable[[int, int, bool], nn.Module] | None = None


def encoder_layers(plan: Plan, kinds: Kinds) -> dict[str, nn.Module]:
    """{R}x{R}_conv or {R}x{R}_down, then {R}x{R}_block{i}, level by level."""
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
    """{R}x{R}_in0, {R}x{R}_in1 or {R}x{R}_up, then {R}x{R}_block{i}, level by level, the coarsest first."""
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
    """What every layer returns."""
    skips = []
    for layer in layers:
        x = step(layer, x)
        skips.append(x)
    return skips


def decode(layers: Iterable[tuple[str, nn.Module]], skips: list[Tensor], step: Step) -> Tensor:
    """What the last layer returns; `skips` is emptied from its end, into each {R}x{R}_block{i} beside its input."""
    x = skips[-1]
    for name, layer in layers:
        x = step(layer, torch.cat([x, skips.pop()], dim=1) if "_block" in name else x)
    return x
