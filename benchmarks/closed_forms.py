"""Which fixed closed form is best: `python benchmarks/closed_forms.py OUT [--candidates "SOLVER/STEPS" ..]`.

A fixed closed form is one solver on one choice of steps for all models and NFE. Choices are made on the models of
`CHOSEN`, figures are quoted from `REPORTED`, and no model is in both. On every model and NFE each peer (a solver of
conf/solver that needs no record and keeps a single point exact, on each of `STEPS`) runs from the same noise as a fine
run; the best of them is 1, for the root mean square, the median and the mean of the distance, each on its own.
Reported are geometric means of ratios to it over models and NFE.

Exact models and states are float64. What OUT holds is not done again: distances are kept by the numbers of the tableau,
so that a solver whose code changes is measured anew. OUT/closed_forms.md, .json and .png hold the results of the models
asked for.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import exact_models
import torch
from exact_models import MIXTURES
from few_evaluations import ROOT, place, span_of, stored, whole_numbers, write_json
from learned import STATISTICS, families_of
from torch import Tensor

from scoreline.calibration.ranking import candidates
from scoreline.checkpoints import Checkpoint, load_model
from scoreline.config import conf_folder
from scoreline.config.compose import build_object, complete_config
from scoreline.errors import InputError
from scoreline.metrics.jackknife import delete_each_group
from scoreline.runtime import seeded_noise
from scoreline.sampling import integrate
from scoreline.schedules.spacings import LogSNR, Power
from scoreline.solvers.runge_kutta import rk4
from scoreline.solvers.tableau import Tableau, build_tableau
from scoreline.solvers.unipc import UniPC
from scoreline.storage import figures
from scoreline.storage.figures import PAGE
from scoreline.storage.files import code_version, write_atomically
from scoreline.tables.figure import MARKERS

TRAINED = {
    "digits_edm": ("experiment=digits_edm", "model.network.width=16", "seed=1"),
    "digits_cosine": (
        *("experiment=digits_vp", "model.network.width=16", "seed=2"),
        *("model.noise_schedule._target_=scoreline.schedules.vp.CosineVP", "~model.noise_schedule.beta_min"),
        *("~model.noise_schedule.beta_max", "objective.density.stop=0.9946"),
    ),
}
"""Networks and the words of train.py that train them, a minute each; `stop` is where the process ends."""

CHOSEN = ("few2", "many16", "many64", "correlated32", "unequal16", "gaussian24", "points8", *TRAINED)
REPORTED = (
    *("few3", "many32", "correlated16", "unequal48", "gaussian10", "points12"),
    *(*exact_models.MODELS, "digits_vp"),
)
PICTURES = ("emoji32_edm",)
"""Of 3072 coordinates, hence with far wider directions than those before; without classes."""

SETS = {"chosen": CHOSEN, "reported": REPORTED, "pictures": PICTURES}

SAMPLES = {"digits_points": 500, "digits_edm": 200, "digits_cosine": 200, "digits_vp": 128, "emoji32_edm": 32}
MOST_SAMPLES = 1000
"""Samples of a model that is not in `SAMPLES`."""

FIRST_SEED = 500_000
BUDGETS = (5, 8, 10, 15, 20)
STEPS = ("time_uniform", "time_quadratic", "karras", "log_snr", "nsr_log")
RECORDS = ("auto", "learned", "deis_sn", "deis_sn_published", "velocity_sn", "dpm_solver_v3")
"""Files of conf/solver that need a record of the checkpoint, hence are no peers."""

POINT = 1e-9
"""Largest error of a peer for data at a single point, relative to the highest noise level."""

FINE = 1000
RESAMPLES = 200
BEST = 5
"""Number of fixed peers that are shown for each statistic."""

Row = dict[str, Any]


class Form(NamedTuple):
    """Names in conf/solver and conf/schedule, with further words of a command line, and what to call it."""

    name: str
    solver: str
    schedule: str
    words: tuple[str, ...]

    def tables(self, checkpoint: Checkpoint, budgets: Sequence[int]) -> dict[int, Tableau]:
        """The tableau of each NFE.

        Raises:
            InputError: if there is none of exactly this NFE.
        """
        chosen = [f"solver={self.solver}", f"schedule={self.schedule}", *self.words]
        cfg = complete_config([f"checkpoint={checkpoint.path}", *chosen])
        solver, schedule = build_object(cfg.solver), build_object(cfg.schedule)
        found = {nfe: build_tableau(solver, schedule, span_of(checkpoint), nfe, "none") for nfe in budgets}
        for nfe, run in found.items():
            if run.nfe != nfe or bool(run.B.any()):
                raise InputError(f"--candidates {self.name}: spends {run.nfe} for nfe={nfe}, or is stochastic")
        return found


NOTATION = '"SOLVER/STEPS KEY=VALUE ..", with "NAME: " in front if that is to be its name'


def form(text: str) -> Form:
    """Read a candidate in `NOTATION`.

    Raises:
        InputError: if it is not of this form.
    """
    name, _, rest = text.rpartition(": ")
    names, *words = rest.split()
    solver, slash, schedule = names.partition("/")
    if not slash:
        raise InputError(f"--candidates {text}: give {NOTATION}")
    return Form(name or rest, solver, schedule, tuple(words))


LINEAR_TIME = "solver.variable={_target_:scoreline.schedules.vp.LinearVP}"
DEIS = form(f"DEIS-tAB3, linear VP time: deis_tab3/linear_vp_quadratic {LINEAR_TIME}")
"""The default of sample.py before version 0.10 for linear VP models, in the same time for all models."""

ALWAYS = (DEIS, form("deis_tab3/time_quadratic"))


def locate(out: Path, name: str) -> Path:
    """The file of a model, which is written or trained first if it is not there."""
    root = out / "models"
    path = root / name / "model.safetensors"
    if path.exists() or name not in (*MIXTURES, *TRAINED):
        return place(root, name)
    if name in MIXTURES:
        return exact_models.write_exact(root, name, MIXTURES[name]())
    run_dir = out / "trained" / name
    command = [sys.executable, str(ROOT / "train.py"), *TRAINED[name], f"hydra.run.dir={run_dir}"]
    subprocess.run(command, check=True)
    content = (run_dir / "model.safetensors").read_bytes()
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return path


@dataclass(frozen=True)
class Model:
    """A model and the noise from which every run starts; what is measured on it is kept in OUT."""

    out: Path
    checkpoint: Checkpoint
    count: int

    @property
    def name(self) -> str:
        return self.checkpoint.path.parent.name

    @property
    def key(self) -> str:
        """What its distances depend on besides the tableau."""
        return f"{self.name}-{self.checkpoint.digest[:8]}-{self.count}-{FINE}"

    @cached_property
    def start(self) -> Tensor:
        """The first state (n, C, H, W) float64."""
        seeds = range(FIRST_SEED, FIRST_SEED + self.count)
        noise = seeded_noise.normal(seeds, self.checkpoint.card.shape, "initial")
        return noise.double() * span_of(self.checkpoint)[0]

    @torch.inference_mode()
    def end(self, run: Tableau) -> Tensor:
        """Where a run goes from there."""
        return integrate(self.checkpoint.denoiser.eps, self.start, run)

    def fine(self) -> Tensor:
        """The end of UniPC-3 with `FINE` calls."""
        run = build_tableau(UniPC(3), Power(7), span_of(self.checkpoint), FINE, "none")
        return stored(self.out / "fine" / f"{self.key}.safetensors", lambda: self.end(run))

    def other(self) -> Tensor:
        """The end of a run of another family on other steps as fine, the classical method of Runge-Kutta."""
        run = build_tableau(rk4(), LogSNR(), span_of(self.checkpoint), FINE, "none")
        return stored(self.out / "fine" / f"{self.key}-other.safetensors", lambda: self.end(run))

    @cached_property
    def ends(self) -> Tensor:
        return self.fine()

    def distances(self, run: Tableau) -> Tensor:
        """RMS over coordinates of the distance from the fine end (n,), infinite where a sample is not finite."""
        return apart(self.end(run), self.ends)

    def measured(self, nfe: int, runs: Mapping[str, Tableau]) -> dict[str, Tensor]:
        """The distances of all tableaus ever measured at this NFE by `digest`, these ones among them."""
        from safetensors.torch import load_file, save_file

        path = self.out / "distances" / f"{self.key}-{nfe}.safetensors"
        known = load_file(path) if path.exists() else {}
        new = {key: self.distances(run) for key, run in runs.items() if key not in known}
        if new:
            known |= new
            write_atomically(path, lambda temporary: save_file(known, temporary))
        return known

    def peers(self, nfe: int) -> dict[str, str]:
        """The digest of every peer "SOLVER/STEPS" that spends exactly this NFE; all are measured."""
        path = self.out / "peers" / f"{self.key}-{nfe}.json"
        known: dict[str, str | None] = json.loads(path.read_text()) if path.exists() else {}
        names = [name for name in conf_folder.files("solver") if name not in RECORDS]
        new = [name for name in names if f"{name}/{STEPS[0]}" not in known]
        if new:
            runs = self.built(new, nfe)
            keys = {pair: digest(run) for pair, run in runs.items()}
            self.measured(nfe, {keys[pair]: run for pair, run in runs.items()})
            known |= {f"{name}/{steps}": keys.get(f"{name}/{steps}") for name in new for steps in STEPS}
            write_json(path, known)
        return {pair: key for pair, key in known.items() if key is not None and pair.partition("/")[0] in names}

    def built(self, solvers: Sequence[str], nfe: int) -> dict[str, Tableau]:
        """The tableaus of these solvers on all `STEPS` that are peers'; equal ones are one object."""
        words = [f"calibration.solvers=[{','.join(solvers)}]", f"calibration.schedules=[{','.join(STEPS)}]"]
        try:
            pool = candidates(families_of(self.checkpoint, words), span_of(self.checkpoint), nfe)
        except InputError:
            return {}
        return {"/".join(pair): each.tableau for each in pool if keeps_point(each.tableau) for pair in each.names}


