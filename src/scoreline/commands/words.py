"""The words of a command line: paths, the command's own keys, and overrides of the config."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scoreline.errors import InputError, did_you_mean


class Words(NamedTuple):
    """Paths, the command's own keys (with defaults), and overrides of the config."""

    paths: list[str]
    own: dict[str, str]
    overrides: list[str]


def parse(words: Sequence[str], own: Mapping[str, str], groups: Collection[str] | None = ()) -> Words:
    """Sort the words of a command line; a path may contain = if it exists or ends in .safetensors.

    Args:
        words: the words behind the command's name.
        own: the command's own keys with their defaults.
        groups: groups of the config whose keys may be overridden; None stands for the whole config.

    Raises:
        InputError: for an unknown key.
    """
    sorted_words = Words([], dict(own), [])
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in own:
            sorted_words.own[key] = value
        elif equals and (groups is None or key.lstrip("+~").partition(".")[0] in groups):
            sorted_words.overrides.append(word)
        elif not equals or "://" in key or word.endswith(".safetensors") or Path(word).exists():
            sorted_words.paths.append(word)
        else:
            raise InputError(f"{key}: there is no such key{did_you_mean(key, own)}")
    return sorted_words


def split(words: Sequence[str], own: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return own keys and overrides of a command that takes no paths.

    Raises:
        InputError: for a word without `=`.
    """
    parsed = parse(words, own, None)
    if parsed.paths:
        raise InputError(f"{parsed.paths[0]}: not of the form key=value")
    return parsed.own, parsed.overrides


def names(value: str) -> tuple[str, ...]:
    """Return the names in `a,b` or `[a,b]`."""
    return tuple(part.strip() for part in value.strip("[]").split(",") if part.strip())


def new_file(word: str, path: Path) -> Path:
    """Return the path of a new file.

    Args:
        word: the path as the user wrote it, for the message.
        path: the path.

    Raises:
        InputError: if the file exists.
    """
    if path.exists():
        raise InputError(f"{word}: is there already and is not overwritten; move it, or choose another name")
    return path


def refuse_blocked(word: str, folder: Path) -> None:
    """Refuse an output folder that cannot exist; call it before long work.

    Args:
        word: the folder as the user wrote it, for the message.
        folder: the folder.

    Raises:
        InputError: if a file is in its place.
    """
    there = next(path for path in (folder, *folder.parents, Path()) if os.path.lexists(path))
    if not there.is_dir():
        raise InputError(f"{word}: {there} is a file, no folder; choose another place")
