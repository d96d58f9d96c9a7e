"""Lightning strategies for several processes, data parallel and sharded, which also run within a sweep."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy
from torch import Tensor
from torch.optim import Optimizer

from scoreline.errors import InputError
from scoreline.runtime.cores import usable_cores
from scoreline.training.sharding import assemble, divide
from scoreline.values import check_compile

PRECISIONS = ("32-true", "bf16-mixed")

PAUSE = 5.0
"""Seconds between two looks at the other processes."""

PATIENCE = 60.0
"""Seconds that the first process waits at its end for each of the others."""


class Launcher:
    """Start a strategy's `command` once for every further process of this machine.

    Lightning's own launcher repeats the command line: in a Hydra sweep every further process would run the whole sweep,
    in a directory of its own. This one runs this job in this job's directory. At the end it restores the environment
    and leaves the process group, so that the next job of the sweep starts processes of its own. Under torchrun and
    srun, which start all processes themselves, it starts none.
    """

    is_interactive_compatible = False  # Lightning asks: in a notebook there is no command to repeat

    def __init__(self, strategy: Any) -> None:
        self.strategy = strategy
        self.processes: list[subprocess.Popen[bytes]] = []
        self.before: dict[str, str] = {}
        self.ended = threading.Event()

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the processes, and call the function."""
        environment, count = self.strategy.cluster_environment, self.strategy.num_processes
        environment.validate_settings(num_devices=count, num_nodes=self.strategy.num_nodes)
        if not environment.creates_processes_externally:
            self._start(environment, count)
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, usable_cores() // count))
        return function(*args, **kwargs)

    def _start(self, environment: Any, count: int) -> None:
        self.before = dict(os.environ)
        os.environ |= {
            "MASTER_ADDR": environment.main_address,
            "MASTER_PORT": str(environment.main_port),
            "NODE_RANK": str(environment.node_rank()),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(count * self.strategy.num_nodes),
        }
        self.processes = [
            subprocess.Popen(self.strategy.command, env=os.environ | {"LOCAL_RANK": str(k)}, stdin=subprocess.DEVNULL)
            for k in range(1, count)
        ]
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """Kill all processes if one fails: the others may wait for it in a collective, which no exception ends."""
        while not self.ended.wait(PAUSE):
            codes = [code for process in self.processes if (code := process.poll())]
            if codes:
                print(f"a process of this training ended with exit code {codes[0]}; all are stopped", file=sys.stderr)
                self.kill(signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)

    def kill(self, signum: int) -> None:
        """Send a signal to the other processes."""
        for process in self.processes:
            process.send_signal(signum)

    def leave(self) -> None:
        """Wait for the other processes and forget them; called after the last collective, also if training failed."""
        self.ended.set()
        processes, self.processes = self.processes, []
        for process in processes:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
        if processes and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if processes:
            os.environ.clear()
            os.environ.update(self.before)


class Launched(ParallelStrategy):
    """A strategy whose further processes a `Launcher` starts.

    Args:
        command: starts a further process of this job; train.py gives it.
    """

    def __init__(self, command: list[str] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.command = command or [sys.executable, *sys.argv]
        self.processes = Launcher(self)

    @property
    def launcher(self) -> Any:
        """The launcher, which Lightning asks for."""
        return self.processes

    def teardown(self) -> None:
        super().teardown()
        self.processes.leave()


class DataParallel(Launched, DDPStrategy):
    """Lightning's DDP: every process holds the whole model and computes its part of each batch.

    Gradients are views of the buckets that processes exchange, so they are in memory once and are not copied. Every
    parameter takes part in every step, so none is looked for that does not. Steps of several micro-batches keep the
    graph from being called static.
    """

    def __init__(self, command: list[str] | None = None, **options: Any) -> None:
        super().__init__(command, gradient_as_bucket_view=True, find_unused_parameters=False, **options)


class Sharded(Launched, ModelParallelStrategy):
    """FSDP2 over all processes, for networks too large for one GPU; checkpoints are those of any other trainer.

    A process keeps 1 / W of the weights, of their averages, of the gradients and of the optimiser's states, and whole
    parameters of a block only while it computes. Gradients are exchanged after every micro-batch, so none is kept
    whole. A checkpoint is one file of whole tensors, assembled in the memory of the first process and read by all, so
    another trainer or number of processes can resume from it. With bf16-mixed, parameters are gathered in float32 and
    rounded by autocast, so noise levels reach the network unrounded.

    Args:
        command: starts a further process of this job; train.py gives it.
        precision: the script's key; 32-true or bf16-mixed.
        compile: the script's key; `none`, since FSDP2 hooks into the module as it is written.
        channels_last: the script's key; false, since FSDP2 cannot divide weights that lie channel by channel.

    Raises:
        InputError: for any other precision, compile or channels_last, before a process starts.
    """

    def __init__(
        self,
        command: list[str] | None = None,
        precision: str = "32-true",
        compile: str = "none",
        channels_last: bool = False,
        **options: Any,
    ) -> None:
        if precision not in PRECISIONS:
            raise InputError(f"precision={precision}: not with trainer=fsdp; use {' or '.join(PRECISIONS)}")
        if check_compile(compile) != "none":
            raise InputError(f"compile={compile}: not with trainer=fsdp; use compile=none, or trainer=ddp")
        if channels_last:
            raise InputError("channels_last=true: not with trainer=fsdp; use channels_last=false, or trainer=ddp")
        super().__init__(command, save_distributed_checkpoint=False, **options)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """False as in other strategies: the module has divided its weights by then, in `configure_model`."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return assemble(self.lightning_module.state_dict())

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        weights = {name: divide(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(weights, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = plain.state_dict()
        return {**state, "state": {index: assemble(values) for index, values in state["state"].items()}}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(_divided_state(optimizer, state))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(Path(self.broadcast(checkpoint_path)), weights_only=weights_only)


def _divided_state(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Divide an optimiser's state: a tensor of its parameter's shape is divided as the parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    indices = [index for group in state["param_groups"] for index in group["params"]]
    of = dict(zip(indices, parameters, strict=True))

    def placed(value: Any, parameter: Tensor) -> Any:
        alike = isinstance(value, Tensor) and value.shape == parameter.shape
        return divide(value, parameter) if alike else value

    parts = {i: {name: placed(v, of[i]) for name, v in values.items()} for i, values in state["state"].items()}
    return {**state, "state": parts}
