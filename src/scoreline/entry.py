"""What the three scripts share around Hydra: names of run directories, and errors as one sentence.

Imports nothing heavier than Hydra, so that `--help` and mistakes answer at once.
"""

import functools
import hashlib
import json
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from scoreline import startup
from scoreline.cores import threads_of
from scoreline.errors import InputError, did_you_mean
from scoreline.files import code_version, sha256, write_atomically
from scoreline.modes import check_compile, check_precision, check_switch
from scoreline.seeds import parse_seeds

ASSETS = Path(__file__).parent / "assets"
MISCONFIGURED = "MisconfigurationException"  # Lightning's, told by its name so as not to import Lightning
HARMLESS = (
    *(".*LeafSpec.*", ".*num_workers.*", ".*does not have many workers.*", ".*logging interval.*"),
    ".*Grad strides do not match bucket view strides.*",
)
"""Warnings about what is intended here."""

SCRIPT = "SCORELINE_SCRIPT"
"""The script that a person started: in a job of submitit sys.argv[0] is another one."""

KEEP_TRACEBACKS = "SCORELINE_TRACEBACKS"

ERROR_LOG = "error.log"

FOREIGN = {".json", ".safetensors", ".bin"}
"""Suffixes of the files of a folder that a model is imported from."""

WHOLE: dict[str, tuple[Any, ...]] = {
    "nfe": (),
    "batch_size": (),
    "network_batch": (None, "auto"),
    "trajectory_nfe": (),
}
"""Keys of whole numbers, at least 1, and what else they may be."""

CHOICES: dict[str, Callable[[object], object]] = {
    "precision": check_precision,
    "compile": check_compile,
    "channels_last": functools.partial(check_switch, "channels_last"),
    "graphs": functools.partial(check_switch, "graphs"),
}
"""Keys of named choices, and what refuses others."""

QUIET_OPTIONS = ("hydra.run.dir=", "hydra.sweep.dir=", "hydra.sweep.subdir=", "hydra.output_subdir=")
"""Hydra's own keys of a command line that say nothing of a sweep."""

Job = Callable[[DictConfig], Any]


def script(config_name: str) -> Callable[[Job], Callable[[], None]]:
    """Decorate a job as a script: Hydra around it, and a mistake of the user's becomes one line and exit code 2.

    A sweep prints the line of a failed job at once, goes on with the others and leaves with exit code 2 at its end.
    With HYDRA_FULL_ERROR=1 in the environment every error keeps its traceback.
    """

    def decorate(job: Job) -> Callable[[], None]:
        @functools.wraps(job)
        def guarded(cfg: DictConfig) -> Any:
            try:
                refuse_appended_keys()
                refuse_plain_mistakes(cfg)
                startup.load_torch()
                (output_dir() / ERROR_LOG).unlink(missing_ok=True)
                return job(cfg)
            except Exception as error:
                if in_sweep():
                    keep_traceback(error)
                    words = " ".join(HydraConfig.get().overrides.task)
                    print(f"{words}: {explain(error) or repr(error)}", file=sys.stderr)
                    raise
                leave(error)

        def main() -> None:
            if {"--help", "-h"} & set(sys.argv[1:]):
                print(help_text(str(sys.modules[job.__module__].__doc__), config_name))
            else:
                _run(hydra.main("conf", config_name, "1.3")(guarded))

        return main

    return decorate


def mode_is_unset(words: Sequence[str], conf: Path) -> bool:
    """Whether neither the command line nor any config of `conf` can set hydra.mode."""
    chosen = [word for word in words if not word.startswith(QUIET_OPTIONS)]
    if any(word.lstrip("+~").startswith(("hydra", "--config", "-c")) for word in chosen):
        return False
    setting = re.compile(rb"^\s+mode:\s*['\"]?(RUN|MULTIRUN)", re.M)
    return not any(setting.search(path.read_bytes()) for path in conf.rglob("*.yaml"))


@contextmanager
def composed_once(words: Sequence[str]) -> Iterator[None]:
    """Hydra composes the config of every job twice, first only to look up hydra.mode: without, where nothing sets it.

    What it does then is the same: with -m a sweep, else a single run.
    """
    from hydra._internal.hydra import Hydra

    look_up = Hydra.get_mode
    if mode_is_unset(words, conf_dir()):
        Hydra.get_mode = lambda self, config_name, overrides: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = look_up  # type: ignore[method-assign]


