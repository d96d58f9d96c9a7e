"""W&B while a model trains."""

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers.logger import Logger

from scoreline.history import Row, history, picture_row, row
from scoreline.wandb_runs import PROJECT, imported, label, open_run, send


class WandbRun(Logger):
    """One W&B run for a run directory, on the first process alone; ended at the end of every fit, failed or not.

    The files of the directory stay the truth, and W&B shows what is in them. Resuming drops records of steps that
    will be repeated, but W&B takes nothing back. So:

    - offline, where every start of the training leaves a directory wandb/offline-run-*, each begins with the whole
      history that is kept, and syncing the newest one is enough;
    - online, rows up to the last kimg that W&B has are not sent again, repeated ones included; rows that it has not
      (a killed process takes them along) are sent first.

    `scoreline upload` rebuilds the run from the files in either case.

    Args:
        save_dir: the run directory.
        identity: the digest that names the run; with the directory's name it makes the id, kept over a resume.
        name: None is the directory's.
        group: None is the sweep's directory, for one of its cells.
        offline: no account is needed, and nothing is sent.
        id: in place of the derived one.

    Raises:
        InputError: if wandb is not installed; when training starts, if W&B cannot be used online.
    """

    def __init__(
        self,
        save_dir: str,
        identity: str,
        project: str = PROJECT,
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        offline: bool = True,
        id: str | None = None,
    ) -> None:
        super().__init__()
        imported()
        self.root, self.offline = Path(save_dir), offline
        self.label = label(self.root, identity, project, entity, name, group, tags, id)
        self._run: Any = None
        self._known = -inf
        self._whole = False

    @property
    def name(self) -> str:
        return self.label.project

    @property
    def version(self) -> str:
        return self.label.id

    @property
    def save_dir(self) -> str:
        return str(self.root)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, begun when first asked for, which Lightning does before it trains."""
        if self._run is None:
            self._run = open_run(self.root, self.label, "kimg", self.offline, live=True, key="logger.offline")
            self._known = self._run.summary.get("kimg", -inf) if self._run.resumed else -inf
            self._whole = False
        return self._run

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """A row that `history.row` leaves as it is or makes; W&B counts steps itself, `step` is not used."""
        self._log(row(metrics))

    @rank_zero_only
    def log_picture(self, path: Path) -> None:
        """previews/000064kimg.png, at the kimg of its name."""
        self._log(picture_row(path))

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The config is that of the run directory."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._run is None:
            return
        run = self._run
        try:
            self._complete(inf)
        finally:
            self._run = None
            run.finish(exit_code=int(status == "failed"))

    def _log(self, found: Row) -> None:
        run = self.experiment
        if "kimg" in found:
            self._complete(found["kimg"])
        if found.get("kimg", inf) > self._known:
            send(run, found)

    def _complete(self, until: float) -> None:
        """Once after each start: what the directory holds from before, and W&B does not."""
        if self._whole:
            return
        self._whole = True
        for former in history(self.root):
            if self._known < former["kimg"] < until:
                send(self._run, former)
