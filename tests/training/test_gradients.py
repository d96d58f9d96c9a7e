import math

import pytest
import torch

from scoreline import device
from scoreline.errors import InputError
from scoreline.training import gradients
from scoreline.training.gradients import Gradients, NotFiniteError
from scoreline.training.levels import EDGES, NAMES, LossSums, described


def parameters(*values: list[float]) -> list[torch.nn.Parameter]:
    made = [torch.nn.Parameter(torch.zeros(len(value))) for value in values]
    for parameter, value in zip(made, values, strict=True):
        parameter.grad = torch.tensor(value)
    return made


def test_finite_gradients_are_left_alone_and_their_norm_is_kept() -> None:
    rule, given = Gradients(), parameters([3.0, 0.0], [4.0])
    rule(given)
    assert given[0].grad.tolist() == [3, 0]
    assert float(rule.norm) == 5
    assert rule.bad_steps == 0


def test_entries_that_are_not_finite_are_replaced_and_counted() -> None:
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


def test_a_mended_gradient_is_clipped_to_the_norm_it_has_now() -> None:
    rule, given = Gradients(clip=1.0), parameters([math.nan, 3.0, 4.0])
    rule(given)
    torch.testing.assert_close(given[0].grad, torch.tensor([0.0, 0.6, 0.8]))


def test_many_bad_steps_in_a_row_stop_the_training() -> None:
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
def test_gradients_of_a_gpu_become_what_those_of_the_cpu_become(
    clip: float | None, bad: bool, request: pytest.FixtureRequest
) -> None:
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


def test_losses_by_level_are_means_with_their_error() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(500, generator=generator)
    levels = torch.logspace(-3, 2, 500, dtype=torch.float64)[torch.randperm(500, generator=generator)]
    sums = LossSums(torch.device("cpu"))
    for part in range(5):
        sums.add(losses[part::5], levels[part::5])
    found = described(sums.sums, "fixed_")
    assert found["fixed_images"] == 500
    assert found["fixed_loss"] == pytest.approx(float(losses.mean()))
    assert found["fixed_loss_error"] == pytest.approx(float(losses.std()) / 500**0.5)
    edges = [0.0, *EDGES, math.inf]
    for name, low, high in zip(NAMES, edges, edges[1:], strict=False):
        inside = (levels > low) & (levels <= high)
        assert found["fixed_loss_bins"][name] == pytest.approx(float(losses[inside].mean()))


def test_one_loss_has_no_error_and_empty_levels_no_mean() -> None:
    sums = LossSums(torch.device("cpu"))
    sums.add(torch.tensor([2.0]), torch.tensor([0.5]))
    found = described(sums.sums)
    assert found["loss"] == 2
    assert found["loss_error"] is None
    assert found["loss_bins"] == {"0.3-1": 2.0}
