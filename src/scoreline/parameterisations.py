"""Parameterisations: how a network's output becomes E[x_0 | x], one column of EDM's Table 1 per class.

    D(x, rho) = skip(rho) x + out(rho) F(in(rho) x, noise(rho))

with x in unit-signal coordinates, so the native scale alpha(t) of a network lives in `in` and nowhere else.

Source: Karras et al. (2022), arXiv:2206.00364, Eq. 7 and Table 1.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.runtime.device import to_device
from scoreline.schedules.base import NoiseSchedule


class Scalings(NamedTuple):
    """skip, out, in and noise label of D = skip x + out F(in x, noise), each of rho's shape and dtype."""

    skip: Tensor
    out: Tensor
    in_: Tensor
    noise: Tensor


class Numbers(NamedTuple):
    """`Scalings` of one noise level as numbers, which need no copy to a device."""

    skip: float
    out: float
    in_: float
    noise: float


KEPT_LEVELS = 4096
"""Number of noise levels whose `Numbers` are kept, many times that of a run."""


class Parameterisation(ABC):
    """The scalings of D = skip x + out F(in x, noise) as functions of rho. Subclasses are frozen dataclasses.

    Subclass this for a network whose input, output or noise label follows another convention.

    Attributes:
        output_factor: the network returns this many times the image's channels, of which the first are used.
        unit_skip: whether skip is 1 at every level, so that eps is the network's output times a number.
    """

    output_factor: int = 1
    unit_skip: ClassVar[bool] = False

    def at(self, rho: float) -> Numbers:
        """Return the scalings at one noise level, computed once: every batch of a run asks for the same levels."""
        numbers = self._kept.get(rho)
        if numbers is None:
            if len(self._kept) >= KEPT_LEVELS:
                self._kept.clear()
            numbers = self._kept[rho] = self._computed(rho)
        return numbers

    def _computed(self, rho: float) -> Numbers:
        if rho == math.inf:
            return self.at_infinity()
        return Numbers(*map(float, self(torch.tensor(rho, dtype=torch.float64))))

    def at_infinity(self) -> Numbers:
        """Return the scalings of D = skip y + out F(in y, noise) at rho = infinity, where y = x / rho is pure noise.

        Raises:
            InputError: if they have no limit there, as in noise prediction.
        """
        raise InputError(
            f"sigma_max=inf: {type(self).__name__} has no limit at infinite noise, where the model predicts nothing of "
            "the data; use a finite sigma_max"
        )

    @cached_property
    def _kept(self) -> dict[float, Numbers]:
        return {}

    @abstractmethod
    def __call__(self, rho: Tensor) -> Scalings:
        """Return the scalings at noise levels rho > 0 of any shape; float64 in, float64 out."""


@dataclass(frozen=True)
class NoisePrediction(Parameterisation):
    """The network predicts eps from the native state: skip 1, out -rho, in alpha, noise scale t(rho) + shift.

    Use this for DDPM's and score_sde's VP networks.

    Attributes:
        noise_schedule: the process, for alpha and t.
        label_scale: 999 for score_sde's continuous VP networks, 1 for discrete ones, whose label is the index.
        label_shift: for checkpoints whose labels are off by one.
        round_labels: round the label to the nearest integer; otherwise fractional labels reach the network.
        output_factor: 2 for networks that also learned a variance, whose channels follow those of eps and are not used.

    Source: Ho et al. (2020), arXiv:2006.11239; Song et al. (2021), arXiv:2011.13456.
    """

    unit_skip = True
    noise_schedule: NoiseSchedule
    label_scale: float = 999.0
    label_shift: float = 0.0
    round_labels: bool = False
    output_factor: int = 1

    def __call__(self, rho: Tensor) -> Scalings:
        t = self.noise_schedule(rho)
        return Scalings(torch.ones_like(rho), -rho, self.noise_schedule.alpha(t), self._label(t))

    def _label(self, t: Tensor) -> Tensor:
        label = t * self.label_scale + self.label_shift
        return label.round() if self.round_labels else label


