"""Resuming: the state that a training starts from, and the rules for what must match it."""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from scoreline.errors import InputError
from scoreline.safe_pickle import torch_files
from scoreline.training.gradients import moments_of, names_of
from scoreline.training.module import DiffusionModule
from scoreline.values import is_whole

Shapes = dict[str, tuple[int, ...]]

FREE = ("model.network.checkpointing",)
"""Settings that may differ: they change how a network computes, not its values."""

ABSENT = "nothing"
"""Stands for the value of a key that one side lacks."""


@dataclass(frozen=True)
class Start:
    """The state that a training starts from; by default there is none.

    The rules of resuming: network, parameterisation, noise schedule, objective, target and the class of the optimiser
    must be those of the state; the optimiser's numbers, batch size, seed and the rest are those of the new command; a
    run must keep its own data, another run may have others.

    Attributes:
        path: its file.
        own: whether the run directory wrote it, so the run is the same.
        step: optimiser steps before it.
        images: images before it.
        run: `DiffusionModule.description` in the file; empty in files of version 0.7 and before.
        shapes: of its weights.
        moments: names in its optimiser's state of a parameter, as `exp_avg`; empty before the first step.
        stopped: whether a callback ended the training there, because of what was measured.
    """

    path: Path | None = None
    own: bool = True
    step: int = 0
    images: int = 0
    run: dict[str, Any] = field(default_factory=dict)
    shapes: Shapes = field(default_factory=dict)
    moments: frozenset[str] = frozenset()
    stopped: bool = False

    def steps_until(self, images: int, batch_size: int) -> int:
        """Return the number of the last step of a training of so many images in all; a stopped one has no further."""
        if self.own and self.stopped:
            return self.step
        return self.step + max(0, -(-(images - self.images) // batch_size))

    def earlier(self) -> list[dict[str, Any]]:
        """Return the trainings of other runs that this one continues, each with its kimg, data and settings."""
        training = self.run.get("training", {})
        before = list(training.get("earlier", []))
        if self.own:
            return before
        how = {key: value for key, value in training.items() if key != "earlier"}
        return [*before, {**how, "kimg": self.images / 1000, **({"data": self.run["data"]} if self.run else {})}]

    def origin(self) -> dict[str, Any]:
        """Return what the card of the training keeps of its history: `earlier`, and `init` of the run's own start."""
        earlier, init = self.earlier(), self.run.get("training", {}).get("init") if self.own else None
        return {key: value for key, value in (("earlier", earlier), ("init", init)) if value}

    def check(self, module: DiffusionModule) -> None:
        """Compare the state with the module that is to continue it; neither is changed.

        Raises:
            InputError: naming the key, if network, parameterisation, noise schedule, objective, target or the kind of
                optimiser differ, or if the run's own data have changed.
        """
        if self.path is None:
            return
        self._check_settings(module.settings)
        self._check_weights({name: tuple(value.shape) for name, value in module.state_dict().items()})
        moments = moments_of(module.optimiser) if self.moments else None
        if moments is not None and moments != self.moments:
            raise InputError(
                f"optimiser: keeps {_listed(moments)} of a parameter, {self.path} holds {_listed(self.moments)}; "
                f"{self._remedy('the optimiser that it was trained with')}"
            )
        if self.own and self._data_differ(module):
            raise InputError(
                f"dataset: {self.path} was trained on other data ({self._data()}, now {_data(module.card.data)}); "
                f"restore them, or choose another directory, in which resume={self.path} continues with the new ones"
            )

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        if not self.run.get("settings"):
            return
        former, own = (dict(_flat(it)) for it in (self.run["settings"], settings))
        for key in dict.fromkeys([*former, *own]):
            now, was = own.get(key, ABSENT), former.get(key, ABSENT)
            if not _alike(key, now, was):
                raise InputError(f"{key}={now}: {self.path} was trained with {was}; {self._remedy(f'{key}={was}')}")

    def _check_weights(self, shapes: Shapes) -> None:
        for name in dict.fromkeys([*self.shapes, *shapes]):
            now, was = shapes.get(name, ABSENT), self.shapes.get(name, ABSENT)
            if now != was:
                raise InputError(
                    f"model.network: {name} is {now}, in {self.path} it is {was}; "
                    f"{self._remedy('the network that it was trained with')}"
                )

    def _remedy(self, setting: str) -> str:
        return f"give {setting}, or {'choose another directory' if self.own else 'leave out resume='}"

    def _data_differ(self, module: DiffusionModule) -> bool:
        former, own = (data.get("sha256") for data in (self.run.get("data", {}), module.card.data))
        return None not in (former, own) and former != own

    def _data(self) -> str:
        return _data(self.run["data"])

    def note(self, module: DiffusionModule, duration: int) -> str:
        """Return lines to print before the training: other data, or no step left; empty if neither is so."""
        lines = []
        if self.path is not None and self._data_differ(module):
            lines.append(f"resume={self.path}: trained on {self._data()}, continues with {_data(module.card.data)}")
        if self.path is not None and self.own and self.stopped:
            lines.append(f"nothing left to train: {self.path} stopped early, at {self.images / 1000:g} kimg")
        elif self.path is not None and self.images >= duration:
            kimg = f"{self.images / 1000:g} kimg"
            lines.append(f"nothing left to train: {self.path} has {kimg}, duration_kimg={duration / 1000:g}")
        return "\n".join(lines)


INERT = ("collections.Counter",)
"""A class besides tensors that torch admits in a checkpoint; some learning-rate schedulers keep it."""


def list_checkpoints(root: Path) -> list[Path]:
    """List the files to resume from in a run directory, newest first."""
    return sorted((root / "checkpoints").glob("[0-9]*.ckpt"), reverse=True)


def loadable(path: Path) -> bool:
    """Return whether a checkpoint file can be read back whole; no code of the file runs.

    torch unpacks whatever a zip archive declares, and hashes and nests whatever a pickle asks for. Our own reader,
    which maps the file and bounds all of that, therefore comes first; torch then compares the checksums.
    """
    try:
        torch_files.read(path, INERT)
        return "state_dict" in torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        return False


def images_seen(checkpoint: dict[str, Any], path: Path) -> int | None:
    """Return the images before a checkpoint; None if neither it nor its name tells, and they are steps * batch_size."""
    if "images_seen" in checkpoint:
        known: int = checkpoint["images_seen"]
        return known
    step, named = int(checkpoint["global_step"]), re.fullmatch(r"\d{10}", path.stem)
    seen = int(path.stem) if named else None
    return seen if seen is not None and seen % max(step, 1) == 0 and (seen > 0) == (step > 0) else None


def resume_from(root: Path, resume: str, batch_size: int) -> Start:
    """Choose the state that a training starts from.

    Args:
        root: the run directory.
        resume: `auto` takes the newest loadable file of the run directory; `never` insists on an empty directory;
            anything else is the path of a file, which counts until the run directory has checkpoints of its own.
        batch_size: images per step for a file that does not tell.

    Raises:
        InputError: for a file that is missing, damaged or no state of a training, and for `never` if a run is there.
    """
    present = list_checkpoints(root)
    if resume == "never" and present:
        raise InputError(f"resume=never: {root} holds a run already; use resume=auto or another name=")
    if present:
        return read_start(_newest(present), True, batch_size)
    if resume in ("auto", "never"):
        return Start()
    _refuse_models(Path(resume))
    if not os.path.isfile(resume) or not loadable(Path(resume)):
        raise InputError(f"resume={resume}: no loadable checkpoint there; use resume=auto or the path of a .ckpt file")
    return read_start(Path(resume), False, batch_size)


def _newest(present: list[Path]) -> Path:
    """Return the newest loadable file; print the names of those that are damaged."""
    for path in present:
        if loadable(path):
            return path
        print(f"{path}: damaged, passed over", file=sys.stderr)
    raise InputError(f"{present[0].parent}: no checkpoint can be read; restore one, or delete them to start again")


def _refuse_models(path: Path) -> None:
    """Raise InputError for a model file or a run directory, naming a checkpoint beside it."""
    folder = os.path.isdir(path)
    if path.suffix != ".safetensors" and not folder:
        return
    states = list_checkpoints(path if folder else path.parent)
    what = "a directory" if folder else "it holds averaged weights only, not the state of a training"
    raise InputError(
        f"resume={path}: {what}; use {f'resume={states[0]}' if states else 'a file of checkpoints/'}, or init={path}, "
        "which starts a new training from its weights"
    )


def read_start(path: Path, own: bool, batch_size: int) -> Start:
    """Read the description of a checkpoint; its tensors stay in the file.

    Raises:
        InputError: if it is no state of a training of ours.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        step, seen = _count(state["global_step"]), images_seen(state, path)
        shapes = {name: tuple(value.shape) for name, value in state["state_dict"].items()}
        moments = [names_of(values) for values in state["optimizer_states"][0]["state"].values()] or [frozenset()]
        assert state["callbacks"]["EMACallback"]["weights"].keys()
        images = step * batch_size if seen is None else _count(seen)
        stopped = bool(state.get("stopped", False))
        return Start(path, own, step, images, description_of(state), shapes, moments[0], stopped)
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"resume={path}: no state of a training by train.py ({error!r:.80})") from error


def _count(value: Any) -> int:
    if not is_whole(value, 0):
        raise ValueError(f"a count of {value!r:.20}")
    return value


def description_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of the run in a checkpoint; empty in those of version 0.7 and before.

    Raises:
        ValueError, TypeError, RecursionError: unless it is JSON, of the types that we rely on.
    """
    plain = json.loads(json.dumps(state.get("run", {})))
    parts = [plain, *(plain.get(name, {}) for name in ("settings", "data", "training"))]
    if not all(isinstance(part, dict) for part in parts) or not isinstance(parts[3].get("earlier", []), list):
        raise ValueError("its description of the run is damaged")
    return dict(plain)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield leaves by dotted key, as the command line names them."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name.removeprefix("objective.") if name.startswith("objective.target.") else name, value


def _alike(key: str, now: Any, was: Any) -> bool:
    """Return whether a setting may continue: optimiser's numbers are free, and a class may move within its package."""
    if key in FREE or (key.startswith("optimiser.") and not key.endswith("._target_")):
        return True
    if key.endswith("_target_") and isinstance(now, str) and isinstance(was, str):
        one, other = (name.split(".") for name in (now, was))
        return (one[0], one[-1]) == (other[0], other[-1])
    return bool(now == was)


def _data(data: Mapping[str, Any]) -> str:
    return f"{data.get('name')} {str(data.get('sha256'))[:12]}"


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
