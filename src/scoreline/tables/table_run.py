"""Run a table: `python sample.py table=NAME` runs every cell in a process of its own, then writes the table."""

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from scoreline import values
from scoreline.config import conf_folder, run_identity, run_names
from scoreline.errors import InputError
from scoreline.runtime import distributed
from scoreline.runtime.progress import ImageProgress
from scoreline.runtime.stop_signals import Requeue
from scoreline.storage import run_config
from scoreline.storage.run_lock import RunLock
from scoreline.tables import pace, plan, pool, table_files, wandb_summary, worker
from scoreline.tables.pace import Pace
from scoreline.tables.plan import Cell, Outcome, Plan
from scoreline.tables.schema import Command, Table, parse
from scoreline.values import whole_number

OWN = ("table", "budget", "jobs", "sweep", "wandb", "output_url", "lock", "hydra")
"""Keys of the command line that are the table's, not its cells'."""


@dataclass(frozen=True)
class Options:
    """How a table is run.

    Args:
        budget: a name of the table's budgets.
        jobs: processes at a time; by default one per CUDA device, else one.
        on_error: after a failure, `continue` with the others, `stop`, or `retry` it once at the end.
        wandb: `off`, or one W&B run for each cell and one for the table, `offline` or `online`.
        lock: while another process runs the table, `refuse`, `wait`, or `share` its cells.
        output_url: the place of the cells' copies in an object store.

    Raises:
        InputError: naming the key that has another value.
    """

    budget: str = "small"
    jobs: int | None = None
    on_error: str = "continue"
    wandb: str = "off"
    lock: str = "refuse"
    output_url: str | None = None

    def __post_init__(self) -> None:
        values.check_on_error(self.on_error)
        values.check_wandb(self.wandb)
        values.check_table_lock(self.lock)
        if self.jobs is not None:
            whole_number("jobs", self.jobs)

    @property
    def shares(self) -> bool:
        """Whether other processes run cells of the table too."""
        return self.lock == "share"


class Runs(NamedTuple):
    """The runs that are not finished, and how many of them run at a time."""

    cells: Sequence[Cell]
    places: int


def _runs(draft: Plan, out: Path, options: Options) -> Runs:
    cells = [cell for cell in draft.cells if plan.outcome(cell, out).state != "finished"]
    return Runs(cells, len(pool.slots(options.jobs, devices(draft.overrides))) if draft.table.prepare else 1)


def of_cells(task: Sequence[str]) -> list[str]:
    """Select the overrides of a command line that go to every cell."""
    return [word for word in task if word.lstrip("+~").partition("=")[0].partition(".")[0].partition("@")[0] not in OWN]


def main(name: str, data: Any, overrides: Sequence[str], options: Options, out: Path) -> None:
    """Prepare, run what is not finished, write the table into `out`, and print it.

    Args:
        name: of the table.
        data: plain content of its file.
        overrides: of every cell.
        options: how to run it.
        out: directory of the table.

    Raises:
        InputError: for mistakes in the table or the overrides before anything is run, if another process runs it, and
            at the end if cells failed.
    """
    if distributed.current().size > 1:
        raise InputError(
            f"table={name}: starts processes of its own; run it without torchrun, as one task of srun, with jobs=.., "
            "or in every task of a job array with lock=share"
        )
    table = parse(name, data)
    if options.wandb != "off":
        from scoreline.storage import wandb_runs

        wandb_runs.import_wandb()
    draft = plan.make_plan(table, data, options.budget, overrides, run_identity.identities)
    if not unprepared(table.prepare):
        _refuse_absent(draft)
    with RunLock(out, "wait" if options.shares else options.lock) as lock:
        refuse_other_runs(out, draft)
        if prepare(table.prepare, out / "prepare", _runs(draft, out, options)) or lock.waited:
            draft = plan.make_plan(table, data, options.budget, overrides, run_identity.identities)
        _refuse_absent(draft)
        plan.save(draft, out)
        if options.shares:
            lock.release()  # the next process finds all prepared, and takes cells too
        run_planned(draft, out, options)


