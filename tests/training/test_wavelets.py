import itertools
import math

import numpy as np
import pytest
import torch

from scoreline.training.wavelets import CENTRE, HISTORY, SYM6, downsample, upsample

TAPS = np.array(SYM6)


def roots_in_pairs() -> list[tuple[complex, complex]]:
    """z and 1/z with P((2 - z - 1/z) / 4) = 0, P(y) = sum_{k < 6} C(5 + k, k) y^k: Daubechies' polynomial."""
    y = np.roots([math.comb(5 + k, k) for k in range(6)][::-1])
    return [tuple(np.roots([1, 4 * root - 2, 1])) for root in y]


def real_factors() -> list[np.ndarray]:
    """Every real filter with six zeros at z = -1 that takes one root of each pair."""
    factors = [np.poly([-1.0] * 6 + list(chosen)) for chosen in itertools.product(*roots_in_pairs())]
    real = [factor.real for factor in factors if np.abs(factor.imag).max() < 1e-8]
    return [factor * math.sqrt(2) / factor.sum() for factor in real]


def bent(taps: np.ndarray) -> float:
    """Largest distance of the phase from the straight line nearest to it."""
    w = np.linspace(1e-3, 0.97 * np.pi, 2000)
    phase = np.unwrap(np.angle(np.exp(-1j * np.outer(w, np.arange(len(taps)))) @ taps))
    return float(np.abs(phase - w * (w @ phase) / (w @ w)).max())


def test_taps_are_daubechies_least_asymmetric_factor() -> None:
    factors = sorted(real_factors(), key=bent)
    assert len(factors) == 8
    np.testing.assert_allclose(bent(factors[0]), bent(factors[1]), rtol=1e-6)
    assert bent(factors[2]) > 2 * bent(factors[1])
    np.testing.assert_allclose(factors[0], factors[1][::-1], atol=1e-12)
    assert min(np.abs(factor - TAPS).max() for factor in factors[:2]) < 1e-13


def test_taps_are_orthonormal_with_six_vanishing_moments() -> None:
    assert TAPS.sum() == pytest.approx(math.sqrt(2), abs=1e-15)
    products = [float(TAPS[2 * shift :] @ TAPS[: len(TAPS) - 2 * shift]) for shift in range(6)]
    np.testing.assert_allclose(products, [1, 0, 0, 0, 0, 0], atol=1e-15)
    k = np.arange(12.0)
    moments = [abs(float(((-1) ** k * k**power) @ TAPS)) / 11**power for power in range(7)]
    assert max(moments[:6]) < 1e-15
    seventh = math.sqrt(2) * math.factorial(6) / 2**6 * math.sqrt(math.comb(11, 5))  # of any such factor: P(1) = 462
    assert moments[6] == pytest.approx(seventh / 11**6, rel=1e-9)


def signal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_both_ways_against_the_sums_written_out() -> None:
    x = signal(HISTORY + 9).numpy()
    doubled = np.array(
        [
            math.sqrt(2) * sum(SYM6[m - 2 * n] * x[n + HISTORY] for n in range(-HISTORY, 9) if 0 <= m - 2 * n < 12)
            for m in range(18)
        ]
    )
    np.testing.assert_allclose(upsample(torch.from_numpy(x), 0).numpy(), doubled, atol=1e-14)
    halved = np.array([sum(SYM6[k] * doubled[2 * n + k] for k in range(12)) / math.sqrt(2) for n in range(4)])
    np.testing.assert_allclose(downsample(torch.from_numpy(doubled), 0).numpy(), halved, atol=1e-14)


@pytest.mark.parametrize("dim", [0, 1, 2, 3])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_there_and_back_returns_any_signal(dim: int, dtype: torch.dtype, error: float) -> None:
    shape = [2, 3, 4, 5]
    shape[dim] = 2 * HISTORY + 8
    x = signal(*shape).to(dtype)
    back = downsample(upsample(x, dim), dim)
    assert back.dtype == dtype
    torch.testing.assert_close(back, x.narrow(dim, HISTORY, 8), rtol=0, atol=error)


def test_quadratic_signals_are_interpolated_exactly() -> None:
    n, m = torch.arange(-HISTORY, 20, dtype=torch.float64), torch.arange(40, dtype=torch.float64)
    third = float((np.arange(12) - CENTRE) ** 3 @ TAPS) / math.sqrt(2)
    for power, error in enumerate([0, 0, 0, -third / 8]):
        found = upsample(n**power, 0) - ((m - CENTRE) / 2) ** power
        torch.testing.assert_close(found, torch.full_like(m, error), rtol=0, atol=1e-11)
    assert abs(third) > 0.5
