"""The description of a run directory: its configuration, results and files, how to go on, and why it failed."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scoreline.config import catalogue, conf_folder, script
from scoreline.doctor.findings import amount
from scoreline.errors import printable
from scoreline.generation import run_results
from scoreline.runs import summary
from scoreline.runs.listing import aligned, cells, date, number
from scoreline.runs.summary import GROUPS, Figure, Summary
from scoreline.storage import run_config
from scoreline.storage.run_config import ERROR_LOG

LOGS = (ERROR_LOG, "cell.log")

LOG_LINES = 8
"""Last lines of the log of a failed run that are shown."""


def lines(path: Path) -> Iterator[str]:
    """Yield the lines about a run, a sweep, a study or a table.

    Raises:
        InputError: if the path names none.
    """
    run = summary.named(path)
    yield printable(f"{run.path}: {run.job}, {run.state}")
    yield f"{date(run)}, {amount(run.size)}"
    about = _about_group(run) if run.job in GROUPS else _about_run(run)
    for title, lines in about:
        if lines:
            yield f"\n{title}"
            yield from (printable(line) for line in lines)


Section = tuple[str, list[str]]


def _about_group(run: Summary) -> Iterator[Section]:
    yield "runs", aligned(cells(run.runs)) if run.runs else []
    yield "the same command goes on", [_group_command(run)]


def _about_run(run: Summary) -> Iterator[Section]:
    config = run_config.read(run.path) or {}
    words, recorded = overrides(run, config)
    yield "configuration, where it differs from the defaults", [f"  {word}" for word in words]
    yield "results", _results(run)
    yield "files", _files(run.path)
    for name in LOGS:
        failed = run.state.word in ("failed", "refused", "killed", "damaged")
        yield (
            f"the end of {name}",
            [f"  {line}" for line in summary.tail(run.path / name, LOG_LINES)] if failed else [],
        )
    again = "the same command" if recorded else "a command like the one that was run"
    yield f"{again}{'' if run.state.word == 'done' else ', which goes on'}", [_command(run, config, words)]
    yield "versions", _versions(run, config)


def overrides(run: Summary, config: dict[str, Any]) -> tuple[list[str], bool]:
    """Return the words of the command line of a run, and whether it recorded them.

    Of runs before 0.14 they are derived: choices that are not the default, and keys of the script with other values.
    """
    start = config.get("start")
    if isinstance(start, dict) and isinstance(start.get("overrides"), list):
        return [str(word) for word in start["overrides"]], True
    defaults = catalogue.default_choices(run.job)
    chosen = {"solver": run.solver.partition(" ")[0], "schedule": run.schedule} if run.job == "sample" else {}
    words = [f"{group}={name}" for group, name in chosen.items() if name and name != defaults[group]]
    values = summary.values(run.path)
    for key in catalogue.keys_of(run.job):
        own = values.get(key.name, "")
        if key.value not in ("", "card", "auto", "null") and "$" not in key.value and key.name in values:
            words += [f"{key.name}={own}"] if not _equal(own, key.value) else []
    return words, False


def _equal(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return one == other.strip("'\"") or one.replace(" ", "") == other.replace(" ", "")


def _results(run: Summary) -> list[str]:
    result = run_results.read(run.path) if run.job == "sample" and run.state.word != "damaged" else None
    if result:
        rows = [[name, number(it["value"], it["error"]), f"n {it['n']}"] for name, it in result["metrics"].items()]
        notes = [f"  note: {warning}" for warning in result.get("warnings", [])]
        return [*(f"  {line}" for line in (aligned(rows) if rows else [])), *notes]
    found: list[Figure] = summary.figures(run.path) if run.job == "train" else []
    return [f"  {line}" for line in (aligned([[it.name, number(it.value, it.error)] for it in found]) if found else [])]


def _files(folder: Path) -> list[str]:
    rows = []
    for path in sorted(folder.iterdir()):
        kind = "/" if path.is_dir() and not path.is_symlink() else ""
        size = "link" if path.is_symlink() else amount(summary.bytes_of(path) if kind else path.stat().st_size)
        rows.append([path.name + kind, size])
    return [f"  {line}" for line in aligned(rows)] if rows else []


def _command(run: Summary, config: dict[str, Any], words: Sequence[str]) -> str:
    """Return the command that repeats a run or goes on with it, in its directory."""
    named = run.path.parent == Path("outputs", run.job) and run.path.name.endswith(f"-{config.get('identity')}")
    place = [] if named else [f"hydra.run.dir={conf_folder.quote(str(run.path))}"]
    return "  " + script.command(run.job, *words, *place)


def _group_command(run: Summary) -> str:
    if run.job == "table":
        config = run_config.read(run.path) or {}
        given = config.get("overrides")
        own = [str(word) for word in given] if isinstance(given, list) else []
        words = [f"table={config.get('table')}", f"budget={config.get('budget')}", *own]
        place = (
            [] if run.path.parent == Path("outputs/table") else [f"hydra.run.dir={conf_folder.quote(str(run.path))}"]
        )
        return "  " + script.command("sample", *words, *place)
    job = next((one.job for one in run.runs), "sample")
    return "  " + script.command(job, "-m", *summary.words_of_sweep(run.path))


def _versions(run: Summary, config: dict[str, Any]) -> list[str]:
    start = config.get("start")
    versions = start.get("versions") if isinstance(start, dict) else None
    known = [f"{name} {version}" for name, version in versions.items()] if isinstance(versions, dict) else []
    return ["  " + ", ".join([*known, f"code {config.get('code_version')}", f"identity {config.get('identity')}"])]
