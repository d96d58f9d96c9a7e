"""One file from a URL to a place: attempts, continuation of a part, and the rename at the end."""

import hashlib
import http.client
import json
import os
import re
import ssl
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from scoreline.errors import InputError
from scoreline.files import write_atomically

CHUNK = 2**20
TIMEOUT = 60.0  # seconds without an answer
PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before further attempts, which are counted anew whenever bytes have come
PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that may be others a moment later
LOOPBACK = ("127.0.0.1", "localhost", "::1")
TITLES = {"sha256": "SHA-256", "md5": "MD5"}


@dataclass(frozen=True)
class Job:
    """Fetch `url` to `target`.

    Attributes:
        wanted: name of a hash function (sha256, md5) -> what the content must have, hexadecimal.
        remedy: what a user can do when it cannot be fetched.
    """

    url: str
    target: Path
    wanted: dict[str, str]
    remedy: str

    @property
    def part(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def origin(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part.json")

    def forget(self) -> None:
        self.origin.unlink(missing_ok=True)
        self.part.unlink(missing_ok=True)

    def failed(self, reason: object) -> InputError:
        return InputError(f"{self.url} could not be fetched to {self.target} ({reason}); {self.remedy}")


def transfer(job: Job) -> None:
    """Fetch what is not there, while other processes that want the same wait.

    A part that was put together from several answers and has a wrong checksum is fetched anew once.

    Raises:
        InputError: when it cannot be fetched; `NAME.part` keeps what has come. When its checksum is wrong; nothing of
            it is kept.
        OSError: when it cannot be written.
    """
    check_url(job.url, bool(job.wanted))
    job.target.parent.mkdir(parents=True, exist_ok=True)
    with _claimed(job) as handle:
        if job.target.exists():
            job.forget()
            return
        print(f"fetching {job.url}", file=sys.stderr, flush=True)
        try:
            if _complete(job, handle) and not _as_wanted(job):
                print("what has come is not the published file; fetching it anew", file=sys.stderr, flush=True)
                handle.truncate(0)
                _complete(job, handle)
        except BaseException:
            if not _size(handle):
                job.forget()
            raise
        try:
            check(job.part, job.wanted, f"{job.url} arrived with", f"try again, or {job.remedy}")
        except InputError:
            job.forget()
            raise
        os.fsync(handle.fileno())
        os.replace(job.part, job.target)
        job.origin.unlink(missing_ok=True)


def check_url(url: str, checked: bool) -> None:
    """Refuse addresses under which anybody on the way could have altered the file.

    Args:
        checked: whether the content is compared with a published checksum.

    Raises:
        InputError: for http without a checksum, except from this machine itself, and for other schemes than https,
            http and file.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http", "file"):
        raise InputError(f"{url}: only https, http and file addresses can be fetched")
    if parts.scheme == "http" and not checked and parts.hostname not in LOOPBACK:
        raise InputError(f"{url}: over http anybody on the way can alter a file; give its SHA-256, or an https address")


def digest(path: Path, name: str) -> str:
    """A file's `sha256` or `md5`, hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.new(name, usedforsecurity=False)).hexdigest()


def check(path: Path, wanted: dict[str, str], what: str, remedy: str) -> None:
    """Raises InputError, in a sentence from `what` to `remedy`, unless the file has these checksums."""
    for name, value in wanted.items():
        found = digest(path, name)
        if found != value:
            raise InputError(f"{what} {TITLES[name]} {found} instead of {value}; {remedy}")


def _as_wanted(job: Job) -> bool:
    return all(digest(job.part, name) == value for name, value in job.wanted.items())


@contextmanager
def _claimed(job: Job) -> Iterator[IO[bytes]]:
    """The part, open for appending, and locked against other processes until it is closed."""
    while True:
        with open(job.part, "ab") as handle:
            _lock(handle, job.url)
            if _is_at(handle, job.part):
                yield handle
                return


def _lock(handle: IO[bytes], url: str) -> None:
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for another process that fetches {url}", file=sys.stderr, flush=True)
        fcntl.flock(handle, fcntl.LOCK_EX)


def _is_at(handle: IO[bytes], path: Path) -> bool:
    """Not so if the process that had the lock has renamed or removed the file."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _size(handle: IO[bytes]) -> int:
    handle.flush()
    return os.fstat(handle.fileno()).st_size


@dataclass(frozen=True)
class _Origin:
    """What a part is a part of.

    Attributes:
        validator: value for If-Range; empty if the server gave none.
        size: of the whole file; None if the server did not say.
    """

    url: str
    validator: str
    size: int | None


class _BrokenError(Exception):
    """This attempt failed; another one may succeed."""


def _complete(job: Job, handle: IO[bytes]) -> bool:
    """Attempts until the part is whole; True if it was put together from several answers."""
    farthest, failures = _size(handle), 0
    while True:
        try:
            return _attempt(job, handle) > 0
        except _BrokenError as error:
            come = _size(handle)
            failures = 1 if come > farthest else failures + 1
            farthest = max(come, farthest)
            if failures > len(PAUSES):
                raise job.failed(error) from error
            print(f"{error}; trying again", file=sys.stderr, flush=True)
        time.sleep(PAUSES[failures - 1])


def _attempt(job: Job, handle: IO[bytes]) -> int:
    """One request for what is missing; the position from which it was answered, or the size of what was whole."""
    origin = _known_origin(job)
    have = _size(handle) if origin is not None and _may_go_on(origin, job) else 0
    if origin is not None and have and have == origin.size:
        return have
    if not have or origin is None or (origin.size is not None and have > origin.size):
        return _whole(job, handle)
    with _opened(job, handle, _range(have, origin)) as answer:
        if getattr(answer, "status", None) != 206:
            return _from_start(job, handle, answer)
        if not _continues(answer.headers, have, origin):
            handle.truncate(0)
            raise _BrokenError("the server continues with another part than asked for")
        _append(job, handle, answer, have)
    return have


def _whole(job: Job, handle: IO[bytes]) -> int:
    with _opened(job, handle, {}) as answer:
        return _from_start(job, handle, answer)


def _from_start(job: Job, handle: IO[bytes], answer: Any) -> int:
    if getattr(answer, "status", None) not in (None, 200):
        raise job.failed(f"the server answers {answer.status} {answer.reason}")
    length = _number(answer.headers["Content-Length"])
    origin = _Origin(job.url, _validator(answer.headers), length)
    handle.truncate(0)
    write_atomically(job.origin, lambda temporary: temporary.write_text(json.dumps(asdict(origin))))
    _append(job, handle, answer, 0)
    return 0


def _append(job: Job, handle: IO[bytes], answer: Any, start: int) -> None:
    from tqdm import tqdm

    length = _number(answer.headers["Content-Length"])
    total = None if length is None else start + length
    with tqdm(total=total, initial=start, unit="B", unit_scale=True, disable=None, leave=False) as progress:
        while chunk := _received(job, answer):
            handle.write(chunk)
            progress.update(len(chunk))
    if total is not None and _size(handle) != total:
        raise _BrokenError(f"the connection ended after {_size(handle)} of {total} bytes")


def _received(job: Job, answer: Any) -> bytes:
    try:
        received: bytes = answer.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(f"the connection broke ({error})") from error
    return received


def _known_origin(job: Job) -> _Origin | None:
    try:
        return _Origin(**json.loads(job.origin.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _may_go_on(origin: _Origin, job: Job) -> bool:
    return origin.url == job.url and bool(origin.validator or job.wanted)


def _validator(headers: Message) -> str:
    tag = headers["ETag"] or ""
    return (tag if tag and not tag.startswith("W/") else headers["Last-Modified"]) or ""


def _range(have: int, origin: _Origin) -> dict[str, str]:
    condition = {"If-Range": origin.validator} if origin.validator else {}
    return {"Range": f"bytes={have}-", **condition}


def _continues(headers: Message, have: int, origin: _Origin) -> bool:
    """Is this the rest, from byte `have` to the end, of the very file that the part is of?"""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", (headers["Content-Range"] or "").strip())
    if found is None or int(found[1]) != have:
        return False
    total = _number(found[3])
    same_size = None in (total, origin.size) or total == origin.size
    to_the_end = total is None or int(found[2]) == total - 1
    validator = _validator(headers)
    return same_size and to_the_end and validator in ("", origin.validator)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdecimal() else None


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, checked: bool) -> None:
        self.checked = checked

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        check_url(newurl, self.checked)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opened(job: Job, handle: IO[bytes], headers: dict[str, str]) -> Any:
    """The server's answer.

    Raises:
        InputError: if another attempt would end like this one.
    """
    opener = urllib.request.build_opener(_Redirects(bool(job.wanted)))
    request = urllib.request.Request(job.url, headers={"User-Agent": "scoreline", **headers})
    try:
        return opener.open(request, timeout=TIMEOUT)
    except HTTPError as error:
        reason = f"the server answers {error.code} {error.reason}"
        error.close()
        if error.code == 416 and headers:
            handle.truncate(0)
        elif error.code not in PASSING:
            raise job.failed(reason) from error
        raise _BrokenError(reason) from error
    except (OSError, http.client.HTTPException) as error:
        if _is_final(error, job.url):
            raise job.failed(error) from error
        raise _BrokenError(f"no answer ({error})") from error


def _is_final(error: Exception, url: str) -> bool:
    untrusted = isinstance(error, URLError) and isinstance(error.reason, ssl.SSLCertVerificationError)
    return untrusted or urlsplit(url).scheme == "file"
