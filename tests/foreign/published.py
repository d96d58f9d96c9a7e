"""Descriptions of conf/model, and checks that the tests of several families share."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from scoreline.descriptions.specs import rebuild
from scoreline.errors import InputError
from scoreline.foreign.translation import ForeignModel, Rule, skeleton

CONF = Path(__file__).parents[2] / "conf" / "model"
Reader = Callable[[Any, Any, str], ForeignModel]


def described(name: str) -> dict[str, Any]:
    """A file of conf/model."""
    found = OmegaConf.to_container(OmegaConf.create({"model": OmegaConf.load(CONF / f"{name}.yaml")}), resolve=True)
    assert isinstance(found, dict)
    model: dict[str, Any] = found["model"]
    return model


def network_of(model: ForeignModel) -> nn.Module:
    net: nn.Module = rebuild(model.model["network"], nn.Module).eval()
    net.load_state_dict(model.weights)
    return net.requires_grad_(False)


def assert_golden(out: Tensor, golden: Mapping[str, Any]) -> None:
    """The output of the original network, at some entries and in its sum."""
    assert list(out.shape) == golden["output"]
    tolerance = 1e-5 * golden["largest"]
    assert float(out.abs().max()) == pytest.approx(golden["largest"], abs=tolerance)
    assert out.flatten()[golden["at"]].tolist() == pytest.approx(golden["entries"], abs=tolerance)
    assert float(out.double().sum()) == pytest.approx(golden["sum"], abs=tolerance * out.numel() ** 0.5)


def sources(name: str, kind: type[nn.Module], table: Callable[[Any], dict[str, Rule]]) -> list[str]:
    """The foreign names of a published network, each of which serves once."""
    network = skeleton(described(name)["network"])
    assert isinstance(network, kind)
    rules = table(network)
    assert set(rules) == set(network.state_dict())
    names = [source for rule in rules.values() for source in rule.sources]
    assert len(names) == len(set(names))
    return names


def assert_half_precision(read_model: Reader, state: Mapping[str, Tensor], model: Any, name: str) -> None:
    """float16 becomes float32; `name` is that of out_conv.weight."""
    weights = read_model({key: value.half() for key, value in state.items()}, model, "raw").weights
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert torch.equal(weights["out_conv.weight"], state[name].half().float())


def assert_refusal(read_model: Reader, state: Any, model: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        read_model(state, model, "raw")
    assert "\n" not in str(caught.value)
