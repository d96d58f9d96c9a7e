"""`scoreline report DIR`: a table and its figure from finished runs, without running anything.

scoreline report outputs/table/NAME-small            the table of sample.py table=NAME, as far as its runs are finished
scoreline report multirun/sample-XXXXXXXX            a sweep of sample.py -m: rows are solvers on schedules, columns NFE
scoreline report DIR metric=recall                   another of the metrics that were measured

It prints the table and writes table.md, table.tex, table.csv and table.png into DIR. Runs of unequal protocols stand in
tables of their own; runs that differ in nothing but disjoint seeds are one figure, with the spread between them.
"""

from dataclasses import replace
from pathlib import Path

from scoreline.commands.composition import split
from scoreline.errors import InputError, did_you_mean
from scoreline.tables import plan, report, sweep
from scoreline.tables.grid import Grid

OWN = {"metric": ""}
METRIC = "frechet_distance"


def main(words: list[str]) -> None:
    """Write and print.

    Raises:
        InputError: for no directory, one without finished runs, or a metric that was not measured.
    """
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return
    roots = [word for word in words if "=" not in word or Path(word).is_dir()]
    own, unknown = split([word for word in words if word not in roots], OWN)
    for word in unknown:
        key = word.partition("=")[0]
        raise InputError(f"{key}: there is no such key{did_you_mean(key, OWN)}")
    if len(roots) != 1:
        raise InputError(f"{len(roots)} directories: give one, as in outputs/table/NAME-small")
    root = Path(roots[0])
    print(report.files(grid(root, own["metric"]), root), end="")


def grid(root: Path, metric: str) -> Grid:
    """What the runs below a directory make up.

    Raises:
        InputError: as `main`.
    """
    if not (root / plan.PLAN).is_file():
        rows = sweep.over_seed_ranges(sweep.collect(root))
        return sweep.grid(rows, metric or METRIC)
    found = plan.load(root)
    if not metric:
        return plan.grid(found, root)
    known = {name for entry in plan.entries(found, root) if entry.result for name in entry.result["metrics"]}
    if metric not in known:
        raise InputError(f"metric={metric}: not measured in these runs{did_you_mean(metric, known)}")
    table = replace(found.table, metric=metric, paper=found.table.paper)
    return plan.grid(replace(found, table=table), root)
