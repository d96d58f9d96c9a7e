"""Studies by Optuna: `hydra/sweeper=optuna`, its plugin, and the storage from which a killed study resumes."""

import logging
import math
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from scoreline.errors import InputError
from scoreline.storage.run_lock import RunLock
from scoreline.values import check_choice, check_lock, whole_number

if TYPE_CHECKING:
    from optuna.study import Study

PLUGIN = "hydra_plugins.hydra_optuna_sweeper"

DIRECTIONS = ("minimize", "maximize")

_held: list[RunLock] = []
"""The lock of the sweep directory of this process."""


def prefer_own_choice() -> None:
    """Let `hydra/sweeper=optuna` mean the file in conf/, not the plugin's choice of the same name.

    Hydra takes the first of two, but checks a file against a choice of its name that a plugin has registered, and
    refuses the pair. So the plugins, which register their choices once in a process, are loaded here.
    """
    Plugins.instance()
    ConfigStore.instance().repo.get("hydra", {}).get("sweeper", {}).pop("optuna.yaml", None)


def in_study() -> bool:
    """Return whether this job is a trial, whose value a sweeper compares with others."""
    cfg = HydraConfig.get()
    return bool(cfg.mode == RunMode.MULTIRUN and cfg.runtime.choices["hydra/sweeper"] != "basic")


def check_value(value: Any) -> None:
    """Refuse the value of a trial if it is no finite number.

    Raises:
        InputError: if this job is a trial, and the value is none.
    """
    if in_study() and not (isinstance(value, int | float) and math.isfinite(value)):
        raise InputError(f"the trial has no value to compare: it returns {value}")


def explain_no_value(error: BaseException) -> InputError | None:
    """Return the sentence for a study in which every trial failed, each of which printed its own reason."""
    frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, ValueError) and "best_trial" in frames:
        return InputError(
            "hydra/sweeper=optuna: no trial has a value, for the reasons above; the same command tries on"
        )
    return None


class ResumedStudy:
    """A Hydra callback that resumes a study from its storage, and says at its end which trial is the best.

    The plugin draws `n_trials` new trials at every start and leaves a trial that was killed unfinished for ever. Before
    it starts, this callback makes such a trial the next one, with its number and values, so that its run directory
    continues; and it lowers `n_trials` by the trials that have a value. At the end a study that lacks some exits with
    code 2.

    Attributes:
        wanted: trials with a value at the end; None before the start, and for a study in memory.
    """

    def __init__(self) -> None:
        self.wanted: int | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Lock the directory of the study, and set the number of trials that are left.

        The process exits with one line and code 2 if the plugin is missing, a value is impossible, another process
        works on the study, or its storage is of another study.
        """
        from scoreline.config.script import leave

        try:
            self._start(config)
        except InputError as error:
            leave(error)

    def _start(self, config: DictConfig) -> None:
        refuse_missing_plugin()
        sweeper, folder = config.hydra.sweeper, Path(config.hydra.sweep.dir)
        count = whole_number("hydra.sweeper.n_trials", sweeper.n_trials)
        whole_number("hydra.sweeper.n_jobs", sweeper.n_jobs)
        check_choice("hydra.sweeper.direction", DIRECTIONS, sweeper.direction)
        _held.append(RunLock(folder, check_lock(config.lock)))
        OmegaConf.save(config, folder / "multirun.yaml")
        _quieten()
        if sweeper.storage is not None:
            self.wanted = count
            with read_write(config.hydra):
                sweeper.n_trials = max(0, count - resume(sweeper))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the best trial; exit with code 2 if trials without a value are left."""
        while _held:
            _held.pop().release()
        if self.wanted is None:
            return
        study = open_study(config.hydra.sweeper)
        finished = complete(study)
        print(f"best of {finished} trials: number {study.best_trial.number}, {study.best_value:.6g}")
        print(f"next: scoreline report {config.hydra.sweep.dir}")
        if finished < self.wanted:
            lacking = f"{self.wanted - finished} of {self.wanted} trials have no value"
            print(f"{lacking}, for the reasons above; the same command draws others", file=sys.stderr)
            sys.exit(2)

    def on_job_start(self, **_: Any) -> None: ...
    def on_job_end(self, **_: Any) -> None: ...
    def on_run_end(self, **_: Any) -> None: ...

    def on_run_start(self, **_: Any) -> None:
        """Refuse the choice without -m: the process exits with one line and code 2."""
        from scoreline.config.script import leave

        leave(InputError("hydra/sweeper=optuna: a study is a sweep; add -m"))


def refuse_missing_plugin() -> None:
    """Refuse a study without Hydra's plugin for Optuna.

    Raises:
        InputError: naming the package to install.
    """
    try:
        if find_spec(PLUGIN) is not None:
            return
    except ModuleNotFoundError:
        pass
    raise InputError("hydra/sweeper=optuna needs one more package: pip install 'scoreline[sweep]'")


def _quieten() -> None:
    """Silence the plugin's lines about trials, which print their own, and Optuna's about its storage."""
    from optuna.logging import set_verbosity

    set_verbosity(logging.WARNING)
    logging.getLogger(PLUGIN).setLevel(logging.CRITICAL)


def open_study(sweeper: DictConfig) -> "Study":
    """Return the study of a sweeper's config, which begins in its storage if it is not there.

    Raises:
        InputError: for a storage that cannot be opened, or one with a study of the other direction.
    """
    import optuna

    name, url = str(sweeper.study_name), str(sweeper.storage)
    try:
        storage = optuna.storages.RDBStorage(url)
        return optuna.create_study(storage, study_name=name, direction=sweeper.direction, load_if_exists=True)
    except ValueError as error:
        raise InputError(
            f"hydra.sweeper.direction={sweeper.direction}: the study in {url} has the other one; choose another "
            "hydra.sweep.dir"
        ) from error
    except Exception as error:  # of SQLAlchemy, or of the driver of a database
        first = str(error).partition("\n")[0]
        raise InputError(f"hydra.sweeper.storage={url}: {first}; give a URL as SQLAlchemy takes it") from error


def resume(sweeper: DictConfig) -> int:
    """Make the trials of a killed process the next ones; return the number of trials that have a value.

    Raises:
        InputError: as `open_study`.
    """
    from optuna.storages import RDBStorage
    from optuna.trial import TrialState

    study, storage = open_study(sweeper), RDBStorage(str(sweeper.storage))
    number = storage.get_study_id_from_name(study.study_name)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        unfinished = storage.get_trial_id_from_study_id_trial_number(number, trial.number)
        storage.set_trial_state(unfinished, TrialState.WAITING)
    return complete(study)


def complete(study: "Study") -> int:
    """Return the number of trials that have a value."""
    from optuna.trial import TrialState

    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
