"""Score-optimal levels learnt while training: the update, the callback, resuming, processes, the record."""

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning import Trainer
from runs import script, tiny_fit, tiny_module
from safetensors.torch import load_file
from torch import Tensor

from scoreline.calibration.online_length import Adaptation, LengthDensity, OnlineLength, step_costs
from scoreline.calibration.score_cost import corrector
from scoreline.commands import inspect
from scoreline.config import run_names
from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.objective import UniformTime
from scoreline.parameterisations import VarianceExploding
from scoreline.records import Record, load_record
from scoreline.schedules.base import grid
from scoreline.schedules.score_optimal import load_schedule
from scoreline.schedules.spacings import Power
from scoreline.schedules.vp import LinearVP
from scoreline.storage.files import sha256
from scoreline.training import preview
from scoreline.training.ema_callback import EMACallback, ema_of
from scoreline.training.online_schedule import OnlineSchedule, _places, online_schedule_of
from scoreline.training.preview import Preview
from scoreline.training.training_log import TrainingProgress
from scoreline.training.training_state import Checkpointing, list_checkpoints

ROOT = Path(__file__).parents[2]
C, HIGH, LOW = 0.5, 80.0, 0.002
QUIET = pytest.mark.filterwarnings("ignore:.*num_workers.*", "ignore:.*does not have many workers.*")


class ExactScore(torch.nn.Module):
    """F = -eps = -rho x / (C^2 + rho^2) for N(0, C^2), in VE form: the label is ln(rho / 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        rho = (2 * noise.exp()).reshape(-1, 1, 1, 1)
        return -rho * x / (C**2 + rho**2)


GAUSSIAN = Denoiser(ExactScore(), VarianceExploding())


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_cost_per_image_is_the_correctors() -> None:
    clean, fresh = normal(0, 5, 1, 2, 3), normal(1, 5, 1, 2, 3)
    low = torch.tensor([0.01, 0.1, 0.5, 2.0, 30.0], dtype=torch.float64)
    high = low * 1.3
    found = step_costs(GAUSSIAN, clean, fresh, high, low, None)
    for k in range(5):
        x = clean[k : k + 1] + high[k] * fresh[k : k + 1]
        expected = corrector(lambda x, rho: rho * x / (C**2 + rho**2), x, float(high[k]), float(low[k]))
        torch.testing.assert_close(found[k : k + 1], expected, rtol=1e-9, atol=0)


def closed(rho: Tensor) -> Tensor:
    """Lambda of N(0, C^2) over that of the whole range."""
    ends = torch.tensor([LOW, HIGH], dtype=torch.float64)
    start, end = (2 * ((e / C).asinh() - e / (e**2 + C**2).sqrt()) for e in ends)
    return (2 * ((rho / C).asinh() - rho / (rho**2 + C**2).sqrt()) - start) / (end - start)


def adapted(rule: Adaptation, updates: int) -> OnlineLength:
    """Fed with exact scores at every interval in turn until it has moved so often."""
    length = OnlineLength.even(rule, HIGH, LOW)
    places = torch.arange(length.intervals)
    for number in range(updates):
        for visit in range(rule.visits):
            clean, fresh = (normal(3 * (number * rule.visits + visit) + k, length.intervals, 1, 8, 8) for k in (0, 1))
            costs = step_costs(GAUSSIAN, C * clean, fresh, length.rho[1:], length.rho[:-1], None)
            assert length.update() is False
            length.add(places, costs)
        assert length.update() is True
    return length


def settled(levels: int) -> tuple[np.ndarray, float]:
    """Algorithm 1 in NumPy, with the closed form of the source-weighted cost, until costs are equal: levels, length."""
    rho = np.geomspace(LOW, HIGH, levels)
    for _ in range(60):
        low, high = rho[:-1], rho[1:]
        step = high * (high**2 - low**2) / ((C**2 + high**2) ** 0.5 * (C**2 + low**2))
        length = np.concatenate([[0], step.cumsum()])
        even = np.interp(np.linspace(0, length[-1], levels), length, np.log(rho))
        rho = np.exp((np.log(rho) + even) / 2)
    return rho, float(length[-1])


def test_levels_converge_to_a_gaussians_closed_form() -> None:
    length = adapted(Adaptation(gamma=0.1, levels=101, visits=4), 60)
    even = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert float((closed(length.rho) - even).abs().max()) < 0.015, "0.007 of it is that of 100 finite steps"
    levels, whole = settled(101)
    np.testing.assert_allclose(length.rho[1:-1], levels[1:-1], rtol=0.03)
    assert whole == pytest.approx(9.5367, rel=0.06)
    assert length.initial == pytest.approx(0.9**60)
    assert float(length.values()["length"][-1]) / 8 == pytest.approx(whole, rel=0.01)
    assert (length.updates, length.dropped, length.images) == (60, 0, 60 * 4 * 100)


def test_the_published_weight_drifts_as_its_docstring_says() -> None:
    """The cost of a Gaussian in closed form, many updates: no drift with the source's velocity."""
    worst = {}
    for weight, exponent in (("destination", 0.0), ("source", 1.0)):
        rule = Adaptation(0.05, 101, 1, 1.0, weight)
        length = OnlineLength.even(rule, HIGH, LOW)
        for number in range(1, 1001):
            low, high = length.rho[:-1], length.rho[1:]
            work = (high**2 - low**2) ** 2 / ((C**2 + high**2) * (C**2 + low**2) ** 2)
            length.add(torch.arange(100), work)
            assert length.update()
            if number in (200, 1000):
                expected = work * low ** (2 - 2 * exponent) * high ** (2 * exponent)
                torch.testing.assert_close(length.cost, expected, rtol=1e-12, atol=0)
                even = torch.linspace(0, 1, 101, dtype=torch.float64)
                worst[weight, number] = round(float((closed(length.rho) - even).abs().max()), 3)
    assert worst == {
        ("destination", 200): 0.058,
        ("destination", 1000): 0.313,
        ("source", 200): 0.007,
        ("source", 1000): 0.007,
    }


