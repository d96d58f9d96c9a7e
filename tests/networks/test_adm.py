"""ADM: sizes and names of the published weights, and every equation by hand."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from by_hand import ByHand, Weights, doubled, halved, linear, random_weights, sinusoids
from torch import Tensor
from torch.nn.functional import conv2d, silu

from scoreline.errors import InputError
from scoreline.networks.adm import DhariwalUNet


def test_published_number_of_parameters_and_tensors() -> None:
    with torch.device("meta"):
        net = DhariwalUNet(3, 64, num_classes=1000)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 295_899_267
    state = net.state_dict()
    assert len(state) == 553
    shapes = {
        "map_label.weight": (768, 1000),
        "map_layer0.weight": (768, 192),
        "enc.64x64_conv.bias": (192,),
        "enc.32x32_down.conv0.resample_filter": (1, 1, 2, 2),
        "enc.32x32_down.skip.resample_filter": (1, 1, 2, 2),
        "enc.32x32_block0.affine.weight": (768, 768),
        "enc.16x16_block2.qkv.weight": (1728, 576, 1, 1),
        "dec.8x8_in0.proj.weight": (768, 768, 1, 1),
        "dec.64x64_up.norm1.weight": (384,),
        "dec.64x64_block3.skip.weight": (192, 384, 1, 1),
        "out_norm.weight": (192,),
        "out_conv.weight": (3, 192, 3, 3),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert not {"map_label.bias", "enc.32x32_down.skip.weight", "map_noise.freqs"} & set(state)
    attending = [name for name in state if name.endswith("qkv.weight")]
    assert len(attending) == 3 * (3 + 4) + 1


def test_every_equation_by_hand() -> None:
    torch.manual_seed(0)
    net = DhariwalUNet(2, 8, 8, (1, 2, 3), 2, (4, 2), head_channels=4, num_classes=3, augment_dim=5).double()
    w = random_weights(net)
    image, noise = torch.randn(3, 2, 8, 8, dtype=torch.float64), torch.tensor([0.3, -1.2, 0.9], dtype=torch.float64)
    label, augment = torch.tensor([2, -1, 0]), torch.randn(3, 5, dtype=torch.float64)
    told = net.map_noise(noise)
    torch.testing.assert_close(told, torch.cat(sinusoids(noise, 8, last=4), 1), rtol=0, atol=1e-6)
    known = torch.tensor([[0, 0, 1.0], [0, 0, 0], [1, 0, 0]], dtype=torch.float64)
    vector = silu(linear(w, "map_layer0", told + linear(w, "map_augment", augment)))
    vector = silu(linear(w, "map_layer1", vector) + linear(w, "map_label", known))
    by_hand = ByHand(w, "adm", 8, 3, 2, head_channels=4)
    torch.testing.assert_close(net(image, noise, label, augment), by_hand(image, vector), rtol=1e-9, atol=1e-9)


@dataclass(frozen=True)
class Released(ByHand):
    """The network with the choices of guided-diffusion; kind adm scales and shifts, ddpm adds."""

    resampling: str = "residual"

    @property
    def eps(self) -> float:
        return 1e-5

    def resampled(self, x: Tensor, name: str) -> Tensor:
        if self.resampling == "convolution" or not name.endswith(("_down", "_up")):
            return x
        return halved(x, self.taps) if name.endswith("_down") else doubled(x, self.taps)

    def change(self, name: str, x: Tensor, vector: Tensor) -> Tensor:
        if self.resampling == "residual":
            return self.block(name, x, vector)
        if self.resampling == "plain":
            return self.resampled(x, name)
        if name.endswith("_up"):
            return ByHand(self.w, "ddpm", self.resolution, self.levels, self.blocks).change(name, x, vector)
        return conv2d(x, self.w[f"{name}.conv.weight"], self.w[f"{name}.conv.bias"], stride=2, padding=1)


def interleaved_rows(w: Weights, order: str, head_channels: int) -> Weights:
    """The weights with the rows of q, k and v in the order that `ByHand` reads."""
    found = dict(w)
    for name in [name for name in w if ".qkv." in name]:
        size = len(w[name]) // 3
        for h in range(size // head_channels):
            for c in range(head_channels):
                for p in range(3):
                    first = h * 3 * head_channels + p * head_channels + c
                    there = first if order == "heads_first" else p * size + h * head_channels + c
                    found[name] = found[name].clone()
                    found[name][h * 3 * head_channels + 3 * c + p] = w[name][there]
    return found


@pytest.mark.parametrize("resampling", ["residual", "convolution", "plain"])
@pytest.mark.parametrize(("adaptive", "order"), [(True, "qkv_first"), (False, "heads_first")])
def test_every_choice_by_hand(adaptive: bool, order: str, resampling: str) -> None:
    torch.manual_seed(0)
    choices: dict[str, Any] = {"scale_shift_norm": adaptive, "resampling": resampling, "qkv_order": order}
    net = DhariwalUNet(
        2, 8, 8, (0.5, 2), 1, (8, 4), head_channels=2, num_classes=3, output_factor=2, **choices
    ).double()
    w = random_weights(net)
    assert w["enc.8x8_conv.weight"].shape == (4, 2, 3, 3)
    assert w["map_layer0.weight"].shape == (32, 8)
    image, noise = torch.randn(2, 2, 8, 8, dtype=torch.float64), torch.tensor([3.5, 998.0], dtype=torch.float64)
    known = torch.tensor([[0, 0, 1.0], [1, 0, 0]], dtype=torch.float64)
    vector = silu(linear(w, "map_layer0", net.map_noise(noise)))
    vector = silu(linear(w, "map_layer1", vector) + linear(w, "map_label", known))
    kind = "adm" if adaptive else "ddpm"
    by_hand = Released(interleaved_rows(w, order, 2), kind, 8, 2, 1, head_channels=2, resampling=resampling)
    out = net(image, noise, torch.tensor([2, 0]))
    assert out.shape == (2, 4, 8, 8)
    torch.testing.assert_close(out, by_hand(image, vector), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "encoder", "middle", "decoder"),
    [
        ({"head_channels": 8}, [0, 4], 4, [4, 4, 0, 0]),
        ({"heads": 2}, [0, 2], 2, [2, 2, 0, 0]),
        ({"heads": 2, "decoder_heads": 8}, [0, 2], 2, [8, 8, 0, 0]),
        ({"head_channels": 16, "decoder_heads": 1}, [0, 2], 2, [1, 1, 0, 0]),
    ],
)
def test_heads(options: dict[str, int], encoder: list[int], middle: int, decoder: list[int]) -> None:
    net = DhariwalUNet(3, 8, 16, (1, 2), 1, (4,), **options)
    assert [layer.heads for name, layer in net.enc.items() if "_block" in name] == encoder
    assert [net.dec["4x4_in0"].heads, net.dec["4x4_in1"].heads] == [middle, 0]
    assert [layer.heads for name, layer in net.dec.items() if "_block" in name] == decoder


def test_initial_weights() -> None:
    torch.manual_seed(0)
    net = DhariwalUNet(3, 16, 16, (1, 2), 1, attention=(8,), head_channels=8, num_classes=200, augment_dim=9)
    layers = {name: m for name, m in net.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)}
    for name, layer in layers.items():
        values = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
        if name.endswith(("conv1", "proj", "out_conv", "map_augment")):
            assert not any(bool(value.any()) for value in values), name
        elif name == "map_label":
            assert float(layer.weight.detach().std()) == pytest.approx(1, rel=0.05)
            assert float(layer.weight.detach().abs().max()) > 3, "normal, not uniform"
        else:
            bound = 1 / math.sqrt(layer.weight[0].numel())
            for value in values:
                assert bool(value.any()), name
                assert float(value.detach().abs().max()) <= bound * (1 + 1e-6), name
            assert float(layer.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.2), name


def test_heads_must_divide_the_channels_that_attend() -> None:
    with pytest.raises(InputError, match=r"model.network.head_channels=64: must divide the 96 channels"):
        DhariwalUNet(3, 8, width=96, multipliers=(1,))
    with pytest.raises(InputError, match="head_channels=0"):
        DhariwalUNet(3, 8, width=96, multipliers=(1,), head_channels=0)
    with pytest.raises(InputError, match=r"model.network.heads=3: must divide the 32 channels"):
        DhariwalUNet(3, 8, width=32, multipliers=(1,), heads=3)
    with pytest.raises(InputError, match=r"model.network.decoder_heads=5: must divide the 32 channels"):
        DhariwalUNet(3, 8, width=32, multipliers=(1,), attention=(8,), heads=4, decoder_heads=5)
    DhariwalUNet(3, 8, width=96, multipliers=(1,), head_channels=32)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"resampling": "pool"}, "model.network.resampling=pool: .*convolution, plain, residual"),
        ({"qkv_order": "new"}, "model.network.qkv_order=new: .*heads_first, interleaved, qkv_first"),
        ({"output_factor": 0}, "model.network.output_factor=0: must be 1, or 2 with a learned variance"),
        ({"multipliers": (0.3, 1)}, r"model.network.multipliers=\[0.3, 1\]: give a positive integer for every level"),
        ({"multipliers": (0.01, 1)}, r"model.network.multipliers=\[0.01, 1\]: give a positive integer for every level"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_choices_that_are_none(wrong: dict[str, Any], sentence: str) -> None:
    options: dict[str, Any] = {"channels": 1, "resolution": 8, "width": 64, "multipliers": (1,), "blocks": 1, **wrong}
    with torch.device("meta"), pytest.raises(InputError, match=sentence):
        DhariwalUNet(**options)
