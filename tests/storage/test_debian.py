"""Debian packages, read without dpkg."""

from pathlib import Path

import pytest
from debian_files import PACKING, member, write_package

from scoreline.storage import debian
from scoreline.storage.debian import is_package, package_files

FILES = {"usr/share/a/one.png": b"1", "usr/share/a/b/two.png": b"22", "usr/share/doc/a/copyright": b"free"}


@pytest.mark.parametrize("data", PACKING)
def test_plain_files_of_a_suffix(tmp_path: Path, data: str) -> None:
    path = write_package(tmp_path / "a.deb", FILES, {"usr/share/a/link.png": "one.png"}, data)
    assert is_package(path)
    assert dict(package_files(path, ".png", 2)) == {name: FILES[name] for name in list(FILES)[:2]}
    assert dict(package_files(path, "/copyright", 4)) == {"usr/share/doc/a/copyright": b"free"}


def test_unsuitable_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_package(tmp_path / "a.deb", FILES)

    def refusal(content: bytes, longest: int = 2) -> str:
        path.write_bytes(content)
        with pytest.raises(debian.DAMAGE) as caught:
            list(package_files(path, ".png", longest))
        return str(caught.value)

    whole = path.read_bytes()
    assert refusal(whole, 1) == "./usr/share/a/b/two.png has 2 bytes, more than 1"
    assert refusal(b"PK" + whole) == "it is no Debian package"
    assert not is_package(path)
    assert refusal(whole[:140]) == "it holds no data.tar"
    assert refusal(whole[:-60])
    assert refusal(whole[:56] + b"-60       " + whole[66:]) == "it holds no data.tar"
    packed = debian.MAGIC + member("debian-binary", b"2.0\n") + member("data.tar.zst", b"zst")
    assert refusal(packed) == "it is packed as data.tar.zst; unpack it by `dpkg-deb -x`, and give the folder or file"
    monkeypatch.setattr(debian, "MOST_UNPACKED", 2000)
    assert refusal(whole) == "it unpacks to more than 2,000 bytes"