def test_update_waits_for_every_interval() -> None:
    rule = Adaptation(gamma=1.0, levels=4, visits=2, velocity=0)
    length = OnlineLength.even(rule, 8.0, 1.0)
    length.add(torch.tensor([0, 0, 1, 1, 2, 1]), torch.tensor([1.0, 7.0, 16.0, 16.0, 64.0, 16.0]))
    before = length.rho.clone()
    assert not length.update(), "six images, but interval 2 had one"
    assert torch.equal(length.rho, before)
    length.add(torch.tensor([2]), torch.tensor([64.0]))
    assert length.update()
    assert length.steps.tolist() == pytest.approx([2, 4, 8]), "the root of the mean of 1 and 7 is 2"
    expected = [1, 2 * 2 ** ((14 / 3 - 2) / 4), 4 * 2 ** ((28 / 3 - 6) / 8), 8]
    assert length.rho.tolist() == pytest.approx(expected)
    assert length.drawn == 0
    assert int(length.counts.sum()) == 0


@pytest.mark.parametrize("gamma", [0.05, 1.0])
def test_levels_stay_apart_and_finite_for_any_costs(gamma: float) -> None:
    """Zeros, one huge interval again and again (a collapse), NaN, infinity, denormal numbers, random scales."""
    generator = torch.Generator().manual_seed(0)
    scales = 10 ** (600 * torch.rand(60, 30, generator=generator, dtype=torch.float64) - 320)
    top, bottom = torch.zeros(30), torch.zeros(30)
    top[-1], bottom[0] = 3e38, 1e-40
    kinds: dict[str, list[Tensor]] = {
        "zeros": [torch.zeros(30)] * 3,
        "all at the noisy end": [top] * 400,
        "all at the clean end": [bottom] * 400,
        "any scale": list(scales),
        "not finite": [torch.full((30,), value) for value in (math.nan, math.inf, -math.inf)],
    }
    for kind, costs in kinds.items():
        length = OnlineLength.even(Adaptation(gamma, levels=31, visits=1), 100.0, 0.01)
        width = math.log(100.0 / 0.01) / 30
        for cost in costs:
            length.add(torch.arange(30), cost)
            length.update()
            assert length.rho[[0, -1]].tolist() == pytest.approx([0.01, 100.0], rel=1e-12), kind
            assert bool(length.rho.isfinite().all()), kind
            assert float(length.rho.log().diff().min()) > 0.99e-3 * width, kind
            length.schedule()
        if kind == "zeros":
            assert (length.updates, length.drawn) == (0, 0)
        if kind == "not finite":
            assert (length.updates, length.dropped, length.images) == (0, 90, 90)
        if kind.startswith("all"):
            assert length.updates == 400
            assert float(length.rho.log().diff().max()) > 20 * width, "it did collapse"


