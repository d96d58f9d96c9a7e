"""scoreline runs [FOLDER ..] [KEY=VALUE ..] [--all] [--json]
scoreline runs show RUN
scoreline runs compare A B
scoreline runs remove RUN .. [--yes] [--force]
List run directories, show one, compare two, or remove some.

  scoreline runs                              all in outputs/ and multirun/
  scoreline runs solver=deis_* nfe=5,10 sort=metric
  scoreline runs state=killed since=2026-11-01
  scoreline runs multirun/NAME schedule.power=2.4 metric=recall
  scoreline runs compare outputs/sample/A outputs/sample/B

A line is a run, or a sweep, a study or a table with the number of its runs
that are done; --all and filters list these one by one. The newest is first.

job         train, calibrate, sample, sweep, study or table
checkpoint  filters by the model, solver, schedule, nfe or state of a run;
            values may be patterns, and several: solver=ddim,deis_*
since       filters by date, 2026-11-01 or 2026-11-01T12:00
KEY         filters by any key of the configuration, as dataset=emoji or
            schedule.power=2.4
sort        date (the default), size, metric, nfe or another column
metric      the metric to show; by default the first of each run
--all       list the runs of sweeps, studies and tables one by one
--json      print one JSON list, for programs
--yes       remove without a question
--force     remove a run although others name its files

show    what differs from the defaults, results, files, the command that runs
        it again or goes on, versions, and the end of the log of a failure
compare keys that differ, metrics with their differences, and images of equal
        seeds; each side may be a folder of runs that differ in seeds alone,
        whose differences are paired by seed range
remove  refuses a run at work, links, and a run whose files another names
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from scoreline.commands.words import parse
from scoreline.doctor.findings import amount
from scoreline.errors import InputError, did_you_mean, printable
from scoreline.runs import listing, summary
from scoreline.runs.listing import COLUMNS, FILTERS
from scoreline.runs.summary import Summary

OWN = {**dict.fromkeys((*FILTERS, "since", "metric"), ""), "sort": "date"}
ROOTS = ("outputs", "multirun")
FLAGS = ("--all", "--json")


def main(words: list[str]) -> None:
    """List, show, compare or remove runs.

    Raises:
        InputError: for an unknown key or flag, a folder that is none, or a run that cannot be removed.
    """
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return
    try:
        _run(words)
    except InputError as error:  # which may name a folder that a stranger named
        raise InputError(printable(str(error))) from error


def _run(words: list[str]) -> None:
    if words[:1] == ["show"]:
        from scoreline.runs import details

        print("\n".join(details.lines(*_one_of(words[1:], "show", 1))))
    elif words[:1] == ["compare"]:
        from scoreline.runs import comparison

        print("\n".join(comparison.lines(*_one_of(words[1:], "compare", 2))))
    elif words[:1] == ["remove"]:
        removed(words[1:])
    else:
        listed(words)


def _one_of(words: Sequence[str], verb: str, count: int) -> list[Path]:
    """Return the run directories behind a verb.

    Raises:
        InputError: if their number is another one.
    """
    if len(words) != count:
        names = ("RUN",) if count == 1 else ("A", "B")
        raise InputError(
            f"{verb}: {len(words)} word{'s' * (len(words) != 1)}; give scoreline runs {verb} {' '.join(names)}"
        )
    return [Path(word) for word in words]


# ---- the list


def listed(words: Sequence[str]) -> None:
    """Print the runs in folders.

    Raises:
        InputError: for an unknown key or flag, or a folder that is none.
    """
    flags = _flags(words, FLAGS)
    keys, folders = _sorted_words([word for word in words if word not in FLAGS])
    if keys["sort"] not in (*COLUMNS, "name"):
        raise InputError(f"sort={keys['sort']}: there is no such column{did_you_mean(keys['sort'], COLUMNS)}")
    found = [group for root in roots(folders) for group in summary.find(root, keys["metric"])]
    kept = listing.chosen(found, keys, "--all" in flags)
    kept.sort(key=listing.order(keys["sort"]), reverse=keys["sort"] in ("date", "size"))
    if "--json" in flags:
        print(json.dumps([listing.plain(one) for one in kept], indent=1))
    elif kept:
        _print_table(kept)
    else:
        print(f"none of {len(found)} runs" if found else "no runs")


def _flags(words: Sequence[str], known: Sequence[str]) -> set[str]:
    """Return the flags among the words.

    Raises:
        InputError: for one that is not known.
    """
    flags = {word for word in words if word.startswith("--")}
    for flag in sorted(flags - set(known)):
        raise InputError(f"{flag}: there is no such option{did_you_mean(flag, known)}")
    return flags


def _sorted_words(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return all keys with their values, and the folders; the names of folders may contain =."""
    folders = [word for word in words if "=" not in word or Path(word).is_dir()]
    parsed = parse([word for word in words if word not in folders], OWN, None)
    pairs = (word.partition("=") for word in parsed.overrides)
    return parsed.own | {key: value for key, _, value in pairs}, folders


