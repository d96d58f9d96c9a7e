"""The benchmark of what features rank, on a few small pictures and an untrained model."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import pytest
import torch
from small_models import save_small
from torch import Tensor

from scoreline.checkpoints import load_model
from scoreline.datasets.base import ArrayDataset
from scoreline.metrics.features import FeatureExtractor

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import features
from features import Row, Ruler, Sets

COUNT, DRAWS = 24, 2


class Moments(FeatureExtractor):
    """Mean and deviation of each channel."""

    name, shape, dimension, digest = "moments", None, 6, "0"

    def __call__(self, images: Tensor) -> Tensor:
        x = images.double().flatten(2) / 255
        return torch.cat([x.mean(2), x.std(2)], 1)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    images = torch.randint(0, 256, (90, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    train = ArrayDataset("noise-train", images[:60], (torch.arange(60) - 30).clamp(min=0) % 10, 10)
    model = load_model(save_small(tmp_path_factory.mktemp("model") / "model.safetensors", classes=10, channels=3))
    return Sets(train, images[60:], images[30:], model, COUNT)


@pytest.fixture(scope="module")
def ruler(sets: Sets) -> Ruler:
    return Ruler(sets.train.images, {"imagenet": Moments(), "emoji": Moments()})


@pytest.fixture(scope="module")
def finished(sets: Sets, ruler: Ruler, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features")
    features.report(out, features.measure(out, sets, lambda: ruler, DRAWS))
    return out


@pytest.fixture(scope="module", autouse=True)
def _few_evaluations() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "NFE", (4, 3))
        yield


def test_every_level_has_its_row_and_place_in_the_report(finished: Path, sets: Sets) -> None:
    rows = json.loads((finished / "rows.json").read_text())
    assert [row["key"] for row in rows] == [level.key for level in sets.levels()]
    for row in rows:
        draws = 1 if row["name"] == "held out" else DRAWS
        assert row["n"] == COUNT
        assert {name: len(row["values"][name]) for name in features.REPRESENTATIONS} == dict.fromkeys(
            features.REPRESENTATIONS, draws
        )
    text = (finished / "features.md").read_text()
    assert all(f"| {row['family']} | {row['name']} | {features.cell(row, 'imagenet')} |" in text for row in rows)
    assert "| noise | training < 0.05 < 0.1 < 0.2 < 0.4 |" in text
    assert (finished / "features.png").stat().st_size > 10_000


def test_only_missing_levels_are_measured(finished: Path, sets: Sets) -> None:
    rows = features.measure(finished, sets, lambda: pytest.fail("all levels are there"), DRAWS)
    assert len(rows) == len(sets.levels())


def test_pictures_of_a_draw_are_the_same_at_every_level(sets: Sets) -> None:
    clean = sets.chosen(1).float()
    gaps = [float((sets.noisy(size, 1).float() - clean).square().mean().sqrt()) / 127.5 for size in (0.01, 0.05)]
    assert gaps == pytest.approx([0.01, 0.05], rel=0.15)
    assert all(len(level.make(0)) == COUNT for level in sets.levels())
    assert not torch.equal(sets.chosen(0), sets.chosen(1))


def test_blur_keeps_the_mean_of_a_flat_picture_and_removes_detail(sets: Sets) -> None:
    flat = Sets(ArrayDataset("flat", torch.full((30, 3, 8, 8), 77, dtype=torch.uint8)), *[None] * 3, COUNT)
    assert bool((flat.blurred(1.0, 0) == 77).all())
    assert float(sets.blurred(1.0, 0).float().std()) < 0.5 * float(sets.chosen(0).float().std())


def test_only_the_commonest_classes_are_kept(sets: Sets) -> None:
    labels = torch.tensor([0] * 40 + [1] * 15 + [2] * 5)
    images = labels.to(torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    few = Sets(ArrayDataset("classes", images, labels, 3), images, images, sets.model, COUNT)
    assert few.of_classes(2, 0).unique().tolist() == [0, 1]
    assert few.of_classes(1, 0).unique().tolist() == [0]


def test_distances_are_from_the_training_pictures(sets: Sets, ruler: Ruler) -> None:
    found = ruler.distances(sets.train.images)
    assert all(abs(value) < 1e-6 for value in found.values())
    assert all(error > 0 for error in ruler.errors(sets.chosen(0)).values())


def test_steps_are_paired_by_draw() -> None:
    def row(*values: float) -> Row:
        return {"values": {"pixels": list(values)}, "jackknife": None}

    growth, wrong = features.step(row(1, 5, 9), row(2.1, 6, 9.9), "pixels")
    assert (growth, wrong) == (pytest.approx(1), pytest.approx(0.1 / 3**0.5))
    assert [features.verdict(*each) for each in ((1, 0.4), (1, 0.6), (-1, 0.4))] == ["right", "undecided", "wrong"]
    single = {"values": {"pixels": [20.0]}, "jackknife": {"pixels": 3.0}}
    growth, wrong = features.step(row(1, 5, 9), single, "pixels")
    assert growth == pytest.approx(20 - mean((1, 5, 9)))
    assert wrong == pytest.approx((16 / 3 + 9) ** 0.5)
