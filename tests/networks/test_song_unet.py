"""DDPM++ and NCSN++: sizes and names of the published weights, and every equation by hand."""

import math
from typing import Any

import pytest
import torch
from by_hand import ByHand, conv, doubled, halved, linear, norm, random_weights, sinusoids
from torch import Tensor
from torch.nn.functional import silu

from scoreline.errors import InputError
from scoreline.networks.song_unet import SongUNet

NCSN: dict[str, Any] = {"embedding": "fourier", "encoder": "residual", "resample_filter": (1, 3, 3, 1)}
SKIP: dict[str, Any] = {**NCSN, "encoder": "skip", "decoder": "skip"}
FOUR = (1, 2, 2, 2)
PUBLISHED = [
    ((32, {"augment_dim": 9}), 55_733_891, 425),
    ((32, {"augment_dim": 9, "num_classes": 10}), 55_735_299, 427),
    ((32, {"augment_dim": 9, **NCSN}), 56_397_827, 432),
    ((32, {"augment_dim": 9, "num_classes": 10, **NCSN}), 56_400_643, 434),
    ((64, {"augment_dim": 9, "multipliers": FOUR}), 61_805_571, 553),
    ((64, {"augment_dim": 9, "multipliers": FOUR, **NCSN}), 62_761_091, 563),
    ((32, {"multipliers": FOUR}), 61_804_419, 552),
    ((32, {"multipliers": FOUR, **NCSN}), 62_758_787, 562),
    ((256, {"multipliers": (1, 1, *[2] * 5), "blocks": 2, **SKIP}), 65_574_421, 665),
    ((1024, {"width": 16, "multipliers": (1, 2, 4, 8, 16, *[32] * 3), "blocks": 1, **SKIP}), 105_785_880, 583),
]


@pytest.mark.parametrize(("shape", "parameters", "tensors"), PUBLISHED, ids=lambda value: str(value)[:60])
def test_published_numbers_of_parameters_and_tensors(shape: tuple[int, dict], parameters: int, tensors: int) -> None:
    with torch.device("meta"):
        net = SongUNet(3, shape[0], **shape[1])
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == parameters
    assert len(net.state_dict()) == tensors