def _refuse_absent(draft: Plan) -> None:
    """Raise InputError, with what the table needs, if no cell has its checkpoint."""
    overrides = {tuple(word for word in cell.overrides if word.startswith("checkpoint=")): 0 for cell in draft.cells}
    checkpoints = [run_identity.checkpoint(words) for words in overrides]
    if checkpoints and all("://" not in it and not run_names.model_path(it).exists() for it in checkpoints):
        raise InputError(f"checkpoint={checkpoints[0]}: no such file{_needs(draft.table)}")


def _needs(table: Table) -> str:
    return f"; table={table.name} needs {'; '.join(table.needs)}" if table.needs else ""


def refuse_other_runs(out: Path, draft: Plan) -> None:
    """Raise InputError if the directory is that of a run, or of a table of another name or budget."""
    former, own = run_config.read(out), {"table": draft.table.name, "budget": draft.budget}
    if former is not None and {key: former.get(key) for key in own} != own:
        raise InputError(f"hydra.run.dir={out}: holds another run, not table={own['table']}; choose another directory")


def unprepared(commands: Sequence[Command]) -> list[tuple[int, Command]]:
    """Return the commands whose product is not there, with their numbers."""
    return [(k, command) for k, command in enumerate(commands) if not Path(command.makes).exists()]


def prepare(commands: Sequence[Command], logs: Path, runs: Runs | None = None) -> bool:
    """Run the commands whose product is not there, and return whether there was one.

    Args:
        commands: the commands.
        logs: folder of their logs.
        runs: what follows them; the forecast of the time left includes it.

    Raises:
        InputError: if one fails or does not make what it should.
    """
    missing = unprepared(commands)
    work = pace.of_preparations(command for _, command in missing)
    cells, places = runs or ((), 1)
    forecast = Pace({**work, **pace.of_cells(cells)}, places, work)
    with ImageProgress(len(missing), "preparing", every=0.0, unit="command", seconds_left=forecast.seconds_left) as bar:
        for k, command in missing:
            log = logs / f"{k}.log"
            pool.say(f"preparing {command.makes}: {command.run} (log: {log})")
            forecast.begin(command)
            _run_command(command, log)
            forecast.end_preparation(command)
            bar.update(1, f"the runs included; {command.makes}")
    return bool(missing)


def _run_command(command: Command, log: Path) -> None:
    code, line = pool.run_once(words_of(command), log)
    if code or not Path(command.makes).exists():
        why = line if code else f"it ended without {command.makes}"
        raise InputError(f"prepare: {command.run}: {why}; see {log}")


def words_of(command: Command) -> list[str]:
    """Return the words of the process for `train.py ...` or `scoreline ...`; a script waits for another table's.

    Raises:
        InputError: for any other program.
    """
    words = shlex.split(command.run)
    if words[:1] == ["python"]:
        words.pop(0)
    if words[:1] == ["scoreline"]:
        return [sys.executable, "-P", "-c", "from scoreline.cli import main; main()", *words[1:]]
    if not words or words[0] not in [f"{name}.py" for name in conf_folder.SCRIPTS]:
        raise InputError(f"prepare: {command.run}: must begin with train.py, sample.py, calibrate.py or scoreline")
    return [sys.executable, str(conf_folder.script(words[0])), *words[1:], "lock=wait"]


def run_planned(draft: Plan, out: Path, options: Options) -> None:
    """Run the cells, write and print the table, and upload it if W&B is on.

    Raises:
        InputError: if cells failed.
    """
    counts = _run_cells(draft, out, options)
    with RunLock(out, "wait") if options.shares else nullcontext():  # the last process sees all cells
        print(table_files.write(plan.grid(draft, out), out))
    if counts.get("finished") and not (options.shares and counts.get("missing")):
        wandb_summary.publish(wandb_summary.directories(out), options.wandb)
    _report_end(draft, out, counts, options)


