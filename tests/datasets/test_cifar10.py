import builtins
import gzip
import hashlib
import io
import os
import pickle
import re
import struct
import subprocess
import tarfile
import time

import numpy as np
import pytest
from bounded import refusal

from scoreline.datasets import cifar10
from scoreline.datasets.cifar10 import Cifar10
from scoreline.datasets.cifar_pickle import read_batch
from scoreline.errors import InputError

RNG = np.random.default_rng(3)
NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
PIXELS = {name: RNG.integers(0, 256, (4, 3072), dtype=np.uint8) for name in NAMES}
LABELS = {name: [int(x) for x in RNG.integers(0, 10, 4)] for name in NAMES}


def text(value: bytes) -> bytes:
    """A Python 2 `str`: SHORT_BINSTRING or BINSTRING."""
    return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value


def python2_batch(pixels: np.ndarray, labels: list[int]) -> bytes:
    """Protocol 2 as cPickle and NumPy 1.x wrote it in 2009, opcode by opcode."""
    rows = struct.pack("<H", len(pixels))
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85" + text(b"b") + b"\x87Rq\x09"
    dtype = b"cnumpy\ndtype\nq\x0a" + text(b"u1") + b"K\x00K\x01\x87Rq\x0b"
    dtype += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = b"(K\x01M" + rows + b"M\x00\x0c\x86" + dtype + b"\x89" + text(pixels.tobytes()) + b"tb"
    items = [
        text(b"batch_label") + text(b"a batch of a test"),
        text(b"labels") + b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e",
        text(b"data") + array + state,
        text(b"filenames") + b"](" + b"".join(text(b"x_%06d.png" % i) for i in range(len(labels))) + b"e",
    ]
    return b"\x80\x02}q\x01(" + b"".join(items) + b"u."


def python3_batch(pixels: np.ndarray, labels: list[int], protocol: int) -> bytes:
    return pickle.dumps({b"data": pixels, b"labels": labels}, protocol=protocol)


def write_archive(path, files=None):
    with tarfile.open(path, "w:gz") as tar:
        for name in NAMES:
            data = (files or {}).get(name, python2_batch(PIXELS[name], LABELS[name]))
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def archive(tmp_path):
    return write_archive(tmp_path / "cifar-10-python.tar.gz")


def test_numpy_reads_the_hand_written_pickle():
    batch = pickle.loads(python2_batch(PIXELS["test_batch"], LABELS["test_batch"]), encoding="bytes")
    assert np.array_equal(batch[b"data"], PIXELS["test_batch"])
    assert batch[b"labels"] == LABELS["test_batch"]


def test_train_is_the_five_batches_in_order(archive):
    data = Cifar10(str(archive))
    images, labels = data.read(range(20))
    want = np.concatenate([PIXELS[name] for name in NAMES[:5]])
    assert (data.name, data.shape, data.num_classes, len(data)) == ("cifar10-train", (3, 32, 32), 10, 20)
    assert np.array_equal(images.numpy().reshape(20, 3072), want)
    assert images[7, 2, 30, 5] == want[7, 2 * 1024 + 30 * 32 + 5]
    assert labels.tolist() == [label for name in NAMES[:5] for label in LABELS[name]]


