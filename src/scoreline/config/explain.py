"""Explain a user's mistake in one sentence: key, value, remedy."""

import errno
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from scoreline.config import conf_folder
from scoreline.config.run_names import own_packages
from scoreline.errors import InputError, did_you_mean, line_of
from scoreline.storage.files import without_space

MISCONFIGURED = "MisconfigurationException"  # Lightning's, by its name, since importing Lightning takes seconds

SUBMITIT = ("UncompletedJobError", "FailedJobError")
"""Errors of submitit, by their names: jobs of a sweep that SLURM did not take, or that ended without a result."""

COMPILERS = {
    "InvalidCxxCompiler": "torch.compile found no C++ compiler; install g++, name yours in CXX",
    "TritonMissing": "torch.compile found no Triton for this GPU; install triton",
    "GPUTooOldForTriton": "this GPU is older than what torch.compile serves",
}
"""Messages for missing parts of torch.compile, by the name of its exception."""

UNUSABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP),
)
"""Error numbers of a path that cannot be read or written."""

LONGEST = 200
"""Most characters of a word; a longer one is cut."""


def explain(error: BaseException) -> str | None:
    """Return the sentence for a mistake of the user, or None for a defect of this package."""
    sentence = _sentence(error)
    return sentence and " ".join(map(_cut, sentence.split()))


def _cut(word: str) -> str:
    return word if len(word) <= LONGEST else f"{word[: LONGEST // 2]}..({len(word)} characters)"


def _sentence(error: BaseException) -> str | None:
    for cause in _causes(error):
        if isinstance(cause, InputError):
            return str(cause)
        if system := _explain_system(cause):
            return system
        if type(cause).__name__ in SUBMITIT:
            return _explain_submitit(str(cause))
        missing = COMPILERS.get(type(getattr(cause, "inner_exception", cause)).__name__)
        if missing:
            return f"compile: {missing}, or use compile=none"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        if not group:
            return f"--config-name {choice}: there is no such config; see --help for how to name your own choices"
        return f"{group}={choice}: there is no such choice{did_you_mean(choice, error.options or [])}"
    if isinstance(error, OverrideParseException):
        override = error.override or "''"
        return f"{override}: not of the form key=value; put quotes round a value with commas, spaces or brackets"
    if isinstance(error, ConfigCompositionException):
        return _explain_composition(error)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: has no default; give {error.full_key}=..."
    if line := _own_line(error):
        return line
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_instantiation(error)
    return None


TARGET = re.compile(r"_target_['\"]?\s*[:=]\s*['\"]?(\w+)\.|\btrust=\[?([\w, ]+)")
"""A class in a config file or a command line, or packages that the command line trusts."""


def _own_line(error: BaseException) -> str | None:
    """Return the key, and the line of the user's own code that raised the error; None if none did."""
    files = [path for folder in conf_folder.folders() for path in folder.rglob("*.yaml")]
    text = "\n".join([*sys.argv, *(path.read_text(errors="replace") for path in files)])
    named = [name.strip() for match in TARGET.finditer(text) for name in (match[1] or match[2]).split(",")]
    packages = own_packages(named)
    line = next((line for cause in _causes(error) if (line := line_of(cause, packages))), None)
    key = _key_of(error)
    return line and f"{f'{key}: ' if key else ''}{line}; HYDRA_FULL_ERROR=1 shows the traceback"


def _key_of(error: BaseException) -> str | None:
    """Return the key whose object Hydra could not build; its exception holds it in the message alone."""
    kinds = (HydraException, OmegaConfBaseException)
    named = re.search(r"full_key: (\S+)", str(error)) if isinstance(error, kinds) else None
    return named and named[1]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explain_system(error: BaseException) -> str | None:
    """Explain a full disk, a full memory or an unusable path; None for other errors."""
    if without_space(error):
        where = getattr(error, "filename", None) or "hydra.run.dir"
        return (
            f"{where}: no space is left on its disk, or a file is larger than this process may write; free some space "
            "or raise the limit (ulimit -f), and repeat the command"
        )
    if isinstance(error, OSError) and error.errno in UNUSABLE and error.filename:
        return f"{error.filename}: {error.strerror}; give another path"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate" in str(error):
        return "memory: none is left; lower network_batch, batch_size, threads or nfe"
    return None


