"""Distances as `torchmetrics.Metric`s: the numbers of `Fidelity`, the same bits in any order and on two processes."""

import json
import pickle
from hashlib import blake2b
from pathlib import Path

import forks
import matplotlib
import pytest
import torch
import torchmetrics
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from modular_job import DISTANCES, hexadecimal, values
from tiny_inception import write
from torch import Tensor, nn
from torch.utils.data import DataLoader

from scoreline.datasets.base import ArrayDataset
from scoreline.datasets.digits import Digits
from scoreline.errors import InputError
from scoreline.metrics.features import DigitFeatures, EmojiFeatures
from scoreline.metrics.fidelity import Fidelity
from scoreline.metrics.inception import Inception
from scoreline.metrics.inception_features import InceptionFeatures
from scoreline.metrics.modular_metrics import (
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    PrecisionRecall,
    SlicedWasserstein,
)
from scoreline.metrics.sliced_wasserstein import Projections
from scoreline.storage.files import sha256
from scoreline.storage.pictures import to_unit
from scoreline.training.loss_by_level import LossByLevel

matplotlib.use("agg")

NAMES = {FrechetDistance: "frechet_distance", KernelDistance: "kid", SlicedWasserstein: "sliced_wasserstein"}


@pytest.fixture(scope="module")
def train() -> Digits:
    torch.set_num_threads(1)
    return Digits("train")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return Digits("test").images


def in_order_of_keys(images: Tensor) -> Tensor:
    """By the first 8 bytes of BLAKE2b of the pixels, a signed little-endian number."""
    keys = [
        int.from_bytes(blake2b(bytes(it.flatten()), digest_size=8).digest(), "little", signed=True) for it in images
    ]
    return images[torch.tensor(keys).argsort()]


def test_values_and_errors_are_those_of_fidelity(train: Digits, images: Tensor) -> None:
    expected = Fidelity(train)(ArrayDataset("generated", in_order_of_keys(images)))
    for kind in DISTANCES:
        metric = kind(train)
        metric.update(images)
        assert metric.n == 297
        value, error = metric.compute(), metric.error()
        if kind is not PrecisionRecall:
            value, error = {NAMES[kind]: value}, {NAMES[kind]: error}
        for name in value:
            assert float(value[name]) == pytest.approx(expected[name]["value"], rel=1e-10), name
            assert float(error[name]) == pytest.approx(expected[name]["error"], rel=1e-8), name


def test_order_batches_and_rounding_to_bytes_change_no_bit(train: Digits, images: Tensor) -> None:
    shuffled = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    for kind in (*DISTANCES, InceptionScore):
        one, other = (InceptionScore() if kind is InceptionScore else kind(train) for _ in range(2))
        one.update(images)
        for batch in shuffled.split(7):
            other.update(to_unit(batch).to(torch.float64 if len(batch) == 7 else torch.float32))
        assert hexadecimal(one.compute()) == hexadecimal(other.compute()), kind
        assert hexadecimal(one.error()) == hexadecimal(other.error()), kind


def test_two_processes_give_the_bits_of_one(tmp_path: Path, train: Digits) -> None:
    children = forks.start(str(Path(__file__).with_name("modular_job.py")), tmp_path, str(tmp_path), size=2)
    alone = json.loads(json.dumps(values(0, 1)))
    assert [forks.ended(child) for child in children] == [0, 0], (tmp_path / "said-0").read_text()
    error = alone.pop("error of LossByLevel")
    assert len(alone) == 7
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found.pop("error of LossByLevel") == pytest.approx(error, rel=1e-13)
        assert found == alone


def test_real_images_of_each_epoch(train: Digits, images: Tensor) -> None:
    given, updated = FrechetDistance(train), FrechetDistance()
    for metric in (given, updated):
        metric.update(images)
    for batch in train.images.split(400):
        updated.update(batch, real=True)
    assert float(updated.compute()) == pytest.approx(float(given.compute()), rel=1e-11)
    assert (given.n, updated.n) == (297, 297)
    for metric in (given, updated):
        metric.reset()
        metric.update(images[:100])
    assert float(given.compute()) > 0
    assert given.n == 100
    with pytest.raises(ValueError, match="FrechetDistance: no real images"):
        updated.compute()


