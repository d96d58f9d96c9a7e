import pytest
import torch

from scoreline.runtime import device
from scoreline.runtime.device import LateNumber, computes_apart, to_device


def test_only_a_gpu_computes_asynchronously() -> None:
    assert computes_apart(torch.device("cuda:1"))
    assert not computes_apart(torch.device("cpu"))


def test_a_cpu_number_is_read_at_once() -> None:
    late, number = LateNumber(), torch.tensor(3)
    assert late.swap(number) == 3
    number.add_(1)
    assert late.swap(number) == 4


def test_a_gpu_number_lags_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "computes_apart", lambda _: True)
    late, number, read = LateNumber(), torch.tensor(0), []
    for _ in range(4):
        read.append(late.swap(number))
        number.add_(1)
    assert read == [None, 0, 1, 2]


def test_what_is_there_is_not_copied() -> None:
    tensor = torch.arange(3)
    assert to_device(tensor, "cpu") is tensor
    assert to_device(tensor, torch.device("meta")).device.type == "meta"
