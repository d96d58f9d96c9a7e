"""Files to resume from, and the model file that sampling loads; each is whole or not there."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors import SafetensorError

from scoreline.checkpoints import save_model
from scoreline.errors import InputError
from scoreline.files import write_atomically
from scoreline.foreign import torch_files
from scoreline.training.callbacks import the_callback
from scoreline.training.ema import EMACallback, ema_of
from scoreline.training.gradients import NotFiniteError
from scoreline.training.module import DiffusionModule


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written beside their place, flushed and renamed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_atomically(Path(path), lambda temporary: _save(checkpoint, temporary))


def _save(checkpoint: dict[str, Any], path: Path) -> None:
    """torch.save, whose writer raises one RuntimeError or another where the disk is full."""
    try:
        torch.save(checkpoint, path)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise OSError(f"PyTorch's writer: {str(error).splitlines()[0]}") from error


class Checkpointing(Callback):
    """checkpoints/0000064000.ckpt (images seen) and the model files at the start, every `every_kimg`, at the end.

    The two newest files are kept: should the last one be damaged, resuming falls back to the one before. Where there is
    no room for a new one, that is said, the old ones stay, and training goes on to the next time; only at the end it is
    an error. Model files are model.safetensors, and model-ema50kimg.safetensors for further averages.
    """

    def __init__(self, every_kimg: float) -> None:
        self.every = max(1, round(every_kimg * 1000))
        self.saved = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not list_checkpoints(Path(trainer.default_root_dir)):
            self.save(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, DiffusionModule)
        if pl_module.passed(self.every):
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer, pl_module)
        if self.saved != pl_module.images_seen:
            raise InputError(
                f"checkpoint: the last one could not be written to {trainer.default_root_dir}; make room there, then "
                "run the same command again: it goes on from the one before"
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gradients that stay non-finite have not reached the weights, which are kept."""
        if isinstance(exception, NotFiniteError):
            self.save(trainer, pl_module)

    def save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write all files of this moment, unless they are there."""
        assert isinstance(pl_module, DiffusionModule)
        root, seen = Path(trainer.default_root_dir), pl_module.images_seen
        if seen == self.saved:
            return
        failed = self._written(trainer, root / "checkpoints" / f"{seen:010d}.ckpt")
        averages = ema_of(trainer).whole()
        if trainer.is_global_zero and not failed:
            failed = self._write_models(averages, pl_module, root)
        if trainer.strategy.reduce_boolean_decision(failed, all=False):
            return
        self.saved = seen
        if trainer.is_global_zero:
            for old in list_checkpoints(root)[2:]:
                old.unlink(missing_ok=True)

    @staticmethod
    def _written(trainer: Trainer, path: Path) -> bool:
        """Save the state to resume from; whether that failed. Lightning ends it with a barrier, also where it fails."""
        try:
            trainer.save_checkpoint(path)
        except WRITING_FAILED as error:
            _say(path, error)
            trainer.strategy.barrier("Trainer.save_checkpoint")
            return True
        return False

    @staticmethod
    def _write_models(averages: EMACallback, module: DiffusionModule, root: Path) -> bool:
        try:
            for suffix, ema in averages.averages.items():
                about = {"kimg": module.images_seen / 1000, "ema_half_life_kimg": ema.half_life_kimg}
                card = replace(module.card, training={**module.card.training, **about})
                save_model(root / f"model{suffix}.safetensors", ema.weights, card)
            averages.save_snapshots(root, module.images_seen)
        except WRITING_FAILED as error:
            _say(root / "model.safetensors", error)
            return True
        return False


WRITING_FAILED = (OSError, SafetensorError)
"""What a full disk raises."""


def _say(path: Path, error: Exception) -> None:
    reason = str(error).splitlines()[0]
    print(f"{path}: not written ({reason}); the one before is kept, training goes on", file=sys.stderr, flush=True)


def checkpointing_of(trainer: Trainer) -> Checkpointing:
    """The trainer's Checkpointing callback, of which it needs one."""
    return the_callback(trainer, Checkpointing)


INERT = ("collections.Counter",)
"""What torch admits in a checkpoint beyond tensors, and some schedulers of the learning rate keep."""


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
    """Whether a checkpoint file can be read back whole; no code of the file is run.

    torch unpacks whatever a zip archive declares, and hashes and nests whatever a pickle asks for. A file comes to it
    after our own reader, which maps the file and bounds all of that; torch then compares the checksums.
    """
    try:
        torch_files.read(path, INERT)
        return "state_dict" in torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        return False
