"""`checkpoint=`: the source of a job's model, and the config completed with the description of that model."""

import copy
import math
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from scoreline.config import run_names, validate
from scoreline.errors import InputError
from scoreline.numerics import NUMERICS_VERSION
from scoreline.runtime import distributed
from scoreline.storage.bounded_reading import content
from scoreline.storage.files import cache_folder, write_atomically
from scoreline.values import image_size, list_of_names

if TYPE_CHECKING:
    from torch import Tensor

    from scoreline.checkpoints import Checkpoint
    from scoreline.foreign.conversion import Options


@dataclass(frozen=True)
class ModelSource:
    """The source of a model: a file of this project, or another project's checkpoint, which is imported into the cache.

    Attributes:
        word: `checkpoint` as the user wrote it: a shipped model's name, a path or a URL.
        trust: further packages from which the network may be imported.
        model: a description for files that do not describe themselves, or None.
        family: the project of a foreign file; None detects it.
        weights: which weights of a foreign file to use, ema or raw.
        allow: class names that the pickle of a foreign file may hold, as inert records.
        sha256: expected SHA-256 of a foreign file, or None.
        size: (H, W) of the images of a foreign folder that does not say it, or None.
        key: the key that names the source, for messages.
    """

    word: str
    trust: tuple[str, ...]
    model: dict[str, Any] | None
    family: str | None
    weights: str
    allow: tuple[str, ...]
    sha256: str | None
    size: tuple[int, int] | None
    key: str = "checkpoint"

    def load(self) -> "Checkpoint":
        """Return the model, on the CPU; import another project's checkpoint first. A URL is downloaded.

        Raises:
            InputError: if the model cannot be loaded, or `model` is given for a file that describes itself.
        """
        from scoreline.checkpoints import load_model
        from scoreline.foreign.conversion import cached_file, is_url

        validate.refuse_absent_checkpoint(self.word, self.key)
        path, is_import = self.file()
        if not is_import:
            if self.model is not None:
                raise InputError(f"model: {path} describes itself; leave the key out")
            return load_model(path, self.trust)
        source = self.word if is_url(self.word) else str(path)
        try:
            target = cached_file(source, self._options())
        except InputError as error:
            raise InputError(f"{self.key}={self.word}: {str(error).removeprefix(f'{source}: ')}") from error
        print(f"{self.key}={self.word}: imported as {target}", file=sys.stderr)
        return load_model(target, self.trust)

    def load_local(self) -> "Checkpoint | None":
        """Return the model, or None if it would have to be downloaded or imported first; for forecasts.

        Raises:
            InputError: if the file is damaged.
        """
        from scoreline.checkpoints import load_model
        from scoreline.foreign.conversion import cached_place

        path, is_import = self.file()
        if is_import and path.exists():
            path = cached_place(path, self._options())
        return load_model(path, self.trust) if path.is_file() else None

    def file(self) -> tuple[Path, bool]:
        """Return the path of the checkpoint, for a URL that in the cache, and whether it needs to be imported."""
        from scoreline.foreign.conversion import is_url
        from scoreline.foreign.families import is_diffusers, is_foreign
        from scoreline.storage.downloads import cached_path

        if is_url(self.word):
            return cached_path(self.word), True
        path = Path(self.word) if is_diffusers(Path(self.word)) else run_names.model_path(self.word)
        is_ours = path.suffix == ".safetensors" and not is_foreign(path)
        return path, path.exists() and not is_ours

    def _options(self) -> "Options":
        from scoreline.foreign.conversion import Options

        return Options(self.family, self.model, self.weights, self.allow, self.sha256, self.size)


def read_source(cfg: DictConfig, key: str = "checkpoint") -> ModelSource:
    """Read the source that `checkpoint`, `trust`, `model` and `import` of a composed config describe.

    Args:
        cfg: the config.
        key: `checkpoint`, or `init` of train.py.

    Raises:
        InputError: if `import` has no keys, or naming a key that is no list of names.
    """
    options = cfg["import"]
    if not isinstance(options, DictConfig):
        raise InputError(f"import={options}: has the keys import.from, import.weights, ..; give these, or drop it")
    size = options.get("size")  # a configuration of an earlier version lacks it
    return ModelSource(
        word=str(cfg.init.checkpoint if key == "init" else cfg.checkpoint),
        trust=list_of_names("trust", cfg.trust),
        model=plain_model(cfg),
        family=options["from"],
        weights=options.weights,
        allow=list_of_names("import.allow", options.allow),
        sha256=options.sha256,
        size=image_size("import.size", list(size) if isinstance(size, ListConfig) else size),
        key=key,
    )


