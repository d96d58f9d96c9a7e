"""The benchmarks of few evaluations and of learned tables, at tiny sizes."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor

from scoreline.calibration.distances import distances, fine_ends
from scoreline.calibration.ranking import Families
from scoreline.checkpoints import load_model
from scoreline.config.run_names import record_beside
from scoreline.datasets.base import ArrayDataset
from scoreline.datasets.digits import Digits
from scoreline.errors import InputError
from scoreline.generation.batches import generate
from scoreline.metrics.fidelity import Fidelity
from scoreline.metrics.frechet import GaussianStatistics, frechet_distance
from scoreline.records import Record
from scoreline.runtime import seeded_noise
from scoreline.schedules.spacings import LogSNR, Power
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.runge_kutta import heun
from scoreline.solvers.tableau import Tableau, build_tableau
from scoreline.storage.pictures import to_uint8
from scoreline.tables.render import with_error

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import exact_models
import few_evaluations
import learned
from few_evaluations import Bench, Method, Plan

TAB3 = few_evaluations.METHODS[0]
OPTIMAL = Method("deis_tab3", "score_optimal", "score_optimal")
WASTEFUL = Method("dpm_solver_2", "karras")


class TinyPlan(Plan):
    def calibration(self, kind: str) -> list[str]:
        return [f"calibration={kind}", "calibration.levels=6", "seeds=0-1", "nfe=4"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Three methods at NFE 5, three times four images; the schedule is calibrated by calibrate.py itself."""
    plan = TinyPlan(tmp_path_factory.mktemp("few"), 4, (5,), (TAB3, OPTIMAL, WASTEFUL))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few_evaluations, "FINE", 12)
        few_evaluations.work(plan, ["digits_classes"])
    return plan


def rows_of(plan: Plan) -> list[few_evaluations.Row]:
    rows: list[few_evaluations.Row] = json.loads((plan.out / "rows.json").read_text())
    return rows


def bench_of(plan: Plan, name: str) -> Bench:
    checkpoint = load_model(few_evaluations.place(plan.out / "models", name))
    return Bench(plan, checkpoint, few_evaluations.judge(checkpoint))


def test_every_cell_and_range_has_a_row(finished: Plan) -> None:
    rows = rows_of(finished)
    ranges = ["10000-10003", "10004-10007", "10008-10011"]
    expected = [(method.solver, method.schedule, 5, seeds) for method in finished.methods for seeds in ranges]
    expected += [("unipc_3", "karras", 12, seeds) for seeds in ranges]
    assert [(row["solver"], row["schedule"], row["nfe"], row["seeds"]) for row in rows] == expected
    assert all(row["left_out"] == "nfe=5: dpm_solver_2 spends 4" for row in rows if row["solver"] == "dpm_solver_2")
    assert list(rows[-1]["metrics"]) == ["frechet_distance"]


def test_distances_are_those_of_the_package(finished: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_evaluations, "FINE", 12)
    checkpoint = load_model(finished.out / "models" / "digits_classes" / "model.safetensors")
    subject = few_evaluations.subject_of(checkpoint, range(10_004, 10_008))
    found = rows_of(finished)[1]["metrics"]
    expected = distances(subject, few_evaluations.choose(checkpoint, TAB3, 5).run, fine_ends(subject))
    assert found["distance"]["value"] == pytest.approx(float(expected.mean()), rel=1e-4)
    assert found["distance_rms"]["value"] == pytest.approx(float(expected.square().mean().sqrt()), rel=1e-4)


def test_differences_are_paired_by_seed(finished: Plan) -> None:
    first, second = (
        np.concatenate([load_file(path)["values"] for path in sorted((finished.out / "distances").glob(f"*{kind}*"))])
        for kind in ("time_quadratic", "score_optimal")
    )
    found = json.loads((finished.out / "differences.json").read_text())
    assert [(row["schedule"], row["metric"]) for row in found] == [
        ("score_optimal", "distance"),
        ("score_optimal", "frechet_distance"),
    ]
    assert found[0]["difference"] == pytest.approx((second - first).mean(), rel=1e-9)
    assert found[0]["error"] == pytest.approx((second - first).std(ddof=1) / 12**0.5, rel=1e-9)
    rows = rows_of(finished)
    gaps = [rows[3 + k]["metrics"]["frechet_distance"]["value"] for k in range(3)]
    gaps = [gap - rows[k]["metrics"]["frechet_distance"]["value"] for k, gap in enumerate(gaps)]
    assert found[1]["difference"] == pytest.approx(np.mean(gaps), rel=1e-9)
    assert found[1]["error"] == pytest.approx(np.std(gaps, ddof=1) / 3**0.5, rel=1e-9)


