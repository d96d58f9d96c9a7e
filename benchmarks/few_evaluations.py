"""Solvers and steps at few evaluations: `python benchmarks/few_evaluations.py OUT [--images 1000] [--nfe 5,6,8,10]`.

Two models, the shipped `digits_vp` and `digits_classes` with its exact score, are calibrated by calibrate.py, then
sampled by every method at every NFE on three disjoint ranges of seeds that no calibration saw. Reported are the
distance from a fine run of the same model with the same noise, and the Frechet distance. What is in OUT already is not
done again. OUT/few_evaluations.md and .png hold the tables, OUT/rows.json a row for each cell and range,
OUT/differences.json what a method adds to the first one on the same seeds.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import exact_models
import torch
from torch import Tensor

from scoreline.calibration.distances import fine_ends
from scoreline.calibration.search import Recommendation
from scoreline.calibration.subject import Subject
from scoreline.checkpoints import Checkpoint, load_model
from scoreline.config import run_names
from scoreline.config.compose import build_object, complete_config
from scoreline.datasets.digits import Digits
from scoreline.errors import InputError
from scoreline.generation.labels import plan_labels
from scoreline.metrics.features import DigitFeatures
from scoreline.metrics.frechet import GaussianStatistics, frechet_replicates
from scoreline.metrics.jackknife import Replicates, assign_groups, delete_each_group
from scoreline.networks.gaussian_mixture import GaussianMixtureScore
from scoreline.schedules.spacings import Power
from scoreline.solvers.tableau import Tableau, build_tableau
from scoreline.solvers.unipc import UniPC
from scoreline.storage import figures
from scoreline.storage.figures import PAGE
from scoreline.storage.files import code_version, write_atomically
from scoreline.storage.pictures import to_uint8
from scoreline.tables.figure import MARKERS
from scoreline.tables.grid import Run, of_sweep, over_seed_ranges
from scoreline.tables.render import markdown

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("digits_classes", "digits_vp")
FIRST_SEED, RANGES, BATCH, GROUPS = 10_000, 3, 256, 20
FINE = 200
OWN = "its own"
FRECHET = "frechet_distance"


class Method(NamedTuple):
    """Names in conf/solver and conf/schedule, and the record that has to be there first."""

    solver: str
    schedule: str = OWN
    record: str | None = None

    @property
    def name(self) -> str:
        return f"{self.solver} / {self.schedule}"


METHODS = (
    Method("deis_tab3", "time_quadratic"),
    Method("velocity_ab3", "linear_vp_few"),
    Method("deis_sn", "time_quadratic", "score_norm"),
    Method("deis_tab3", "score_optimal", "score_optimal"),
    Method("heun", "score_optimal", "score_optimal"),
    Method("heun", "karras"),
    Method("auto", OWN, "search"),
    Method("learned", OWN, "tableau"),
)
"""The first is what others are compared with; a search comes before tables are learned, which it would offer too."""

REFERENCE = Method("unipc_3", "karras")


LEARNED_FROM = "0-767"
"""Seeds that tables are learned from."""


@dataclass(frozen=True)
class Plan:
    """What to measure, and in which directory."""

    out: Path
    images: int
    budgets: tuple[int, ...]
    methods: tuple[Method, ...] = METHODS

    def ranges(self) -> list[str]:
        """Disjoint ranges of seeds, as sample.py takes them."""
        starts = [FIRST_SEED + self.images * number for number in range(RANGES)]
        return [f"{start}-{start + self.images - 1}" for start in starts]

    def calibration(self, kind: str) -> list[str]:
        """Overrides of calibrate.py."""
        asked = {
            "search": [f"calibration.budgets={_listed(self.budgets)}", f"batch_size={BATCH}"],
            "tableau": [f"calibration.budgets={_listed(self.budgets)}", f"seeds={LEARNED_FROM}", f"batch_size={BATCH}"],
        }
        return [f"calibration={kind}", *asked.get(kind, [])]


def _listed(numbers: Sequence[int]) -> str:
    return f"[{','.join(map(str, numbers))}]"


def place(root: Path, name: str) -> Path:
    """root/NAME/model.safetensors: an exact model, or a copy of a shipped one with its score_norm record beside it."""
    path = root / name / "model.safetensors"
    if path.exists():
        return path
    if name in exact_models.MODELS:
        return exact_models.write_model(root, name)
    shipped = run_names.model_path(name)
    _copy(run_names.record_beside(shipped, "score_norm"), run_names.record_beside(path, "score_norm"))
    _copy(shipped, path)
    return path


def _copy(source: Path, target: Path) -> None:
    write_atomically(target, lambda temporary: shutil.copy(source, temporary))


def calibrate(plan: Plan, checkpoint: Path, kind: str) -> None:
    """Let calibrate.py write a record beside the checkpoint, unless there is one."""
    if run_names.record_beside(checkpoint, kind).exists():
        return
    name = checkpoint.parent.name
    words = [f"checkpoint={checkpoint}", f"hydra.run.dir={plan.out / 'calibrate' / name / kind}"]
    command = [sys.executable, str(ROOT / "calibrate.py"), *words, *plan.calibration(kind)]
    subprocess.run(command, check=True)


Score = dict[str, Any]


class Judge(NamedTuple):
    """Vectors of samples, the Gaussian that right samples have, and what to call the two."""

    vectors: Callable[[Tensor], Tensor]
    right: GaussianStatistics
    protocol: dict[str, Any]

    def scores(self, x: Tensor) -> dict[str, Score]:
        """The Frechet distance of the samples."""
        return {FRECHET: _score(frechet_replicates(self.vectors(x), self.right), len(x))}


def _score(replicates: Replicates, count: int) -> Score:
    return {"value": replicates.full, "error": replicates.error, "n": count}


def judge(checkpoint: Checkpoint) -> Judge:
    """Pixels against the exact moments where these are known, else the features of digits."""
    if isinstance(checkpoint.denoiser.network, GaussianMixtureScore):
        return _exact_judge(checkpoint)
    features, digits = DigitFeatures(), Digits("train")
    images, _ = digits.read(range(len(digits)))
    named = {"frechet_of": f"{features.name}:{features.digest[:8]}", "to": f"{digits.name}:{digits.digest[:8]}"}
    return Judge(lambda x: features(to_uint8(x)), GaussianStatistics.of(features(images)), named)


def _exact_judge(checkpoint: Checkpoint) -> Judge:
    """The moments of x_0 + rho eps at the level where runs end."""
    exact_mean, covariance = exact_models.mixture_of(checkpoint).moments()
    added = checkpoint.noise_schedule.sigma_min**2 * torch.eye(len(exact_mean), dtype=torch.float64)
    named = {"frechet_of": "pixels", "to": "exact mean and covariance at sigma_end"}
    return Judge(lambda x: x.double().flatten(1), GaussianStatistics(2, exact_mean, covariance + added), named)


def span_of(checkpoint: Checkpoint) -> tuple[float, float]:
    """(sigma_max, sigma_min) of the model's own noise schedule."""
    return checkpoint.noise_schedule.sigma_max, checkpoint.noise_schedule.sigma_min