def apart(x: Tensor, ends: Tensor) -> Tensor:
    found = (x - ends).flatten(1).square().mean(1).sqrt()
    return torch.where(found.isfinite(), found, torch.inf)


def keeps_point(run: Tableau) -> bool:
    """Whether every row is exact for constant eps, as noise and data prediction are and other frames are not."""
    kept = run.S @ run.rho[:-1] + run.N.sum(1)
    rows = (run.S.sum(1) - 1).abs().max()
    return float(torch.maximum((kept - run.rho[1:]).abs().max() / run.rho[0], rows)) < POINT


def digest(run: Tableau) -> str:
    """SHA-256 of all the numbers of a tableau."""
    parts = [getattr(run, field.name) for field in fields(run)]
    content = [part.numpy().tobytes() if isinstance(part, Tensor) else repr(part).encode() for part in parts]
    return hashlib.sha256(b"|".join(content)).hexdigest()[:16]


class Cell(NamedTuple):
    """The distances of a model at an NFE, by name of the peer or candidate."""

    model: str
    nfe: int
    peers: dict[str, Tensor]
    forms: dict[str, Tensor]


def cells_of(model: Model, budgets: Sequence[int], forms: Sequence[Form]) -> Iterator[Cell]:
    """Measure what is missing."""
    tables = {each.name: each.tables(model.checkpoint, budgets) for each in forms}
    for nfe in budgets:
        peers = model.peers(nfe)
        keys = {name: digest(runs[nfe]) for name, runs in tables.items()}
        known = model.measured(nfe, {keys[name]: runs[nfe] for name, runs in tables.items()})
        print(f"{model.name} NFE {nfe}: {len(peers)} peers", file=sys.stderr, flush=True)
        named = [{name: known[key] for name, key in each.items()} for each in (peers, keys)]
        yield Cell(model.name, nfe, *named)


