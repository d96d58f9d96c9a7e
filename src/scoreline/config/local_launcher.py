"""Parallel jobs of a sweep on one machine: `hydra/launcher=local`."""

import atexit
import os
import shutil
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from scoreline.errors import InputError
from scoreline.storage.files import open_locked
from scoreline.values import is_whole

PLUGIN = "hydra_plugins.hydra_joblib_launcher"
JOBS = "SCORELINE_JOBS"
"""Environment variable with n_jobs for conf/hydra/launcher/local.yaml."""

PAUSE = 0.05

_held: dict[str, tuple[int, IO[bytes]]] = {}
"""The number and the locked file of this process, by folder; it holds them until it ends."""


class OneDeviceEach:
    """A Hydra callback that gives each process of a sweep one CUDA device, by CUDA_VISIBLE_DEVICES.

    A process of joblib runs one job after another, and CUDA reads the variable only once in a process. So a device
    belongs to a process, not to a job: no two jobs share a GPU while another one is idle. If there are more processes
    than devices, they share them evenly. Jobs on the CPU get no device; joblib divides the CPU's threads over the
    processes, unless OMP_NUM_THREADS is set.
    """

    def __init__(self) -> None:
        self.folder, self.names = "", list[str]()

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Set n_jobs unless the command line does: one for every device, else one for every CPU core.

        The process exits with one line and code 2 if the plugin is missing or n_jobs is impossible.
        """
        from scoreline.config.script import leave

        devices = [] if on_cpu(config) else visible_devices()
        os.environ.setdefault(JOBS, str(len(devices) or -1))
        try:
            count = jobs(config)
        except InputError as error:
            leave(error)
        self.names = [devices[k % len(devices)] for k in range(count)] if devices else []
        self.folder = tempfile.mkdtemp(prefix="scoreline-sweep-")
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)

    def on_job_start(self, **_: Any) -> None:
        """Make this process's device the only visible one."""
        if self.names:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.names[place(self.folder, len(self.names))]

    def on_job_end(self, **_: Any) -> None: ...
    def on_multirun_end(self, **_: Any) -> None: ...
    def on_run_start(self, **_: Any) -> None: ...
    def on_run_end(self, **_: Any) -> None: ...


def on_cpu(config: Any) -> bool:
    """Return whether the jobs of a config use the CPU alone."""
    if "device" in config:
        return str(config.device) == "cpu"
    return "trainer" in config and str(config.trainer.accelerator) == "cpu"


def visible_devices() -> list[str]:
    """Return the CUDA devices, named as in CUDA_VISIBLE_DEVICES."""
    import torch

    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [name.strip() for name in named.split(",")][:count] if named else [str(k) for k in range(count)]


def jobs(config: Any) -> int:
    """Return the number of parallel processes.

    Raises:
        InputError: if n_jobs is neither a whole number above 0 nor -1, or joblib's plugin is not installed.
    """
    if not _installed():
        raise InputError("hydra/launcher=local needs one more package: pip install 'scoreline[sweep]'")
    import joblib  # type: ignore[import-untyped]

    count = config.hydra.launcher.n_jobs
    if not is_whole(count, -1) or count == 0:
        raise InputError(f"hydra.launcher.n_jobs={count}: must be a whole number, at least 1; -1 is one for every core")
    return int(joblib.effective_n_jobs(count))


def _installed() -> bool:
    """Return whether Hydra's plugin for joblib is installed."""
    try:
        return find_spec(PLUGIN) is not None
    except ModuleNotFoundError:
        return False


def place(folder: str, count: int) -> int:
    """Return a number 0 .. count - 1 that no other process of the folder has; this process keeps it until it ends.

    If all numbers are taken, wait for the end of a process that joblib has replaced.

    Args:
        folder: the folder of the sweep, which holds one lock per number.
        count: how many numbers there are.
    """
    while folder not in _held:
        for number in range(count):
            handle = open_locked(Path(folder) / str(number))
            if handle is not None:
                _held[folder] = number, handle
                break
        else:
            time.sleep(PAUSE)
    return _held[folder][0]