def subject_of(checkpoint: Checkpoint, seeds: Sequence[int]) -> Subject:
    """The model, `REFERENCE` with `FINE` evaluations, and these seeds with the classes that sample.py gives them."""
    run = build_tableau(UniPC(3), Power(7), span_of(checkpoint), FINE, "none")
    labels = plan_labels("random", seeds, checkpoint.card.num_classes, checkpoint.card.class_counts)
    return Subject(checkpoint.denoiser, run, checkpoint.card.shape, seeds, BATCH, labels)


class Chosen(NamedTuple):
    """A method's table at an NFE, and the pair that it was recommended as."""

    run: Tableau
    recommended: str | None


def choose(checkpoint: Checkpoint, method: Method, nfe: int) -> Chosen:
    """The table that sample.py would use.

    Raises:
        InputError: if there is none of exactly this NFE.
    """
    words = [f"checkpoint={checkpoint.path}", f"solver={method.solver}"]
    cfg = complete_config(words if method.schedule == OWN else [*words, f"schedule={method.schedule}"])
    solver = build_object(cfg.solver)
    if isinstance(solver, Recommendation):
        found = Method(*solver.at(nfe, span_of(checkpoint)))
        return Chosen(choose(checkpoint, found, nfe).run, found.name)
    run = build_tableau(solver, build_object(cfg.schedule), span_of(checkpoint), nfe, "none")
    if run.nfe != nfe:
        raise InputError(f"nfe={nfe}: {method.solver} spends {run.nfe}")
    return Chosen(run, None)


def stored(path: Path, make: Callable[[], Tensor]) -> Tensor:
    """The tensor in a file, which is made first if it is not there."""
    from safetensors.torch import load_file, save_file

    if not path.exists():
        made = make()
        write_atomically(path, lambda temporary: save_file({"values": made}, temporary))
    return load_file(path)["values"]


