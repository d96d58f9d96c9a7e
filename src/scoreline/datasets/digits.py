"""scikit-learn's 1,797 real handwritten digits, 8x8 grey: in the package, no network."""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scoreline.datasets.base import ArrayDataset
from scoreline.errors import InputError

SIZES = {"train": 1500, "test": 297, "all": 1797}


class Digits(ArrayDataset):
    """The UCI hand-written digits test set as shipped by scikit-learn: 1 x 8 x 8, 10 classes.

    The grey levels 0..16 become round(255 v / 16). `split` is `train` (1,500 images), `test` (the other 297) or
    `all`; the split is a fixed permutation drawn once with NumPy's PCG64, seed 0, and never changes.

    Source: Alpaydin & Kaynak (1998), UCI Machine Learning Repository, doi:10.24432/C50P49 (CC BY 4.0).

    Raises:
        InputError: for another split.
    """

    def __init__(self, split: str = "train") -> None:
        if split not in SIZES:
            raise InputError(f"dataset.split={split}: choose from {', '.join(SIZES)}")
        pixels, labels = _load()
        order = np.random.Generator(np.random.PCG64(0)).permutation(len(pixels))
        chosen = {"train": np.sort(order[:1500]), "test": np.sort(order[1500:]), "all": np.arange(len(pixels))}
        grey = np.rint(pixels[chosen[split]] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        super().__init__(
            f"digits-{split}", torch.from_numpy(grey), torch.from_numpy(labels[chosen[split]]), num_classes=10
        )


def _load() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Pixels (1797, 64) in 0..16 and labels (1797,), from scikit-learn's file without importing scikit-learn (3 s)."""
    found = find_spec("sklearn")
    file = Path(str(found.origin)).parent / "datasets" / "data" / "digits.csv.gz" if found else None
    if file is None or not file.is_file():
        raise InputError("dataset=digits: scikit-learn's digits.csv.gz is missing; pip install scikit-learn")
    with gzip.open(file, "rt") as lines:
        table = np.loadtxt(lines, delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int64)