def _explain_submitit(message: str) -> str | None:
    """Explain a job that SLURM refused or ended; None for an error of the job itself, whose traceback follows."""
    refused = re.search(r"\w+: error: (.+)", message)
    ended = re.match(r"Job (\S+) .*with path (.*)\n.*\(state: (\w+)", message)
    if ended:
        job, path, state = ended.groups()
        return f"job {job}: ended without a result (state {state}); see {Path(path).parent}; the same command resumes"
    return refused and f"hydra/launcher=slurm: {refused[1]}; the keys below hydra.launcher go to sbatch"


def _explain_composition(error: BaseException) -> str:
    """Explain a key or value that the config refuses. OmegaConf's errors name the key, Hydra's only in the message."""
    cause, message = error.__cause__, str(error)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return _explain_key(str(cause.full_key))
    if isinstance(cause, OmegaConfBaseException):
        return f"{cause.full_key}: {_first_line(cause)}; give it another value, or leave it out"
    refused = re.match(r"Could not (override|append|delete)[^']*'([^'@]+)", message)
    if refused and refused[1] == "append":
        return f"+{refused[2]}: there is such a key already; write it without +"
    if refused:
        return _explain_key(refused[2])
    several = re.match(r"Ambiguous value for argument '([^=]+)=(.*)'", message)
    if several:
        key, value = several.groups()
        return (
            f"{key}={value}: commas make a sweep, which needs -m; for one value quote it, for Hydra and for the shell: "
            f"\"{key}='{value}'\""
        )
    return _first_line(error)


def _explain_key(key: str) -> str:
    """Name similar keys for an unknown one, or the other choices of a group whose choice has no keys."""
    group = key.partition(".")[0]
    known = conf_folder.known_keys()
    below = {name for name in known if name.startswith(f"{group}.") and "._" not in name}
    others = ", ".join(conf_folder.files(group)) if group in known and not below else ""
    if key in known:  # of the metrics that metrics=auto chooses, which Hydra does not see
        names = ", ".join(name for name in conf_folder.files("metrics") if name != "auto")
        return f"{key}: the model chooses its metrics; give metrics= too, one of {names}"
    if "." in key and others:
        return f"{key}: there is no such key, this {group} has none; drop it, or choose another: {others}"
    return f"{key}: there is no such key{did_you_mean(key, below or known)}"


def _explain_instantiation(error: BaseException) -> str | None:
    """Explain wrong arguments of a `_target_` or an unusable target; None for an error of the called code."""
    message, key = str(error), _key_of(error) or "config"
    located = re.search(r"Error (?:locating|loading) target '?([^',]+)", message)
    if located:
        return f"{key}._target_={located[1]}: {_absent(located[1])}"
    blocked = re.match(r"Target '([^']+)' is blocklisted", message)
    if blocked:
        return f"{key}._target_={blocked[1]}: Hydra does not call it from a config; name a class that may be built"
    kinds = (TypeError, OmegaConfBaseException)
    for cause in _causes(error):
        if isinstance(cause, kinds) or type(cause).__name__ == MISCONFIGURED:
            return f"{key}: {_first_line(cause)}"
    return None


def _absent(target: str) -> str:
    """Say which part of a target is missing; its modules that exist were imported by the attempt to find it."""
    parts = target.split(".")
    known = next((k for k in range(len(parts) - 1, 0, -1) if ".".join(parts[:k]) in sys.modules), 0)
    if not known:
        return f"there is no package {parts[0]} on Python's path; install it, or put its folder into PYTHONPATH"
    module = sys.modules[".".join(parts[:known])]
    if hasattr(module, parts[known]):
        return "there is no such class or function; check its name"
    public = [name for name in vars(module) if not name.startswith("_")]
    return f"{module.__name__} has no '{parts[known]}'{did_you_mean(parts[known], public)}"


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