@dataclass(frozen=True)
class Bench:
    """A model in a plan."""

    plan: Plan
    checkpoint: Checkpoint
    judge: Judge

    @property
    def name(self) -> str:
        return self.checkpoint.path.parent.name

    def ends(self, seeds: str) -> Tensor:
        """Where the fine run ends, kept in a file."""
        path = self.plan.out / "reference" / f"{self.name}-{seeds}.safetensors"
        return stored(path, lambda: fine_ends(subject_of(self.checkpoint, _numbers(seeds))).noisy)

    def drawn(self, run: Tableau, seeds: str) -> Tensor:
        """Samples (n, C, H, W), to the bit those of sample.py."""
        subject = subject_of(self.checkpoint, _numbers(seeds))
        return torch.cat([batch.x for batch in subject.samples(run)])

    def row(self, method: Method, chosen: Chosen, seeds: str) -> Row:
        """One cell on one range of seeds; the distance of every image goes to a file of its own."""
        x, ends = self.drawn(chosen.run, seeds), self.ends(seeds)
        apart = (x.double() - ends).flatten(1).square().mean(1).sqrt()
        stored(distance_file(self.plan.out, self.name, method, chosen.run.nfe, seeds), lambda: apart)
        more = {} if chosen.recommended is None else {"recommended": chosen.recommended}
        return {**self.about(method, chosen.run.nfe, seeds), **more, "metrics": self.scores(x, apart)}

    def scores(self, x: Tensor, apart: Tensor) -> dict[str, Any]:
        """Mean, median and root mean square of the distances (n,), and the Frechet distance of the samples."""
        group = assign_groups(len(x), min(GROUPS, len(x)))
        found = {
            "distance": delete_each_group(lambda d: float(d.mean()), apart, group),
            "distance_median": delete_each_group(lambda d: float(d.median()), apart, group),
            "distance_rms": delete_each_group(lambda d: float(d.square().mean().sqrt()), apart, group),
        }
        return {name: _score(it, len(x)) for name, it in found.items()} | self.judge.scores(x)

    def reference_row(self, seeds: str) -> Row:
        """The Frechet distance of the fine run itself."""
        return {**self.about(REFERENCE, FINE, seeds), "metrics": self.judge.scores(self.ends(seeds))}

    def about(self, method: Method, nfe: int, seeds: str) -> Row:
        """What a row has besides its figures: as in the metrics.json of sample.py."""
        first, last = span_of(self.checkpoint)
        labels = "random" if self.checkpoint.card.num_classes else "none"
        return {
            "model": self.name,
            **{"solver": method.solver, "schedule": method.schedule, "nfe": nfe},
            **{"images": self.plan.images, "seeds": seeds, "labels": labels, "guidance": "none", "threshold": "none"},
            **{"final": "none", "sigma_max": first, "sigma_end": last, "code_version": code_version()},
            "checkpoint": {"name": self.checkpoint.path.name, "sha256": self.checkpoint.digest},
            "protocol": {"distance_from": f"{REFERENCE.name} at NFE {FINE}, same noise", **self.judge.protocol},
        }


def distance_file(out: Path, model: str, method: Method, nfe: int, seeds: str) -> Path:
    name = f"{model}-{method.solver}-{method.schedule}-{nfe}-{seeds}".replace(" ", "_")
    return out / "distances" / f"{name}.safetensors"


def _numbers(seeds: str) -> range:
    first, last = map(int, seeds.split("-"))
    return range(first, last + 1)


def measure(bench: Bench, known: Callable[[Row], bool]) -> Iterator[Row]:
    """The rows that are not known yet, one after the other; a cell without a table is a row that says why."""
    plan = bench.plan
    for method in plan.methods:
        if method.record:
            calibrate(plan, bench.checkpoint.path, method.record)
        for nfe in plan.budgets:
            missing = [s for s in plan.ranges() if not known(bench.about(method, nfe, s))]
            yield from _cells(bench, method, nfe, missing)
    for seeds in plan.ranges():
        if not known(bench.about(REFERENCE, FINE, seeds)):
            yield bench.reference_row(seeds)


