"""What learned tables gain on the best closed form: `python benchmarks/learned.py OUT [--models ring8] [--nfe 5,8]`.

For each model and NFE all closed forms are ranked and a table is learned on the same training noise, from few of them
(`calibration=tableau`; where a `tableau` record lies beside the model, its tables are taken). Both are then measured on
fresh noise against the fine run. Samples that end in another mode than the fine run's are counted apart. For `PLAIN`
models a plain recipe (`first_try`) learns from the same start and noise. One cell after another goes to OUT/cells, a
cell that is there is not done again; OUT/learned.md has the tables.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import exact_models
import torch
from few_evaluations import claim, place, stored, subject_of, whole_numbers, write_json
from torch import Tensor

from scoreline.calibration.distances import fine_ends
from scoreline.calibration.learned.learned_tableau import HELD_OUT, LearnedTableau
from scoreline.calibration.ranking import Families, candidates, rank
from scoreline.calibration.subject import Subject
from scoreline.checkpoints import Checkpoint, load_model
from scoreline.config import conf_folder, run_names
from scoreline.config.compose import families
from scoreline.config.model_source import with_model
from scoreline.errors import InputError
from scoreline.metrics.classifier import DigitClassifier
from scoreline.networks.exact import GaussianMixture
from scoreline.records import load_record
from scoreline.runtime import seeded_noise
from scoreline.solvers.frames import NOISE
from scoreline.solvers.learned import tableau_in
from scoreline.solvers.tableau import Tableau
from scoreline.storage.files import code_version, write_atomically

Row = dict[str, Any]
Eps = Callable[[Tensor, Tensor], Tensor]

RATES, STEPS = (3e-3, 1e-2, 3e-2), 400
PLAIN = {"ring8": RATES, "digits_classes": RATES, "digits_points": RATES, "digits_vp": (1e-2,)}
"""Models that the plain recipe is tried on, with its learning rates."""

RANKED = 128
"""Images that rank the closed forms."""

TRAINED_MOST = 8
"""Largest NFE at which it is tried on a trained network, through which it has to differentiate."""

RESAMPLES = 1000
FRESH_SEED = 100_000


class Plan(NamedTuple):
    """Seeds to learn from, every third of them held out, fresh ones, and options of `LearnedTableau`."""

    training: int
    fresh: int
    options: dict[str, float]


PLANS = {
    "ring8": Plan(1536, 2000, {"evaluations": 200_000}),
    "digits_classes": Plan(768, 2000, {}),
    "digits_points": Plan(768, 2000, {}),
    "digits_vp": Plan(768, 1000, {"sigma_data": 0.54}),
}


def families_of(checkpoint: Checkpoint, words: Sequence[str] = ()) -> Families:
    """The solvers and schedules among which calibrate.py calibration=tableau, given these words, looks for starts."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    run_names.register_resolvers()
    with initialize_config_dir(str(conf_folder.conf_dir()), version_base="1.3"):
        cfg = compose("calibrate", ["calibration=tableau", f"checkpoint={checkpoint.path}", *words])
        found = families(with_model(cfg, checkpoint), checkpoint)
    return Families(found["solver"], found["schedule"])


class FirstTry(NamedTuple):
    """A table, its training loss, and the learning rate that led there."""

    loss: float
    rate: float
    table: Tableau


def first_try(eps: Eps, x: Tensor, ends: Tensor, start: Tableau, rates: Sequence[float] = RATES) -> FirstTry:
    """The plain recipe: Adam by automatic differentiation through the run, the best of a few learning rates.

    Levels are a softmax over the logarithms of the gaps in ln rho, each row of weights is divided by its sum and
    multiplied by its difference of levels, the loss is the mean over samples of the root mean square distance.

    Args:
        x: (n, d) float64 at the first level; `ends` (n, d) is where the fine run takes it.
        start: one row a call, its levels strictly decreasing.
    """
    tried = [_descended(lambda table: _loss(eps, x, ends, *table), start, rate) for rate in rates]
    return min(tried, key=lambda each: each.loss)


def _loss(eps: Eps, x: Tensor, ends: Tensor, rho: Tensor, N: Tensor) -> Tensor:
    estimates: list[Tensor] = []
    for k in range(len(N)):
        estimates.append(eps(x, rho[k]))
        x = x + torch.stack([N[k, j] * estimates[j] for j in range(k + 1)]).sum(0)
    return (x - ends).square().mean(1).sqrt().mean()


