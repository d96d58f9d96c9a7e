"""The frame of the three scripts: Hydra, `--help`, one line per mistake, exit codes.

It imports nothing heavier than Hydra, so that `--help` and error messages appear at once.
"""

import contextlib
import functools
import logging
import math
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from scoreline.config import catalogue, optuna_study, validate
from scoreline.config.conf_folder import (
    NO_MODEL,
    SCRIPTS,
    files,
    own_folder,
    quote,
    refuse_lost_choices,
    use_own_folder,
    whole_words,
)
from scoreline.config.explain import explain
from scoreline.config.launch import run as run_as_group
from scoreline.config.moved_names import current
from scoreline.config.run_directory import give_up, output_dir, release
from scoreline.config.run_names import model_path, register_resolvers, run_sha256, with_model_metrics
from scoreline.descriptions.annotations import refuse_wrong_types
from scoreline.errors import InputError, did_you_mean, printable
from scoreline.runtime import startup
from scoreline.runtime.stop_signals import stop_signals
from scoreline.storage.config_files import conf_dir
from scoreline.storage.files import code_version, sha256, write_atomically
from scoreline.storage.run_config import ERROR_LOG

HARMLESS = (
    *(".*LeafSpec.*", ".*num_workers.*", ".*does not have many workers.*", ".*logging interval.*"),
    *(".*Grad strides do not match bucket view strides.*", "Checkpoint directory .* exists and is not empty.*"),
)
"""Warnings of Lightning and PyTorch about settings that are intended here."""

SCRIPT = "SCORELINE_SCRIPT"
"""Environment variable with the path of the user's script; in a job of submitit sys.argv[0] is another one."""

KEEP_TRACEBACKS = "SCORELINE_TRACEBACKS"

LARGEST = 4096
"""Largest whole number in the description of a network, such as its width; a larger network would fill the memory."""

Launch = Callable[[Callable[[], None]], None]
C = TypeVar("C")


def script(
    config_name: str, read: Callable[[DictConfig], C], launch: Launch = run_as_group
) -> Callable[[Callable[[C], Any]], Callable[[], None]]:
    """Decorate a job as a Hydra script, in which a user's mistake becomes one line and exit code 2.

    A sweep prints the line of a failed job at once, runs the other jobs and exits with code 2 at its end.
    With HYDRA_FULL_ERROR=1 in the environment every error keeps its traceback.

    Args:
        config_name: name of the script's file in conf/.
        read: turns the composed config into the argument of the job. It raises InputError for every mistake that can be
            told without torch, which is imported afterwards.
        launch: calls the script as one process among those that torchrun or srun started.
    """

    def decorate(job: Callable[[C], Any]) -> Callable[[], None]:
        @functools.wraps(job)
        def guarded(cfg: DictConfig) -> Any:
            # A training handles signals by itself from its first step on. Before, it waits inside torch for the other
            # processes, where a handler of Python's would not be called.
            with stop_signals() if launch is run_as_group else contextlib.nullcontext():
                return attempt(cfg)

        def attempt(cfg: DictConfig) -> Any:
            try:
                validate.refuse_unusable()
                cfg = with_model_metrics(current(cfg))
                config = read(cfg)
                startup.load_torch()
                refuse_wrong_types(OmegaConf.to_container(cfg, resolve=False))
                result = job(config)
                optuna_study.check_value(result)
                return result
            except Exception as error:
                if in_sweep():
                    _keep_traceback(error)
                    words = " ".join(HydraConfig.get().overrides.task)
                    print(f"{words}: {explain(error) or repr(error)}", file=sys.stderr)
                    raise
                if give_up(output_dir()):
                    with contextlib.suppress(OSError):  # the disk may be full, which is the error to report
                        _keep_traceback(error)
                leave(error)
            finally:
                release()

        @startup.reader_may_leave
        def main() -> None:
            try:
                words = whole_words(config_name, use_own_folder(sys.argv[1:]))
                refuse_lost_choices(words)
                refuse_options(words)
            except InputError as error:
                leave(error)
            if {"--help", "-h"} & set(words):
                print(catalogue.help_text(str(sys.modules[job.__module__].__doc__), config_name))
                return
            warnings.formatwarning = format_warning
            own = own_folder()
            sys.argv[1:] = [*(["--config-dir", str(own)] if own else []), *words]
            _run(hydra.main(str(conf_dir()), config_name, "1.3")(guarded))

        return functools.partial(launch, main)

    return decorate


