"""The U-Net of Ho et al.: its 35.7 M parameters counted by hand, and every equation by hand."""

import math

import pytest
import torch
from by_hand import ByHand, linear, random_weights, sinusoids
from torch.nn.functional import silu

from scoreline.networks.ddpm_unet import DDPMUNet


def conv(inputs: int, outputs: int, size: int) -> int:
    return outputs * (inputs * size**2 + 1)


def block(inputs: int, outputs: int, attends: bool = False) -> int:
    norms = 2 * inputs + 2 * outputs
    count = norms + conv(inputs, outputs, 3) + conv(outputs, outputs, 3) + (512 + 1) * outputs
    count += conv(inputs, outputs, 1) if inputs != outputs else 0
    return count + attends * (2 * outputs + 4 * conv(outputs, outputs, 1))


def test_cifar10_has_35_746_307_parameters() -> None:
    """Resolutions 32, 16, 8, 4 with 128, 256, 256, 256 channels, two blocks down, three up, attention at 16."""
    embedding = (128 + 1) * 512 + (512 + 1) * 512
    down = [block(128, 128), block(128, 128), conv(128, 128, 3)]
    down += [block(128, 256, True), block(256, 256, True), conv(256, 256, 3)]
    down += [block(256, 256), block(256, 256), conv(256, 256, 3), block(256, 256), block(256, 256)]
    middle = [block(256, 256, True), block(256, 256)]
    up = [block(512, 256), block(512, 256), block(512, 256), conv(256, 256, 3)]
    up += [block(512, 256), block(512, 256), block(512, 256), conv(256, 256, 3)]
    up += [block(512, 256, True), block(512, 256, True), block(256 + 128, 256, True), conv(256, 256, 3)]
    up += [block(256 + 128, 128), block(128 + 128, 128), block(128 + 128, 128)]
    expected = embedding + conv(3, 128, 3) + sum(down + middle + up) + 2 * 128 + conv(128, 3, 3)
    assert expected == 35_746_307
    with torch.device("meta"):
        net = DDPMUNet(3, 32)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == expected


def test_every_equation_by_hand() -> None:
    torch.manual_seed(0)
    net = DDPMUNet(2, 8, 8, (1, 2, 2), 2, attention=(4,), num_classes=3, augment_dim=5).double()
    w = random_weights(net)
    image, noise = torch.randn(3, 2, 8, 8, dtype=torch.float64), torch.tensor([0.0, 21.5, 999], dtype=torch.float64)
    label, augment = torch.tensor([2, -1, 0]), torch.randn(3, 5, dtype=torch.float64)
    told = net.map_noise(noise)
    torch.testing.assert_close(told, torch.cat(sinusoids(noise, 8, last=3)[::-1], 1), rtol=0, atol=1e-4)
    known = torch.tensor([[0, 0, 1.0], [0, 0, 0], [1, 0, 0]], dtype=torch.float64)
    vector = silu(linear(w, "map_layer0", told + linear(w, "map_augment", augment)))
    vector = silu(linear(w, "map_layer1", vector) + linear(w, "map_label", known))
    by_hand = ByHand(w, "ddpm", 8, 3, 2)
    torch.testing.assert_close(net(image, noise, label, augment), by_hand(image, vector), rtol=1e-9, atol=1e-9)


def test_initial_weights() -> None:
    """q, k and v as if they were layers of their own: outputs of the three are a third each."""
    torch.manual_seed(0)
    net = DDPMUNet(3, 16, 16, (1, 2), 1, attention=(8,))
    for name, layer in net.named_modules():
        if not isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            continue
        assert not layer.bias.any(), name
        outputs, inputs = layer.weight.shape[:2]
        area = layer.weight[0, 0].numel() if layer.weight.ndim == 4 else 1
        outputs = outputs // 3 if name.endswith("qkv") else outputs
        scale = 1e-5 if name.endswith(("conv1", "proj", "out_conv")) else 1.0
        bound = scale * math.sqrt(6 / ((inputs + outputs) * area))
        assert float(layer.weight.detach().abs().max()) <= bound * (1 + 1e-6), name
        assert float(layer.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.2), name


@pytest.mark.parametrize("resolution", [8, 16, 32, 64])
def test_any_power_of_two(resolution: int) -> None:
    net = DDPMUNet(1, resolution, 8, (1,) * (resolution.bit_length() - 2), 1, attention=())
    assert net(torch.randn(1, 1, resolution, resolution), torch.tensor([5.0])).shape == (1, 1, resolution, resolution)
