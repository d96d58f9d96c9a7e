"""Published files on this machine: fetched once, whole and unaltered, or not at all."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from scoreline.cache import folder
from scoreline.errors import InputError
from scoreline.files import write_atomically
from scoreline.transfers import Job, check, digest, transfer

OFFLINE = "SCORELINE_OFFLINE"


def fetch(
    url: str, target: Path | None = None, sha256: str | None = None, md5: str | None = None, remedy: str | None = None
) -> Path:
    """The file at `url`, fetched unless it is there already.

    An interrupted fetch leaves `NAME.part`, and the next one asks for the rest, if the server tells by ETag or
    Last-Modified that the file is still the same; without either a part is used only towards a checksum. Broken
    connections are tried again. Of several processes one fetches and the others wait. The file appears by a rename
    once its length and checksums are right; one with other checksums is removed.

    Args:
        url: https or file; http only with a checksum, or from this machine itself.
        target: where to put it; None is `cached_path(url)`, with its size and SHA-256 beside it in `NAME.json`. Its
            size is compared whenever it is used, its content by `verify`.
        sha256, md5: what its content must have, hexadecimal.
        remedy: what a user can do when it cannot be fetched; None is to put the file there by hand.

    Raises:
        InputError: when it cannot be fetched or written, or is not there and SCORELINE_OFFLINE is set (and not 0);
            when it is not the published file, as it arrives or where it lies.
    """
    wanted = {name: value.lower() for name, value in (("sha256", sha256), ("md5", md5)) if value is not None}
    place = cached_path(url) if target is None else target
    job = Job(url, place, wanted, remedy or f"fetch it by other means and put it at {place}")
    try:
        if not place.exists():
            _refuse_offline(job)
            transfer(job)
        elif target is not None:
            check(place, wanted, f"{place} is there, but has", f"remove it, or {job.remedy}")
        if target is None:
            _compare(job)
    except OSError as error:
        raise InputError(f"{url} could not be fetched to {place} ({error}); {job.remedy}") from error
    return place


def cached_path(url: str) -> Path:
    """Where `fetch` keeps a file: a folder of the cache for each URL, since names repeat.

    Raises:
        InputError: for a URL that does not end in the name of a file.
    """
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    if not name or name == "..":
        raise InputError(f"{url}: does not end in the name of a file; give the address of a file")
    return folder("downloads", hashlib.sha256(url.encode()).hexdigest()[:16]) / name


def verify(path: Path) -> str:
    """Read a file of the cache anew; its SHA-256.

    Raises:
        InputError: if its content is not what had arrived, or what had arrived is not on record.
    """
    known = _known(path)
    if known is None:
        raise InputError(f"{path}: what had arrived is not on record; {_anew(path)}")
    check(path, {"sha256": known.sha256}, f"{path} has changed since it arrived: it has", _anew(path))
    return known.sha256


@dataclass(frozen=True)
class _Arrival:
    url: str
    bytes: int
    sha256: str


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _known(path: Path) -> _Arrival | None:
    if not _record(path).is_file():
        return None
    try:
        return _Arrival(**json.loads(_record(path).read_text()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{_record(path)} is damaged ({error}); {_anew(path)}") from error


def _anew(path: Path) -> str:
    return f"remove the folder {path.parent} to fetch it anew"


def _refuse_offline(job: Job) -> None:
    if os.environ.get(OFFLINE, "") not in ("", "0") and urlsplit(job.url).scheme != "file":
        raise InputError(f"{job.target} is not there, and {OFFLINE} forbids to fetch {job.url}; {job.remedy}")


def _compare(job: Job) -> None:
    """A file of the cache with its record; one that has just come, or was put there by hand, gets its record."""
    path, known = job.target, _known(job.target)
    if known is None:
        check(path, job.wanted, f"{path} is there, but has", _anew(path))
        arrival = _Arrival(job.url, path.stat().st_size, digest(path, "sha256"))
        write_atomically(_record(path), lambda temporary: temporary.write_text(json.dumps(asdict(arrival), indent=1)))
        return
    if path.stat().st_size != known.bytes:
        raise InputError(
            f"{path} has {path.stat().st_size} bytes where {known.bytes} had arrived; it is damaged: {_anew(path)}"
        )
    wanted = job.wanted.get("sha256", known.sha256)
    if wanted != known.sha256:
        raise InputError(f"{path} arrived with SHA-256 {known.sha256} instead of {wanted}; {_anew(path)}")
    if "md5" in job.wanted:
        check(path, {"md5": job.wanted["md5"]}, f"{path} has", _anew(path))
