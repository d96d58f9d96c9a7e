"""Read config.yaml of a run directory as plain data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scoreline.errors import InputError
from scoreline.storage.bounded_reading import content

NAME = "config.yaml"

ERROR_LOG = "error.log"
"""The file beside it with the traceback of a job that failed; the next start of the job removes it."""

LARGEST = 2**20
"""Largest config in bytes; those of our runs have a few thousand."""

DEEPEST = 64
"""Most levels of nesting."""


def read(root: Path) -> dict[str, Any] | None:
    """Return the config of a run directory, or None if it holds no config.yaml.

    The file is untrusted data: interpolations such as `${oc.env:HOME}` stay text, and tags, anchors and aliases are
    errors, so that reading takes no more memory than the file.

    Raises:
        InputError: for a file that is unreadable, empty, no mapping, or above the limits of size and depth.
    """
    from omegaconf import OmegaConf

    def parse(text: str) -> Any:
        # OmegaConf's own reader: 1e-3 is a number to it, as it was to the run that wrote the file
        return OmegaConf.to_container(OmegaConf.create(text), resolve=False)

    return _mapping(root, parse)


def identity(root: Path) -> str | None:
    """Return the identity of a run, or None if its directory holds no config.yaml or the file names none.

    Use this where nothing else of the config is needed: PyYAML's reader in C takes a tenth of the time of `read`,
    and a table has hundreds of runs.

    Raises:
        InputError: as `read` does, except for names given twice and unfinished interpolations.
    """
    import yaml

    found = _mapping(root, lambda text: yaml.load(text, yaml.CSafeLoader))
    return None if found is None or found.get("identity") is None else str(found["identity"])


def _mapping(root: Path, parse: Callable[[str], Any]) -> dict[str, Any] | None:
    """Parse config.yaml of a directory, after a look at what it holds."""
    path = root / NAME
    if not path.exists():
        return None
    try:
        return _parsed(path, parse)
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path}: not a readable config ({reason}); restore the file that the run wrote, or delete this directory"
        ) from error


def _parsed(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """Parse the file; raise ValueError for text that is no plain mapping."""
    import yaml

    text = content(path, LARGEST).decode()
    try:
        _refuse_all_but_plain(yaml.parse(text, yaml.CSafeLoader))
        config = parse(text)
    except Exception as error:  # PyYAML and OmegaConf share no base class
        raise ValueError(error) from error
    if not isinstance(config, dict) or not config or not all(isinstance(key, str) for key in config):
        raise ValueError("not a mapping of names")
    return {str(key): value for key, value in config.items()}


def _refuse_all_but_plain(events: Any) -> None:
    """Raise ValueError for tags, anchors, aliases, nesting beyond `DEEPEST`, and a file without a mapping."""
    from yaml import events as kinds

    depth = 0
    for event in events:
        if depth == 0 and isinstance(event, kinds.NodeEvent) and not isinstance(event, kinds.MappingStartEvent):
            raise ValueError("not a mapping of names")
        if isinstance(event, kinds.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError("it holds an anchor or an alias")
        if getattr(event, "tag", None):
            raise ValueError(f"it holds the tag {event.tag}")
        depth += isinstance(event, kinds.CollectionStartEvent) - isinstance(event, kinds.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels")
