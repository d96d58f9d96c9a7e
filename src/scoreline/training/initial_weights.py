"""Initial weights of a training from a checkpoint: which tensors fit where, and what the new model's card records."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.checkpoints import Checkpoint, sizes_unlike
from scoreline.descriptions.skeletons import build
from scoreline.descriptions.specs import Spec
from scoreline.errors import InputError, did_you_mean
from scoreline.parameterisations import Parameterisation
from scoreline.safe_pickle import torch_files
from scoreline.schedules.base import NoiseSchedule
from scoreline.storage.files import sha256
from scoreline.training.resume import INERT, description_of

EMA, NETWORK = "EMACallback", "denoiser.network."
"""The callback in a checkpoint of a training, and the beginning of the names of the network's weights there."""

KINDS = {"network": nn.Module, "noise_schedule": NoiseSchedule, "parameterisation": Parameterisation}

SHOWN, MOST_SKIPPED = 3, 6
"""Parameters that a message names, and the most parts of a network that it proposes to leave random."""

SUMMARY = (
    *("kimg", "ema_half_life_kimg", "command", "seed", "target", "batch_size", "config_sha256", "code_version"),
    *("family", "file", "sha256", "weights", "imported", "init"),
)
"""What the record keeps of the training of a checkpoint, and of an import in it."""

WITHOUT_SHAPE = ("dropout", "label_dropout", "checkpointing")
"""Arguments of networks on which no weight's shape depends."""

WORDS = {
    **{"num_classes": "{} classes", "num_class_embeds": "{} classes"},
    **{"channels": "{} channels", "in_channels": "{} channels"},
    **{"resolution": "{0}x{0} pixels", "sample_size": "{0}x{0} pixels"},
}
"""Arguments of networks that data have too, in words."""


