"""Image files by name in the layout of EDM and StyleGAN, in a folder or an archive."""

import posixpath
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from scoreline.datasets.decode import CONVERSION, decode
from scoreline.errors import InputError

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
MAX_IMAGE_BYTES = 2**26  # 64 MiB for one compressed image
FOREIGN = {".avif", ".bmp", ".gif", ".jp2", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class ImageFiles:
    """A `Source` of image files: `load(name)` reads the bytes of one; `root` names the container in errors."""

    root: str
    names: list[str]
    load: Callable[[str], bytes]

    def __len__(self) -> int:
        return len(self.names)

    def where(self, index: int) -> str:
        """`dataset.path=ROOT: NAME`."""
        return f"dataset.path={self.root}: {self.names[index]}"

    def decode(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as uint8 (C, H, W)."""
        name = self.names[index]
        return decode(self.load(name), self.where(index), [FORMATS[_suffix(name)]])


def select_images(names: Iterable[str], root: str) -> list[str]:
    """Select the PNG and JPEG files among `names`, sorted by name; hidden files do not count.

    Raises:
        InputError: if there is none, or if there are images of another format, which would go missing silently.
    """
    visible = sorted(name for name in names if not is_hidden(name))
    foreign = [name for name in visible if _suffix(name) in FOREIGN]
    if foreign:
        raise InputError(f"dataset.path={root}: {foreign[0]} is neither PNG nor JPEG; {CONVERSION} converts it")
    images = [name for name in visible if _suffix(name) in FORMATS]
    if not images:
        raise InputError(
            f"dataset.path={root}: no .png or .jpg file inside; give the folder or zip that holds them "
            f"({CONVERSION} reads tar archives and pictures of other formats)"
        )
    jpegs = sum(FORMATS[_suffix(name)] == "JPEG" for name in images)
    if jpegs:
        message = f"dataset.path={root}: {jpegs} of {len(images)} images are JPEG, whose losses change FID; prefer PNG"
        warnings.warn(message, UserWarning, stacklevel=3)
    return images


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def normal_path(name: str) -> str:
    """Return the normal form of a relative path, which `a/b.png`, `./a//b.png` and `a\\b.png` share."""
    return posixpath.normpath(name.replace("\\", "/"))


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, so that it is none of the user's images."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)
