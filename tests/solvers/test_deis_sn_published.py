"""Coefficients of DEIS and DEIS-SN as published, for N = 10, r = 2 and the schedule of the released code.

The figures are C_ij, which multiply eps (DEIS) or eps / R (DEIS-SN): C_ij = alpha_{i+1} R(rho_{i-j}) b_ij.
"""

from dataclasses import dataclass
from functools import cached_property

import pytest
import torch
from scipy.interpolate import CubicSpline, PchipInterpolator
from torch import Tensor

from scoreline.calibration.score_norm_published import PublishedScale
from scoreline.schedules.base import VariancePreserving
from scoreline.schedules.deis_sn_times import DEISSNTimes
from scoreline.solvers.deis import DEIS

PSI = [5.680335, 3.470585, 2.353142, 1.748139, 1.405186, 1.207090, 1.094635, 1.035253, 1.008862, 1.000949]
DEIS_ROWS = [
    (-4.6808717,),
    (-3.3192944, 0.8430962),
    (-2.2403737, 1.1849013, -0.3235547),
    (-1.3441345, 0.7270592, -0.1963480),
    (-0.8577727, 0.4673855, -0.1240988),
    (-0.5768208, 0.3106874, -0.0804136),
    (-0.3944138, 0.2047391, -0.0509633),
    (-0.2575430, 0.1237499, -0.0289213),
    (-0.1430054, 0.0583448, -0.0121605),
    (-0.0561832, 0.0150292, -0.0024169),
]
CIFAR_ROWS = [
    (-3.7366275,),
    (-2.6515912, 0.6734858),
    (-1.7875901, 0.9451618, -0.2580813),
    (-1.0694201, 0.5782225, -0.1561458),
    (-0.6795462, 0.3700384, -0.0982439),
    (-0.4536586, 0.2440839, -0.0631666),
    (-0.3061397, 0.1586071, -0.0394709),
    (-0.1950323, 0.0933481, -0.0218060),
    (-0.1025510, 0.0414228, -0.0086238),
    (-0.0366958, 0.0097556, -0.0015684),
]
CHURCH_LAST_ROW = (-0.0368109, 0.0096489, -0.0015494)

INDEX = [0, 1, 2, 3, 5, 8, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 700, 900, 999]
CIFAR = [0.54621, 0.58653, 0.60792, 0.62450, 0.64706, 0.66995, 0.68092, 0.70099, 0.71447, 0.73200]
CIFAR += [0.75132, 0.76420, 0.77206, 0.78128, 0.78665, 0.79227, 0.79702, 0.79885, 0.79844, 0.79810]
CHURCH = [0.57954, 0.61827, 0.63816, 0.65438, 0.67524, 0.69626, 0.70598, 0.72325, 0.73469, 0.74910]
CHURCH += [0.76418, 0.77380, 0.77946, 0.78594, 0.78924, 0.79312, 0.79629, 0.79774, 0.79775, 0.79761]
CIFAR_AT_THE_STEPS = [
    0.798100,
    0.798842,
    0.798642,
    0.796905,
    0.794206,
    0.790039,
    0.782761,
    0.769318,
    0.743225,
    0.680865,
]


def betas() -> Tensor:
    """torch.linspace(1e-4, 0.02, 1000) in float32 as kernels with a fused multiply-add round it: once.

    The figures were computed so. ATen's kernels for other processors round products and sums, which is another table.
    """
    low, high = torch.tensor(1e-4), torch.tensor(0.02)
    step, i = ((high - low) / 999).double(), torch.arange(1000, dtype=torch.float64)
    return torch.where(i < 500, low.double() + step * i, high.double() - step * (999 - i)).float()


@dataclass(frozen=True)
class ReleasedVP(VariancePreserving):
    """The released code's process: t = tau, alpha^2 linear between 1 at tau = 0 and a float32 cumulative product."""

    t_min: float = 0.0
    t_max: float = 1.0

    @cached_property
    def table(self) -> Tensor:
        alpha2 = torch.cumprod(1 - betas(), 0)
        return torch.cat([torch.ones(1, dtype=torch.float64), alpha2.double()])

    def __call__(self, rho: Tensor) -> Tensor:
        variance, table = rho**2 / (1 + rho**2), 1 - self.table
        right = torch.searchsorted(table, variance.contiguous()).clamp(1, 1000)
        fraction = (variance - table[right - 1]) / (table[right] - table[right - 1])
        return (right - 1 + fraction.clamp(0, 1)) / 1000

    def inverse(self, u: Tensor) -> Tensor:
        left = (u * 1000).floor().clamp(0, 999).to(torch.int64)
        alpha2 = torch.lerp(self.table[left], self.table[left + 1], u * 1000 - left)
        return ((1 - alpha2) / alpha2).sqrt()

    def knots(self) -> Tensor:
        return ((1 - self.table) / self.table).sqrt()


VP = ReleasedVP()


