"""From the backward pass to the step: gradients are repaired and clipped, and the optimiser is built and resumed."""

import inspect
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scoreline.copies import LateNumber, computes_apart
from scoreline.errors import InputError
from scoreline.shards import own_part

LARGEST = 1e5
"""What an infinite entry becomes. Source: released code of Karras et al. (2022), arXiv:2206.00364."""


class NotFiniteError(InputError):
    """Gradients were not finite for many steps in a row; training stops with its state saved."""


class Gradients:
    """Entries that are not finite are replaced and counted, then the gradient is clipped to a norm.

    NaN becomes 0 and +-infinity +-1e5, as in EDM's recipe; with half precision such steps are skipped as well while the
    loss scale finds its place. A process that holds a part of every gradient mends that part; the norm is of the whole.
    On a GPU nothing waits for a number: counts stay there, entries are replaced whether one needs it or not, and
    training stops a step later than it would on the CPU.

    Attributes:
        clip: largest Euclidean norm of the whole gradient, None for no limit. It depends on `loss_scale`.
        patience: so many bad steps in a row stop the training.
        norm: of the last step's gradient before clipping, () tensor.

    Raises:
        InputError: for a clip that is not positive or a patience below 1.
    """

    def __init__(self, clip: float | None = None, patience: int = 30) -> None:
        real = isinstance(clip, int | float) and not isinstance(clip, bool)
        if clip is not None and not (real and 0 < clip < math.inf):
            raise InputError(f"gradients.clip={clip}: must be a number greater than 0, or null for no limit")
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise InputError(f"gradients.patience={patience}: must be a whole number, at least 1")
        self.clip, self.patience = clip, patience
        self.norm = torch.zeros(())
        self._bad, self._row = torch.tensor(0), torch.tensor(0)
        self._late = LateNumber()

    @torch.no_grad()
    def __call__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Mend, count and clip the gradients of a step, in place.

        Raises:
            NotFiniteError: after `patience` bad steps in a row.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self.norm = _norm(gradients)
        parts = [own_part(gradient) for gradient in gradients]
        finite = self.norm.isfinite()
        known_finite = not computes_apart(finite.device) and bool(finite)
        self._count(~finite)
        if not known_finite:
            for part in parts:
                part.nan_to_num_(nan=0.0, posinf=LARGEST, neginf=-LARGEST)
        if self.clip is not None:
            norm = self.norm if known_finite else _norm(gradients)
            torch._foreach_mul_(parts, (self.clip / (norm + 1e-6)).clamp(max=1.0))

    def _count(self, bad: Tensor) -> None:
        self._bad, self._row = self._bad.to(bad.device), self._row.to(bad.device)
        self._bad.add_(bad)
        self._row.add_(1).mul_(bad)
        if self._late.swap(self._row) == self.patience:
            raise NotFiniteError(
                f"gradients.patience={self.patience}: gradients were not finite in as many steps in a row; the state "
                "is saved; lower optimiser.lr, set gradients.clip=1, or use precision=bf16-mixed or 32-true"
            )

    @property
    def bad_steps(self) -> int:
        """Steps so far whose gradient was not finite."""
        return int(self._bad)

    @property
    def in_a_row(self) -> int:
        """Of them, those since the last finite one."""
        return int(self._row)

    def state_dict(self) -> dict[str, Any]:
        return {"bad_steps": self.bad_steps, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._bad, self._row = torch.tensor(state["bad_steps"]), torch.tensor(state["in_a_row"])
        self._late = LateNumber()


def _norm(gradients: list[Tensor]) -> Tensor:
    norm: Tensor = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


Make = Callable[[Iterable[nn.Parameter]], Optimizer]

KERNELS = ("fused", "foreach")
"""Switches of torch's optimisers: few kernels for a whole step, or one call for each of its operations."""


def with_fast_step(make: Make, device: torch.device, precision: str, sharded: bool = False) -> Make:
    """The same optimiser with a switch of `KERNELS` set, unless one is already: `fused` on a GPU, else `foreach`.

    On the CPU a foreach step has the bits of a plain one, a fused step has not. With 16-mixed, a fused step would undo
    the loss scale by itself, after gradients were measured and clipped: foreach takes its place, as it does for weights
    of which a process holds a part.
    """
    given: dict[str, Any] = make.keywords if isinstance(make, partial) else {}
    if any(given.get(key) is not None for key in KERNELS):
        return make
    known = inspect.signature(make.func if isinstance(make, partial) else make).parameters
    fused = device.type == "cuda" and precision != "16-mixed" and not sharded
    wanted = KERNELS if fused else KERNELS[1:]
    chosen = next((key for key in wanted if key in known), None)
    return make if chosen is None else partial(make, **{chosen: True})


def check_options(make: Make, parameters: list[nn.Parameter]) -> None:
    """Build the optimiser once, so that options which it refuses are told before a training begins.

    Raises:
        InputError: naming the option.
    """
    try:
        optimiser = make(parameters)
    except RuntimeError:  # of kernels that another device has: known once the device is
        return
    except (TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"optimiser{_blamed(make, parameters)}: {reason}; give another value") from error
    for group in optimiser.param_groups:
        for key, value in group.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"optimiser.{key}={value}: must be a finite number")


def _blamed(make: Make, parameters: list[nn.Parameter]) -> str:
    """`.lr=-1`, the option without which the optimiser can be built; nothing if there is none."""
    if not isinstance(make, partial):
        return ""
    for key, value in make.keywords.items():
        try:
            make.func(parameters, **{name: other for name, other in make.keywords.items() if name != key})
        except (RuntimeError, TypeError, ValueError):
            continue
        return f".{key}={value}"
    return ""


def kept_of(make: Make) -> frozenset[str] | None:
    """Names of what the optimiser keeps for every parameter from step to step; None if it makes no step on a CPU."""
    parameter = nn.Parameter(torch.zeros(1, 1))
    parameter.grad = torch.zeros_like(parameter)
    optimiser = make([parameter])
    try:
        optimiser.step()
    except (AssertionError, RuntimeError):
        return None
    return held(optimiser.state[parameter])


def held(state: dict[str, Any]) -> frozenset[str]:
    """What of a parameter's state has a value."""
    return frozenset(name for name, value in state.items() if value is not None)


def take_options(checkpoint: dict[str, Any], optimiser: Optimizer, factor: float) -> None:
    """Give the states that a checkpoint holds of an optimiser and its schedule, in place, the options of this one.

    So learning rate, betas, weight decay and the like are those of the command that goes on, and kernels are those of
    its device; only what was measured on the way, such as moments, is the file's.

    Args:
        factor: what the schedule makes of the learning rate at the next step.
    """
    rates = [group["lr"] for group in optimiser.param_groups]
    for state in checkpoint.get("optimizer_states", []):
        for saved, own in zip(state["param_groups"], optimiser.param_groups, strict=True):
            options = {key: value for key, value in own.items() if key != "params"}
            saved.update(options, lr=own["lr"] * factor, initial_lr=own["lr"])
    for schedule in checkpoint.get("lr_schedulers", []):
        schedule.update(base_lrs=rates, _last_lr=[rate * factor for rate in rates])
