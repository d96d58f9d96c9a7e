"""The Ray cluster of `launcher=ray`."""

import logging
import os
import re
import signal
import socket
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from scoreline.errors import InputError
from scoreline.values import whole_number

DEVICES = ("auto", "cpu", "cuda")
"""Values of `device` under Ray, which gives each worker a GPU of its own."""

PATIENCE = 10.0
"""Seconds in which a cluster has to answer."""

SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_IGNORE_UNHANDLED_ERRORS": "1"}
"""Environment variables of Ray, unless the user sets them: no usage reports, and one worker's error speaks for all."""


@dataclass(frozen=True)
class RayCluster:
    """A Ray cluster and the number of workers on it.

    Attributes:
        address: HOST:PORT of a running cluster, or `local` for a new one on this machine. None leaves it to Ray:
            RAY_ADDRESS, else a cluster that runs on this machine, else a new one.
        workers: the number of workers; None stands for all that the cluster has room for.

    Raises:
        InputError: if the package ray is missing, or a value cannot be.
    """

    address: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if find_spec("ray") is None:
            raise InputError("launcher=ray needs one more package: pip install 'scoreline[ray]'")
        if self.workers is not None:
            whole_number("launcher.workers", self.workers)
        if self.address is not None and not re.fullmatch(r"auto|local|[^:/]+:\d{1,5}", str(self.address)):
            raise InputError(
                f"launcher.address={self.address}: must be HOST:PORT of a Ray cluster, or null; from outside of the "
                "cluster use `ray job submit`"
            )

    def connect(self) -> Any:
        """Return the module ray, connected to the cluster until this process ends.

        Raises:
            InputError: if no cluster answers at the address.
        """
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        import ray

        if ray.is_initialized():
            return ray
        if ":" in str(self.address):
            self._refuse_silence()
        handler = signal.getsignal(signal.SIGTERM)  # ray.init replaces it
        try:
            ray.init(self.address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise self._no_cluster(str(error).strip().partition("\n")[0]) from error
        finally:
            signal.signal(signal.SIGTERM, handler)
        return ray

    def _refuse_silence(self) -> None:
        """Refuse an address where nothing listens, for which Ray itself would wait for minutes."""
        host, _, port = str(self.address).rpartition(":")
        try:
            socket.create_connection((host, int(port)), PATIENCE).close()
        except (OSError, OverflowError) as error:
            raise self._no_cluster(str(error)) from error

    def _no_cluster(self, reason: str) -> InputError:
        return InputError(
            f"launcher.address={self.address}: no Ray cluster that this process can join ({reason}); "
            "`ray start --head` starts one"
        )


def kind_of_device(device: str, resources: dict[str, float]) -> str:
    """Return the kind of device that each worker has, `cuda` or `cpu`.

    Args:
        device: one of `DEVICES`; `auto` takes GPUs if the cluster has any.
        resources: the totals of the cluster, as Ray counts them.
    """
    if device != "auto":
        return device
    return "cuda" if resources.get("GPU", 0) >= 1 else "cpu"


def room(kind: str, threads: int, resources: dict[str, float]) -> int:
    """Return the number of workers that a cluster has room for.

    Args:
        kind: `cuda`, one GPU for each worker, or `cpu`.
        threads: cores of a worker without a GPU.
        resources: the totals of the cluster, as Ray counts them.

    Raises:
        InputError: if there is room for none.
    """
    count = int(resources.get("GPU", 0)) if kind == "cuda" else int(resources.get("CPU", 0)) // threads
    if not count and kind == "cuda":
        raise InputError("device=cuda: the Ray cluster has no GPU; use device=cpu, or launcher.workers=N to wait for N")
    if not count:
        raise InputError(f"threads={threads}: the Ray cluster has {resources.get('CPU', 0):g} cores; lower threads")
    return count
