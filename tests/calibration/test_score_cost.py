"""Costs of a step against closed forms, the density's slope and, for the probed cost, the exact one."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from scipy.linalg import hadamard
from torch import Tensor, nn

from scoreline.calibration.score_cost import corrector, predictor, predictor_probed, solution
from scoreline.errors import InputError
from scoreline.networks.exact import GaussianMixture
from scoreline.sampling import Eps

C = 0.5


def variance(rho: float) -> float:
    return C**2 + rho**2


@pytest.mark.parametrize(("high", "low"), [(80.0, 40.0), (2.0, 1.0), (0.5, 0.3), (0.1, 0.05), (0.0021, 0.002)])
def test_costs_of_a_gaussian_are_their_closed_forms(high: float, low: float) -> None:
    """Both residuals are multiples of x; in the mean |x|^2 is d V(high), which gives the published closed forms."""
    x = torch.randn(7, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    size = x.flatten(1).square().sum(1)

    def eps(x: Tensor, rho: float) -> Tensor:
        return rho * x / variance(rho)

    moved = (high**2 - low**2) ** 2 / (variance(high) * variance(low)) ** 2
    torch.testing.assert_close(corrector(eps, x, high, low), size * moved, rtol=1e-9, atol=0)
    left = C**4 * (high - low) ** 4 / ((C**2 + high * low) * variance(high) * variance(low)) ** 2
    probes = torch.ones_like(x), torch.ones_like(x)
    torch.testing.assert_close(predictor(eps, x, high, low), size * left, rtol=1e-6, atol=1e-25)
    torch.testing.assert_close(predictor_probed(eps, x, high, low, probes), size * left, rtol=1e-6, atol=1e-25)


def test_the_exact_predictor_cost_follows_the_density(
    mixture: GaussianMixture,
) -> None:
    """ln of the pushed-forward density at F(x) is ln p(x) - ln|det J(x)|; its slope in F by central differences."""
    high, low, eta = 0.9, 0.5, 1e-4
    step = (low - high) * high

    def log_density(x: Tensor) -> Tensor:
        spread = mixture.stds**2 + high**2
        away = (x[:, None] - mixture.means).square().sum(-1) / (2 * spread)
        return torch.logsumexp(mixture.weights.log() - spread.log() - away, 1)

    def pushed(x: Tensor) -> Tensor:
        return x + step * mixture.eps(x, high) / high

    def jacobian(x: Tensor) -> Tensor:
        sides = [pushed(x + eta * unit) - pushed(x - eta * unit) for unit in torch.eye(2, dtype=torch.float64)]
        return torch.stack(sides, -1) / (2 * eta)

    def arriving(x: Tensor) -> Tensor:
        return log_density(x) - torch.linalg.det(jacobian(x)).abs().log()

    x = torch.tensor([[0.3, 0.4], [-1.1, 0.2], [1.5, -0.9]], dtype=torch.float64)
    slopes = [(arriving(x + eta * u) - arriving(x - eta * u)) / (2 * eta) for u in torch.eye(2, dtype=torch.float64)]
    score = torch.linalg.solve(jacobian(x).mT, torch.stack(slopes, -1))
    expected = (-mixture.eps(pushed(x), low) / low - score).square().sum(1)
    torch.testing.assert_close(predictor(mixture.eps, x, high, low), expected, rtol=2e-5, atol=0)


def order(cost, eps, x: Tensor, high: float) -> float:
    ends = [float(cost(eps, x, high, high * (1 - h)).mean()) for h in (0.02, 0.01)]
    return math.log2(ends[0] / ends[1])


@pytest.mark.parametrize("high", [0.3, 1.0, 5.0])
def test_costs_fall_as_square_and_fourth_power(mixture: GaussianMixture, high: float) -> None:
    x = high * torch.randn(400, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert order(corrector, mixture.eps, x, high) == pytest.approx(2, abs=0.05)
    assert order(predictor, mixture.eps, x, high) == pytest.approx(4, abs=0.12)


def joint(d: int) -> GaussianMixture:
    """Six modes of deviation 0.15 at distances of about 2.8: the entries of an image depend on each other."""
    generator = torch.Generator().manual_seed(0)
    means = 2 / math.sqrt(d) * torch.randn(6, d, generator=generator, dtype=torch.float64)
    return GaussianMixture(means, torch.full((6,), 0.15, dtype=torch.float64), torch.ones(6, dtype=torch.float64))


class Asymmetric(nn.Module):
    """A random network of 16 entries, whose Jacobian is not symmetric, as eps(x, rho)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16)).double().requires_grad_(False)

    def forward(self, x: Tensor, rho: float) -> Tensor:
        spread = math.hypot(1, rho)
        return rho / spread**2 * x + self.layers(x / spread) / spread


