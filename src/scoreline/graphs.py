"""CUDA graphs: record a function of GPU tensors once, then replay it without launching kernels from Python."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.solvers.tableau import Tableau

WARM_UP = 2
"""Calls before the recording, so that libraries choose and load their kernels."""

Recording = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""(function of fixed memory) -> function that computes it again, into fixed memory."""


def recorder(wanted: bool, device: torch.device, run: object) -> "type[Replayed] | None":
    """`Replayed` if `wanted`, else None.

    Args:
        wanted: the script's key `graphs`.
        device: where the networks run.
        run: the solver's steps; a `Tableau` without noise can be recorded.

    Raises:
        InputError: without a GPU, and for solvers that draw noise or choose their steps on the way.
    """
    if not wanted:
        return None
    if device.type != "cuda":
        raise InputError(f"graphs=true: needs a CUDA GPU, device is {device.type}; use graphs=false")
    if not isinstance(run, Tableau) or bool((run.B > 0).any()):
        raise InputError(
            "graphs=true: a recording repeats itself, and this solver draws noise or chooses its steps on the way; use "
            "graphs=false or a solver with a table and without noise"
        )
    return Replayed


class Replayed:
    """A function of tensors that replays a recording of its first call.

    A call copies its arguments to the recording's inputs, and the result from the recording's output. Use it where
    launching kernels takes longer than computing them: small networks, small batches.

    Args:
        function: tensors -> tensor, computed on the device; it must not wait for the device.
        examples: arguments of the shapes, types and devices of all later calls.
        record: makes the recording; `cuda_graph` by default.

    Raises:
        InputError: if the function cannot be recorded.
    """

    def __init__(
        self, function: Callable[..., Tensor], examples: Sequence[Tensor], record: Recording | None = None
    ) -> None:
        self.inputs = [example.clone() for example in examples]
        self.replay = (record or cuda_graph)(lambda: function(*self.inputs))

    def __call__(self, *arguments: Tensor) -> Tensor:
        for place, argument in zip(self.inputs, arguments, strict=True):
            place.copy_(argument)
        return self.replay().clone()


def cuda_graph(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A CUDA graph of the function.

    Raises:
        InputError: if the function waits for the device or draws random numbers on the way.
    """
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            result = function()
    except RuntimeError as error:
        raise InputError(
            f"graphs=true: this model, guidance or threshold cannot be recorded as a CUDA graph "
            f"({str(error).splitlines()[0]}); use graphs=false"
        ) from error

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
