import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scoreline.errors import InputError
from scoreline.training.ema import EMA, UNIFORM, PowerFunctionEMA, RunningAverage, gamma_of


def walk(module: nn.Module, steps: int, seed: int = 0) -> list[Tensor]:
    """Weights of a random walk that starts where the module is: (steps + 1) tensors."""
    generator = torch.Generator().manual_seed(seed)
    course = [module.weight.detach().clone()]
    for _ in range(steps):
        course.append(course[-1] + torch.randn(course[-1].shape, generator=generator, dtype=course[-1].dtype))
    return course


def follow(average: RunningAverage, module: nn.Module, course: list[Tensor], batch: int) -> Tensor:
    """The average after all of a course, whose first weights are those before any step."""
    average.start(module)
    for step, weight in enumerate(course[1:]):
        with torch.no_grad():
            module.weight.copy_(weight)
        average.update(module, step * batch, batch)
    return average.weights["weight"]


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
    assert ema.beta(9_999_999, 512) < ema.beta(10_000_000, 512), "the ramp ends at 10 million images"
    assert ema.beta(10_000_000, 512) == ema.beta(200_000_000, 512) == 0.5 ** (512 / 500_000)
    assert f"{ema.beta(200_000_000, 512):.5f}" == "0.99929", "EDM's published value"


def test_average_against_the_recursion_and_buffers_copied() -> None:
    torch.manual_seed(0)
    module = nn.BatchNorm1d(3)
    ema = EMA(1, 0.5)
    ema.start(module)
    expected, images = module.weight.detach().clone(), 0
    for _ in range(20):
        with torch.no_grad():
            module.weight.add_(torch.randn(3))
            module.running_mean.add_(torch.randn(3))
            module.num_batches_tracked.add_(1)
        ema.update(module, images, 64)
        beta = ema.beta(images, 64)
        expected = beta * expected + (1 - beta) * module.weight.detach()
        images += 64
    torch.testing.assert_close(ema.weights["weight"], expected)
    assert int(ema.weights["num_batches_tracked"]) == 20
    assert torch.equal(ema.weights["running_mean"], module.running_mean), "a buffer of numbers is copied too"


@pytest.mark.parametrize("average", [EMA(1, 0.5), PowerFunctionEMA(0.1)])
def test_half_precision_weights_are_averaged_in_float32(average: RunningAverage) -> None:
    """bfloat16 holds 8 bits: steps of 1 / 1000 of a weight would be lost in it."""
    module = nn.Linear(3, 3, bias=False).bfloat16()
    course = [torch.full((3, 3), value).bfloat16() for value in [1.0] * 200 + [1.5] * 30]
    averaged = follow(average, module, course, 64)
    assert averaged.dtype == torch.float32
    whole = follow(type(average)(*_arguments(average)), nn.Linear(3, 3, bias=False), [x.float() for x in course], 64)
    assert torch.equal(averaged, whole)
    assert module.weight.dtype == torch.bfloat16


def _arguments(average: RunningAverage) -> tuple[float, ...]:
    return (average.half_life_kimg, average.rampup) if isinstance(average, EMA) else (average.sigma_rel,)


def test_tied_weights_are_averaged_under_both_names() -> None:
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    module[1].weight = module[0].weight
    ema = EMA(1, 0.5)
    ema.start(module)
    nn.init.ones_(module[0].weight)
    ema.update(module, 64, 64)
    assert torch.equal(ema.weights["0.weight"], ema.weights["1.weight"])
    assert not torch.equal(ema.weights["0.weight"], module[0].weight)


def test_a_network_that_shares_the_memory_follows() -> None:
    module, shadow = nn.Linear(2, 2), nn.Linear(2, 2)
    ema = EMA(1, 0.5)
    ema.start(module)
    shadow.load_state_dict(ema.weights, assign=True)
    nn.init.ones_(module.weight)
    ema.update(module, 640, 64)
    assert torch.equal(shadow.weight, ema.weights["weight"])
    assert not torch.equal(shadow.weight, module.weight)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.1, 0.2, UNIFORM])
def test_power_function_equals_the_weighted_sum(sigma_rel: float) -> None:
    """Every past weight times the integral of tau^gamma over its step, normalised; nothing of the first weights."""
    module = nn.Linear(4, 3, bias=False).double()
    course = walk(module, 400)
    found = follow(PowerFunctionEMA(sigma_rel), module, course, 32)
    gamma = gamma_of(sigma_rel)
    k = torch.arange(1, 401, dtype=torch.float64)
    share = (k ** (gamma + 1) - (k - 1) ** (gamma + 1)) / 400 ** (gamma + 1)
    assert float(share.sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(found, (share[:, None, None] * torch.stack(course[1:])).sum(0), rtol=1e-11, atol=1e-11)


def test_power_function_decay() -> None:
    average = PowerFunctionEMA(0.1)
    assert average.beta(0, 64) == 0.0
    assert average.beta(64 * 9, 64) == pytest.approx((1 - 1 / 10) ** (average.gamma + 1), rel=1e-14)
    plain = PowerFunctionEMA(UNIFORM)
    assert plain.beta(64 * 9, 64) == pytest.approx(0.9), "gamma = 0 is the mean of all weights"


def test_relative_widths() -> None:
    """Published: 0.05 and 0.10 are gamma 16.97 and 6.94."""
    assert [round(gamma_of(sigma_rel), 2) for sigma_rel in (0.05, 0.10)] == [16.97, 6.94]
    assert gamma_of(UNIFORM) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2, UNIFORM])
def test_sigma_rel_is_the_width_of_profiles(sigma_rel: float) -> None:
    tau = (np.arange(1_000_000) + 0.5) / 1_000_000
    p = tau ** gamma_of(sigma_rel)
    p /= p.sum()
    mean = (p * tau).sum()
    assert math.sqrt((p * (tau - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=1e-9)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.289, 9e-5, math.nan, math.inf])
def test_widths_that_no_power_function_has(sigma_rel: float) -> None:
    with pytest.raises(InputError, match=rf"sigma_rel={sigma_rel}: must be from 0.0001 to 0.288675"):
        PowerFunctionEMA(sigma_rel)
