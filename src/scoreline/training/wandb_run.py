"""W&B while a model trains."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import WandbLogger

from scoreline.storage import run_config
from scoreline.storage.run_history import Row, history, picture_row
from scoreline.storage.wandb_runs import begin, import_wandb, log, names, warn


class WandbRun(WandbLogger):
    """Lightning's WandbLogger for a run directory: one W&B run, on the first process, from its files.

    A resumed training keeps the id, and W&B shows every record once although steps are repeated:

    - offline, every start writes a directory wandb/offline-run-* that begins with the history so far, so that
      `wandb sync` of the newest one sends the whole run;
    - online, the start sends the records that W&B lacks, and skips those that it has.

    An error of W&B becomes one warning: the training continues without it. The files of the run directory hold
    everything in any case, also after a kill, which costs wandb its last rows; a resumed training or `scoreline upload`
    sends them. Use it as `wandb=offline`, or as `logger=wandb` to choose names.

    Args:
        save_dir: the run directory.
        identity: digest of the config; with the directory's name it gives the id.
        offline: needs no account and sends nothing.
        chosen: `project`, `entity`, `name`, `group`, `tags` and `id`, which replace those of `wandb_runs.names`.

    Raises:
        InputError: if wandb is not installed or does not accept the id.
    """

    def __init__(self, save_dir: str, identity: str, offline: bool = True, **chosen: Any) -> None:
        import_wandb()
        self.root, self.offline = Path(save_dir), offline
        self.names = names(self.root, identity, "train", **chosen | {"tags": tuple(map(str, chosen.get("tags") or ()))})
        super().__init__(save_dir=save_dir, offline=offline, **self.names)
        self._wandb_run: Any = None
        self._lost = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, which begins when Lightning first asks for it, before it trains."""
        if self._wandb_run is None:
            self._known, self._behind = -inf, True
            with self._tolerance():
                config = run_config.read(self.root) or {}
                run = self._wandb_run = begin(self.root, self.names, config, {"*": "kimg"}, self.offline, resume=True)
                self._known = run.summary.get("kimg", -inf) if run.resumed else -inf
        return self._wandb_run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log a row of `run_history.row`, at its kimg; W&B counts steps itself."""
        self._send(dict(metrics))

    @rank_zero_only
    def log_picture(self, path: Path) -> None:
        """Log previews/000064kimg.png at the kimg of its name."""
        self._send(picture_row(path))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run, as failed if the training failed."""
        if self._wandb_run is None:
            return
        self._send({})
        with self._tolerance():
            self._wandb_run.finish(exit_code=int(status == "failed"))
        self._wandb_run = None

    def _send(self, row: Row) -> None:
        run, now = self.experiment, row.get("kimg", inf)
        with self._tolerance():
            # the first time, when records of steps to be repeated are gone: what W&B lacks of the directory
            former = [it for it in history(self.root) if it["kimg"] <= now] if self._behind else []
            self._behind = False
            for it in [*former, *([row] if row and row not in former else [])]:
                if it.get("kimg", inf) > self._known and not self._lost:
                    log(run, it)

    @contextmanager
    def _tolerance(self) -> Iterator[None]:
        """Turn an error into one warning; from then on W&B is a disabled run, which takes all and does nothing."""
        try:
            yield
        except Exception as error:
            warn(error, self.root, "training continues")
            self._wandb_run, self._lost = import_wandb().init(mode="disabled"), True