def _run(main: Callable[[], Any]) -> None:
    startup.end_without_search()
    register_resolvers()
    os.environ[SCRIPT] = str(Path(sys.argv[0]).resolve())
    os.environ.setdefault(KEEP_TRACEBACKS, os.environ.get("HYDRA_FULL_ERROR", ""))
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with composed_once(sys.argv[1:]):
            main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        leave(error)


def keep_traceback(error: Exception) -> None:
    """error.log in the directory of a job of a sweep; a later start of the job removes it."""
    text = "".join(traceback.format_exception(error))
    write_atomically(output_dir() / ERROR_LOG, lambda path: path.write_text(text))


def leave(error: Exception, program: str | None = None) -> NoReturn:
    """A user's mistake as one line and exit code 2; any other error goes on with its traceback."""
    sentence = None if os.environ.get(KEEP_TRACEBACKS) else explain(error)
    if sentence is None:
        raise error
    print(f"{program or Path(sys.argv[0]).name}: {sentence}", file=sys.stderr)
    sys.exit(2)


def help_text(about: str, config_name: str) -> str:
    """What a script's `--help` prints: its docstring, the choices of its groups, and its keys with their comments.

    Hydra's own help deep-copies every config of every group and takes seconds.
    """
    conf = conf_dir()
    defaults, _, rest = (conf / f"{config_name}.yaml").read_text().partition("\n\n")
    chosen = dict(re.findall(r"- (\w+): (\S+)", defaults))
    groups = [f"  {group + '=':14}{_choices(conf / group, default)}" for group, default in chosen.items()]
    keys = [f"  {line}" for line in rest.partition("\nhydra:")[0].splitlines()]
    return "\n".join([about, "Groups (default first):", *groups, "", "Keys:", *keys])


def _choices(folder: Path, default: str) -> str:
    return " | ".join(sorted((path.stem for path in folder.glob("*.yaml")), key=lambda name: (name != default, name)))


def explain(error: BaseException) -> str | None:
    """The sentence for a mistake in what the user gave, or None for a defect of ours."""
    for cause in _causes(error):
        if isinstance(cause, InputError):
            return " ".join(str(cause).split())
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={choice}: there is no such choice{did_you_mean(choice, error.options or [])}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not of the form key=value; put quotes round a value with commas, spaces or brackets"
    if isinstance(error, ConfigCompositionException):
        return _explain_composition(error)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: has no default; give {error.full_key}=..."
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_instantiation(error)
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explain_composition(error: BaseException) -> str:
    match = re.search(r"Could not (?:override|append|delete)[^']*'([^'@]+)", str(error))
    if match:
        key = match[1].split("=")[0]
        return f"{key}: there is no such key{did_you_mean(key, known_keys())}"
    return str(error).splitlines()[0]


def _explain_instantiation(error: BaseException) -> str | None:
    """Wrong arguments of a `_target_`; anything that its code raised itself stays a traceback."""
    known = (TypeError, OmegaConfBaseException)
    unexpected = next((c for c in _causes(error) if isinstance(c, known) or type(c).__name__ == MISCONFIGURED), None)
    match = re.search(r"full_key: (\S+)", str(error))
    if unexpected is None:
        return None
    return f"{match[1] if match else 'config'}: {str(unexpected).splitlines()[0]}"


