"""What went wrong with what a user gave, as one sentence."""

import re
from collections.abc import Iterator

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from scoreline.conf_folder import known_keys
from scoreline.errors import InputError, did_you_mean

MISCONFIGURED = "MisconfigurationException"  # Lightning's, told by its name so as not to import Lightning

COMPILERS = {
    "InvalidCxxCompiler": "torch.compile found no C++ compiler; install g++, name yours in CXX",
    "TritonMissing": "torch.compile found no Triton for this GPU; install triton",
    "GPUTooOldForTriton": "this GPU is older than what torch.compile serves",
}
"""What torch.compile misses, by the name of its exception."""


def explain(error: BaseException) -> str | None:
    """The sentence for a mistake in what the user gave, or None for a defect of ours."""
    for cause in _causes(error):
        if isinstance(cause, InputError):
            return " ".join(str(cause).split())
        missing = COMPILERS.get(type(getattr(cause, "inner_exception", cause)).__name__)
        if missing:
            return f"compile: {missing}, or use compile=none"
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
