"""Scores of several sets of metrics beside each other are those of each alone."""

from pathlib import Path

import pytest
import torch

from scoreline.datasets.base import ArrayDataset
from scoreline.errors import InputError
from scoreline.metrics.base import higher_is_better
from scoreline.metrics.fidelity import Fidelity
from scoreline.metrics.representations import Representations
from scoreline.storage.resumable import Parts


def noise(count: int, seed: int) -> ArrayDataset:
    pixels = torch.randint(256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return ArrayDataset(f"noise{seed}", pixels)


def test_each_score_has_the_name_of_its_metrics(tmp_path: Path) -> None:
    one, other = Fidelity(noise(40, 1)), Fidelity(noise(40, 2), neighbours=5)
    both, images, done = Representations({"one": one, "other": other, "none": None}), noise(30, 3), []
    scores = both(images, Parts(tmp_path), done.append)
    alone = {"one": one(images), "other": other(images)}
    assert scores == {f"{name}/{key}": it for name, found in alone.items() for key, it in found.items()}
    assert scores["one/kid"] != scores["other/kid"]
    assert sum(done) == 30
    assert both.protocol["other/neighbours"] == both.fingerprint(30)["other/neighbours"] == 5
    assert [warning for warning in both.warnings(30) if warning.startswith("other: 30 images")]


def test_what_one_refuses_all_refuse() -> None:
    both = Representations({"one": Fidelity(noise(40, 1)), "other": Fidelity(noise(40, 2), neighbours=5)})
    both.check((1, 8, 8), 7)
    with pytest.raises(InputError, match=r"too few for metrics\.neighbours=5"):
        both.check((1, 8, 8), 6)
    with pytest.raises(InputError, match=r"metrics\.parts: is empty"):
        Representations({"one": None})


def test_better_scores_are_larger_or_smaller_in_each() -> None:
    assert higher_is_better("emoji/precision")
    assert higher_is_better("precision")
    assert not higher_is_better("precision/kid")