def known_keys() -> set[str]:
    """Every key and group that this script accepts, dotted; those of sample.py for commands that are no script."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    folder, name = conf_dir(), Path(sys.argv[0]).stem
    with initialize_config_dir(str(folder), version_base="1.3"):
        config = compose(name if (folder / f"{name}.yaml").is_file() else "sample")
    groups = {entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name in config}
    return set(_dotted(OmegaConf.to_container(config, resolve=False), "")) | groups | {"experiment"}


def conf_dir() -> Path:
    """conf/ beside the script that runs, else of the working directory, else of the source tree.

    Raises:
        InputError: if there is none.
    """
    for folder in (Path(sys.argv[0]).resolve().parent, Path.cwd(), Path(__file__).resolve().parents[2]):
        if (folder / "conf" / "sample.yaml").is_file():
            return folder / "conf"
    raise InputError("conf: no conf/sample.yaml here; run this in a checkout of scoreline")


def _dotted(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield f"{prefix}{name}"
            yield from _dotted(value, f"{prefix}{name}.")


def register_resolvers() -> None:
    """`${scoreline.digest:...}`, `.cell:`, `.sweep:...`, `.record:...` and `.directory:`."""
    OmegaConf.register_new_resolver("scoreline.digest", run_digest, replace=True)
    OmegaConf.register_new_resolver("scoreline.cell", cell_name, replace=True)
    OmegaConf.register_new_resolver("scoreline.record", checkpoint_record, replace=True)
    OmegaConf.register_new_resolver("scoreline.directory", sample_directory, replace=True)
    OmegaConf.register_new_resolver("scoreline.sweep", sweep_digest, replace=True, use_cache=True)


def run_digest(*without: str, _root_: DictConfig) -> str:
    """Eight digits that name a run: config, content of the files it names, code version.

    Args:
        without: keys that cannot change a result.
    """
    raw = OmegaConf.to_container(_root_, resolve=False)
    assert isinstance(raw, dict)
    config = {str(key): value for key, value in raw.items() if key not in (*without, "hydra")}
    text = json.dumps(config, sort_keys=True, default=str)
    named = [str(OmegaConf.select(_root_, key) or "") for key in ("schedule.path", "solver.path", "labels")]
    files = [path for path in _files_read(config, named, "${record}" in text) if path.is_file()]
    return _short("".join([text, *map(sha256, files), code_version()]))


def _files_read(config: dict[str, Any], named: list[str], with_record: bool) -> list[Path]:
    """Checkpoint, guide, files of schedule and solver, records that may be read, whether they exist or not."""
    checkpoint, guide = config.get("checkpoint"), config.get("guidance", {}).get("checkpoint")
    files = [model_path(name) for name in (checkpoint, guide) if isinstance(name, str)]
    files += map(Path, named)
    if isinstance(checkpoint, str) and not files[0].exists():
        files += foreign_files(Path(checkpoint))
    if "load_recommendation" in str(config.get("solver")):
        files += sorted(files[0].parent.glob(f"{files[0].stem}.*.safetensors"))
    record = config.get("record") if with_record and isinstance(checkpoint, str) else None
    if record is None:
        return files
    return [*files, record_beside(files[0], "score_norm") if record == "auto" else Path(str(record))]


def foreign_files(folder: Path) -> list[Path]:
    """Weights and descriptions in another project's folder, such as diffusers', in order; none if it is no folder."""
    return sorted(path for path in folder.rglob("*") if path.suffix in FOREIGN) if folder.is_dir() else []


def record_beside(checkpoint: Path, kind: str) -> Path:
    """Where the record of a checkpoint is looked for: model.safetensors -> model.score_norm.safetensors."""
    return checkpoint.with_name(f"{checkpoint.stem}.{kind}.safetensors")


def checkpoint_record(kind: str, *, _root_: DictConfig) -> str:
    """Where a config finds the record of that kind for its checkpoint: beside it."""
    return str(record_beside(model_path(str(_root_.checkpoint)), kind))


def sample_directory(*, _root_: DictConfig) -> str:
    """Where a run of sample.py lies: outputs/table/NAME-BUDGET, or outputs/sample/SOLVER-nfeNFE-IDENTITY."""
    chosen = _root_.hydra.runtime.choices
    if _root_.table is not None:
        return f"outputs/table/{chosen.table}-{_root_.budget}"
    return f"outputs/sample/{chosen.solver}-nfe{_root_.nfe}-{_root_.identity}"


def sweep_digest(overrides: list[str]) -> str:
    """Eight digits that name a sweep: what was asked for on the command line, and the code version."""
    return _short(json.dumps(sorted(overrides)) + code_version())


def cell_name(*, _root_: DictConfig) -> str:
    """`nfe=5,solver=ddim`: the choices of one job of a sweep, safe as a directory name."""
    name = ",".join(_safe(str(override)) for override in sorted(_root_.hydra.overrides.task)) or "default"
    return name if len(name) <= 120 else f"{name[:110]}-{_short(name)}"


def _safe(override: str) -> str:
    """A path keeps its last part and a digest of the whole: models of several directories are often named alike."""
    key, _, value = override.partition("=")
    short = f"{value.rstrip('/').rpartition('/')[2]}-{_short(value)}" if "/" in value else value
    return re.sub(r"[^\w.=+-]+", "_", f"{key}={short}")


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def model_path(checkpoint: str) -> Path:
    """`digits_vp` names a model that ships with the package, a directory stands for its model.safetensors."""
    shipped = ASSETS / f"{checkpoint}.safetensors"
    if shipped.is_file():
        return shipped
    path = Path(checkpoint)
    return path / "model.safetensors" if path.is_dir() else path


def guide(cfg: DictConfig) -> dict[str, str]:
    """The path of the guiding model, for a guidance that has one, as a named argument.

    Raises:
        MissingMandatoryValue: if guidance.checkpoint is not given.
    """
    path = OmegaConf.select(cfg, "guidance.checkpoint", throw_on_missing=True)
    return {} if path is None else {"checkpoint": str(model_path(str(path)))}


def apply(node: DictConfig, *arguments: Any, **options: Any) -> Any:
    """What the function of a `_partial_` group returns; wrong options are told as those of other groups are."""
    return hydra.utils.instantiate(node, *arguments, **options, _partial_=False)


def adopt_model(cfg: DictConfig, model: dict[str, Any], digest: str) -> None:
    """Put the description of a loaded (hence verified) checkpoint where solvers and schedules refer to it."""
    cfg.model = {name: model[name] for name in ("network", "noise_schedule", "parameterisation")}
    cfg.digest = digest


def claim(cfg: DictConfig, out: Path) -> None:
    """Make sure that a run directory is new or belongs to this very run, and fix `cfg.identity`.

    Raises:
        InputError: if the directory holds a run of another config, checkpoint or code version.
    """
    cfg.identity = cfg.identity
    former = out / "config.yaml"
    found = OmegaConf.select(OmegaConf.load(former), "identity") if former.is_file() else cfg.identity
    if found != cfg.identity:
        raise InputError(
            f"hydra.run.dir={out}: holds run {found} of another config, checkpoint or code version, this one is "
            f"{cfg.identity}; choose another directory or leave the key out"
        )


def save_config(cfg: DictConfig, out: Path) -> None:
    """config.yaml: everything resolved."""
    text = OmegaConf.to_yaml(cfg, resolve=True)
    write_atomically(out / "config.yaml", lambda temporary: temporary.write_text(text))


def output_dir() -> Path:
    """Hydra's directory of this job, relative to the working directory where possible."""
    path = Path(HydraConfig.get().runtime.output_dir)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def command_of_this_job(out: Path) -> list[str]:
    """What starts a further process of this very job: the same choices, the same directory, no sweep."""
    directory = str(out).replace("\\", "\\\\").replace("'", "\\'")
    own = [f"hydra.run.dir='{directory}'", "hydra.output_subdir=null", "hydra.mode=RUN"]
    return [sys.executable, os.environ[SCRIPT], *map(str, HydraConfig.get().overrides.task), *own]