def test_forward_is_the_value_of_a_batch(train: Digits, images: Tensor) -> None:
    metric, batch, whole = (FrechetDistance(train) for _ in range(3))
    metric.update(images[:200])
    batch.update(images[200:])
    assert float(metric(images[200:])) == float(batch.compute())
    whole.update(images)
    assert float(metric.compute()) == float(whole.compute())


def test_a_collection_takes_features_once(train: Digits, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, features = [], DigitFeatures.__call__
    extractor = DigitFeatures()
    monkeypatch.setattr(
        DigitFeatures, "__call__", lambda self, images: calls.append(len(images)) or features(self, images)
    )
    kinds = (FrechetDistance, KernelDistance, PrecisionRecall)
    collection = torchmetrics.MetricCollection([kind(train, extractor) for kind in kinds])
    for batch in images.split(64):
        collection.update(batch)
    assert calls == [64] * (2 + 5), "the first batch finds out which metrics have the same states"
    found = collection.compute()
    alone = PrecisionRecall(train, extractor)
    alone.update(images)
    assert {name: float(found[name]) for name in alone.compute()} == {k: float(v) for k, v in alone.compute().items()}
    assert float(collection["KernelDistance"].error()) > 0


@pytest.mark.parametrize("kind", [FrechetDistance, PrecisionRecall])
def test_a_plot_shows_value_and_error(kind: type[FrechetDistance], train: Digits, images: Tensor) -> None:
    metric = kind(train)
    metric.update(images)
    value, error = ({"": it} if isinstance(it, Tensor) else it for it in (metric.compute(), metric.error()))
    figure, axes = metric.plot()
    assert figure is not None
    assert axes.get_ylabel() == kind.__name__
    bars = [segment for collection in axes.containers for segment in collection.lines[2][0].get_segments()]
    for bar, name in zip(bars, value, strict=True):
        assert list(bar[:, 1]) == pytest.approx([float(value[name] - error[name]), float(value[name] + error[name])])
    assert metric.plot([metric.compute()] * 3, ax=axes) == (None, axes)
    matplotlib.pyplot.close(figure)


def test_losses_by_level_are_plotted_and_copied() -> None:
    metric = LossByLevel()
    metric.update(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 5.0]))
    copy = pickle.loads(pickle.dumps(metric))
    assert (float(copy.compute()), float(copy.error()), float(metric.error())) == (2.0, 1.0, 1.0)
    figure, axes = metric.plot()
    assert [list(it.get_ydata()) for it in axes.lines[:1]] == [[2.0]]
    matplotlib.pyplot.close(figure)
    metric.reset()
    metric.update(torch.tensor([7.0]), torch.tensor([0.5]))
    assert float(metric.compute()) == 7
    assert torch.isnan(metric.error())


