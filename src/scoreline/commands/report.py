"""scoreline report DIR [--html] [metric=NAME] [over=ROW] [fine=RUN] [pictures=N]
[style=FILE]
Print the table of finished runs, and write table.md, table.tex, table.csv and
the figure, table.pdf, table.svg and table.png, into DIR.

  scoreline report outputs/table/NAME-small       the cells of a table
  scoreline report multirun/sample-XXXXXXXX       a sweep, or any folder of runs
  scoreline report multirun/train-XXXXXXXX        a study by Optuna:
                                                  study.md, .tex, .csv, .pdf,
                                                  .svg and .png
  scoreline report DIR metric=recall              another measured metric
  scoreline report DIR over=DDIM                  ratios to a row of a table
  scoreline report DIR fine=RUN pictures=4        distances to a fine run, and
                                                  pictures.png
  scoreline report DIR --html                     a page too: report.html

fine      a run of sample.py with the seeds of the others and many evaluations:
          adds the metric `distance`, the root mean square over pixels in
          [-1, 1] to its image of the same seed, and prints that by default
pictures  images of each cell in pictures.png, which has a row for each solver
          and a column for each NFE (4) and needs fine=; and in report.html (8)
style     a style sheet of Matplotlib for the figure, over the package's own
--html    writes report.html, one file that a browser opens without a network:
          the table, the figure with its values, the same seeds in every cell
          to enlarge and flip, the runs of each cell, and what failed and why

Rows of a study are its trials, the best first; with a key above, a study of
sample.py is shown as any other sweep. Rows of a sweep are solvers on schedules
with the options that vary (schedule.exponent=5); columns are NFE. Runs of
unequal protocols form separate tables. Runs that differ only in seeds are
one number with the spread between them. Ratios pair the seed ranges and are in
ratios.md too.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from scoreline.commands.words import split
from scoreline.errors import InputError, did_you_mean
from scoreline.generation.run_results import Result
from scoreline.report_page import cell_runs, page
from scoreline.report_page.cell_runs import Runs
from scoreline.storage.figures import overlaid
from scoreline.tables import fine_run, plan, ratios, study, table_files
from scoreline.tables.grid import Grid, collect, of_sweep, over_seed_ranges
from scoreline.tables.render import markdown
from scoreline.values import whole_number

OWN = {"metric": "", "over": "", "fine": "", "pictures": "", "style": ""}
METRIC = "frechet_distance"
HTML = "--html"

SHOWN = 4
"""Images of a cell in pictures.png."""


def main(words: list[str]) -> None:
    """Write the files of the table, and print it.

    Raises:
        InputError: for no directory, one without finished runs, an unmeasured metric, or ratios to an unknown row or of
            a sweep, which has no rows of equal seed ranges.
    """
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return
    options = [word for word in words if word.startswith("-")]
    for word in options:
        if word != HTML:
            raise InputError(f"{word}: there is no such option{did_you_mean(word, [HTML])}")
    roots = [word for word in words if word not in options and ("=" not in word or Path(word).is_dir())]
    own, unknown = split([word for word in words if word not in (*roots, *options)], OWN)
    for word in unknown:
        key = word.partition("=")[0]
        raise InputError(f"{key}: there is no such key{did_you_mean(key, OWN)}")
    if len(roots) != 1:
        raise InputError(f"{len(roots)} directories: give one, as in outputs/table/NAME-small")
    with overlaid(own["style"]):
        _report(Path(roots[0]), own, HTML in options)


def _report(root: Path, own: Mapping[str, str], html: bool) -> None:
    images = _count(own, html)
    if own["fine"]:
        found = beside_fine(root, Path(own["fine"]), own["metric"] or fine_run.DISTANCE, images or SHOWN)
        print(markdown(found.grid), end="")
        if html:
            _page(root, found.grid, found.runs(), images, found.fine)
        return
    if (root / study.FILE).is_file() and not (own["metric"] or own["over"]):
        if html:
            raise InputError(f"{HTML}: shows the runs of a study as a sweep; give metric=NAME too")
        print(study.write(root), end="")
        return
    text = "\n" + _ratio_table(root, own["metric"], own["over"]) if own["over"] else ""
    whole, runs_behind = _grid_and_runs(root, own["metric"])
    print(table_files.write(whole, root) + text, end="")
    if html:
        _page(root, whole, runs_behind(), images)


def _page(root: Path, grid: Grid, runs: Runs, images: int | None, fine: fine_run.FineRun | None = None) -> None:
    path = page.write(root, grid, runs, fine, images or page.IMAGES)
    print(f"page ({path.stat().st_size / 1000:,.0f} kB) -> {path}")


class Beside(NamedTuple):
    """The grid of runs with distances to a fine run, that run, the images of each cell, and what finds the runs."""

    grid: Grid
    fine: fine_run.FineRun
    images: int
    runs: Callable[[], Runs]


def beside_fine(root: Path, fine: Path, metric: str, shown: int) -> Beside:
    """Write the table of runs with their distances to a fine run, and pictures.png.

    Args:
        root: a directory of runs.
        fine: the directory of the fine run.
        metric: the metric of the table.
        shown: images of each cell in the picture.

    Raises:
        InputError: as `main`, and if the runs and the fine run have not the same seeds.
    """
    reference = fine_run.fine_run(fine)
    if (root / plan.PLAN).is_file():
        grid, folders, runs = _table_beside(root, reference, metric)
    else:
        grid, folders, runs = _sweep_beside(root, reference, metric)
    grid = replace(grid, note=f"{grid.note} {fine_run.note(reference)}".strip())
    table_files.write(grid, root)
    table_files.write_file(root / "pictures.png", lambda path: fine_run.draw(grid, folders, reference, shown, path))
    images = next(entry.result["images"] for entry in grid.entries() if entry.result)
    return Beside(grid, reference, images, partial(runs, grid))


Found = tuple[Grid, dict[fine_run.Place, Path], Callable[[Grid], Runs]]
"""A grid with distances, the directory of the first run of each cell, and what finds the runs behind the grid."""


def _table_beside(root: Path, fine: fine_run.FineRun, metric: str) -> Found:
    draft = _load_plan(root, "" if metric == fine_run.DISTANCE else metric)
    draft = replace(draft, table=replace(draft.table, metric=metric))

    def read(cell: plan.Cell, folder: Path) -> Result:
        return fine_run.with_distance(folder / cell.directory, plan.result(cell, folder), fine)

    grid = plan.grid(draft, root, read)
    if not any(entry.result for entry in grid.entries()):
        raise InputError(f"{root}: no cell of the table is finished; run the command of the table again")
    folders: dict[fine_run.Place, Path] = {}
    for cell in draft.cells:
        folders.setdefault((cell.row, cell.column), root / cell.directory)
    return grid, folders, partial(cell_runs.of_plan, draft, root)


def _sweep_beside(root: Path, fine: fine_run.FineRun, metric: str) -> Found:
    runs = collect(root)
    figures = over_seed_ranges(fine_run.with_distances(runs, fine))
    if not figures:
        raise InputError(f"{root}: holds no run beside fine={fine.directory}; run python sample.py -m ... first")
    grid = of_sweep(figures, metric)
    directories = {id(figure.result): figure.directory for figure in figures}
    folders = {
        (entry.row, entry.column): directories[id(entry.result)]
        for entry in grid.entries()
        if id(entry.result) in directories
    }
    return grid, folders, lambda whole: cell_runs.of_sweep(root, whole, runs, figures)


def _count(own: Mapping[str, str], html: bool) -> int | None:
    """Return the number of images of each cell; None stands for the default.

    Raises:
        InputError: if it is none, without `fine` or a page, or if `fine` is together with `over`.
    """
    if own["over"] and (own["fine"] or own["pictures"]):
        raise InputError(f"over={own['over']}: ratios are of a table's own metrics; leave out fine and pictures")
    if own["pictures"] and not (own["fine"] or html):
        raise InputError(f"pictures={own['pictures']}: give fine=RUN too, a run of many evaluations, or {HTML}")
    text = own["pictures"]
    return whole_number("pictures", int(text) if text.isdecimal() else text) if text else None


def _grid_and_runs(root: Path, metric: str) -> tuple[Grid, Callable[[], Runs]]:
    """Collect the runs below a directory into a grid; the second value finds the runs behind it.

    Raises:
        InputError: as `main`.
    """
    if (root / plan.PLAN).is_file():
        draft = _load_plan(root, metric)
        table = plan.grid(draft, root)
        return table, partial(cell_runs.of_plan, draft, root, table)
    runs = collect(root)
    figures = over_seed_ranges(runs)
    sweep = of_sweep(figures, metric or METRIC)
    return sweep, partial(cell_runs.of_sweep, root, sweep, runs, figures)


def _ratio_table(root: Path, metric: str, base: str) -> str:
    """Write the ratios of the rows of a table to row `base` into ratios.md; return the text.

    Raises:
        InputError: as `main`.
    """
    if not (root / plan.PLAN).is_file():
        raise InputError(f"over={base}: {root} is a sweep; ratios are made of sample.py table=NAME")
    text = ratios.markdown(_load_plan(root, metric), root, base)
    table_files.write_text(root / "ratios.md", text)
    return text


def _load_plan(root: Path, metric: str) -> plan.Plan:
    """Load the plan of a table, with its own metric or another one.

    Raises:
        InputError: if the runs lack that metric.
    """
    plan_data = plan.load(root)
    if not metric:
        return plan_data
    metrics = {name for entry in plan.entries(plan_data, root) if entry.result for name in entry.result["metrics"]}
    if metric not in metrics:
        raise InputError(f"metric={metric}: not measured in these runs{did_you_mean(metric, metrics)}")
    return replace(plan_data, table=replace(plan_data.table, metric=metric))
