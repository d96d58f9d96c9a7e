from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import records, train
from safetensors.torch import load_file
from torch import nn

from scoreline.errors import InputError
from scoreline.execution import execute
from scoreline.networks.unet import UNet
from scoreline.values import COMPILE


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Options that networks were compiled with."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: found.append(options))
    return found


def test_a_network_is_run_as_written_by_default(compiled: list[dict[str, Any]]) -> None:
    network = UNet(1, 8, width=8, blocks=1)
    execute(network, "none", False)
    assert compiled == []
    assert network.stem.weight.is_contiguous()


def test_compile_choices_are_those_of_sampling_without_graphs(compiled: list[dict[str, Any]]) -> None:
    """Gradients of one micro-batch are in use when the next one is replayed."""
    for choice in COMPILE:
        execute(nn.Linear(1, 1), choice, False)
    assert compiled == [{"dynamic": False}, {"dynamic": False, "mode": "max-autotune-no-cudagraphs"}]
    assert COMPILE["max-autotune"] == {"dynamic": False, "mode": "max-autotune"}
    assert {"max-autotune", "max-autotune-no-cudagraphs"} <= set(torch._inductor.list_mode_options())


@pytest.mark.parametrize("value", [True, False, "fast"])
def test_other_choices_are_refused(value: object) -> None:
    with pytest.raises(InputError, match=rf"compile={value}: there is no such choice"):
        execute(nn.Linear(1, 1), value, False)
    with pytest.raises(InputError, match=r"channels_last=1: must be true or false"):
        execute(nn.Linear(1, 1), "none", 1)


def test_channels_last_changes_the_layout_alone() -> None:
    network = UNet(1, 8, width=8, blocks=1)
    before = deepcopy(network.state_dict())
    execute(network, "none", True)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.stem.weight.is_contiguous(memory_format=torch.channels_last)
    wide = [p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert wide
    assert all(p.stride(1) == 1 for p in wide)


def test_training_in_channels_last_differs_by_rounding(tmp_path: Path) -> None:
    for name, more in (("plain", []), ("last", ["channels_last=true"])):
        train(tmp_path / name, "duration_kimg=0.32", "model.network.dropout=0", *more)
    curves = [[r["loss"] for r in records(tmp_path / name)] for name in ("plain", "last")]
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    plain, last = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "last"))
    for name, value in plain.items():
        torch.testing.assert_close(last[name], value, rtol=0, atol=1e-3)


def test_former_choice_of_compile_is_refused(tmp_path: Path) -> None:
    output = train(tmp_path / "run", "compile=true", code=2)
    assert "train.py: compile=True: " in output
    assert all(choice in output for choice in COMPILE)
