"""Gradients and optimiser: non-finite entries, clipping, and building and resuming the optimiser."""

import inspect
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scoreline.errors import InputError
from scoreline.runtime.device import LateNumber, computes_apart
from scoreline.training.sharding import own_part
from scoreline.values import real_number, whole_number

LARGEST = 1e5
"""Replaces an infinite entry. Source: released code of Karras et al. (2022), arXiv:2206.00364."""


class NotFiniteError(InputError):
    """Gradients were not finite for many steps in a row; the training stops with its state saved."""


class Gradients:
    """Replace and count gradient entries that are not finite, then clip the gradient to a norm.

    NaN becomes 0 and +-infinity becomes +-1e5, as in EDM's recipe; in half precision such steps are also skipped until
    the loss scale has settled. A process that holds a shard of every gradient repairs its shard; the norm is that of
    the whole gradient. On a GPU nothing synchronises: the counts stay on the device, every entry passes through the
    replacement, and training stops one step later than on the CPU.

    Attributes:
        clip: largest Euclidean norm of the whole gradient, or None for no limit. It scales with `loss_scale`.
        patience: number of bad steps in a row that stops the training.
        norm: Euclidean norm of the last step's gradient before clipping, () tensor.

    Raises:
        InputError: for a clip that is not positive or a patience below 1.
    """

    def __init__(self, clip: float | None = None, patience: int = 30) -> None:
        self.clip = None if clip is None else real_number("gradients.clip", clip)
        self.patience = whole_number("gradients.patience", patience)
        self.norm = torch.zeros(())
        self._bad, self._row = torch.tensor(0), torch.tensor(0)
        self._late = LateNumber()

    @torch.no_grad()
    def __call__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Repair, count and clip the gradients of a step, in place.

        Raises:
            NotFiniteError: after `patience` bad steps in a row.
        """
        parameters = list(parameters)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        total = torch.nn.utils.get_total_norm(gradients)
        self.norm = _whole(total)
        finite = self.norm.isfinite()
        known_finite = not computes_apart(finite.device) and bool(finite)
        self._count(~finite)
        if not known_finite:
            for gradient in gradients:
                own_part(gradient).nan_to_num_(nan=0.0, posinf=LARGEST, neginf=-LARGEST)
        if self.clip is not None:
            total = total if known_finite else torch.nn.utils.get_total_norm(gradients)
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip, total)

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
        """Number of steps whose gradient was not finite."""
        return int(self._bad)

    @property
    def in_a_row(self) -> int:
        """Number of them since the last finite gradient."""
        return int(self._row)

    def state_dict(self) -> dict[str, Any]:
        return {"bad_steps": self.bad_steps, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._bad, self._row = torch.tensor(state["bad_steps"]), torch.tensor(state["in_a_row"])
        self._late = LateNumber()


def _whole(norm: Tensor) -> Tensor:
    """Return the norm of the whole gradient where every process holds a part of it."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


Make = Callable[[Iterable[nn.Parameter]], Optimizer]

KERNELS = ("fused", "foreach")
"""Switches of torch's optimisers: `fused` has few kernels for a step, `foreach` one call per operation."""


def with_fast_step(make: Make, device: torch.device, precision: str, sharded: bool = False) -> Make:
    """Set a switch of `KERNELS`, unless the user sets one: `fused` on a GPU, else `foreach`.

    On the CPU a foreach step is equal to a plain one to the bit, a fused step is not. With 16-mixed, a fused step would
    divide by the loss scale itself, after gradients are measured and clipped, so foreach takes its place; so it does
    for sharded weights.
    """
    options: dict[str, Any] = make.keywords if isinstance(make, partial) else {}
    if any(options.get(key) is not None for key in KERNELS):
        return make
    known = inspect.signature(make.func if isinstance(make, partial) else make).parameters
    fused = device.type == "cuda" and precision != "16-mixed" and not sharded
    kernels = KERNELS if fused else KERNELS[1:]
    chosen = next((key for key in kernels if key in known), None)
    return make if chosen is None else partial(make, **{chosen: True})


def check_options(make: Make, parameters: list[nn.Parameter]) -> None:
    """Build the optimiser once, so that wrong options fail before the training begins.

    Raises:
        InputError: naming the option that the optimiser refuses.
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
    """Return the option without which the optimiser can be built, as `.lr=-1`; empty if there is none."""
    if not isinstance(make, partial):
        return ""
    for key, value in make.keywords.items():
        try:
            make.func(parameters, **{name: other for name, other in make.keywords.items() if name != key})
        except (RuntimeError, TypeError, ValueError):
            continue
        return f".{key}={value}"
    return ""


def moments_of(make: Make) -> frozenset[str] | None:
    """Return the names in an optimiser's state of a parameter, as `exp_avg`; None if it cannot step on a CPU."""
    parameter = nn.Parameter(torch.zeros(1, 1))
    parameter.grad = torch.zeros_like(parameter)
    optimiser = make([parameter])
    try:
        optimiser.step()
    except (AssertionError, RuntimeError):
        return None
    return names_of(optimiser.state[parameter])


def names_of(state: dict[str, Any]) -> frozenset[str]:
    """Return the names in a parameter's state that have a value."""
    return frozenset(name for name, value in state.items() if value is not None)


def take_options(checkpoint: dict[str, Any], optimiser: Optimizer, factor: float) -> None:
    """Replace the options in a checkpoint's optimiser and schedule states, in place, by those of this optimiser.

    A resumed training then has the learning rate, betas and weight decay of its command and the kernels of its device;
    the checkpoint gives the moments.

    Args:
        factor: the schedule's factor of the learning rate at the next step.
    """
    rates = [group["lr"] for group in optimiser.param_groups]
    for state in checkpoint.get("optimizer_states", []):
        for saved, own in zip(state["param_groups"], optimiser.param_groups, strict=True):
            options = {key: value for key, value in own.items() if key != "params"}
            saved.update(options, lr=own["lr"] * factor, initial_lr=own["lr"])
    for schedule in checkpoint.get("lr_schedulers", []):
        schedule.update(base_lrs=rates, _last_lr=[rate * factor for rate in rates])
