"""The words of a command line: paths, the command's own keys, and overrides of the config."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scoreline.errors import InputError, did_you_mean


class Words(NamedTuple):
    """Paths, the command's own keys with their defaults filled in, and overrides of the config."""

    paths: list[str]
    own: dict[str, str]
    overrides: list[str]


def parse(words: Sequence[str], own: Mapping[str, str], groups: Collection[str] | None = ()) -> Words:
    """Sort the words; a path may hold =, if it is there or ends in .safetensors.

    Args:
        words: those behind the command's name.
        own: the command's own keys with their defaults.
        groups: the groups of the config whose keys may be overridden, None for all of the config.

    Raises:
        InputError: for a key that there is not.
    """
    found = Words([], dict(own), [])
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in own:
            found.own[key] = value
        elif equals and (groups is None or key.lstrip("+~").partition(".")[0] in groups):
            found.overrides.append(word)
        elif not equals or "://" in key or word.endswith(".safetensors") or Path(word).exists():
            found.paths.append(word)
        else:
            raise InputError(f"{key}: there is no such key{did_you_mean(key, own)}")
    return found


def split(words: Sequence[str], own: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The same for a command that takes no paths and any override.

    Raises:
        InputError: for a word without `=`.
    """
    found = parse(words, own, None)
    if found.paths:
        raise InputError(f"{found.paths[0]}: not of the form key=value")
    return found.own, found.overrides


def names(value: str) -> tuple[str, ...]:
    """The names in `a,b` or `[a,b]`."""
    return tuple(part.strip() for part in value.strip("[]").split(",") if part.strip())


def new_file(given: str, path: Path) -> Path:
    """The path, at which no file may be yet.

    Args:
        given: how the user named it.

    Raises:
        InputError: if one is there.
    """
    if path.exists():
        raise InputError(f"{given}: is there already and is not overwritten; move it, or choose another name")
    return path


def refuse_blocked(given: str, folder: Path) -> None:
    """Refuse a folder to write to that cannot be one, before any time is spent.

    Args:
        given: how the user named it.

    Raises:
        InputError: if a file stands in its way.
    """
    there = next(path for path in (folder, *folder.parents, Path()) if os.path.lexists(path))
    if not there.is_dir():
        raise InputError(f"{given}: {there} is a file, no folder; choose another place")
