"""Data sets, metrics, callbacks, solvers and schedules of a user's own: each way to get one wrong is one sentence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from scoreline import ArrayDataset, ImageDataset, InputError, Metrics, Rows, Schedule, Score, grid
from scoreline.config.train_config import _callbacks
from scoreline.datasets.base import check_dataset
from scoreline.metrics.base import check_metrics, check_scores
from scoreline.schedules.spacings import Power
from scoreline.solvers.deis import DEIS
from scoreline.solvers.tableau import build

IMAGES = torch.arange(8 * 3 * 4 * 4, dtype=torch.uint8).reshape(8, 3, 4, 4)
LABELS = torch.arange(8) % 2


class Images(ImageDataset):
    """Eight images, of which anything may be wrong."""

    def __init__(self, images: Any = IMAGES, labels: Any = LABELS, **attributes: Any) -> None:
        self.images, self.labels = images, labels
        for name, value in {"name": "own", "shape": (3, 4, 4), "num_classes": 2, **attributes}.items():
            if value is not None:
                setattr(self, name, value)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.images[list(indices)], self.labels[list(indices)]


DATA: list[tuple[object, str]] = [
    (SimpleNamespace(shape=(3, 4, 4)), "dataset: gives a SimpleNamespace, not a scoreline.ImageDataset"),
    (Images(shape=None), "no attribute shape; set it in __init__"),
    (Images(shape=(4, 4)), r"Images.shape is \(4, 4\); it must be \(C, H, W\)"),
    (Images(shape=(3, 4.0, 4)), r"Images.shape is \(3, 4.0, 4\)"),
    (Images(num_classes="2"), "num_classes is '2'"),
    (Images(IMAGES[:0], LABELS[:0]), "has no images"),
    (Images(IMAGES / 255), r"images are torch.float32 \(8, 3, 4, 4\); they must be torch.uint8 .*0 to 255"),
    (Images(IMAGES.numpy()), r"images are uint8 \(8, 3, 4, 4\); they must be torch.uint8"),
    (Images(IMAGES.permute(0, 2, 3, 1)), r"images are torch.uint8 \(8, 4, 4, 3\); they must be .*\(8, 3, 4, 4\)"),
    (Images(IMAGES % 2), "no pixel of the first 8 images .* above 1 of 255; multiply"),
    (Images(labels=LABELS.float()), r"labels are torch.float32 \(8,\); they must be torch.int64"),
    (Images(labels=LABELS[:, None]), r"labels are torch.int64 \(8, 1\)"),
    (Images(labels=LABELS + 1), "labels are from 1 to 2 with num_classes=2; they count from 0"),
    (Images(labels=LABELS - 2), "labels are from -2 to -1"),
]


@pytest.mark.parametrize(("dataset", "sentence"), DATA)
def test_a_wrong_data_set(dataset: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as refused:
        check_dataset(dataset)
    assert "\n" not in str(refused.value)


def test_the_digest_checks_every_image() -> None:
    labels = torch.zeros(2000, dtype=torch.int64)
    labels[-1] = 2
    own = Images(torch.full((2000, 3, 4, 4), 9, dtype=torch.uint8), labels)
    assert check_dataset(own) is own
    with pytest.raises(InputError, match="from 0 to 2 with num_classes=2"):
        _ = own.digest
    labels[-1] = -1
    assert own.digest == ArrayDataset("another", own.images, labels, 2).digest


class Own(Metrics):
    """Metrics that return what they were given."""

    def __init__(self, scores: Any = None, protocol: Any = None) -> None:
        self.scores, self.own_protocol = scores, {"own": 1} if protocol is None else protocol

    @property
    def protocol(self) -> dict[str, str | int]:
        return self.own_protocol

    def check(self, shape: tuple[int, int, int], n: int) -> None: ...

    def __call__(self, images: ImageDataset, parts: Any = None, progress: Any = None) -> dict[str, Score]:
        return self.scores

    def warnings(self, n: int) -> list[str]:
        return []


SCORES: list[tuple[Any, str]] = [
    (3.0, "Own returned a float, not a dict of scores by name"),
    ({1: Score(value=1.0, error=0.1, n=8)}, "not a dict of scores by name"),
    ({"brightness": 3.0}, r"returned brightness=3.0; return Score\(value=.., error=.., n=..\)"),
    ({"brightness": {"value": 3.0}}, "returned brightness="),
    (
        {"brightness": Score(value=torch.ones(()), error=0.1, n=8)},
        r"brightness with value=tensor\(1\.\); return a float",
    ),
    ({"brightness": Score(value=1.0, error=None, n=8)}, "brightness with error=None"),
]


@pytest.mark.parametrize(("scores", "sentence"), SCORES)
def test_wrong_scores(scores: Any, sentence: str) -> None:
    own = Own(scores)
    with pytest.raises(InputError, match=f"^metrics: .*{sentence}"):
        check_scores(own, own(Images()))


def test_wrong_metrics() -> None:
    with pytest.raises(InputError, match=r"metrics: gives a function, not a scoreline\.Metrics"):
        check_metrics(lambda images: {})
    for protocol in (["brightness"], {"images": 1.5}):
        with pytest.raises(InputError, match=r"metrics: Own.protocol is .*; it must be a dict"):
            check_metrics(Own(protocol=protocol))
    right = {"brightness": Score(value=1, error=0.5, n=8)}
    assert check_scores(check_metrics(Own()), right) is right


@dataclass(frozen=True)
class Map(Schedule):
    """u(rho) and its inverse, as they were given."""

    there: Callable[[Tensor], Any]
    back: Callable[[Tensor], Any]

    def __call__(self, rho: Tensor) -> Any:
        return self.there(rho)

    def inverse(self, u: Tensor) -> Any:
        return self.back(u)


SCHEDULES: list[tuple[object, str]] = [
    (lambda rho: rho, "gives a function, not a scoreline.Schedule"),
    (Map(lambda rho: rho.float(), torch.clone), r"Map\(rho\) is torch.float32 \(7,\) for torch.float64"),
    (Map(lambda rho: rho.sum(), torch.clone), r"Map\(rho\) is torch.float64 \(\)"),
    (Map(lambda rho: rho.tolist(), torch.clone), r"Map\(rho\) is list"),
    (Map(torch.clone, lambda u: u.float()), r"Map.inverse\(u\) is torch.float32"),
    (Map(lambda rho: -rho, lambda u: -u), r"does not increase from rho=0.01 to 80: -0.01, "),
    (Map(lambda rho: (rho - 1).log(), torch.exp), "does not increase .* nan"),
    (Map(torch.log, torch.expm1), r"inverse\(u\(rho\)\) is .* for rho = 0.01, "),
]


@pytest.mark.parametrize(("schedule", "sentence"), SCHEDULES)
def test_a_wrong_schedule(schedule: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=f"schedule: .*{sentence}"):
        build(DEIS(0, Power(7)), schedule, (80.0, 0.01), 4, "none")


def test_a_right_schedule_serves_every_range() -> None:
    own = Map(torch.log, torch.exp)
    for span in ((80.0, 0.01), (0.01, 80.0), (1e5, 1e-5), (0.5, 0.4)):
        assert build(DEIS(0, Power(7)), own, span, 4, "none").nfe == 4


def twice(schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Any:
    return DEIS(0, Power(7))(schedule, sigma_max, sigma_min, 2 * nfe)


def unbalanced(schedule: Schedule, sigma_max: float, sigma_min: float, nfe: int) -> Any:
    rows = Rows(sigma_max)
    for x, rho in enumerate(grid(schedule, sigma_max, sigma_min, nfe).tolist()[1:]):
        rows.add(rho, {x: 1.1}, {x: rho - rows.rho[x]})
    return rows.tableau()


SOLVERS: list[tuple[Any, str]] = [
    (lambda schedule, nfe: None, r"solver\(schedule, sigma_max, sigma_min, nfe\): too many positional"),
    (7, "7 cannot be called as solver"),
    (lambda *arguments: None, "returned a NoneType, not a Tableau; return rows.tableau"),
    (lambda *arguments: [1.0], "returned a list, not a Tableau"),
    (twice, "tableau of 8 evaluations for nfe=4; spend at most these"),
]


@pytest.mark.parametrize(("solver", "sentence"), SOLVERS)
def test_a_wrong_solver(solver: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=f"^solver: .*{sentence}"):
        build(solver, Power(7), (80.0, 0.01), 4, "none")
    with pytest.raises(ValueError, match="rows of S must sum to one"):
        build(unbalanced, Power(7), (80.0, 0.01), 4, "none")


def test_a_callback_of_another_class() -> None:
    callbacks = {
        "preemption": {"_target_": "scoreline.training.preemption.Preemption"},
        "own": {"_target_": "scoreline.schedules.spacings.Power"},
    }
    with pytest.raises(InputError, match=r"^callbacks\.own: gives a Power, not a lightning\.Callback"):
        _callbacks(OmegaConf.create(callbacks))
