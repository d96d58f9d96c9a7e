"""A network seen as what every solver and calibration needs: E[x_0 | x] and eps in unit-signal coordinates."""

import torch
from torch import Tensor, nn

from scoreline.parameterisations import Parameterisation, Scalings


class Denoiser(nn.Module):
    """D(x, rho) = E[x_0 | x_0 + rho eps = x], whatever the network predicts.

    Scalings are computed in float64; the state keeps its dtype; the network runs in the dtype of its own parameters
    and is cast back. x is (B, *), rho a float or (B,) (float64 for full precision); keyword conditions such as
    `label` (B,) go to the network untouched.
    """

    def __init__(self, network: nn.Module, parameterisation: Parameterisation) -> None:
        super().__init__()
        self.network = network
        self.parameterisation = parameterisation

    def forward(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        """E[x_0 | x] of x's shape and dtype."""
        scalings = self._scalings(x, rho)
        output = self._evaluate(x, scalings, condition)
        return self._like(scalings.skip, x) * x + self._like(scalings.out, x) * output

    def eps(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        """E[eps | x] = (x - D(x, rho)) / rho = ((1 - skip) x - out F) / rho, free of cancellation at small rho."""
        scalings = self._scalings(x, rho)
        output = self._evaluate(x, scalings, condition)
        level = torch.as_tensor(rho, dtype=torch.float64, device=scalings.skip.device)
        predicted = self._like(-scalings.out / level, x) * output
        if bool((scalings.skip == 1).all()):
            return predicted
        return predicted + self._like((1 - scalings.skip) / level, x) * x

    def _scalings(self, x: Tensor, rho: Tensor | float) -> Scalings:
        device = x.device if isinstance(rho, Tensor) and rho.ndim else torch.device("cpu")
        return self.parameterisation(torch.as_tensor(rho, dtype=torch.float64, device=device))

    def _evaluate(self, x: Tensor, scalings: Scalings, condition: dict[str, Tensor | None]) -> Tensor:
        parameter = next(self.network.parameters(), None)
        dtype = x.dtype if parameter is None else parameter.dtype
        label = scalings.noise.to(device=x.device, dtype=dtype).expand(len(x))
        output: Tensor = self.network((self._like(scalings.in_, x) * x).to(dtype), label, **condition)
        if self.parameterisation.output_factor > 1:
            output = output[:, : x.shape[1]]
        return output.to(x.dtype)

    @staticmethod
    def _like(scale: Tensor, x: Tensor) -> Tensor | float:
        if scale.ndim == 0:
            return float(scale)
        return scale.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