@lru_cache
def resampled(count: int) -> Tensor:
    """Bootstrap samples of 0 .. count - 1, the same for all methods, NFE and models."""
    return torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(0))


def logs(distances: Tensor, resample: bool = False) -> Tensor:
    """Logarithms of the statistics of distances (n,), after them those of bootstrap samples: (3, 1 or 1 + R)."""
    found = [[statistic(distances)[None]] for statistic in STATISTICS.values()]
    if resample:
        drawn = distances[resampled(len(distances))]
        found = [[*each, statistic(drawn)] for each, statistic in zip(found, STATISTICS.values(), strict=True)]
    return torch.stack([torch.cat(each) for each in found]).log()


@dataclass(frozen=True)
class Comparison:
    """All cells of a set of models."""

    cells: Sequence[Cell]

    @cached_property
    def models(self) -> list[str]:
        return list(dict.fromkeys(cell.model for cell in self.cells))

    @cached_property
    def budgets(self) -> list[int]:
        return list(dict.fromkeys(cell.nfe for cell in self.cells))

    @cached_property
    def peer_logs(self) -> list[dict[str, Tensor]]:
        """For each cell the statistics (3,) of all peers."""
        return [{name: logs(each)[:, 0] for name, each in cell.peers.items()} for cell in self.cells]

    @cached_property
    def best(self) -> list[list[str]]:
        """For each cell the best peer by each statistic."""
        return [[min(found, key=lambda name: float(found[name][s])) for s in range(3)] for found in self.peer_logs]

    @cached_property
    def floor(self) -> Tensor:
        """The statistics of the best peers with their bootstrap samples: (cells, 3, 1 + R)."""
        found = zip(self.cells, self.best, strict=True)
        return torch.stack(
            [torch.stack([logs(cell.peers[name], True)[s] for s, name in enumerate(best)]) for cell, best in found]
        )

    def best_rows(self) -> list[Row]:
        """Name and figure of the best peer of each cell by each statistic."""
        found = zip(self.cells, self.best, self.floor[:, :, 0].exp().tolist(), strict=True)
        shown = [(cell, zip(STATISTICS, zip(*best, strict=True), strict=True)) for cell, *best in found]
        return [{"model": cell.model, "nfe": cell.nfe, **dict(best)} for cell, best in shown]

    @cached_property
    def fixed(self) -> dict[str, Tensor]:
        """The logarithm of the ratio (cells, 3) of every peer that is possible in all cells."""
        names = [name for name in self.peer_logs[0] if all(name in found for found in self.peer_logs)]
        floor = self.floor[:, :, 0]
        return {name: torch.stack([found[name] for found in self.peer_logs]) - floor for name in names}

    def leaders(self) -> list[str]:
        """The best fixed peers by each statistic."""
        means = {name: each.mean(0) for name, each in self.fixed.items()}
        ranked = [sorted(means, key=lambda name: float(means[name][s]))[:BEST] for s in range(3)]
        return list(dict.fromkeys(name for best in zip(*ranked, strict=True) for name in best))

    def absolute(self, name: str) -> Tensor:
        """The statistics of a candidate or peer with their bootstrap samples: (cells, 3, 1 + R)."""
        return torch.stack([logs({**cell.peers, **cell.forms}[name], True) for cell in self.cells])

    def row(self, name: str, base: Tensor) -> Row:
        """Figures by statistic of a candidate or a peer; `base` is `absolute` of the method to compare with."""
        own = self.absolute(name)
        found = {
            statistic: {**self.summary((own - self.floor)[:, s]), "to_deis": _mean((own - base)[:, s])}
            for s, statistic in enumerate(STATISTICS)
        }
        return {"name": name, **found}

    def summary(self, ratio: Tensor) -> Row:
        """Geometric means of ratios exp(ratio[:, 0]) over cells with their errors, and the largest.

        Args:
            ratio: logarithms (cells, 1 + R).
        """
        full = ratio[:, 0]
        by_model = torch.stack([full[self._is(model=name)].mean() for name in self.models])
        worst = self.cells[int(full.argmax())]
        found = {
            **_mean(ratio),
            "by_model": dict(zip(self.models, by_model.exp().tolist(), strict=True)),
            "by_nfe": {str(nfe): _mean(ratio[self._is(nfe=nfe)]) for nfe in self.budgets},
            "largest": {"value": float(full.max().exp()), "model": worst.model, "nfe": worst.nfe},
        }
        if len(self.models) > 1:
            one_each = torch.arange(len(self.models))
            found["error_over_models"] = delete_each_group(lambda x: float(x.mean().exp()), by_model, one_each).error
        return found

    def _is(self, **wanted: Any) -> Tensor:
        return torch.tensor([all(getattr(cell, key) == value for key, value in wanted.items()) for cell in self.cells])


