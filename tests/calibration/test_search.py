"""`calibration=search` and `solver=auto`: what is measured, how it is ranked, and the command line."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scoreline.calibration import ranking
from scoreline.calibration.distances import distances, fine_ends, first_images
from scoreline.calibration.ranking import FINALISTS, Families, candidates, rank, work
from scoreline.calibration.search import Recommendation, Search, load_recommendation
from scoreline.calibration.subject import Subject
from scoreline.checkpoints import Card, save_model
from scoreline.commands.certify import maker
from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.generation.batches import generate
from scoreline.networks.gaussian_mixture import GaussianMixtureScore
from scoreline.parameterisations import VarianceExploding
from scoreline.records import Record, load_record
from scoreline.runtime import seeded_noise as noise
from scoreline.sampling import count_calls, integrate
from scoreline.schedules.spacings import LogSNR, Power
from scoreline.schedules.ve import VE
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.adaptive import Adaptive
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.deis import DEIS
from scoreline.solvers.edm import EDMHeun
from scoreline.solvers.runge_kutta import heun
from scoreline.solvers.tableau import Solver, Tableau
from scoreline.storage.files import sha256
from scoreline.storage.resumable import Parts

ROOT = Path(__file__).parents[2]
SPAN = (20.0, 0.05)
SHAPE = (2, 1, 1)
SCHEDULES = {"karras": Power(7), "log_snr": LogSNR(), "flat": Power(1)}


def network() -> GaussianMixtureScore:
    """Three unequal Gaussians in the plane."""
    net = GaussianMixtureScore(3, 2, 1)
    net.means.data = torch.tensor([[1.2, -0.4], [-0.7, 0.9], [0.1, -1.3]], dtype=torch.float64)
    net.stds.data = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    net.weights.data = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
    return net


def subject(count: int, net: nn.Module | None = None, batch_size: int = 16) -> Subject:
    run = DEIS(3, Power(1))(Power(7), *SPAN, 60)
    return Subject(Denoiser(net or network(), VarianceExploding()), run, SHAPE, range(count), batch_size)


def measured(of: Subject, table: Tableau, clean: bool = False) -> Tensor:
    """Distances image by image, one at a time, written out."""
    eps, found = of.denoiser.eps, []
    for seed in of.seeds:
        start = noise.normal([seed], SHAPE, "initial")
        fine = integrate(eps, start * SPAN[0], of.run)
        if clean:
            fine = of.denoiser(fine, SPAN[1])
        end = integrate(eps, start * float(table.rho[0]), table)
        found.append(float((end.double() - fine.double()).square().mean().sqrt()))
    return torch.tensor(found, dtype=torch.float64)


class LabelledNetwork(GaussianMixtureScore):
    """A Gaussian whose mean is the label."""

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        assert label is not None
        return super().forward(x - label.reshape(-1, 1, 1, 1), noise)


class Counting(nn.Module):
    """How the network behind it was called."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.rows, self.graph = net, 0, False

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        self.rows = max(self.rows, len(x))
        self.graph |= torch.is_grad_enabled()
        return self.net(x, noise, label)


@pytest.mark.parametrize("batch_size", [5, 64])
def test_distances_are_those_of_a_plain_loop(batch_size: int) -> None:
    of = subject(12, batch_size=batch_size)
    ends = fine_ends(of)
    for table in (heun()(Power(7), *SPAN, 6), DDIM()(Power(1), *SPAN, 3)):
        torch.testing.assert_close(distances(of, table, ends), measured(of, table), rtol=1e-4, atol=2e-6)


def test_runs_to_zero_compare_with_clean_ends() -> None:
    of = subject(8)
    table = EDMHeun()(Power(7), *SPAN, 7)
    assert float(table.rho[-1]) == 0
    found = distances(of, table, fine_ends(of))
    torch.testing.assert_close(found, measured(of, table, clean=True), rtol=1e-4, atol=2e-6)
    assert float((found - measured(of, table)).abs().max()) > 1e-3, "the two kinds of ends differ"


def test_a_fine_run_to_zero_has_equal_ends() -> None:
    of = replace(subject(4), run=EDMHeun()(Power(7), *SPAN, 41))
    ends = fine_ends(of)
    assert torch.equal(ends.noisy, ends.clean)
    assert float(distances(of, of.run, ends).max()) < 1e-6