def test_non_finite_image_is_dropped() -> None:
    length = OnlineLength.even(Adaptation(0.5, levels=4, visits=1), 8.0, 1.0)
    length.add(torch.arange(3), torch.tensor([1.0, math.nan, 4.0]))
    assert not length.update()
    assert (length.dropped, length.counts.tolist()) == (1, [1, 0, 1])
    length.add(torch.tensor([1]), torch.tensor([2.0]))
    assert length.update()
    assert length.dropped == 1


def test_the_state_goes_on_to_the_bit() -> None:
    def fed(length: OnlineLength, rounds: range) -> OnlineLength:
        for number in rounds:
            length.add(torch.arange(7).roll(number)[:5], normal(number, 5).square())
            length.update()
        return length

    rule = Adaptation(0.3, levels=8, visits=3)
    whole = fed(OnlineLength.even(rule, 10.0, 0.1), range(40))
    half = fed(OnlineLength.even(rule, 10.0, 0.1), range(22))
    assert half.updates > 1
    assert half.drawn > 0
    rest = OnlineLength.even(rule, 10.0, 0.1)
    rest.load_state_dict(half.state_dict())
    fed(rest, range(22, 40))
    assert torch.equal(rest.rho, whole.rho)
    assert torch.equal(rest.state_dict()["sums"], whole.state_dict()["sums"])
    with pytest.raises(InputError, match=r"levels=9: the run to go on with has 8; use 8"):
        OnlineLength.even(Adaptation(levels=9), 10.0, 0.1).load_state_dict(half.state_dict())


def test_a_density_even_in_length() -> None:
    length = adapted(Adaptation(gamma=1.0, levels=40, visits=4), 2)
    u = torch.linspace(0, 1, 200, dtype=torch.float64)
    rho = LengthDensity(length.schedule()).inverse(u)
    counts = torch.histogram(rho, length.rho)[0]
    assert set(counts[1:-1].tolist()) <= {5.0, 6.0}, "as many between any two levels"
    torch.testing.assert_close(LengthDensity(length.schedule())(rho), u)


VP = LinearVP()
FEW: dict[str, Any] = {"gamma": 0.2, "levels": 9, "visits": 3}


def online(burn_in_kimg: float = 0.064, images_per_step: int = 8, **options: Any) -> OnlineSchedule:
    return OnlineSchedule(burn_in_kimg, images_per_step, **{**FEW, **options})


def fit(
    root: Path, steps: int, schedule: OnlineSchedule, classes: int = 0, every: float = 0.08, preview_kimg: float = 100
) -> Trainer:
    callbacks = [EMACallback(1, 0.2), TrainingProgress(steps * 0.016, 0.16), Preview(preview_kimg)]
    module = tiny_module(classes=classes, dropout=0.1)
    return tiny_fit(root, steps, module, [*callbacks, Checkpointing(every), schedule])


def lines(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "online_schedule.jsonl").read_text().splitlines()]


def raw(root: Path) -> dict[str, Any]:
    return torch.load(list_checkpoints(root)[0], weights_only=True)