def all_pairs(eps: Eps, x: Tensor, high: float, low: float, same: bool = False) -> Tensor:
    """Average over all pairs of a Hadamard matrix's rows as probes: the mean of z z^T is the identity to the bit."""
    d = x.shape[1]
    signs = torch.tensor(hadamard(d), dtype=torch.float64)
    first, second = (signs, signs) if same else (signs.repeat_interleave(d, 0), signs.repeat(d, 1))
    probes = first.repeat_interleave(len(x), 0), second.repeat_interleave(len(x), 0)
    return predictor_probed(eps, x.repeat(len(first), 1), high, low, probes).reshape(-1, len(x)).mean(0)


def test_a_group_of_probes_is_averaged_before_the_product(mixture: GaussianMixture) -> None:
    """Both sign patterns of two entries are a Hadamard matrix: a group of them leaves the exact cost, without noise."""
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    group = torch.tensor([[1, 1], [1, -1]], dtype=torch.float64)[:, None].expand(2, 300, 2)
    exact = predictor(mixture.eps, x, 1.0, 0.7)
    torch.testing.assert_close(
        predictor_probed(mixture.eps, x, 1.0, 0.7, [*group, *group]), exact, rtol=1e-3, atol=1e-9
    )


def noised(pixels: GaussianMixture, count: int, high: float) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x = pixels.draw(count, generator)
    return x + high * torch.randn(x.shape, generator=generator, dtype=torch.float64)


RANGE = torch.logspace(math.log10(80), math.log10(0.002), 40, dtype=torch.float64).tolist()


@pytest.mark.parametrize(("d", "images", "every"), [(16, 8, 2), (64, 1, 7)])
def test_two_probes_are_unbiased_from_80_to_0002(d: int, images: int, every: int) -> None:
    """A series cut at its second term is too large by a factor of 400,000 at the first steps of these."""
    pixels = joint(d)
    for high, low in list(pairwise(RANGE))[::every]:
        x = noised(pixels, images, high)
        exact = predictor(pixels.eps, x, high, low)
        torch.testing.assert_close(all_pairs(pixels.eps, x, high, low), exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("eps", [joint(16).eps, Asymmetric()], ids=["mixture", "network"])
def test_two_probes_are_unbiased_over_long_steps(eps: Eps) -> None:
    """A step by a factor of 3 or 10: powers of the Jacobian's distance from the identity would not converge."""
    for high, low in ((80.0, 8.0), (3.0, 1.0), (1.0, 0.3), (0.3, 0.1)):
        x = noised(joint(16), 4, high)
        exact = predictor(eps, x, high, low)
        torch.testing.assert_close(all_pairs(eps, x, high, low), exact, rtol=1e-3, atol=0)


def test_one_probe_in_both_factors_adds_its_variance(mixture: GaussianMixture) -> None:
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    coarse, fine = (float(all_pairs(mixture.eps, x, 1.0, low, same=True).mean()) for low in (0.98, 0.99))
    assert fine > 1000 * float(predictor(mixture.eps, x, 1.0, 0.99).mean())
    assert math.log2(coarse / fine) == pytest.approx(2, abs=0.1)


def product(matrices: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda y: torch.einsum("bij,bj->bi", matrices, y)


def test_systems_are_solved_without_symmetry() -> None:
    generator = torch.Generator().manual_seed(3)
    matrices = torch.eye(12) + torch.randn(5, 12, 12, generator=generator, dtype=torch.float64) / 6
    right = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    right[0] = 0
    expected = torch.linalg.solve(matrices, right)
    torch.testing.assert_close(solution(product(matrices), right), expected, rtol=0, atol=1e-5)


def test_a_jacobian_without_inverse_is_refused() -> None:
    singular = torch.diag(torch.tensor([1.0, 0.0])).expand(3, 2, 2)
    with pytest.raises(InputError, match=r"calibration\.cost=predictor: .*calibration\.levels"):
        solution(product(singular), torch.ones(3, 2))
