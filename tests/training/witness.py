"""What every process of a training holds at its end, for tests that start it with PYTHONPATH here."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class Witness(Callback):
    """rank0.pt, rank1.pt, ..: the weights, and the reference and noise of the last step."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if trainer.global_step == trainer.max_steps:
            pl_module.__dict__["_seen"] = {"images": batch[0], "levels": outputs["levels"]}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step, rank, world = trainer.max_steps - 1, trainer.global_rank, trainer.world_size
        drawn = pl_module.references.draw(step, rank, world, torch.device("cpu"))
        found = {"weights": pl_module.state_dict(), "reference": drawn.images, **pl_module.__dict__["_seen"]}
        torch.save(found, Path(trainer.default_root_dir) / f"rank{rank}.pt")
