"""Jobs of a sweep side by side on one machine: `hydra/launcher=local`."""

import atexit
import os
import shutil
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from scoreline.errors import InputError
from scoreline.files import locked

PLUGIN = "hydra_plugins.hydra_joblib_launcher"
JOBS = "SCORELINE_JOBS"
"""What conf/hydra/launcher/local.yaml reads n_jobs from."""

PAUSE = 0.05

_held: dict[str, tuple[int, IO[bytes]]] = {}
"""Places that this process has; it gives them back by ending."""


class OneDeviceEach:
    """A Hydra callback that gives each process of a sweep one CUDA device, by CUDA_VISIBLE_DEVICES.

    joblib's processes do one job after another, and CUDA heeds the variable only once in a process. So a device belongs
    to a process, not to the number of a job: no two jobs meet on one GPU while another is idle. With more processes
    than devices they share them evenly. Jobs on the CPU get none; joblib divides the CPU's threads over the processes
    itself, unless OMP_NUM_THREADS is set.
    """

    def __init__(self) -> None:
        self.folder, self.names = "", list[str]()

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Choose n_jobs where the command line does not: one for every device, else one for every CPU core.

        Leaves with one line and exit code 2 where the plugin is missing or n_jobs is impossible.
        """
        from scoreline.entry import leave

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
        """Show this process its device, and no other."""
        if self.names:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.names[place(self.folder, len(self.names))]

    def on_job_end(self, **_: Any) -> None: ...
    def on_multirun_end(self, **_: Any) -> None: ...
    def on_run_start(self, **_: Any) -> None: ...
    def on_run_end(self, **_: Any) -> None: ...


def on_cpu(config: Any) -> bool:
    """Whether the jobs of a config use no GPU."""
    if "device" in config:
        return str(config.device) == "cpu"
    return "trainer" in config and str(config.trainer.accelerator) == "cpu"


def visible_devices() -> list[str]:
    """CUDA devices by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [name.strip() for name in named.split(",")][:count] if named else [str(k) for k in range(count)]


def jobs(config: Any) -> int:
    """Processes at a time.

    Raises:
        InputError: if n_jobs is neither a whole number above 0 nor -1, or joblib's plugin is not installed.
    """
    if not installed():
        raise InputError("hydra/launcher=local needs one more package: pip install 'scoreline[sweep]'")
    import joblib  # type: ignore[import-untyped]

    count = config.hydra.launcher.n_jobs
    if isinstance(count, bool) or not isinstance(count, int) or count < -1 or count == 0:
        raise InputError(f"hydra.launcher.n_jobs={count}: must be a whole number, at least 1; -1 is one for every core")
    return int(joblib.effective_n_jobs(count))


def installed() -> bool:
    """Whether Hydra's plugin for joblib is there."""
    try:
        return find_spec(PLUGIN) is not None
    except ModuleNotFoundError:
        return False


def place(folder: str, count: int) -> int:
    """The number 0 .. count - 1 that this process has among those that share the folder; it keeps it to its end.

    Waits while all are taken, which lasts as long as a process that was replaced takes to end.
    """
    while folder not in _held:
        for number in range(count):
            handle = locked(Path(folder) / str(number))
            if handle is not None:
                _held[folder] = number, handle
                break
        else:
            time.sleep(PAUSE)
    return _held[folder][0]