@QUIET
def test_n_steps_and_n_more_are_2n(tmp_path: Path) -> None:
    """Stopped between two updates: levels, sums, lines and weights are those of the run that never stopped."""
    whole = fit(tmp_path / "whole", 22, online(as_density=True))
    fit(tmp_path / "halves", 11, online(as_density=True))
    assert raw(tmp_path / "halves")["callbacks"]["OnlineSchedule"]["drawn"] > 0
    trainer = fit(tmp_path / "halves", 22, online(as_density=True))
    one, two = (raw(tmp_path / name) for name in ("whole", "halves"))
    for name, value in one["callbacks"]["OnlineSchedule"].items():
        other = two["callbacks"]["OnlineSchedule"][name]
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other, name
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())
    assert lines(tmp_path / "halves") == lines(tmp_path / "whole")
    assert [line["updates"] for line in lines(tmp_path / "whole")] == list(range(1, 6 + 1))
    first, second = (load_file(tmp_path / name / "model.score_optimal.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(value.nan_to_num(), second[name].nan_to_num()) for name, value in first.items())
    for run in (whole, trainer):
        assert isinstance(run.lightning_module.objective.density, LengthDensity)


@QUIET
def test_update_at_a_checkpoint_is_recorded_once(tmp_path: Path) -> None:
    """Checkpoints come before updates of the same step: their lines are written again, and stand there once."""
    fit(tmp_path, 10, online(), every=0.016)
    former = lines(tmp_path)
    assert [line["step"] for line in former] == [6, 9], "three steps measure every interval three times"
    last, before = list_checkpoints(tmp_path)
    assert int(before.stem) == 9 * 16
    last.unlink()
    fit(tmp_path, 10, online(), every=0.016)
    assert lines(tmp_path) == former


@QUIET
def test_record_is_bound_to_the_last_model(tmp_path: Path) -> None:
    trainer = fit(tmp_path, 22, online(), classes=10)
    path, digest = tmp_path / "model.score_optimal.safetensors", sha256(tmp_path / "model.safetensors")
    record = load_record(path, "score_optimal", digest)
    assert record.provenance["estimator"] == "OnlineSchedule"
    assert record.provenance["updates"] == lines(tmp_path)[-1]["updates"] == 6
    assert record.provenance["images"] == 18 * 8, "four steps of burn-in"
    assert grid(load_schedule(path, digest), VP.sigma_max, VP.sigma_min, 8).flip(0).tolist() == pytest.approx(
        record.values["rho"].tolist()
    )
    assert bool(record.values["standard_error"].isnan().all())
    assert "OnlineSchedule" in inspect.text(path)
    assert (tmp_path / "online_schedule.png").read_bytes()[:4] == b"\x89PNG"
    assert "6 updates" in (callback := trainer.callbacks[-1]).summary()
    assert isinstance(callback, OnlineSchedule)
    fit(tmp_path, 22, online(), classes=10)
    again = load_record(path, "score_optimal", digest)
    assert torch.equal(again.values["rho"], record.values["rho"]), "the same command again"
    Record("score_optimal", record.values, {**record.provenance, "estimator": "CumulativeLength"}).save(path)
    former = path.read_bytes()
    kept = fit(tmp_path, 22, online(), classes=10).callbacks[-1]
    assert path.read_bytes() == former
    assert "is kept" in kept.summary()
    assert fit(tmp_path, 23, online(), classes=10).callbacks[-1].written.endswith("schedule=score_optimal")
    assert load_record(path, "score_optimal", sha256(tmp_path / "model.safetensors")).provenance["kimg"] == 0.368


@QUIET
def test_averaged_weights_are_measured_and_training_unchanged(tmp_path: Path) -> None:
    trainer = fit(tmp_path / "on", 12, online())
    shadow = trainer.callbacks[-1]._shadow(trainer, trainer.lightning_module)
    assert trainer.lightning_module.objective.density == UniformTime(VP)
    averaged = ema_of(trainer).averaged(trainer.lightning_module)
    for name, value in averaged.network.state_dict().items():
        assert torch.equal(shadow.network.state_dict()[name], value), name
        assert not torch.equal(trainer.lightning_module.denoiser.network.state_dict()["stem.weight"], value)
    assert not shadow.training
    fit(tmp_path / "off", 12, online(burn_in_kimg=100))
    same = load_file(tmp_path / "off/model.safetensors")
    assert all(torch.equal(v, same[k]) for k, v in load_file(tmp_path / "on/model.safetensors").items())


@QUIET
def test_unfinished_burn_in_leaves_no_record(tmp_path: Path) -> None:
    callback = fit(tmp_path, 2, online(burn_in_kimg=100)).callbacks[-1]
    assert callback.summary().startswith("online schedule: no update, hence no record: 0 of 24 images measured")
    assert "callbacks.online_schedule.burn_in_kimg" in callback.summary()
    assert not (tmp_path / "model.score_optimal.safetensors").exists()


@QUIET
def test_levels_survive_without_a_burn_in(tmp_path: Path) -> None:
    """An untrained score that is pure noise in every pixel: undamped updates at once, to a valid schedule."""
    it = online(burn_in_kimg=0, gamma=1.0, visits=1)
    fit(tmp_path, 4, it)
    rho = it.length.rho
    assert it.length.updates >= 3
    assert rho[[0, -1]].tolist() == [VP.sigma_min, VP.sigma_max]
    assert bool((rho.diff() > 0).all())
    assert load_schedule(tmp_path / "model.score_optimal.safetensors", sha256(tmp_path / "model.safetensors"))


@QUIET
def test_previews_use_the_schedule_once_it_has_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[object] = []

    def build(solver: Any, steps: Any, *rest: Any, **options: Any) -> Any:
        used.append(steps)
        return original(solver, steps, *rest, **options)

    original = preview.build_tableau
    monkeypatch.setattr(preview, "build_tableau", build)
    trainer = fit(tmp_path, 15, online(), preview_kimg=0.08)
    assert len(used) == 3
    assert used[0] == Power(7)
    last = online_schedule_of(trainer)
    assert last is not None
    assert type(used[1]) is type(used[2]) is type(last)


def test_intervals_come_in_shuffled_rounds() -> None:
    it = tiny_module()
    steps = []
    for step in range(50):
        stand = SimpleNamespace(seed=it.seed, global_step=step)
        steps.append(_places(stand, 20, 8).tolist())  # type: ignore[arg-type]
    assert set(Counter(place for step in steps for place in step).values()) == {20}
    assert len({tuple(step) for step in steps}) == 50


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"gamma": 0.0}, "callbacks.online_schedule.gamma=0.0: choose 0 < gamma <= 1"),
        ({"gamma": 1.01}, "callbacks.online_schedule.gamma=1.01: choose"),
        ({"gamma": math.nan}, "callbacks.online_schedule.gamma=nan: choose"),
        ({"levels": 2}, "callbacks.online_schedule.levels=2: a length needs 3 noise levels"),
        ({"visits": 0}, "callbacks.online_schedule.visits=0: every interval needs an image"),
        ({"weight": "sauce"}, "callbacks.online_schedule.weight=sauce"),
        ({"velocity": math.inf}, "callbacks.online_schedule.velocity=inf: must be a finite number"),
        ({"burn_in_kimg": -1}, "callbacks.online_schedule.burn_in_kimg=-1: must be 0 or more"),
        ({"images_per_step": 0}, "callbacks.online_schedule.images_per_step=0: must be a whole number, at least 1"),
        ({"as_density": "yes"}, "callbacks.online_schedule.as_density=yes: must be true or false"),
    ],
)
def test_refuses_settings_that_mean_nothing(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        online(**given)
    assert sentence in str(refused.value)


def test_too_many_images_per_step_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"images_per_step=17: a batch has 16 images; choose at most batch_size=16"):
        fit(tmp_path, 1, online(images_per_step=17))
    with pytest.raises(InputError, match=r"images_per_step=7: must be a multiple of the 2 processes"):
        online(images_per_step=7)._check_images(32, 2)


