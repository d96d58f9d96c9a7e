"""The 1,797 handwritten digits of scikit-learn, 8x8 grey, without a download."""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scoreline.datasets.base import ArrayDataset
from scoreline.errors import InputError
from scoreline.values import check_choice

SPLITS = ("train", "test", "all")


class Digits(ArrayDataset):
    """The test set of the UCI hand-written digits, from scikit-learn: 1 x 8 x 8, 10 classes.

    The grey levels 0..16 become round(255 v / 16). The split is a fixed permutation by NumPy's PCG64, seed 0.

    When to use it: for tests, tutorials and quick experiments: a model trains in minutes on a CPU.

    Args:
        split: `train` (1,500 images), `test` (the other 297) or `all`.

    Source: Alpaydin & Kaynak (1998), UCI Machine Learning Repository, doi:10.24432/C50P49 (CC BY 4.0).

    Raises:
        InputError: for another split.
    """

    heldout_split = "test"

    def __init__(self, split: str = "train") -> None:
        check_choice("dataset.split", SPLITS, split)
        pixels, labels = _load()
        order = np.random.Generator(np.random.PCG64(0)).permutation(len(pixels))
        chosen = {"train": np.sort(order[:1500]), "test": np.sort(order[1500:]), "all": np.arange(len(pixels))}
        grey = np.rint(pixels[chosen[split]] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        super().__init__(
            f"digits-{split}", torch.from_numpy(grey), torch.from_numpy(labels[chosen[split]]), num_classes=10
        )


def _load() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Read pixels (1797, 64) in 0..16 and labels (1797,) from the file, without importing scikit-learn (3 s)."""
    spec = find_spec("sklearn")
    file = Path(str(spec.origin)).parent / "datasets" / "data" / "digits.csv.gz" if spec else None
    if file is None or not file.is_file():
        raise InputError("dataset=digits: scikit-learn's digits.csv.gz is missing; pip install scikit-learn")
    with gzip.open(file, "rt") as lines:
        table = np.loadtxt(lines, delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int64)
