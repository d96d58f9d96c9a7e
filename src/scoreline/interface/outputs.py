"""Checks of what a function of another program returns."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from scoreline.errors import InputError


def check_denoised(denoised: Any, x: Tensor) -> Tensor:
    """Return D = E[x_0 | x] in x's dtype, after a check of its type and shape.

    Args:
        denoised: what `denoise(x, sigma)` returned.
        x: its argument (B, *).

    Raises:
        InputError: if it is no tensor of x's shape; the message names both and the remedy.
    """
    return tensor_like("denoise", denoised, x).to(x.dtype)


def tensor_like(name: str, output: Any, x: Tensor, factor: int = 1, variance: str = "learned_variance=True") -> Tensor:
    """Return an output that is a tensor of numbers of x's shape (B, C, *), or with `factor` times its channels.

    Args:
        name: of the function, for the message.
        output: what it returned.
        x: its argument.
        factor: channels of the output over those of x.
        variance: the setting that makes the factor 2, for the message.

    Raises:
        InputError: for another type or shape.
    """
    if not isinstance(output, Tensor):
        raise InputError(
            f"{name} returned a {type(output).__name__}, not a tensor of x's shape {_shown(x.shape)}; "
            f"return the tensor itself{_inside(output)}"
        )
    expected = (*x.shape[:1], factor * x.shape[1], *x.shape[2:]) if factor > 1 else tuple(x.shape)
    if tuple(output.shape) != expected:
        raise InputError(
            f"{name} returned {_shown(output.shape)} for x of {_shown(x.shape)}; return {_shown(expected)}"
            f"{_channels(output, x, factor, variance)}"
        )
    if not output.is_floating_point():
        raise InputError(f"{name} returned a tensor of {output.dtype}, which holds no fractions; return floats")
    return output


def _inside(output: Any) -> str:
    """Say where the tensor of a known kind of output is."""
    if isinstance(getattr(output, "sample", None), Tensor):
        return ", its .sample"
    return ", the first entry" if isinstance(output, tuple | list) else ""


def _channels(output: Tensor, x: Tensor, factor: int, variance: str) -> str:
    """Say what twice the channels, or half of those expected, may mean."""
    if output.ndim != x.ndim or x.ndim < 2:
        return ""
    if factor == 1 and output.shape[1] == 2 * x.shape[1]:
        return (
            f"; with a learned variance only the first half is the prediction, output[:, :{x.shape[1]}], which "
            f"{variance} keeps"
        )
    if factor > 1 and output.shape == x.shape:
        return f"; leave {variance.partition('=')[0]} out, since there is none"
    return ""


def _shown(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
