"""The training objective: a density of noise levels, a weight and a target."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.networks.uncertainty import Uncertainty
from scoreline.parameterisations import IDDPM
from scoreline.runtime.device import to_device
from scoreline.schedules.base import NoiseSchedule, Schedule
from scoreline.schedules.discrete import DiscreteVP
from scoreline.targets import Reference, Target
from scoreline.values import real_number

Weight = Callable[[Tensor], Tensor]
"""lambda(rho): (B,) -> (B,)."""


@dataclass(frozen=True)
class InverseVariance:
    """lambda = 1 / rho^2: the squared error of eps, DDPM's simple loss. Use it with networks that predict eps.

    Source: Ho et al. (2020), arXiv:2006.11239, Eq. 14.
    """

    def __call__(self, rho: Tensor) -> Tensor:
        return rho**-2


@dataclass(frozen=True)
class EDMWeight:
    """lambda = (rho^2 + s^2) / (rho s)^2 = 1 / out^2, s = sigma_data, for networks with `EDMPreconditioning`.

    Use it with the density `LogNormal`, as EDM does.

    Source: Karras et al. (2022), arXiv:2206.00364, Table 1.
    """

    sigma_data: float = 0.5

    def __call__(self, rho: Tensor) -> Tensor:
        return (rho**2 + self.sigma_data**2) / (rho * self.sigma_data) ** 2


@dataclass(frozen=True)
class FlowWeight:
    """lambda = (1 + 1 / rho)^2 = 1 / t^2: the squared error of the velocity eps - x_0, the flow-matching loss.

    Use it with `FlowVelocity`, and with the density `LogNormal` of mean 0, for which the time t = rho / (1 + rho) is
    logit-normal, or with `UniformTime`.

    Source: Lipman et al. (2022), arXiv:2210.02747, Eq. 14; the density: Esser et al. (2024), arXiv:2403.03206,
    Sec. 3.1.
    """

    def __call__(self, rho: Tensor) -> Tensor:
        return (1 + 1 / rho) ** 2


@dataclass(frozen=True)
class MinSNR:
    """lambda = min(SNR, gamma), SNR = 1 / rho^2: the error of x_0, but of eps at high noise.

    Given for |D - x_0|^2 = rho^2 |eps error|^2, and |v error|^2 = (SNR + 1) |D - x_0|^2 on a variance-preserving
    process, it is the published weight of each prediction:

        x_0: min(SNR, gamma),    eps: min(SNR, gamma) / SNR = min(1, gamma rho^2),    v: min(SNR, gamma) / (SNR + 1).

    Use it with the densities of `objective=vp` and `ddpm` where `InverseVariance` spends too much on small noise.

    Attributes:
        gamma: the largest weight, reached for rho < 1 / sqrt(gamma). Published: 5.

    Source: Hang et al. (2023), arXiv:2303.09556.

    Raises:
        InputError: unless gamma is a positive number.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        real_number("objective.weight.gamma", self.gamma)

    def __call__(self, rho: Tensor) -> Tensor:
        return (rho**-2).clamp(max=self.gamma)


@dataclass(frozen=True)
class Batch:
    """A batch of training images with the random numbers that noise them.

    Attributes:
        clean: (B, C, H, W) in [-1, 1].
        u: (B,) float64, uniform on [0, 1]: the coordinate of the noise level.
        eps: (B, C, H, W), standard normal.
        label: the network's class labels (B,), negative for none; None for an unconditional network.
        augment: augmentation labels (B, A) or None.
        reference: the images that a stable target averages over.
    """

    clean: Tensor
    u: Tensor
    eps: Tensor
    label: Tensor | None = None
    augment: Tensor | None = None
    reference: Reference | None = None

    def split(self, size: int) -> Iterator["Batch"]:
        """Yield parts of at most `size` images, each with the whole reference."""
        for start in range(0, len(self.clean), size):
            yield self.rows(slice(start, start + size))

    def rows(self, rows: slice) -> "Batch":
        """Return some of the images, with the whole reference."""
        label, augment = (None if part is None else part[rows] for part in (self.label, self.augment))
        whole = self.reference
        reference = None if whole is None else replace(whole, source=whole.source[rows])
        return Batch(self.clean[rows], self.u[rows], self.eps[rows], label, augment, reference)


