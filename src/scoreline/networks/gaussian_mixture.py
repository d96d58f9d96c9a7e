"""The exact score of a mixture of Gaussians in the place of a trained network."""

import torch
from torch import Tensor, nn

from scoreline.errors import InputError
from scoreline.networks.exact import FullGaussianMixture, GaussianMixture


class GaussianMixtureScore(nn.Module):
    """F(x (B, C, H, W), ln(rho / 2) (B,)) = -E[eps | x], for the parameterisation `VarianceExploding`.

    The distribution of x_0, an image read as a vector of d = channels resolution^2 numbers, is the weights:
    `means` (M, d), `weights` (M,), and `stds` (M,) of a `GaussianMixture`, or `variances` (M, d) and `axes` (M, d, d)
    of a `FullGaussianMixture`. They are float64, as F is, and never trained; the default is N(0, I). Points in
    the plane are images of 2 x 1 x 1. Class and augmentation labels are ignored.

    Isotropic mixtures are evaluated by matrix products (`GaussianMixture.eps_by_products`), so that thousands of
    components are cheap; F is then right to rounding as long as |m_i| is less than about 1e5 stds.

    When to use it: to test a solver or schedule against a known answer, and to tell its error from a network's.

    Args:
        components: M.
        channels: channels of the images.
        resolution: height and width of the images.
        full_covariance: a covariance matrix for each component in place of one standard deviation.

    Raises:
        InputError: unless all three counts are positive.
    """

    def __init__(self, components: int, channels: int, resolution: int, full_covariance: bool = False) -> None:
        super().__init__()
        for key, value in (("components", components), ("channels", channels), ("resolution", resolution)):
            if value < 1:
                raise InputError(f"model.network.{key}={value}: must be at least 1")
        self.full_covariance = full_covariance
        dimension = channels * resolution**2
        self.means = _fixed(torch.zeros(components, dimension))
        self.weights = _fixed(torch.ones(components))
        if full_covariance:
            self.variances = _fixed(torch.ones(components, dimension))
            self.axes = _fixed(torch.zeros(components, dimension, dimension))
            self.axes.diagonal(dim1=1, dim2=2).fill_(1)
        else:
            self.stds = _fixed(torch.ones(components))

    def distribution(self) -> GaussianMixture | FullGaussianMixture:
        """Return the distribution of x_0, sharing memory with the weights."""
        if self.full_covariance:
            return FullGaussianMixture(self.means, self.variances, self.axes, self.weights)
        return GaussianMixture(self.means, self.stds, self.weights)

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        exact = self.distribution()
        eps = exact.eps_by_products if isinstance(exact, GaussianMixture) else exact.eps
        rho = 2 * noise.to(self.means).exp()
        return -eps(x.to(self.means).flatten(1), rho[:, None]).reshape(x.shape).to(x.dtype)


def _fixed(value: Tensor) -> nn.Parameter:
    """Return a parameter, not a buffer: device and precision of a network are those of its parameters."""
    return nn.Parameter(value.double(), requires_grad=False)
