"""Classes that moved: configs that name them by a former path go on working, and runs keep their identity."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

MOVED = {
    "scoreline.augmentation.Augmentation": "scoreline.training.augmentation.Augmentation",
    "scoreline.augmentation.unaugmented": "scoreline.training.augmentation.unaugmented",
    "scoreline.calibration.learned_tableau.LearnedTableau": (
        "scoreline.calibration.learned.learned_tableau.LearnedTableau"
    ),
    "scoreline.calibration.score_norm.load_scale": "scoreline.calibration.score_scale.load_scale",
    "scoreline.schedules.densities.LogNormal": "scoreline.objective.LogNormal",
    "scoreline.schedules.densities.UniformTime": "scoreline.objective.UniformTime",
    "scoreline.schedules.densities.uniform_iddpm": "scoreline.objective.uniform_iddpm",
    "scoreline.schedules.densities.uniform_index": "scoreline.objective.uniform_index",
    "scoreline.training.checkpoint.Checkpointing": "scoreline.training.training_state.Checkpointing",
    "scoreline.training.csv_file.CsvFile": "scoreline.training.training_log.CsvFile",
    "scoreline.training.ema.EMACallback": "scoreline.training.ema_callback.EMACallback",
    "scoreline.training.launch.DataParallel": "scoreline.training.strategies.DataParallel",
    "scoreline.training.progress.TrainingProgress": "scoreline.training.training_log.TrainingProgress",
    "scoreline.training.sharded.Sharded": "scoreline.training.strategies.Sharded",
}
"""Former name (up to 0.8.0) -> today's name of what a config may give as `_target_`."""

FORMER = {new: old for old, new in MOVED.items()}


def current(cfg: DictConfig) -> DictConfig:
    """Return the config with today's names in place of former ones; the config itself if it has none of these."""
    raw = OmegaConf.to_container(cfg, resolve=False)
    renamed = _rename(raw, MOVED)
    if renamed == raw:
        return cfg
    result: DictConfig = OmegaConf.create(renamed)
    OmegaConf.set_struct(result, OmegaConf.is_struct(cfg))
    return result


def former(config: Any) -> Any:
    """Plain containers with the names of 0.8.0, from which digests of runs are computed."""
    return _rename(config, FORMER)


def _rename(node: Any, names: dict[str, str]) -> Any:
    """Return a copy of nested dictionaries and lists whose `_target_` values are replaced by `names`."""
    if isinstance(node, dict):
        return {
            key: names.get(value, value) if key == "_target_" and isinstance(value, str) else _rename(value, names)
            for key, value in node.items()
        }
    return [_rename(value, names) for value in node] if isinstance(node, list) else node
