"""The one exception that reaches a user as a sentence instead of a traceback."""

import difflib
import inspect
import os
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """Something given from outside cannot be used; the message names the key, the value and the remedy.

    The three scripts print it as one line and leave with exit code 2; library users catch it as a `ValueError`.
    """


class NotFiniteError(InputError, FloatingPointError):
    """A computation that was asked for gives numbers that are not finite; the message says where, and the remedy."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"{where} not finite; compute with precision=32-true, choose a smaller sigma_max, a larger sigma_min or "
            "another solver, or another checkpoint if none helps"
        )


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return `; did you mean 'nfe'?` for the nearest of `choices`, or the whole list if none is near."""
    choices = sorted(set(choices))
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; choose from {', '.join(choices)}" if choices else ""


def printable(text: str) -> str:
    """Escape control characters, line ends and lone surrogates in a text: it stays one line and cannot steer a
    terminal, whatever file it comes from."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def line_of(error: BaseException, packages: Collection[str]) -> str | None:
    """Return `mylab/tiny.py:21: RuntimeError: ..`, the innermost line of these packages that an error passed through.

    Args:
        error: the exception, with its traceback.
        packages: top-level names of packages.

    Returns:
        the place and the first line of the message, printable; None if the error passed through none of the packages.
    """
    lines = [
        (frame.f_code.co_filename, number)
        for frame, number in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] in packages
    ]
    if isinstance(error, SyntaxError) and {*Path(error.filename or "").with_suffix("").parts} & {*packages}:
        lines.append((str(error.filename), error.lineno or 0))
    if not lines:
        return None
    name, number = lines[-1]
    path = os.path.relpath(name) if Path(name).is_relative_to(Path.cwd()) else name
    return printable(f"{path}:{number}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.300}")


def check_kind(key: str, value: Any, kind: type) -> Any:
    """Return an object that a config describes, if it is of the class that its key needs.

    Raises:
        InputError: naming the key and both classes.
    """
    if isinstance(value, kind):
        return value
    needed = f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
    raise InputError(f"{key}: gives a {type(value).__name__}, not a {needed}; derive its class from {needed}")


def mismatch(function: Callable[..., Any], arguments: Collection[Any], keywords: Mapping[str, Any]) -> str:
    """Say why a function, or a module's `forward`, does not take these arguments; empty if it does."""
    try:
        signature = inspect.signature(getattr(function, "forward", function))
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        return str(error)
    except ValueError:  # a function without a signature
        pass
    return ""
