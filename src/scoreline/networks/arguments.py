"""What every network refuses in its arguments, each by one sentence that names the key."""

from collections.abc import Collection, Sequence

from scoreline.errors import InputError


def check_sizes(
    resolution: int, width: int, multipliers: Sequence[float], blocks: int, fractions: bool = False
) -> None:
    """Every level has blocks and can be halved into the next; the embedding of the noise has halves of two or more.

    Args:
        fractions: multipliers may be fractions that make whole widths, such as 0.5.

    Raises:
        InputError: naming the key.
    """
    whole = [width * multiplier if fractions else multiplier for multiplier in multipliers]
    if not whole or min(whole) < 1 or any(number % 1 for number in whole):
        other = f", or a fraction of width={width} that is whole" if fractions else ""
        raise InputError(
            f"model.network.multipliers={list(multipliers)}: give a positive integer for every level{other}"
        )
    if width < 4 or width % 2:
        raise InputError(f"model.network.width={width}: must be even and at least 4")
    if blocks < 1:
        raise InputError(f"model.network.blocks={blocks}: must be at least 1")
    halvings = len(multipliers) - 1
    if resolution < 1 or resolution % 2**halvings:
        raise InputError(
            f"model.network.resolution={resolution} cannot be halved {halvings} times; "
            "use fewer model.network.multipliers or another resolution"
        )


def check_choice(key: str, value: str, choices: Collection[str]) -> None:
    """Raises: InputError unless model.network.`key` is one of the choices."""
    if value not in choices:
        raise InputError(f"model.network.{key}={value}: choose from {', '.join(sorted(choices))}")


def check_probability(key: str, value: float) -> None:
    """Raises: InputError unless 0 <= model.network.`key` <= 1."""
    if not 0 <= value <= 1:
        raise InputError(f"model.network.{key}={value}: a probability lies between 0 and 1")
