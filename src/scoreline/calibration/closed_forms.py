"""The closed forms that calibrations without a config compare and start from, by their names in conf/."""

from scoreline.calibration.ranking import Families
from scoreline.schedules.base import Schedule
from scoreline.schedules.spacings import Blend, LogSNR, Polynomial, Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.adaptive import Adaptive
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.deis import DEIS
from scoreline.solvers.dpm_multistep import DPMMultistep
from scoreline.solvers.frames import Velocity
from scoreline.solvers.ipndm import IPNDM
from scoreline.solvers.runge_kutta import heun
from scoreline.solvers.tableau import Solver
from scoreline.solvers.unipc import UniPC

STARTS = ("velocity_ab3", "ipndm2", "ipndm3")
"""Solvers from which tableaus are learned."""

START_SCHEDULES = ("linear_vp_few", "linear_vp_quadratic")
"""Schedules of these solvers."""


def closed_forms(sigma_data: float | None = None) -> Families:
    """Return solvers and schedules for any process: none of them reads a native time, since a function has none.

    Args:
        sigma_data: standard deviation of the data, for the solvers in velocity prediction; None leaves these out.
    """
    solvers: dict[str, Solver | Adaptive] = {
        "ddim": DDIM(),
        "ipndm2": IPNDM(2),
        "ipndm3": IPNDM(3),
        "ipndm4": IPNDM(4),
        "deis_logrhoab3": DEIS(3, LogSNR()),
        "dpmpp_2m": DPMMultistep(2, "data"),
        "dpmpp_3m": DPMMultistep(3, "data"),
        "unipc_2": UniPC(2),
        "unipc_3": UniPC(3),
        "heun": heun(),
    }
    if sigma_data is not None:
        frame, few = Velocity(sigma_data), Blend(LinearVP(), 0.3)
        solvers |= {
            "velocity_ab3": DEIS(3, few, frame=frame, analytic_first=20),
            "velocity_abm2": DEIS(2, few, frame=frame, corrector=True),
            "velocity_ipndm4": IPNDM(4, frame),
        }
    schedules: dict[str, Schedule] = {
        "karras": Power(7),
        "log_snr": LogSNR(),
        "linear_vp_quadratic": Polynomial(LinearVP(), 2),
        "linear_vp_cubic": Polynomial(LinearVP(), 3),
        "linear_vp_few": Polynomial(LinearVP(), 2.4),
    }
    return Families(solvers, schedules)
