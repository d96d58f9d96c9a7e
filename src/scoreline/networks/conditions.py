"""What a network is told besides the noise level, as rows of numbers: zeros where it is told nothing."""

import torch
from torch import Tensor
from torch.nn import functional


def one_hot(label: Tensor | None, classes: int, like: Tensor) -> Tensor:
    """(B,) int64 -> (B, classes) of the dtype and on the device of `like` (B, *); zeros where None or negative."""
    if label is None:
        return like.new_zeros(len(like), classes)
    known = (label >= 0)[:, None]
    return (functional.one_hot(label.clamp(min=0), classes) * known).to(like)


def or_zeros(augment: Tensor | None, size: int, like: Tensor) -> Tensor:
    """Augmentation labels (B, size) of the dtype and on the device of `like` (B, *); zeros for None."""
    return like.new_zeros(len(like), size) if augment is None else augment.to(like)


def indices(label: Tensor | None, null: int, count: int, device: torch.device) -> Tensor:
    """(B,) int64 with the index `null` in the place of None and of negative labels."""
    if label is None:
        return torch.full((count,), null, device=device)
    return torch.where(label < 0, null, label)
