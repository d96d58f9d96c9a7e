"""`Rows` writes a tableau row by row, for methods that read best as their algorithm box."""

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch

from scoreline.solvers.frames import NOISE, Frame
from scoreline.solvers.tableau import Tableau

Weights = Mapping[int, float]
"""State number -> weight."""

NOTHING: Weights = MappingProxyType({})


class Rows:
    """A tableau under construction, in Python floats. States are known by their number; the initial state is 0.

    Use this in a new solver: `add` the rows of each step, then return `tableau()`.

    Args:
        sigma_max: noise level of the initial state.
        frame: the frame whose invariant the rows keep.

    Attributes:
        rho: noise level of every state so far.
    """

    def __init__(self, sigma_max: float, frame: Frame = NOISE) -> None:
        self.rho, self.frame = [sigma_max], frame
        self._rows: list[tuple[Weights, Weights, float]] = []
        self._clean: dict[int, int] = {}

    def add(self, rho: float, states: Weights, estimates: Weights = NOTHING, noise: float = 0.0) -> int:
        """Add the state sum_j states[j] x_j + sum_j estimates[j] eps(x_j, rho_j) + noise z; return its number.

        If sigma_max is infinite, x_0 and eps_0 stand for x_0 / rho_0 and D_0.

        Args:
            rho: its noise level.
            states: weights of states.
            estimates: weights of noise estimates.
            noise: standard deviation of the fresh noise z.
        """
        self._rows.append((states, estimates, noise))
        self.rho.append(rho)
        return len(self._rows)

    def clean(self, j: int) -> int:
        """Return the number of the state E[x_0 | x_j] = x_j - rho_j eps_j, at noise level 0, a row made on first use.

        Multistep methods that predict data keep a history of these, one tensor for each step.
        """
        if j not in self._clean:
            states, estimates = self.data({j: 1.0})
            self._clean[j] = self.add(0.0, states, estimates)
        return self._clean[j]

    def data(self, weights: Weights) -> tuple[dict[int, float], dict[int, float]]:
        """Return sum_j weights[j] E[x_0 | x_j] as weights of states and weights of estimates.

        It reads the state of `clean` where there is one, else x_j and eps_j, which is cheaper within a step.
        """
        states: dict[int, float] = {}
        estimates: dict[int, float] = {}
        for j, weight in weights.items():
            if j in self._clean:
                states[self._clean[j]] = weight
            elif self.rho[j] == math.inf:
                estimates[j] = weight
            else:
                states[j], estimates[j] = weight, -weight * self.rho[j]
        return states, estimates

    def tableau(self) -> Tableau:
        """Return the rows so far as a tableau; the last row is the sample."""
        count = len(self._rows)
        S, N = torch.zeros(2, count, count, dtype=torch.float64)
        for part, side in ((S, [row[0] for row in self._rows]), (N, [row[1] for row in self._rows])):
            entries = [(k, j, weight) for k, row in enumerate(side) for j, weight in row.items()]
            k, j, weights = ([entry[i] for entry in entries] for i in range(3))
            part[k, j] = torch.tensor(weights, dtype=torch.float64)
        B = torch.tensor([noise for _, _, noise in self._rows], dtype=torch.float64)
        return Tableau(torch.tensor(self.rho, dtype=torch.float64), S, N, B, self.frame)
