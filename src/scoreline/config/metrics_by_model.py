"""`metrics=auto`: the metrics that suit the images of the checkpoint, chosen before a run gets its identity."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from scoreline.storage.tensor_files import read_metadata

DIGITS, EMOJI, OTHER = "digits", "emoji", "other"
"""Keys of conf/metrics/auto.yaml."""


def with_metrics(cfg: DictConfig, path: Path) -> DictConfig:
    """Return the config with the metrics of its model in place of those that `metrics=auto` chooses among.

    Args:
        cfg: a composed config; it is returned itself unless it has `metrics=auto`.
        path: the model file of its checkpoint.
    """
    metrics = cfg.get("metrics")
    if not isinstance(metrics, DictConfig) or OTHER not in metrics:
        return cfg
    copied = copy.deepcopy(cfg)
    OmegaConf.update(copied, "metrics", copied.metrics[chosen(read_metadata(path))], merge=False)
    return copied


def chosen(metadata: dict[str, str]) -> str:
    """Return the key of the metrics for a model, from the metadata of its file; `OTHER` if they do not tell."""
    try:
        shape, data, model = (json.loads(metadata[key]) for key in ("shape", "data", "model"))
        return OTHER if "decoder" in model else by_images(shape, str(data.get("name", "")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return OTHER


def by_images(shape: Sequence[int], name: str) -> str:
    """Return the key of the metrics for a model of images, from their shape and the name of the data set."""
    if list(shape) == [1, 8, 8]:
        return DIGITS
    return EMOJI if list(shape) == [3, 32, 32] and name.startswith("emoji") else OTHER


def metrics_node(cfg: DictConfig, shape: Sequence[int], name: str) -> DictConfig:
    """Return the description of the metrics of a config, by the images of a training where it is `metrics=auto`."""
    node: DictConfig = cfg.metrics
    return node[by_images(shape, name)] if OTHER in node else node
