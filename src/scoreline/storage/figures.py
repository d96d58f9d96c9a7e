"""Figures of Matplotlib in the style of the package: one style sheet, and the same bytes for the same figure."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from scoreline.errors import InputError

SHEET = Path(__file__).with_name("paper.mplstyle")

COLUMN, PAGE = 3.25, 6.75
"""Inches; the widths of one and of two columns of a paper."""

UNDATED: dict[str, dict[str, None]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
"""Formats, and the dates that are left out of each."""

SHORT = 3
"""Ticks; an axis with fewer of 1, 2 and 5 times a power of ten has evenly spaced ones."""


OVER: ContextVar[Mapping[str, Any]] = ContextVar("OVER", default=MappingProxyType({}))
"""Settings of the user's over those of the package."""


@contextmanager
def overlaid(sheet: str) -> Iterator[None]:
    """Lay a style sheet of Matplotlib's over that of the package, for all figures of a block.

    Args:
        sheet: its path; nothing is laid over for an empty one.

    Raises:
        InputError: if it is not readable or has a wrong value.
    """
    from matplotlib import rc_params_from_file

    try:
        own: Any = rc_params_from_file(sheet, fail_on_error=True, use_default_template=False) if sheet else {}
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"style={sheet}: no style sheet of Matplotlib ({reason}); write lines of KEY: VALUE"
        ) from error
    token = OVER.set(own)
    try:
        yield
    finally:
        OVER.reset(token)


@contextmanager
def in_style() -> Iterator[None]:
    """Draw and save figures in the style of the package and what is laid over it, whatever a matplotlibrc says."""
    from matplotlib import style

    with style.context([SHEET, dict(OVER.get())], after_reset=True):
        yield


@contextmanager
def figure(path: Path, rows: int = 1, columns: int = 1, **options: Any) -> Iterator[tuple[Any, Any]]:
    """Yield a figure in the style of the package and its axes; write it to `path` as a PNG when the block ends.

    Args:
        path: file of the picture.
        rows: rows of axes.
        columns: columns of axes.
        options: `figsize`, width and height in inches, and those of `Figure.subplots`.
    """
    from matplotlib.figure import Figure

    with in_style():
        chart = Figure(figsize=options.pop("figsize", None))
        yield chart, chart.subplots(rows, columns, **options)
        save(chart, path, "png")


def save(chart: Any, path: Path | IO[bytes], form: str) -> None:
    """Write a figure without the date; call it within `in_style`.

    Args:
        chart: a figure of Matplotlib's.
        path: the file.
        form: pdf, svg or png.
    """
    chart.savefig(path, format=form, metadata=UNDATED[form])


def plain_ticks(axis: Any) -> None:
    """Put ticks at 1, 2 and 5 times powers of ten on a logarithmic axis, as plain numbers: 5, 10, 20 and not 10^1.

    An axis of more than three decades has the powers of ten alone, one with few such numbers evenly spaced ticks.

    Args:
        axis: `axes.xaxis` or `axes.yaxis`, whose limits no longer change.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    low, high = sorted(axis.get_view_interval())
    ticks = log_ticks(low, high)
    few = len(ticks) < SHORT
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]) if few else FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))
    axis.set_minor_locator(NullLocator() if few else LogLocator(subs=range(2, 10), numticks=100))
    axis.set_minor_formatter(NullFormatter())


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten between two positive limits; over three decades the powers alone."""
    digits = (1, 2, 5) if high / low <= 1000 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{digit}e{power}") for power in powers for digit in digits]
    return [tick for tick in ticks if low <= tick <= high]


def plain_number(value: float) -> str:
    """Print a tick as 0.05 or 20, a power of ten out of reach as such."""
    if 1e-4 <= value < 1e6 or value <= 0:
        return f"{value:.6g}"
    return rf"$10^{{{round(math.log10(value))}}}$"
