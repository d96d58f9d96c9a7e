"""Checkpoints whose score is known in closed form: `python benchmarks/exact_models.py DIR`.

Writes DIR/NAME/model.safetensors for `ring8`, `digits_classes` and `digits_points`, which sample.py, calibrate.py and
all else load as they load trained models. Errors of solvers are then measured against an exact flow and an exact
distribution, which no network's own error hides.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoreline.checkpoints import Card, Checkpoint, save_model
from scoreline.datasets.digits import Digits
from scoreline.errors import InputError
from scoreline.networks.exact import FullGaussianMixture, GaussianMixture
from scoreline.networks.gaussian_mixture import GaussianMixtureScore
from scoreline.storage.pictures import to_unit

Mixture = GaussianMixture | FullGaussianMixture

GEOMETRIC = {"_target_": "scoreline.schedules.ve.VE", "scale_min": 0.002, "scale_max": 80.0}
"""The range of Karras et al. (2022), arXiv:2206.00364, Table 1."""

LINEAR_VP = {"_target_": "scoreline.schedules.vp.LinearVP", "beta_min": 0.1, "beta_max": 20.0}
"""That of the shipped digits: the time in which DEIS's grids and polynomials are published."""

COSINE = {"_target_": "scoreline.schedules.vp.CosineVP"}
EDM = {"_target_": "scoreline.schedules.ve.EDM"}
VE = {"_target_": "scoreline.schedules.ve.VE", "scale_min": 0.01, "scale_max": 50.0}
"""The range of score_sde, Song et al. (2021), arXiv:2011.13456."""

POINT_STD = 0.05
"""Standard deviation round every point of `ring8` and every image of `digits_points`."""

FLOOR = 1e-4
"""Least eigenvalue of a covariance of `digits_classes`: some pixels are the same in all images of a class."""


class Exact(NamedTuple):
    """A distribution of images of `shape`, the data that it was made from, a sentence on how, and a noise schedule.

    The score is that of x_0 + rho eps whatever the schedule: it says where runs begin and end, and what time is.
    """

    distribution: Mixture
    shape: tuple[int, int, int]
    data: dict[str, Any]
    how: str
    noise_schedule: dict[str, Any] = GEOMETRIC


def mixture(
    seed: int,
    components: int,
    dimension: int,
    spread: float,
    widths: tuple[float, float],
    noise_schedule: dict[str, Any],
    decay: float = 0.0,
    turned: bool = False,
) -> Exact:
    """A mixture drawn at random.

    Args:
        seed: of the draw.
        components: number of Gaussians; their weights differ by up to a factor of 3.
        dimension: of the space.
        spread: standard deviation of the means in each coordinate.
        widths: the least and the largest standard deviation of a component, uniform in the logarithm.
        noise_schedule: of the model.
        decay: the scale of coordinate k of the means, and of axis k of every component, is k^-decay.
        turned: whether the axes of each component, but not its mean, are rotated at random.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    uniform = partial(torch.rand, generator=generator, dtype=torch.float64)
    scale = torch.arange(1, dimension + 1, dtype=torch.float64) ** -decay
    means = spread * scale * normal(components, dimension)
    stds = widths[0] * (widths[1] / widths[0]) ** uniform(components)
    weights = 0.5 + uniform(components)
    found: Mixture = GaussianMixture(means, stds, weights / weights.sum())
    if decay or turned:
        axes = torch.eye(dimension, dtype=torch.float64).repeat(components, 1, 1)
        axes = torch.linalg.qr(normal(components, dimension, dimension)).Q if turned else axes
        found = FullGaussianMixture(means, (stds[:, None] * scale).square(), axes, found.weights)
    how = f"{components} Gaussians in {dimension} dimensions drawn with seed {seed}; no data, nothing trained"
    return Exact(found, (dimension, 1, 1), {"name": "none", "sha256": None, "images": 0}, how, noise_schedule)


MIXTURES: dict[str, Callable[[], Exact]] = {
    "few2": lambda: mixture(1, 6, 2, 0.6, (0.03, 0.1), GEOMETRIC),
    "many16": lambda: mixture(2, 100, 16, 0.5, (0.1, 0.2), LINEAR_VP),
    "many64": lambda: mixture(3, 200, 64, 0.5, (0.05, 0.15), COSINE),
    "correlated32": lambda: mixture(4, 8, 32, 0.4, (0.4, 0.8), EDM, 0.7, True),
    "unequal16": lambda: mixture(5, 12, 16, 0.8, (0.2, 0.4), VE, 0.7),
    "gaussian24": lambda: mixture(6, 6, 24, 0.2, (0.4, 0.6), LINEAR_VP, 0.2, True),
    "points8": lambda: mixture(7, 40, 8, 0.6, (0.01, 0.01), EDM),
    "few3": lambda: mixture(11, 5, 3, 0.7, (0.05, 0.1), COSINE),
    "many32": lambda: mixture(12, 150, 32, 0.6, (0.1, 0.2), EDM),
    "correlated16": lambda: mixture(13, 6, 16, 0.4, (0.4, 0.8), VE, 0.7, True),
    "unequal48": lambda: mixture(14, 8, 48, 0.9, (0.2, 0.4), LINEAR_VP, 0.5),
    "gaussian10": lambda: mixture(15, 4, 10, 0.25, (0.5, 0.7), EDM, 0.3, True),
    "points12": lambda: mixture(16, 60, 12, 0.6, (0.01, 0.01), LINEAR_VP),
}


def ring8() -> Exact:
    """Eight Gaussians on the unit circle, the first at (1, 0), with weights from 0.1 to 0.15 in even steps."""
    angle = 2 * math.pi / 8 * torch.arange(8, dtype=torch.float64)
    means = torch.stack([angle.cos(), angle.sin()], dim=1)
    weights = torch.linspace(0.8, 1.2, 8, dtype=torch.float64) / 8
    mixture = GaussianMixture(means, torch.full((8,), POINT_STD, dtype=torch.float64), weights)
    how = f"8 isotropic Gaussians of std {POINT_STD} on the unit circle, weights 0.1 to 0.15; no data, nothing trained"
    return Exact(mixture, (2, 1, 1), {"name": "none", "sha256": None, "images": 0}, how)


def digits_classes() -> Exact:
    """One Gaussian per class, with the mean and covariance (divided by n) of its training digits in [-1, 1]; VP."""
    digits = Digits("train")
    pixels, labels, data = _pixels(digits)
    fits = [_fit(pixels[labels == label]) for label in range(digits.num_classes)]
    means, variances, axes = (torch.stack(parts) for parts in zip(*fits, strict=True))
    weights = labels.bincount().double() / len(labels)
    how = f"a Gaussian per class by maximum likelihood, eigenvalues of its covariance at least {FLOOR:g}; not trained"
    return Exact(FullGaussianMixture(means, variances, axes, weights), digits.shape, data, how, LINEAR_VP)


def digits_points() -> Exact:
    """A narrow Gaussian round each of scikit-learn's 1,797 digits, training and test images alike."""
    digits = Digits("all")
    pixels, _, data = _pixels(digits)
    stds = torch.full((len(pixels),), POINT_STD, dtype=torch.float64)
    how = f"an isotropic Gaussian of std {POINT_STD} round every image, training and test digits alike; not trained"
    return Exact(GaussianMixture(pixels, stds, torch.full_like(stds, 1 / len(stds))), digits.shape, data, how)