def _mean(ratio: Tensor) -> Row:
    """Geometric mean over cells of exp(ratio) (cells, 1 + R), and its bootstrap error over samples."""
    means = ratio.mean(0).exp()
    return {"value": float(means[0]), "error": float(means[1:].std())}


def compared(cells: Sequence[Cell], forms: Sequence[Form], title: str) -> Row:
    """The figures of candidates and of the best fixed peers, the best peer of each cell, and all fixed peers."""
    found = Comparison(cells)
    base, leaders = found.absolute(DEIS.name), found.leaders()
    names = list(dict.fromkeys([*(each.name for each in forms), *leaders]))
    about = {"set": title, "models": found.models, "nfe": found.budgets, "code_version": code_version()}
    rows = [{**found.row(name, base), "peer": name in leaders} for name in names]
    fixed = {name: each.mean(0).exp().tolist() for name, each in found.fixed.items()}
    return {**about, "rows": rows, "best_peers": found.best_rows(), "fixed_peers": fixed}


def accuracy(model: Model, cells: Sequence[Cell]) -> Row:
    """How far two fine runs end from each other, and what the best peer of all NFE is from one of them."""
    between = apart(model.other(), model.ends)
    found: Row = {"model": model.name, "samples": model.count}
    for name, statistic in STATISTICS.items():
        least = min(float(statistic(each)) for cell in cells for each in cell.peers.values())
        found[name] = {"value": float(statistic(between)), "least_peer": least}
    return found