def coefficients(scale: PublishedScale | None = None) -> Tensor:
    """C (10, 10) from the tableau."""
    table = DEIS(2, VP, scale)(DEISSNTimes(VP), VP.sigma_max, 0.0, 10)
    weights = torch.ones(10, dtype=torch.float64) if scale is None else scale(table.rho[:-1])
    return VP.alpha(VP(table.rho[1:]))[:, None] * table.N * weights


def latest(C: Tensor, i: int) -> list[float]:
    """C_i0, C_i1, C_i2 as far as they exist; nothing else may be in the row."""
    assert not C[i, : max(0, i - 2)].any()
    return C[i, max(0, i - 2) : i + 1].flip(0).tolist()


def measured(values: list[float]) -> Tensor:
    """All 1000 entries from the twenty listed ones: monotone cubic in ln(k + 1)."""
    log = torch.tensor(INDEX).double().add(1).log()
    return torch.from_numpy(PchipInterpolator(log, values)(torch.arange(1, 1001).double().log()))


def scale(values: list[float], clip: int, stretched_knots: bool = True) -> PublishedScale:
    levels = VP.inverse(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    return PublishedScale(tuple(levels.tolist()), tuple(measured(values).tolist()), VP, clip, stretched_knots)


def test_psi_and_deis_to_the_digits_given() -> None:
    C = coefficients()
    alpha = VP.alpha(torch.tensor([(1 - n / 10) ** 2 for n in range(11)], dtype=torch.float64))
    assert (alpha[1:] / alpha[:-1]).tolist() == pytest.approx(PSI, abs=0.5e-6, rel=0)
    for i, row in enumerate(DEIS_ROWS):
        assert latest(C, i) == pytest.approx(row, abs=0.5e-7, rel=0)


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="another linspace")
def test_betas_are_those_of_a_fused_linspace() -> None:
    assert torch.equal(betas(), torch.linspace(1e-4, 0.02, 1000))


def interpolation_error() -> float:
    """The relative error of interpolating the twenty listed entries, at ten places that the table gives as well."""
    rho = DEIS(0, VP)(DEISSNTimes(VP), VP.sigma_max, 0.0, 10).rho[:-1]
    published = torch.tensor(CIFAR_AT_THE_STEPS, dtype=torch.float64)
    return float((scale(CIFAR, 5)(rho) / published - 1).abs().max())


def test_deis_sn_agrees_with_the_listed_entries() -> None:
    """C_ij = int R l_j and l_j has one sign on the step, so a relative error of R is at most that of C."""
    error = interpolation_error()
    assert error < 3e-4
    C = coefficients(scale(CIFAR, 5))
    for i, row in enumerate(CIFAR_ROWS):
        assert latest(C, i) == pytest.approx(row, rel=error, abs=0.5e-7)


@pytest.mark.parametrize(("values", "clip", "row"), [(CIFAR, 5, CIFAR_ROWS[9]), (CHURCH, 1, CHURCH_LAST_ROW)])
def test_the_last_row_tells_the_quirks_apart(values: list[float], clip: int, row: tuple[float, ...]) -> None:
    """It reads entries 0 .. 10 only, most of them listed; two ways to fill in the others bound the error at 0.011 %."""
    log = torch.tensor(INDEX).double().add(1).log()
    other_way = torch.from_numpy(CubicSpline(log, values)(torch.arange(1, 12).double().log()))
    error = float((measured(values)[:11] / other_way - 1).abs().max())
    assert error < 1.1e-4
    assert latest(coefficients(scale(values, clip)), 9) == pytest.approx(row, rel=error, abs=0.5e-7)
    for other in (scale(values, 0), scale(values, clip, stretched_knots=False)):
        assert max(abs(a / b - 1) for a, b in zip(latest(coefficients(other), 9), row, strict=True)) > 10 * error


def test_what_the_released_code_reads_at_a_hundredth() -> None:
    """0.6809 from the stretched knots where 0.6758 was measured; Church 0.705938 from its own."""
    rho = VP.inverse(torch.tensor([0.01], dtype=torch.float64))
    assert float(scale(CIFAR, 5)(rho)) == pytest.approx(0.680865, abs=5e-6)
    assert float(scale(CIFAR, 5, stretched_knots=False)(rho)) == pytest.approx(0.6758, abs=2e-4)
    assert float(scale(CHURCH, 1)(rho)) == pytest.approx(0.705938, abs=5e-6)


def test_rows_integrate_the_scale_itself() -> None:
    """For eps proportional to R, a row is the integral of R: no other knots, no other clipping inside."""
    ours = scale(CIFAR, 5)
    table = DEIS(2, VP, ours)(DEISSNTimes(VP), VP.sigma_max, 0.0, 10)
    for i in range(10):
        rho = torch.linspace(float(table.rho[i]), float(table.rho[i + 1]), 400_001, dtype=torch.float64)
        assert float(table.N[i] @ ours(table.rho[:-1])) == pytest.approx(
            float(torch.trapezoid(ours(rho), rho)), rel=1e-8
        )
