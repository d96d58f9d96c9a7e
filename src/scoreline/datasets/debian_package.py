"""Data sets that Debian packages hold: installed, in the cache, or downloaded by apt."""

from dataclasses import dataclass
from pathlib import Path

from scoreline.errors import InputError
from scoreline.storage import bounded_reading
from scoreline.storage.downloads import cached_path, fetch


@dataclass(frozen=True)
class DebianPackage:
    """A package that a data set is read from. Nothing is installed.

    Args:
        name: its name in Debian.
        installed: the path at which an installation puts the data.
    """

    name: str
    installed: str

    @property
    def url(self) -> str:
        """The address for `downloads.fetch`."""
        return f"apt:{self.name}"

    def place(self) -> Path:
        """Return the path of the installed data if they exist, else that of the package in the cache."""
        installed = Path(self.installed)
        return installed if installed.exists() else cached_path(self.url)

    def remedy(self, key: str) -> str:
        """Return how to get the data.

        Args:
            key: the key of the config that names them.
        """
        dataset, _, part = key.rpartition(".")
        return (
            f"`apt-get install {self.name}`, or {dataset}.download=true where there is apt, or give the path of the "
            f"package or of its {part} with {key}="
        )

    def find(self, given: str | None, key: str, download: bool) -> Path:
        """Return the path of the data: of a file or folder, or of a package.

        Args:
            given: the path that the user gives; None for the installed data or those in the cache.
            key: the key of the config that names it.
            download: download the package into the cache if nothing is there.

        Raises:
            InputError: if nothing is there, or the download fails.
        """
        path = self.place() if given is None else bounded_reading.place(given, key)
        if download and given is None and not path.exists():
            return fetch(self.url, remedy=self.remedy(key))
        if not path.exists():
            what = "no such file" if given is not None else f"neither {self.installed} nor {path} is there"
            raise InputError(f"{key}={given or 'null'}: {what}; {self.remedy(key)}")
        return path