def markdown(found: Sequence[Row]) -> str:
    return "\n\n".join(_section(each) for each in found) + "\n"


def _section(found: Row) -> str:
    rows, statistics = found["rows"], list(STATISTICS)
    heads = [name for each in statistics for name in (each, "largest", "to DEIS")]
    parts = [
        f"## {found['set']}: {len(found['models'])} models, NFE {', '.join(map(str, found['nfe']))}",
        LEGEND,
        _table(["", *heads], [[_named(row), *_figures(row)] for row in rows]),
    ]
    for each in statistics:
        columns = [*(f"NFE {nfe}" for nfe in found["nfe"]), *found["models"]]
        parts += [f"### {each}: by NFE and by model", _table(["", *columns], [_detail(row, each) for row in rows])]
    parts += ["### Best peers", _table(["model", "NFE", *statistics], map(_best, found["best_peers"]))]
    parts += [ACCURACY, _table(["model", "samples", *statistics], map(_accuracy, found["accuracy"]))]
    return "\n\n".join([*parts, f"code_version {found['code_version']}."])


LEGEND = f"""Geometric means over models and NFE of the ratio to the best peer of each cell, for each statistic of the
distance from the fine end; +- are standard errors, by bootstrap over samples and by jackknife over models; then the
largest ratio, and the geometric mean of the ratio to DEIS (`{DEIS.name}`). Peers are in italics."""