def test_choosing_it_is_another_run() -> None:
    run_names.register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        plain, chosen, dense = (
            compose("train", overrides).identity
            for overrides in (
                [],
                ["callbacks=online_schedule"],
                ["callbacks=online_schedule", "callbacks.online_schedule.as_density=true"],
            )
        )
    assert len({plain, chosen, dense}) == 3


@QUIET
def test_processes_measure_their_parts_and_sum_them(tmp_path: Path) -> None:
    """What each of two would hand to the sum: its own half of the costs, zeros in the other's."""
    trainer = fit(tmp_path, 5, online())
    it, parts = trainer.callbacks[-1], []
    images, labels = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8), torch.zeros(16, dtype=torch.int64)
    for rank in (0, 1):
        stand = SimpleNamespace(world_size=2, global_rank=rank, callbacks=trainer.callbacks)
        stand.strategy = SimpleNamespace(reduce=lambda costs, reduce_op: parts.append((costs, reduce_op)) or costs)
        it.length.drawn = 0
        it._measure(stand, trainer.lightning_module, images, labels)  # type: ignore[arg-type]
    (first, operation), (second, _) = parts
    assert operation == "sum"
    assert first[4:].tolist() == second[:4].tolist() == [0.0] * 4
    assert bool(((first + second) > 0).all())
    assert len(set((first + second).tolist())) == 8
    assert torch.equal(it.length._waiting[-1][0], it.length._waiting[-2][0]), "the same intervals on both"


