"""Files to resume from, and the model file that sampling loads; each is whole or not there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from scoreline.checkpoints import save_model
from scoreline.errors import InputError
from scoreline.files import write_atomically
from scoreline.training.ema import ema_of
from scoreline.training.module import DiffusionModule


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written beside their place, flushed and renamed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_atomically(Path(path), lambda temporary: torch.save(checkpoint, temporary))


class Checkpointing(Callback):
    """checkpoints/0000064000.ckpt (images seen) and model.safetensors at the start, every `every_kimg`, at the end.

    The two newest files are kept: should the last one be damaged, resuming falls back to the one before.
    """

    def __init__(self, every_kimg: float) -> None:
        self.every = max(1, round(every_kimg * 1000))
        self.saved = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        if not list_checkpoints(Path(trainer.default_root_dir)):
            self._save(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, DiffusionModule)
        seen = pl_module.images_seen
        if seen // self.every > (seen - pl_module.batch_size) // self.every:
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        if pl_module.images_seen != self.saved:
            self._save(trainer, pl_module)

    def _save(self, trainer: Trainer, module: DiffusionModule) -> None:
        root, seen = Path(trainer.default_root_dir), module.images_seen
        trainer.save_checkpoint(root / "checkpoints" / f"{seen:010d}.ckpt")
        self.saved = seen
        if trainer.is_global_zero:
            card = replace(module.card, training={**module.card.training, "kimg": seen / 1000})
            save_model(root / "model.safetensors", ema_of(trainer).ema.weights, card)
            for old in list_checkpoints(root)[2:]:
                old.unlink(missing_ok=True)


def list_checkpoints(root: Path) -> list[Path]:
    """Files to resume from in a run directory, newest first."""
    return sorted((root / "checkpoints").glob("[0-9]*.ckpt"), reverse=True)


def resume_from(root: Path, resume: str) -> Path | None:
    """The file that `resume=` stands for, or None to start afresh.

    Args:
        resume: `auto` takes the newest loadable file of the run directory; `never` insists on an empty directory;
            anything else is the path of a file.

    Raises:
        InputError: for a missing or damaged file, or `never` where a run was begun.
    """
    present = list_checkpoints(root)
    if resume == "never":
        if present:
            raise InputError(f"resume=never: {root} holds a run already; use resume=auto or another name=")
        return None
    if resume == "auto":
        return next((path for path in present if loadable(path)), None)
    if not Path(resume).is_file() or not loadable(Path(resume)):
        raise InputError(f"resume={resume}: no loadable checkpoint there; use resume=auto or the path of a .ckpt file")
    return Path(resume)


def loadable(path: Path) -> bool:
    """Whether a checkpoint file can be read back whole; no code of the file is run."""
    try:
        return "state_dict" in torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        return False
