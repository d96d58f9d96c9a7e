"""The compact U-Net: sizes, its attention by formula, and the weights of the shipped model."""

import pytest
import torch

from scoreline.networks.attention import Attention
from scoreline.networks.unet import UNet


@pytest.mark.parametrize(
    ("channels", "resolution", "options"),
    [
        (1, 8, {"multipliers": (1, 2)}),
        (3, 32, {"multipliers": (1, 2, 2), "attention": (16, 8), "embedding": "fourier"}),
        (3, 64, {"multipliers": (1, 1, 2), "blocks": 1, "num_classes": 10}),
    ],
)
def test_shapes_and_gradients_from_8_to_64_pixels(channels: int, resolution: int, options: dict) -> None:
    net = UNet(channels, resolution, width=16, **options)
    x = torch.randn(2, channels, resolution, resolution)
    out = net(x, torch.tensor([3.0, 700.0]))
    assert out.shape == x.shape
    assert not out.any(), "the head starts at zero"
    torch.nn.init.normal_(net.head.weight)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.1)
    net(x, torch.tensor([3.0, 700.0])).square().sum().backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing


def test_an_unknown_class_is_an_error() -> None:
    net = UNet(1, 8, width=16, blocks=1, num_classes=4)
    with pytest.raises(IndexError):
        net(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.tensor([5]))


def test_attention_against_the_formula() -> None:
    torch.manual_seed(0)
    layer = Attention(8, head_channels=4)
    torch.nn.init.normal_(layer.proj.weight)
    x = torch.randn(2, 8, 3, 3)
    q, k, v = layer.qkv(layer.norm(x)).reshape(2, 3, 2, 4, 9).unbind(1)
    weights = torch.einsum("bhcq,bhck->bhqk", q, k).div(2).softmax(-1)
    mixed = torch.einsum("bhqk,bhck->bhcq", weights, v).reshape(2, 8, 3, 3)
    torch.testing.assert_close(layer(x), x + layer.proj(mixed))


GOLDEN = {
    "map.0.weight": (-0.001871705, 0.134110898),
    "classes.weight": (-0.096719965, -1.294417024),
    "stem.weight": (-0.193364948, 0.159383267),
    "encoder.0.conv0.weight": (-0.029151231, -0.078960203),
    "decoder.0.conv0.bias": (-0.02514334, 0.015052821),
    "decoder.4.skip.weight": (-0.027286395, 0.160711199),
    "decoder.4.affine.bias": (-0.11360389, -0.014098853),
    "middle.0.attention.qkv.weight": (0.150223374, -0.169825733),
}
"""Of version 0.3.0, in which the shipped model was trained."""


@pytest.mark.parametrize("options", [{}, {"augment_dim": 9, "checkpointing": True}])
def test_names_and_initial_weights_stay_what_they_were(options: dict) -> None:
    """To one unit in the last place of float32: normal numbers of different vector kernels agree so far, no further."""
    torch.manual_seed(0)
    state = UNet(1, 8, 16, (1, 2), 1, (4,), num_classes=3, **options).state_dict()
    augment = state.pop("augment.weight", None)
    assert (augment is not None) == ("augment_dim" in options)
    assert len(state) == 129
    assert sum(value.numel() for value in state.values()) == 190_625
    for name, expected in GOLDEN.items():
        assert state[name].flatten()[:2].tolist() == pytest.approx(expected, rel=2**-23, abs=1e-9), name
    if not options:
        assert float(torch.randn(1)) == pytest.approx(-0.6623, abs=1e-4), "no further random number is drawn"