@dataclass(frozen=True)
class InitialWeights:
    """The weights of a checkpoint, from which a new training starts at step 0.

    Attributes:
        word: `init` as the user wrote it.
        model: descriptions of network, noise schedule and parameterisation; None for a file without them.
        weights: state dict of the network; the raw weights where the file has both.
        averages: the averages of a training by name, `weights` the main one; empty for a file of one set of weights,
            from which the averages start too.
        record: the source, for the card.
        parameterisation: that of the model as text; empty for a file without description.
        skip: first parts of the names of parameters that stay random.
    """

    word: str
    model: Spec | None
    weights: Mapping[str, Tensor]
    averages: Mapping[str, Mapping[str, Tensor]]
    record: dict[str, Any]
    parameterisation: str = ""
    skip: Sequence[str] = ()

    def load(self, network: nn.Module, described: Spec) -> dict[str, Any]:
        """Copy the weights into a network, but for those of `skip`.

        Args:
            network: the network.
            described: its description.

        Returns:
            The record for the card, with the names of the weights that stayed random.

        Raises:
            InputError: for a part of `skip` that names no parameter, or naming the parameters that do not fit.
        """
        own = network.state_dict()
        self._refuse_useless_skips([*own, *self.weights])
        self._refuse_unfit(own, described)
        with torch.no_grad():
            for name in self._kept(own):
                own[name].copy_(self.weights[name])
        return {**self.record, "skipped": [name for name in own if self._skips(name)]}

    def state_of_averages(self, network: nn.Module) -> dict[str, Any] | None:
        """Return the state of the EMA callback at step 0; None if averages start from the network as it is.

        Args:
            network: the network after `load`, of which the averages take the weights that stayed random.
        """
        if not self.averages:
            return None
        own = network.state_dict()
        whole = {
            name: {key: average[key].to(own[key].dtype) if not self._skips(key) else own[key].clone() for key in own}
            for name, average in self.averages.items()
        }
        return {"weights": whole.pop("weights"), "step": 0, "averages": whole}

    def refuse_other_data(self, described: Spec, shape: Sequence[int], classes: int) -> None:
        """Refuse images that the network does not take, where it is the checkpoint's, or where the checkpoint's does.

        Args:
            described: the network of the training.
            shape: (C, H, W) of the images.
            classes: their classes.

        Raises:
            InputError: naming the keys to set, and the parts of the network that change with them.
        """
        theirs = (self.model or {}).get("network", {})
        unlike = sizes_unlike(described, shape, classes)
        if unlike and theirs and not sizes_unlike(theirs, shape, classes):
            key = next(iter(unlike))
            raise InputError(
                f"model.network.{key}={described[key]}: the data have {unlike[key] or 0}, which the network of "
                f"init={self.word} takes; use that by model=null"
            )
        unlike = {key: size for key, size in unlike.items() if theirs.get(key) == described[key]}
        if not unlike:
            return
        shown = [key for key in unlike if key in WORDS]
        has, wants = (_and(WORDS[key].format(sizes[key] or 0) for key in shown) for sizes in (described, unlike))
        keys = " ".join(f"model.network.{key}={'null' if size is None else size}" for key, size in unlike.items())
        changed = self._changed_parts({**described, **unlike})
        skip = f" and init.skip=[{','.join(changed)}]" if changed else ""
        raise InputError(f"init={self.word}: its network has {has}, the data {wants}: set {keys}{skip}")

    def other_parameterisation(self, own: Parameterisation) -> str:
        """Return a line about a parameterisation that differs from the checkpoint's; empty if they agree."""
        if self.parameterisation in ("", repr(own)):
            return ""
        return f"init={self.word}: its weights are of {self.parameterisation}, the model here is {own!r}"

    def _skips(self, name: str) -> bool:
        return any(name == part or name.startswith(f"{part}.") for part in self.skip)

    def _kept(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if not self._skips(name)]

    def _refuse_useless_skips(self, names: Collection[str]) -> None:
        for part in self.skip:
            if not any(name == part or name.startswith(f"{part}.") for name in names):
                parts = sorted({name.partition(".")[0] for name in names})
                raise InputError(f"init.skip=[{part}]: no parameter has that name{did_you_mean(part, parts)}")

    def _refuse_unfit(self, own: Mapping[str, Tensor], described: Spec) -> None:
        problems = self._problems({name: tuple(value.shape) for name, value in own.items()})
        if not problems:
            return
        shown = ", ".join(list(problems.values())[:SHOWN])
        more = f", and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        parts = _parts(problems)
        if len(parts) <= MOST_SKIPPED and len(problems) < len(own):
            remedy = f"use init.skip=[{','.join([*self.skip, *parts])}] to leave these random"
        elif self.model is not None:
            remedy = "use the checkpoint's network by model=null, without other keys of model.network"
        else:
            remedy = "give the model= that it was trained as"
        raise InputError(f"init={self.word}: {self._cause(described)}{shown}{more}; {remedy}")

    def _problems(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
        """Return the parameters that differ, are missing or have no place, each with a sentence, in order."""
        problems = {}
        for name in self._kept(dict.fromkeys([*shapes, *self.weights])):
            here, there = shapes.get(name), self.weights.get(name)
            if here is None:
                problems[name] = f"{name} has no place in this network"
            elif there is None:
                problems[name] = f"{name} is missing in it"
            elif here != tuple(there.shape):
                problems[name] = f"{name} is {tuple(there.shape)} in it, {here} here"
        return problems

    def _cause(self, described: Spec) -> str:
        """Return the arguments in which the two networks differ, in words, with a colon; empty if none is known."""
        theirs = (self.model or {}).get("network")
        if theirs is None:
            return ""
        if theirs["_target_"] != described["_target_"]:
            names = (spec["_target_"].rpartition(".")[2] for spec in (theirs, described))
            return "its network is a {}, this one a {}: ".format(*names)
        keys = [key for key in theirs if key in described and key not in WITHOUT_SHAPE]
        keys = [key for key in keys if theirs[key] != described[key]]
        has, wants = (
            _and(WORDS.get(key, f"{key}={{}}").format(spec[key]) for key in keys) for spec in (theirs, described)
        )
        return f"its network has {has}, this one {wants}: " if keys else ""

    def _changed_parts(self, network: Spec) -> list[str]:
        """Return the parts in which a network differs from the checkpoint's; empty if it cannot be built."""
        try:
            state = build(network, nn.Module, _sizes(self.weights), (), hollow=True).state_dict()
        except (InputError, RuntimeError):  # of arguments that do not go together, or a class that needs its weights
            return []
        return _parts(self._problems({name: tuple(value.shape) for name, value in state.items()}))


def _parts(names: Iterable[str]) -> list[str]:
    """Return the layers of these parameters, each once."""
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in weights.items()}


