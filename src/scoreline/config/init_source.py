"""`init=`: the source of a training's initial weights, and the config completed with the model that it describes."""

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from scoreline.config import validate
from scoreline.config.model_source import ModelSource, plain_model, read_source, with_values
from scoreline.config.run_names import AUTO
from scoreline.descriptions.annotations import refuse_wrong_types
from scoreline.errors import InputError
from scoreline.values import list_of_names

if TYPE_CHECKING:
    from scoreline.training.initial_weights import InitialWeights


@dataclass(frozen=True)
class InitSource:
    """The source of initial weights: a checkpoint of ours, of one of our trainings, or of another project.

    Attributes:
        source: the file or folder, and how to read it.
        skip: first parts of the names of parameters that stay random.
        model: the model of the training, as plain data, with which a file that does not describe itself is read.
    """

    source: ModelSource
    skip: tuple[str, ...]
    model: dict[str, Any] | None

    @cached_property
    def weights(self) -> "InitialWeights":
        """The weights, read once. A URL is downloaded, and another project's file imported into the cache.

        Raises:
            InputError: if they cannot be loaded.
        """
        word = self.source.word
        try:
            return replace(self._load(), skip=self.skip)
        except InputError as error:
            reason = str(error).removeprefix(f"init={word}: ").removeprefix("checkpoint=").removeprefix(f"{word}: ")
            raise InputError(f"init={word}: {reason}") from error

    def is_local(self) -> bool:
        """Return whether the weights can be read without a download or an import."""
        path, is_import = self.source.file()
        if not path.exists() or not is_import or self._is_state(path):
            return path.exists()
        return self._for(path).load_local() is not None

    def _load(self) -> "InitialWeights":
        from scoreline.foreign.conversion import is_url
        from scoreline.storage.downloads import fetch
        from scoreline.training.initial_weights import of_model, of_training_state

        word, (path, is_import) = self.source.word, self.source.file()
        if is_url(word):
            path = fetch(word, sha256=self.source.sha256)
        if is_import and self._is_state(path):
            return of_training_state(word, path, self.source.trust)
        source = self._for(path) if is_import else self.source
        return of_model(word, source.load(), is_import)

    def _is_state(self, path: Path) -> bool:
        from scoreline.training.initial_weights import is_training_state

        return self.source.family is None and path.is_file() and is_training_state(path)

    def _for(self, path: Path) -> ModelSource:
        """Return the source of another project's file, with the model if the file does not describe its own."""
        from scoreline.foreign.families import DESCRIBED, content_of, family_of

        family = self.source.family or family_of(path, content_of(path, None, self.source.allow))
        return self.source if family in DESCRIBED else replace(self.source, model=self.model)


def read_init(cfg: DictConfig) -> InitSource | None:
    """Read `init` of the config of train.py, with `import` and `trust`; None for random weights.

    Raises:
        InputError: for a value that is no checkpoint, parts to skip without one, or a state to resume beside it.
    """
    node = cfg.init
    if not isinstance(node, DictConfig):
        raise InputError(f"init={node}: a file gives it as init.checkpoint, beside init.skip; write it so")
    skip = list_of_names("init.skip", node.skip)
    if node.checkpoint is None:
        if skip:
            raise InputError(f"init.skip={list(skip)}: leaves out parameters of a checkpoint; give init=, too")
        return None
    if str(cfg.resume) not in AUTO["resume"]:
        raise InputError(
            f"init={node.checkpoint}: starts a new training, and resume={cfg.resume} continues one; give one of them"
        )
    validate.refuse_absent_checkpoint(node.checkpoint, "init")
    own = plain_model(cfg) if has_network(cfg) else None
    return InitSource(replace(read_source(cfg, "init"), model=None), skip, own)


def has_network(cfg: DictConfig) -> bool:
    """Return whether a config of train.py describes its network itself, rather than by the checkpoint of `init`."""
    return OmegaConf.select(cfg, "model.network._target_") is not None


def with_model_of(cfg: DictConfig, init: InitSource | None) -> DictConfig:
    """Return a config whose model is described: for `model=null`, as the checkpoint of `init` describes it.

    Keys of `model` that are given beside `model=null` count.

    Raises:
        InputError: without `init`, or if its file describes no model.
    """
    if has_network(cfg):
        return cfg
    if init is None:
        raise InputError("model=null: reads the model from init=CHECKPOINT; give that, or a choice of conf/model")
    model = copy.deepcopy(init.weights.model)
    if model is None:
        raise InputError(
            f"init={init.source.word}: does not describe its model; give the model= that it was trained as"
        )
    if model["parameterisation"].get("noise_schedule") == model["noise_schedule"]:
        model["parameterisation"]["noise_schedule"] = "${model.noise_schedule}"
    whole = with_values(cfg, model=OmegaConf.merge(model, cfg.model or {}))
    refuse_wrong_types(OmegaConf.to_container(whole, resolve=False))
    return whole