@dataclass(frozen=True)
class DenoisingObjective:
    """The denoising objective L = E lambda(rho) |D(x_0 + rho eps, rho) - target|^2 / d.

    rho = density.inverse(u), u ~ U(0, 1), and d is the number of pixels times channels: under `InverseVariance`,
    predicting eps = 0 has the loss 1. Levels and targets are in float64, the error and its mean in float32, whatever
    precision the network computes in. Use it as the loss of a training loop of your own; `train.py` has the same.

    Attributes:
        density: the map from u to noise levels.
        weight: lambda.
        target: `Denoising` (plain DSM), `StableTarget` (STF) or `StableVM`.
        uncertainty: learns a further factor of lambda in training; `balance` applies it, the loss above does not, so
            that losses compare.
    """

    density: Schedule
    weight: Weight
    target: Target
    uncertainty: Uncertainty | None = None

    def __call__(self, denoiser: Denoiser, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the per-image loss (B,) float32 and the noise levels rho (B,) float64."""
        rho = self.density.inverse(batch.u)
        x = batch.clean + rho.to(batch.clean.dtype).reshape(-1, 1, 1, 1) * batch.eps
        with torch.no_grad():
            target = self.target(x, rho, batch.clean, batch.label, batch.reference)
        condition = {} if batch.augment is None else {"augment": batch.augment}
        error = (denoiser(x, rho, label=batch.label, **condition) - target).flatten(1).square().mean(1)
        return self.weight(rho).to(error.dtype) * error, rho

    def balance(self, loss: Tensor, rho: Tensor) -> Tensor:
        """Return what training minimises: loss / exp(u(rho)) + u(rho), or without `uncertainty` the loss itself.

        Args:
            loss: (B,) of this objective.
            rho: its noise levels (B,).
        """
        if self.uncertainty is None:
            return loss
        u: Tensor = self.uncertainty(rho)
        return loss / u.exp() + u


@dataclass(frozen=True)
class LogNormal(Schedule):
    """EDM's density, ln rho ~ N(mean, std^2): u = Phi((ln rho - mean) / std).

    Use this to train with `EDMWeight` and `EDMPreconditioning`.

    Source: Karras et al. (2022), arXiv:2206.00364, Table 1 (P_mean = -1.2, P_std = 1.2).
    """

    mean: float = -1.2
    std: float = 1.2

    def __call__(self, rho: Tensor) -> Tensor:
        quantile: Tensor = torch.special.ndtr((torch.log(rho) - self.mean) / self.std)
        return quantile

    def inverse(self, u: Tensor) -> Tensor:
        return torch.exp(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True)
class UniformTime(Schedule):
    """The native time of a process, uniform on [start, stop]: u = (t(rho) - start) / (stop - start).

    Use this to train continuous VP and VE networks as score_sde does.

    Source: Song et al. (2021), arXiv:2011.13456 (continuous VP: start 1e-5, stop 1).

    Raises:
        ValueError: unless start < stop.
    """

    noise_schedule: NoiseSchedule
    start: float = 1e-5
    stop: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and self.start < self.stop):
            raise ValueError(f"start={self.start} and stop={self.stop}: choose start < stop")

    def __call__(self, rho: Tensor) -> Tensor:
        return (self.noise_schedule(rho) - self.start) / (self.stop - self.start)

    def inverse(self, u: Tensor) -> Tensor:
        return self.noise_schedule.inverse(self.start + (self.stop - self.start) * u)


@dataclass(frozen=True)
class UniformLevels(Schedule):
    """One of M given levels with equal probability: rho = level[floor(M u)], as discrete processes are trained.

    Use this to train discrete networks as DDPM does. The map is a staircase: u(rho) is the middle of the stair of the
    nearest level, and inverse(u(rho)) that level.

    Attributes:
        levels: increasing noise levels, all positive.

    Raises:
        InputError: if the levels do not increase or are not positive.
    """

    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.levels or self.levels[0] <= 0 or not all(map(float.__lt__, self.levels, self.levels[1:])):
            raise InputError("objective.density: its noise levels must be positive and increase")

    @cached_property
    def _table(self) -> Tensor:
        return torch.tensor(self.levels, dtype=torch.float64)

    def __call__(self, rho: Tensor) -> Tensor:
        table = to_device(self._table, rho.device).to(rho.dtype)
        right = torch.searchsorted(table, rho.contiguous()).clamp(1, len(table) - 1)
        nearest = torch.where(rho - table[right - 1] < table[right] - rho, right - 1, right)
        return (nearest + 0.5) / len(table)

    def inverse(self, u: Tensor) -> Tensor:
        table = to_device(self._table, u.device).to(u.dtype)
        return table[(u * len(table)).floor().clamp(0, len(table) - 1).to(torch.int64)]


def uniform_index(noise_schedule: DiscreteVP) -> UniformLevels:
    """Return the levels of a discrete process at its training indices 0 .. steps - 1, for DDPM's objective.

    Source: Ho et al. (2020), arXiv:2006.11239, Algorithm 1.
    """
    index = torch.arange(noise_schedule.steps, dtype=torch.float64)
    return UniformLevels(tuple(noise_schedule.inverse(index).tolist()))


def uniform_iddpm(parameterisation: IDDPM) -> UniformLevels:
    """Return the levels u_0 > .. > u_{M-1} of improved DDPM, in increasing order.

    Source: Nichol & Dhariwal (2021), arXiv:2102.09672; levels as in Karras et al. (2022), arXiv:2206.00364, Table 1.
    """
    return UniformLevels(tuple(parameterisation.levels[:-1].flip(0).tolist()))
