import pytest
import torch

from scoreline.errors import InputError
from scoreline.schedules.base import grid
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.integer_times import IntegerTimes
from scoreline.schedules.spacings import NSRLog, Polynomial, Power
from scoreline.schedules.ve import EDM
from scoreline.schedules.vp import LinearVP

DISCRETE = DiscreteVP()
QUADRATIC = IntegerTimes(Polynomial(DISCRETE, 2), DISCRETE)


@pytest.mark.parametrize("steps", [1, 4, 10, 20, 30])
def test_quadratic_times_are_the_rounded_ones(steps: int) -> None:
    """t_n = round((sqrt(999) (1 - n / N))^2), by hand; for N = 10: 999, 809 (809.19), 639 (639.36), .."""
    t = DISCRETE(grid(QUADRATIC, DISCRETE.sigma_max, DISCRETE.sigma_min, steps))
    expected = [round(999 * (1 - n / steps) ** 2) for n in range(steps + 1)]
    assert t.tolist() == pytest.approx(expected, abs=1e-8)


def test_every_level_is_one_of_the_trained_levels() -> None:
    rho = grid(IntegerTimes(Power(7), DISCRETE), DISCRETE.sigma_max, DISCRETE.sigma_min, 18)
    assert all(min(abs(DISCRETE.knots() / level - 1)) < 1e-11 for level in rho)


def test_the_range_reaches_the_spacing_underneath() -> None:
    nsr = IntegerTimes(NSRLog(3.1), DISCRETE)
    t = DISCRETE(grid(nsr, DISCRETE.sigma_max, DISCRETE.sigma_min, 6))
    plain = DISCRETE(grid(NSRLog(3.1), DISCRETE.sigma_max, DISCRETE.sigma_min, 6))
    assert t.tolist() == pytest.approx([round(x) for x in plain.tolist()], abs=1e-8)


def test_ends_are_those_asked_for() -> None:
    rho = grid(QUADRATIC, 50.0, 0.0123, 5)
    assert (float(rho[0]), float(rho[-1])) == (50.0, 0.0123)
    assert float(grid(QUADRATIC, DISCRETE.sigma_max, 0.0, 5)[-1]) == 0.0


def test_more_steps_than_whole_times_are_refused() -> None:
    with pytest.raises(InputError, match="choose fewer steps"):
        grid(QUADRATIC, DISCRETE.sigma_max, DISCRETE.sigma_min, 200)


@pytest.mark.parametrize("process", [LinearVP(), EDM()], ids=repr)
def test_a_continuous_process_has_no_whole_times(process: LinearVP) -> None:
    with pytest.raises(InputError, match="has no whole times; use schedule=time_quadratic"):
        IntegerTimes(Polynomial(process, 2), process)


def test_map_is_that_of_the_spacing() -> None:
    rho = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    assert torch.equal(QUADRATIC(rho), QUADRATIC.spacing(rho))
    assert torch.equal(QUADRATIC.knots(), DISCRETE.knots())
