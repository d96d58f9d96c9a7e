"""The denoiser: a network as E[x_0 | x] and eps in unit-signal coordinates, whatever it predicts."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from itertools import chain

import torch
from torch import Tensor, nn

from scoreline.parameterisations import Numbers, Parameterisation, Scalings
from scoreline.schedules.base import NoiseSchedule


class Denoising(nn.Module, ABC):
    """The interface of everything that solvers evaluate: D(x, rho) and eps = (x - D) / rho.

    `Denoiser` is that of a network; guidance and thresholding wrap others. x is (B, *), rho a float or (B,), and
    keyword conditions such as `label` (B,) go to the network.

    Attributes:
        noise_schedule: the process, if it is known, for its range and its time.
    """

    noise_schedule: NoiseSchedule | None = None

    @abstractmethod
    def forward(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        """Return D(x, rho), of x's shape and dtype; at rho = infinity x stands for x / rho."""

    @abstractmethod
    def eps(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        """Return (x - D(x, rho)) / rho, of x's shape and dtype, without that cancellation at small rho."""

    @abstractmethod
    def calls(self, rho: float) -> int:
        """Return the number of network calls that one evaluation of D or eps at level rho takes."""

    @property
    def device(self) -> torch.device:
        """Device of the parameters, else of the buffers; the CPU for a model that has neither."""
        first = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    def estimate(self, x: Tensor, rho: float, **condition: Tensor | None) -> Tensor:
        """Return what a tableau reads: eps(x, rho), and at rho = infinity D of x / rho."""
        denoised: Tensor = self(x, rho, **condition) if rho == math.inf else self.eps(x, rho, **condition)
        return denoised


def per_image(value: Tensor | float, x: Tensor) -> Tensor | float:
    """Return a number as it is, and (B,) as (B, 1, ..) of the dtype and on the device of x (B, *)."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return float(value)
    return value.to(x).reshape(-1, *[1] * (x.ndim - 1))


def _labels(noise: Tensor | float, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return noise labels (count,). A single one is filled in, since a copy to a GPU would wait for its work."""
    if not isinstance(noise, Tensor) or (noise.ndim == 0 and not noise.requires_grad):
        return torch.full((count,), float(noise), dtype=dtype, device=device)
    return noise.to(device=device, dtype=dtype).expand(count)


_FUNCTIONS: ContextVar[torch.dtype | None] = ContextVar("functions", default=None)


@contextmanager
def functions_in(dtype: torch.dtype) -> Iterator[None]:
    """Within the block, give x in this dtype to functions and to networks without parameters, whatever the state's."""
    token = _FUNCTIONS.set(dtype)
    try:
        yield
    finally:
        _FUNCTIONS.reset(token)


def function_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which a function is given x: that of `functions_in`, else x's."""
    return _FUNCTIONS.get() or x.dtype


class Denoiser(Denoising):
    """D(x, rho) = E[x_0 | x_0 + rho eps = x] = skip x + out F(in x, noise) of a network F, whatever it predicts.

    Use this to make a network of your own usable by every solver and calibration. Scalings are computed in float64; the
    state keeps its dtype; the network runs in the dtype of its own parameters and its output is cast back. x is (B, *),
    rho a float or (B,) (float64 for full precision); keyword conditions such as `label` (B,) go to the network
    unchanged.

    Args:
        network: F, called as F(x (B, *), noise label (B,), **conditions).
        parameterisation: the scalings.

    Attributes:
        autocast: dtype of the network's convolutions and matrix products; None is its own precision.
        label_dtype: least precision of the noise labels; None is that of the network's parameters, of which bfloat16
            does not tell 999 from 1000.
    """

    def __init__(self, network: nn.Module, parameterisation: Parameterisation) -> None:
        super().__init__()
        self.network = network
        self.parameterisation = parameterisation
        self.noise_schedule = getattr(parameterisation, "noise_schedule", None)
        self.autocast: torch.dtype | None = None
        self.label_dtype: torch.dtype | None = None

    def forward(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        """Return E[x_0 | x] of x's shape and dtype."""
        _, scalings = self._scalings(x, rho)
        output = self._evaluate(x, scalings, condition)
        return per_image(scalings.skip, x) * x + per_image(scalings.out, x) * output

    def eps(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        """Return E[eps | x] = (x - D) / rho = ((1 - skip) x - out F) / rho, without cancellation at small rho."""
        level, scalings = self._scalings(x, rho)
        output = self._evaluate(x, scalings, condition)
        predicted = per_image(-scalings.out / level, x) * output
        if self.parameterisation.unit_skip:
            return predicted
        return predicted + per_image((1 - scalings.skip) / level, x) * x

    def calls(self, rho: float) -> int:
        """Return one."""
        return 1

    def _scalings(self, x: Tensor, rho: Tensor | float) -> tuple[Tensor, Scalings] | tuple[float, Numbers]:
        """Return the level in float64 and its scalings: numbers for a number, tensors (B,) for (B,)."""
        if not isinstance(rho, Tensor):
            return float(rho), self.parameterisation.at(float(rho))
        level = rho.to(x.device if rho.ndim else "cpu", torch.float64)
        return level, self.parameterisation(level)

    def _evaluate(self, x: Tensor, scalings: Scalings | Numbers, condition: dict[str, Tensor | None]) -> Tensor:
        parameter = next(self.network.parameters(), None)
        dtype = function_dtype(x) if parameter is None else parameter.dtype
        scaled = (per_image(scalings.in_, x) * x).to(dtype)
        exact = dtype if self.label_dtype is None else torch.promote_types(dtype, self.label_dtype)
        label = _labels(scalings.noise, len(x), exact, x.device)
        with torch.autocast(x.device.type, self.autocast) if self.autocast else nullcontext():
            output: Tensor = self.network(scaled, label, **condition)
        if self.parameterisation.output_factor > 1:
            output = output[:, : x.shape[1]]
        return output.to(x.dtype)
