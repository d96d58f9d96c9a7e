"""Signals by which a scheduler asks for the machine: the run keeps what is finished and exits with code 75."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

REQUEUE = 75
"""Exit code EX_TEMPFAIL of sysexits.h: the same command continues where this one stopped."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""SLURM (`--signal=USR1@120`), Kubernetes or `kill` sends one of these before it takes the machine away."""

SUBMITIT = "SUBMITIT_EXECUTOR"
"""Variable of a job that submitit runs: submitit handles the signals itself and requeues the job."""


class Requeue(SystemExit):
    """The end of a run that a signal stopped, with exit code `REQUEUE`.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(REQUEUE)
        self.name = signal.Signals(number).name


@contextmanager
def stop_signals() -> Iterator[None]:
    """Leave the block through `finally`, by `Requeue`, at one of `SIGNALS`; a second signal does nothing.

    A thread other than the main one, which cannot set handlers, and a job of submitit keep theirs.
    """
    if threading.current_thread() is not threading.main_thread() or SUBMITIT in os.environ:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise Requeue(number)

    former = {number: signal.signal(number, leave) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
