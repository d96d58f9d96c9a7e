"""Weights of the loss against losses of other predictions, and a learned factor that leaves the loss itself alone."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.networks.uncertainty import Uncertainty
from scoreline.objective import Batch, DenoisingObjective, EDMWeight, LogNormal, MinSNR, Weight
from scoreline.parameterisations import EDMPreconditioning
from scoreline.schedules.vp import LinearVP
from scoreline.targets import Denoising


def test_min_snr_is_the_published_weight_of_every_prediction() -> None:
    """At x_t = alpha x_0 + sigma eps, with the errors of x_0, eps and v that one prediction makes."""
    generator = torch.Generator().manual_seed(0)
    clean, eps, guess = torch.randn(3, 64, 5, dtype=torch.float64, generator=generator)
    process = LinearVP()
    rho = process.inverse(torch.linspace(1e-3, 1, 64, dtype=torch.float64))
    alpha = (1 + rho**2) ** -0.5
    sigma, snr = (1 - alpha**2).sqrt(), alpha**2 / (1 - alpha**2)
    x_t = alpha[:, None] * clean + sigma[:, None] * eps
    guess_eps = (x_t - alpha[:, None] * guess) / sigma[:, None]
    of_x, of_eps = ((a - b).square().sum(1) for a, b in ((guess, clean), (guess_eps, eps)))
    v, guess_v = (alpha[:, None] * e - sigma[:, None] * x for e, x in ((eps, clean), (guess_eps, guess)))
    of_v = (guess_v - v).square().sum(1)
    for gamma in (1.0, 5.0):
        ours, least = MinSNR(gamma)(rho) * of_x, snr.clamp(max=gamma)
        torch.testing.assert_close(ours, least * of_x, rtol=1e-11, atol=0)
        torch.testing.assert_close(ours, least / snr * of_eps, rtol=1e-9, atol=0)
        torch.testing.assert_close(ours, least / (snr + 1) * of_v, rtol=1e-9, atol=0)
        assert float(MinSNR(gamma)(rho).max()) == gamma > float(MinSNR(gamma)(rho).min())


@pytest.mark.parametrize("gamma", [0, -1.0, math.nan, math.inf, "five"])
def test_a_limit_that_is_no_positive_number_is_refused(gamma: float) -> None:
    with pytest.raises(InputError, match=rf"objective.weight.gamma={gamma}"):
        MinSNR(gamma)


class Gain(nn.Module):
    """A network of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        return self.gain * x


def batch(u: Tensor) -> Batch:
    generator = torch.Generator().manual_seed(1)
    clean, eps = torch.randn(2, len(u), 1, 4, 4, generator=generator)
    return Batch(0.5 * clean, u, eps)


U = torch.tensor([0.05, 0.3, 0.7, 0.95], dtype=torch.float64)
DENOISER = Denoiser(Gain(), EDMPreconditioning())


def test_a_learned_factor_is_no_part_of_the_loss() -> None:
    """Losses of trainings with and without it compare; only what is minimised differs."""
    plain, uncertainty = DenoisingObjective(LogNormal(), EDMWeight(), Denoising()), Uncertainty(4)
    nn.init.constant_(uncertainty.weight, 0.4)
    learned = replace(plain, uncertainty=uncertainty)
    (loss, rho), (same, _) = (objective(DENOISER, batch(U)) for objective in (plain, learned))
    assert torch.equal(loss, same)
    assert plain.balance(loss, rho) is loss
    u = uncertainty(rho)
    assert float(u.detach().abs().min()) > 0.01
    torch.testing.assert_close(learned.balance(loss, rho), torch.exp(-u) * loss + u)


class Doubtful(Uncertainty):
    """The exact logarithm of given losses."""

    def __init__(self, losses: Tensor) -> None:
        super().__init__(1)
        self.logarithm = losses.detach().log()

    def forward(self, rho: Tensor) -> Tensor:
        return self.logarithm


def gradient(weight: Weight, learned: bool) -> float:
    objective = DenoisingObjective(LogNormal(), weight, Denoising())
    loss, rho = objective(DENOISER, batch(U))
    if learned:
        objective = replace(objective, uncertainty=Doubtful(loss))
    (found,) = torch.autograd.grad(objective.balance(loss, rho).sum(), DENOISER.network.parameters())
    return float(found)


def test_a_settled_factor_makes_the_weight_void() -> None:
    """The gradient is that of the sum of ln(loss), in which a factor of each level is a constant."""
    loss, _ = DenoisingObjective(LogNormal(), EDMWeight(), Denoising())(DENOISER, batch(U))
    (logarithmic,) = torch.autograd.grad(loss.log().sum(), DENOISER.network.parameters())
    assert gradient(EDMWeight(), True) == pytest.approx(float(logarithmic), rel=1e-5)
    assert gradient(MinSNR(), True) == pytest.approx(gradient(EDMWeight(), True), rel=1e-5)
    assert abs(gradient(MinSNR(), False) / gradient(EDMWeight(), False) - 1) > 0.1
