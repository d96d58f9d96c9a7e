"""The time steps of DEIS-SN's released code, and its relative time tau."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.schedules.base import NoiseSchedule, Schedule

RESOLUTION = 1000
"""The square root of time is rounded to a multiple of 1 / 1000."""


@dataclass(frozen=True)
class DEISSNTimes(Schedule):
    """Quadratic time rounded to a lattice: u = sqrt(tau), tau_n = (q_n / 1000)^2, q_n = round(1000 (1 - n / N)).

    tau = (t - t(0)) / (t_max - t(0)), where t(0) is the native time of clean data: -1 for `DiscreteVP`, 0 for
    `LinearVP`. The published steps go down to tau = 0, which needs sigma_min=0. Steps that start or end elsewhere are
    uniform in u between the ends and rounded alike. Ties go to the even q; N > 1000 repeats a level. Use this to
    reproduce DEIS-SN's tables; `Polynomial` of power 2 is the same spacing without the lattice.

    Source: released code of Xia et al. (2023), arXiv:2311.00157, `timestep_spacing: quadratic`. There q_n comes from a
    floating-point range, which for some N (61, 103, 121, ..) has one point too many; here it is exact.

    Raises:
        InputError: for a process that does not reach clean data.
    """

    noise_schedule: NoiseSchedule

    def __post_init__(self) -> None:
        first, last = relative_ends(self.noise_schedule)
        if not (torch.tensor([first, last]).isfinite().all() and first < last):
            raise InputError(
                f"schedule=deis_sn_published: {type(self.noise_schedule).__name__} has no time of clean data; "
                "use schedule=time_quadratic"
            )

    def __call__(self, rho: Tensor) -> Tensor:
        return relative_time(self.noise_schedule, rho).clamp(min=0).sqrt()

    def inverse(self, u: Tensor) -> Tensor:
        # rounded to 1e-6 first, so that a tie in exact arithmetic stays one in spite of rounding errors of u
        q = ((u * RESOLUTION * 1e6).round() / 1e6).round()
        return self.noise_schedule.inverse(native_time(self.noise_schedule, (q / RESOLUTION) ** 2))

    def knots(self) -> Tensor:
        return self.noise_schedule.knots()


def relative_ends(noise_schedule: NoiseSchedule) -> tuple[float, float]:
    """Return the native times (t(0), t_max) of clean data and of the first step: tau = 0 and 1."""
    return float(noise_schedule(torch.zeros((), dtype=torch.float64))), noise_schedule.t_max


def relative_time(noise_schedule: NoiseSchedule, rho: Tensor) -> Tensor:
    """Return tau(rho) = (t - t(0)) / (t_max - t(0))."""
    first, last = relative_ends(noise_schedule)
    return (noise_schedule(rho) - first) / (last - first)


def native_time(noise_schedule: NoiseSchedule, tau: Tensor) -> Tensor:
    """Return t = t(0) + tau (t_max - t(0))."""
    first, last = relative_ends(noise_schedule)
    return first + (last - first) * tau
