import io
import json
import multiprocessing
import os
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from bounded import refusal
from PIL import Image

from scoreline.datasets import zip_archive
from scoreline.datasets.image_folder import ImageFolder
from scoreline.datasets.zip_archive import ZipArchive
from scoreline.errors import InputError

PIXELS = np.random.default_rng(2).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
NAMES = [f"0000{i // 10}/img{i:08d}.png" for i in range(40)]
LABELS = [i * 7 % 10 for i in range(40)]


def png(image) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path, request):
    """As EDM's tool writes it, in another order than that of the names."""
    path = tmp_path / "tiny-8x8.zip"
    with zipfile.ZipFile(path, "w", getattr(request, "param", zipfile.ZIP_STORED)) as handle:
        for name, image in list(zip(NAMES, PIXELS, strict=True))[::-1]:
            handle.writestr(name, png(image))
        handle.writestr("dataset.json", json.dumps({"labels": list(zip(NAMES, LABELS, strict=True))}))
    return path


@pytest.mark.parametrize("archive", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], indirect=True)
def test_content(archive):
    data = ZipArchive(str(archive), resolution=8)
    images, labels = data.read(range(40))
    assert (data.name, data.shape, data.num_classes) == ("tiny-8x8", (3, 8, 8), 10)
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), PIXELS)
    assert labels.tolist() == LABELS


def test_same_digest_as_the_unpacked_folder(archive, tmp_path):
    with zipfile.ZipFile(archive) as handle:
        handle.extractall(tmp_path / "folder")
    assert ZipArchive(str(archive)).digest == ImageFolder(str(tmp_path / "folder")).digest


def _read_often(job):
    data, seed = job
    order = np.random.default_rng(seed).integers(0, 40, 400)
    images, _ = data.read(order.tolist())
    return os.getpid(), np.array_equal(images.permute(0, 2, 3, 1).numpy(), PIXELS[order])


def _read_global(seed):
    return _read_often((DATA[0], seed))


DATA: list[ZipArchive] = []


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # Python 3.12 and later
def test_forked_workers_read_at_the_same_time(archive):
    """Forked handles share one file position: without reopening, concurrent readers get each other's bytes."""
    DATA[:] = [ZipArchive(str(archive), cache_mib=0)]
    with multiprocessing.get_context("fork").Pool(3) as pool:
        results = pool.map(_read_global, range(9), chunksize=1)
    assert all(right for _, right in results)
    assert os.getpid() not in {pid for pid, _ in results}


def test_reopens_in_another_process(archive, monkeypatch):
    data = ZipArchive(str(archive), cache_mib=0)
    first = data.source.load.archive
    data.read([1])
    assert data.source.load.archive is first
    monkeypatch.setattr(os, "getpid", lambda: -5)
    data.read([1])
    assert data.source.load.archive is not first


def test_survives_pickling(archive):
    data = ZipArchive(str(archive))
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy.read([3, 1])[0], data.read([3, 1])[0])
    assert copy.digest == data.digest


