"""Private parts of other libraries that have no public equivalent; no other file of the package touches one.

`tests/runtime/test_compat.py` checks each access, so that a new release of a library that changes it fails there.
"""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["TorchDispatchMode", "skip_sigterm_exchange"]
# TorchDispatchMode: PyTorch documents the class, under this private name only.


def skip_sigterm_exchange(trainer: Any) -> None:
    """Keep Lightning from exchanging SIGTERM between processes before every step.

    The exchange reads a number from the GPU, so that each step would wait for the one before. Lightning has no option
    for it; `scoreline.training.preemption.Preemption` exchanges signals without waiting.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
