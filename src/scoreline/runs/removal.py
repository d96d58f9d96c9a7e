"""Removal of run directories, after checks that no process works in them and that no other run reads their files."""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from scoreline.errors import InputError
from scoreline.runs.summary import Summary
from scoreline.storage import run_config, run_lock
from scoreline.storage.bounded_reading import content
from scoreline.storage.files import part_beside, remove_parts_of


class User(NamedTuple):
    """A run whose config names a file of another run."""

    path: Path
    key: str
    value: str


def users(removed: Sequence[Summary], others: Iterable[Summary]) -> Iterator[User]:
    """Yield the first key of each other run that names a file in a directory to be removed.

    Paths in configs are relative to the working directory. Runs that are to be removed too do not count.
    """
    places = [Path(os.path.realpath(one.path)) for one in removed]
    for other in (run for group in others for run in (group, *group.runs)):
        if any(Path(os.path.realpath(other.path)).is_relative_to(place) for place in places):
            continue
        for key, value in _texts_of(other.path, [place.name for place in places]):
            path = Path(os.path.realpath(os.path.expanduser(value)))
            if any(path.is_relative_to(place) for place in places):
                yield User(other.path, key, value)
                break


def _texts_of(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield keys and texts of a config that holds one of these names; none of a damaged one, which nothing reads."""
    try:
        text = content(folder / run_config.NAME, run_config.LARGEST).decode()
        if any(name in text for name in names):
            yield from _texts("", run_config.read(folder) or {})
    except (OSError, ValueError):
        return


def _texts(key: str, node: Any) -> Iterator[tuple[str, str]]:
    """Yield the texts of a config, of `key=value` the value; not the command line, whose paths other keys have."""
    if isinstance(node, dict):
        for name, value in node.items():
            if key or name != "start":
                yield from _texts(f"{key}.{name}" if key else str(name), value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(key, value)
    elif isinstance(node, str) and node and "\0" not in node:
        yield key, node.partition("=")[2] or node


def remove(found: Summary) -> None:
    """Remove a run directory, or a sweep, a study or a table with all its runs.

    The directory is renamed first, so that a kill at any moment leaves either the whole run or a hidden folder that
    nothing takes for one; the next removal in its place clears that away. Links are removed, never followed.

    Raises:
        InputError: if a process works in it, or the file system refuses.
    """
    folder = found.path
    _clear(folder.parent)
    with ExitStack() as locks:
        inner = [run.path for run in found.runs if os.path.lexists(run.path / run_lock.NAME)]
        for place in (folder, *inner):
            locks.enter_context(run_lock.no_process(place))
        aside = part_beside(folder)
        try:
            os.rename(folder, aside)
            shutil.rmtree(aside)
        except OSError as error:
            raise InputError(f"{folder}: cannot be removed ({error.strerror}: {error.filename})") from error


def _clear(folder: Path) -> None:
    """Remove what killed removals of this host left in a folder."""
    for path in list(folder.glob(".*.part")):
        remove_parts_of(folder / path.name[1:].rsplit(".", 3)[0])