def test_names_and_shapes_are_those_of_edm() -> None:
    with torch.device("meta"):
        net = SongUNet(3, 32, num_classes=10, augment_dim=9, **NCSN)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    expected = {
        "map_noise.freqs": (128,),
        "map_label.weight": (256, 10),
        "map_label.bias": (256,),
        "map_augment.weight": (256, 9),
        "map_layer0.weight": (512, 256),
        "map_layer1.bias": (512,),
        "enc.32x32_conv.weight": (128, 3, 3, 3),
        "enc.32x32_block0.conv0.weight": (256, 128, 3, 3),
        "enc.32x32_block0.skip.weight": (256, 128, 1, 1),
        "enc.16x16_down.conv0.resample_filter": (1, 1, 4, 4),
        "enc.16x16_down.skip.resample_filter": (1, 1, 4, 4),
        "enc.16x16_aux_residual.weight": (256, 3, 3, 3),
        "enc.16x16_aux_residual.resample_filter": (1, 1, 4, 4),
        "enc.8x8_aux_residual.weight": (256, 256, 3, 3),
        "enc.16x16_block3.qkv.weight": (768, 256, 1, 1),
        "enc.8x8_block3.affine.weight": (256, 512),
        "dec.8x8_in0.proj.bias": (256,),
        "dec.8x8_in1.norm1.weight": (256,),
        "dec.16x16_up.skip.weight": (256, 256, 1, 1),
        "dec.16x16_block4.norm2.bias": (256,),
        "dec.32x32_block4.conv0.weight": (256, 384, 3, 3),
        "dec.32x32_aux_norm.weight": (256,),
        "dec.32x32_aux_conv.weight": (3, 256, 3, 3),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    attending = {name.rsplit(".", 2)[0] for name in shapes if name.endswith("qkv.weight")}
    assert attending == {*(f"enc.16x16_block{k}" for k in range(4)), "dec.8x8_in0", "dec.16x16_block4"}
    with torch.device("meta"):
        skips = SongUNet(3, 8, width=8, multipliers=(1, 2), blocks=1, output_factor=2, **SKIP).state_dict()
    auxiliary = {name: tuple(value.shape) for name, value in skips.items() if "_aux_" in name}
    assert auxiliary == {
        "enc.4x4_aux_down.resample_filter": (1, 1, 4, 4),
        "enc.4x4_aux_skip.weight": (8, 3, 1, 1),
        "enc.4x4_aux_skip.bias": (8,),
        "dec.4x4_aux_norm.weight": (16,),
        "dec.4x4_aux_norm.bias": (16,),
        "dec.4x4_aux_conv.weight": (6, 16, 3, 3),
        "dec.4x4_aux_conv.bias": (6,),
        "dec.8x8_aux_up.resample_filter": (1, 1, 4, 4),
        "dec.8x8_aux_norm.weight": (8,),
        "dec.8x8_aux_norm.bias": (8,),
        "dec.8x8_aux_conv.weight": (6, 8, 3, 3),
        "dec.8x8_aux_conv.bias": (6,),
    }
    plain = SongUNet(3, 8, width=8, blocks=1).state_dict()
    assert not [name for name in plain if name.startswith(("map_label", "map_augment", "map_noise"))]


class SkipsByHand(ByHand):
    """The encoder's levels also see the image at their resolution, the decoder's each add to the output."""

    def __call__(self, image: Tensor, vector: Tensor) -> Tensor:
        w, sizes = self.w, [self.resolution // 2**level for level in range(self.levels)]
        x = conv(w, f"enc.{sizes[0]}x{sizes[0]}_conv", image)
        kept, small = [x], image
        for level, size in enumerate(sizes):
            if level:
                small = halved(small, self.taps)
                x = self.change(f"enc.{size}x{size}_down", x, vector)
                x = x + conv(w, f"enc.{size}x{size}_aux_skip", small)
                kept.append(x)
            for k in range(self.blocks):
                x = self.block(f"enc.{size}x{size}_block{k}", x, vector)
                kept.append(x)
        x = self.block(f"dec.{size}x{size}_in0", x, vector)
        x = self.block(f"dec.{size}x{size}_in1", x, vector)
        out = torch.zeros(1, 1, size // 2, size // 2, dtype=x.dtype)
        for level, size in reversed(list(enumerate(sizes))):
            if level < self.levels - 1:
                x = self.change(f"dec.{size}x{size}_up", x, vector)
            for k in range(self.blocks + 1):
                x = self.block(f"dec.{size}x{size}_block{k}", torch.cat([x, kept.pop()], 1), vector)
            name = f"dec.{size}x{size}_aux"
            out = doubled(out, self.taps) + conv(w, f"{name}_conv", silu(norm(w, f"{name}_norm", x, self.eps)))
        return out


@pytest.mark.parametrize("options", [{}, NCSN, {**SKIP, "output_factor": 2}], ids=["ddpmpp", "ncsnpp", "skip"])
def test_every_equation_by_hand(options: dict) -> None:
    torch.manual_seed(0)
    net = SongUNet(2, 8, 8, (1, 2, 2), 2, attention=(4,), dropout=0.4, num_classes=3, augment_dim=5, **options).double()
    w = random_weights(net)
    image, noise = torch.randn(3, 2, 8, 8, dtype=torch.float64), torch.tensor([0.3, -1.2, 0.9], dtype=torch.float64)
    label, augment = torch.tensor([2, -1, 0]), torch.randn(3, 5, dtype=torch.float64)
    if options:
        angle = 2 * math.pi * noise[:, None] * w["map_noise.freqs"]
        waves = (angle.cos(), angle.sin())
    else:
        waves = sinusoids(noise, 8, last=3)
    told = net.map_noise(noise)
    torch.testing.assert_close(told, torch.cat(waves[::-1], 1), rtol=0, atol=1e-6)
    known = torch.tensor([[0, 0, 1.0], [0, 0, 0], [1, 0, 0]], dtype=torch.float64) * math.sqrt(3)
    vector = told + linear(w, "map_label", known) + linear(w, "map_augment", augment)
    vector = silu(linear(w, "map_layer1", silu(linear(w, "map_layer0", vector))))
    kind = SkipsByHand if "decoder" in options else ByHand
    by_hand = kind(w, "song", 8, 3, 2, (1.0, 3.0, 3.0, 1.0) if options else (1.0, 1.0))
    out = net(image, noise, label, augment)
    assert out.shape == (3, 2 * options.get("output_factor", 1), 8, 8)
    torch.testing.assert_close(out, by_hand(image, vector), rtol=1e-9, atol=1e-9)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    net = SongUNet(3, 16, 16, (1, 2), 1, attention=(8,), num_classes=10, augment_dim=9, **NCSN)
    norms = [name for name, layer in net.named_modules() if isinstance(layer, torch.nn.GroupNorm)]
    for name, p in net.named_parameters():
        layer, _, kind = name.rpartition(".")
        if layer in norms:
            assert bool((p == (1 if kind == "weight" else 0)).all()), name
        elif kind == "bias":
            assert not p.any(), name
        else:
            area = p[0, 0].numel() if p.ndim == 4 else 1
            scale = 1e-5 if layer.endswith(("conv1", "proj", "aux_conv")) else 1.0
            scale = math.sqrt(0.2) if layer.endswith("qkv") else scale
            bound = scale * math.sqrt(6 / ((p.shape[0] + p.shape[1]) * area))
            assert float(p.detach().abs().max()) <= bound * (1 + 1e-6), name
            assert float(p.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.2), name


def test_fourier_frequencies_have_a_standard_deviation_of_16() -> None:
    torch.manual_seed(0)
    net = SongUNet(1, 8, width=256, multipliers=(1,), blocks=1, attention=(), **NCSN)
    drawn = net.map_noise.get_buffer("freqs")
    assert drawn.shape == (256,)
    assert float(drawn.std()) == pytest.approx(16, rel=4 / math.sqrt(2 * 256))
    assert abs(float(drawn.mean())) < 4 * 16 / math.sqrt(256)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("embedding", "sinusoidal", "model.network.embedding=sinusoidal: .*positional"),
        ("encoder", "skips", "model.network.encoder=skips: .*skip"),
        ("decoder", "residual", "model.network.decoder=residual: .*skip, standard"),
        ("output_factor", 0, "model.network.output_factor=0: must be 1, or 2 with a learned variance"),
        ("resample_filter", (1, 2, 1), r"model.network.resample_filter=\[1, 2, 1\]: give an even number of taps"),
        ("resample_filter", (), r"model.network.resample_filter=\[\]: give an even number"),
        ("resample_filter", (1, -1), r"resample_filter=\[1, -1\]: give .* a sum other than 0"),
    ],
)
def test_refusals_name_the_key(key: str, value: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        SongUNet(3, 8, width=8, **{key: value})