@dataclass(frozen=True)
class VelocityPrediction(Parameterisation):
    """The network predicts v = alpha eps - sigma x_0 of a VP process: x_0 = alpha x_t - sigma v.

    In unit-signal coordinates skip = 1 / (1 + rho^2), out = -rho / sqrt(1 + rho^2), in = 1 / sqrt(1 + rho^2); at
    rho = infinity D = -v(x / rho). Use this for v-prediction networks.

    Attributes:
        noise_schedule: the process, for t.
        label_scale: noise label / t.
        output_factor: 2 for networks that also learned a variance, as in `NoisePrediction`.

    Source: Salimans & Ho (2022), arXiv:2202.00512, Sec. 4 and App. D.
    """

    noise_schedule: NoiseSchedule
    label_scale: float = 999.0
    output_factor: int = 1

    def __call__(self, rho: Tensor) -> Scalings:
        alpha = (1 + rho**2).rsqrt()
        return Scalings(alpha**2, -rho * alpha, alpha, self.noise_schedule(rho) * self.label_scale)

    def at_infinity(self) -> Numbers:
        return Numbers(0.0, -1.0, 1.0, self.noise_schedule.t_max * self.label_scale)


@dataclass(frozen=True)
class FlowVelocity(Parameterisation):
    """The network predicts v = eps - x_0 from the state of rectified flow z = (1 - s) x_0 + s eps: x_0 = z - s v.

    In unit-signal coordinates skip = in = 1 / (1 + rho), out = -rho / (1 + rho); at rho = infinity
    D = x / rho - v(x / rho). Use this for flow-matching networks, and to train with `FlowWeight`.

    Attributes:
        noise_schedule: the process, for t.
        label_scale: noise label / t; 1000 for the networks of the diffusers library.

    Source: Liu et al. (2022), arXiv:2209.03003; Lipman et al. (2022), arXiv:2210.02747.
    """

    noise_schedule: NoiseSchedule
    label_scale: float = 1000.0

    def __call__(self, rho: Tensor) -> Scalings:
        alpha = 1 / (1 + rho)
        return Scalings(alpha, -rho * alpha, alpha, self.noise_schedule(rho) * self.label_scale)

    def at_infinity(self) -> Numbers:
        return Numbers(1.0, -1.0, 1.0, self.noise_schedule.t_max * self.label_scale)


@dataclass(frozen=True)
class DataPrediction(Parameterisation):
    """The network predicts x_0 from the native state x_t: skip 0, out 1, in alpha; at rho = infinity it sees x / rho.

    Use this for networks that predict the sample itself.

    Attributes:
        noise_schedule: the process, for alpha and t.
        label_scale: noise label / t.
        output_factor: 2 for networks that also learned a variance, as in `NoisePrediction`.

    Source: Ho et al. (2020), arXiv:2006.11239, Sec. 3.2; Salimans & Ho (2022), arXiv:2202.00512, App. D.
    """

    noise_schedule: NoiseSchedule
    label_scale: float = 999.0
    output_factor: int = 1

    def __call__(self, rho: Tensor) -> Scalings:
        t = self.noise_schedule(rho)
        return Scalings(torch.zeros_like(rho), torch.ones_like(rho), self.noise_schedule.alpha(t), t * self.label_scale)

    def at_infinity(self) -> Numbers:
        return Numbers(0.0, 1.0, 1.0, self.noise_schedule.t_max * self.label_scale)


@dataclass(frozen=True)
class ScorePrediction(Parameterisation):
    """The network predicts the score of the native state, grad log p_t(x_t) = -eps / sigma(t): skip 1, out rho sigma.

    Use this for a network whose output is the score itself; those of score_sde's VP and VE models are
    `NoisePrediction` and `VarianceExploding`, since their outputs are scaled.

    Attributes:
        noise_schedule: the process, for alpha, sigma and t.
        label_scale: noise label / t.

    Source: Song et al. (2021), arXiv:2011.13456, Eq. 7.
    """

    unit_skip = True
    noise_schedule: NoiseSchedule
    label_scale: float = 1.0

    def __call__(self, rho: Tensor) -> Scalings:
        t = self.noise_schedule(rho)
        alpha = self.noise_schedule.alpha(t)
        return Scalings(torch.ones_like(rho), rho**2 * alpha, alpha, t * self.label_scale)


