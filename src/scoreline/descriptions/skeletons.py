"""Build networks from the description in a file, without memory for weights, and never larger than the file."""

import math
from collections.abc import Callable, Iterator, Mapping
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration
from torch.overrides import TorchFunctionMode

from scoreline.descriptions.specs import Spec, rebuild
from scoreline.errors import InputError

Shapes = Mapping[str, list[int]]
"""Shapes of the tensors of a file, by name."""

PARTS = 1000, 4
"""(base, factor): a network may register base + factor * (tensors of the file) layers and weights. Ours have at most 2
for each tensor."""

NUMBERS = 2**24, 4
"""(base, factor): one tensor, and all registered ones that are not hollow, may have base + factor * (numbers of the
file) numbers."""


class SizeError(InputError):
    """A description of a network that is larger than its file."""


class _Within(TorchFunctionMode):
    """Bound the layers, weights and numbers that a constructor makes by those of a file of these tensors.

    With `hollow` weights take no memory: layers allocate them by `torch.empty`, which here makes tensors of the meta
    device, and `normal_` is skipped on these, since torch would load its compiler for it. Constants, such as
    frequencies, are made by other functions and are real.
    """

    def __init__(self, shapes: Shapes, hollow: bool) -> None:
        super().__init__()
        numbers = sum(map(math.prod, shapes.values()))
        self.hollow, self.exceeded, self.thread = hollow, False, get_ident()
        self.parts = PARTS[0] + PARTS[1] * len(shapes)
        self.most = self.numbers = NUMBERS[0] + NUMBERS[1] * numbers
        self.size = f"{len(shapes):,} tensors, {numbers:,} numbers"

    def __enter__(self) -> "_Within":
        hooks = (
            registration.register_module_module_registration_hook,
            registration.register_module_parameter_registration_hook,
            registration.register_module_buffer_registration_hook,
        )
        self.handles = [register(self._count_part) for register in hooks]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self.handles:
            handle.remove()

    def _count_part(self, parent: nn.Module, name: str, part: nn.Module | Tensor | None) -> None:
        if part is None or get_ident() != self.thread:
            return
        self.parts -= 1
        if isinstance(part, Tensor) and not part.is_meta:
            self.numbers -= part.numel()
        if min(self.parts, self.numbers) < 0:
            self._refuse()

    def _refuse(self) -> None:
        self.exceeded = True
        raise SizeError(f"checkpoint: its network is larger than its weights ({self.size}); copy or train it again")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.hollow and func is torch.empty:
            return func(*args, **{**kwargs, "device": "meta"})
        filled = args[0] if args else kwargs.get("tensor")
        if getattr(func, "__name__", "").endswith("normal_") and isinstance(filled, Tensor) and filled.is_meta:
            return filled
        if func in COUNTS and _count(func, args, kwargs) > self.most:
            self._refuse()
        return func(*args, **kwargs)


def _sizes(*sizes: Any, size: Any = None, **rest: Any) -> int:
    shape = sizes if size is None else size
    return math.prod(shape if shape and isinstance(shape[0], int) else shape[0] if shape else ())


def _full(size: Any, *rest: Any, **more: Any) -> int:
    return math.prod(size)


def _steps(start: float, end: float, steps: int, **rest: Any) -> int:
    return steps


def _range(*ends: Any, start: Any = 0, end: Any = None, step: Any = 1, **rest: Any) -> int:
    start, end, step = {0: (start, end, step), 1: (start, *ends, step), 2: (*ends, step)}.get(len(ends), ends)
    count: int = math.ceil((end - start) / step)
    return count


def _eye(n: int, m: int | None = None, **rest: Any) -> int:
    return n * (n if m is None else m)


COUNTS: dict[Any, Callable[..., int]] = {
    **dict.fromkeys((torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn), _sizes),
    torch.full: _full,
    torch.linspace: _steps,
    torch.arange: _range,
    torch.eye: _eye,
}
"""The number of values that a function makes, from its arguments: a tensor of the meta device would load torch's
compiler."""


def _count(func: Any, args: Any, kwargs: Any) -> int:
    try:
        return COUNTS[func](*args, **kwargs)
    except (TypeError, ValueError, ArithmeticError, KeyError):
        return 0  # the function itself refuses these arguments


def build(spec: Spec, kind: type, shapes: Shapes, trust: tuple[str, ...], hollow: bool = False) -> Any:
    """Build the object of a description (`specs.rebuild`), never larger than a file of tensors of these shapes.

    Args:
        spec: the description.
        kind: class that the object must be an instance of.
        shapes: of the tensors in the file.
        trust: as in `specs.rebuild`.
        hollow: build a network without memory for its weights, which the caller then assigns.

    Raises:
        SizeError: if it would be larger.
        InputError: as `specs.rebuild`.
    """
    with _Within(shapes, hollow) as bound:
        try:
            return rebuild(spec, kind, trust)
        except InputError:
            if bound.exceeded:  # the constructor has caught the error and raised its own
                bound._refuse()
            raise


def tensors(network: nn.Module) -> Iterator[Tensor]:
    """Yield all tensors of a network: parameters, buffers and plain attributes of its modules."""
    yield from network.parameters()
    yield from network.buffers()
    for module in network.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))
