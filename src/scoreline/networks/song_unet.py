"""DDPM++ and NCSN++, the U-Nets of Song et al. in the form of EDM."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from scoreline.networks.arguments import check_factor, check_probability, check_sizes
from scoreline.networks.embeddings import Fourier, Sinusoidal, one_hot, or_zeros
from scoreline.networks.fir_resampling import ConvThenHalve, Resample
from scoreline.networks.layers import group_norm, xavier
from scoreline.networks.residual_block import ResidualBlock, Style, run
from scoreline.networks.unet_levels import Kinds, Plan, Step, decoder_layers, encoder_layers
from scoreline.values import check_choice

EMBEDDINGS = ("positional", "fourier")
ENCODERS = ("standard", "residual", "skip")
DECODERS = ("standard", "skip")
EPS = 1e-6
FOURIER_SCALE = 16.0
SCALES = {"conv1": 1e-5, "proj": 1e-5, "aux_conv": 1e-5, "qkv": math.sqrt(0.2)}
"""Scales of the initial weights: nearly zero at the end of a branch."""


class SongUNet(nn.Module):
    """F(image (B, C, R, R), noise label (B,), class (B,) or None, augmentation (B, A) or None) -> (B, C', R, R).

    Residual blocks to which the embedding is added, every sum divided by sqrt(2), `blocks` per level of width
    `width * multipliers[level]`, which attend with one head at the resolutions in `attention` (in the decoder the last
    block of the level only) and in the bottleneck, and change the resolution by a FIR filter. The embedding is
    silu(L1(silu(L0(embed(noise) + L_c sqrt(K) onehot(label) + L_a augment)))), K = num_classes; a class that is None
    or negative, and an augmentation that is None, are zeros. Names and layouts of the weights are those of EDM.

    When to use it: for CIFAR-10, FFHQ and CelebA at 32 and 64 pixels, and to import checkpoints of EDM and score_sde.

    Args:
        channels: C.
        resolution: R.
        width: channels at the first level before its multiplier.
        multipliers: channels of each level over `width`.
        blocks: residual blocks a level of the encoder; the decoder has one more.
        attention: resolutions at which blocks attend.
        embedding: positional (DDPM++), for noise labels up to 1000 or of order one, or fourier (NCSN++), of order one.
        encoder: standard (DDPM++); residual (NCSN++): each level also adds a 3x3 convolution, filtered down, of the sum
            one level above, or first of the image; skip (NCSN++ of 256 pixels and more): each level also adds a 1x1
            convolution of the image at its resolution.
        resample_filter: taps of the filter, (1, 1) for DDPM++, (1, 3, 3, 1) for NCSN++.
        dropout: probability in the residual blocks.
        num_classes: K, 0 for an unconditional network.
        label_dropout: probability with which the training module hides the class.
        augment_dim: A, numbers in an augmentation label.
        checkpointing: recompute the activations of residual blocks in the backward pass instead of keeping them.
        decoder: standard, or skip (NCSN++ of 256 pixels and more): every level has a head of its own, and the output
            is the sum of the heads, each filtered up to the next level.
        output_factor: C' / C, 2 for networks with a learned variance; the parameterisation takes the same value.

    Raises:
        InputError: if the resolution cannot be halved that often, for an unknown embedding, encoder or decoder, for a
            filter of an odd number of taps, and for an output_factor below 1.

    Source: Song et al. (2021), arXiv:2011.13456, App. H; as in Karras et al. (2022), arXiv:2206.00364, App. F.
    """

    def __init__(
        self,
        channels: int,
        resolution: int,
        width: int = 128,
        multipliers: Sequence[int] = (2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        embedding: str = "positional",
        encoder: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
        dropout: float = 0.0,
        num_classes: int = 0,
        label_dropout: float = 0.0,
        augment_dim: int = 0,
        checkpointing: bool = False,
        decoder: str = "standard",
        output_factor: int = 1,
    ) -> None:
        super().__init__()
        check_sizes(resolution, width, multipliers, blocks)
        check_choice("model.network.embedding", EMBEDDINGS, embedding)
        check_choice("model.network.encoder", ENCODERS, encoder)
        check_choice("model.network.decoder", DECODERS, decoder)
        check_probability("label_dropout", label_dropout)
        check_factor(output_factor)
        self.resolution, self.num_classes, self.label_dropout = resolution, num_classes, label_dropout
        self.augment_dim, self.checkpointing = augment_dim, checkpointing
        self._build_embedding(width, embedding)
        widths = tuple(width * multiplier for multiplier in multipliers)
        plan = Plan(channels, resolution, width, widths, blocks, tuple(attention), attend_last=True)
        self._build_layers(plan, encoder, decoder, output_factor, _style(4 * width, dropout, resample_filter))
        xavier(self, SCALES)

    def _build_embedding(self, width: int, kind: str) -> None:
        features, inputs = 4 * width, width if kind == "positional" else 2 * width
        self.map_noise: nn.Module = (
            Sinusoidal(inputs, endpoint=True, sine_first=True)
            if kind == "positional"
            else Fourier(inputs, FOURIER_SCALE, sine_first=True, buffer="freqs")
        )
        self.map_label = nn.Linear(self.num_classes, inputs) if self.num_classes else None
        self.map_augment = nn.Linear(self.augment_dim, inputs, bias=False) if self.augment_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(inputs, features), nn.Linear(features, features)

    def _build_layers(self, plan: Plan, encoder: str, decoder: str, output_factor: int, style: Style) -> None:
        kinds = Kinds(
            block=lambda inputs, outputs, attends: ResidualBlock(inputs, outputs, style, heads=int(attends)),
            down=lambda size: ResidualBlock(size, size, style, direction="down"),
            up=lambda size: ResidualBlock(size, size, style, direction="up"),
        )
        outputs, decoded = output_factor * plan.channels, decoder_layers(plan, kinds)
        self.enc = nn.ModuleDict(_with_the_image(encoder_layers(plan, kinds), plan, encoder, style.taps))
        self.dec = nn.ModuleDict(_with_heads(decoded, plan, decoder, outputs, style.taps))

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        embedding = self._embed(noise, label, augment)

        def step(layer: nn.Module, image: Tensor) -> Tensor:
            return run(layer, image, embedding, self.checkpointing and self.training)

        return self._decode(self._encode(x, step), step)

    def _embed(self, noise: Tensor, label: Tensor | None, augment: Tensor | None) -> Tensor:
        vector: Tensor = self.map_noise(noise)
        if self.map_label is not None:
            known = one_hot(label, self.num_classes, vector)
            vector = vector + self.map_label(known * math.sqrt(self.num_classes))
        if self.map_augment is not None:
            vector = vector + self.map_augment(or_zeros(augment, self.augment_dim, vector))
        return silu(self.map_layer1(silu(self.map_layer0(vector))))

    def _encode(self, x: Tensor, step: Step) -> list[Tensor]:
        skips: list[Tensor] = []
        image = x  # the image at this level; with encoder=residual the running sum
        for name, layer in self.enc.items():
            if name.endswith("_aux_residual"):
                image = skips[-1] = x = (x + layer(image)) * math.sqrt(0.5)
            elif name.endswith("_aux_down"):
                image = layer(image)
            elif name.endswith("_aux_skip"):
                skips[-1] = x = x + layer(image)
            else:
                x = step(layer, x)
                skips.append(x)
        return skips

    def _decode(self, skips: list[Tensor], step: Step) -> Tensor:
        x = skips[-1]
        normalised, out = x, x.new_zeros(())
        for name, layer in self.dec.items():
            if name.endswith("_aux_up"):
                out = layer(out)
            elif name.endswith("_aux_norm"):
                normalised = layer(x)
            elif name.endswith("_aux_conv"):
                out = out + layer(silu(normalised))
            else:
                x = step(layer, torch.cat([x, skips.pop()], dim=1) if "_block" in name else x)
        return out


def _style(features: int, dropout: float, taps: Sequence[float]) -> Style:
    return Style(
        features,
        dropout,
        adaptive=False,
        residual_scale=math.sqrt(0.5),
        eps=EPS,
        taps=tuple(taps),
        project_resampled=True,
    )


def _with_the_image(
    layers: dict[str, nn.Module], plan: Plan, encoder: str, taps: Sequence[float]
) -> dict[str, nn.Module]:
    """Insert {R}x{R}_aux_residual, or _aux_down and _aux_skip, of as many channels, after every {R}x{R}_down."""
    modules: dict[str, nn.Module] = {}
    widths = iter((plan.channels, *plan.widths))
    inputs = next(widths)
    for name, layer in layers.items():
        modules[name] = layer
        if name.endswith("_down") and encoder == "residual":
            outputs = next(widths)
            modules[name.replace("_down", "_aux_residual")] = ConvThenHalve(inputs, outputs, taps)
            inputs = outputs
        elif name.endswith("_down") and encoder == "skip":
            modules[name.replace("_down", "_aux_down")] = Resample("down", taps)
            modules[name.replace("_down", "_aux_skip")] = nn.Conv2d(plan.channels, next(widths), 1)
    return modules


def _with_heads(
    layers: dict[str, nn.Module], plan: Plan, decoder: str, outputs: int, taps: Sequence[float]
) -> dict[str, nn.Module]:
    """Insert _aux_norm and _aux_conv after the last block of the finest or of every level, there behind _aux_up."""
    modules: dict[str, nn.Module] = {}
    lasts = {f"{plan.at(level)}_block{plan.blocks}": level for level in range(len(plan.widths))}
    for name, layer in layers.items():
        modules[name] = layer
        level = lasts.get(name)
        if level is None or (level > 0 and decoder == "standard"):
            continue
        if decoder == "skip" and level < len(plan.widths) - 1:
            modules[f"{plan.at(level)}_aux_up"] = Resample("up", taps)
        modules[f"{plan.at(level)}_aux_norm"] = group_norm(plan.widths[level], EPS)
        modules[f"{plan.at(level)}_aux_conv"] = nn.Conv2d(plan.widths[level], outputs, 3, padding=1)
    return modules
