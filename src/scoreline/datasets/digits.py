"""scikit-learn's 1,797 real handwritten digits, 8x8 grey: in the package, no network."""

import numpy as np
import torch

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
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        order = np.random.Generator(np.random.PCG64(0)).permutation(len(pixels))
        chosen = {"train": np.sort(order[:1500]), "test": np.sort(order[1500:]), "all": np.arange(len(pixels))}
        grey = np.rint(pixels[chosen[split]] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        super().__init__(
            f"digits-{split}", torch.from_numpy(grey), torch.from_numpy(labels[chosen[split]]), num_classes=10
        )