ACCURACY = """### The fine end

UniPC-3 on Karras steps against classical Runge-Kutta on log-SNR steps with as many calls: distance between the two,
and that distance as a share of the best peer's smallest at any NFE."""


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [f"| {' | '.join(head)} |", "|--" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _named(row: Row) -> str:
    return f"*{row['name']}*" if row["peer"] else f"{row['name']}"


def _detail(row: Row, statistic: str) -> list[str]:
    by_nfe, by_model = (row[statistic][key].values() for key in ("by_nfe", "by_model"))
    return [_named(row), *map(_value, by_nfe), *(f"{value:.2f}" for value in by_model)]


def _value(it: Row) -> str:
    return f"{it['value']:.2f} +- {it['error']:.1g}"


def _figures(row: Row) -> Iterator[str]:
    for each in (row[name] for name in STATISTICS):
        over = f" +- {each['error_over_models']:.1g}" if "error_over_models" in each else ""
        largest = each["largest"]
        yield from (
            f"{each['value']:.3f} +- {each['error']:.1g}{over}",
            f"{largest['value']:.2f} ({largest['model']}, {largest['nfe']})",
            _value(each["to_deis"]),
        )


def _best(row: Row) -> list[str]:
    shown = (f"{row[name][0]} {row[name][1]:.3g}" for name in STATISTICS)
    return [row["model"], str(row["nfe"]), *shown]


def _accuracy(row: Row) -> list[str]:
    shown = (f"{it['value']:.2g}, {it['value'] / it['least_peer']:.2g}" for it in (row[name] for name in STATISTICS))
    return [row["model"], str(row["samples"]), *shown]


def figure(found: Sequence[Row], path: Path) -> None:
    """Rows are sets of models, columns statistics; ratio against NFE."""
    write_atomically(path, lambda temporary: _draw_all(found, temporary))


def _draw_all(found: Sequence[Row], path: Path) -> None:
    size = (PAGE, 2.5 * len(found) + 0.6)
    with figures.figure(path, len(found), len(STATISTICS), figsize=size, squeeze=False) as (chart, grid):
        for line, each in zip(grid, found, strict=True):
            for axes, name in zip(line, STATISTICS, strict=True):
                _draw(axes, each, name)
        chart.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)


def _draw(axes: Any, found: Row, name: str) -> None:
    for number, row in enumerate(found["rows"]):
        values = [row[name]["by_nfe"][str(nfe)] for nfe in found["nfe"]]
        style = {"linestyle": ":", "alpha": 0.6} if row["peer"] else {"marker": MARKERS[number % len(MARKERS)]}
        value, error = ([it[key] for it in values] for key in ("value", "error"))
        axes.errorbar(found["nfe"], value, error, label=row["name"], **style)
    axes.axhline(1, color="grey", linewidth=1)
    axes.set(title=f"{found['set']}: {name}", xlabel="NFE", ylabel="ratio to the best peer", xscale="log", yscale="log")
    axes.set_xticks(found["nfe"], map(str, found["nfe"]))
    axes.xaxis.minorticks_off()
    figures.plain_ticks(axes.yaxis)


def sets_of(text: str) -> dict[str, tuple[str, ...]]:
    """Sets of models by title; names of models are one set.

    Raises:
        InputError: for a name that is neither.
    """
    names = text.split(",")
    if all(name in SETS for name in names):
        return {name: SETS[name] for name in names}
    known = [name for models in SETS.values() for name in models]
    unknown = set(names) - set(known)
    if unknown:
        named = ",".join(sorted(unknown))
        raise InputError(f"--models {named}: give some of {', '.join([*SETS, *known])}")
    return {"selection": tuple(names)}


def studied(out: Path, title: str, models: Sequence[str], budgets: Sequence[int], forms: Sequence[Form]) -> Row:
    """The comparison on a set of models with the accuracy of their fine ends."""
    cells: list[Cell] = []
    checked = []
    for name in models:
        model = Model(out, load_model(locate(out, name)), SAMPLES.get(name, MOST_SAMPLES))
        mine = list(cells_of(model, budgets, forms))
        checked.append(accuracy(model, mine))
        cells += mine
    return {**compared(cells, forms, title), "accuracy": checked}


def work(out: Path, sets: Mapping[str, Sequence[str]], budgets: Sequence[int], forms: Sequence[Form]) -> None:
    """Measure what is missing and write the results of these sets."""
    forms = list(dict.fromkeys([*forms, *ALWAYS]))
    found = [studied(out, title, models, budgets, forms) for title, models in sets.items()]
    write_json(out / "closed_forms.json", found)
    write_atomically(out / "closed_forms.md", lambda temporary: temporary.write_text(markdown(found)))
    figure(found, out / "closed_forms.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--candidates", nargs="+", default=[], metavar="SOLVER/STEPS", help=NOTATION)
    parser.add_argument("--models", default="chosen,reported", help="sets, or names of models")
    parser.add_argument("--nfe", type=whole_numbers, default=BUDGETS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    try:
        work(asked.out.resolve(), sets_of(asked.models), asked.nfe, [form(text) for text in asked.candidates])
    except InputError as error:
        sys.exit(f"closed_forms: {error}")


if __name__ == "__main__":
    main()
