"""Callbacks: finding one in a trainer, and a warning in place of an error where a file cannot be written."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from lightning.pytorch import Callback, Trainer
from safetensors import SafetensorError

Kind = TypeVar("Kind", bound=Callback)

WRITING_FAILED = (OSError, SafetensorError)
"""The errors of a full disk."""


def the_callback(trainer: Trainer, kind: type[Kind]) -> Kind:
    """Find the trainer's only callback of a kind.

    Raises:
        ValueError: if it has none or several.
    """
    callbacks = [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]
    if len(callbacks) != 1:
        raise ValueError(f"a trainer needs one {kind.__name__}, this one has {len(callbacks)}")
    return callbacks[0]


def say_not_written(path: Path, error: Exception, then: str) -> None:
    """Warn on stderr, in one line, that a file could not be written."""
    reason = str(error).splitlines()[0]
    print(f"{path}: not written ({reason}); {then}", file=sys.stderr, flush=True)


@contextmanager
def dispensable(path: Path) -> Iterator[None]:
    """Turn a failure to write a file that the training can do without into a warning."""
    try:
        yield
    except WRITING_FAILED as error:
        say_not_written(path, error, "training continues")
