"""What went wrong with what a user gave, as one sentence."""

import errno
import re
from collections.abc import Iterator

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from scoreline import conf_folder
from scoreline.errors import InputError, did_you_mean
from scoreline.files import without_space

MISCONFIGURED = "MisconfigurationException"  # Lightning's, told by its name so as not to import Lightning

COMPILERS = {
    "InvalidCxxCompiler": "torch.compile found no C++ compiler; install g++, name yours in CXX",
    "TritonMissing": "torch.compile found no Triton for this GPU; install triton",
    "GPUTooOldForTriton": "this GPU is older than what torch.compile serves",
}
"""What torch.compile misses, by the name of its exception."""

UNUSABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP),
)
"""What the system says of a path that cannot be read or written as it was asked to."""

LONGEST = 200
"""Characters of a word of a sentence; of longer ones the beginning is shown."""


def explain(error: BaseException) -> str | None:
    """The sentence for a mistake in what the user gave, or None for a defect of ours."""
    sentence = _sentence(error)
    return sentence and " ".join(map(_cut, sentence.split()))


def _cut(word: str) -> str:
    return word if len(word) <= LONGEST else f"{word[: LONGEST // 2]}..({len(word)} characters)"


def _sentence(error: BaseException) -> str | None:
    for cause in _causes(error):
        if isinstance(cause, InputError):
            return str(cause)
        of_the_system = _explain_system(cause)
        if of_the_system:
            return of_the_system
        missing = COMPILERS.get(type(getattr(cause, "inner_exception", cause)).__name__)
        if missing:
            return f"compile: {missing}, or use compile=none"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        if not group:
            return f"--config-name {choice}: there is no such config; see --help for how to name your own choices"
        return f"{group}={choice}: there is no such choice{did_you_mean(choice, error.options or [])}"
    if isinstance(error, OverrideParseException):
        given = error.override or "''"
        return f"{given}: not of the form key=value; put quotes round a value with commas, spaces or brackets"
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


def _explain_system(error: BaseException) -> str | None:
    """A disk or a memory that is full, a path that does not serve."""
    if without_space(error):
        where = getattr(error, "filename", None) or "hydra.run.dir"
        return (
            f"{where}: no space is left on its disk, or a file is larger than this process may write; free some space "
            "or raise the limit (ulimit -f), and start the same command again"
        )
    if isinstance(error, OSError) and error.errno in UNUSABLE and error.filename:
        return f"{error.filename}: {error.strerror}; give another path"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate" in str(error):
        return "memory: none is left for what was asked; lower network_batch, batch_size, threads or nfe"
    return None


def _explain_composition(error: BaseException) -> str:
    match = re.search(r"Could not (?:override|append|delete)[^']*'([^'@]+)", str(error))
    if match:
        return _explain_key(match[1].split("=")[0])
    several = re.match(r"Ambiguous value for argument '([^=]+)=(.*)'", str(error))
    if several:
        key, value = several.groups()
        return (
            f"{key}={value}: commas make a sweep, which needs -m; for one value quote it, for Hydra and for the shell: "
            f"\"{key}='{value}'\""
        )
    refused = re.match(r"Error merging override (.*)\n(.*)", str(error))
    if refused:
        return f"{refused[1]}: {refused[2] or 'no value that this key takes'}; give it another value, or leave it out"
    return str(error).splitlines()[0]


def _explain_key(key: str) -> str:
    """No such key; what a group's chosen config has in its place."""
    group = key.partition(".")[0]
    known = conf_folder.known_keys()
    below = {name for name in known if name.startswith(f"{group}.") and "._" not in name}
    if "." in key and group in known and not below:
        others = ", ".join(conf_folder.files(group))
        return f"{key}: there is no such key, this {group} has none; drop it, or choose another: {others}"
    return f"{key}: there is no such key{did_you_mean(key, below or known)}"


def _explain_instantiation(error: BaseException) -> str | None:
    """Wrong arguments of a `_target_`; anything that its code raised itself stays a traceback."""
    known = (TypeError, OmegaConfBaseException)
    unexpected = next((c for c in _causes(error) if isinstance(c, known) or type(c).__name__ == MISCONFIGURED), None)
    match = re.search(r"full_key: (\S+)", str(error))
    located = re.search(r"Error (?:locating|loading) target '?([^',]+)", str(error))
    if located:
        key = match[1] if match else "config"
        return f"{key}._target_={located[1]}: there is no such class or function; check its name and what is installed"
    blocked = re.match(r"Target '([^']+)' is blocklisted", str(error))
    if blocked:
        key = match[1] if match else "config"
        return f"{key}._target_={blocked[1]}: Hydra does not call it from a config; name a class that may be built"
    if unexpected is None:
        return None
    return f"{match[1] if match else 'config'}: {str(unexpected).splitlines()[0]}"