def test_labels_reach_the_denoiser_image_by_image() -> None:
    net = LabelledNetwork(1, 2, 1)
    label = torch.tensor([3, 0, 7, 1, 2])
    of = replace(subject(5, net, batch_size=2), labels=label)
    plain = fine_ends(subject(5, GaussianMixtureScore(1, 2, 1), batch_size=2))
    shift = label.reshape(-1, 1, 1, 1).float()
    share = 1 - ((1 + SPAN[1] ** 2) / (1 + SPAN[0] ** 2)) ** 0.5  # of the mean: x - m shrinks, x does not
    ends = fine_ends(of)
    torch.testing.assert_close(ends.noisy - plain.noisy, share * shift.expand(5, *SHAPE), rtol=1e-3, atol=1e-5)
    table = DDIM()(Power(7), *SPAN, 4)
    alone = [
        distances(replace(subject(5, net), seeds=[k], labels=label[k : k + 1]), table, _one(ends, k)) for k in range(5)
    ]
    torch.testing.assert_close(distances(of, table, ends), torch.cat(alone), rtol=1e-5, atol=1e-6)
    assert first_images(of, 2).labels.tolist() == [3, 0]


def _one(ends, k):
    return replace(ends, noisy=ends.noisy[k : k + 1], clean=ends.clean[k : k + 1])


def test_a_diverging_run_is_last() -> None:
    of = subject(9)
    ends, good = fine_ends(of), DDIM()(Power(7), *SPAN, 3)
    bad = Tableau.single_term(good.rho, good.N * torch.tensor([1e30, 1e30, 1e30], dtype=torch.float64))
    assert bool(distances(of, bad, ends).isinf().all())
    found = [ranking.Candidate([("bad", "")], bad), ranking.Candidate([("good", "")], good)]
    ranked = rank(of, ends, found)
    assert [entry.candidate.names[0][0] for entry in ranked] == ["good", "bad"]
    assert ranked[1].mean == torch.inf


def solvers(*names: str) -> dict[str, Solver]:
    return {name: maker(name, [])(LinearVP()) for name in names}


def test_equal_tableaus_are_one_candidate() -> None:
    chosen = solvers("ddim", "deis_rhoab0", "deis_tab0", "deis_tab1")
    schedules = {"karras": Power(7), "flat": Power(1)}
    alike = ["ddim", "deis_rhoab0", "deis_tab0"]
    found = [entry.names for entry in candidates(Families(chosen, schedules), SPAN, 5)]
    expected = [[(name, schedule) for name in alike] for schedule in schedules]
    assert found == [*expected, *([("deis_tab1", schedule)] for schedule in schedules)]
    (single,) = candidates(Families(chosen, schedules), SPAN, 1)
    assert single.names == [(name, schedule) for name in chosen for schedule in schedules]


def test_adaptive_stochastic_and_impossible_pairs_are_left_out() -> None:
    chosen = {"rk45": Adaptive("RK45"), **solvers("euler_ancestral", "dpm_solver_3", "ddim")}
    names = [entry.names for entry in candidates(Families(chosen, {"karras": Power(7)}), SPAN, 4)]
    assert names == [[("ddim", "karras")]], "a third-order step takes three calls, four are not spent"
    with pytest.raises(InputError, match=r"nfe=4: no solver and schedule .* use other calibration\.budgets"):
        candidates(Families({"rk45": Adaptive("RK45")}, {"karras": Power(7)}), SPAN, 4)


def test_ranks_and_means_are_those_of_brute_force() -> None:
    of = subject(7)
    families = Families(solvers("ddim", "heun", "deis_tab2"), {"karras": Power(7), "flat": Power(1)})
    found = candidates(families, SPAN, 6)
    assert len(found) == 6
    ranked = rank(of, fine_ends(of), found)
    brute = {tuple(entry.names): measured(of, entry.tableau) for entry in found}
    assert [tuple(entry.candidate.names) for entry in ranked] == sorted(
        brute, key=lambda names: float(brute[names].mean())
    )
    for entry in ranked:
        each = brute[tuple(entry.candidate.names)]
        assert entry.mean == pytest.approx(float(each.mean()), rel=1e-4)
        spread = sum((float(d) - float(each.mean())) ** 2 for d in each) / (len(each) - 1)
        assert entry.error == pytest.approx((spread / len(each)) ** 0.5, rel=1e-3)


