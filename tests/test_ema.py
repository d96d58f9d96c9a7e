import pytest
import torch
from torch import nn

from scoreline.ema import EMA


def test_half_life_is_what_it_says() -> None:
    """After H images at constant weights, half of the distance to them is gone."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    ema = EMA(half_life_kimg=10, rampup=float("inf"))
    ema.start(module)
    nn.init.ones_(module.weight)
    images = 1_000_000
    for _ in range(100):
        ema.update(module, images, 100)
        images += 100
    assert float(ema.weights["weight"]) == pytest.approx(0.5, rel=1e-5)


def test_ramp_up_and_first_step() -> None:
    ema = EMA(half_life_kimg=500, rampup=0.05)
    assert ema.beta(0, 512) == 0.0
    assert ema.beta(100_000, 512) == pytest.approx(0.5 ** (512 / 5000))
    assert ema.beta(200_000_000, 512) == pytest.approx(0.5 ** (512 / 500_000))
    assert ema.beta(200_000_000, 512) == pytest.approx(0.99929, abs=1e-5)


def test_average_against_the_recursion_and_buffers_copied() -> None:
    torch.manual_seed(0)
    module = nn.BatchNorm1d(3)
    ema = EMA(1, 0.5)
    ema.start(module)
    expected, images = module.weight.detach().clone(), 0
    for _ in range(20):
        with torch.no_grad():
            module.weight.add_(torch.randn(3))
            module.num_batches_tracked.add_(1)
        ema.update(module, images, 64)
        beta = ema.beta(images, 64)
        expected = beta * expected + (1 - beta) * module.weight.detach()
        images += 64
    torch.testing.assert_close(ema.weights["weight"], expected)
    assert int(ema.weights["num_batches_tracked"]) == 20
