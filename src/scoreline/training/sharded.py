"""Training whose weights, gradients and optimiser states are divided over processes."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.optim import Optimizer

from scoreline.choices import check_compile
from scoreline.errors import InputError
from scoreline.shards import assembled, divided
from scoreline.training.launch import Launcher

PRECISIONS = ("32-true", "bf16-mixed")


class Sharded(ModelParallelStrategy):
    """FSDP2 over all processes, with a `Launcher`; checkpoints are those of any other trainer.

    A process keeps 1 / W of the weights, of their averages, of the gradients and of the optimiser's states, and whole
    parameters of a block only while it computes; gradients are exchanged after every micro-batch, so that none is kept
    whole. A checkpoint is one file with whole tensors, assembled in the first process's memory and read by all: another
    trainer, or another number of processes, goes on from it. With bf16-mixed, parameters are gathered in float32 and
    rounded by autocast, so that noise levels reach the network as they are.

    Args:
        command: what starts a further process of this job; train.py gives it.
        precision, compile, channels_last: the script's keys, to say before anything starts what cannot be had.

    Raises:
        InputError: for a precision other than 32-true and bf16-mixed, a compiled network, and weights that lie in
            memory channel by channel, which FSDP2 cannot divide.
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
        super().__init__(save_distributed_checkpoint=False, **options)
        self.command = command or [sys.executable, *sys.argv]

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = Launcher(self.command, self.cluster_environment, self.num_processes, self.num_nodes)

    def teardown(self) -> None:
        super().teardown()
        if isinstance(self.launcher, Launcher):
            self.launcher.leave()

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """The order of other strategies: the module divides its weights before that, in `configure_model`."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return assembled(self.lightning_module.state_dict())

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        weights = {name: divided(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(weights, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = plain.state_dict()
        return {**state, "state": {index: assembled(values) for index, values in state["state"].items()}}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(_divided_state(optimizer, state))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(Path(self.broadcast(checkpoint_path)), weights_only=weights_only)


def _divided_state(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """What of an optimiser's state has its parameter's shape is divided as the parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    indices = [index for group in state["param_groups"] for index in group["params"]]
    of = dict(zip(indices, parameters, strict=True))

    def placed(value: Any, parameter: Tensor) -> Any:
        alike = isinstance(value, Tensor) and value.shape == parameter.shape
        return divided(value, parameter) if alike else value

    parts = {i: {name: placed(v, of[i]) for name, v in values.items()} for i, values in state["state"].items()}
    return {**state, "state": parts}
