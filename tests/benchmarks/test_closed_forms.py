"""The benchmark of fixed closed forms, at tiny sizes."""

import json
import sys
from math import prod
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scoreline.calibration.distances import distances, fine_ends
from scoreline.calibration.ranking import candidates
from scoreline.calibration.subject import Subject
from scoreline.checkpoints import load_model
from scoreline.config import conf_folder, run_names
from scoreline.errors import InputError
from scoreline.schedules.spacings import Power
from scoreline.solvers.tableau import Tableau, build_tableau
from scoreline.solvers.unipc import UniPC

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import closed_forms
import exact_models
from closed_forms import DEIS, Cell, Comparison, Model, form
from few_evaluations import span_of
from learned import STATISTICS, families_of

PEERS = ("ddim", "deis_tab3", "dpm_solver_2")
IPNDM = form("ipndm2/linear_vp_quadratic")
BUDGETS = (4, 5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three peers on five choices of steps, one model a set; DPM-Solver-2 is impossible at NFE 5."""
    out = tmp_path_factory.mktemp("closed")
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        closed_forms.work(out, {"chosen": ["few2"], "reported": ["few3"]}, BUDGETS, [IPNDM])
    return out


def small(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(closed_forms, "FINE", 40)
    patch.setattr(closed_forms, "MOST_SAMPLES", 24)
    patch.setattr(closed_forms, "RECORDS", [name for name in conf_folder.files("solver") if name not in PEERS])


def model_of(out: Path, name: str = "few2") -> Model:
    return Model(out, load_model(closed_forms.locate(out, name)), 24)


def sets_in(out: Path) -> list[closed_forms.Row]:
    found: list[closed_forms.Row] = json.loads((out / "closed_forms.json").read_text())
    return found


def test_ratios_are_those_of_the_distances_of_the_package(finished: Path) -> None:
    """The same seeds sampled in float32 by the package, all peers and the candidate."""
    checkpoint = model_of(finished).checkpoint
    fine = build_tableau(UniPC(3), Power(7), span_of(checkpoint), 40, "none")
    seeds = range(closed_forms.FIRST_SEED, closed_forms.FIRST_SEED + 24)
    subject = Subject(checkpoint.denoiser, fine, checkpoint.card.shape, seeds, 24)
    ends, words = fine_ends(subject), [f"calibration.solvers=[{','.join(PEERS)}]"]
    families = families_of(checkpoint, [*words, f"calibration.schedules=[{','.join(closed_forms.STEPS)}]"])
    ratios: dict[str, list[float]] = {name: [] for name in STATISTICS}
    for nfe, own in IPNDM.tables(checkpoint, BUDGETS).items():
        pool = [distances(subject, each.tableau, ends) for each in candidates(families, subject.span, nfe)]
        for name, statistic in STATISTICS.items():
            least = min(float(statistic(each)) for each in pool)
            ratios[name].append(float(statistic(distances(subject, own, ends))) / least)
    row = next(row for row in sets_in(finished)[0]["rows"] if row["name"] == IPNDM.name)
    for name, expected in ratios.items():
        assert row[name]["value"] == pytest.approx(prod(expected) ** 0.5, rel=1e-3)
        assert [row[name]["by_nfe"][str(nfe)]["value"] for nfe in BUDGETS] == pytest.approx(expected, rel=1e-3)
        assert row[name]["largest"]["value"] == pytest.approx(max(expected), rel=1e-3)


def test_every_set_has_its_tables(finished: Path) -> None:
    text = (finished / "closed_forms.md").read_text()
    assert "## chosen: 1 models, NFE 4, 5" in text
    for found, model in zip(sets_in(finished), ("few2", "few3"), strict=True):
        assert found["models"] == [model]
        assert not any(name.startswith("dpm_solver_2/") for name in found["fixed_peers"])
        assert f"| {model} | 24 |" in text
        assert found["accuracy"][0]["median"]["value"] > 0
        assert [row["name"] for row in found["rows"][:3]] == [IPNDM.name, *(each.name for each in closed_forms.ALWAYS)]
        assert all(f"*{name}*" in text for name in (row["name"] for row in found["rows"] if row["peer"]))
    assert (finished / "closed_forms.png").stat().st_size > 10_000


def test_only_what_is_new_is_measured(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver of the same name with other numbers is new."""
    small(monkeypatch)
    runs: list[Tableau] = []
    measure = Model.distances

    def watched(model: Model, run: Tableau) -> Tensor:
        runs.append(run)
        return measure(model, run)

    monkeypatch.setattr(Model, "distances", watched)
    monkeypatch.setattr(Model, "built", lambda *_: pytest.fail("the peers are there"))
    closed_forms.studied(finished, "again", ["few2"], BUDGETS, [IPNDM, DEIS])
    assert runs == []
    changed = IPNDM._replace(words=("solver.order=3",))
    closed_forms.studied(finished, "again", ["few2"], BUDGETS, [changed, DEIS])
    assert [run.nfe for run in runs] == list(BUDGETS)


def test_all_ordinary_solvers_are_peers(finished: Path) -> None:
    """No pair is lost to `keeps_point`, and what is not exact for a point is none."""
    model, names = model_of(finished), [name for name in conf_folder.files("solver") if name.startswith("d")]
    names = [name for name in names if name not in closed_forms.RECORDS]
    words = [f"calibration.solvers=[{','.join(names)}]", f"calibration.schedules=[{','.join(closed_forms.STEPS)}]"]
    pool = candidates(families_of(model.checkpoint, words), span_of(model.checkpoint), 6)
    peers = model.built(names, 6)
    assert sorted(peers) == sorted("/".join(pair) for each in pool for pair in each.names)
    run = peers["dpmpp_3m/karras"]
    assert not closed_forms.keeps_point(Tableau(run.rho, run.S, run.N * 1.001, run.B))
    assert model.built(["dpm_solver_2"], 5) == {}


def test_no_model_is_in_both_sets() -> None:
    assert not set(closed_forms.CHOSEN) & set(closed_forms.REPORTED)
    assert (len(closed_forms.CHOSEN), len(closed_forms.REPORTED)) >= (7, 8)
    known = {*exact_models.MIXTURES, *closed_forms.TRAINED, *exact_models.MODELS}
    assert {*closed_forms.CHOSEN, *closed_forms.REPORTED} - known == {"digits_vp"}
    assert run_names.model_path("digits_vp").is_file()


@pytest.mark.parametrize("name", ["many16", "unequal16", "correlated16"])
def test_mixtures_are_what_their_models_denoise(name: str, tmp_path: Path) -> None:
    exact, checkpoint = exact_models.MIXTURES[name](), load_model(closed_forms.locate(tmp_path, name))
    x = torch.randn(5, *exact.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = exact.distribution.eps(x.flatten(1), 0.7)
    torch.testing.assert_close(checkpoint.denoiser.eps(x, 0.7).flatten(1), expected, rtol=1e-9, atol=1e-12)


def test_scales_of_mixtures_decay() -> None:
    """Var x_k = (spread^2 + E width^2) k^(-2 decay), for axes that are not turned."""
    _, covariance = exact_models.mixture(0, 4000, 3, 0.5, (0.3, 0.3), exact_models.VE, 1.0).distribution.moments()
    expected = (0.5**2 + 0.3**2) * torch.tensor([1, 1 / 4, 1 / 9], dtype=torch.float64)
    torch.testing.assert_close(covariance.diagonal(), expected, rtol=0.05, atol=0)


def test_a_network_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*closed_forms.TRAINED["digits_cosine"], "duration_kimg=0.128", "batch_size=32", "workers=0")
    monkeypatch.setitem(closed_forms.TRAINED, "digits_cosine", words)
    path = closed_forms.locate(tmp_path, "digits_cosine")
    model = Model(tmp_path, load_model(path), 2)
    assert span_of(model.checkpoint)[0] == pytest.approx(119, rel=0.01)
    assert model.end(DEIS.tables(model.checkpoint, [3])[3]).shape == (2, 1, 8, 8)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("it is trained"))
    assert closed_forms.locate(tmp_path, "digits_cosine") == path


