"""What holds for every network: conditioning, gradients, recomputation, precision, refusals."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoreline.descriptions.specs import rebuild
from scoreline.errors import InputError
from scoreline.networks.adm import DhariwalUNet
from scoreline.networks.ddpm_unet import DDPMUNet
from scoreline.networks.gaussian_mixture import GaussianMixtureScore
from scoreline.networks.residual_block import ResidualBlock
from scoreline.networks.song_unet import SongUNet
from scoreline.networks.unet import UNet

TINY: dict[str, Any] = {
    "channels": 2,
    "resolution": 8,
    "width": 8,
    "multipliers": [1, 2],
    "blocks": 1,
    "attention": [4],
}
NCSN: dict[str, Any] = {"embedding": "fourier", "encoder": "residual", "resample_filter": [1, 3, 3, 1]}
GUIDED = {
    **{"heads": 2, "decoder_heads": 4, "dropout": 0.0, "scale_shift_norm": False},
    **{"resampling": "convolution", "qkv_order": "qkv_first"},
}
SPECS: dict[str, dict[str, Any]] = {
    "ddpmpp": {"_target_": "scoreline.networks.song_unet.SongUNet", **TINY},
    "ncsnpp": {"_target_": "scoreline.networks.song_unet.SongUNet", **TINY, **NCSN},
    "adm": {"_target_": "scoreline.networks.adm.DhariwalUNet", **TINY, "head_channels": 4, "dropout": 0.0},
    "ddpm": {"_target_": "scoreline.networks.ddpm_unet.DDPMUNet", **TINY, "dropout": 0.0},
    "compact": {"_target_": "scoreline.networks.unet.UNet", **TINY},
    "guided": {"_target_": "scoreline.networks.adm.DhariwalUNet", **TINY, **GUIDED},
}
NETWORKS = pytest.mark.parametrize("name", SPECS)


def build(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = rebuild({**SPECS[name], **options}, nn.Module)
    return net


def awake(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> nn.Module:
    """No layer is zero."""
    net = build(name, **options).to(dtype)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return net


def inputs(count: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(1, 2, 8, 8, dtype=dtype).expand(count, -1, -1, -1), torch.full((count,), 0.7, dtype=dtype)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


@NETWORKS
def test_shape_and_a_gradient_for_every_parameter(name: str) -> None:
    net = awake(name, num_classes=4, augment_dim=9)
    x, noise = inputs()
    out = net(x, noise, torch.tensor([0, 1, -1] if name == "compact" else [0, 1, 2]), torch.randn(3, 9).double())
    assert out.shape == x.shape
    out.square().sum().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@NETWORKS
def test_every_parameter_has_a_gradient_without_labels(name: str) -> None:
    """Distributed training waits for one from each."""
    net = awake(name, num_classes=4, augment_dim=9)
    net(*inputs()).sum().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None] == []


@NETWORKS
def test_starts_at_or_near_zero(name: str) -> None:
    net, (x, noise) = build(name), inputs(dtype=torch.float32)
    largest = float(net(x, noise).detach().abs().max())
    if name in ("adm", "compact", "guided"):
        assert largest == 0
    else:
        assert 0 < largest < 1e-4


@NETWORKS
@pytest.mark.parametrize("training", [False, True])
def test_classes(name: str, training: bool) -> None:
    """Never dropped at random by the network, not even in training."""
    net = awake(name, num_classes=4, label_dropout=0.9).train(training)
    assert net.label_dropout == 0.9
    x, noise = inputs()
    none = net(x, noise)
    mixed = net(x, noise, torch.tensor([-1, 0, 3]))
    torch.testing.assert_close(mixed[0], none[0])
    assert apart(mixed[1], none[1]) > 1e-3
    assert apart(mixed[2], none[2]) > 1e-3
    assert apart(mixed[1], mixed[2]) > 1e-3
    for _ in range(3):
        assert torch.equal(net(x, noise, torch.tensor([-1, 0, 3])), mixed)


@NETWORKS
def test_no_class_uses_the_null_vector(name: str) -> None:
    """The row of the null class in the compact network, no column of the matrix elsewhere."""
    net, (x, noise) = awake(name, num_classes=4), inputs()
    before, labelled = net(x, noise), net(x, noise, torch.tensor([0, 1, 2]))
    with torch.no_grad():
        if isinstance(net, UNet):
            net.classes.weight[:4] += 1
        else:
            net.map_label.weight += 1
    assert torch.equal(net(x, noise), before)
    assert apart(net(x, noise, torch.tensor([0, 1, 2])), labelled) > 1e-3


@NETWORKS
def test_an_unconditional_network_ignores_labels(name: str) -> None:
    net, (x, noise) = awake(name), inputs()
    assert torch.equal(net(x, noise, torch.tensor([0, 1, 2]), torch.randn(3, 9)), net(x, noise))


@NETWORKS
def test_augmentation(name: str) -> None:
    net, (x, noise) = awake(name, augment_dim=9), inputs()
    none = net(x, noise)
    assert torch.equal(net(x, noise, augment=torch.zeros(3, 9)), none)
    for column in range(9):
        assert apart(net(x, noise, None, torch.eye(9)[[column] * 3]), none) > 1e-3
    assert [key for key in net.state_dict() if "augment" in key] in (["map_augment.weight"], ["augment.weight"])


@NETWORKS
def test_the_noise_label_matters(name: str) -> None:
    net, (x, noise) = awake(name), inputs()
    out = net(x, noise + torch.tensor([0, 0.5, 1]))
    assert apart(out[0], out[1]) > 1e-3
    assert apart(out[1], out[2]) > 1e-3


@NETWORKS
def test_recomputed_activations_give_the_same_gradients(name: str) -> None:
    gradients, passes = [], []
    for checkpointing in (False, True):
        net = awake(name, dropout=0.4, checkpointing=checkpointing).train()
        runs = count_runs(net)
        torch.manual_seed(3)
        net(*inputs()).square().sum().backward()
        gradients.append({key: p.grad for key, p in net.named_parameters()})
        passes.append(len(runs))
        net.eval()(*inputs()).square().sum().backward()
        assert len(runs) == passes[-1] + passes[0], "outside of training nothing is recomputed"
    assert passes[1] == 2 * passes[0] > 0
    for key, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][key]), key


def count_runs(net: nn.Module) -> list[nn.Module]:
    runs: list[nn.Module] = []
    for layer in net.modules():
        if isinstance(layer, ResidualBlock):
            layer.register_forward_pre_hook(lambda layer, _: runs.append(layer))
    return runs


@NETWORKS
def test_dropout_acts_in_training_only(name: str) -> None:
    net = awake(name, dropout=0.5)
    x, noise = inputs()
    assert torch.equal(net.eval()(x, noise), net(x, noise))
    assert apart(net.train()(x, noise), net(x, noise)) > 1e-3


@NETWORKS
def test_initial_weights_follow_the_seed(name: str) -> None:
    first, again = build(name, num_classes=3).state_dict(), build(name, num_classes=3).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    torch.manual_seed(1)
    other = rebuild({**SPECS[name], "num_classes": 3}, nn.Module).state_dict()
    assert any(not torch.equal(value, other[key]) for key, value in first.items())


@NETWORKS
def test_bfloat16(name: str) -> None:
    """Under autocast and as a whole: eight bits of the mantissa are left, and gradients are finite."""
    net = awake(name, torch.float32, num_classes=4, augment_dim=9)
    for p in net.parameters():
        nn.init.normal_(p, std=0.05)
    x, noise = inputs(dtype=torch.float32)
    told = (torch.tensor([-1, 0, 1]), torch.randn(3, 9))
    exact = net(x, noise, *told)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x, noise, *told)
    assert float(((out.float() - exact).norm() / exact.norm()).detach()) < 0.03
    out.float().square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters())
    whole = net.to(torch.bfloat16)(x.bfloat16(), noise.bfloat16(), *told)
    assert whole.dtype == torch.bfloat16
    assert bool(whole.isfinite().all())


@NETWORKS
def test_can_be_differentiated_twice_outside_of_training(name: str) -> None:
    """Calibrations differentiate the score: d/dt |g(x + t u)|^2 by autograd and by differences, g = d sum(F^2) / dx."""
    net = awake(name).eval()
    x, noise = inputs(1)
    u = torch.randn_like(x)

    def squared(t: float) -> Tensor:
        moved = (x + t * u).detach().requires_grad_()
        (g,) = torch.autograd.grad(net(moved, noise).square().sum(), moved, create_graph=True)
        (slope,) = torch.autograd.grad(g.square().sum(), moved)
        return torch.stack([g.square().sum(), (slope * u).sum()]).detach()

    ahead, here, behind = squared(1e-5), squared(0.0), squared(-1e-5)
    assert float(here[1]) == pytest.approx(float((ahead[0] - behind[0]) / 2e-5), rel=1e-5)


@pytest.mark.parametrize("full", [False, True])
def test_the_exact_score_takes_and_ignores_labels(full: bool) -> None:
    net = GaussianMixtureScore(2, 1, 2, full)
    x, noise = torch.randn(3, 1, 2, 2), torch.zeros(3)
    assert torch.equal(net(x, noise, torch.zeros(3, dtype=torch.int64), torch.ones(3, 9)), net(x, noise))


def test_an_unknown_embedding_is_refused() -> None:
    with pytest.raises(InputError, match=r"embedding=fourrier.*fourier"):
        UNet(1, 8, embedding="fourrier")


@pytest.mark.parametrize("network", [SongUNet, DhariwalUNet, DDPMUNet, UNet])
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"resolution": 12, "multipliers": (1, 1, 1, 1)}, "model.network.resolution=12 cannot be halved 3 times"),
        ({"resolution": 0}, "model.network.resolution=0 cannot be halved"),
        ({"width": 15}, "model.network.width=15: must be even and at least 4"),
        ({"width": 2}, "model.network.width=2: must be even and at least 4"),
        ({"multipliers": ()}, r"model.network.multipliers=\[\]: give a positive integer for every level"),
        ({"multipliers": (1, 0)}, r"model.network.multipliers=\[1, 0\]: give a positive"),
        ({"blocks": 0}, "model.network.blocks=0: must be at least 1"),
        ({"dropout": 1.5}, "model.network.dropout=1.5: a probability lies between 0 and 1"),
        ({"label_dropout": -0.1}, "model.network.label_dropout=-0.1: a probability lies between 0 and 1"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_refusals_name_the_key(network: Callable[..., nn.Module], wrong: dict, sentence: str) -> None:
    options = {"channels": 1, "resolution": 8, "width": 64, "multipliers": (1,), "blocks": 1, "attention": (), **wrong}
    with torch.device("meta"), pytest.raises(InputError, match=sentence):
        network(**options)
