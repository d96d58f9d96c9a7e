"""Files of reference statistics: means and covariances of features, written by this package, EDM or ADM."""

import hashlib
import json
import math
import zipfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoreline.errors import InputError
from scoreline.metrics.frechet import GaussianStatistics
from scoreline.storage import bounded_reading, npy
from scoreline.storage.files import write_atomically

FORMAT = "scoreline/reference/1"
SYMMETRIC = 1e-6
MOST_VALUES = 2**16
"""Values in the record of a file."""

MOST_FEATURES = 2**12
"""Features of an image; Inception has 2048."""


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of the features of a set of images.

    When to use it: to compare with a reference whose images are not at hand, or to skip their pass.

    Attributes:
        name: short name for protocols.
        gaussian: statistics of the features.
        spatial: statistics of the spatial features, if there are any.
        about: provenance; empty for files of other projects.
        count: number of images, None if the file does not say.
    """

    name: str
    gaussian: GaussianStatistics
    spatial: GaussianStatistics | None = None
    about: dict[str, Any] = field(default_factory=dict)
    count: int | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the numbers."""
        sides = [self.gaussian] + ([] if self.spatial is None else [self.spatial])
        return _digest([part for side in sides for part in (side.mean, side.covariance)])


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write `mu`, `sigma` (float64), `n`, `about` (JSON), and `mu_s`, `sigma_s` for spatial features, as EDM and ADM.

    Args:
        path: the npz file.
        statistics: the statistics.

    Raises:
        InputError: if the file exists.
    """
    if path.exists():
        raise InputError(f"{path} is there already and is not overwritten; choose another name")
    arrays = {"mu": statistics.gaussian.mean.numpy(), "sigma": statistics.gaussian.covariance.numpy()}
    if statistics.spatial is not None:
        arrays |= {"mu_s": statistics.spatial.mean.numpy(), "sigma_s": statistics.spatial.covariance.numpy()}
    n = statistics.gaussian.n if statistics.count is None else statistics.count
    about = json.dumps({"format": FORMAT, **statistics.about}, indent=1)
    write_atomically(path, lambda temporary: _savez(temporary, arrays | {"n": np.array(n), "about": np.array(about)}))


def _savez(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def keys(path: Path) -> set[str]:
    """Return the names of the arrays in an npz file.

    Raises:
        InputError: if it is no npz file.
    """
    try:
        with bounded_reading.regular(path) as file, zipfile.ZipFile(file) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except bounded_reading.DAMAGE as error:
        raise InputError(f"{path}: not a whole npz file ({error}); make it anew") from error


def read_statistics(path: Path) -> Statistics:
    """Read the statistics of an npz file with `mu` and `sigma`; only numbers and text are read.

    Raises:
        InputError: if there are none, or they are no mean and covariance.
    """
    names = ("mu", "sigma", "mu_s", "sigma_s", "n", "about")
    try:
        values = {name: npy.member(path, name) for name in names}
    except bounded_reading.DAMAGE as error:
        raise InputError(f"{path}: cannot be read as an npz file of numbers ({error}); make it anew") from error
    arrays = {name: array for name, array in values.items() if array is not None}
    if not {"mu", "sigma"} <= set(arrays):
        raise InputError(f"{path}: holds no mu and sigma; make it with scoreline reference")
    count = _count(path, arrays["n"]) if "n" in arrays else None
    spatial = None
    if {"mu_s", "sigma_s"} <= set(arrays):
        spatial = _gaussian(path, arrays["mu_s"], arrays["sigma_s"], count)
    return Statistics(
        path.stem, _gaussian(path, arrays["mu"], arrays["sigma"], count), spatial, _about(path, arrays), count
    )


def _count(path: Path, n: NDArray[Any]) -> int | None:
    """Return the number of images; None for 0, 1 or several numbers, which may mean something else elsewhere."""
    if n.ndim:
        return None
    if n.dtype.kind not in "iuf" or not math.isfinite(n) or not 0 <= n < 2**53:
        raise InputError(f"{path}: its n of {n.dtype} is no number of images; make it anew")
    return int(n) if int(n) > 1 else None


def _about(path: Path, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    if "about" not in arrays:
        return {}
    try:
        about = bounded_reading.json_value(str(arrays["about"]).encode(), MOST_VALUES)
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']!r:.40}")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: its record is damaged ({error}); make it anew with scoreline reference") from error
    return dict(about)


def _gaussian(path: Path, mu: NDArray[Any], sigma: NDArray[Any], count: int | None) -> GaussianStatistics:
    """Return statistics of a file; n is 2 if the number is unknown, since a distance needs mean and covariance only."""
    numbers = all(array.dtype.kind == "f" for array in (mu, sigma))
    if not numbers or mu.ndim != 1 or not 0 < len(mu) <= MOST_FEATURES or sigma.shape != (len(mu), len(mu)):
        raise InputError(f"{path}: {mu.dtype} {mu.shape} and {sigma.dtype} {sigma.shape} are no mean and covariance")
    mean, covariance = (torch.from_numpy(np.array(array, np.float64)) for array in (mu, sigma))
    scale = covariance.abs().max()
    if not bool(mean.isfinite().all() & covariance.isfinite().all()):
        raise InputError(f"{path}: its mean or covariance is not finite; make it anew")
    if bool((covariance - covariance.T).abs().max() > SYMMETRIC * scale) or bool((covariance.diagonal() < 0).any()):
        raise InputError(
            f"{path}: its sigma is no covariance: not symmetric, or negative on the diagonal; make it anew"
        )
    n = count or 2
    return GaussianStatistics(n, mean, covariance * (n - 1))


def _digest(tensors: list[Tensor]) -> str:
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(repr(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()
