"""`validation.dataset=`: the images outside a training on which its loss is measured."""

from typing import TYPE_CHECKING

from omegaconf import DictConfig

from scoreline.config.compose import build_object
from scoreline.config.model_source import with_values
from scoreline.errors import InputError

if TYPE_CHECKING:
    from scoreline.datasets.base import ImageDataset

KEY = "validation.dataset"


def heldout_images(cfg: DictConfig, training: "ImageDataset") -> "ImageDataset | None":
    """Open the held-out images that a config names: another split of the data set, a path, a description, or none.

    `auto` is the `heldout_split` of the data set if the training takes its split `train`, else none: then a split that
    we choose may be among the training images.

    Args:
        cfg: the config of train.py.
        training: the training images.

    Raises:
        InputError: for images that cannot be opened, or do not serve this training.
    """
    given = cfg.validation.dataset
    if given in (None, "none"):
        return None
    if given == "auto":
        if not training.heldout_split or cfg.dataset.get("split") != "train":
            return None
        heldout: ImageDataset = build_object(with_values(cfg.dataset, split=training.heldout_split))
    else:
        heldout = build_object(given) if isinstance(given, DictConfig) else _at(str(given), training)
    _check(heldout, training, int(cfg.model.network.get("num_classes", 0)) > 0)
    return heldout


def _at(path: str, training: "ImageDataset") -> "ImageDataset":
    from scoreline.datasets.anywhere import images

    try:
        return images(path, training.shape[-1], "auto" if training.num_classes else "none")
    except InputError as error:
        raise InputError(f"{KEY}={path}: {str(error).removeprefix(f'dataset.path={path}: ')}") from error


def _check(heldout: "ImageDataset", training: "ImageDataset", conditional: bool) -> None:
    """Raise InputError for images of another shape or other classes, too few of them, or those of the training."""
    if tuple(heldout.shape) != tuple(training.shape):
        reason = f"images of shape {list(heldout.shape)}; give such of {list(training.shape)}, as {training.name} has"
    elif conditional and heldout.num_classes != training.num_classes:
        reason = f"{heldout.num_classes} classes; give images of the {training.num_classes} of {training.name}"
    elif len(heldout) < 2:
        reason = f"{len(heldout)} images; give two at least"
    elif len(heldout) == len(training) and heldout.digest == training.digest:
        reason = "the images of the training; give others, or none"
    else:
        return
    raise InputError(f"{KEY}={heldout.name}: {reason}")
