import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from scoreline.datasets.base import ArrayDataset
from scoreline.datasets.digits import Digits
from scoreline.errors import InputError


def test_every_split_has_the_published_content():
    digests = {split: Digits(split).digest[:16] for split in ("train", "test", "all")}
    assert digests == {"train": "85037bca522b919a", "test": "c2ce7cecda0cdb06", "all": "a5de15ce7064d8f2"}


def test_all_digits_are_those_of_scikit_learn():
    images, labels = Digits("all").read(range(1797))
    grey = load_digits().images  # 0..16
    assert np.abs(images[:, 0].numpy() - grey * 255 / 16).max() <= 0.5
    assert labels.tolist() == load_digits().target.tolist()


def test_train_and_test_part_the_whole():
    rows = {
        split: sorted(hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in Digits(split).images)
        for split in ("train", "test", "all")
    }
    assert len(rows["train"]) == 1500
    assert len(rows["test"]) == 297
    assert sorted(rows["train"] + rows["test"]) == rows["all"]


def test_attributes_and_order():
    digits = Digits("test")
    images, labels = digits.read([5, 0, 5])
    assert (digits.name, digits.shape, digits.num_classes) == ("digits-test", (1, 8, 8), 10)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert torch.equal(images[0], images[2])
    assert torch.equal(images[1], digits.images[0])


def test_other_split_is_refused():
    with pytest.raises(InputError, match=r"dataset\.split=valid.*train"):
        Digits("valid")


def test_digest_covers_count_shape_pixels_and_labels():
    images = torch.arange(2 * 3 * 2 * 2, dtype=torch.uint8).reshape(2, 3, 2, 2)
    labels = np.array([1, 0], dtype=np.int64)
    want = hashlib.sha256(b"(2, 3, 2, 2)" + bytes(range(24)) + labels.tobytes()).hexdigest()
    assert ArrayDataset("a", images, torch.from_numpy(labels)).digest == want
    assert ArrayDataset("b", images).digest != want


@pytest.mark.parametrize("images", [torch.zeros(2, 1, 2, 2), torch.zeros(2, 2, 2, dtype=torch.uint8)])
def test_arrays_must_be_bytes_of_four_dimensions(images):
    with pytest.raises(ValueError, match="must be uint8"):
        ArrayDataset("x", images)
