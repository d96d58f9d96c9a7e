"""Rectified flow: the straight path between data and noise, whose noise level is infinite at t = 1."""

import math
from dataclasses import dataclass

from torch import Tensor

from scoreline.errors import InputError
from scoreline.schedules.base import NoiseSchedule


@dataclass(frozen=True)
class RectifiedFlow(NoiseSchedule):
    """The process of flow matching, x_t = (1 - s) x_0 + s eps, s = rho / (1 + rho), with a shift k of its time:

        rho(t) = k t / (1 - t),    s(t) = k t / (1 + (k - 1) t),    t in [0, 1].

    At t = 1 the state is noise alone and rho is infinite; solvers start there exactly. Without a shift t is s itself.
    Use this for flow models, and as a schedule for steps uniform in shifted time: a shift k > 1 moves steps towards
    noise, as large images need. Stable Diffusion 3 takes k = 3, FLUX k = exp(mu) (`flow_shift`).

    Attributes:
        shift: k.
        t_min: time at which solvers stop by default; the last step to clean data is `final=denoise`.
        t_max: time at which solvers start by default.

    Raises:
        InputError: unless 0 < shift < inf.

    Source: Liu et al. (2022), arXiv:2209.03003; Lipman et al. (2022), arXiv:2210.02747; the shift: Esser et al. (2024),
    arXiv:2403.03206, Eq. 23.
    """

    shift: float = 1.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise InputError(f"schedule.shift={self.shift}: must be a number greater than 0; 1 is no shift")

    def __call__(self, rho: Tensor) -> Tensor:
        return 1 / (1 + self.shift / rho)

    def inverse(self, u: Tensor) -> Tensor:
        return self.shift * u / (1 - u)

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t) / (1 + (self.shift - 1) * t)


def flow_shift(
    tokens: float, base_shift: float = 0.5, max_shift: float = 1.15, base_tokens: int = 256, max_tokens: int = 4096
) -> float:
    """Return the shift k = exp(mu) for an image of this many tokens, mu linear in their number.

    Use it as `RectifiedFlow(flow_shift(tokens))` for models whose shift depends on the resolution.

    Args:
        tokens: number of latent patches of an image.
        base_shift: mu of `base_tokens`.
        max_shift: mu of `max_tokens`.
        base_tokens: number of patches of the smallest images.
        max_tokens: number of patches of the largest images.

    Source: Esser et al. (2024), arXiv:2403.03206, Sec. 5.3.2; the line and its defaults as FLUX has them.
    """
    slope = (max_shift - base_shift) / (max_tokens - base_tokens)
    return math.exp(base_shift + slope * (tokens - base_tokens))
