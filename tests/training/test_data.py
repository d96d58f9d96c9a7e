"""Where images are read from changes nothing but time and memory."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import assert_same_run, train
from torch import Tensor
from torch.utils.data import DataLoader

from scoreline.datasets.base import ArrayDataset, ImageDataset
from scoreline.errors import InputError
from scoreline.targets import StableTarget
from scoreline.training.data import DeviceBatches, DeviceData, EndlessBatches, ImageDataModule
from scoreline.training.stf_references import References

CPU = torch.device("cpu")


class Counted(ImageDataset):
    """20 images that are made when they are read."""

    name, shape, num_classes = "counted", (1, 2, 2), 0

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 20

    def read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        self.asked.append(len(indices))
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return chosen.to(torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).contiguous(), chosen


def test_small_data_set_is_read_once() -> None:
    dataset = Counted()
    data = DeviceData(dataset, 1)
    assert data.fits
    images, labels = data.read([3, 19, 3], CPU)
    assert images[:, 0, 0, 0].tolist() == labels.tolist() == [3, 19, 3]
    References(data, StableTarget(8), 4, seed=0).draw(0, 0, 1, CPU)
    list(islice(iter(DeviceBatches(data, EndlessBatches(20, 4, 0), CPU)), 5))
    assert dataset.asked == [20]


def test_one_that_does_not_fit_is_read_anew() -> None:
    dataset = Counted()
    data = DeviceData(dataset, 79 / 2**20)
    assert not data.fits
    assert DeviceData(dataset, 80 / 2**20).fits
    for _ in range(2):
        assert data.read([3, 19], CPU)[1].tolist() == [3, 19]
    assert dataset.asked == [2, 2]


def test_images_in_memory_are_not_copied() -> None:
    dataset = ArrayDataset("zeros", torch.zeros(9, 1, 2, 2, dtype=torch.uint8))
    data = DeviceData(dataset)
    data.read([0], CPU)
    assert data._on(CPU)[0].data_ptr() == dataset.images.data_ptr()


def test_full_device_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: DeviceData) -> tuple[Tensor, Tensor]:
        raise torch.OutOfMemoryError("pretended")

    monkeypatch.setattr(DeviceData, "_whole", full)
    with pytest.raises(InputError, match=r"device_mib=7: counted does not fit on the device .* use device_mib=0"):
        DeviceData(Counted(), 7).read([0], CPU)


def batches_of(data: DeviceData, step: int, rank: int = 0, device: str = "cpu") -> object:
    module = ImageDataModule(data, 8, seed=3)
    strategy = SimpleNamespace(root_device=torch.device(device))
    own = SimpleNamespace(offset=0)
    module.trainer = SimpleNamespace(
        global_step=step, global_rank=rank, world_size=2, strategy=strategy, lightning_module=own
    )
    return module.train_dataloader()


@pytest.mark.parametrize(("step", "rank"), [(0, 0), (7, 1)])
def test_a_step_sees_the_same_images_either_way(step: int, rank: int) -> None:
    kept, loaded = (batches_of(DeviceData(Counted(), limit), step, rank) for limit in (1, 0))
    assert isinstance(kept, DeviceBatches)
    assert isinstance(loaded, DataLoader)
    for one, other in islice(zip(kept, loaded, strict=False), 12):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_the_loader_pins_memory_for_a_gpu_alone() -> None:
    assert batches_of(DeviceData(Counted(), 0), 0, device="cuda").pin_memory is True
    assert batches_of(DeviceData(Counted(), 0), 0).pin_memory is False


@pytest.mark.parametrize("size", [1, 7, 20, 21, 65])
def test_batches_are_stretches_of_the_passes(size: int) -> None:
    batches = EndlessBatches(20, size, seed=5)
    whole = [int(i) for number in range(12) for i in batches._permutation(number)]
    for number in (0, 1, 2):
        assert batches.at(number) == whole[number * size : (number + 1) * size]


def test_a_training_has_the_same_bits_either_way(tmp_path: Path) -> None:
    """With stable targets, whose references are read as the batches are."""
    for name, limit in (("kept", 4096), ("read", 0)):
        more = ["target=stf", "target.references=96", f"device_mib={limit}"]
        train(tmp_path / name, "duration_kimg=0.32", *more)
    assert_same_run(tmp_path / "kept", tmp_path / "read")