class Pool(nn.Module):
    """Means of rows of pixels, times a weight; in training mode it would return noise."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(1, 2, 8))

    def forward(self, images: Tensor) -> Tensor:
        rows = self.weight * images.float().mean((1, 3)) / 255
        return rows + torch.rand_like(rows) if self.training else rows


def test_a_network_of_ones_own_is_frozen_and_belongs_to_nobody(train: Digits, images: Tensor) -> None:
    network = Pool().train()
    metric = FrechetDistance(train, network)
    owner = nn.ModuleDict({"fd": metric})
    assert list(owner.parameters()) == []
    assert owner.state_dict() == {}
    metric.update(images)
    assert 0 < float(metric.compute()) < 1
    assert network.weight.grad is None
    copy = pickle.loads(pickle.dumps(metric))
    assert hexadecimal(copy.error()) == hexadecimal(metric.error())


def test_inception_features_give_fid_kid_and_inception_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path / "cache"))
    file = write(tmp_path / "tiny.pt")
    network = InceptionFeatures(str(file), sha256=sha256(file), device="cpu")
    sets = [torch.randint(0, top, (24, 3, 16, 16), dtype=torch.uint8) for top in (200, 256)]
    x, y = ArrayDataset("x", in_order_of_keys(sets[0])), ArrayDataset("y", sets[1])
    expected = Inception(network, y, scores=["fid", "kid", "inception_score"], splits=3)(x)
    metrics = (FrechetDistance(y, network), KernelDistance(y, network), InceptionScore(network, splits=3))
    for metric, (name, score) in zip(metrics, expected.items(), strict=True):
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():  # as in a validation step of Lightning
            metric.update(sets[0])
        assert float(metric.compute()) == pytest.approx(score["value"], rel=1e-9), name
        assert float(metric.error()) == pytest.approx(score["error"], rel=1e-6), name


class Autoencoder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 64), nn.Unflatten(1, (1, 8, 8)))
        self.fd = FrechetDistance(Digits("train"))

    def training_step(self, images: Tensor) -> Tensor:
        return (self.network(images) - images).square().mean()

    def validation_step(self, images: Tensor) -> None:
        self.fd.update(self.network(images))
        self.log("fd", self.fd)

    def on_validation_epoch_end(self) -> None:
        self.log("fd_error", self.fd.error())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


@pytest.mark.filterwarnings("ignore")
def test_a_lightning_module_logs_the_distance_and_stops_by_it(train: Digits, images: Tensor, tmp_path: Path) -> None:
    class Log(EarlyStopping):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            log.append({name: float(it) for name, it in trainer.callback_metrics.items()})
            super().on_validation_end(trainer, pl_module)

    log: list[dict[str, float]] = []
    torch.manual_seed(0)
    module, quiet = Autoencoder(), {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        max_epochs=50,
        accelerator="cpu",
        num_sanity_val_steps=0,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[Log("fd", min_delta=0.15, patience=2)],
        **quiet,  # type: ignore[arg-type]
    )
    held_out = DataLoader(to_unit(images), 100)  # type: ignore[arg-type]
    trainer.fit(module, DataLoader(to_unit(train.images), 100, shuffle=True), held_out)  # type: ignore[arg-type]
    distances = [it["fd"] for it in log]
    assert trainer.should_stop
    assert 3 < trainer.current_epoch == len(log) < 50
    best = distances[0]
    waits = [0]
    for distance in distances[1:]:
        waits.append(0 if distance < best - 0.15 else waits[-1] + 1)
        best = distance if waits[-1] == 0 else best
    assert waits[-1] == 2
    assert max(waits[:-1]) == 1
    expected = FrechetDistance(train)
    with torch.no_grad():
        expected.update(module.network(to_unit(images)))
    assert distances[-1] == pytest.approx(float(expected.compute()), rel=1e-5)
    assert log[-1]["fd_error"] == pytest.approx(float(expected.error()), rel=1e-5)
    assert module.fd.n == 0, "Lightning resets it after an epoch"


REFUSED = {
    "statistics are not enough": (lambda: KernelDistance("emoji-train", EmojiFeatures()), "statistics, no images"),
    "statistics of others": (lambda: FrechetDistance("emoji-train"), "and emoji-cnn, not for digits-cnn"),
    "another shape": (
        lambda: FrechetDistance("emoji-train", EmojiFeatures()).update(torch.zeros(2, 1, 8, 8)),
        "3x32x32",
    ),
    "no num_features": (lambda: FrechetDistance(extractor=nn.Flatten()), "Flatten has no whole number num_features"),
    "a function": (lambda: FrechetDistance(extractor=len), "is neither a FeatureExtractor nor"),
    "no classifier": (lambda: InceptionScore(Projections(3)), "projections is no classifier"),
    "one group": (lambda: FrechetDistance(groups=1), "groups=1: must be at least 2"),
    "no neighbours": (lambda: PrecisionRecall(neighbours=0), "neighbours=0"),
    "no projections": (lambda: SlicedWasserstein(projections=0), "projections=0"),
    "no splits": (lambda: InceptionScore(splits=0), "splits=0"),
    "whole numbers": (lambda: SlicedWasserstein().update(torch.zeros(2, 1, 8, 8, dtype=torch.int64)), "torch.int64"),
    "one image": (lambda: SlicedWasserstein().update(torch.zeros(1, 8, 8)), r"\(1, 8, 8\); give \(B, C, H, W\)"),
    "two references": (
        lambda: FrechetDistance("emoji-train", EmojiFeatures()).update(torch.zeros(2, 3, 32, 32), real=True),
        "has a reference",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    call, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        call()
