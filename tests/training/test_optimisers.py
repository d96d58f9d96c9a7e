import math
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn

from scoreline.errors import InputError
from scoreline.training.optimisers import check_options, kept_of, take_options, with_fast_step

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=generator)) for size in (7, 130)]


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize(
    ("device", "precision", "fused", "foreach"),
    [
        (CPU, "32-true", None, True),
        (GPU, "32-true", True, None),
        (GPU, "bf16-mixed", True, None),
        (GPU, "16-mixed", None, True),
    ],
)
def test_the_switch_that_is_set(
    kind: type[torch.optim.Optimizer], device: torch.device, precision: str, fused: bool | None, foreach: bool | None
) -> None:
    group = with_fast_step(partial(kind, lr=0.1), device, precision)(parameters()).param_groups[0]
    assert (group["fused"], group["foreach"]) == (fused, foreach)
    assert group["lr"] == 0.1


def test_divided_weights_take_foreach() -> None:
    make = with_fast_step(partial(torch.optim.Adam, lr=0.1), GPU, "32-true", sharded=True)
    assert make(parameters()).param_groups[0]["fused"] is None
    assert make(parameters()).param_groups[0]["foreach"] is True


@pytest.mark.parametrize("given", [{"foreach": True}, {"foreach": False}, {"fused": False}])
def test_what_is_chosen_stays(given: dict[str, bool]) -> None:
    make = partial(torch.optim.Adam, lr=0.1, **given)
    assert with_fast_step(make, GPU, "32-true") is make


def test_an_optimiser_without_switches_stays() -> None:
    make = partial(torch.optim.SparseAdam, lr=0.1)
    assert with_fast_step(make, GPU, "32-true") is make


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_a_step_on_the_cpu_has_the_bits_of_a_plain_one(kind: type[torch.optim.Optimizer]) -> None:
    plain, fast = parameters(), parameters()
    make = partial(kind, lr=1e-2, betas=(0.9, 0.99))
    optimisers = make(plain), with_fast_step(make, CPU, "32-true")(fast)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        for one, other in zip(plain, fast, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    assert all(torch.equal(one, other) for one, other in zip(plain, fast, strict=True))


def test_a_saved_state_goes_on_with_the_kernels_of_this_device() -> None:
    """A fused step keeps its count on the device, which a state saved without it would not put there."""
    given, other = parameters(), parameters()
    plain, fused = torch.optim.Adam(given, lr=0.1), torch.optim.Adam(other, lr=0.1, fused=True)
    for parameter in given:
        parameter.grad = torch.ones_like(parameter)
    plain.step()
    state = deepcopy(plain.state_dict())
    take_options({"optimizer_states": [state]}, fused, 1.0)
    fused.load_state_dict(state)
    assert fused.param_groups[0]["fused"] is True
    for one, two in zip(given, other, strict=True):
        two.data.copy_(one.data)
        one.grad = two.grad = torch.full_like(one, 2.0)
    plain.step()
    fused.step()
    for one, two in zip(given, other, strict=True):
        torch.testing.assert_close(two, one, rtol=0, atol=1e-6)


def test_options_are_the_new_ones_and_moments_the_saved_ones() -> None:
    former, own = torch.optim.Adam(parameters(), lr=0.1), torch.optim.Adam(parameters(), lr=0.02, betas=(0.8, 0.9))
    for parameter in former.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    former.step()
    checkpoint = {"optimizer_states": [deepcopy(former.state_dict())], "lr_schedulers": [{"base_lrs": [0.1]}]}
    take_options(checkpoint, own, 0.5)
    own.load_state_dict(checkpoint["optimizer_states"][0])
    group = own.param_groups[0]
    assert (group["lr"], group["initial_lr"], group["betas"]) == (0.01, 0.02, (0.8, 0.9))
    assert checkpoint["lr_schedulers"] == [{"base_lrs": [0.02], "_last_lr": [0.01]}]
    for new, old in zip(group["params"], former.param_groups[0]["params"], strict=True):
        assert torch.equal(own.state[new]["exp_avg"], former.state[old]["exp_avg"])


@pytest.mark.parametrize(
    ("kind", "given", "sentence"),
    [
        (torch.optim.Adam, {"lr": -1.0}, r"optimiser\.lr=-1\.0: Invalid learning rate"),
        (torch.optim.Adam, {"lr": math.inf}, r"optimiser\.lr=inf: must be a finite number"),
        (torch.optim.Adam, {"betas": [2, 2]}, r"optimiser\.betas=\[2, 2\]: Invalid beta parameter at index 0"),
        (torch.optim.Adam, {"betas": 0.9}, r"optimiser\.betas=0\.9: "),
        (torch.optim.Adam, {"eps": -1e-8, "lr": 0.1}, r"optimiser\.eps=-1e-08: Invalid epsilon value"),
        (torch.optim.Adam, {"eps": "x", "lr": 0.1}, r"optimiser\.eps=x: "),
        (torch.optim.Adam, {"momentum": 0.9}, r"optimiser\.momentum=0\.9: .*unexpected keyword"),
        (torch.optim.SGD, {"nesterov": True, "lr": 0.1}, r"optimiser\.nesterov=True: Nesterov momentum requires"),
        (torch.optim.Adam, {"lr": -1.0, "eps": -1.0}, r"optimiser: Invalid"),
    ],
)
def test_options_that_are_refused_are_named(kind: type, given: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check_options(partial(kind, **given), parameters())


def test_what_an_optimiser_keeps_is_told_by_a_step() -> None:
    assert kept_of(partial(torch.optim.Adam, lr=0.1)) == {"step", "exp_avg", "exp_avg_sq"}
    assert kept_of(partial(torch.optim.Adam, amsgrad=True)) == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
    assert kept_of(partial(torch.optim.SGD, lr=0.1)) == set()
    assert kept_of(partial(torch.optim.SGD, lr=0.1, momentum=0.9)) == {"momentum_buffer"}
    assert kept_of(partial(torch.optim.Adam, capturable=True)) is None