def _descended(loss: Callable[[tuple[Tensor, Tensor]], Tensor], start: Tableau, rate: float) -> FirstTry:
    """The best of `STEPS` steps; a loss that is no longer finite ends them."""
    gaps = start.rho.log().diff().neg().log().requires_grad_()
    weights = (start.N / start.N.sum(1, keepdim=True)).requires_grad_()
    optimiser = torch.optim.Adam([gaps, weights], rate)
    best = FirstTry(float("inf"), rate, start)
    for _ in range(STEPS):
        table = _levels_and_weights(start, gaps, weights)
        value = loss(table)
        if not bool(value.isfinite()):
            break
        if (now := float(value.detach())) < best.loss:
            best = FirstTry(now, rate, Tableau.single_term(*(part.detach().clone() for part in table)))
        optimiser.zero_grad()
        torch.autograd.backward(value)
        optimiser.step()
    return best


def _levels_and_weights(start: Tableau, gaps: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    first, last = start.rho[:1], start.rho[-1:]
    down = (gaps.softmax(0) * (first / last).log()).cumsum(0)[:-1]
    rho = torch.cat([first, first * down.neg().exp(), last])
    lower = weights.tril()
    return rho, lower / lower.sum(1, keepdim=True) * rho.diff()[:, None]


def eps_of(checkpoint: Checkpoint) -> Eps:
    """eps(x (n, d), rho ()) of a model, to be differentiated in both."""
    if checkpoint.path.parent.name not in exact_models.MODELS:
        shape = checkpoint.card.shape
        return lambda x, rho: checkpoint.denoiser.eps(x.reshape(-1, *shape), rho.expand(len(x))).flatten(1)
    mixture = exact_models.mixture_of(checkpoint)
    return mixture.eps_by_products if isinstance(mixture, GaussianMixture) else mixture.eps


def modes_of(checkpoint: Checkpoint) -> Callable[[Tensor], Tensor]:
    """x (n, C, H, W) -> the component most likely to have made it, or the class that the shipped classifier sees."""
    if checkpoint.path.parent.name in exact_models.MODELS:
        mixture, rho = exact_models.mixture_of(checkpoint), checkpoint.noise_schedule.sigma_min
        return lambda x: mixture.responsibilities(x.double().flatten(1), rho).argmax(1)
    from safetensors.torch import load_file

    classifier = DigitClassifier()
    classifier.load_state_dict(load_file(run_names.ASSETS / "digits_features.safetensors"))
    classifier.requires_grad_(False)
    return lambda x: classifier(x.clamp(-1, 1)).argmax(1)


class Outcome(NamedTuple):
    """Distances from the fine run (n,) float64, and which samples end in another mode."""

    distance: Tensor
    changed: Tensor


@dataclass(frozen=True)
class Fresh:
    """Noise that nothing was learned from."""

    subject: Subject
    ends: Tensor
    modes: Callable[[Tensor], Tensor]

    def outcome(self, run: Tableau) -> Outcome:
        x = torch.cat([batch.x for batch in self.subject.samples(run, whole=True)])
        distance = (x.double() - self.ends).flatten(1).square().mean(1).sqrt()
        return Outcome(distance, self.modes(x) != self.modes(self.ends))


Statistic = Callable[[Tensor], Tensor]
STATISTICS: dict[str, Statistic] = {
    "rms": lambda d: d.square().mean(-1).sqrt(),
    "median": lambda d: d.median(-1).values,
    "mean": lambda d: d.mean(-1),
}


def ratio(statistic: Statistic, above: Tensor, below: Tensor) -> dict[str, float]:
    """statistic(above) / statistic(below) of paired samples (n,), with its bootstrap standard error over samples.

    Source: Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapter 6.
    """
    drawn = torch.randint(len(above), (RESAMPLES, len(above)), generator=torch.Generator().manual_seed(0))
    error = (statistic(above[drawn]) / statistic(below[drawn])).std()
    return {"value": float(statistic(above) / statistic(below)), "error": float(error)}


def compared(outcome: Outcome, closed: Outcome) -> Row:
    """A table's figures, and its ratios to the best closed form: of all samples, and of those that both keep."""
    kept = ~outcome.changed & ~closed.changed
    ratios = {name: ratio(statistic, outcome.distance, closed.distance) for name, statistic in STATISTICS.items()}
    return {
        **absolute(outcome),
        **{f"ratio_{name}": value for name, value in ratios.items()},
        "kept": int(kept.sum()),
        "ratio_rms_kept": ratio(STATISTICS["rms"], outcome.distance[kept], closed.distance[kept]),
    }


def absolute(outcome: Outcome) -> Row:
    """Statistics of the distance, the samples that changed mode, and their share in the sum of squares."""
    squares = outcome.distance.square()
    return {
        **{name: float(statistic(outcome.distance)) for name, statistic in STATISTICS.items()},
        "changed": int(outcome.changed.sum()),
        "share_of_changed": float(squares[outcome.changed].sum() / squares.sum()),
    }


@dataclass(frozen=True)
class Lesson:
    """A model, all closed forms, those to begin from, and noise to learn from and to be examined on."""

    checkpoint: Checkpoint
    families: Families
    starts: Families
    options: dict[str, float]
    training: Subject
    fresh: Fresh

    def cell(self, nfe: int) -> Row:
        """Everything about one NFE."""
        began = time.process_time()
        learned = self.recorded(nfe) or self.learned(nfe)
        seconds = time.process_time() - began
        names, start = self.best(nfe, lambda table: True)
        closed, ours = self.fresh.outcome(start), self.fresh.outcome(learned)
        row = {
            **{"model": self.checkpoint.path.parent.name, "nfe": nfe, "code_version": code_version()},
            **{"training": len(self.training.seeds), "fresh": len(self.fresh.subject.seeds)},
            "closed": {"pair": " / ".join(names), **absolute(closed)},
            "learned": {"seconds": seconds, **compared(ours, closed)},
        }
        name = self.checkpoint.path.parent.name
        if name in PLAIN and (name in exact_models.MODELS or nfe <= TRAINED_MOST):
            row["first_try"] = self.plain(names, start, closed, ours)
        return row

    def learned(self, nfe: int) -> Tableau:
        """The learned tableau."""
        return tableau_in(LearnedTableau([nfe], self.starts, **self.options)(self.training), nfe)  # type: ignore[arg-type]

    def recorded(self, nfe: int) -> Tableau | None:
        """The same from a record that lies beside the model and has this NFE."""
        path = run_names.record_beside(self.checkpoint.path, "tableau")
        if not path.exists():
            return None
        values = load_record(path, "tableau", self.checkpoint.digest).values
        return tableau_in(values, nfe) if nfe in values["budgets"].tolist() else None

    def best(self, nfe: int, usable: Callable[[Tableau], bool]) -> tuple[tuple[str, ...], Tableau]:
        """The best closed form, with its names, on the noise that makes steps."""
        some = subject_of(self.checkpoint, self.steps_from()[:RANKED])
        found = [each for each in candidates(self.families, some.span, nfe) if usable(each.tableau)]
        first = rank(some, fine_ends(some), found)[0].candidate
        return first.names[0], first.tableau

    def plain(self, names: tuple[str, ...], start: Tableau, closed: Outcome, ours: Outcome) -> Row:
        """What the plain recipe makes of the same start, or of the best one whose levels it can write down."""
        began, seeds = time.process_time(), self.steps_from()
        some = subject_of(self.checkpoint, seeds)
        if not steady(start):
            names, start = self.best(start.nfe, steady)
        x = seeded_noise.normal(seeds, some.shape, "initial").double().flatten(1) * some.span[0]
        ends = fine_ends(some).noisy.double().flatten(1)
        rates = PLAIN[self.checkpoint.path.parent.name]
        found = first_try(eps_of(self.checkpoint), x, ends, start.unrolled(), rates)
        about = {"pair": " / ".join(names), "rate": found.rate, "seconds": time.process_time() - began}
        theirs = self.fresh.outcome(found.table)
        paired = {name: ratio(statistic, ours.distance, theirs.distance) for name, statistic in STATISTICS.items()}
        return {**about, **compared(theirs, closed), "learned_to_this": paired}

    def steps_from(self) -> list[int]:
        """The training seeds that make steps, not those held out."""
        return [seed for number, seed in enumerate(self.training.seeds) if number % HELD_OUT != HELD_OUT - 1]


def steady(table: Tableau) -> bool:
    """Whether every call is at a lower level than the one before, in noise prediction, as `first_try` can write."""
    plain = table.unrolled()
    return plain.frame == NOISE and bool((plain.rho.diff() < 0).all())


def lesson(out: Path, name: str) -> Lesson:
    """A model of `PLANS` with its noise; the fine run of the fresh noise is kept in a file."""
    checkpoint = load_model(place(out / "models", name))
    training, fresh, options = PLANS[name]
    subject = subject_of(checkpoint, range(FRESH_SEED, FRESH_SEED + fresh))
    ends = stored(out / "reference" / f"{name}.safetensors", lambda: fine_ends(subject).noisy)
    examined = Fresh(subject, ends, modes_of(checkpoint))
    every = families_of(checkpoint, ["calibration.solvers=all", "calibration.schedules=all"])
    return Lesson(
        checkpoint, every, families_of(checkpoint), options, subject_of(checkpoint, range(training)), examined
    )


BOUND = """What bounds a learned table: samples whose flow passes near the border between two modes. A small error there
takes them to another mode, and then they are as far from the fine run as modes are apart, whatever the table. They are
few but decide the root mean square (see their share in the sum of squares); medians, and samples that keep their mode,
show what the nodes and weights themselves gain."""


def markdown(rows: Sequence[Row]) -> str:
    """A section for each model."""
    names = dict.fromkeys(row["model"] for row in rows)
    parts = [_section(name, [row for row in rows if row["model"] == name]) for name in names]
    return "\n\n".join([*parts, BOUND]) + "\n"


def _section(name: str, rows: Sequence[Row]) -> str:
    tables = [f"### {name}", _table(LEARNED_HEAD, map(_learned_cells, rows))]
    tried = [row for row in rows if "first_try" in row]
    if tried:
        tables += [
            "The plain recipe (Adam) from the same start and noise:",
            _table(TRIED_HEAD, map(_tried_cells, tried)),
        ]
    versions = ", ".join(dict.fromkeys(row["code_version"] for row in rows))
    first = rows[0]
    about = (
        f"{first['training']} training seeds (every third held out), {first['fresh']} fresh ones; ratios are to the "
        f"best closed form, +- is a bootstrap standard error over samples; code_version {versions}."
    )
    return "\n\n".join([*tables, about])


LEARNED_HEAD = (
    *("NFE", "best closed form", "its RMS, median", "learned RMS, median", "ratio of RMS", "of medians", "of means"),
    *("changed mode: closed, learned", "their share of the squares", "ratio of RMS, both keep the mode", "seconds"),
)
TRIED_HEAD = (
    *("NFE", "start", "ratio of RMS", "of medians", "of means", "changed mode", "kept: ratio of RMS", "seconds"),
    *("learned to this, paired: RMS", "medians", "means"),
)


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [f"| {' | '.join(head)} |", "|--" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _ratios(row: Row, *names: str) -> list[str]:
    return [f"{row[name]['value']:.2f} +- {row[name]['error']:.2g}" for name in names]


def _learned_cells(row: Row) -> list[str]:
    closed, learned = row["closed"], row["learned"]
    return [
        str(row["nfe"]),
        closed["pair"],
        *(f"{each['rms']:.3g}, {each['median']:.3g}" for each in (closed, learned)),
        *_ratios(learned, "ratio_rms", "ratio_median", "ratio_mean"),
        f"{closed['changed']}, {learned['changed']}",
        f"{closed['share_of_changed']:.2f}, {learned['share_of_changed']:.2f}",
        *_ratios(learned, "ratio_rms_kept"),
        f"{learned['seconds']:.0f}",
    ]


def _tried_cells(row: Row) -> list[str]:
    tried = row["first_try"]
    return [
        str(row["nfe"]),
        tried["pair"],
        *_ratios(tried, "ratio_rms", "ratio_median", "ratio_mean"),
        str(tried["changed"]),
        *_ratios(tried, "ratio_rms_kept"),
        f"{tried['seconds']:.0f}",
        *_ratios(tried["learned_to_this"], *STATISTICS),
    ]


def work(out: Path, models: Sequence[str], budgets: Sequence[int]) -> None:
    """The cells that are missing, with the tables of what there is after each."""
    claim(out)
    for name in models:
        missing = [nfe for nfe in budgets if not _file(out, name, nfe).exists()]
        if not missing:
            continue
        learner = lesson(out, name)
        for nfe in missing:
            write_json(_file(out, name, nfe), learner.cell(nfe))
            write(out)
            print(f"{name} NFE {nfe} done", flush=True)
    write(out)


def _file(out: Path, name: str, nfe: int) -> Path:
    return out / "cells" / f"{name}-{nfe}.json"


def write(out: Path) -> None:
    """OUT/learned.json and OUT/learned.md."""
    rows = [json.loads(path.read_text()) for path in (out / "cells").glob("*.json")]
    rows.sort(key=lambda row: (list(PLANS).index(row["model"]), row["nfe"]))
    write_json(out / "learned.json", rows)
    write_atomically(out / "learned.md", lambda temporary: temporary.write_text(markdown(rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", default=",".join(PLANS))
    parser.add_argument("--nfe", type=whole_numbers, default=(5, 8, 10, 15))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    try:
        work(asked.out.resolve(), asked.models.split(","), asked.nfe)
    except InputError as error:
        sys.exit(f"learned: {error}")


if __name__ == "__main__":
    main()