def roots(folders: Sequence[str]) -> list[Path]:
    """Return the folders to look in: those given, else outputs/ and multirun/.

    Raises:
        InputError: for one that is no folder, or if there is none.
    """
    for folder in folders:
        if not Path(folder).is_dir():
            raise InputError(f"{folder}: no such folder; give a folder of runs, or a filter as key=value")
    found = [Path(name) for name in folders or ROOTS if Path(name).is_dir()]
    if not found:
        raise InputError("no outputs/ and no multirun/ here; give the folder of your runs")
    return found


def _print_table(runs: Sequence[Summary]) -> None:
    """Print a list, on a terminal without the columns for which it has no room."""
    rows = listing.cells(runs)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    kept, left_out = listing.fitted(rows, width)
    print("\n".join(listing.aligned(kept)))
    if left_out:
        print(f"(no room for {', '.join(left_out)}; a wider terminal or a pipe has them)")


# ---- removal


def removed(words: Sequence[str]) -> None:
    """Remove runs after a question.

    Raises:
        InputError: for what is no run, what other runs need, what is at work, or without an answer.
    """
    from scoreline.runs import removal

    flags = _flags(words, ("--yes", "--force"))
    paths = [Path(word) for word in words if word not in flags]
    if not paths:
        raise InputError("remove: give one or more run directories; scoreline runs lists them")
    for path in paths:
        if path.name in ("", ".."):
            raise InputError(f"{path}: give the run directory by its name, from the folder above")
    found = [summary.named(path) for path in dict.fromkeys(paths) if not {*path.parents} & {*paths}]
    others = [group for root in ROOTS if Path(root).is_dir() for group in summary.find(Path(root))]
    for run in found:
        at_work = next((one for one in (*run.runs, run) if one.state.word == "running"), None)
        if at_work:
            raise InputError(f"{at_work.path}: {at_work.state}; stop it first")
    users = [] if "--force" in flags else list(removal.users(found, others))
    if users:
        more = f" and {len(users) - 1} more" if len(users) > 1 else ""
        first = printable(f"{users[0].path} names {users[0].key}={users[0].value}")
        raise InputError(f"{paths[0]}: {first}{more}; remove these too, or add --force")
    for run in found:
        print(printable(f"{run.path}: {run.job}, {run.state}, {amount(run.size)}"))
    if "--yes" not in flags and not _agreed(sum(run.size for run in found)):
        print("nothing is removed")
        return
    for run in found:
        removal.remove(run)
    print(f"removed {len(found)}, {amount(sum(run.size for run in found))}")


def _agreed(size: int) -> bool:
    """Ask on the terminal.

    Raises:
        InputError: if there is none.
    """
    if not sys.stdin.isatty():
        raise InputError("remove: there is no terminal to ask; add --yes")
    try:
        return input(f"remove {amount(size)} for good? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