def _cells(bench: Bench, method: Method, nfe: int, missing: list[str]) -> Iterator[Row]:
    if not missing:
        return
    try:
        chosen = choose(bench.checkpoint, method, nfe)
    except InputError as error:
        yield from ({**bench.about(method, nfe, seeds), "left_out": str(error)} for seeds in missing)
        return
    for seeds in missing:
        yield bench.row(method, chosen, seeds)


KEY = ("model", "solver", "schedule", "nfe", "seeds")


class Ledger:
    """The rows of OUT/rows.json; the file is written again after each new one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = json.loads(path.read_text()) if path.exists() else []

    def __contains__(self, row: Row) -> bool:
        return [row[key] for key in KEY] in [[each[key] for key in KEY] for each in self.rows]

    def add(self, row: Row) -> None:
        self.rows.append(row)
        write_json(self.path, self.rows)


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content, indent=1) + "\n"))


def claim(out: Path) -> None:
    """A directory belongs to one version of the code: what is kept in it must be comparable.

    Raises:
        InputError: if another version began it.
    """
    mark = out / "code_version"
    if not mark.exists():
        write_atomically(mark, lambda temporary: temporary.write_text(code_version()))
    if mark.read_text() != code_version():
        raise InputError(f"{out}: was begun by version {mark.read_text()} of the code, this is {code_version()}")


def differences(out: Path, rows: Sequence[Row], first: Method) -> list[Row]:
    """What a method adds to the distances of `first` on the same seeds, with its standard error.

    That of the mean distance is over images, that of a Frechet distance over ranges of seeds.
    """
    found: list[Row] = []
    for name, _, nfe, group in _grouped(rows):
        base = [row for row in rows if (row["model"], row["nfe"]) == (name, nfe) and _method(row) == first.name]
        if len(base) == len(group) > 1 and group[0] not in base:
            found += _paired(out, group, base)
    return found


def _method(row: Row) -> str:
    return f"{row['solver']} / {row['schedule']}"


def _grouped(rows: Sequence[Row]) -> Iterator[tuple[str, str, int, list[Row]]]:
    """Model, method, NFE and the rows of their seed ranges."""
    keys = dict.fromkeys((row["model"], _method(row), row["nfe"]) for row in rows)
    for key in keys:
        yield *key, [row for row in rows if (row["model"], _method(row), row["nfe"]) == key]


def _paired(out: Path, group: list[Row], base: list[Row]) -> list[Row]:
    apart = torch.cat([_distances(out, one) - _distances(out, other) for one, other in zip(group, base, strict=True)])
    about = {key: group[0][key] for key in ("model", "solver", "schedule", "nfe")}
    found = {"distance": apart.tolist()}
    for name in shown(group)[1:]:
        pairs = zip(group, base, strict=True)
        found[name] = [one["metrics"][name]["value"] - other["metrics"][name]["value"] for one, other in pairs]
    return [
        {**about, "metric": name, "difference": mean(it), "error": stdev(it) / len(it) ** 0.5, "n": len(it)}
        for name, it in found.items()
    ]


def _distances(out: Path, row: Row) -> Tensor:
    from safetensors.torch import load_file

    method = Method(row["solver"], row["schedule"])
    return load_file(distance_file(out, row["model"], method, row["nfe"], row["seeds"]))["values"]


TITLES = {
    "distance": "Mean distance from the fine run",
    FRECHET: "Frechet distance",
    f"imagenet/{FRECHET}": "Frechet distance, EfficientNet-Lite0",
    f"emoji/{FRECHET}": "Frechet distance, emoji classifier",
}


def shown(rows: Sequence[Row]) -> list[str]:
    """The scores that have a table: the distance, then the Frechet distances."""
    measured = {name for row in rows for name in row.get("metrics", {})}
    return [name for name in TITLES if name in measured]


BIAS = "the Frechet distance of few samples is biased upwards: the fine run's is its floor, not 0"


def report(rows: Sequence[Row]) -> str:
    """For each model its two tables, what the fine run itself scores, what was chosen, and what is missing."""
    parts = []
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name]
        parts += [
            f"### {name}",
            *(f"{TITLES[metric]}:\n\n{_table(mine, metric)}" for metric in shown(mine)),
            _notes(mine),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def summed(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Means over seed ranges of the methods, and those of the fine run."""
    found = over_seed_ranges([Run(Path(), row) for row in rows if "metrics" in row])
    whole = [run.result for run in found]
    fine = [row for row in whole if "distance" not in row["metrics"]]
    return [row for row in whole if row not in fine], fine


