"""The logarithm of a loss as a function of the noise level, learned with the network to weigh levels evenly."""

import torch
from torch import Tensor, nn

from scoreline.networks.embeddings import Fourier
from scoreline.values import whole_number


class Uncertainty(nn.Module):
    """u(rho) = sum_k w_k f_k(ln(rho) / 4) for the loss l / exp(u) + u, with fixed Fourier features f; w = 0 at first.

    At given l(rho) that loss is least at u = ln l, where its gradient by the network is that of ln l: every noise level
    then counts by the relative change of its loss, whatever weight l was given. Two weights lambda that differ by any
    positive function of rho therefore train alike once u has settled. Use it to be rid of the choice of lambda; the
    density of noise levels still counts.

    The published layer is normalised to weights of unit norm and starts at random; this one starts at u = 0, the plain
    loss, and is not bounded.

    Args:
        frequencies: half the number of features, which are a sine and a cosine each. Published: 128 features.

    Source: Karras et al. (2024), arXiv:2312.02696, Eqs. 14 to 16 and 21; Kendall et al. (2018), arXiv:1705.07115.

    Raises:
        InputError: unless `frequencies` is a whole number from 1 to 4096.
    """

    def __init__(self, frequencies: int = 64) -> None:
        super().__init__()
        features = 2 * whole_number("objective.uncertainty.frequencies", frequencies, most=4096)
        self.features = Fourier(features)
        self.weight = nn.Parameter(torch.zeros(features))

    def forward(self, rho: Tensor) -> Tensor:
        """Return u for noise levels rho (B,), float32: (B,)."""
        features: Tensor = self.features((rho.log() / 4).float())
        return (features * self.weight).sum(1)  # no matrix product, which autocast would round
