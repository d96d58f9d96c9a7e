from fractions import Fraction

import pytest
import torch

from scoreline.errors import InputError
from scoreline.schedules.base import NoiseSchedule, grid
from scoreline.schedules.deis_sn_times import DEISSNTimes
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.ve import VE
from scoreline.schedules.vp import CosineVP, LinearVP


def lattice(steps: int) -> list[Fraction]:
    """tau_n in exact arithmetic; Python rounds a tie of fractions to the even number."""
    return [Fraction(round(1000 * (1 - Fraction(n, steps))), 1000) ** 2 for n in range(steps + 1)]


@pytest.mark.parametrize("steps", [1, 6, 10, 16, 48, 61, 80, 103, 121, 160, 333, 1000])
@pytest.mark.parametrize("process", [DiscreteVP(), LinearVP(), CosineVP()], ids=repr)
def test_times_are_the_lattice_down_to_clean_data(process: NoiseSchedule, steps: int) -> None:
    """16, 48, 80 and 160 have ties; at 61, 103 and 121 the released code has one point too many."""
    rho = grid(DEISSNTimes(process), process.sigma_max, 0.0, steps)
    clean = float(process(torch.zeros((), dtype=torch.float64)))
    tau = (process(rho) - clean) / (process.t_max - clean)
    torch.testing.assert_close(tau, torch.tensor([float(x) for x in lattice(steps)]).double(), rtol=2e-7, atol=1e-11)
    assert float(rho[-1]) == 0.0


def test_ten_steps_are_the_published_indices() -> None:
    process = DiscreteVP()
    t = process(grid(DEISSNTimes(process), process.sigma_max, 0.0, 10))
    assert t.tolist() == pytest.approx([999, 809, 639, 489, 359, 249, 159, 89, 39, 9, -1], abs=1e-9)


def test_round_trip_on_the_lattice() -> None:
    schedule = DEISSNTimes(DiscreteVP())
    u = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(schedule(schedule.inverse(u)), u, rtol=1e-9, atol=0)
    assert schedule(torch.tensor([0.0], dtype=torch.float64)).tolist() == [0.0]
    assert torch.equal(schedule.knots(), DiscreteVP().knots())


def test_other_ends_stay_off_the_lattice() -> None:
    process = LinearVP()
    rho = grid(DEISSNTimes(process), 20.0, process.sigma_min, 9)
    assert (float(rho[0]), float(rho[-1])) == (20.0, process.sigma_min)
    q = process(rho[1:-1]).sqrt() * 1000
    torch.testing.assert_close(q, q.round(), rtol=0, atol=1e-6)


def test_more_steps_than_lattice_points_are_refused() -> None:
    with pytest.raises(InputError, match="fewer steps"):
        grid(DEISSNTimes(DiscreteVP()), DiscreteVP().sigma_max, 0.0, 1001)


def test_a_process_without_clean_data_is_refused() -> None:
    with pytest.raises(InputError, match="VE has no time of clean data"):
        DEISSNTimes(VE())