def provenance(cfg: DictConfig) -> dict[str, Any]:
    """How a model came to be: the command, and what identifies its config and code; no path of this machine."""
    overrides = [o for o in HydraConfig.get().overrides.task if "/" not in o]
    return {
        "command": " ".join(["python train.py", *overrides]),
        "seed": cfg.seed,
        **settings(cfg, "target", "augmentation"),
        "batch_size": cfg.batch_size,
        "config_sha256": hashlib.sha256(OmegaConf.to_yaml(cfg, resolve=True).encode()).hexdigest(),
        "code_version": code_version(),
    }


def match_data(network: DictConfig, dataset: Any) -> None:
    """The network's shape must be the data's.

    Raises:
        InputError: naming the key and the data set.
    """
    channels, height, width = dataset.shape
    wanted = {"channels": channels, "resolution": height}
    if height != width:
        raise InputError(f"dataset={dataset.name}: images are {height}x{width}; networks here take square ones")
    for key, value in wanted.items():
        if network.get(key, value) != value:
            raise InputError(f"model.network.{key}={network[key]}: {dataset.name} has {value}; set the key to {value}")
    classes = network.get("num_classes", 0)
    if classes not in (0, dataset.num_classes):
        has = f"{dataset.name} has {dataset.num_classes}"
        raise InputError(f"model.network.num_classes={classes}: {has}; use that or 0")