def test_halving_keeps_the_best() -> None:
    of = subject(70, batch_size=70)
    chosen = solvers("ddim", "heun", "deis_tab1", "deis_tab2", "deis_tab3", "unipc_2", "unipc_3", "dpmpp_2m", "lms")
    found = candidates(Families(chosen, SCHEDULES), SPAN, 6)
    assert len(found) > 20
    ends, spent = fine_ends(of), []
    ranked = rank(of, ends, found, spent.append)
    assert len(ranked) == FINALISTS
    assert {len(entry.distances) for entry in ranked} == {70}
    assert sum(spent) == work(len(found), 70) == 16 * len(found) + 64 * FINALISTS + 70 * FINALISTS
    everything = {tuple(entry.names): float(distances(of, entry.tableau, ends).mean()) for entry in found}
    assert tuple(ranked[0].candidate.names) == min(everything, key=everything.get)


def test_a_search_round_trips_through_its_record(tmp_path: Path) -> None:
    families = Families(solvers("ddim", "deis_tab0", "dpm_solver_3", "deis_tab2"), {"karras": Power(7)})
    counting = Counting(network())
    of, told = subject(11, counting, batch_size=4), []
    values = Search([2, 5, 6], families)(of, told.append)
    assert sum(told) == pytest.approx(11)
    assert counting.rows == 4
    assert not counting.graph
    assert values["mean"].shape == values["standard_error"].shape == (3, 3)
    assert values["mean"].isnan().tolist() == [[False, False, True]] * 2 + [[False] * 3], "NFE 2, 5 are no whole steps"
    text = Search([2, 5, 6], families).summary(values)
    assert text.count("NFE") == 3
    provenance = {"checkpoint": "ab", "images": 11, "candidates": values["candidates"], "span": values["span"]}
    path = tmp_path / "search.safetensors"
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    record = Record("search", tensors, provenance)
    record.save(path)
    found = load_recommendation(path, "ab")
    assert found.budgets == (2, 5, 6)
    assert found.span == of.span
    for place, pair in enumerate(found.pairs):
        assert pair == tuple(values["candidates"][place][0][0])
        row = values["mean"][place]
        assert float(row[0]) == float(row[~row.isnan()].min())
    Search([2, 5, 6], families).plot(load_record(path, "search", "ab"), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    with pytest.raises(InputError, match="made for checkpoint ab, this one is cd"):
        load_recommendation(path, "cd")


@pytest.mark.parametrize(("stop", "kept"), [(0.3, 0), (0.9, 2)])
def test_a_killed_search_keeps_its_fine_run_and_its_budgets(stop: float, kept: int, tmp_path: Path) -> None:
    search = Search([3, 4, 6], Families(solvers("ddim", "deis_tab2"), SCHEDULES))
    lines, told = list[str](), list[float]()
    of = replace(subject(12, batch_size=4), parts=Parts(tmp_path, "stamp"), report=lines.append)
    with count_calls(of.denoiser) as whole:
        alone = search(replace(of, parts=Parts()))
    assert lines == search.summary(alone).splitlines(), "each result is told as it is found"
    lines.clear()

    def stop_at_share(images: float) -> None:
        told.append(images)
        if sum(told) > stop * 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(of, stop_at_share)
    assert len(lines) == kept
    lines.clear()
    told.clear()
    with count_calls(of.denoiser) as rest:
        again = search(of, told.append)
    assert rest.count < (1 - stop + 0.3) * whole.count
    assert sum(told) == pytest.approx(12)
    earlier = ["2 of 3 budgets are finished by an earlier start"] * (kept > 0)
    assert lines == earlier + search.summary(alone).splitlines()[kept:]
    for name, value in alone.items():
        assert torch.equal(value, again[name]) if isinstance(value, Tensor) else value == again[name]


@pytest.mark.parametrize(("nfe", "chosen"), [(1, "a"), (5, "a"), (7, "a"), (8, "b"), (14, "b"), (15, "c"), (999, "c")])
def test_the_budget_next_by_ratio_is_recommended(nfe: int, chosen: str) -> None:
    """Between 5 and 10 the border is sqrt(50) = 7.07, between 10 and 20 it is 14.14."""
    found = Recommendation((20, 5, 10), (("c", "k"), ("a", "k"), ("b", "k")), SPAN)
    assert found.at(nfe, SPAN) == (chosen, "k")
    assert found.at(nfe, (SPAN[0] * (1 + 1e-6), SPAN[1])) == (chosen, "k")


@pytest.mark.parametrize("searched", [SPAN, (20.0, 0.0)])
def test_another_range_is_refused_with_the_command(searched: tuple[float, float]) -> None:
    found = Recommendation((5,), (("a", "k"),), searched)
    assert found.at(5, searched) == ("a", "k")
    for span in ((21.0, searched[1]), (20.0, 0.06)):
        with pytest.raises(
            InputError, match=r"python calibrate\.py calibration=search sigma_max=2\d sigma_min=0"
        ) as told:
            found.at(5, span)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("budgets", [[], [0], [5, 5], [2.0], [True], 5, None, "all", ["5"], {5: 5}])
def test_budgets_are_different_whole_numbers(budgets: object) -> None:
    with pytest.raises(InputError, match=r"calibration\.budgets=.*: give a list of different whole numbers from 1"):
        Search(budgets, Families({}, {}))  # type: ignore[arg-type]


def test_one_image_has_no_standard_error() -> None:
    with pytest.raises(InputError, match="seeds: a standard error needs at least two images"):
        Search([3], Families(solvers("ddim"), {"karras": Power(7)}))(subject(1))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the exact model as a checkpoint."""
    root = tmp_path_factory.mktemp("search")
    described = {"components": 3, "channels": 2, "resolution": 1}
    model = {
        "network": {"_target_": "scoreline.networks.gaussian_mixture.GaussianMixtureScore", **described},
        "noise_schedule": {"_target_": "scoreline.schedules.ve.VE", "scale_min": SPAN[1], "scale_max": SPAN[0]},
        "parameterisation": {"_target_": "scoreline.parameterisations.VarianceExploding"},
    }
    save_model(root / "toy.safetensors", network().state_dict(), Card(model, SHAPE, 0, {}, {}))
    return root


def call(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / f"{script}.py"), "checkpoint=toy.safetensors", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


SMALL = ("calibration=search", "nfe=20", "seeds=0-7", "calibration.schedules=[karras]")
DRAW = ("solver=auto", "metrics=none", "format=npy", "seeds=0-3")


def test_search_then_auto_on_the_command_line(place: Path) -> None:
    """Its images are those of the recommended pair."""
    import numpy as np

    words = ("calibration.budgets=[3,6]", "calibration.solvers=[deis_tab3,ddim]", "hydra.run.dir=found")
    done = call("calibrate", *SMALL, *words, cwd=place)
    assert done.returncode == 0, done.stderr
    beside, digest = place / "toy.search.safetensors", sha256(place / "toy.safetensors")
    found = load_recommendation(beside, digest)
    for nfe, pair in zip((3, 6), found.pairs, strict=True):
        assert f"NFE {nfe}: {' / '.join(pair)} " in done.stdout
    assert {path.name for path in (place / "found").iterdir()} >= {"search.safetensors", "search.png", "config.yaml"}
    drawn = call("sample", *DRAW, "nfe=7", cwd=place)
    assert drawn.returncode == 0, drawn.stderr
    name = found.pairs[1][0]
    assert f"solver=auto: {name} on karras" in drawn.stdout
    (out,) = (place / "outputs/sample").iterdir()
    result = json.loads((out / "metrics.json").read_text())
    assert (result["solver"], result["recommended"], result["nfe"]) == ("auto", f"{name} / karras", 7)
    made = {"ddim": DDIM(), "deis_tab3": DEIS(3, VE(SPAN[1], SPAN[0]))}[name]  # in the time of the model's own process
    table = made(Power(7), *SPAN, 7)
    (batch,) = generate(subject(4).denoiser, table, SHAPE, range(4), 64)
    assert np.array_equal(np.load(out / "samples.npy"), batch.x.numpy())


def test_a_mistake_is_one_sentence(place: Path) -> None:
    done = call("calibrate", *SMALL, "calibration.solvers=[nosuch]", cwd=place)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("calibrate.py: ")
    assert "solver=nosuch" in done.stderr


def test_a_missing_record_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"solver\.path=.*no.safetensors.*calibrate.py calibration=search"):
        load_recommendation(tmp_path / "no.safetensors", "ab")
