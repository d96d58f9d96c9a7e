"""Debian packages and an apt-get that delivers them, for tests."""

import io
import os
import tarfile
from pathlib import Path

PACKING = {"data.tar": "w", "data.tar.gz": "w:gz", "data.tar.bz2": "w:bz2", "data.tar.xz": "w:xz"}


def write_package(
    path: Path, files: dict[str, bytes], links: dict[str, str] | None = None, data: str = "data.tar.xz"
) -> Path:
    """Write a package as dpkg-deb does: an `ar` archive of debian-binary, control.tar.gz and the data."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=PACKING[data]) as tar:
        for name in sorted({f"./{folder}" for file in files for folder in Path(file).parents}):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(f"./{name}")
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
        for name, file in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(file)
            tar.addfile(info, io.BytesIO(file))
    members = {"debian-binary": b"2.0\n", "control.tar.gz": b"odd", data: content.getvalue()}
    path.write_bytes(b"!<arch>\n" + b"".join(member(name, data) for name, data in members.items()))
    return path


def member(name: str, data: bytes) -> bytes:
    """A member of an `ar` archive; the next one begins at an even place."""
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
    return header + data + b"\n" * (len(data) % 2)


def write_apt(folder: Path, packages: Path, monkeypatch) -> Path:
    """Put an apt-get first on the PATH that copies packages/NAME.deb; return the log of its calls."""
    folder.mkdir()
    script, log = folder / "apt-get", folder / "calls"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\n[ -f {packages}/$2.deb ] && exec cp {packages}/$2.deb "./$2_1.0_all.deb"\n'
        'echo "E: Unable to locate package $2" >&2\nexit 100\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return log
