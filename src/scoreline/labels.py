"""Which class each image is asked to be."""

from collections.abc import Sequence

import torch
from torch import Tensor

from scoreline import noise
from scoreline.errors import InputError
from scoreline.label_files import file_mark, read_label_file
from scoreline.label_rules import check_rule, fixed_class, is_label_file


def plan_labels(rule: str | None, seeds: Sequence[int], num_classes: int) -> Tensor | None:
    """Class labels (len(seeds),) int64, or None for an unconditional run.

    Args:
        rule: `random` draws from the image's own seed, `balanced` is seed modulo classes, `fixed:k` is class k,
            `none` leaves the condition out, a name that ends as in `label_files.SUFFIXES` is a file of classes
            (`label_files.read_label_file`). An unconditional model ignores `random`.

    Raises:
        InputError: for an unknown rule, a file that does not serve, a class out of range, or a class asked of an
            unconditional model.
    """
    rule = check_rule(rule)
    if num_classes == 0:
        if rule not in ("random", "none"):
            raise InputError(f"labels={rule}: this checkpoint is unconditional; drop the key")
        return None
    if is_label_file(rule):
        return torch.tensor(read_label_file(rule, seeds, num_classes))
    fixed = fixed_class(rule)
    if fixed is not None:
        if fixed >= num_classes:
            raise InputError(f"labels={rule}: this checkpoint has the classes 0 to {num_classes - 1}")
        return torch.full((len(seeds),), fixed)
    if rule == "balanced":
        return torch.tensor([seed % num_classes for seed in seeds])
    return noise.integers(seeds, num_classes, "label") if rule == "random" else None


def describe_labels(rule: str | None, labels: Tensor | None) -> str:
    """How the rule stands in results: `none` where no image has a label, a file by name and digest."""
    if labels is None:
        return "none"
    return file_mark(str(rule)) if is_label_file(str(rule)) else str(rule)
