"""Preview images: samples of the averaged model while it trains."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from scoreline.denoiser import Denoiser
from scoreline.descriptions.specs import foreign_packages, rebuild
from scoreline.generation.batches import generate
from scoreline.schedules.base import NoiseSchedule
from scoreline.schedules.spacings import Power
from scoreline.solvers.deis import DEIS
from scoreline.solvers.tableau import build_tableau
from scoreline.storage.pictures import save_png, sheet, to_uint8
from scoreline.training.callbacks import dispensable
from scoreline.training.ema_callback import ema_of
from scoreline.training.module import DiffusionModule
from scoreline.training.online_schedule import online_schedule_of
from scoreline.training.wandb_run import WandbRun
from scoreline.values import images_of_kimg


class Preview(Callback):
    """Sample the same 64 seeds every `every_kimg` thousand images and at the end, by DEIS-tAB2 at NFE 20.

    They go to previews/000064kimg.png, and to W&B and TensorBoard where these are loggers. The steps are EDM's, or
    those of the trainer's OnlineSchedule after its first update. Use it to watch a training.
    """

    def __init__(self, every_kimg: float) -> None:
        self.every = images_of_kimg("preview_kimg", every_kimg)
        self.drawn = -1

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, DiffusionModule)
        if pl_module.passed(self.every):
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last preview, unless a signal interrupts the training or this thousand images has a preview."""
        assert isinstance(pl_module, DiffusionModule)
        ended = pl_module.stopped or pl_module.global_step >= trainer.max_steps
        if ended and pl_module.images_seen // 1000 != self.drawn:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, module: DiffusionModule) -> None:
        self.drawn = module.images_seen // 1000
        denoiser = ema_of(trainer).averaged(module)
        if denoiser is not None:
            self._save(trainer, module, self._sheet(trainer, module, denoiser))

    @torch.no_grad()
    def _sheet(self, trainer: Trainer, module: DiffusionModule, denoiser: Denoiser) -> Tensor:
        process = module.card.model["noise_schedule"]
        schedule: NoiseSchedule = rebuild(process, NoiseSchedule, foreign_packages(process))  # named by the config
        span = (schedule.sigma_max, schedule.sigma_min)
        steps = online_schedule_of(trainer) or Power(7)
        tableau = build_tableau(DEIS(2, schedule), steps, span, nfe=20, final="denoise")
        (batch,) = generate(denoiser, tableau, module.card.shape, range(64), batch_size=64)
        return sheet(to_uint8(batch.x).cpu())

    @staticmethod
    def _save(trainer: Trainer, module: DiffusionModule, picture: Tensor) -> None:
        path = Path(trainer.default_root_dir) / "previews" / f"{module.images_seen // 1000:06d}kimg.png"
        with dispensable(path):
            save_png(path, picture)
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun) and path.is_file():
                logger.log_picture(path)
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(path.parent.name, picture, module.global_step)
