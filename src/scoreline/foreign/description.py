"""A description of a foreign checkpoint as text; nothing of it is run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from scoreline.errors import InputError
from scoreline.foreign.conversion import digest
from scoreline.foreign.diffusers_folder import unfollowed
from scoreline.foreign.families import DESCRIBED, content_of, family_of
from scoreline.safe_pickle.machine import Record
from scoreline.safe_pickle.torch_files import kind, names

FIRST = 6
"""Number of entries that are shown of a container."""

DEEPEST = 3


def lines(path: Path) -> Iterator[tuple[str, str, int]]:
    """Yield (name, value, depth) of each line: format, SHA-256, names of classes, family and content.

    When to use it: before an import of a file from an unknown source.

    Raises:
        InputError: for a file that is no checkpoint. One that names classes no checkpoint needs is described in part.
    """
    yield "format", "folder of diffusers" if path.is_dir() else kind(path), 0
    yield "SHA-256", digest(path), 0
    if path.is_file():
        classes = names(path)
        yield "names in it", ", ".join(classes) if classes else "none", 0
    try:
        content = content_of(path, None)
        family = family_of(path, content)
    except InputError as error:
        yield "refused", str(error).removeprefix(f"{path}: "), 0
        return
    yield "family", family, 0
    if path.is_dir():
        yield from _unfollowed(path)
    yield from _holds("content", content)
    needs = "" if family in DESCRIBED else " model=..."
    yield "import it", f"scoreline import {path} DEST --from {family}{needs}", 0


def _unfollowed(folder: Path) -> Iterator[tuple[str, str, int]]:
    try:
        yield from (("note", sentence, 0) for sentence in unfollowed(folder))
    except InputError as error:
        yield "refused", str(error), 0


def _holds(name: str, content: Any, depth: int = 0) -> Iterator[tuple[str, str, int]]:
    """Yield the lines of a container and its first entries, down to a depth of three."""
    yield name, describe(content), depth
    entries = list(content.items()) if isinstance(content, dict) else []
    if isinstance(content, Record):
        entries = [("arguments", content.arguments[0] if len(content.arguments) == 1 else content.arguments)]
        entries += [("state", content.state)] if content.state is not None else []
    if isinstance(content, list | tuple) and not all(isinstance(item, int | float | str) for item in content):
        entries = [(f"[{place}]", item) for place, item in enumerate(content)]
    if depth == DEEPEST or not entries:
        return
    for key, value in entries[:FIRST]:
        yield from _holds(ascii(str(key))[1:-1][:60], value, depth + 1)
    if len(entries) > FIRST:
        yield "..", f"and {len(entries) - FIRST} more", depth + 1


def describe(content: Any) -> str:
    """Describe a value in one line."""
    if isinstance(content, Tensor):
        return f"{str(content.dtype).removeprefix('torch.')} {tuple(content.shape)}"
    if isinstance(content, dict):
        tensors = [value for value in content.values() if isinstance(value, Tensor)]
        numbers = f", {sum(map(Tensor.numel, tensors)):,} numbers in {len(tensors)} tensors" if tensors else ""
        return f"dict of {len(content)}{numbers}"
    if isinstance(content, Record):
        return f"record of {content.name}, not called"
    if isinstance(content, list | tuple | set | frozenset | bytes | bytearray | memoryview):
        return f"{type(content).__name__} of {len(content)}"
    return ascii(content)[:120]
