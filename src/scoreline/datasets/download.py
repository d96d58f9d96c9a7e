"""Fetching a published data set."""

from pathlib import Path

from scoreline.downloads import fetch
from scoreline.errors import InputError


def download(url: str, target: Path, md5: str) -> None:
    """`downloads.fetch` to a place that the user chose with dataset.path.

    Raises:
        InputError: when it cannot be fetched or written, or when its content is not the published one.
    """
    try:
        fetch(url, target, md5=md5, remedy="fetch it by other means and give dataset.path=")
    except InputError as error:
        raise InputError(f"dataset.download=true: {error}") from error