@pytest.fixture
def comparison() -> Comparison:
    """Two models at one NFE: peer a is best for one, b for the other."""
    d = 0.5 + torch.rand(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = torch.rand(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    first = Cell("one", 5, {"a": d, "b": 2 * d, "c": 3 * d}, {"x": 4 * d, DEIS.name: 8 * d})
    other = Cell("two", 5, {"a": 3 * d, "b": d}, {"x": d + noise, DEIS.name: d})
    return Comparison([first, other])


def test_ratios_are_to_the_best_of_each_cell(comparison: Comparison) -> None:
    assert comparison.best == [["a"] * 3, ["b"] * 3]
    assert comparison.leaders() == ["b", "a"], "c is impossible for the second model"
    row = comparison.row("x", comparison.absolute(DEIS.name))["mean"]
    d, x = comparison.cells[1].peers["b"], comparison.cells[1].forms["x"]
    second = float(x.mean() / d.mean())
    assert row["value"] == pytest.approx((4 * second) ** 0.5, rel=1e-12)
    assert row["by_model"] == pytest.approx({"one": 4, "two": second}, rel=1e-12)
    assert row["largest"] == {"value": pytest.approx(4), "model": "one", "nfe": 5}
    assert row["to_deis"]["value"] == pytest.approx((second / 2) ** 0.5, rel=1e-12)


def test_errors_are_over_samples_and_over_models(comparison: Comparison) -> None:
    """By the delta method log(x / d) / 2 has half the error of the second ratio; two models, half their gap."""
    row = comparison.row("x", comparison.absolute(DEIS.name))["mean"]
    d, x = comparison.cells[1].peers["b"], comparison.cells[1].forms["x"]
    relative = float((x / x.mean() - d / d.mean()).std()) / 2000**0.5
    assert row["error"] == pytest.approx(row["value"] * relative / 2, rel=0.2)
    ratios = list(row["by_model"].values())
    assert row["error_over_models"] == pytest.approx(abs(ratios[0] - ratios[1]) / 2, rel=1e-9)


def test_a_run_that_is_not_finite_is_infinitely_far() -> None:
    x = torch.tensor([[1.0, torch.nan], [3.0, 3.0]], dtype=torch.float64)
    assert closed_forms.apart(x, torch.zeros_like(x)).tolist() == [torch.inf, 3.0]


def test_names_that_are_wrong(finished: Path) -> None:
    with pytest.raises(InputError, match=r"--candidates deis_tab3: give .*SOLVER/STEPS"):
        form("deis_tab3")
    with pytest.raises(InputError, match=r"--models few9: .*few2"):
        closed_forms.sets_of("few2,few9")
    with pytest.raises(InputError, match="--candidates dpm_solver_2/karras: spends 4 for nfe=5"):
        form("dpm_solver_2/karras").tables(model_of(finished).checkpoint, [5])
    assert closed_forms.sets_of("reported") == {"reported": closed_forms.REPORTED}
    assert form("A b: ddim/karras x=1") == closed_forms.Form("A b", "ddim", "karras", ("x=1",))
