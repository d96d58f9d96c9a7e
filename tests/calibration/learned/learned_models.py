"""An exact model, its closed forms and a subject, for the tests of learned tableaus."""

from functools import cache

import torch
from torch import Tensor, nn

from scoreline.calibration.subject import Subject
from scoreline.commands.certify import maker
from scoreline.denoiser import Denoiser
from scoreline.networks.gaussian_mixture import GaussianMixtureScore
from scoreline.parameterisations import VarianceExploding
from scoreline.schedules.spacings import Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.deis import DEIS
from scoreline.solvers.frames import Velocity
from scoreline.solvers.tableau import Solver, Tableau, build_tableau

SPAN = (20.0, 0.05)
SHAPE = (3, 1, 1)


VELOCITY = {
    "velocity": DEIS(3, LinearVP(), frame=Velocity(0.7)),
    "velocity, first slope free": DEIS(3, LinearVP(), frame=Velocity(0.2), analytic_first=20),
}


@cache
def solver(name: str) -> Solver:
    return VELOCITY[name] if name in VELOCITY else maker(name, [])(LinearVP())


@cache
def start(name: str, nfe: int = 6) -> Tableau:
    return build_tableau(solver(name), Power(7), SPAN, nfe, "none").unrolled()


def anisotropic() -> GaussianMixtureScore:
    """One Gaussian with standard deviations 0.15, 0.5 and 1, off centre."""
    net = GaussianMixtureScore(1, 3, 1, full_covariance=True)
    net.means.data = torch.tensor([[0.5, -1.0, 0.2]], dtype=torch.float64)
    net.variances.data = torch.tensor([[0.15, 0.5, 1.0]], dtype=torch.float64) ** 2
    return net


def subject(seeds: range, net: nn.Module | None = None, batch_size: int = 16) -> Subject:
    run = DEIS(3, Power(1))(Power(7), *SPAN, 100)
    return Subject(Denoiser(net or anisotropic(), VarianceExploding()), run, SHAPE, seeds, batch_size)


def zeros(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64)


class Counting(nn.Module):
    """How the network behind it was called."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.rows, self.labels = net, 0, set[int]()

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        self.rows = max(self.rows, len(x))
        if label is not None:
            self.labels |= set(label.tolist())
        return self.net(x, noise, label)