def quieten() -> None:
    """Keep Lightning's advertisements, and hints about what is intended here, quiet; call it after the import."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for pattern in HARMLESS:
        warnings.filterwarnings("ignore", message=pattern)


def in_sweep() -> bool:
    """Whether this job is one of several; each then says only its own line."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def choices(*groups: str) -> dict[str, str]:
    """The names chosen in config groups."""
    return {group: str(HydraConfig.get().runtime.choices[group]) for group in groups}


def settings(cfg: DictConfig, *groups: str) -> dict[str, str]:
    """The names chosen in config groups with their options: `classifier_free(high=inf, low=0.0, scale=2.0)`."""
    return {group: name + _options(cfg[group]) for group, name in choices(*groups).items()}


def _options(node: DictConfig) -> str:
    """A model stands there by its content, numbers alike however they were written."""
    shown = []
    for key, value in sorted(node.items()):
        if key == "checkpoint":
            shown.append(f"{key}={sha256(model_path(str(value)))[:16]}")
        elif not str(key).startswith("_") and key != "trust":
            shown.append(f"{key!s}={float(value) if isinstance(value, int) else str(value)}")
    return f"({', '.join(shown)})" if shown else ""


def refuse_appended_keys() -> None:
    """`+typo=1` would pass silently: only arguments inside a group may be appended.

    Raises:
        InputError: naming the key.
    """
    for override in HydraConfig.get().overrides.task:
        key = override.lstrip("+").split("=")[0]
        if override.startswith("+") and "." not in key and key not in HydraConfig.get().runtime.choices:
            raise InputError(f"+{key}: no script reads a new key '{key}'; drop it")


def refuse_plain_mistakes(cfg: DictConfig) -> None:
    """Numbers, seeds and paths that are wrong whatever the model is, told before torch is imported.

    Raises:
        InputError: in the words of the code that reads the key.
    """
    for key, others in WHOLE.items():
        if key in cfg and cfg[key] not in others:
            whole(key, cfg[key])
    if "threads" in cfg and cfg.threads is not None:
        threads_of(cfg.threads)
    for key, check in CHOICES.items():
        if key in cfg:
            check(cfg[key])
    for key in ("seeds", "trajectories"):
        if cfg.get(key) is not None:
            parse_seeds(cfg[key], key)
    for key in ("duration_kimg", "memory_mib"):
        if cfg.get(key) is not None:
            number(key, cfg[key])
    if "sigma_max" in cfg:
        for key, zero in (("sigma_max", False), ("sigma_min", True)):
            if cfg[key] is not None:
                number(key, cfg[key], zero=zero)
    if isinstance(cfg.get("checkpoint"), str) and cfg.get("table") is None:
        refuse_absent_checkpoint(cfg.checkpoint)


def refuse_absent_checkpoint(checkpoint: str) -> None:
    """Raises InputError if a checkpoint is neither a URL nor a shipped model nor a path at which something lies."""
    path = model_path(checkpoint)
    if "://" not in checkpoint and not path.exists() and not Path(checkpoint).exists():
        raise InputError(f"checkpoint={path}: no such file; give a model.safetensors written by train.py")


def sigma_range(cfg: DictConfig, native: Any) -> tuple[float, float]:
    """(sigma_max, sigma_min): what the config says, else the ends of the model's own noise schedule."""
    first = native.sigma_max if cfg.sigma_max is None else number("sigma_max", cfg.sigma_max)
    last = native.sigma_min if cfg.sigma_min is None else number("sigma_min", cfg.sigma_min, zero=True)
    return first, last


def whole(key: str, value: Any, least: int = 1) -> int:
    """A whole number from the config.

    Raises:
        InputError: naming the key if it is no integer or below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{key}={value}: must be a whole number, at least {least}")
    return value


def number(key: str, value: Any, above: float = 0.0, zero: bool = False) -> float:
    """A finite number from the config.

    Args:
        zero: whether 0 is allowed too.

    Raises:
        InputError: naming the key if it is no number or not greater than `above`.
    """
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not (above < value < float("inf") or (zero and value == 0)):
        raise InputError(f"{key}={value}: must be a number greater than {above:g}{', or 0' if zero else ''}")
    return float(value)
