"""Every file of conf/table: its figures, what it needs, and that each of its cells is a run that can be built."""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from scoreline.checkpoints import load_model
from scoreline.commands import reference
from scoreline.commands.import_checkpoint import arguments
from scoreline.config import run_names
from scoreline.config.compose import described_model
from scoreline.config.script import sigma_range
from scoreline.errors import InputError
from scoreline.records import Record
from scoreline.schedules.base import grid
from scoreline.schedules.spacings import Power
from scoreline.schedules.ve import EDM
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.learned import tensors_of
from scoreline.solvers.scire_exponential import SciREExponential
from scoreline.solvers.tableau import Tableau, build
from scoreline.tables.schema import Column, Published, Row, Table, parse
from scoreline.values import parse_seeds

CONF = Path(__file__).parents[2] / "conf"
NAMES = [path.stem for path in sorted((CONF / "table").glob("*.yaml"))]
DIGITS = [f"{paper}_digits" for paper in ("deis", "deis_sn", "scire", "stf", "score_optimal", "learned")]
EMOJI = [f"{paper}_emoji" for paper in ("deis", "deis_sn", "scire", "stf", "score_optimal", "solvers")]
PAPERS = [name for name in NAMES if not name.endswith(("_digits", "_emoji"))]
FIVE = ("2204.13902", "2311.00157", "2308.07896", "2302.00670", "2412.07877")
NOT_OF_THE_BUDGET = re.compile(r"no such (solver|schedule) here: .{10}|none in the paper: .{10}")
"""Reasons why a cell is empty that are no matter of NFE; any other has to be one that building the run gives too."""
PLACE = re.compile(r"(arXiv:\d{4}\.\d{5}(v\d)?|OpenReview \w{10}|[\w.-]+/[\w.-]+), \S.{4}")
"""How a source begins: a paper or a repository (owner/name), and where in it the figure stands."""


@dataclass(frozen=True)
class Method:
    """What the config of a cell comes to."""

    solver: Any
    schedule: Any
    span: tuple[float, float]
    final: str
    nfe: int

    def build(self) -> Any:
        return build(self.solver, self.schedule, self.span, self.nfe, self.final)


EDM_SPEC = {"_target_": "scoreline.schedules.ve.EDM"}
SHIPPED = {"digits_vp": None, "emoji32_edm": EDM_SPEC}
"""Models of the package; another process than that of digits."""


@cache
def table(name: str) -> Table:
    return parse(name, yaml.safe_load((CONF / "table" / f"{name}.yaml").read_text()))


def cells(found: Table) -> Iterator[tuple[Row, Column]]:
    return ((row, column) for row in found.rows for column in found.columns)


def overrides_of(found: Table, row: Row, column: Column) -> list[str]:
    return [*found.base, *row.overrides, *column.overrides]


def value_of(key: str, overrides: list[str]) -> str | None:
    return next((word.partition("=")[2] for word in overrides if word.startswith(f"{key}=")), None)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(CONF.parent / "sample.py")])
    run_names.register_resolvers()


def config(script: str, words: list[str]) -> DictConfig:
    return copy.deepcopy(composed(script, *words))