PYTHONS_FORMAT = warnings.formatwarning


def format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a warning for the user as one line; its place in the code is for developers."""
    if category is UserWarning:
        return f"note: {message}\n"
    return PYTHONS_FORMAT(message, category, filename, lineno, line)


OPTIONS = (
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--run", "-r"),
    *("--multirun", "-m", "--shell-completion", "-sc", "--config-path", "-cp", "--config-name", "-cn"),
    *("--config-dir", "-cd", "--experimental-rerun", "--info", "-i"),
)
"""Hydra's options, as its documentation lists them."""

CFG_CHOICES = ("job", "hydra", "all")
"""Values of `--cfg`."""


def refuse_options(words: Sequence[str]) -> None:
    """Refuse options that Hydra does not have (its own message takes eight lines), and `hydra.job.chdir`.

    Raises:
        InputError: naming the option.
    """
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if re.fullmatch(r"\+{0,2}hydra\.job\.chdir=(true|yes|on|1)", word, re.IGNORECASE):
            raise InputError(
                f"{word}: jobs stay in the working directory, to which all paths are relative; leave the key out"
            )
        option, _, value = word.partition("=")
        if option.startswith("-") and option not in OPTIONS:
            raise InputError(f"{word}: there is no such option{did_you_mean(option, OPTIONS)}")
        if option in ("--cfg", "-c") and (value or following) not in CFG_CHOICES:
            raise InputError(f"{option} {value or following}: choose from {', '.join(CFG_CHOICES)}")


def _run(main: Callable[[], Any]) -> None:
    startup.end_without_search()
    register_resolvers()
    os.environ[SCRIPT] = str(Path(sys.argv[0]).resolve())
    os.environ.setdefault(KEEP_TRACEBACKS, os.environ.get("HYDRA_FULL_ERROR", ""))
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        optuna_study.prefer_own_choice()
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        leave(_of_run_directory(error) or optuna_study.explain_no_value(error) or error)


def _of_run_directory(error: Exception) -> InputError | None:
    """Return the error for a directory that Hydra cannot make before the job begins."""
    has_begun = any(frame.f_code.co_name == "guarded" for frame, _ in traceback.walk_tb(error.__traceback__))
    if has_begun or not isinstance(error, OSError) or not error.filename:
        return None
    key = "hydra.sweep.dir" if {"-m", "--multirun"} & set(sys.argv) else "hydra.run.dir"
    return InputError(f"{key}={error.filename}: {error.strerror}; choose another directory")


def _keep_traceback(error: Exception) -> None:
    """Write error.log in the directory of a job; the next start of the job removes it."""
    text = "".join(traceback.format_exception(error))
    write_atomically(output_dir() / ERROR_LOG, lambda path: path.write_text(text))


def leave(error: Exception, program: str | None = None) -> NoReturn:
    """Report a user's mistake in one line and exit with code 2; raise any other error again, with its traceback.

    Args:
        error: the exception that ended the job.
        program: the name before the line; None stands for the script's name.
    """
    sentence = None if os.environ.get(KEEP_TRACEBACKS) else explain(error)
    if sentence is None:
        raise error
    print(f"{program or Path(sys.argv[0]).name}: {sentence}", file=sys.stderr)
    sys.exit(2)


def guide(cfg: DictConfig) -> dict[str, str]:
    """Return the path of the guiding model as a keyword argument of the guidance; empty if it has none.

    Raises:
        MissingMandatoryValue: if guidance.checkpoint is not given.
    """
    path = OmegaConf.select(cfg, "guidance.checkpoint", throw_on_missing=True)
    return {} if path is None else {"checkpoint": str(model_path(str(path)))}


def guided(cfg: DictConfig, checkpoint: Any) -> Any:
    """Return the denoiser of a checkpoint under the guidance of a config."""
    return checkpoint.denoiser if cfg.guidance is None else apply(cfg.guidance, checkpoint, **guide(cfg))


