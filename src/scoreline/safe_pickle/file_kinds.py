"""The kind of a file, recognised by its content and never by its name."""

import mmap
import os
import stat
from pathlib import Path

from scoreline.safe_pickle import torch_zip
from scoreline.safe_pickle.limits import Budget, FileError
from scoreline.safe_pickle.machine import Machine, no_persistent, unknown
from scoreline.safe_pickle.window import Window

ZIP, LEGACY, PICKLE, SAFETENSORS = "torch zip file", "legacy torch file", "pickle", "safetensors file"
PICKLE_STARTS = b"\x80(c]})LI"
"""First bytes of a pickle: PROTO, or the opcodes with which protocols 0 and 1 start a checkpoint."""

OTHERS = [
    (b"version https://git-lfs", "a Git LFS pointer instead of the file that it stands for; run git lfs pull"),
    (b"<", "a web page or XML, as a download that needs a login gives; fetch the file itself"),
    (b"{", "JSON text, not a checkpoint; give the file that holds the weights"),
    (b"[", "JSON text, not a checkpoint; give the file that holds the weights"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (b"BZh", "compressed by bzip2; unpack it first"),
    (b"\xfd7zXZ", "compressed by xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it first"),
    (b"\x89HDF", "an HDF5 file, which is not read; ask for a safetensors file"),
    (b"\x93NUMPY", "a single numpy array, not a checkpoint; give the file that holds the weights"),
]


def map_file(path: Path) -> memoryview:
    """Map the file: it takes memory only where it is written to, and must not change while it is in use.

    Raises:
        FileError: if it is no regular file, empty or not readable.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileError(f"it cannot be opened ({reason}); check the path") from error
    try:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise FileError("it is a directory; name the file inside that holds the weights")
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            raise FileError("it is empty or no regular file; get the file anew")
        return memoryview(mmap.mmap(handle, 0, access=mmap.ACCESS_COPY))
    finally:
        os.close(handle)


def kind(view: memoryview) -> str:
    """Return ZIP, LEGACY, PICKLE or SAFETENSORS.

    Raises:
        FileError: for anything else; the message names common mistakes.
    """
    start = view[:512].tobytes()
    if start.startswith(torch_zip.MAGIC):
        return ZIP
    if start[257:262] == b"ustar":
        raise FileError(
            "it is torch's tar format of 2016 or another tar archive, which is not read; save it by newer torch"
        )
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= len(view) - 8:
        return SAFETENSORS
    for beginning, what in OTHERS:
        if start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(beginning):
            raise FileError(f"it is {what}")
    if start[0] not in PICKLE_STARTS:
        raise FileError("it is neither a file of torch.save nor a pickle nor a safetensors file; check what it is")
    return LEGACY if _first_is_magic(view) else PICKLE


def _first_is_magic(view: memoryview) -> bool:
    """Return whether the file starts with a pickle of a number alone, which is never the pickle of a model."""
    try:
        first = Machine(_no_name, no_persistent, Budget(8, 0)).run(Window(view[:64]))
    except ValueError:
        return False
    return type(first) is int


def _no_name(name: str) -> None:
    raise unknown(name)
