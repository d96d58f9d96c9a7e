import math
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn

from scoreline.errors import InputError
from scoreline.runtime import device
from scoreline.training import gradients
from scoreline.training.gradients import (
    Gradients,
    NotFiniteError,
    check_options,
    moments_of,
    take_options,
    with_fast_step,
)


def parameters(*values: list[float]) -> list[torch.nn.Parameter]:
    made = [torch.nn.Parameter(torch.zeros(len(value))) for value in values]
    for parameter, value in zip(made, values, strict=True):
        parameter.grad = torch.tensor(value)
    return made


def test_finite_gradients_are_left_alone() -> None:
    rule, given = Gradients(), parameters([3.0, 0.0], [4.0])
    rule(given)
    assert given[0].grad.tolist() == [3, 0]
    assert float(rule.norm) == 5
    assert rule.bad_steps == 0


def test_non_finite_entries_are_replaced_and_counted() -> None:
    rule, given = Gradients(), parameters([math.nan, 2.0], [math.inf, -math.inf])
    rule(given)
    assert given[0].grad.tolist() == [0, 2]
    assert given[1].grad.tolist() == [1e5, -1e5]
    rule(parameters([1.0]))
    rule(parameters([math.nan]))
    assert (rule.bad_steps, rule.in_a_row) == (2, 1)


@pytest.mark.parametrize("clip", [0.5, 20.0])
def test_clipping_is_torchs(clip: float) -> None:
    rule, given, other = Gradients(clip), parameters([3.0, 0.0], [4.0]), parameters([3.0, 0.0], [4.0])
    rule(given)
    torch.nn.utils.clip_grad_norm_(other, clip)
    for a, b in zip(given, other, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=0)


def test_repaired_gradient_is_clipped_by_its_new_norm() -> None:
    rule, given = Gradients(clip=1.0), parameters([math.nan, 3.0, 4.0])
    rule(given)
    torch.testing.assert_close(given[0].grad, torch.tensor([0.0, 0.6, 0.8]))


def test_many_bad_steps_stop_the_training() -> None:
    rule = Gradients(patience=3)
    for _ in range(2):
        rule(parameters([math.nan]))
    rule(parameters([1.0]))
    restored = Gradients(patience=3)
    for _ in range(2):
        rule(parameters([math.nan]))
    restored.load_state_dict(rule.state_dict())
    for each in (rule, restored):
        with pytest.raises(NotFiniteError, match=r"gradients\.patience=3: .* lower optimiser.lr"):
            each(parameters([math.nan]))


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (device, gradients):
        monkeypatch.setattr(module, "computes_apart", lambda device: True)


@pytest.mark.parametrize("clip", [None, 0.5, 20.0])
@pytest.mark.parametrize("bad", [False, True])
def test_gpu_gradients_become_those_of_the_cpu(clip: float | None, bad: bool, request: pytest.FixtureRequest) -> None:
    values = [[3.0, math.nan if bad else 0.0], [4.0, -math.inf if bad else 1.0]]
    plain, late = parameters(*values), parameters(*values)
    rules = Gradients(clip), Gradients(clip)
    rules[0](plain)
    request.getfixturevalue("as_on_gpu")
    rules[1](late)
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(plain, late, strict=True))
    assert torch.equal(rules[0].norm, rules[1].norm) or bad
    assert rules[0].state_dict() == rules[1].state_dict() == {"bad_steps": int(bad), "in_a_row": int(bad)}


def test_a_gpu_stops_the_training_one_step_later(as_on_gpu: None) -> None:
    rule = Gradients(patience=3)
    for _ in range(3):
        rule(parameters([math.nan]))
    assert (rule.bad_steps, rule.in_a_row) == (3, 3)
    with pytest.raises(NotFiniteError, match=r"gradients\.patience=3"):
        rule(parameters([1.0]))


@pytest.mark.parametrize("clip", [0, -1, math.nan, "much"])
def test_clips_that_are_none(clip: object) -> None:
    with pytest.raises(InputError, match=r"gradients\.clip="):
        Gradients(clip)


@pytest.mark.parametrize("patience", [0, 1.5, True])
def test_patience_that_is_none(patience: object) -> None:
    with pytest.raises(InputError, match=r"gradients\.patience="):
        Gradients(patience=patience)


CPU, GPU = torch.device("cpu"), torch.device("cuda")


def weights() -> list[nn.Parameter]:
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
    group = with_fast_step(partial(kind, lr=0.1), device, precision)(weights()).param_groups[0]
    assert (group["fused"], group["foreach"]) == (fused, foreach)
    assert group["lr"] == 0.1


def test_divided_weights_take_foreach() -> None:
    make = with_fast_step(partial(torch.optim.Adam, lr=0.1), GPU, "32-true", sharded=True)
    group = make(weights()).param_groups[0]
    assert (group["fused"], group["foreach"]) == (None, True)


@pytest.mark.parametrize(
    "make",
    [partial(torch.optim.Adam, foreach=False), partial(torch.optim.Adam, fused=False), partial(torch.optim.SparseAdam)],
)
def test_chosen_kernels_stay(make: partial) -> None:
    assert with_fast_step(make, GPU, "32-true") is make


def test_foreach_step_equals_a_plain_one_in_bits() -> None:
    plain, fast = weights(), weights()
    make = partial(torch.optim.Adam, lr=1e-2, betas=(0.9, 0.99))
    optimisers = make(plain), with_fast_step(make, CPU, "32-true")(fast)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        for one, other in zip(plain, fast, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    assert all(torch.equal(one, other) for one, other in zip(plain, fast, strict=True))


def test_saved_state_takes_kernels_of_this_device() -> None:
    """A fused step keeps its count on the device, which a state saved without it would not put there."""
    given, other = weights(), weights()
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


def test_resumed_optimiser_has_new_options_and_saved_moments() -> None:
    former, own = torch.optim.Adam(weights(), lr=0.1), torch.optim.Adam(weights(), lr=0.02, betas=(0.8, 0.9))
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
        (torch.optim.Adam, {"lr": -1.0}, r"optimiser\.lr=-1\.0: "),
        (torch.optim.Adam, {"lr": math.inf}, r"optimiser\.lr=inf: "),
        (torch.optim.Adam, {"betas": 0.9}, r"optimiser\.betas=0\.9: "),
        (torch.optim.Adam, {"eps": "x", "lr": 0.1}, r"optimiser\.eps=x: "),
        (torch.optim.Adam, {"momentum": 0.9}, r"optimiser\.momentum=0\.9: "),
        (torch.optim.SGD, {"nesterov": True, "lr": 0.1}, r"optimiser\.nesterov=True: "),
        (torch.optim.Adam, {"lr": -1.0, "eps": -1.0}, r"optimiser: Invalid"),
    ],
)
def test_options_that_are_refused_are_named(kind: type, given: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check_options(partial(kind, **given), weights())


def test_moments_are_named_by_a_step() -> None:
    assert moments_of(partial(torch.optim.Adam, lr=0.1)) == {"step", "exp_avg", "exp_avg_sq"}
    assert moments_of(partial(torch.optim.Adam, amsgrad=True)) == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
    assert moments_of(partial(torch.optim.SGD, lr=0.1)) == set()
    assert moments_of(partial(torch.optim.SGD, lr=0.1, momentum=0.9)) == {"momentum_buffer"}
    assert moments_of(partial(torch.optim.Adam, capturable=True)) is None
