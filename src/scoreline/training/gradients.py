"""What happens to gradients between the backward pass and the step."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

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


def _whole(norm: Tensor) -> Tensor:
    """The norm of the whole gradient where every process holds a part of it."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
