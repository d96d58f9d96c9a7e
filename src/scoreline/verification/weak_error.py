"""Weak errors of samplers in closed form, without Monte Carlo."""

import math

import torch

from scoreline.solvers.tableau import Tableau


def gaussian_variance(tableau: Tableau, c: float, initial_variance: float | None = None) -> float:
    """Variance of each component of the last state if the data are N(0, c^2 I).

    Then eps(x, rho) = rho x / (c^2 + rho^2), every row is linear in the states and the last state is
    x_K = a_0 x_0 + sum_k a_(k+1) B_k z_k with independent z_k, so that the variance is a_0^2 Var x_0 + sum_k
    (a_(k+1) B_k)^2 exactly. The responses a_k solve one triangular system, the adjoint of the recursion: O(K^2).

    The flow takes the law at rho_0 to that at rho_K: what to compare with is (c^2 + rho_K^2) Var x_0 / (c^2 + rho_0^2)
    for a deterministic method, and c^2 + rho_K^2 for a stochastic one started at Var x_0 = c^2 + rho_0^2. A last hop to
    rho = 0 is E[x_0 | x], which shrinks: c^4 / (c^2 + rho^2) from an exact state at the level rho before.

    Args:
        tableau: rho_0 > 0 or c > 0.
        c: standard deviation of the data.
        initial_variance: Var x_0; None is rho_0^2, pure noise, as `generate` starts.
    """
    rho = tableau.query_levels
    called = torch.tensor(tableau.calls) & rho.isfinite()  # at infinity D = 0
    gain = torch.where(called, rho / (c**2 + rho**2), 0.0)
    count = len(rho)
    system = torch.eye(count + 1, dtype=torch.float64)
    system[1:, :-1] -= tableau.S + tableau.N * gain
    last = torch.zeros(count + 1, 1, dtype=torch.float64)
    last[-1] = 1.0
    response = torch.linalg.solve_triangular(system.T, last, upper=True)[:, 0]
    start = tableau.initial_scale**2 if initial_variance is None else initial_variance
    return float(response[0] ** 2 * start + (response[1:] * tableau.B).square().sum())


FEW, NOISY = 20, 3.0
"""Up to this NFE a run is tried on Gaussian data, and a sample so many times too large still holds noise."""


def noise_left(tableau: Tableau, c: float = 0.5) -> str:
    """Say in a sentence that a run of few evaluations leaves noise even in Gaussian data; empty if it does not.

    The ODE takes N(0, c^2) to the deviation sqrt(c^2 + rho_K^2). Heun's method at NFE 2 leaves 80 times as much.

    Args:
        tableau: the run.
        c: standard deviation of the data.
    """
    if tableau.nfe > FEW or float(tableau.rho[-1]) > c:
        return ""
    times = math.sqrt(gaussian_variance(tableau, c)) / math.hypot(c, float(tableau.rho[-1]))
    if times <= NOISY:
        return ""
    return (
        f"nfe={tableau.nfe}: noise is left in the sample; Gaussian data come out {times:.3g} times too large; use more "
        "evaluations, or a multistep solver such as dpmpp_2m"
    )
