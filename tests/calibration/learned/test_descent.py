"""Adam's steps on a family: the gradient of the mean loss, what the steps reach, and what ends them."""

from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from learned_models import Counting, anisotropic, solver, start, subject, zeros
from torch import Tensor, nn

from scoreline.calibration.distances import fine_ends
from scoreline.calibration.learned.descent import BACKWARDS, LINKS, Plan, Turn, descend, gradients
from scoreline.calibration.learned.family import Family, Free, theory_of
from scoreline.calibration.learned.losses import SoftTarget, distance
from scoreline.calibration.learned.seed_groups import SeedGroup, split_seeds
from scoreline.storage.resumable import Parts

PLAN = Plan(60, 16, 0.05, distance, 1e9)
NEVER = SoftTarget(0.0)


def family(name: str = "velocity", nfe: int = 4, **free: object) -> Family:
    table = start(name, nfe)
    return Family(table, theory_of(solver(name), table), Free(**free), 0.7)  # type: ignore[arg-type]


def sides(count: int = 24, batch_size: int = 16, net: nn.Module | None = None) -> tuple[SeedGroup, SeedGroup]:
    of = subject(range(count), net, batch_size)
    return split_seeds(of, fine_ends(of))


def leaf(of: Family) -> Tensor:
    drawn = torch.randn(of.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return 0.02 * drawn


@pytest.mark.parametrize("name", ["velocity", "deis_tab3"])
def test_the_gradient_agrees_with_central_differences(name: str) -> None:
    (train, _), of = sides(), family(name)
    theta = leaf(of)
    found = gradients(train, of, theta, PLAN, NEVER).mean(0)
    for p in range(of.size):
        moved = zeros(of.size)
        moved[p] = 1e-3
        up, down = (train.mean(of(theta + sign * moved)) for sign in (1, -1))
        assert float(found[p]) == pytest.approx((up - down) / 2e-3, rel=0.02, abs=2e-3 * float(found.abs().max()))


def test_steps_lower_the_held_out_distance() -> None:
    (train, held), of, told = sides(60), family(), list[float]()
    theta = descend([Turn(of, 1.0)], zeros(of.size), train, PLAN, told.append)
    assert held.mean(of(theta)) < held.mean(of.start) / 5
    assert sum(told) == pytest.approx(60 * 16 * 4 * BACKWARDS)


@pytest.mark.parametrize("rate", [1e3, 1e200])
def test_steps_that_overflow_end_the_descent_at_a_tableau(rate: float) -> None:
    (train, _), of = sides(), family()
    theta = descend([Turn(of, 1.0)], zeros(of.size), train, PLAN._replace(rate=rate))
    assert bool(of(theta).S.isfinite().all())


@pytest.mark.parametrize("radius", [0.0, 0.1])
def test_a_descent_that_was_killed_goes_on_to_the_bit(radius: float, tmp_path: Path) -> None:
    (train, _), of, plan = sides(), family(), PLAN._replace(steps=40, radius=radius)
    whole, told, parts = descend([Turn(of, 1.0)], zeros(of.size), train, plan), list[float](), Parts(tmp_path, "stamp")
    numbers = count()

    def stop_in_step_31(evaluations: float) -> None:
        if next(numbers) == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        descend([Turn(of, 1.0)], zeros(of.size), train, plan, stop_in_step_31, parts)
    assert parts.links(LINKS) == LINKS * 30 // 40
    assert len(list(tmp_path.iterdir())) == 1
    assert torch.equal(descend([Turn(of, 1.0)], zeros(of.size), train, plan, told.append, parts), whole)
    assert len(told) == 10


def test_a_run_that_diverges_ends_the_descent() -> None:
    class Broken(nn.Linear):
        def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
            return x * torch.where(noise > 0, torch.inf, 1.0).reshape(-1, 1, 1, 1)

    (train, _), of = sides(), family()
    broken = SeedGroup(replace(train.subject, denoiser=subject(range(3), Broken(1, 1)).denoiser), train.ends)
    assert torch.equal(descend([Turn(of, 1.0)], zeros(of.size), broken, PLAN), zeros(of.size))


def test_batches_and_labels_reach_the_network() -> None:
    counting = Counting(anisotropic())
    of = replace(subject(range(21), counting, batch_size=5), labels=torch.arange(100, 121))
    (train, _), near = split_seeds(of, fine_ends(of)), family(nfe=3)
    found = gradients(train, near, zeros(near.size), PLAN, NEVER)
    assert counting.rows == 5
    assert counting.labels == set(range(100, 121))
    shares = torch.arange(len(train.subject.seeds)).chunk(len(found))
    for share, row in zip(shares, found, strict=True):
        apart = gradients(train.select(share), near, zeros(near.size), PLAN, NEVER).mean(0)
        torch.testing.assert_close(row, apart * len(share) * len(found) / 14, rtol=1e-4, atol=1e-6)


def test_turns_take_every_seed_as_often() -> None:
    (train, _), seen = sides(), list[int]()
    for step in range(16):
        seen += train.turn(step, 5).subject.seeds
    assert [seen.count(seed) for seed in train.subject.seeds] == [5] * 16