def test_archive_folder_and_parents_are_the_same(archive, tmp_path):
    digest = Cifar10(str(archive), "test").digest
    assert Cifar10(str(tmp_path), "test").digest == digest  # holds the archive
    archive.rename(tmp_path / "elsewhere.tar.gz")
    with tarfile.open(tmp_path / "elsewhere.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    assert Cifar10(str(tmp_path / "cifar-10-batches-py"), "test").digest == digest
    assert Cifar10(str(tmp_path), "test").digest == digest  # holds the folder


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_batches_rewritten_by_python_3(protocol, order):
    pixels, labels = PIXELS["test_batch"], LABELS["test_batch"]
    data = python3_batch(np.asarray(pixels, order=order), labels, protocol)
    found, classes = read_batch(data, "x")
    assert np.array_equal(found, pixels)
    assert classes == labels


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def attacks(mark):
    """Each would create the file `mark` if the standard unpickler read it."""
    touch = f"open({str(mark)!r}, 'w').close()"
    lookup = Call(getattr, Call(__import__, "os"), "system")
    nested = b"\x80\x02(" + pickle.dumps(lookup, 2)[2:-1] + b"X" + struct.pack("<I", len(f"touch {mark}"))
    nested += f"touch {mark}".encode() + b"\x85R1."
    return {
        "os.system": pickle.dumps(Call(os.system, f"touch {mark}")),
        "subprocess": pickle.dumps(Call(subprocess.call, ["touch", str(mark)])),
        "builtins.eval": pickle.dumps(Call(builtins.eval, touch)),
        "builtins.exec": pickle.dumps(Call(builtins.exec, touch), 0),
        "inside a batch": pickle.dumps({b"data": PIXELS["test_batch"], b"labels": [Call(builtins.eval, touch)] * 4}),
        "nested getattr": nested,
        "INST": b"(S'touch " + str(mark).encode() + b"'\nios\nsystem\n.",
        "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x11core.os.system_xx\x93.",
    }


@pytest.mark.parametrize("kind", list(attacks("x")))
def test_malicious_pickles_are_refused_and_not_run(kind, tmp_path):
    mark = tmp_path / "mark"
    with pytest.raises(InputError, match=r"^b is not a CIFAR-10 batch \(it names [\w.]+, which no CIFAR-10 batch"):
        read_batch(attacks(mark)[kind], "b")
    assert not mark.exists()


@pytest.mark.parametrize("kind", [k for k in attacks("x") if k not in ("nested getattr", "dotted name")])
def test_the_attacks_are_real(kind, tmp_path):
    """Read by the standard unpickler, they do what they are refused for."""
    mark = tmp_path / "mark"
    pickle.loads(attacks(mark)[kind])
    assert mark.exists()


def test_admitted_names_are_not_called_either():
    """numpy's own functions stay out of reach: a pickle that calls them makes a record, and changes no state."""
    before = read_batch(python2_batch(PIXELS["test_batch"], [1, 2, 3, 4]), "b")
    hostile = b"\x80\x02cnumpy\ndtype\n(NU\x04name}U\x01xK\x01s\x86b."  # BUILD: setattr on what `numpy.dtype` gives
    for data in (hostile, b"\x80\x02cnumpy\nndarray\n(K\x01t\x81.", b"\x80\x02cnumpy\ndtype\n."):
        with pytest.raises(InputError, match="not a CIFAR-10 batch"):
            read_batch(data, "b")
    after = read_batch(python2_batch(PIXELS["test_batch"], [1, 2, 3, 4]), "b")
    assert np.array_equal(before[0], after[0])


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {b"labels": [1]},
        {b"data": 3, b"labels": [1]},
        {b"data": np.zeros((1, 3072), np.float32), b"labels": [1]},
        {b"data": np.zeros((1, 3072), np.int8), b"labels": [1]},
        {b"data": np.zeros((1, 3071), np.uint8), b"labels": [1]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [True]},
        {b"data": np.zeros((1, 3072), np.uint8), b"fine_labels": [1]},
    ],
)
def test_other_content_is_refused(content):
    with pytest.raises(InputError, match="b is not a CIFAR-10 batch"):
        read_batch(pickle.dumps(content, 2), "b")


@pytest.mark.parametrize("cut", [0, 1, 40, 3000])
def test_truncated_pickles_are_refused(cut):
    with pytest.raises(InputError, match="b is not a CIFAR-10 batch"):
        read_batch(python2_batch(PIXELS["test_batch"], [1, 2, 3, 4])[:cut], "b")


def test_a_bad_batch_is_named_with_its_key(tmp_path):
    path = write_archive(tmp_path / "a.tar.gz", {"data_batch_3": pickle.dumps(Call(os.system, "true"))})
    with pytest.raises(InputError, match=r"^dataset\.path=.*a\.tar\.gz: data_batch_3 is not"):
        Cifar10(str(path))
    assert len(Cifar10(str(path), "test")) == 4


def test_damaged_or_incomplete_archives(archive, tmp_path):
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(InputError, match="is not a whole tar archive"):
        Cifar10(str(archive))
    archive.write_bytes(b"no archive")
    with pytest.raises(InputError, match="is not a whole tar archive"):
        Cifar10(str(archive))
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "test_batch").write_bytes(b"")
    with pytest.raises(InputError, match=r"has no data_batch_1; download https://www\.cs\.toronto\.edu"):
        Cifar10(str(tmp_path / "f"))


def test_links_and_oversized_members_are_not_read(tmp_path, monkeypatch):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        link = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(InputError, match="has no test_batch"):
        Cifar10(str(path), "test")
    monkeypatch.setattr(cifar10, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="has no test_batch"):
        Cifar10(str(write_archive(tmp_path / "b.tar.gz")), "test")


