"""Preemption: save the state and stop when a scheduler asks for the machine, then hand the job over."""

import os
import signal
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from scoreline.runtime import compat
from scoreline.runtime.device import LateNumber, computes_apart, to_device
from scoreline.runtime.stop_signals import SIGNALS, SUBMITIT
from scoreline.training.training_state import checkpointing_of

ITS_SIGNAL = "SUBMITIT_PREEMPT_SIGNAL"
"""Variable with the name of the signal that submitit handles itself."""

Handler = Any


class Agreement:
    """A vote of all processes: whether any says yes. With GPUs the answer comes a step later, so none waits for it."""

    def __init__(self) -> None:
        self._late = LateNumber()

    def any(self, trainer: Trainer, own: bool) -> bool:
        """Return the answer, equal on all processes. Each of them must ask at every step."""
        device = trainer.strategy.root_device
        if trainer.world_size == 1 or not computes_apart(device):
            return trainer.strategy.reduce_boolean_decision(own, all=False)
        votes = to_device(torch.tensor(int(own)), device)
        torch.distributed.all_reduce(votes)
        return bool(self._late.swap(votes))


class Preemption(Callback):
    """On SIGTERM or SIGUSR1, finish the step, write a checkpoint and end the training.

    A signal to one process is enough: all stop after the same step (`Agreement`), in place of Lightning's exchange of
    signals, which waits for the GPU before every step. train.py then leaves with exit code `REQUEUE`, and the same
    command continues the run. In a job of submitit its own signal (SIGUSR2) counts instead, and `hand_over` gives it to
    submitit, which requeues the job.

    Attributes:
        received: the signal, None before one arrives.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._agreement = Agreement()
        self._former: dict[signal.Signals, Handler] = {}
        self._requeue: Handler = None
        self._frame: FrameType | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._agreement = Agreement()
        compat.skip_sigterm_exchange(trainer)
        for number in SIGNALS:
            self._former[number] = signal.signal(number, self._ignore if SUBMITIT in os.environ else self._notice)
        if SUBMITIT in os.environ:
            number = signal.Signals["SIG" + os.environ.get(ITS_SIGNAL, "USR2")]
            self._former[number] = self._requeue = signal.signal(number, self._notice)

    def _ignore(self, number: int, frame: FrameType | None) -> None:
        """SLURM sends SIGTERM along with submitit's signal; only the latter counts."""

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.received, self._frame = signal.Signals(number), frame

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._agreement.any(trainer, self.received is not None):
            self.received = self.received or signal.SIGTERM
            checkpointing_of(trainer).save(trainer, pl_module)
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def hand_over(self) -> None:
        """Let submitit, if it runs this job, requeue it and end this process."""
        if callable(self._requeue) and self.received is not None:
            self._requeue(self.received, self._frame)