def guidance(cfg: DictConfig) -> str:
    """Return the guidance of a config with its options, as `settings` does; `none` for null."""
    return "none" if cfg.guidance is None else settings(cfg, "guidance")["guidance"]


def refuse_other_guidance(cfg: DictConfig, solver: Any) -> None:
    """Refuse a solver that was learned under another guidance; one that does not say serves any.

    Raises:
        InputError: naming both.
    """
    learned, own = getattr(solver, "guidance", None), guidance(cfg)
    if learned not in (None, own):
        raise InputError(
            f"guidance={own}: this tableau was learned with guidance={printable(str(learned))}; sample with that, or "
            "learn another with: python calibrate.py calibration=tableau guidance=.. checkpoint=..."
        )


def apply(node: DictConfig, *arguments: Any, **options: Any) -> Any:
    """Call the function of a `_partial_` group; wrong options raise the same errors as in other groups."""
    return hydra.utils.instantiate(node, *arguments, **options, _partial_=False)


def command_of_this_job(out: Path) -> list[str]:
    """Return the command that starts a further process of this job: the same choices and directory, no sweep."""
    own = [f"hydra.run.dir={quote(str(out))}", "hydra.mode=RUN"]
    return [sys.executable, os.environ[SCRIPT], *map(str, HydraConfig.get().overrides.task), *own]


def command_beside(solver: str, schedule: str) -> str | None:
    """Return the commands that sample this job's seeds by its own solver and by another, for a shell.

    It is one sweep, or two lines where keys of the solver were given, which the other may lack.

    Args:
        solver: the name of the other solver, from an untrusted file.
        schedule: its schedule.

    Returns:
        the lines; None if there is no such solver or schedule.
    """
    if solver not in files("solver") or schedule not in files("schedule"):
        return None
    words = [str(word) for word in HydraConfig.get().overrides.task]
    keys = {word: word.lstrip("+~").partition("=")[0] for word in words}
    shared = [word for word in words if not re.match(r"(solver|schedule)(\.|$)", keys[word])]
    if any(key.startswith("solver.") for key in keys.values()):
        return f"{command('sample', *words)}\n{command('sample', f'solver={solver}', f'schedule={schedule}', *shared)}"
    return command("sample", "-m", f"solver={choices('solver')['solver']},{solver}", f"schedule={schedule}", *shared)


def command(name: str, *words: str) -> str:
    """Return the command line, for a shell, that runs a script in the way in which this program was started.

    That is `python sample.py ..`, by its path from elsewhere, or `scoreline sample ..`, with the user's `--config-dir`.

    Args:
        name: a script or a verb of the command `scoreline`.
        words: its other words.
    """
    started, folder = Path(str(getattr(sys.modules["__main__"], "__file__", ""))), own_folder()
    by_path = started.stem in SCRIPTS and name in SCRIPTS
    program = ["python", _from_here(started.with_name(f"{name}.py"))] if by_path else ["scoreline", name]
    return shlex.join([*program, *(["--config-dir", _from_here(folder)] if folder else []), *words])


def checkpoint_words(checkpoint: str | Path, model: Mapping[str, Any]) -> list[str]:
    """Return `checkpoint=PATH`, and `trust=[..]` for a model that takes classes from other packages.

    Args:
        checkpoint: the model file, its directory or another value of the key.
        model: the description of the model, as in its card.
    """
    from scoreline.descriptions.specs import foreign_packages

    packages, word = ",".join(foreign_packages(model)), str(checkpoint)
    place = word if re.fullmatch(r"[\w./~+:@%-]+", word) else quote(word)
    return [f"checkpoint={place}", *([f"trust=[{packages}]"] if packages else [])]


def words_of(*groups: str) -> list[str]:
    """Return the words of this job's command line that choose one of these groups or keys, or change a key below."""
    words = map(str, HydraConfig.get().overrides.task)
    return [word for word in words if re.split(r"[.=]", word.lstrip("+~"))[0] in groups]


