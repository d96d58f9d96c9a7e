"""The state of a training: checkpoints to resume from, and model files for sampling. Each is whole or absent."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors import SafetensorError, safe_open

from scoreline.checkpoints import save_model
from scoreline.errors import InputError
from scoreline.storage.files import write_atomically
from scoreline.training.callbacks import WRITING_FAILED, say_not_written, the_callback
from scoreline.training.ema_callback import EMACallback, ema_of
from scoreline.training.gradients import NotFiniteError
from scoreline.training.module import DiffusionModule
from scoreline.training.resume import images_seen, list_checkpoints, loadable, resume_from
from scoreline.values import images_of_kimg

__all__ = [
    "AtomicCheckpointIO",
    "Checkpointing",
    "checkpointing_of",
    "images_seen",
    "list_checkpoints",
    "loadable",
    "resume_from",
]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written to a temporary file, flushed and renamed.

    Files of version 0.7 and before do not hold the images seen; their names do, unless a user renamed them.
    """

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        state: dict[str, Any] = super().load_checkpoint(path, *arguments, **options)
        seen = images_seen(state, Path(path))
        return state if seen is None else {**state, "images_seen": seen}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_atomically(Path(path), lambda temporary: _save(checkpoint, temporary))


def _save(checkpoint: dict[str, Any], path: Path) -> None:
    """Call torch.save, whose writer raises various RuntimeErrors if the disk is full, as OSError."""
    try:
        torch.save(checkpoint, path)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise OSError(f"PyTorch's writer: {str(error).splitlines()[0]}") from error


class Checkpointing(Callback):
    """Write checkpoints/0000064000.ckpt (images seen) and the model files at the start, every `every_kimg`, at the end.

    The two newest checkpoints are kept: if the last one is damaged, resuming falls back to the one before. If the disk
    fills up, a warning is printed, the old files stay and training continues; only at the end it is an error. Model
    files are model.safetensors, and model-ema50kimg.safetensors for further averages. A training that resumes from its
    own end writes the missing ones.
    """

    def __init__(self, every_kimg: float) -> None:
        self.every = images_of_kimg("checkpoint_kimg", every_kimg)
        self.saved = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write missing files if no step is left: Lightning then calls no later hook."""
        assert isinstance(pl_module, DiffusionModule)
        if trainer.ckpt_path is not None and 0 <= trainer.max_steps <= pl_module.resumed_step:
            self._complete(trainer, pl_module)

    def _complete(self, trainer: Trainer, module: DiffusionModule) -> None:
        """Write the files of the loaded state that the run directory lacks."""
        root, averages = Path(trainer.default_root_dir), ema_of(trainer).whole()
        if not trainer.is_global_zero:
            return
        seen = module.offset + module.resumed_step * module.batch_size
        path = root / "checkpoints" / f"{seen:010d}.ckpt"
        try:
            if not path.exists():
                state = torch.load(str(trainer.ckpt_path), map_location="cpu", weights_only=True)
                state |= {"images_seen": seen, "run": module.description()}
                AtomicCheckpointIO().save_checkpoint(state, path)
        except OSError as error:
            _warn(path, error)
            raise _no_room(root) from error
        absent = [suffix for suffix in averages.averages if not _is_of(root / f"model{suffix}.safetensors", seen)]
        lacking = absent or not averages.has_snapshots(root, seen)
        if lacking and self._write_models(averages, module, root, seen, absent):
            raise _no_room(root)

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
            raise _no_room(Path(trainer.default_root_dir))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gradients that stay non-finite have not reached the weights, which are kept."""
        if isinstance(exception, NotFiniteError):
            self.save(trainer, pl_module)

    def save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write all files of this step, unless they exist."""
        assert isinstance(pl_module, DiffusionModule)
        root, seen = Path(trainer.default_root_dir), pl_module.images_seen
        if seen == self.saved:
            return
        failed = self._fails(trainer, root / "checkpoints" / f"{seen:010d}.ckpt")
        averages = ema_of(trainer).whole()
        if trainer.is_global_zero and not failed:
            failed = self._write_models(averages, pl_module, root, seen, averages.averages)
        if trainer.strategy.reduce_boolean_decision(failed, all=False):
            return
        self.saved = seen
        if trainer.is_global_zero:
            for old in list_checkpoints(root)[2:]:
                old.unlink(missing_ok=True)

    @staticmethod
    def _fails(trainer: Trainer, path: Path) -> bool:
        """Save the state to resume from, and return whether that failed. All processes meet at its end in any case."""
        try:
            trainer.save_checkpoint(path)
        except WRITING_FAILED as error:
            _warn(path, error)
            trainer.strategy.barrier("Trainer.save_checkpoint")
            return True
        return False

    @staticmethod
    def _write_models(
        averages: EMACallback, module: DiffusionModule, root: Path, seen: int, suffixes: Iterable[str]
    ) -> bool:
        """Write the model files of these suffixes and the snapshots, and return whether that failed."""
        try:
            for suffix in suffixes:
                ema = averages.averages[suffix]
                about = {"kimg": seen / 1000, "ema_half_life_kimg": ema.half_life_kimg}
                card = replace(module.card, training={**module.card.training, **about})
                save_model(root / f"model{suffix}.safetensors", ema.weights, card)
            averages.save_snapshots(root, seen)
        except WRITING_FAILED as error:
            _warn(root / "model.safetensors", error)
            return True
        return False


def _warn(path: Path, error: Exception) -> None:
    say_not_written(path, error, "the files before it are kept")


def _no_room(root: Path) -> InputError:
    before = list_checkpoints(root)
    then = f"continues from {before[0].name}" if before else "starts again"
    return InputError(
        f"checkpoint: the last one could not be written to {root}; make room there, then run the same command again: "
        f"it {then}"
    )


def _is_of(path: Path, images: int) -> bool:
    """Return whether a model file of so many images exists."""
    try:
        with safe_open(path, framework="pt") as file:
            return bool(json.loads(file.metadata()["training"])["kimg"] == images / 1000)
    except (OSError, SafetensorError, LookupError, TypeError, ValueError):
        return False


def checkpointing_of(trainer: Trainer) -> Checkpointing:
    """Find the trainer's only Checkpointing callback."""
    return the_callback(trainer, Checkpointing)
