"""Fetching a published file, whole and unaltered, or not at all."""

import hashlib
import http.client
import sys
import urllib.request
from pathlib import Path

from scoreline.errors import InputError
from scoreline.files import write_atomically

CHUNK = 2**20
TIMEOUT = 60.0  # seconds without an answer


def download(url: str, target: Path, md5: str) -> None:
    """Fetch `url` to `target` with a progress bar on the standard error, and check its MD5 before it appears there.

    Raises:
        InputError: when it cannot be fetched or written, or when its content is not the published one.
    """
    try:
        write_atomically(target, lambda temporary: _fetch(url, temporary, md5))
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"dataset.download=true: {url} could not be fetched to {target} ({error}); "
            "fetch it by other means and give dataset.path="
        ) from error


def _fetch(url: str, target: Path, md5: str) -> None:
    from tqdm import tqdm

    found = hashlib.md5(usedforsecurity=False)
    print(f"fetching {url}", file=sys.stderr, flush=True)
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, open(target, "wb") as handle:
        size = int(answer.headers.get("Content-Length") or 0) or None
        with tqdm(total=size, unit="B", unit_scale=True, disable=None, leave=False) as progress:
            while chunk := answer.read(CHUNK):
                found.update(chunk)
                handle.write(chunk)
                progress.update(len(chunk))
    if found.hexdigest() != md5:
        raise InputError(
            f"dataset.download=true: {url} arrived with MD5 {found.hexdigest()} instead of {md5}; try again, "
            "or fetch it by other means and give dataset.path="
        )