def _and(words: Iterable[str]) -> str:
    return " and ".join(words)


def of_model(word: str, checkpoint: Checkpoint, imported: bool) -> InitialWeights:
    """Return the weights of a loaded model.

    Args:
        word: `init` as the user wrote it.
        checkpoint: the model.
        imported: whether it was imported, so that the digest is that of the file or folder of the other project.

    Raises:
        InputError: for a model of latents.
    """
    card = checkpoint.card
    if checkpoint.decoder is not None:
        raise InputError("is a model of latents, and a training here is of images; give a model of images")
    digest = card.training["imported"]["sha256"] if imported else checkpoint.digest
    record = _record(word, digest, card.data, card.training)
    denoiser = checkpoint.denoiser
    return InitialWeights(word, card.model, denoiser.network.state_dict(), {}, record, repr(denoiser.parameterisation))


def is_training_state(path: Path) -> bool:
    """Return whether a file is a checkpoint of a training by train.py; nothing in it runs."""
    try:
        tree = torch_files.read(path, INERT)
    except InputError:
        return False
    callbacks = tree.get("callbacks") if isinstance(tree, dict) else None
    return isinstance(callbacks, dict) and EMA in callbacks


def of_training_state(word: str, path: Path, trust: Sequence[str] = ()) -> InitialWeights:
    """Return the raw weights and the averages of a checkpoint of a training by train.py.

    Args:
        word: `init` as the user wrote it.
        path: the file.
        trust: packages outside scoreline whose networks it may name.

    Raises:
        InputError: if it is damaged, or describes a model that `specs.rebuild` refuses.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        weights = {
            name.removeprefix(NETWORK): value for name, value in state["state_dict"].items() if name.startswith(NETWORK)
        }
        kept = state["callbacks"][EMA]
        averages = {**kept.get("averages", {}), "weights": kept["weights"]}
        run, kimg = description_of(state), {"kimg": int(state["images_seen"]) / 1000} if "images_seen" in state else {}
        assert weights
        assert all(average.keys() == weights.keys() for average in averages.values())
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"no whole checkpoint of a training ({error!r:.80}); use an earlier one") from error
    for name, value in [*weights.items(), *averages["weights"].items()]:
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(f"weight {name} is not finite; use an earlier checkpoint")
    record = _record(word, sha256(path), run.get("data", {}), {**run.get("training", {}), **kimg})
    model, parameterisation = _model(run, weights, trust)
    return InitialWeights(word, model, weights, averages, record, parameterisation)


def _model(run: Mapping[str, Any], weights: Mapping[str, Tensor], trust: Sequence[str]) -> tuple[Spec | None, str]:
    """Return the description of the model in a checkpoint, and its parameterisation as text.

    Raises:
        InputError: if it names other code than that of networks, schedules and parameterisations, or a larger network.
    """
    model = run.get("settings", {}).get("model")
    if model is None:
        return None, ""
    described = {part: model[part] for part in KINDS}
    built = {part: build(described[part], kind, _sizes(weights), tuple(trust)) for part, kind in KINDS.items()}
    return described, repr(built["parameterisation"])


def _record(word: str, digest: str, data: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the source for the card: its name without the folder, its digest, its data and training in short."""
    known = {key: data[key] for key in ("name", "sha256", "images", "licence") if key in data}
    short = {key: training[key] for key in SUMMARY if key in training}
    if isinstance(imported := short.get("imported"), dict):
        short["imported"] = {key: imported[key] for key in SUMMARY if key in imported}
    name = word if "://" in word else Path(word).resolve().name
    return {"checkpoint": name, "sha256": digest, "data": known, "training": short}
