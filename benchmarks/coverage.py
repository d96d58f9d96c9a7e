"""What stated errors are worth: `python benchmarks/coverage.py OUT [--draws 150] [--cases ..]`.

A stated error claims to be the spread of a score over other sets of as many images, with the reference held fixed. Here
sets are drawn again and again, without overlap, and scored with their errors. For each score and each number of images
n, as a multiple of the d = 64 features, the table has the mean of the stated errors over the standard deviation of the
scores, with the error of that ratio; and the shares of sets whose score is within one and within two stated errors of
the mean over all sets: 68 % and 95 % where a score is normal and its error right. The mean at the same n is what is
covered, not the value at infinite n: a Frechet distance or a sliced Wasserstein distance of few images is biased.

Cases:
    shifted: images of the shipped digits model at NFE 5, against 640 training digits.
    equal: the same images against 640 others of the same model, so that all distance is by chance.
    gaussian: standard normal vectors times 1.1, against 640 standard normal ones; no classes, no pixels.

The images (31,360 of 8x8) take two minutes of one core, and each case about one; what is in OUT is not done again.
OUT/coverage.json holds the results.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
import torch
from few_evaluations import write_json
from torch import Tensor

from scoreline.datasets.digits import Digits
from scoreline.datasets.generated_images import images
from scoreline.metrics.extractors import ClassProbabilities
from scoreline.metrics.feature_pass import read
from scoreline.metrics.features import DigitFeatures
from scoreline.metrics.frechet import GaussianStatistics, frechet_replicates
from scoreline.metrics.inception_score import inception_score
from scoreline.metrics.jackknife import Replicates, assign_groups
from scoreline.metrics.kid import kernel_replicates
from scoreline.metrics.precision_recall import support_replicates
from scoreline.metrics.sliced_wasserstein import Projections, sliced_wasserstein_replicates
from scoreline.runtime.seeded_noise import seed_generator
from scoreline.storage.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
DIMENSION = 64
MULTIPLES = (1, 1.1, 2, 5, 20)
POOL, REFERENCE = 30_720, 640
CASES = ("shifted", "equal", "gaussian")
GROUPS, SPLITS, PROJECTIONS, BATCH = 20, 10, 64, 1024

Rows = dict[str, Tensor]
"""Features (n, 64); of images also projections of pixels and class probabilities."""


class Result(NamedTuple):
    """A score of one set, and its stated error."""

    value: float
    error: float


class Cell(NamedTuple):
    """What repeated draws say of one score at one n."""

    score: str
    n: int
    draws: int
    value: float
    spread: float
    ratio: float
    ratio_error: float
    within_one: float
    within_two: float


def cell(score: str, n: int, results: Sequence[Result]) -> Cell:
    """Compare the stated errors with the spread of the values.

    The error of the ratio is that of the spread, by the fourth moment of the values, and that of the mean error.
    """
    values, errors = (np.array(each) for each in zip(*results, strict=True))
    draws, spread = len(values), float(values.std(ddof=1))
    gap = np.abs(values - values.mean())
    kurtosis = float((gap**4).mean() / (gap**2).mean() ** 2)
    ratio = float(errors.mean()) / spread
    relative = math.sqrt((kurtosis - 1) / 4 + (float(errors.std()) / float(errors.mean())) ** 2) / math.sqrt(draws)
    within = [float((gap <= width * errors).mean()) for width in (1, 2)]
    return Cell(score, n, draws, float(values.mean()), spread, ratio, ratio * relative, *within)


def scores(rows: Rows, reference: Rows) -> dict[str, Result]:
    """Every score with a stated error that these rows have."""
    x, y = rows["features"], reference["features"]
    group = assign_groups(len(x), min(GROUPS, len(x)))
    found = {
        "Frechet distance": frechet_replicates(x, GaussianStatistics.of(y)),
        "kernel distance": kernel_replicates(x, y),
        **support_replicates(x, y, group),
    }
    if "projected" in rows:
        projected = reference["projected"].T.sort(1).values
        found["sliced Wasserstein"] = sliced_wasserstein_replicates(rows["projected"].T, projected, group)
    results = {name: _result(it) for name, it in found.items()}
    return results | ({"inception score": _inception_score(rows["classes"])} if "classes" in rows else {})


def _result(replicates: Replicates) -> Result:
    return Result(replicates.full, replicates.error)


def _inception_score(probabilities: Tensor) -> Result:
    by_split = inception_score([probabilities], len(probabilities), SPLITS)
    return Result(mean(by_split), stdev(by_split) / len(by_split) ** 0.5)


def sampled(out: Path, count: int) -> Path:
    """The run directory with the images of the shipped model."""
    run = out / "images"
    words = ["checkpoint=digits_vp", "nfe=5", f"seeds=0-{count - 1}", "metrics=none", "format=npz"]
    subprocess.run([sys.executable, str(ROOT / "sample.py"), *words, f"hydra.run.dir={run}"], check=True)
    return run


def measured(batch: Tensor) -> Rows:
    """Features, projections and class probabilities of images uint8 (n, 1, 8, 8)."""
    extractors = {"features": DigitFeatures(), "projected": Projections(PROJECTIONS)}
    extractors["classes"] = ClassProbabilities(DigitFeatures())
    return {name: torch.cat([it(part) for part in torch.split(batch, BATCH)]) for name, it in extractors.items()}


def pool(out: Path, count: int) -> Rows:
    """The rows of all images of the model, kept in OUT."""
    kept = out / "rows.pt"
    if not kept.exists():
        data = images(str(sampled(out, count)))
        write_atomically(kept, lambda temporary: torch.save(measured(read(data, range(len(data)))), temporary))
    rows: Rows = torch.load(kept, weights_only=True)
    return rows


Draw = Callable[[int, int], Rows]
"""Set number k of n rows."""


def of_pool(rows: Rows) -> Draw:
    def draw(n: int, number: int) -> Rows:
        return {name: each[number * n : (number + 1) * n] for name, each in rows.items()}

    return draw


def gaussian(n: int, number: int) -> Rows:
    return {"features": 1.1 * _normal(n, number + 1)}


def _normal(n: int, seed: int) -> Tensor:
    generator = seed_generator(torch.Generator(), seed)
    return torch.randn(n, DIMENSION, generator=generator, dtype=torch.float64)


def cases(out: Path, names: Sequence[str], pool_size: int) -> Iterator[tuple[str, Draw, Rows, int]]:
    """The name of each case, its draws, its reference, and its number of rows for all draws of one n."""
    for name in names:
        if name == "gaussian":
            yield name, gaussian, {"features": _normal(REFERENCE, 0)}, pool_size
        else:
            rows = pool(out, pool_size + REFERENCE)
            others = {key: each[pool_size:] for key, each in rows.items()}
            reference = others if name == "equal" else measured(Digits("train").images[:REFERENCE])
            yield name, of_pool(rows), reference, pool_size


def cells(draw: Draw, reference: Rows, n: int, draws: int) -> list[Cell]:
    """One cell for each score, of sets of n rows."""
    found = [scores(draw(n, number), reference) for number in range(draws)]
    return [cell(name, n, [each[name] for each in found]) for name in found[0]]


def table(found: Sequence[Cell]) -> str:
    """Markdown: a row for each score, a column for each n, of ratio and coverages."""
    sizes = list(dict.fromkeys(it.n for it in found))
    draws = {it.n: it.draws for it in found}
    heading = ["n / d", *(f"{n / DIMENSION:.3g}" for n in sizes)]
    lines = [heading, ["--"] * len(heading), ["n, draws", *(f"{n}, {draws[n]}" for n in sizes)]]
    names = dict.fromkeys(it.score for it in found)
    lines += [[name, *(_text(it) for it in found if it.score == name)] for name in names]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(it: Cell) -> str:
    return f"{it.ratio:.2f} ± {it.ratio_error:.2f}; {100 * it.within_one:.0f}, {100 * it.within_two:.0f} %"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--draws", type=int, default=120, help="at most; without overlap there are fewer of large n")
    parser.add_argument("--multiples", nargs="+", type=float, default=MULTIPLES, help="n / d")
    parser.add_argument("--pool", type=int, default=POOL, help="images for the draws of one n")
    given = parser.parse_args(words)
    file = given.out / "coverage.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name, draw, reference, rows in cases(given.out, given.cases, given.pool):
        sizes = [round(multiple * DIMENSION) for multiple in given.multiples]
        for n in sizes:
            key = f"{name} {n}"
            if key not in results:
                results[key] = cells(draw, reference, n, min(given.draws, rows // n))
                write_json(file, results)
        print(f"\n{name}\n\n{table([Cell(*it) for n in sizes for it in results[f'{name} {n}']])}", flush=True)


if __name__ == "__main__":
    main()