@dataclass(frozen=True)
class VarianceExploding(Parameterisation):
    """NCSN++: skip 1, out rho, in 1, noise ln(rho / 2). The output is minus the predicted eps.

    Use this for score_sde's VE networks.

    Source: Karras et al. (2022), arXiv:2206.00364, Table 1, column VE.
    """

    unit_skip = True

    def __call__(self, rho: Tensor) -> Scalings:
        one = torch.ones_like(rho)
        return Scalings(one, rho, one, torch.log(rho / 2))


@dataclass(frozen=True)
class IDDPM(Parameterisation):
    """Improved DDPM: skip 1, out -rho, in 1 / sqrt(1 + rho^2), noise M - 1 - argmin_j |u_j - rho|, learned variance.

    u_M = 0 and u_{j-1} = sqrt((u_j^2 + 1) / max(abar_{j-1} / abar_j, C_1) - 1) with
    abar_j = sin^2(pi/2 j / (M (C_2 + 1))). The network returns mean and variance channels; only the mean is used. Use
    this for networks trained by EDM's code with improved DDPM's recipe; converted iDDPM checkpoints are
    `NoisePrediction` on `DiscreteVP`.

    Attributes:
        C_1: smallest ratio of neighbouring abar.
        C_2: offset of the cosine.
        M: number of levels.
        output_factor: mean and variance channels.

    Source: Nichol & Dhariwal (2021), arXiv:2102.09672; Karras et al. (2022), arXiv:2206.00364, Table 1.
    """

    unit_skip = True
    C_1: float = 0.001
    C_2: float = 0.008
    M: int = 1000
    output_factor: int = 2

    @cached_property
    def levels(self) -> Tensor:
        """The levels u_0 > u_1 > .. > u_M = 0, (M + 1,) float64."""
        j = torch.arange(self.M + 1, dtype=torch.float64)
        abar = torch.sin(torch.pi / 2 * j / (self.M * (self.C_2 + 1))) ** 2
        ratio = (abar[:-1] / abar[1:]).clamp(min=self.C_1)
        growth = (1 / ratio).flip(0).cumprod(0).flip(0)
        return torch.cat([(growth - 1).sqrt(), torch.zeros(1, dtype=torch.float64)])

    def __call__(self, rho: Tensor) -> Scalings:
        table = to_device(self.levels, rho.device).to(rho.dtype)
        nearest = (table - rho.unsqueeze(-1)).abs().argmin(-1)
        return Scalings(torch.ones_like(rho), -rho, (1 + rho**2).rsqrt(), (self.M - 1 - nearest).to(rho.dtype))


@dataclass(frozen=True)
class EDMPreconditioning(Parameterisation):
    """EDM's preconditioning:

        skip = s^2 / (rho^2 + s^2),  out = rho s / sqrt(rho^2 + s^2),  in = 1 / sqrt(rho^2 + s^2),  noise = ln(rho) / 4.

    Use this for EDM's networks, and to train with `EDMWeight` and `LogNormal`.

    Attributes:
        sigma_data: s, the standard deviation of a pixel of the data in [-1, 1].

    Source: Karras et al. (2022), arXiv:2206.00364, Table 1, column EDM.
    """

    sigma_data: float = 0.5

    def __call__(self, rho: Tensor) -> Scalings:
        total = rho**2 + self.sigma_data**2
        return Scalings(
            self.sigma_data**2 / total, rho * self.sigma_data * total.rsqrt(), total.rsqrt(), torch.log(rho) / 4
        )
