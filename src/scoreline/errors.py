"""The one exception that reaches a user as a sentence instead of a traceback."""

import difflib
from collections.abc import Iterable


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