def plain_model(cfg: DictConfig) -> dict[str, Any] | None:
    """Return `model` as plain data with all interpolations resolved, or None if no model is chosen."""
    if cfg.model is None:
        return None
    whole = OmegaConf.to_container(OmegaConf.create({"model": cfg.model}), resolve=True)
    assert isinstance(whole, dict)
    return dict(whole["model"])


def with_model(cfg: DictConfig, checkpoint: "Checkpoint", **values: Any) -> DictConfig:
    """Return a copy of a composed config that describes the loaded model, to which solvers and schedules refer.

    `model` becomes the description in the checkpoint (which loading has verified), `digest` its digest, and
    `record=auto` the path of its record.

    Args:
        cfg: the composed config; it stays unchanged.
        checkpoint: the model.
        values: further keys to set, such as `identity`.
    """
    model = checkpoint.card.model
    described = {name: model[name] for name in ("network", "noise_schedule", "parameterisation")}
    record = {}
    if cfg.get("record") is not None:
        record["record"] = str(run_names.record_path(cfg.record, checkpoint.path))
    return with_values(cfg, model=described, digest=checkpoint.digest, **record, **values)


def with_sigma_data(cfg: DictConfig, checkpoint: "Checkpoint") -> DictConfig:
    """Return a copy of a config with the model's number at `sigma_data`; the config itself if that is not needed.

    It is needed if an object of the config reads the key and the user gave no number. A model of which no number is
    known is measured, on the device of its weights, and the cache keeps the result.

    Args:
        cfg: a config with a key `sigma_data`.
        checkpoint: the model.

    Raises:
        InputError: if the user's value is no positive number, or the model cannot be measured.
    """
    if not lacks_sigma_data(cfg):
        return cfg
    return with_values(cfg, sigma_data=known_sigma_data(checkpoint) or _measured_sigma_data(checkpoint))


def lacks_sigma_data(cfg: DictConfig) -> bool:
    """Return whether an object of a config reads `sigma_data` and the user gave no number.

    Raises:
        InputError: if the user's value is no positive number.
    """
    return validate.sigma_data(cfg) is None and "${sigma_data}" in str(OmegaConf.to_container(cfg, resolve=False))


LARGEST = 100
"""Largest file of one number, in bytes."""


def known_sigma_data(checkpoint: "Checkpoint") -> float | None:
    """Return the number in the checkpoint's card, else the one that an earlier start measured, or None."""
    in_card = checkpoint.card.data.get("sigma_data")
    if in_card:
        return float(in_card)
    try:
        number = float(content(_measurement(checkpoint), LARGEST))
    except (OSError, ValueError):
        return None
    return number if 0 < number < math.inf else None


def _measurement(checkpoint: "Checkpoint") -> Path:
    """Return the file in the cache that keeps a model's measured number."""
    return cache_folder("sigma_data") / f"{checkpoint.digest}-{NUMERICS_VERSION}.txt"


def _measured_sigma_data(checkpoint: "Checkpoint") -> float:
    from scoreline.calibration.data_deviation import IMAGES, NFE, measure_sigma_data
    from scoreline.runtime.progress import ImageProgress

    card, denoiser = checkpoint.card, checkpoint.denoiser
    with ImageProgress(IMAGES, "measuring sigma_data", enabled=distributed.current().first) as progress:

        def denoise(x: "Tensor", sigma: "Tensor", **condition: "Tensor") -> "Tensor":
            estimate: Tensor = denoiser(x, sigma, **condition)
            progress.update(len(x) / NFE)
            return estimate

        number = measure_sigma_data(
            denoise,
            card.shape,
            sigma_max=checkpoint.noise_schedule.sigma_max,
            num_classes=card.num_classes,
            device=denoiser.device,
        )
    with suppress(OSError):  # of a cache that cannot be written
        write_atomically(_measurement(checkpoint), lambda path: path.write_text(f"{number}\n"))
    return number


def with_values(cfg: DictConfig, **values: Any) -> DictConfig:
    """Return a copy of a config with other values at some of its keys, given by their dotted names."""
    copied = copy.deepcopy(cfg)
    for key, value in values.items():
        OmegaConf.update(copied, key, value, merge=False, force_add=True)
    return copied
