"""Read the same network with other conventions."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from scoreline.denoiser import Denoiser
from scoreline.parameterisations import Parameterisation, Scalings

Change = Callable[[Tensor, Scalings], Scalings]
"""(rho, scalings at rho) -> other scalings."""


@dataclass(frozen=True)
class Altered(Parameterisation):
    """A parameterisation that changes the scalings of another one."""

    base: Parameterisation
    change: Change

    @property
    def output_factor(self) -> int:  # type: ignore[override]
        return self.base.output_factor

    def __call__(self, rho: Tensor) -> Scalings:
        return self.change(rho, self.base(rho))


def change_scalings(denoiser: Denoiser, change: Change) -> Denoiser:
    """Return the same network with changed scalings."""
    return Denoiser(denoiser.network, Altered(denoiser.parameterisation, change)).eval()


def with_label_of(denoiser: Denoiser, factor: float) -> Denoiser:
    """Return the same network with the label of factor * rho; all other scalings stay those of rho."""
    base = denoiser.parameterisation
    return change_scalings(denoiser, lambda rho, scalings: scalings._replace(noise=base(factor * rho).noise))
