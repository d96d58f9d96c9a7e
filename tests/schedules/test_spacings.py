"""SciRE's NSR spacing, and the spacings in conf/schedule."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st

from scoreline.errors import InputError
from scoreline.schedules.base import Schedule, grid
from scoreline.schedules.deis_sn_times import DEISSNTimes
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.integer_times import IntegerTimes
from scoreline.schedules.spacings import LogSNR, NSRLog, Polynomial, Power
from scoreline.schedules.tabulated import Tabulated
from scoreline.schedules.vp import CosineVP, LinearVP
from scoreline.solvers.deis import DEIS

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize(
    ("end", "published"),
    [
        (1e-3, [1, 0.853023, 0.675369, 0.443174, 0.176528, 0.037979, 0.001]),
        (1e-4, [1, 0.829461, 0.615052, 0.325013, 0.083941, 0.012262, 0.0001]),
    ],
)
def test_nsr_grids_of_the_specification(end: float, published: list[float]) -> None:
    vp = LinearVP(t_min=end)
    t = vp(grid(NSRLog(), vp.sigma_max, vp.sigma_min, 6))
    torch.testing.assert_close(t, torch.tensor(published, dtype=torch.float64), atol=5e-7, rtol=0)


def test_nsr_goes_from_log_snr_to_uniform_rho() -> None:
    torch.testing.assert_close(grid(NSRLog(0.0), 80, 0.01, 9), grid(LogSNR(), 80, 0.01, 9), rtol=1e-13, atol=0)
    torch.testing.assert_close(grid(NSRLog(1e8), 80, 0.01, 9), grid(Power(1), 80, 0.01, 9), rtol=2e-4, atol=0)
    between = [grid(NSRLog(k), 80, 0.01, 9)[4].item() for k in (0, 2, 7, 100, 1e4)]
    assert between == sorted(between)


def test_nsr_ends_where_the_run_does() -> None:
    assert NSRLog(2.0, 99.0).on(80, 0.01) == NSRLog(2.0, 0.01)
    u = NSRLog(2.0, 0.01)(grid(NSRLog(2.0), 80, 0.01, 5))
    torch.testing.assert_close(u.diff(), (u[-1] - u[0]).expand(5) / 5)


def test_nsr_without_an_end_says_what_to_do() -> None:
    rho = torch.tensor([1.0], dtype=torch.float64)
    for use in (NSRLog(), NSRLog().inverse):
        with pytest.raises(InputError, match="schedule=nsr_log"):
            use(rho)
    with pytest.raises(InputError, match="schedule=nsr_log"):
        DEIS(2, NSRLog())(Power(7), 80, 0.01, 5)


@pytest.mark.parametrize("k", [-0.1, float("inf"), float("nan")])
def test_nsr_refuses_a_shift_that_makes_no_sense(k: float) -> None:
    with pytest.raises(InputError, match=r"schedule\.k="):
        NSRLog(k)


def test_nsr_cannot_reach_clean_data() -> None:
    with pytest.raises(InputError, match="NSRLog"):
        grid(NSRLog(), 80, 0, 5)


@settings(max_examples=60, deadline=None)
@given(k=st.floats(0, 20), end=st.floats(1e-4, 0.1), levels=st.lists(st.floats(1e-4, 1e3), min_size=1, max_size=20))
def test_nsr_inverts_and_increases(k: float, end: float, levels: list[float]) -> None:
    """Below the end the shift costs digits: k sigma_min / rho of them."""
    schedule, rho = NSRLog(k, end), torch.tensor(levels, dtype=torch.float64)
    torch.testing.assert_close(schedule.inverse(schedule(rho)), rho, rtol=1e-12, atol=1e-14 * (1 + k * end))
    distinct = torch.tensor(sorted({round(level, 6) for level in levels}), dtype=torch.float64)
    assert (schedule(distinct).diff() > 0).all()


def from_conf(model: str, *overrides: str) -> Schedule:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("sample", overrides=list(overrides))
    vp = {"_target_": "scoreline.schedules." + model}
    cfg.model = {"noise_schedule": vp}
    return instantiate(cfg.schedule)


def test_configs_are_what_they_are_called(tmp_path: Path) -> None:
    linear, discrete = LinearVP(), DiscreteVP()
    (tmp_path / "levels.txt").write_text("80\n1\n0.01\n")
    expected = {
        "nsr_log": NSRLog(3.1),
        "time_cubic": Polynomial(linear, 3),
        "cosine": Polynomial(CosineVP(), 1),
        "rho_uniform": Power(1),
        "deis_sn_published": DEISSNTimes(linear),
    }
    for name, schedule in expected.items():
        assert from_conf("vp.LinearVP", f"schedule={name}") == schedule, name
    found = from_conf("vp.LinearVP", "schedule=from_file", f"schedule.path={tmp_path / 'levels.txt'}")
    assert found == Tabulated((80.0, 1.0, 0.01))
    whole = from_conf("discrete.DiscreteVP", "schedule=time_quadratic_integer")
    assert whole == IntegerTimes(Polynomial(discrete, 2), discrete)


def test_any_map_can_be_the_base() -> None:
    override = "schedule.base={_target_: scoreline.schedules.vp.CosineVP}"
    assert override in (CONF / "schedule" / "time_quadratic.yaml").read_text()
    assert from_conf("vp.LinearVP", "schedule=time_quadratic", override) == Polynomial(CosineVP(), 2)


def test_cosine_spacing_goes_beyond_its_own_process() -> None:
    """rho = 0.01 lies left of the cosine process's time 0, rho = 152 right of its t_max."""
    rho = grid(Polynomial(CosineVP(), 1), 152.0, 0.01, 12)
    torch.testing.assert_close(rho.atan().diff(), (rho[-1].atan() - rho[0].atan()).expand(12) / 12)