MODELS: dict[str, Callable[[], Exact]] = {
    "ring8": ring8,
    "digits_classes": digits_classes,
    "digits_points": digits_points,
}


def _pixels(digits: Digits) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Pixels (N, 64) float64 scaled as for training, labels (N,), and what a card says of the data."""
    images, labels = digits.read(range(len(digits)))
    data = {"name": digits.name, "sha256": digits.digest, "images": len(digits)}
    return to_unit(images).double().flatten(1), labels, data


def _fit(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (d,), eigenvalues (d,) of the covariance, and eigenvectors (d, d) in columns, of rows (N, d)."""
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    return mean, values.clamp(min=FLOOR), vectors


def card(exact: Exact) -> Card:
    """The card of an exact model."""
    network = {
        "_target_": "scoreline.networks.gaussian_mixture.GaussianMixtureScore",
        "components": len(exact.distribution.means),
        "channels": exact.shape[0],
        "resolution": exact.shape[1],
        "full_covariance": isinstance(exact.distribution, FullGaussianMixture),
    }
    parameterisation = {"_target_": "scoreline.parameterisations.VarianceExploding"}
    model = {"network": network, "noise_schedule": exact.noise_schedule, "parameterisation": parameterisation}
    return Card(model, exact.shape, 0, exact.data, {"exact": exact.how})


def write_models(root: Path) -> dict[str, Path]:
    """Write every model as root/NAME/model.safetensors: name -> that file."""
    return {name: write_model(root, name) for name in MODELS}


def write_model(root: Path, name: str) -> Path:
    """Write one of `MODELS` as root/NAME/model.safetensors."""
    return write_exact(root, name, MODELS[name]())


def write_exact(root: Path, name: str, exact: Exact) -> Path:
    """Write a distribution as root/NAME/model.safetensors."""
    path = root / name / "model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(path, asdict(exact.distribution), card(exact))
    return path


def mixture_of(checkpoint: Checkpoint) -> Mixture:
    """The exact distribution that a loaded checkpoint stands for.

    Raises:
        InputError: if its network is a trained one.
    """
    network = checkpoint.denoiser.network
    if not isinstance(network, GaussianMixtureScore):
        raise InputError(
            f"checkpoint={checkpoint.path}: its score is not known in closed form; give one that "
            "benchmarks/exact_models.py wrote"
        )
    return network.distribution()


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(f"{__doc__}\ngive one directory: python benchmarks/exact_models.py DIR")
    for name, path in write_models(Path(sys.argv[1])).items():
        print(f"{name} -> {path}")


if __name__ == "__main__":
    main()
