"""A training step asks the device for no number and copies nothing to it in passing.

The device is torch's meta device, where reading a number is an error, and every copy is seen.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scoreline.calibration.online_length import step_costs
from scoreline.config import run_names
from scoreline.datasets.base import ArrayDataset
from scoreline.denoiser import Denoiser
from scoreline.objective import Batch
from scoreline.runtime import device
from scoreline.targets import Reference
from scoreline.training import data as loading
from scoreline.training import gradients
from scoreline.training.data import DeviceData
from scoreline.training.ema import EMA
from scoreline.training.gradients import Gradients
from scoreline.training.loss_by_level import LossByLevel

CONF, META = Path(__file__).parents[2] / "conf", torch.device("meta")
MODELS = [("cifar10_ddpmpp_edm", "edm"), ("cifar10_ddpmpp_vp", "vp"), ("cifar10_ncsnpp_ve", "ve")]


class Copies(TorchDispatchMode):
    """Operations between devices; numbers without dimensions, which travel with a kernel, are none."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, kwargs or {})
        out = func(*given[0], **given[1])
        tensors = [leaf for leaf in tree_leaves((given, out)) if isinstance(leaf, Tensor) and leaf.ndim]
        if len({tensor.device for tensor in tensors}) > 1:
            self.found.append(str(func))
        return out


def test_what_is_looked_for_is_seen() -> None:
    with Copies() as made:
        torch.zeros(3).to("meta")
        torch.zeros(3, device="meta") + 1
    assert made.found == ["aten._to_copy.default"]
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(torch.zeros((), device="meta").isfinite())


@pytest.mark.parametrize("target", ["dsm", "stf"])
@pytest.mark.parametrize(("model", "objective"), MODELS)
def test_a_step(model: str, objective: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_names.register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[f"model={model}", f"objective={objective}", f"target={target}"])
    cfg.model.network.width, cfg.model.network.blocks = 32, 1
    rule, average, late = instantiate(cfg.objective), EMA(500), []
    with META:
        network = instantiate(cfg.model.network)
        average.start(network)
        sums, clip = LossByLevel().to(META), Gradients(clip=1.0)
        batch = Batch(
            torch.empty(4, 3, 32, 32),
            torch.empty(4, dtype=torch.float64),
            torch.empty(4, 3, 32, 32),
            None,
            None,
            Reference(torch.empty(8, 3, 32, 32, dtype=torch.uint8), torch.empty(4, dtype=torch.int64)),
        )
    for module in (device, gradients):
        monkeypatch.setattr(module, "computes_apart", lambda device: device == META)
    monkeypatch.setattr(device.LateNumber, "swap", lambda self, number: late.append(number.device))
    clip._bad, clip._row = clip._bad.to(META), clip._row.to(META)
    with Copies() as made:
        loss, rho = rule(Denoiser(network, instantiate(cfg.model.parameterisation)), batch)
        loss.sum().backward()
        sums.update(loss.detach(), rho)
        clip(network.parameters())
        average.update(network, 100, 4)
    assert made.found == []
    assert late == [META]
    assert {parameter.grad.device for parameter in network.parameters() if parameter.grad is not None} == {META}


@pytest.mark.parametrize("model", [model for model, _ in MODELS])
def test_what_an_online_schedule_measures(model: str) -> None:
    run_names.register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[f"model={model}"])
    cfg.model.network.width, cfg.model.network.blocks = 32, 1
    with META:
        network = instantiate(cfg.model.network)
        clean, high = torch.empty(4, 3, 32, 32), torch.empty(4, dtype=torch.float64)
    denoiser = Denoiser(network, instantiate(cfg.model.parameterisation))
    with torch.no_grad(), Copies() as made:
        costs = step_costs(denoiser, clean, clean, high, high, None)
    assert (costs.device, tuple(costs.shape), made.found) == (META, (4,), [])


def test_batch_takes_one_asynchronous_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the rows to pick, by way of `moved`."""
    data = DeviceData(ArrayDataset("zeros", torch.zeros(9, 1, 2, 2, dtype=torch.uint8)))
    data.read([0], META)
    asked = []

    def noted(tensor: Tensor, device: torch.device) -> Tensor:
        asked.append(tuple(tensor.shape))
        return torch.empty_like(tensor, device=device)

    monkeypatch.setattr(loading, "to_device", noted)
    with Copies() as made:
        images, labels = data.read([3, 1, 2], META)
    assert (tuple(images.shape), tuple(labels.shape), asked) == ((3, 1, 2, 2), (3,), [(3,)])
    assert [name for name in made.found if "empty_like" not in name] == []


def test_an_average_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    network, calls, real = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), [], torch._foreach_lerp_
    average = EMA(1, 0.5)
    average.start(network)
    monkeypatch.setattr(torch, "_foreach_lerp_", lambda own, ends, weight: calls.append(real(own, ends, weight)))
    average.update(network, 1000, 4)
    assert len(calls) == 1
