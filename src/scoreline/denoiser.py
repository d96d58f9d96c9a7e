"""A network seen as what every solver and calibration needs: E[x_0 | x] and eps in unit-signal coordinates."""

from abc import ABC, abstractmethod
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from scoreline.parameterisations import Numbers, Parameterisation, Scalings


class Denoising(nn.Module, ABC):
    """What solvers evaluate: D(x, rho) and eps = (x - D) / rho, of a network (`Denoiser`) or of other denoisers.

    x is (B, *), rho a float or (B,), keyword conditions such as `label` (B,) are handed down to the network.
    """

    @abstractmethod
    def forward(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        """D(x, rho), of x's shape and dtype."""

    @abstractmethod
    def eps(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        """(x - D(x, rho)) / rho, of x's shape and dtype, without that cancellation at small rho."""

    @abstractmethod
    def calls(self, rho: float) -> int:
        """Network calls that one evaluation of D or eps at level rho takes."""


def per_image(value: Tensor | float, x: Tensor) -> Tensor | float:
    """A number as it is, (B,) as (B, 1, ..) of the dtype and on the device of x (B, *)."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return float(value)
    return value.to(x).reshape(-1, *[1] * (x.ndim - 1))


def _labels(noise: Tensor | float, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Noise labels (count,). A single one is filled in, not copied: a copy to a GPU waits for all that runs there."""
    if not isinstance(noise, Tensor) or (noise.ndim == 0 and not noise.requires_grad):
        return torch.full((count,), float(noise), dtype=dtype, device=device)
    return noise.to(device=device, dtype=dtype).expand(count)


class Denoiser(Denoising):
    """D(x, rho) = E[x_0 | x_0 + rho eps = x], whatever the network predicts.

    Scalings are computed in float64; the state keeps its dtype; the network runs in the dtype of its own parameters
    and is cast back. x is (B, *), rho a float or (B,) (float64 for full precision); keyword conditions such as
    `label` (B,) go to the network untouched.

    Attributes:
        autocast: what the network's convolutions and matrix products are computed in; None for its own precision.
    """

    def __init__(self, network: nn.Module, parameterisation: Parameterisation) -> None:
        super().__init__()
        self.network = network
        self.parameterisation = parameterisation
        self.autocast: torch.dtype | None = None

    def forward(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        """E[x_0 | x] of x's shape and dtype."""
        _, scalings = self._scalings(x, rho)
        output = self._evaluate(x, scalings, condition)
        return per_image(scalings.skip, x) * x + per_image(scalings.out, x) * output

    def eps(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        """E[eps | x] = (x - D(x, rho)) / rho = ((1 - skip) x - out F) / rho, free of cancellation at small rho."""
        level, scalings = self._scalings(x, rho)
        output = self._evaluate(x, scalings, condition)
        predicted = per_image(-scalings.out / level, x) * output
        if self.parameterisation.unit_skip:
            return predicted
        return predicted + per_image((1 - scalings.skip) / level, x) * x

    def calls(self, rho: float) -> int:
        """One."""
        return 1

    def _scalings(self, x: Tensor, rho: Tensor | float) -> tuple[Tensor, Scalings] | tuple[float, Numbers]:
        """The level in float64 and its scalings: numbers of a number, tensors (B,) of (B,)."""
        if not isinstance(rho, Tensor):
            return float(rho), self.parameterisation.at(float(rho))
        level = rho.to(x.device if rho.ndim else "cpu", torch.float64)
        return level, self.parameterisation(level)

    def _evaluate(self, x: Tensor, scalings: Scalings | Numbers, condition: dict[str, Tensor | None]) -> Tensor:
        parameter = next(self.network.parameters(), None)
        dtype = x.dtype if parameter is None else parameter.dtype
        scaled = (per_image(scalings.in_, x) * x).to(dtype)
        with torch.autocast(x.device.type, self.autocast) if self.autocast else nullcontext():
            output: Tensor = self.network(scaled, _labels(scalings.noise, len(x), dtype, x.device), **condition)
        if self.parameterisation.output_factor > 1:
            output = output[:, : x.shape[1]]
        return output.to(x.dtype)
