"""CUDA graphs: record a function of GPU tensors once, then replay it without launching kernels from Python."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.solvers.tableau import Tableau

WARM_UP = 2
"""Calls before the recording, so that libraries choose and load their kernels."""

Recording = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Maps a function on fixed memory to a function that repeats it on the same memory."""


def recorder(enabled: bool, device: torch.device, run: object) -> "type[Replayed] | None":
    """Return `Replayed` if `enabled`, else None.

    Args:
        enabled: the script's key `graphs`.
        device: the device of the networks.
        run: the solver's steps, of which a `Tableau` without noise can be recorded.

    Raises:
        InputError: without a GPU, and for solvers that draw noise or choose their steps adaptively.
    """
    if not enabled:
        return None
    if device.type != "cuda":
        raise InputError(f"graphs=true: needs a CUDA GPU, device is {device.type}; use graphs=false")
    if not isinstance(run, Tableau) or bool((run.B > 0).any()):
        raise InputError(
            "graphs=true: a recording cannot draw noise or choose steps, as this solver does; use "
            "graphs=false or a deterministic solver with a tableau"
        )
    return Replayed


class Replayed:
    """A function of tensors that replays a recording of its first call.

    A call copies its arguments to the recording's inputs, and the result from the recording's output. Use it where
    launching kernels takes longer than computing them: small networks, small batches.

    Args:
        function: tensors -> tensor, computed on the device; it must not wait for the device.
        examples: arguments of the shapes, types and devices of all later calls.
        record: makes the recording; `_cuda_graph` by default.

    Raises:
        InputError: if the function cannot be recorded.
    """

    def __init__(
        self, function: Callable[..., Tensor], examples: Sequence[Tensor], record: Recording | None = None
    ) -> None:
        self.inputs = [example.clone() for example in examples]
        self.replay = (record or _cuda_graph)(lambda: function(*self.inputs))

    def __call__(self, *arguments: Tensor) -> Tensor:
        for place, argument in zip(self.inputs, arguments, strict=True):
            place.copy_(argument)
        return self.replay().clone()


def _cuda_graph(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record a function as a CUDA graph, and return the function that replays it.

    Raises:
        InputError: if the function waits for the device or draws random numbers.
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
