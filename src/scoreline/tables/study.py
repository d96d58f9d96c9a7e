"""A study by Optuna as a table: its trials, best first, from its storage and the run directories of its jobs."""

import csv
import io
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoreline.calibration.objective_value import VALUES, Value, value_of
from scoreline.config.run_names import cell_name
from scoreline.errors import InputError
from scoreline.generation import run_results
from scoreline.records import read_record
from scoreline.storage.figures import plain_ticks
from scoreline.storage.run_history import records
from scoreline.tables.best import rule, within
from scoreline.tables.figure import in_words
from scoreline.tables.latex import latex_page
from scoreline.tables.render import Line, Page, Text, markdown_page, with_error
from scoreline.tables.table_files import write_figure, write_text
from scoreline.training.pruning import pruned_at

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

FILE = "study.db"
"""The storage of a study in its directory."""

HISTORY = "metrics.jsonl"


@dataclass(frozen=True)
class Trial:
    """A trial of a study.

    Attributes:
        number: the place in the study, from 0 on.
        drawn: the values of the keys that the study varies.
        words: the command line of the job.
        state: complete, `pruned at 4 kimg`, failed, or unfinished for one that a start of the study will take up.
        value: what the trials are compared by, with its error and its images; None without a value.
        name: the name of the value.
        directory: the run directory, as the sweep names it.
    """

    number: int
    drawn: Mapping[str, Any]
    words: Sequence[str]
    state: str
    value: Value | None
    name: str
    directory: Path


@dataclass(frozen=True)
class Trials:
    """A study: its trials, best first, those without a value last, and whether a larger value is the better one."""

    trials: Sequence[Trial]
    maximize: bool

    def best(self) -> Trial | None:
        """Return the trial with the best value; None if no trial has one."""
        return next((trial for trial in self.trials if trial.value), None)


def read(root: Path) -> Trials:
    """Read the study of a sweep's directory.

    Raises:
        InputError: if Optuna is not installed, the file holds no study, or a run directory is not readable.
    """
    study = _load(root)
    maximize = study.direction.name == "MAXIMIZE"
    sign = -1 if maximize else 1
    trials = [_trial(root, trial) for trial in study.get_trials(deepcopy=False)]
    trials.sort(key=lambda it: (sign * it.value.value if it.value else math.inf, it.number))
    return Trials(trials, maximize)


def _load(root: Path) -> "Study":
    try:
        import optuna
    except ImportError as error:
        raise InputError(f"{root}: a study, which needs one more package: pip install 'scoreline[sweep]'") from error
    url = f"sqlite:///{root / FILE}"
    try:
        (one,) = optuna.get_all_study_summaries(url)
        return optuna.load_study(one.study_name, url)
    except Exception as error:  # of Optuna, SQLAlchemy, Alembic or SQLite
        first = str(error).partition("\n")[0]
        raise InputError(f"{root / FILE}: not the storage of one study ({first}); run the study again") from error


def _trial(root: Path, trial: "FrozenTrial") -> Trial:
    words = [f"{key}={value}" for key, value in {**trial.params, **trial.user_attrs}.items()]
    folder = root / cell_name(words)
    kimg = pruned_at(folder)
    states = {"COMPLETE": "complete" if kimg is None else f"pruned at {kimg:g} kimg", "FAIL": "failed"}
    name, value = ("value", None) if trial.value is None else recorded(folder, trial.value)
    return Trial(trial.number, trial.params, words, states.get(trial.state.name, "unfinished"), value, name, folder)


def recorded(folder: Path, value: float) -> tuple[str, Value]:
    """Return the name of the value that a job returned, and the value with the error that its run directory records."""
    result = run_results.read(folder) or {"metrics": {}}
    for name, score in result["metrics"].items():
        if score["value"] == value:
            return name, Value(value, score["error"], score["n"])
    for record in reversed(records(folder / HISTORY)):
        for name in (key for key, measured in record.items() if measured == value):
            return name, Value(value, record.get(f"{name}_error"), record.get(f"{name.removesuffix('loss')}images"))
    for path in (folder / f"{kind}.safetensors" for kind in VALUES):
        if path.is_file():
            record = read_record(path, tuple(VALUES), None)
            return f"{record.kind} value", value_of(record.kind, record.values) or Value(value)
    return "value", Value(value)


def write(root: Path) -> str:
    """Write study.md, study.tex, study.csv and the figure of a sweep's directory; return the Markdown.

    Raises:
        InputError: as `read`, and if nothing can be written there.
    """
    study = read(root)
    page, title = _page(study), f"Study {root.name}"
    text = markdown_page(title, page) + _command(study)
    for name, content in (
        ("study.md", text),
        ("study.tex", latex_page(root.name, title, _of_paper(page))),
        ("study.csv", _csv(study)),
    ):
        write_text(root / name, content)
    if study.best():
        write_figure(root / "study", lambda: figure(study))
    return text


