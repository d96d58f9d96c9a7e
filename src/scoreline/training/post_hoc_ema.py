"""Post-hoc EMA: averages of any width from power-function snapshots, after the training.

An average of the weights theta(tau) over the images tau seen so far is the integral of p(tau) theta(tau), with a
profile p >= 0. Averages are linear in their profiles, so a profile close to a sum of the saved profiles gives weights
close to the same sum of the saved weights.

Source: Karras et al. (2024), arXiv:2312.02696, section 3 and App. C.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scoreline.training.ema import RunningAverage

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PowerProfile:
    """p(tau) = (gamma + 1) tau^gamma / images^(gamma+1) for 0 <= tau <= images, else 0.

    Source: Karras et al. (2024), arXiv:2312.02696, equation 2.
    """

    gamma: float
    images: float

    def masses(self, edges: Array) -> Array:
        """Integrate p between neighbouring `edges` (n + 1,): (n,)."""
        return np.diff(np.minimum(edges / self.images, 1) ** (self.gamma + 1))


@dataclass(frozen=True, eq=False)
class StepProfile:
    """p(tau) = shares[k] / batch for batch k < tau <= batch (k + 1), constant over the images of every step.

    Attributes:
        shares: (steps,), the coefficient of the weights after each step; they sum to 1.
        batch: images per step.
    """

    shares: Array
    batch: int

    @property
    def edges(self) -> Array:
        """Images seen before the first step and after every step: (steps + 1,)."""
        return np.arange(len(self.shares) + 1.0) * self.batch


Profile = PowerProfile | StepProfile


def exact_profile(average: RunningAverage, images: int, batch: int) -> StepProfile:
    """Return the exact profile of a running average: shares[k] = (1 - beta_k) prod_{j > k} beta_j."""
    beta = np.array([average.beta(seen, batch) for seen in range(0, images, batch)])
    later = np.append(np.cumprod(beta[:0:-1])[::-1], 1.0)
    return StepProfile((1 - beta) * later, batch)


def exponential(half_life_kimg: float, images: int, batch: int) -> StepProfile:
    """Return the profile of an EMA without a ramp, bias-corrected as in Adam.

    Shares are proportional to 0.5^((images - tau) / half_life) at the ends tau of steps and sum to 1.

    Source: Kingma and Ba (2015), arXiv:1412.6980, section 3.
    """
    ends = np.arange(batch, images + batch, batch, dtype=np.float64)
    shares = 0.5 ** ((images - ends) / (half_life_kimg * 1000))
    return StepProfile(shares / shares.sum(), batch)


def _power_products(gamma_a: Array, images_a: Array, gamma_b: Array, images_b: Array) -> Array:
    """Inner products of power functions, the integrals of p_a p_b, elementwise with broadcasting.

    With s and gamma_s of the profile that ends first, and t and gamma_t of the other,

        <p_a, p_b> = (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) (s / t)^gamma_t / t.

    Source: integrated from equation 2 of Karras et al. (2024), arXiv:2312.02696; their App. C.
    """
    first, last = np.minimum(images_a, images_b), np.maximum(images_a, images_b)
    gamma_last = np.where(images_a < images_b, gamma_b, gamma_a)
    factor: Array = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return factor * (first / last) ** gamma_last / last


def product(a: Profile, b: Profile) -> float:
    """Inner product <a, b>, the integral of a(tau) b(tau) over all images, in closed form.

    Raises:
        ValueError: if two step profiles differ in their batch.
    """
    if isinstance(a, PowerProfile) and isinstance(b, PowerProfile):
        return float(_power_products(*np.array([[a.gamma], [a.images], [b.gamma], [b.images]], dtype=np.float64))[0])
    if isinstance(a, StepProfile) and isinstance(b, StepProfile):
        if a.batch != b.batch:
            raise ValueError(f"profiles of batches of {a.batch} and {b.batch} images")
        common = min(len(a.shares), len(b.shares))
        return float(a.shares[:common] @ b.shares[:common]) / a.batch
    step, power = (a, b) if isinstance(a, StepProfile) else (b, a)
    assert isinstance(step, StepProfile)
    assert isinstance(power, PowerProfile)
    return float(step.shares @ power.masses(step.edges)) / step.batch


def products(target: Profile, snapshots: Sequence[PowerProfile]) -> Array:
    """Inner products of a target with all snapshots, (n,), with one pass over the steps for each gamma."""
    if isinstance(target, PowerProfile):
        return np.array([product(target, snapshot) for snapshot in snapshots])
    inner = np.empty(len(snapshots))
    for gamma in {snapshot.gamma for snapshot in snapshots}:
        places = [place for place, snapshot in enumerate(snapshots) if snapshot.gamma == gamma]
        places.sort(key=lambda place: snapshots[place].images)
        inner[places] = _overlaps(target, gamma, [snapshots[place].images for place in places])
    return inner


def _overlaps(step: StepProfile, gamma: float, ends: Sequence[float]) -> list[float]:
    """Inner products of a step profile with power functions that end at `ends`, ascending.

    Each rescales the integral of the one before and adds the steps between the two ends.
    """
    inner, total, before = [], 0.0, 0.0
    for end in ends:
        first, last = int(before // step.batch), math.ceil(end / step.batch)
        shares = step.shares[first:last]
        cuts = np.clip(np.arange(first, first + len(shares) + 1.0) * step.batch, before, end)
        rest = shares @ np.diff((cuts / end) ** (gamma + 1))
        total, before = float(total * (before / end) ** (gamma + 1) + rest), end
        inner.append(total / step.batch)
    return inner


@dataclass(frozen=True, eq=False)
class Fit:
    """A target profile as a linear combination of others.

    Attributes:
        coefficients: (n,) float64, which sum to 1.
        residual: |target - sum| / |target| in the norm of `product`. For any trajectory of the weights and constant c,
            the error of the average is at most residual |target| times the norm of theta(tau) - c.
    """

    coefficients: Array
    residual: float


def fit(target: Profile, snapshots: Sequence[PowerProfile]) -> Fit:
    """Fit the target by least squares with coefficients that sum to 1; use them as weights of the snapshots.

    Source: Karras et al. (2024), arXiv:2312.02696, App. C. The constraint is our addition: it makes the average of
    constant weights exact however far apart the profiles are.
    """
    gamma = np.array([snapshot.gamma for snapshot in snapshots])
    images = np.array([snapshot.images for snapshot in snapshots], dtype=np.float64)
    gram = _power_products(gamma[:, None], images[:, None], gamma, images)
    target_products = products(target, snapshots)
    # normalised profiles condition the Gram matrix; its pseudo-inverse tolerates snapshots that are alike
    norms = np.sqrt(np.diag(gram))
    inverse = np.linalg.pinv(gram / np.outer(norms, norms), rcond=1e-12, hermitian=True)
    nearest, constant = inverse @ (target_products / norms) / norms, inverse @ (1 / norms) / norms
    # Lagrange multiplier of the constraint
    coefficients = nearest + constant * (1 - nearest.sum()) / constant.sum()
    whole = product(target, target)
    missed = whole - 2 * coefficients @ target_products + coefficients @ gram @ coefficients
    return Fit(coefficients, float(np.sqrt(max(missed, 0.0) / whole)))
