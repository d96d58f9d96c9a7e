"""Download published files: each one once, whole, and with the right checksum."""

import glob
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import url2pathname

from scoreline.errors import InputError
from scoreline.storage.files import cache_folder, remove, write_atomically
from scoreline.storage.files import sha256 as sha256_of

OFFLINE = "SCORELINE_OFFLINE"
"""Environment variable that forbids downloads unless it is empty or 0."""

PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further attempt."""

PASSING = (408, 425, 429, 500, 502, 503, 504)
"""HTTP answers that may change a moment later."""

TIMEOUT = 60.0
"""Seconds without an answer after which an attempt fails."""


def fetch(url: str, target: Path | None = None, sha256: str | None = None, remedy: str | None = None) -> Path:
    """Download the file at `url` unless it is there already. Use it for every file that comes from the network.

    The file appears under its name by a rename, once its length and checksum are right; a download that is
    interrupted leaves nothing under that name, and the next one starts from the beginning. If several processes ask
    for a file at once, one downloads it and the others wait. A file that exists is never overwritten.

    Args:
        url: an https or file address, or `apt:PACKAGE` for a Debian package, which apt fetches and checks by the
            signatures of its servers; an http address needs a checksum, unless it is on this machine. A file of the
            Hugging Face hub (`https://huggingface.co/OWNER/NAME/resolve/REVISION/FILE`) comes through huggingface_hub,
            which knows the user's token.
        target: the path to write; None means `cached_path(url)`.
        sha256: the expected SHA-256, hexadecimal.
        remedy: what the user can do if the download fails; None names `scoreline prefetch` and the path.

    Returns:
        The path of the file.

    Raises:
        InputError: if the file cannot be downloaded or written, if it is missing and SCORELINE_OFFLINE is set (and
            not 0), or if its checksum is wrong.
    """
    place = cached_path(url) if target is None else target
    remedy = remedy or f"run `scoreline prefetch` with network access, or fetch it by other means and put it at {place}"
    try:
        if not place.exists():
            if os.environ.get(OFFLINE, "") not in ("", "0") and urlsplit(url).scheme != "file":
                raise InputError(f"{place} is not there, and {OFFLINE} forbids downloads of {url}; {remedy}")
            _download_once(url, place, sha256, remedy)
        _check(place, sha256, f"{place} (from {url}) exists, but has", f"remove it, or {remedy}")
    except OSError as error:
        raise InputError(f"{url} could not be fetched to {place} ({error}); {remedy}") from error
    return place


def cached_path(url: str) -> Path:
    """Return the path where `fetch` keeps a file: one cache folder for each URL, since file names repeat.

    Raises:
        InputError: if the URL does not end in the name of a file.
    """
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    if not name or name == "..":
        raise InputError(f"{url}: does not end in the name of a file; give the address of a file")
    return cache_folder("downloads", hashlib.sha256(url.encode()).hexdigest()[:16]) / name


def check_url(url: str, sha256: str | None = None) -> None:
    """Refuse addresses whose content could be altered on the way without notice.

    Raises:
        InputError: for http without a checksum, except from this machine, and for any scheme but https, http and file.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http", "file"):
        raise InputError(f"{url}: only https, http and file addresses can be fetched")
    if parts.scheme == "http" and sha256 is None and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise InputError(f"{url}: over http anybody on the way can alter a file; give its SHA-256, or an https address")


def _check(path: Path, sha256: str | None, what: str, remedy: str) -> None:
    if sha256 is not None and (digest := sha256_of(path)) != sha256.lower():
        raise InputError(f"{what} SHA-256 {digest} instead of {sha256.lower()}; {remedy}")


def _download_once(url: str, place: Path, sha256: str | None, remedy: str) -> None:
    from filelock import FileLock, Timeout

    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_name(f".{place.name}.lock"))
    try:
        acquired = lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that fetches {url}", file=sys.stderr, flush=True)
        acquired = lock.acquire()
    with acquired:
        try:
            if not place.exists():
                _download(url, place, sha256, remedy)
        finally:  # while the lock is held: whoever waits notices that the file is gone, and makes another one
            Path(lock.lock_file).unlink(missing_ok=True)


def _download(url: str, place: Path, sha256: str | None, remedy: str) -> None:
    def write(part: Path) -> None:
        _transfer(url, part, sha256)
        _check(part, sha256, f"{url} arrived with", f"try again, or {remedy}")

    if urlsplit(url).scheme != "apt":
        check_url(url, sha256)
    for leftover in place.parent.glob(f".{glob.escape(place.name)}.*.part"):  # of a process that was killed
        remove(leftover)
    print(f"fetching {url}", file=sys.stderr, flush=True)
    write_atomically(place, write)


def _transfer(url: str, part: Path, sha256: str | None) -> None:
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    on_hub = re.fullmatch(rf"{re.escape(hub)}/([\w.-]+/[\w.-]+)/resolve/([^/?]+)/([^?]+)(\?.*)?", url)
    if urlsplit(url).scheme == "file":
        shutil.copyfile(url2pathname(urlsplit(url).path), part)
    elif urlsplit(url).scheme == "apt":
        _from_apt(urlsplit(url).path, part)
    elif on_hub and ".." not in unquote(url):
        _from_hub(hub, on_hub[1], unquote(on_hub[2]), unquote(on_hub[3]), part)
    else:
        _from_server(url, part, sha256)


def _from_apt(package: str, part: Path) -> None:
    """Download a package by `apt-get download`, which needs no rights and installs nothing."""
    apt, folder = shutil.which("apt-get"), part.with_suffix(".apt.part")
    if apt is None or not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", package):
        raise OSError("there is no apt-get here" if apt is None else "Debian has no package of such a name")
    folder.mkdir(exist_ok=True)
    try:
        run = subprocess.run([apt, "download", package], cwd=folder, capture_output=True, text=True, check=False)
        packages = list(folder.glob("*.deb"))
        if run.returncode or len(packages) != 1:
            reason = " ".join(run.stderr.split()) or "no package arrived"
            raise OSError(f"{reason}; `apt-get update` renews the list of packages")
        os.replace(packages[0], part)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _from_hub(endpoint: str, repository: str, revision: str, name: str, part: Path) -> None:
    from huggingface_hub import hf_hub_download

    folder = part.with_suffix(".hub.part")
    try:
        file = hf_hub_download(repository, name, revision=revision, local_dir=folder, endpoint=endpoint)
        os.replace(file, part)
    except Exception as error:  # of several families, httpx's among them
        raise OSError(" ".join(str(error).split())) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _from_server(url: str, part: Path, sha256: str | None) -> None:
    from pooch import HTTPDownloader
    from requests import RequestException, Response
    from requests.exceptions import SSLError

    def refuse(response: Response, **_: Any) -> None:
        if response.is_redirect:
            check_url(urljoin(response.url, response.headers["Location"]), sha256)
        elif response.ok and response.status_code != 200:  # requests raises an error for those that are not ok
            raise InputError(f"{url}: the server answers {response.status_code}; give the address of a file")

    options = {"timeout": TIMEOUT, "headers": {"Accept-Encoding": "identity"}, "hooks": {"response": refuse}}
    download = HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=2**20, **options)
    for pause in (*PAUSES, None):
        try:
            download(url, str(part), None)
            return
        except RequestException as error:
            answered = error.response is not None and error.response.status_code not in PASSING
            if pause is None or answered or isinstance(error, SSLError):
                raise
            print(f"{error}; trying again", file=sys.stderr, flush=True)
            time.sleep(pause)