def test_damaged_entry_is_named(archive):
    data = bytearray(archive.read_bytes())
    body = png(PIXELS[7])
    at = data.find(body)
    assert at > 0
    data[at + len(body) // 2] ^= 255
    archive.write_bytes(data)
    with pytest.raises(InputError, match=rf"{NAMES[7]} cannot be unpacked .*CRC"):
        ZipArchive(str(archive)).read([7])


@pytest.mark.parametrize("kept", [0, 100, -30])
def test_truncated_archive(archive, kept):
    archive.write_bytes(archive.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"dataset\.path=.*tiny-8x8\.zip is not a whole zip archive"):
        ZipArchive(str(archive))


def test_declared_size_is_bounded(tmp_path, monkeypatch):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as handle:
        handle.writestr("a.png", png(PIXELS[0]) + bytes(10**6))
    assert len(ZipArchive(str(path))) == 1
    monkeypatch.setattr(zip_archive, "MAX_IMAGE_BYTES", 10**6)
    with pytest.raises(InputError, match=r"a\.png unpacks to 1000\d\d\d bytes, more than 1000000"):
        ZipArchive(str(path))


def test_a_false_size_unpacks_no_more_bytes(tmp_path):
    """The directory says 64 bytes; the data unpack to 50 MB. They must not be made."""
    path = tmp_path / "liar.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as handle:
        handle.writestr("a.png", bytes(5 * 10**7))
    data = path.read_bytes()
    size = (5 * 10**7).to_bytes(4, "little")
    assert data.count(size) == 2
    path.write_bytes(data.replace(size, (64).to_bytes(4, "little")))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"a\.png cannot be unpacked"):
        ZipArchive(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6


def test_packings_without_a_bound_are_refused(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as handle:
        handle.writestr("a.png", png(PIXELS[0]))
    with pytest.raises(InputError, match="packed by method 14; make the zip stored or deflated"):
        ZipArchive(str(path))


def test_encrypted_entry(archive):
    data = archive.read_bytes()
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        parts = data.split(mark)
        parts[1:] = [part[: offset - 4] + b"\x01" + part[offset - 3 :] for part in parts[1:]]
        data = mark.join(parts)
    archive.write_bytes(data)
    with pytest.raises(InputError, match="encrypted"):
        ZipArchive(str(archive))


def test_a_name_given_twice(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as handle:
        handle.writestr("a.png", png(PIXELS[0]))
        with pytest.warns(UserWarning, match="Duplicate name"):
            handle.writestr("a.png", png(PIXELS[1]))
    with pytest.raises(InputError, match=r"holds a\.png twice"):
        ZipArchive(str(path))


def test_outer_folder_hides_no_labels(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as handle:
        handle.writestr("outer/a.png", png(PIXELS[0]))
        handle.writestr("outer/dataset.json", '{"labels": [["a.png", 0]]}')
    with pytest.raises(InputError, match=r"found outer/dataset\.json"):
        ZipArchive(str(path))


def test_wrong_resolution_and_wrong_paths(archive, tmp_path):
    with pytest.raises(InputError, match=r"dataset\.resolution=32"):
        ZipArchive(str(archive), resolution=32)
    with pytest.raises(InputError, match="no such file"):
        ZipArchive(str(tmp_path / "no.zip"))
    with pytest.raises(InputError, match=r"is a folder; .*dataset=image_folder"):
        ZipArchive(str(tmp_path))


def zipped(path, *entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as handle:
        for name, content in entries:
            handle.writestr(name, content)
    return str(path)


def test_a_name_given_twice_in_other_spellings(tmp_path):
    path = zipped(tmp_path / "x.zip", ("x/a.png", png(PIXELS[0])), ("x/./a.png", png(PIXELS[1])))
    with pytest.raises(InputError, match=r"holds x/a\.png twice"):
        ZipArchive(path)


def test_an_empty_class_folder_is_named(tmp_path):
    images = (("a/0.png", png(PIXELS[0])), ("c/0.png", png(PIXELS[1])))
    assert ZipArchive(zipped(tmp_path / "x.zip", *images, ("__MACOSX/", b"")), labels="folders").num_classes == 2
    for empty in (("b/", b""), ("b/inner/", b""), ("b/notes.txt", b"x")):
        with pytest.raises(InputError, match=r"folder b in .* holds no image"):
            ZipArchive(zipped(tmp_path / "x.zip", *images, empty), labels="folders")


def test_labels_that_exhaust(tmp_path):
    for text in (b"[" * 2**23, b'{"labels": [' + b"{}," * 2**22 + b"0]}", b" " * 2**26):
        path = zipped(tmp_path / "x.zip", ("a.png", png(PIXELS[0])), ("dataset.json", text))
        assert os.path.getsize(path) < 2**20
        said = refusal(lambda path=path: ZipArchive(path), room=2**28)
        assert "dataset.json is not of the form" in said