def _from_here(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def provenance(cfg: DictConfig) -> dict[str, Any]:
    """Return the provenance of a model: the command and the digests of config and code; no paths."""
    overrides = [_without_folder(override) for override in HydraConfig.get().overrides.task]
    return {
        "command": shlex.join(["python", "train.py", *overrides]),
        "seed": cfg.seed,
        **settings(cfg, "target", "augmentation"),
        "batch_size": cfg.batch_size,
        "config_sha256": run_sha256(cfg, "train"),
        "code_version": code_version(),
    }


def _without_folder(override: str) -> str:
    """Cut an absolute path to its last part, since the rest describes one person's machine."""
    if override == NO_MODEL["model=null"]:
        return "model=null"
    key, equals, value = override.partition("=")
    path = value.strip("'\"")
    return f"{key}{equals}{Path(path).name}" if Path(path).is_absolute() else override


def match_data(network: Mapping[Any, Any], dataset: Any) -> None:
    """Refuse a network whose shape or classes differ from the data's, or with a size above `LARGEST`.

    Raises:
        InputError: naming the key and the data set.
    """
    from scoreline.checkpoints import CLASSES, sizes_unlike

    for key, value in network.items():
        if isinstance(value, int) and key not in CLASSES and value > LARGEST:
            raise InputError(f"model.network.{key!s}={value}: must be at most {LARGEST}")
    _, height, width = dataset.shape
    if height != width:
        raise InputError(
            f"dataset={dataset.name}: images are {height}x{width}; networks here take square ones: "
            "scoreline dataset SRC DEST.zip resolution=N makes them"
        )
    for key, value in sizes_unlike(network, dataset.shape, dataset.num_classes).items():
        remedy = "use that or 0" if key in CLASSES else f"set the key to {value}"
        raise InputError(f"model.network.{key}={network[key]}: {dataset.name} has {value or 0}; {remedy}")


def quieten() -> None:
    """Silence Lightning's tips and the warnings of `HARMLESS`; call it after importing Lightning."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for pattern in HARMLESS:
        warnings.filterwarnings("ignore", message=pattern)


def in_sweep() -> bool:
    """Return whether this job is one of a sweep, where each job prints only its own line."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def choices(*groups: str) -> dict[str, str]:
    """Return the name of the choice of each config group."""
    return {group: str(HydraConfig.get().runtime.choices[group]) for group in groups}


def settings(cfg: DictConfig, *groups: str) -> dict[str, str]:
    """Return the choice of each config group with its options: `classifier_free(high=inf, low=0.0, scale=2.0)`."""
    return {group: name + _options(cfg[group]) for group, name in choices(*groups).items()}


def _options(node: DictConfig) -> str:
    """Return `(key=value, ..)`: a model by its digest, every number as a float however the user wrote it."""
    parts = []
    for key, value in sorted(node.items()):
        if key == "checkpoint":
            path = model_path(str(value))
            if not path.is_file():
                raise InputError(f"guidance.checkpoint={value}: no such file; give the model file of the guide")
            parts.append(f"{key}={sha256(path)[:16]}")
        elif not str(key).startswith("_") and key != "trust":
            parts.append(f"{key!s}={float(value) if isinstance(value, int) else str(value)}")
    return f"({', '.join(parts)})" if parts else ""


def sigma_range(cfg: DictConfig, native: Any) -> tuple[float, float]:
    """Return (sigma_max, sigma_min) of a config; a null stands for that end of the model's own noise schedule.

    Args:
        cfg: a config with both keys.
        native: the noise schedule of the model.

    Raises:
        InputError: if one of the keys has a value that is no number in its range, or sigma_min is not below sigma_max.
    """
    first, last = validate.sigma_ends(cfg)
    sigma_max = native.sigma_max if first is None else first
    sigma_min = native.sigma_min if last is None else last
    if not sigma_min < sigma_max:
        raise InputError(
            f"sigma_min={sigma_min:g} and sigma_max={sigma_max:g}: choose 0 <= sigma_min < sigma_max <= inf"
        )
    return sigma_max, sigma_min


def finite_range(cfg: DictConfig, native: Any) -> tuple[float, float]:
    """Return `sigma_range` with a finite level for infinite noise, for measurements at noise levels.

    Raises:
        InputError: as `sigma_range`.
    """
    first, last = sigma_range(cfg, native)
    return native.finite_sigma_max if math.isinf(first) else first, last
