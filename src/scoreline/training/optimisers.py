"""Optimiser steps by the fastest kernels that compute the same."""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

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


def keep_kernels(states: list[dict[str, Any]], optimiser: Optimizer) -> None:
    """Give an optimiser's saved states, in place, the switches of this one: a file's may be those of another device."""
    for state in states:
        for saved, own in zip(state["param_groups"], optimiser.param_groups, strict=True):
            saved.update({key: own[key] for key in KERNELS if key in own})
