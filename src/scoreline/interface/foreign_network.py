"""A network of another program, as `Denoiser` calls one."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.errors import InputError
from scoreline.interface.outputs import tensor_like

Network = Callable[..., Any]
"""A module or a function F(x (B, *), label (B,), **condition) -> (B, *)."""


class ForeignNetwork(nn.Module):
    """F(x, label, **condition) of another program, with its labels in its own form and its output checked.

    Labels come in float64. They are whole numbers of int64 or fractions in x's precision, float32 at least: bfloat16
    does not tell 999 from 1000.

    Args:
        network: F, a module or a function.
        round_labels: whether labels are whole numbers.
        factor: channels of the output over those of x; the first are the prediction, the others are not used.
        whole_time: label at which the network's own time ends if it runs from noise to data; None if it does not. Its
            label is then `whole_time` - label, and its output, a velocity in that time, changes its sign.
    """

    def __init__(
        self, network: Network, round_labels: bool = False, factor: int = 1, whole_time: float | None = None
    ) -> None:
        super().__init__()
        if not callable(network):
            raise InputError(f"the network is a {type(network).__name__}; give a module or a function F(x, label)")
        self.network = network
        self.round_labels, self.factor, self.whole_time = round_labels, factor, whole_time

    def forward(self, x: Tensor, label: Tensor, **condition: Any) -> Tensor:
        """Return the prediction, of x's shape."""
        if self.whole_time is not None:
            label = self.whole_time - label
        label = label.round().long() if self.round_labels else label.to(torch.promote_types(x.dtype, torch.float32))
        output = tensor_like("the network", self.output(x, label, condition), x, self.factor)
        prediction = output[:, : x.shape[1]] if self.factor > 1 else output
        return prediction if self.whole_time is None else -prediction

    def output(self, x: Tensor, label: Tensor, condition: Mapping[str, Any]) -> Any:
        """Return what the network returns.

        Raises:
            InputError: if it does not take these arguments.
        """
        try:
            return self.network(x, label, **condition)
        except TypeError as error:
            if mismatch := _mismatch(self.network, x, label, condition):
                words = "".join(f", {name}=.." for name in condition)
                raise InputError(
                    f"the network cannot be called as network(x, label{words}): {mismatch}; pass a function that "
                    "takes these and calls it"
                ) from error
            raise


def _mismatch(network: Network, x: Tensor, label: Tensor, condition: Mapping[str, Any]) -> str:
    """Say why a function does not take these arguments; empty if it does, or does not tell."""
    try:
        parameters = inspect.signature(network.forward if isinstance(network, nn.Module) else network)
    except ValueError:
        return ""
    try:
        parameters.bind(x, label, **condition)
    except TypeError as error:
        return str(error)
    return ""