def _table(rows: Sequence[Row], metric: str) -> str:
    cells, fine = summed(rows)
    text = markdown(of_sweep([Run(Path(), row) for row in cells], metric)).strip()
    if not fine or metric not in fine[0]["metrics"]:
        return text
    score = fine[0]["metrics"][metric]
    floor = f"{score['value']:.3g} +- {score['error']:.2g}"
    columns = len({row["nfe"] for row in cells})
    head, gap, tail = text.partition("\n\n")
    return f"{head}\n| {REFERENCE.name}, NFE {FINE} |{f' {floor} |' * columns}{gap}{tail}"


def _notes(rows: Sequence[Row]) -> str:
    chosen = {row["nfe"]: row["recommended"] for row in rows if "recommended" in row}
    lines = [BIAS, *(f"auto chose {pair} at NFE {nfe}" for nfe, pair in chosen.items())]
    lines += list(dict.fromkeys(f"{_method(row)}: {row['left_out']}" for row in rows if "left_out" in row))
    return "\n".join(f"- {line}." for line in lines)


def figure(rows: Sequence[Row], path: Path) -> None:
    """Rows are models, columns the distances, both axes logarithmic."""
    write_atomically(path, lambda temporary: _draw_all(rows, temporary))


def _draw_all(rows: Sequence[Row], path: Path) -> None:
    names = list(dict.fromkeys(row["model"] for row in rows))
    count, width = len(names), len(shown(rows))
    budgets = sorted({row["nfe"] for row in summed(rows)[0]})
    options = {"figsize": (PAGE, 2.2 * count + 0.6), "sharex": True, "squeeze": False}
    with figures.figure(path, count, width, **options) as (chart, grid):
        for (line, name), (column, metric) in product(enumerate(names), enumerate(shown(rows))):
            axes = grid[line, column]
            _draw(axes, [row for row in rows if row["model"] == name], metric)
            axes.set(title=name, ylabel=TITLES[metric], xlabel="NFE", xscale="log", yscale="log")
            axes.set_xticks(budgets, map(str, budgets))
            axes.xaxis.minorticks_off()
            figures.plain_ticks(axes.yaxis)
        chart.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def _draw(axes: Any, rows: Sequence[Row], metric: str) -> None:
    cells, fine = summed(rows)
    for number, name in enumerate(dict.fromkeys(map(_method, cells))):
        line = sorted((row["nfe"], *_bar(row, metric)) for row in cells if _method(row) == name)
        axes.errorbar(*zip(*line, strict=True), label=name, marker=MARKERS[number % len(MARKERS)])
    for row in fine if metric != "distance" else []:
        axes.axhline(row["metrics"][metric]["value"], color="grey", linestyle=":", linewidth=1)


def _bar(row: Row, metric: str) -> tuple[float, float]:
    score = row["metrics"][metric]
    return score["value"], score["error"]


def write(plan: Plan, rows: Sequence[Row]) -> None:
    """The tables, the figure and the paired differences."""
    text, out = report(rows), plan.out
    write_atomically(out / "few_evaluations.md", lambda temporary: temporary.write_text(text))
    figure(rows, out / "few_evaluations.png")
    compared = [row for row in rows if "distance" in row.get("metrics", {})]
    write_json(out / "differences.json", differences(out, compared, plan.methods[0]))


def work(plan: Plan, models: Sequence[str]) -> None:
    """Everything that is missing, model by model, with the tables of what there is after each."""
    claim(plan.out)
    ledger = Ledger(plan.out / "rows.json")
    for name in models:
        checkpoint = load_model(place(plan.out / "models", name))
        for row in measure(Bench(plan, checkpoint, judge(checkpoint)), ledger.__contains__):
            ledger.add(row)
            print(_line(row), flush=True)
        write(plan, ledger.rows)


def _line(row: Row) -> str:
    scores = ", ".join(f"{name} {score['value']:.4g}" for name, score in row.get("metrics", {}).items())
    return f"{row['model']} {_method(row)} NFE {row['nfe']} seeds {row['seeds']}: {scores or row['left_out']}"


def whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=1000, help="in each of the three ranges of seeds")
    parser.add_argument("--nfe", type=whole_numbers, default=(5, 6, 8, 10, 15, 20))
    parser.add_argument("--models", default=",".join(MODELS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    try:
        work(Plan(asked.out.resolve(), asked.images, asked.nfe), asked.models.split(","))
    except InputError as error:
        sys.exit(f"few_evaluations: {error}")


if __name__ == "__main__":
    main()