def _run_cells(draft: Plan, out: Path, options: Options) -> dict[str, int]:
    """Run what is not finished, and count the cells by their state."""
    states = {cell: plan.outcome(cell, out) for cell in draft.cells}
    todo = [cell for cell, outcome in states.items() if outcome.state != "finished"]
    done = len(states) - len(todo)

    def command(cell: Cell) -> list[str]:
        folder = conf_folder.quote(str(out / cell.directory))
        words = [*cell.overrides, f"hydra.run.dir={folder}", *(["lock=wait"] if options.shares else [])]
        if options.output_url is not None:
            words.append(f"output_url={conf_folder.quote(f'{options.output_url}/{cell.directory}')}")
        return [sys.executable, str(conf_folder.script("sample.py")), *words]

    places, what = pool.slots(options.jobs, devices(draft.overrides)), f"table {draft.table.name}"
    forecast = Pace(pace.of_cells(todo), len(places))
    left = forecast.seconds_left
    with ImageProgress(len(states), what, done, every=0.0, unit="cell", seconds_left=left) as progress:

        def report(cell: Cell, outcome: Outcome) -> None:
            states[cell] = outcome
            if outcome.state == "missing":
                forecast.again(cell)
            else:
                forecast.end(cell, _evaluating(cell, out) if outcome.state == "finished" else None)
            if outcome.state != "finished":
                again = ", tried again at the end" if outcome.state == "missing" else ""
                line = f"{cell.title()}: {outcome.state.replace('missing', 'failed')}: {outcome.sentence}{again}"
                pool.say(f"{line} (log: {out / cell.directory / pool.LOG})")
            if outcome.state != "missing":
                progress.update(1, cell.title())

        if todo and done:
            pool.say(f"{done} of {len(states)} runs were finished before, {len(todo)} are missing")
        warm = len(todo) > 1 and worker.can_fork()  # the server costs more than it saves one cell
        run = pool.Pool(out, command, places, options.on_error, report, warm, forecast.begin, options.shares).run
        with _count_at_stop(states):
            run(todo)
    ends = [outcome.state for outcome in states.values()]
    return {state: ends.count(state) for state in ends}


def _evaluating(cell: Cell, out: Path) -> float | None:
    """Return the seconds in which a run sampled its images; None if an earlier start sampled some of them.

    A damaged result, of which the table itself tells, gives None too.
    """
    try:
        result = plan.result(cell, out)
    except InputError:
        return None
    return result.get("seconds") if result.get("images_made") == result["images"] else None


def devices(overrides: Sequence[str]) -> list[str]:
    """Return CUDA devices of this process by the names that CUDA_VISIBLE_DEVICES takes; none for runs on the CPU."""
    if "device=cpu" in overrides:
        return []
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [name.strip() for name in named.split(",")][:count] if named else [str(k) for k in range(count)]


def _report_end(draft: Plan, out: Path, counts: dict[str, int], options: Options) -> None:
    """Print the last line.

    Raises:
        InputError: with what is missing, if runs failed or did not start, or none can be run.
    """
    total = len(draft.cells)
    if counts.get("refused") == total > 0:
        sentence = plan.outcome(draft.cells[0], out).sentence
        raise InputError(f"no cell can be run: {sentence}{_needs(draft.table)}")
    bad = counts.get("failed", 0) + counts.get("changed", 0)
    if not bad and options.shares and counts.get("missing"):
        print(
            f"{counts.get('finished', 0)} of {total} runs -> {out}; {counts['missing']} are at work in other "
            "processes, the last of which writes the whole table"
        )
        return
    if bad or counts.get("missing", 0):
        left = f", {counts['missing']} did not start" if counts.get("missing") else ""
        raise InputError(
            f"table={draft.table.name}: {bad} of {total} runs failed{left}; {out}/table.md has the rest, "
            "the same command runs what is missing"
        )
    refused = f", {counts['refused']} cannot be" if counts.get("refused") else ""
    print(f"{counts.get('finished', 0)} runs{refused} -> {out}")


@contextmanager
def _count_at_stop(states: Mapping[Cell, Outcome]) -> Iterator[None]:
    """Report how many cells are finished if a scheduler stops the table."""
    try:
        yield
    except Requeue as stop:
        done = sum(outcome.state == "finished" for outcome in states.values())
        pool.say(f"{stop.name}: {done} of {len(states)} runs are finished; the same command continues")
        raise
