"""Which class each image is asked to be."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from scoreline import noise
from scoreline.errors import InputError


def plan_labels(rule: str | None, seeds: Sequence[int], num_classes: int) -> Tensor | None:
    """Class labels (len(seeds),) int64, or None for an unconditional run.

    Args:
        rule: `random` draws from the image's own seed, `balanced` is seed modulo classes, `fixed:k` is class k,
            `none` leaves the condition out. An unconditional model ignores `random`.

    Raises:
        InputError: for an unknown rule, a class out of range, or a class asked of an unconditional model.
    """
    rule = str(rule).lower()
    fixed = re.fullmatch(r"fixed:(\d+)", rule)
    if not fixed and rule not in ("random", "balanced", "none"):
        raise InputError(f"labels={rule}: choose random, balanced, fixed:K or none")
    if num_classes == 0:
        if rule not in ("random", "none"):
            raise InputError(f"labels={rule}: this checkpoint is unconditional; drop the key")
        return None
    if fixed:
        if int(fixed[1]) >= num_classes:
            raise InputError(f"labels={rule}: this checkpoint has the classes 0 to {num_classes - 1}")
        return torch.full((len(seeds),), int(fixed[1]))
    if rule == "balanced":
        return torch.tensor([seed % num_classes for seed in seeds])
    return noise.integers(seeds, num_classes, "label") if rule == "random" else None