def _keys(study: Trials) -> list[str]:
    return list(dict.fromkeys(key for trial in study.trials for key in trial.drawn))


def _page(study: Trials) -> Page:
    best, keys = study.best(), _keys(study)
    lines = [Line(str(trial.number), _fields(trial, keys, _as_good(trial, best))) for trial in study.trials]
    return Page(["trial", *keys, best.name if best else "value", "n", "state", "directory"], lines, [], _about(study))


def _of_paper(page: Page) -> Page:
    """Leave the directories out, which are too long for a paper."""
    lines = [replace(line, fields=line.fields[:-1]) for line in page.lines]
    return replace(page, heading=page.heading[:-1], lines=lines)


def _as_good(trial: Trial, best: Trial | None) -> bool:
    """Return whether a value is the best, or equal to it."""
    if trial is best or not (trial.value and best and best.value):
        return trial is best
    error = math.hypot(trial.value.error or 0.0, best.value.error or 0.0)
    return within(trial.value.value - best.value.value, error)


def _fields(trial: Trial, keys: Sequence[str], bold: bool) -> list[Text]:
    value = trial.value
    text = Text("-") if value is None else Text(*_with_error(value), bold=bold)
    images = str(value.images) if value and value.images else "-"
    drawn = [Text(_short(trial.drawn.get(key, "-"))) for key in keys]
    return [*drawn, text, Text(images), Text(trial.state), Text(trial.directory.name)]


def _with_error(value: Value) -> tuple[str, str]:
    return (f"{value.value:.5g}", "") if value.error is None else with_error(value.value, value.error)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _about(study: Trials) -> list[str]:
    finished = sum(trial.value is not None for trial in study.trials)
    better = "largest" if study.maximize else "smallest"
    about = [f"{finished} of {len(study.trials)} trials have a value; the best is the {better}"]
    if not finished:
        return about
    if any(trial.value and trial.value.error is not None for trial in study.trials):
        about.append(f"+- is the standard error over images; {rule(1)}")
    return [*about, "the best of several looks better than it is: report it on other seeds"]


def _command(study: Trials) -> str:
    best = study.best()
    return f"\nThe best again:\n\n```bash\n{command(best)}\n```\n" if best else ""


def command(trial: Trial) -> str:
    """Return the command that runs a trial again, in a run directory of its own, for a shell."""
    script = "sample" if (trial.directory / run_results.NAME).is_file() else "calibrate"
    script = "train" if (trial.directory / HISTORY).is_file() else script
    return shlex.join(["python", f"{script}.py", *trial.words])


def _csv(study: Trials) -> str:
    out, keys = io.StringIO(), _keys(study)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trial", *keys, "metric", "value", "error", "n", "state", "directory", "command"])
    for trial in study.trials:
        value = ["" if part is None else part for part in trial.value or (None,) * 3]
        drawn = [trial.drawn.get(key, "") for key in keys]
        writer.writerow([trial.number, *drawn, trial.name, *value, trial.state, trial.directory.name, command(trial)])
    return out.getvalue()


def figure(study: Trials) -> Any:
    """Draw the values of the trials in their order, pruned ones hollow, and the best value so far as a line.

    Call it within `in_style`.

    Returns:
        A figure of Matplotlib's.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    trials = sorted((trial for trial in study.trials if trial.value), key=lambda trial: trial.number)
    numbers, values = [trial.number for trial in trials], [trial.value.value for trial in trials if trial.value]
    errors = [trial.value.error or 0.0 for trial in trials if trial.value]
    chart = Figure()
    axes = chart.subplots()
    axes.step(numbers, list(accumulate(values, max if study.maximize else min)), where="post", label="best so far")
    axes.errorbar(numbers, values, errors, fmt="none", color="C1")
    for pruned, fill in ((False, "C1"), (True, "none")):
        chosen = [k for k, trial in enumerate(trials) if trial.state.startswith("pruned") is pruned]
        if chosen:
            x, y = [numbers[k] for k in chosen], [values[k] for k in chosen]
            axes.plot(x, y, "o", color="C1", markerfacecolor=fill, label="pruned" if pruned else "trials")
    axes.set(xlabel="trial", ylabel=in_words(trials[0].name), yscale="log" if min(values) > 0 else "linear")
    if min(values) > 0:
        plain_ticks(axes.yaxis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return chart