def test_tables_show_the_means_over_ranges(finished: Plan) -> None:
    text = (finished.out / "few_evaluations.md").read_text()
    values = [row["metrics"]["distance"]["value"] for row in rows_of(finished)[:3]]
    error = np.std(values, ddof=1) / 3**0.5
    assert " +- ".join(with_error(float(np.mean(values)), float(error))) in text
    assert text.count("| deis_tab3 / time_quadratic |") == text.count("| deis_tab3 / score_optimal |") == 2
    assert text.count("| unipc_3 / karras, NFE 12 |") == 1
    assert "- dpm_solver_2 / karras: nfe=5: dpm_solver_2 spends 4." in text
    assert (finished.out / "few_evaluations.png").read_bytes()[:4] == b"\x89PNG"


def test_what_is_there_is_not_done_again(finished: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row is taken away; only its cell is drawn again, and comes out the same."""
    path, rows = finished.out / "rows.json", rows_of(finished)
    few_evaluations.write_json(path, [*rows[:4], *rows[5:]])
    drawn, real = [], Bench.drawn

    def noted(bench: Bench, run: Tableau, seeds: str) -> Tensor:
        drawn.append(seeds)
        return real(bench, run, seeds)

    monkeypatch.setattr(Bench, "drawn", noted)
    monkeypatch.setattr(few_evaluations, "FINE", 12)
    few_evaluations.work(finished, ["digits_classes"])
    assert drawn == ["10004-10007"]
    assert rows_of(finished)[-1] == rows[4]
    few_evaluations.write_json(path, rows)


def test_a_directory_belongs_to_one_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_evaluations.claim(tmp_path)
    few_evaluations.claim(tmp_path)
    monkeypatch.setattr(few_evaluations, "code_version", lambda: "another")
    with pytest.raises(InputError, match=r"was begun by version [0-9a-f]{12} of the code, this is another"):
        few_evaluations.claim(tmp_path)


def test_a_recommended_pair_is_the_one_that_runs(finished: Plan) -> None:
    checkpoint = load_model(finished.out / "models" / "digits_classes" / "model.safetensors")
    span = few_evaluations.span_of(checkpoint)
    provenance = {"checkpoint": checkpoint.digest, "candidates": [[[["ddim", "karras"]]]], "span": list(span)}
    record = record_beside(checkpoint.path, "search")
    Record("search", {"budgets": torch.tensor([5])}, provenance).save(record)
    chosen = few_evaluations.choose(checkpoint, Method("auto"), 5)
    record.unlink()
    assert chosen.recommended == "ddim / karras"
    torch.testing.assert_close(chosen.run.rho, build_tableau(DDIM(), Power(7), span, 5, "none").rho)


def test_exact_samples_have_the_reference_moments(finished: Plan) -> None:
    """Noised draws of the mixture: a distance that falls as 1/n, and 64 s^2 more for a shift of s."""
    bench, few, many = bench_of(finished, "digits_classes"), 1000, 16_000
    mixture = exact_models.mixture_of(bench.checkpoint)
    rho, generator = few_evaluations.span_of(bench.checkpoint)[1], torch.Generator().manual_seed(0)
    drawn = mixture.draw(many, generator)
    x = (drawn + rho * torch.randn(drawn.shape, generator=generator, dtype=drawn.dtype)).reshape(-1, 1, 8, 8)

    def apart(images: Tensor) -> float:
        return frechet_distance(GaussianStatistics.of(bench.judge.vectors(images)), bench.judge.right)

    assert apart(x[:few]) / apart(x) == pytest.approx(many / few, rel=0.3)
    assert apart(x + 0.5) - apart(x) == pytest.approx(64 * 0.25, rel=0.02)


def test_shipped_model_is_judged_by_the_metric(tmp_path: Path) -> None:
    plan = Plan(tmp_path, 40, (5,))
    bench = bench_of(plan, "digits_vp")
    assert record_beside(bench.checkpoint.path, "score_norm").exists()
    x = bench.drawn(few_evaluations.choose(bench.checkpoint, TAB3, 5).run, "0-39")
    found = bench.scores(x, torch.zeros(40, dtype=torch.float64))["frechet_distance"]
    expected = Fidelity(Digits("train"))(ArrayDataset("x", to_uint8(x)))["frechet_distance"]
    assert found["value"] == pytest.approx(expected["value"], rel=1e-9)
    assert found["error"] == pytest.approx(expected["error"], rel=1e-9)


FAMILIES = Families({"ddim": DDIM(), "heun": heun()}, {"karras": Power(7), "log_snr": LogSNR()})


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("learned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few_evaluations, "FINE", 20)
        patch.setattr(learned, "families_of", lambda checkpoint, words=(): FAMILIES)
        patch.setitem(learned.PLANS, "ring8", learned.Plan(48, 60, {"evaluations": 2000}))
        patch.setattr(learned, "STEPS", 5)
        learned.work(out, ["ring8"], [4])
    return out


def test_a_cell_of_learned_tables(taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = json.loads((taught / "learned.json").read_text())
    assert (row["model"], row["nfe"], row["training"], row["fresh"]) == ("ring8", 4, 48, 60)
    one, other = row["closed"], row["learned"]
    assert other["ratio_rms"]["value"] == pytest.approx(other["rms"] / one["rms"], rel=1e-12)
    assert 60 - one["changed"] - other["changed"] <= other["kept"] <= 60 - max(one["changed"], other["changed"])
    text = (taught / "learned.md").read_text()
    assert f"| 4 | {one['pair']} | {one['rms']:.3g}, {one['median']:.3g} |" in text
    assert "The plain recipe" in text
    monkeypatch.setattr(learned, "lesson", lambda *_: pytest.fail("the cell is there"))
    learned.work(taught, ["ring8"], [4])


@pytest.fixture
def ring(taught: Path) -> learned.Lesson:
    checkpoint = load_model(taught / "models" / "ring8" / "model.safetensors")
    subject = few_evaluations.subject_of(checkpoint, range(48))
    fresh = learned.Fresh(subject, fine_ends(subject).noisy, learned.modes_of(checkpoint))
    return learned.Lesson(checkpoint, FAMILIES, FAMILIES, {}, subject, fresh)


def table(names: tuple[str, str]) -> Tableau:
    solver, schedule = FAMILIES.solvers[names[0]], FAMILIES.schedules[names[1]]
    return build_tableau(solver, schedule, (80.0, 0.002), 4, "none")  # type: ignore[arg-type]


def test_plain_recipe_lowers_loss_and_keeps_ends(ring: learned.Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss at the start is the mean distance that the package's own loop finds."""
    monkeypatch.setattr(learned, "STEPS", 60)
    some, start = ring.training, table(("ddim", "log_snr"))
    x = seeded_noise.normal(some.seeds, some.shape, "initial").double().flatten(1) * some.span[0]
    fine, eps = fine_ends(some), learned.eps_of(ring.checkpoint)
    ends = fine.noisy.double().flatten(1)
    plain = start.unrolled()
    before = float(learned._loss(eps, x, ends, plain.rho, plain.N))
    assert before == pytest.approx(float(distances(some, start, fine).mean()), rel=1e-4)
    found = learned.first_try(eps, x, ends, plain, (1e-2,))
    assert found.loss < 0.9 * before
    assert found.loss == pytest.approx(float(distances(some, found.table, fine).mean()), rel=1e-3)
    assert found.table.residual < 1e-12
    assert learned.steady(found.table)
    torch.testing.assert_close(found.table.rho[[0, -1]], plain.rho[[0, -1]], rtol=1e-12, atol=0)


def test_the_recipe_differentiates_through_a_trained_network(tmp_path: Path) -> None:
    """eps of the exact denoiser's shape, with gradients in x and rho that differences confirm."""
    checkpoint = load_model(few_evaluations.place(tmp_path, "digits_vp"))
    eps = learned.eps_of(checkpoint)
    x = torch.randn(2, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    rho = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    value = eps(x, rho)
    assert value.shape == x.shape
    expected = checkpoint.denoiser.eps(x.reshape(2, 1, 8, 8), 1.5).flatten(1)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    (slope,) = torch.autograd.grad(value.sum(), rho)
    with torch.no_grad():
        apart = float((eps(x, rho + 1e-3) - eps(x, rho - 1e-3)).sum() / 2e-3)
    assert float(slope) == pytest.approx(apart, rel=0.05)


def test_a_start_with_repeated_levels_is_replaced(ring: learned.Lesson) -> None:
    assert not learned.steady(table(("heun", "karras")))
    names, start = ring.best(4, learned.steady)
    assert names[0] == "ddim"
    assert learned.steady(start)


def test_held_out_seeds_make_no_steps(ring: learned.Lesson) -> None:
    assert replace(ring, training=replace(ring.training, seeds=range(7))).steps_from() == [0, 1, 3, 4, 6]


def test_modes_of_the_ring_are_the_nearest_points(ring: learned.Lesson) -> None:
    x = ring.fresh.ends.flatten(1)
    angle = torch.atan2(x[:, 1], x[:, 0]) * 4 / torch.pi
    assert torch.equal(ring.fresh.modes(ring.fresh.ends), angle.round().long() % 8)


def test_modes_of_trained_models_are_the_classes_seen(tmp_path: Path) -> None:
    digits = Digits("train")
    images, labels = digits.read(range(100))
    modes = learned.modes_of(load_model(few_evaluations.place(tmp_path, "digits_vp")))
    assert int((modes(images.float() / 127.5 - 1) == labels).sum()) >= 98


def test_ratio_errors_follow_the_delta_method() -> None:
    """(sd of a / mean a - b / mean b) / sqrt(n) for a ratio of means."""
    b = torch.rand(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.2
    a = 0.5 * b + torch.rand(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = learned.ratio(learned.STATISTICS["mean"], a, b)
    value = float(a.mean() / b.mean())
    expected = value * float((a / a.mean() - b / b.mean()).std()) / 2000**0.5
    assert found["value"] == pytest.approx(value, rel=1e-12)
    assert found["error"] == pytest.approx(expected, rel=0.1)


def test_fine_run_equals_its_configuration(ring: learned.Lesson) -> None:
    chosen = few_evaluations.choose(ring.checkpoint, few_evaluations.REFERENCE, few_evaluations.FINE)
    assert torch.equal(chosen.run.rho, few_evaluations.subject_of(ring.checkpoint, range(1)).run.rho)
    assert torch.equal(chosen.run.N, few_evaluations.subject_of(ring.checkpoint, range(1)).run.N)


def test_samples_that_change_mode_are_counted_apart() -> None:
    distance = torch.tensor([1.0, 2.0, 30.0, 4.0], dtype=torch.float64)
    closed = learned.Outcome(distance, torch.tensor([False, False, True, False]))
    outcome = learned.Outcome(distance / torch.tensor([2, 2, 2, 1]), torch.tensor([False, False, False, True]))
    found = learned.compared(outcome, closed)
    assert found["kept"] == 2
    assert found["changed"] == 1
    assert found["ratio_rms_kept"]["value"] == pytest.approx(0.5, rel=1e-12)
    assert found["share_of_changed"] == pytest.approx(16 / (0.25 + 1 + 225 + 16), rel=1e-12)


def test_samples_do_not_depend_on_the_batch(taught: Path) -> None:
    """Those that the figures are of are those of sample.py to the bit, 64 images a call."""
    bench = bench_of(Plan(taught, 5, (5,)), "digits_vp")
    run = few_evaluations.choose(bench.checkpoint, TAB3, 5).run
    (batch,) = generate(bench.checkpoint.denoiser, run, (1, 8, 8), [12], 1, None, 64)
    assert torch.equal(bench.drawn(run, "10-14")[2], batch.x[0])
