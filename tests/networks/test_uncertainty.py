"""The learned logarithm of a loss: where it begins and where it ends."""

import torch
from torch import Tensor

from scoreline.networks.uncertainty import Uncertainty
from scoreline.objective import LogNormal

QUANTILES = LogNormal().inverse((torch.arange(512, dtype=torch.float64) + 0.5) / 512)


def loss_of(rho: Tensor) -> Tensor:
    """A loss that falls and rises by factors of ten."""
    return (0.05 + rho**2) / (0.01 + rho) * torch.exp(torch.sin(2 * rho.log()))


def test_it_begins_with_the_plain_loss() -> None:
    assert torch.equal(Uncertainty()(QUANTILES), torch.zeros(512))


def test_it_ends_at_the_logarithm_of_the_loss() -> None:
    """Of given losses l the mean of l / exp(u) + u is least at u = ln l, where it is 1 + ln l."""
    torch.manual_seed(0)
    uncertainty, losses = Uncertainty(), loss_of(QUANTILES).float()
    optimiser = torch.optim.Adam(uncertainty.parameters(), 1e-2)
    for _ in range(1500):
        optimiser.zero_grad()
        u = uncertainty(QUANTILES)
        found = (losses / u.exp() + u).mean()
        found.backward()
        optimiser.step()
    error = (uncertainty(QUANTILES) - losses.log()).detach()
    assert float(error.square().mean().sqrt()) < 0.02
    assert float(found.detach()) - float(1 + losses.log().mean()) < 1e-3


def test_half_precision_does_not_reach_it() -> None:
    uncertainty = Uncertainty()
    torch.nn.init.normal_(uncertainty.weight)
    exact = uncertainty(QUANTILES)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(uncertainty(QUANTILES), exact)
    assert exact.dtype == torch.float32
