"""What every process of a training holds at its end, for tests that start it with PYTHONPATH here."""

import json
from pathlib import Path
from typing import Any

import torch
from hydra.experimental.callback import Callback as HydraCallback
from lightning.pytorch import Callback, LightningModule, Trainer

from scoreline.runtime import device
from scoreline.training import gradients, preemption


class Witness(Callback):
    """rank0.pt, rank1.pt, ..: the weights, reference and noise of the last step, and what torch's DDP was given.

    `memory` is, for every parameter, the address of the memory that its gradient is a part of, and the size of that.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if trainer.global_step == trainer.max_steps:
            pl_module.__dict__["_seen"] = {"images": batch[0], "levels": outputs["levels"]}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step, rank, world = trainer.max_steps - 1, trainer.global_rank, trainer.world_size
        drawn = pl_module.references.draw(step, rank, world, torch.device("cpu"))
        found = {"weights": pl_module.state_dict(), "reference": drawn.images, **pl_module.__dict__["_seen"]}
        wrapper = trainer.strategy.model
        assert isinstance(wrapper, torch.nn.parallel.DistributedDataParallel)
        found["ddp"] = {
            name: getattr(wrapper, name)
            for name in ("gradient_as_bucket_view", "find_unused_parameters", "static_graph")
        }
        storages = [p.grad.untyped_storage() for p in pl_module.parameters() if p.grad is not None]
        found["memory"] = [(storage.data_ptr(), storage.nbytes()) for storage in storages]
        torch.save(found, Path(trainer.default_root_dir) / f"rank{rank}.pt")


class Examples(Callback):
    """examples.pt: the images, noise, levels and labels of the first step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, _: int) -> None:
        if trainer.global_step == 0:
            seen = pl_module.examples(*batch)
            parts = {"clean": seen.clean, "eps": seen.eps, "rho": pl_module.objective.density.inverse(seen.u)}
            torch.save({**parts, "label": seen.label}, Path(trainer.default_root_dir) / "examples.pt")


class AsOnGPU(Callback):
    """The CPU is taken for a device that works off a queue: numbers of a step are read a step later."""

    def __init__(self) -> None:
        for module in (device, gradients, preemption):
            module.computes_apart = lambda device: True  # type: ignore[attr-defined]


class KeepReturned(HydraCallback):
    """What train.py returns, as a sweeper gets it, in returned.json of the working directory."""

    def on_job_end(self, config: Any, job_return: Any, **_: Any) -> None:
        Path("returned.json").write_text(json.dumps(job_return.return_value))
