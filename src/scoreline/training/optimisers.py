"""Optimisers: their options, their fastest kernels, and what they keep of the steps before."""

import inspect
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from scoreline.errors import InputError

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
