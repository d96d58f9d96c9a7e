"""ADM: sizes and names of the published weights, and every equation by hand."""

import math

import pytest
import torch
from by_hand import ByHand, linear, sinusoids
from torch.nn.functional import silu

from scoreline.errors import InputError
from scoreline.networks.adm import DhariwalUNet


def test_as_many_parameters_and_tensors_as_the_published_model() -> None:
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
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    net.requires_grad_(False).eval()
    w = net.state_dict()
    image, noise = torch.randn(3, 2, 8, 8, dtype=torch.float64), torch.tensor([0.3, -1.2, 0.9], dtype=torch.float64)
    label, augment = torch.tensor([2, -1, 0]), torch.randn(3, 5, dtype=torch.float64)
    told = net.map_noise(noise)
    torch.testing.assert_close(told, torch.cat(sinusoids(noise, 8, last=4), 1), rtol=0, atol=1e-6)
    known = torch.tensor([[0, 0, 1.0], [0, 0, 0], [1, 0, 0]], dtype=torch.float64)
    vector = silu(linear(w, "map_layer0", told + linear(w, "map_augment", augment)))
    vector = silu(linear(w, "map_layer1", vector) + linear(w, "map_label", known))
    by_hand = ByHand(w, "adm", 8, 3, 2, head_channels=4)
    torch.testing.assert_close(net(image, noise, label, augment), by_hand(image, vector), rtol=1e-9, atol=1e-9)


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