def test_missing_archive_and_other_split(tmp_path):
    with pytest.raises(InputError, match=r"use dataset\.download=true, or fetch https://.*cifar-10-python\.tar\.gz"):
        Cifar10(str(tmp_path / "cifar-10-python.tar.gz"))
    with pytest.raises(InputError, match=r"dataset\.split=all: .*test, train"):
        Cifar10(split="all")


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A stand-in for the authors' server."""
    path = write_archive(tmp_path / "server.tar.gz")
    monkeypatch.setattr(cifar10, "URL", path.as_uri())
    monkeypatch.setattr(cifar10, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.mark.parametrize("place", ["data/c/cifar-10-python.tar.gz", "data/c"])
def test_download(published, tmp_path, place, capfd):
    data = Cifar10(str(tmp_path / place), "test", download=True)
    assert np.array_equal(data.images.numpy().reshape(4, 3072), PIXELS["test_batch"])
    assert [file.name for file in (tmp_path / "data" / "c").iterdir()] == ["cifar-10-python.tar.gz"]
    assert f"fetching {published.as_uri()}" in capfd.readouterr().err
    published.unlink()
    assert len(Cifar10(str(tmp_path / place), "test", download=True)) == 4  # what is there is not fetched again


def test_download_with_another_checksum_leaves_nothing(published, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "SHA256", "0" * 64)
    with pytest.raises(InputError, match=r"arrived with SHA-256 \w{64} instead of 0{64}"):
        Cifar10(str(tmp_path / "d" / "c.tar.gz"), download=True)
    assert list((tmp_path / "d").iterdir()) == []


def test_download_that_fails_says_what_to_do(published, tmp_path):
    published.unlink()
    with pytest.raises(InputError, match=r"could not be fetched to .*c\.tar\.gz .*give dataset\.path="):
        Cifar10(str(tmp_path / "c.tar.gz"), download=True)
    assert not (tmp_path / "c.tar.gz").exists()


def test_the_published_address_and_checksum():
    assert cifar10.URL == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert cifar10.SHA256 == "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"


LAUGHS = b"\x80\x04)\x94" + b"".join(b"(" + (b"h" + bytes([i])) * 10 + b"t\x94" for i in range(20)) + b"}h\x14K\x01s."
EXHAUSTING = {
    "a memo far away": b"\x80\x02]r" + struct.pack("<I", 2**28) + b".",
    "bytes announced": b"\x80\x04\x8e" + struct.pack("<Q", 2**50) + b"x.",
    "a key that takes forever to hash": LAUGHS,
    "deep tuples": b"\x80\x04)" + b"\x85" * 5_000_000 + b".",
    "deep lists": b"\x80\x04" + b"]" * 3_000_000 + b"a" * 2_999_999 + b".",
    "texts encoded again and again": b"\x80\x02c_codecs\nencode\nq\x00X\x00\x00\x10\x00"
    + b"x" * 2**20
    + b"q\x01X\x06\0\0\0latin1q\x02"
    + b"0h\x00h\x01h\x02\x86R" * 1000
    + b".",
}


@pytest.mark.parametrize("kind", EXHAUSTING)
def test_pickles_that_exhaust_are_refused(kind):
    said = refusal(lambda: read_batch(EXHAUSTING[kind], "b"), room=2**28)
    assert said.startswith("b is not a CIFAR-10 batch (")
    assert len(said.splitlines()) == 1


def test_a_whole_batch_is_read_quickly():
    pixels = RNG.integers(0, 256, (10_000, 3072), dtype=np.uint8)
    for data in (python2_batch(pixels, [1] * 10_000), python3_batch(pixels, [1] * 10_000, 4)):
        start = time.monotonic()
        found, _ = read_batch(data, "b")
        assert np.array_equal(found, pixels)
        assert time.monotonic() - start < 10


def longname(size):
    """The member by which GNU tar announces a name of `size` bytes."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    return info.tobuf(tarfile.GNU_FORMAT)


def test_archives_that_exhaust_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "MAX_UNPACKED", 2**22)
    bomb = tmp_path / "bomb.tar.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.write(longname(2**33) + bytes(2**26))
    assert "is not a whole tar archive (it unpacks to more than" in refusal(lambda: Cifar10(str(bomb)), room=2**25)
    info = tarfile.TarInfo("other")
    info.size = 2**25
    with tarfile.open(tmp_path / "long.tar.gz", "w:gz", compresslevel=1) as tar:
        tar.addfile(info, io.BytesIO(bytes(2**25)))
    with pytest.raises(InputError, match="it unpacks to more than"):
        Cifar10(str(tmp_path / "long.tar.gz"))


def test_plain_tars_are_read_but_endless_batches_refused(archive, tmp_path):
    plain = tmp_path / "plain.tar"
    plain.write_bytes(gzip.decompress(archive.read_bytes()))
    assert Cifar10(str(plain)).digest == Cifar10(str(archive)).digest
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "test_batch").symlink_to("/dev/zero")
    (tmp_path / "f" / "data_batch_1").write_bytes(b"")
    said = refusal(lambda: Cifar10(str(tmp_path / "f"), "test"), room=2**26, seconds=5)
    assert re.search("has no|holds a file that is not a batch|neither", said)