PROCESSES = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import test_online_schedule as t
from scoreline.datasets.digits import Digits
from scoreline.training.data import ImageDataModule
from scoreline.training.training_state import AtomicCheckpointIO
from lightning import Callback, Trainer

class Keep(Callback):
    def on_fit_end(self, trainer, pl_module):
        torch.save(callback.state_dict(), f"{sys.argv[2]}/rank{trainer.global_rank}.pt")

if __name__ == "__main__":
    torch.set_num_threads(1)
    callback = t.online()
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp_fork", max_steps=16, max_epochs=-1, logger=False,
        callbacks=[t.EMACallback(1, 0.2), t.Checkpointing(0.08), callback, Keep()], plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, default_root_dir=sys.argv[2],
    )
    trainer.fit(t.tiny_module(dropout=0.1), ImageDataModule(Digits("train"), 16, seed=0))
"""


@pytest.mark.slow
def test_two_processes_hold_the_same_levels(tmp_path: Path) -> None:
    """Each measures half of the images with its own noise; both have the sums of all of them."""
    (tmp_path / "two.py").write_text(PROCESSES)
    command = [sys.executable, str(tmp_path / "two.py"), str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr
    zero, one = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in zero.items():
        assert torch.equal(value, one[name]) if isinstance(value, Tensor) else value == one[name], name
    assert (zero["updates"], zero["images"]) == (4, 12 * 8)
    assert len(set(zero["cost"].tolist())) == 8


def test_the_scripts_train_then_sample(tmp_path: Path) -> None:
    few = [f"callbacks.online_schedule.{k}={v}" for k, v in {**FEW, "burn_in_kimg": 0.8}.items()]
    small = ("model.network.width=8", "batch_size=16", "duration_kimg=2.4", "lr_rampup_kimg=0.5", "checkpoint_kimg=1.2")
    more = ("callbacks=online_schedule", "preview_kimg=100", "hydra.run.dir=run")
    told = script("train.py", tmp_path, *few, *small, *more)
    assert "online schedule: 33 updates" in told
    assert "0 of 800 images dropped -> model.score_optimal.safetensors" in told
    assert 10 < lines(tmp_path / "run")[-1]["length"] < 300
    columns = (tmp_path / "run/metrics.csv").read_text().splitlines()[0].split(",")
    assert {f"online_schedule/{name}" for name in ("length", "spread", "updates", "sigma_10", "sigma_90")} <= set(
        columns
    )
    told = script(
        "sample.py", tmp_path, "checkpoint=run", "schedule=score_optimal", "nfe=5", "seeds=0-3", "metrics=none"
    )
    assert "4 images, NFE 5" in told
