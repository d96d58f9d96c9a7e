"""How figures are printed."""

import math

SIGNS = {"verified": "", "second-hand": "\u2020", "unverified": "\u2021"}
"""Marks of published figures: none, dagger, double dagger."""


def with_error(value: float, error: float) -> tuple[str, str]:
    """Both with as many decimals as give the error two significant digits: 4.1732 and 0.0412 are 4.173 and 0.041."""
    if not math.isfinite(error) or error <= 0:
        return (f"{value:.4g}", f"{error:.2g}")
    places = max(0, 1 - math.floor(math.log10(float(f"{error:.1e}"))))
    return f"{value:.{places}f}", f"{error:.{places}f}"


def as_published(value: float) -> str:
    """At least two decimals, as these tables are printed: 4.1 is 4.10."""
    text = f"{value:.10g}"
    return text if len(text.partition(".")[2]) >= 2 or "e" in text else f"{value:.2f}"


def signed(value: float, like: str) -> str:
    """A difference with a sign and the decimals of another number's text."""
    return f"{value:+.{len(like.partition('.')[2])}f}"


def count(value: float) -> str:
    """A whole number, or one decimal where a mean over images is none."""
    return str(int(value)) if value == int(value) else f"{value:.1f}"
