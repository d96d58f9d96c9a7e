"""The cost of a step from one noise level to the next: the squared work of a Langevin corrector after the step.

Coordinates have unit signal, s(x, rho) = -eps(x, rho) / rho is the score of p_rho, a step goes from `high` to `low`
and x is a draw from p_high. Costs are per image, sums over its entries, without the velocity's factor v^2.

Source: Williams et al. (2024), Score-Optimal Diffusion Schedules, arXiv:2412.07877, Sec. 2.2 and 2.3.
"""

import torch
from torch import Tensor
from torch.autograd import grad

from scoreline.sampling import Eps


def corrector(eps: Eps, x: Tensor, high: float, low: float) -> Tensor:
    """Compute the corrector's cost |s(x, low) - s(x, high)|^2, without any predictor: (B, *) -> (B,).

    It is evaluated as |eps(x, low) - (low / high) eps(x, high)|^2 / low^2: differences of denoised images would be
    divided by low^2, and their rounding with them.
    """
    change = eps(x, low) - (low / high) * eps(x, high)
    return change.flatten(1).square().sum(1) / low**2


def predictor(eps: Eps, x: Tensor, high: float, low: float) -> Tensor:
    """Compute the predictor's cost |s(F(x), low) - J^-T (s(x, high) - grad ln|det J|)|^2 exactly: (B, *) -> (B,).

    F is an Euler step of the flow. With h = low - high and A = ds/dx, F = x - h high s and J = I - h high A; the second
    term is the score of the image of p_high under F. A takes one backward pass for each of the d entries of an image;
    use `predictor_probed` for large d.
    """
    x = x.detach().requires_grad_()
    score = -eps(x, high) / high
    flat = score.flatten(1)
    rows = [grad(entry.sum(), x, retain_graph=True, create_graph=True)[0].flatten(1) for entry in flat.unbind(1)]
    step = (low - high) * high
    # J^-T (s - grad ln|det J|), the score of the image of p_high under F
    jacobian = torch.eye(flat.shape[1], dtype=x.dtype, device=x.device) - step * torch.stack(rows, 1)
    spread = _gradient(torch.linalg.slogdet(jacobian)[1].sum(), x)
    with torch.no_grad():
        arrived = torch.linalg.solve(jacobian.mT, flat - spread.flatten(1))
        residual: Tensor = -eps(x - step * score, low).flatten(1) / low - arrived
    return residual.square().sum(1)


def predictor_probed(eps: Eps, x: Tensor, high: float, low: float, probes: tuple[Tensor, Tensor]) -> Tensor:
    """Estimate the predictor's cost to leading order in h, unbiased by two probes: <r_a, r_b> (B,), maybe negative.

    r = s(F(x), low) - (y + B^T (y + B^T y)), y = s(x, high) + grad z^T (B + B^2 / 2) z, with B = h high A = I - J and
    random signs z: E z^T M z = tr M, and tr(B + B^2 / 2) = -ln|det J| up to h^3. For exact scores r is O(h^2), so both
    series need their second term: the first alone leaves an error as large as r. One probe in both factors would add
    its variance, O(h^2), to a cost that is O(h^4).

    Args:
        eps: the model, differentiable in x.
        x: states (B, *) at the level `high`.
        high: noise level before the step.
        low: noise level after the step.
        probes: two independent tensors of signs, of x's shape.

    Source: trace estimator of Hutchinson (1990), doi:10.1080/03610919008812866.
    """
    x = x.detach().requires_grad_()
    score = -eps(x, high) / high
    step = (low - high) * high

    def transposed(vector: Tensor) -> Tensor:  # B^T vector
        return step * grad(score, x, vector, create_graph=True)[0]

    expected = []
    for probe in probes:
        once = transposed(probe)
        # y = s(x, high) + grad z^T (B + B^2 / 2) z, in place of s - grad ln|det J|
        y = score.detach() + _gradient((probe * (once + transposed(once) / 2)).sum(), x)
        # y + B^T (y + B^T y), in place of J^-T y
        expected.append((y + transposed(y + transposed(y).detach())).detach())
    with torch.no_grad():
        actual = -eps(x - step * score, low) / low
        first, second = ((actual - each).flatten(1) for each in expected)
    return (first * second).sum(1)


def _gradient(value: Tensor, x: Tensor) -> Tensor:
    """Return the gradient, zero where a linear score leaves nothing to differentiate."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    return grad(value, x, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
