"""Processes of one training, started by the first of them; also from within a sweep."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch.distributed
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher


class Launcher(_SubprocessScriptLauncher):
    """Starts `command` once for every further process of this machine, and leaves no trace when the training ends.

    Lightning's own repeats the command line: in a Hydra sweep every further process would run the whole sweep, in a
    directory of its own. Here it runs this job in this job's directory, and afterwards the environment and the process
    group are as before, so the next job of the sweep starts processes of its own. Under torchrun and srun, which start
    all processes themselves, nothing is started.
    """

    def __init__(self, command: list[str], *arguments: Any) -> None:
        super().__init__(*arguments)
        self.command = command
        self.before: dict[str, str] = {}

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        self.before = dict(os.environ)
        return super().launch(function, *args, trainer=trainer, **kwargs)

    def leave(self) -> None:
        """Wait for the others, and forget them: after all that they do together, also where training failed."""
        processes = list(self.procs)
        self.procs.clear()  # Lightning's observer of this list would kill this process for an exit code of another one
        if processes:
            _leave(processes, self.before)

    def _call_children_scripts(self) -> None:
        environment = self.cluster_environment
        os.environ |= {
            "MASTER_ADDR": environment.main_address,
            "MASTER_PORT": str(environment.main_port),
            "NODE_RANK": str(environment.node_rank()),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(self.num_processes * self.num_nodes),
        }
        self.procs = [
            subprocess.Popen(self.command, env=os.environ | {"LOCAL_RANK": str(rank)}, stdin=subprocess.DEVNULL)
            for rank in range(1, self.num_processes)
        ]


def _leave(processes: "list[subprocess.Popen[Any]]", environment: dict[str, str]) -> None:
    """Wait for the others, and forget them."""
    for process in processes:
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(environment)


class DataParallel(DDPStrategy):
    """Lightning's DDP with a `Launcher`.

    Gradients are views of the buckets that processes exchange, so they are in memory once and are not copied. Every
    parameter takes part in every step, so none is looked for that does not. Steps of several micro-batches keep the
    graph from being called static.

    Args:
        command: what starts a further process of this job; train.py gives it.
    """

    def __init__(self, command: list[str] | None = None, **options: Any) -> None:
        super().__init__(gradient_as_bucket_view=True, find_unused_parameters=False, **options)
        self.command = command or [sys.executable, *sys.argv]

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = Launcher(self.command, self.cluster_environment, self.num_processes, self.num_nodes)

    def teardown(self) -> None:
        super().teardown()
        if isinstance(self.launcher, Launcher):
            self.launcher.leave()
