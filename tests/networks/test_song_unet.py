"""DDPM++ and NCSN++: sizes and names of the published weights, and every equation by hand."""

import math
from typing import Any

import pytest
import torch
from by_hand import ByHand, linear, sinusoids
from torch.nn.functional import silu

from scoreline.errors import InputError
from scoreline.networks.song_unet import SongUNet

NCSN: dict[str, Any] = {"embedding": "fourier", "encoder": "residual", "resample_filter": (1, 3, 3, 1)}
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
]


@pytest.mark.parametrize(("shape", "parameters", "tensors"), PUBLISHED, ids=lambda value: str(value)[:60])
def test_as_many_parameters_and_tensors_as_the_published_models(
    shape: tuple[int, dict], parameters: int, tensors: int
) -> None:
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
    plain = SongUNet(3, 8, width=8, blocks=1).state_dict()
    assert not [name for name in plain if name.startswith(("map_label", "map_augment", "map_noise"))]


@pytest.mark.parametrize("options", [{}, NCSN], ids=["ddpmpp", "ncsnpp"])
def test_every_equation_by_hand(options: dict) -> None:
    torch.manual_seed(0)
    net = SongUNet(2, 8, 8, (1, 2, 2), 2, attention=(4,), dropout=0.4, num_classes=3, augment_dim=5, **options).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    net.requires_grad_(False).eval()
    w = net.state_dict()
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
    by_hand = ByHand(w, "song", 8, 3, 2, (1.0, 3.0, 3.0, 1.0) if options else (1.0, 1.0))
    torch.testing.assert_close(net(image, noise, label, augment), by_hand(image, vector), rtol=1e-9, atol=1e-9)


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
        ("embedding", "sinusoidal", "model.network.embedding=sinusoidal: choose from fourier, positional"),
        ("encoder", "skip", "model.network.encoder=skip: choose from residual, standard"),
        ("resample_filter", (1, 2, 1), r"model.network.resample_filter=\[1, 2, 1\]: give an even number of taps"),
        ("resample_filter", (), r"model.network.resample_filter=\[\]: give an even number"),
        ("resample_filter", (1, -1), r"resample_filter=\[1, -1\]: give .* a sum other than 0"),
    ],
)
def test_refusals_name_the_key(key: str, value: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        SongUNet(3, 8, width=8, **{key: value})
