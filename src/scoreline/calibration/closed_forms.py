"""The closed forms that calibrations without a config compare and start from, by their names."""

from collections.abc import Mapping, Sequence

from scoreline.calibration.ranking import Families
from scoreline.interface.named_choices import schedule_named, solver_named
from scoreline.schedules.base import NoiseSchedule, Schedule
from scoreline.solvers.adaptive import Adaptive
from scoreline.solvers.tableau import Solver

Solvers = Mapping[str, Solver | Adaptive]
Schedules = Mapping[str, Schedule]

COMPARED = (
    *("ddim", "ipndm2", "ipndm3", "ipndm4", "deis_logrhoab3"),
    *("dpmpp_2m", "dpmpp_3m", "unipc_2", "unipc_3", "heun"),
)
"""Solvers that a search compares. None reads a native time, so a name means the same for every model."""

IN_VELOCITY = ("velocity_ab3", "velocity_abm2", "velocity_abm2_open", "velocity_ipndm4")
"""Those that read the data's deviation."""

SCHEDULES = ("karras", "log_snr", "linear_vp_quadratic", "linear_vp_cubic", "linear_vp_few")
"""Schedules that a search compares."""

STARTS = ("velocity_ab3", "velocity_abm2_open", "ipndm2", "ipndm3", "deis_tab3")
"""Solvers from which tableaus are learned, as in calibrate.py."""

START_SCHEDULES = ("linear_vp_few", "linear_vp_quadratic")
"""Schedules of these solvers."""


def named_families(
    solvers: Solvers | Sequence[str],
    schedules: Schedules | Sequence[str],
    noise_schedule: NoiseSchedule | None,
    sigma_data: float | None,
) -> Families:
    """Return solvers and schedules, given as objects by name, or as names that `scoreline.sample` knows.

    Args:
        solvers: the solvers.
        schedules: the schedules.
        noise_schedule: the process in whose time a name may step.
        sigma_data: standard deviation of the data, for names in velocity prediction.

    Raises:
        InputError: for a name that is not known, or that reads one of these values where it is None.
    """
    if not isinstance(solvers, Mapping):
        solvers = {name: solver_named(name, noise_schedule, sigma_data) for name in solvers}
    if not isinstance(schedules, Mapping):
        schedules = {name: schedule_named(name, noise_schedule) for name in schedules}
    return Families(solvers, schedules)
