"""Checks of the arguments that the networks share."""

from collections.abc import Sequence

from scoreline.errors import InputError


def check_sizes(
    resolution: int, width: int, multipliers: Sequence[float], blocks: int, fractions: bool = False
) -> None:
    """Check the sizes of a U-Net: every level has blocks and can be halved into the next.

    Args:
        resolution: of the images.
        width: even and at least 4, for the sines and cosines of the noise embedding.
        multipliers: one a level.
        blocks: residual blocks a level.
        fractions: whether multipliers may be fractions that make whole widths, such as 0.5.

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


def check_factor(value: int) -> None:
    """Check the number of output channels over that of the image.

    Raises:
        InputError: if it is less than 1.
    """
    if value < 1:
        raise InputError(f"model.network.output_factor={value}: must be 1, or 2 with a learned variance")


def check_probability(key: str, value: float) -> None:
    """Check a probability.

    Raises:
        InputError: unless 0 <= model.network.`key` <= 1.
    """
    if not 0 <= value <= 1:
        raise InputError(f"model.network.{key}={value}: a probability lies between 0 and 1")