@cache
def composed(script: str, *words: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(script, list(words))
    OmegaConf.set_struct(cfg, False)
    return cfg


def commands(found: Table) -> list[list[str]]:
    """What `needs` tells the user to type, in backticks, and what `prepare` runs, as words."""
    told = [words for need in found.needs for words in re.findall(r"`([^`]+ [^`]+)`", need)]
    return [words.removeprefix("python ").split() for words in [*told, *(command.run for command in found.prepare)]]


def models(found: Table) -> dict[str, Any]:
    """Noise schedules of the checkpoints that these commands make, by path."""
    made = {}
    for program, *words in commands(found):
        if program == "train.py":
            noise_schedule = config("train", words).model.noise_schedule
            made[value_of("hydra.run.dir", words)] = OmegaConf.to_container(noise_schedule, resolve=True)
        elif program == "scoreline" and words[0] == "import":
            (_, destination), own, model = arguments(words[1:])
            spec = described_model(own["model"], model) if own["model"] else None
            made[destination] = EDM_SPEC if spec is None else spec["noise_schedule"]
    return made


@cache
def shipped() -> Any:
    return load_model(run_names.model_path("digits_vp"))


def method(found: Table, overrides: list[str], made: dict[str, Any]) -> Method:
    """What a cell runs, of a model of the same process in place of one that is not here."""
    name = value_of("checkpoint", overrides)
    assert name is not None
    assert name in SHIPPED or name in made, f"{name}: neither needs nor prepare says where it comes from"
    if name != "digits_vp":
        Path(name).mkdir(parents=True, exist_ok=True)
    cfg = config("sample", ["metrics=none", *(word for word in overrides if not word.startswith("metrics"))])
    cfg.model = {name: shipped().card.model[name] for name in ("network", "noise_schedule", "parameterisation")}
    cfg.digest, cfg.sigma_data = shipped().digest, 0.54
    cfg.model.noise_schedule = made.get(name, SHIPPED.get(name) or cfg.model.noise_schedule)
    assert cfg.record == "auto"
    cfg.record = str(run_names.ASSETS / "digits_vp.score_norm.safetensors")
    native = instantiate(cfg.model.noise_schedule)
    span = sigma_range(cfg, native)
    if name != "digits_vp" and cfg.schedule._target_.endswith("score_optimal.load_schedule"):
        assert name in SHIPPED or cfg.schedule.path in [command.makes for command in found.prepare]
        cfg.schedule.path = record_over(span)
    if cfg.solver._target_.endswith("learned.load_learned"):
        assert name in SHIPPED or cfg.solver.path in [command.makes for command in found.prepare]
        cfg.solver.path = tableaus_over(span)
    if cfg.solver._target_.endswith("search.load_recommendation"):
        return method(found, [*overrides, "solver=ddim", "schedule=karras"], made)
    return Method(instantiate(cfg.solver), instantiate(cfg.schedule), span, cfg.final, cfg.nfe)


def runs(found: Table) -> Iterator[tuple[Row, Column, Method]]:
    """Every cell that is not empty for a reason other than NFE; columns that set NFE alone share a composition."""
    made = models(found)
    for row in found.rows:
        shared: dict[tuple[str, ...], Method] = {}
        for column in found.columns:
            if NOT_OF_THE_BUDGET.match(row.cannot.get(column.name, "")):
                continue
            nfe, others = value_of("nfe", list(column.overrides)), without_nfe(column)
            if others not in shared:
                shared[others] = method(found, overrides_of(found, row, column), made)
            yield row, column, shared[others] if nfe is None else replace(shared[others], nfe=int(nfe))


def without_nfe(column: Column) -> tuple[str, ...]:
    return tuple(word for word in column.overrides if not word.startswith("nfe="))


def record_over(span: tuple[float, float]) -> str:
    """A score-optimal record for the stand-in that covers a range."""
    rho = grid(Power(7), *span, 19).flip(0)
    values = {"rho": rho, "length": torch.asinh(rho)}
    Record("score_optimal", values, {"checkpoint": shipped().digest}).save(Path("lengths.safetensors"))
    return "lengths.safetensors"


def tableaus_over(span: tuple[float, float]) -> str:
    """A record of DDIM's tableaus, at the budgets that the table of learned solvers learns for."""
    values: dict[str, torch.Tensor] = {}
    budgets = (3, 4, 5, 6, 8, 10, 20)
    for nfe in budgets:
        values |= tensors_of(DDIM()(Power(7), *span, nfe))
    values["budgets"] = torch.tensor(budgets)
    Record("tableau", values, {"checkpoint": shipped().digest}).save(Path("tableaus.safetensors"))
    return "tableaus.safetensors"


def test_learned_solvers_differ_in_what_is_learned_alone() -> None:
    """Teacher, seeds, budgets and evaluations are the same in all commands, but for GITS, which takes no steps."""
    commands = {Path(it.makes).parent.name: it.run.split() for it in table("learned_digits").prepare}
    own = ("calibration=", "calibration.nodes=", "calibration.solvers=", "calibration.schedules=", "hydra.run.dir=")
    shared = {name: {word for word in words if not word.startswith(own)} for name, words in commands.items()}
    steps = {"calibration.starts=1", "calibration.evaluations=20000", "calibration.batch=48"}
    assert {frozenset(words | steps) for words in shared.values()} == {frozenset(shared["scoreline"])}
    assert [name for name, words in shared.items() if not words >= steps] == ["gits"]


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_runs_or_says_why_not(name: str) -> None:
    for row, column, chosen in runs(table(name)):
        place = f"{name}: {row.name}, {column.name}"
        try:
            built, trouble = chosen.build(), ""
        except InputError as error:
            built, trouble = None, str(error)
        if column.name in row.cannot:
            assert built is None or built.nfe != chosen.nfe, f"{place}: is possible, take it out of cannot"
            continue
        assert built is not None, f"{place}: {trouble}; declare it under cannot"
        assert 0 <= chosen.nfe - built.nfe < evaluations_of_a_step(chosen.solver), place
        figure = row.published.get(column.name)
        told = re.search(r"; NFE (\d+)", figure.source) if figure else None
        if told and re.match("SciRE|DPM-Solver", row.name):
            assert built.nfe == int(told[1]), f"{place}: the paper spent {told[1]}"


def evaluations_of_a_step(solver: Any) -> int:
    """What a fixed budget may leave unspent is less than this."""
    if getattr(solver, "budget", "agile") == "agile":
        return 1
    return 2 if isinstance(solver, SciREExponential) else int(solver.order)


@pytest.mark.parametrize("name", NAMES)
def test_metrics_compose(name: str) -> None:
    found = table(name)
    chosen = {
        tuple(word for word in overrides_of(found, row, column) if word.startswith("metrics"))
        for row, column in cells(found)
    }
    for words in chosen:
        metrics = config("sample", list(words)).metrics
        several = [f"{name}/frechet_distance" for name in metrics.get("parts", {})]
        assert found.metric in metrics.get("scores", several or ["frechet_distance"])


@pytest.mark.parametrize("name", NAMES)
def test_rows_differ_in_what_they_run(name: str) -> None:
    rows = [frozenset(row.overrides) for row in table(name).rows if set(table_names(name)) - set(row.cannot)]
    assert len(set(rows)) == len(rows)


def table_names(name: str) -> list[str]:
    return [column.name for column in table(name).columns]


@pytest.mark.parametrize("name", NAMES)
def test_commands_of_prepare_compose(name: str) -> None:
    for program, *words in commands(table(name)):
        assert program in ("train.py", "calibrate.py", "scoreline")
        if program != "scoreline":
            assert config(Path(program).stem, words)


@pytest.mark.parametrize("name", NAMES)
def test_prepare_names_the_product_of_its_command(name: str) -> None:
    for command in table(name).prepare:
        program, *words = command.run.split()
        folder = value_of("hydra.run.dir", words) or value_of("checkpoint", words)
        assert command.makes.startswith(f"{folder}/")
        if program == "train.py":
            kimg = config("train", words).duration_kimg
            batches = round(kimg * 1000) / config("train", words).batch_size
            assert batches == int(batches)
            assert command.makes == f"{folder}/checkpoints/{kimg * 1000:010d}.ckpt"


@pytest.mark.parametrize("name", PAPERS)
def test_published_figures_are_sane(name: str) -> None:
    found = table(name)
    assert found.paper is not None
    assert re.fullmatch(r"\d{4}\.\d{5}", found.paper.arxiv)
    low, high = {"fid": (1.0, 300.0), "sfid": (3.0, 60.0), "inception_score": (1.0, 10.5)}[found.metric]
    figures = [figure for row in found.rows for figure in row.published.values()]
    assert figures
    assert found.note
    for figure in figures:
        assert low < figure.value < high
        assert figure.error is None, "no paper of these prints an error"
        assert is_checked(figure), figure
    for row in found.rows:
        assert row.published.keys() | row.cannot.keys() <= set(table_names(name))


def is_checked(figure: Published) -> bool:
    """Whether a figure was read somewhere, and its source leads there."""
    return figure.status in ("verified", "second-hand") and PLACE.match(figure.source) is not None


def test_a_source_names_a_place() -> None:
    read = Published(4.17, None, "verified", "arXiv:2204.13902, Table 2")
    assert is_checked(read)
    for status, source in (
        ("unverified", read.source),
        ("second-hand", "from memory, unread"),
        ("second-hand", "README of the authors' repository"),
        ("verified", "arXiv:2204.13902"),
        ("verified", "OpenReview, Table 1"),
        ("verified", "NVlabs/edm"),
    ):
        assert not is_checked(replace(read, status=status, source=source)), (status, source)


def test_the_page_counts_the_figures() -> None:
    """`verified` and `second-hand` of every table that has published figures, as docs/tables.md prints them."""
    text = (CONF.parent / "docs" / "tables.md").read_text()
    printed = {
        row[0]: (int(row[1]), int(row[2])) for row in re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \|$", text, re.M)
    }
    statuses = {name: [it.status for row in table(name).rows for it in row.published.values()] for name in PAPERS}
    assert printed == {name: (them.count("verified"), them.count("second-hand")) for name, them in statuses.items()}


def test_models_of_imagenet_have_the_churn_and_the_reference_of_edm() -> None:
    """EDM's Table 5: its own model and the pre-trained one of ADM, whose training images are others."""
    found = table("edm_published")
    churn, ends, references = {}, {}, {}
    for _, column, chosen in runs(found):
        if column.name.startswith("ImageNet"):
            sampler = chosen.solver
            churn[column.name] = (sampler.S_churn, sampler.S_min, sampler.S_max, sampler.S_noise)
            ends[column.name] = chosen.span
            references[column.name] = value_of("metrics.reference", list(column.overrides))
    own, pretrained = "ImageNet", "ImageNet, ADM's model"
    assert churn == {own: (40, 0.05, 50, 1.003), pretrained: (80, 0.05, 50, 1.003)}
    assert ends[own] == (80, 0.002)
    assert ends[pretrained] == (80, pytest.approx(0.0064, rel=0.01))
    assert references[own] != references[pretrained]


@pytest.mark.parametrize("name", PAPERS)
def test_assets_are_told(name: str) -> None:
    found = table(name)
    told = " ".join(found.needs)
    for row, column in cells(found):
        words = overrides_of(found, row, column)
        if column.name not in row.cannot:
            assert f"{value_of('checkpoint', words)}:" in told
        references = [word.partition("=")[2] for word in words if word.partition("=")[2].startswith("references/")]
        assert references
        assert all(f"{reference}:" in told for reference in references)


def test_headlines_of_the_five_papers() -> None:
    """What the abstracts print, by paper, cell by cell."""
    for name, row, column, value in (
        ("deis_cifar10", "tAB3", "10", 4.17),
        ("deis_cifar10", "tAB3", "20", 2.86),
        ("deis_cifar10", "tAB3", "15", 3.37),
        ("deis_cifar10_is", "tAB3", "15", 9.74),
        ("deis_sn_cifar10", "DEIS, order 2 (as shipped)", "10", 6.44),
        ("deis_sn_cifar10", "DEIS-SN, order 2 (as shipped)", "10", 5.57),
        ("deis_sn_church64", "DEIS, order 2 (as shipped)", "10", 5.9),
        ("deis_sn_church64", "DEIS-SN, order 2 (as shipped)", "10", 4.95),
        ("scire_cifar10_continuous", "SciRE-V1-3", "12", 3.48),
        ("scire_cifar10_continuous", "SciRE-V1-agile", "20", 2.42),
        ("scire_cifar10_continuous", "SciRE-V1-agile", "100", 2.40),
        ("scire_cifar10_discrete", "SciRE-V1-3", "84", 3.15),
        ("scire_cifar10_edm", "SciRE-V1-2", "100", 1.76),
        ("scire_celeba64", "SciRE-V1-3", "20", 2.17),
        ("scire_celeba64", "SciRE-V1-3", "50", 2.02),
        ("stf_cifar10", "EDM NCSN++, STF, NFE 35", "FID", 1.90),
        ("edm_published", "EDM sampler", "ImageNet, ADM's model", 1.55),
    ):
        figure = next(it for it in table(name).rows if it.name == row).published[column]
        assert (figure.value, figure.status) == (value, "verified"), (name, row, column)
    optimal = {row.name: row for row in table("score_optimal_table2").rows}
    assert optimal["corrector optimised"].published["10"].value == 2.46 < optimal["rho = 7"].published["10"].value
    assert {row.published["10"].status for row in optimal.values()} == {"second-hand"}
    assert {found.paper.arxiv for found in map(table, PAPERS) if found.paper} >= set(FIVE)


def test_tables_that_share_a_figure_agree() -> None:
    """The same model, method and NFE in two tables: SciRE's quotes of DEIS, EDM in STF's."""

    def figures(name: str, row: str) -> dict[str, float]:
        return {k: it.value for k, it in next(r for r in table(name).rows if r.name == row).published.items()}

    mine, quoted = figures("deis_cifar10", "tAB3"), figures("scire_cifar10_continuous", "tAB3-DEIS")
    assert quoted.items() <= mine.items()
    for ours, theirs in (("deis_cifar10_discrete", "scire_cifar10_discrete"), ("deis_celeba64", "scire_celeba64")):
        assert figures(ours, "DEIS-tAB3") == figures(theirs, "tAB3-DEIS")
        assert figures(ours, "F-PNDM").items() <= figures(theirs, "F-PNDM").items()
    assert (
        figures("stf_cifar10", "EDM DDPM++, DSM, NFE 35")["FID"] == figures("edm_published", "EDM sampler")["CIFAR-10"]
    )


def test_end_times_are_those_of_the_linear_process() -> None:
    ends = LinearVP().inverse(torch.tensor([1e-3, 1e-4], dtype=torch.float64)).tolist()
    assert ends == pytest.approx([0.010485993, 0.003177979], rel=1e-7)
    allowed = {"0", "0.010485993", "0.003177979"}
    for found in map(table, NAMES):
        for row, column in cells(found):
            assert (value_of("sigma_min", overrides_of(found, row, column)) or "0") in allowed


def test_process_of_the_independent_measurement_meets_edms_range() -> None:
    row = next(row for row in table("deis_edm_cifar10").rows if row.name == "DEIS-tAB3")
    cfg = config("sample", list(row.overrides))
    variable, base = instantiate(cfg.solver.variable), instantiate(cfg.schedule.base)
    assert variable == base
    ends = base.inverse(torch.tensor([1.0, 1e-3], dtype=torch.float64)).tolist()
    assert ends == pytest.approx([EDM().t_max, EDM().t_min], rel=1e-6)


@pytest.mark.parametrize("name", ["score_optimal_table2", "score_optimal_table3"])
def test_points_are_levels_above_zero(name: str) -> None:
    for _, column, chosen in runs(replace(table(name), rows=table(name).rows[-1:])):
        built = chosen.build()
        assert isinstance(built, Tableau)
        assert built.rho.unique().numel() == int(column.name) + 1
        assert (float(built.rho[0]), float(built.rho.unique()[1]), float(built.rho[-1])) == (80.0, 0.002, 0.0)


@pytest.mark.parametrize("name", DIGITS)
def test_digits_run_here(name: str) -> None:
    """Nothing that is neither shipped nor prepared, the metric of digits, as many images in all five."""
    found = table(name)
    assert not found.needs
    assert found.metric == "frechet_distance"
    counts = {budget: [len(parse_seeds(one)) for one in found.ranges(budget)] for budget in found.budgets}
    assert counts == {"smoke": [16], "small": [1000] * 3, "paper": [5000] * 3}


@pytest.mark.parametrize("name", EMOJI)
def test_emoji_run_in_half_an_hour(name: str) -> None:
    """At 150 evaluations a second on each of two slow cores, beside the features; on seeds that no calibration saw."""
    found = table(name)
    assert found.metric == "imagenet/frechet_distance"
    seeds = {budget: [parse_seeds(one) for one in found.ranges(budget)] for budget in found.budgets}
    counts = {budget: list(map(len, ranges)) for budget, ranges in seeds.items()}
    assert counts == {"smoke": [8], "small": [200] * 3, "paper": [5000] * 3}
    assert min(one[0] for ranges in seeds.values() for one in ranges) == 10_000
    evaluations = sum(600 * chosen.nfe for row, column, chosen in runs(found) if column.name not in row.cannot)
    assert evaluations / 150 / 2 < 1800


def test_a_wrong_cell_is_found() -> None:
    """Each check of a cell can fail: a budget that is none, a checkpoint of nowhere, an override of nothing."""
    found = table("scire_digits")
    words = [*found.base, "solver=scire_v1_3", "schedule=nsr_log"]
    with pytest.raises(InputError, match="nfe=2: one step takes 3"):
        method(found, [*words, "nfe=2"], {}).build()
    with pytest.raises(AssertionError, match="neither needs nor prepare"):
        method(found, ["checkpoint=models/unknown", "nfe=6"], {})
    with pytest.raises(Exception, match="no_such_key"):
        method(found, [*words, "nfe=6", "solver.no_such_key=1"], {})
    twice = replace(found, rows=(found.rows[0], replace(found.rows[0], name="again")))
    assert len({frozenset(row.overrides) for row in twice.rows}) < len(twice.rows)


@pytest.mark.parametrize("name", PAPERS)
def test_references_come_from_a_command(name: str) -> None:
    """`scoreline reference` takes the words that `needs` gives, and writes the file that the cells read."""
    found, written = table(name), {}
    for program, *words in commands(found):
        if program == "scoreline" and words[0] == "reference":
            asked = reference.parse(words[1:], reference.OWN, reference.GROUPS)
            written[asked.paths[-1]] = asked
            assert len(asked.paths) == (1 if asked.own["dataset"] else 2)
            assert not asked.own["dataset"] or reference.node(asked)
            spatial = config("sample", ["metrics=inception", *asked.overrides]).metrics.scores
            assert found.metric in (spatial if found.metric == "sfid" else ["fid", "inception_score"])
    read = {word for row, column in cells(found) for word in overrides_of(found, row, column)}
    assert {word.partition("=")[2] for word in read if word.startswith("metrics.reference=")} == set(written)
