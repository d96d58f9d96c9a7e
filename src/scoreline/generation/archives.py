"""zip and tar archives whose bytes depend on what is in them only: no clock, no user, no machine."""

import io
import tarfile
import zipfile

UNIX = 3
MODE = 0o644


def zip_entry(name: str) -> zipfile.ZipInfo:
    """A file of a zip archive, stored, dated 1980-01-01, the first day that zip knows."""
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_STORED, UNIX, MODE << 16
    return entry


def add_to_tar(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """A file of a tar archive, dated 1970-01-01, of nobody.

    The archive forgets it at once: its list of members would grow with the images.
    """
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), MODE
    archive.addfile(entry, io.BytesIO(content))
    archive.getmembers().clear()
