"""A network of another program, as `Denoiser` calls one."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from scoreline.errors import InputError, mismatch
from scoreline.interface.outputs import tensor_like

Network = Callable[..., Any]
"""A module or a function F(x (B, *), label (B,), **condition) -> (B, *)."""


class ForeignNetwork(nn.Module):
    """F(x, label, **condition) of another program, with its labels in its own form and its output checked.

    Args:
        network: F, a module or a function.
        round_labels: whether labels are whole numbers of int64; else they are fractions of the precision they come in.
        factor: channels of the output over those of x; the first are the prediction, the others are not used.
        sign: -1 for a network that predicts minus what is expected.
        backward_from: the label of pure noise, for a network whose time runs from noise to data: its label is
            `backward_from` - label. None leaves labels as they are.
    """

    def __init__(
        self,
        network: Network,
        round_labels: bool = False,
        factor: int = 1,
        sign: int = 1,
        backward_from: float | None = None,
    ) -> None:
        super().__init__()
        if not callable(network):
            raise InputError(f"the network is a {type(network).__name__}; give a module or a function F(x, label)")
        self.network = network
        self.round_labels, self.factor, self.sign, self.backward_from = round_labels, factor, sign, backward_from

    def forward(self, x: Tensor, label: Tensor, /, **condition: Any) -> Tensor:
        """Return the prediction, of x's shape."""
        if self.backward_from is not None:
            label = self.backward_from - label
        label = label.round().long() if self.round_labels else label
        output = tensor_like("the network", called(self.network, (x, label), condition), x, self.factor)
        prediction = output[:, : x.shape[1]] if self.factor > 1 else output
        return prediction if self.sign == 1 else -prediction


class DiffusersModel(nn.Module):
    """A model of diffusers as F(x, label, **condition): it takes `timestep`, and its output holds `sample`.

    Args:
        model: any callable of that form; a tuple's first entry stands for `sample`.
    """

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, label: Tensor, /, **condition: Any) -> Any:
        """Return the output's `sample`, or what else there is."""
        output = called(self.model, (x,), {"timestep": label, **condition})
        return output[0] if isinstance(output, tuple) and output else getattr(output, "sample", output)


def called(function: Network, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    """Return what a function returns.

    Raises:
        InputError: if it does not take these arguments.
    """
    try:
        return function(*arguments, **keywords)
    except TypeError as error:
        if reason := mismatch(function, arguments, keywords):
            words = ", ".join([*("x", "label")[: len(arguments)], *(f"{name}=.." for name in keywords)])
            raise InputError(
                f"the network cannot be called as network({words}): {reason}; pass a function that takes these and "
                "calls it"
            ) from error
        raise
