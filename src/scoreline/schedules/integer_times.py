"""Steps at whole native times, the only noise levels on which a discrete network was trained."""

from dataclasses import dataclass, replace

from torch import Tensor

from scoreline.errors import InputError
from scoreline.schedules.base import NoiseSchedule, Schedule


@dataclass(frozen=True)
class IntegerTimes(Schedule):
    """The levels of another spacing, each rounded to the nearest whole native time of a discrete process:

        u = spacing(rho),    rho(u) = noise_schedule.inverse(round(t(spacing.inverse(u)))),    ties to the even time.

    Use this for a network that was trained on whole labels and does badly between them. It is exact: the step itself
    goes to the level that the label means, whereas `NoisePrediction.round_labels` rounds the label alone, so the
    network sees a slightly wrong level. The two ends of a run are not rounded; by default (t_min, t_max) they are
    whole. The map is not invertible, so it cannot be the variable of a polynomial.

    Attributes:
        spacing: the other spacing.
        noise_schedule: the discrete process.

    Source: integer times as in the JAX code of Zhang & Chen (2023), arXiv:2204.13902, which truncates instead.

    Raises:
        InputError: for a process whose time is continuous.
    """

    spacing: Schedule
    noise_schedule: NoiseSchedule

    def __post_init__(self) -> None:
        if not len(self.noise_schedule.knots()):
            raise InputError(
                f"schedule: {type(self.noise_schedule).__name__} is a continuous process and has no whole times; "
                "use schedule=time_quadratic"
            )

    def on(self, sigma_max: float, sigma_min: float) -> "IntegerTimes":
        return replace(self, spacing=self.spacing.on(sigma_max, sigma_min))

    def __call__(self, rho: Tensor) -> Tensor:
        return self.spacing(rho)

    def inverse(self, u: Tensor) -> Tensor:
        return self.noise_schedule.inverse(self.noise_schedule(self.spacing.inverse(u)).round())

    def knots(self) -> Tensor:
        return self.spacing.knots()
