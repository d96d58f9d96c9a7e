"""Bounded readers of files, of JSON, and of arrays in npy and npz files."""

import io
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from bounded import refusal

from scoreline.errors import InputError
from scoreline.storage import bounded_reading, npy

ARRAYS = [
    np.arange(12.0).reshape(3, 4),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.array(5),
    np.array("some text"),
    np.zeros((0, 3), np.uint8),
    np.arange(3, dtype=np.uint64),
    np.arange(6, dtype=">f4").reshape(2, 3),
    np.array([True, False]),
    np.array([1 + 2j]),
    np.ones(2, np.longdouble),
]


def raw(header: str, content: bytes = b"", version: int = 1) -> bytes:
    """An npy file with a header of its own."""
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header.encode() + content


def described(shape: str, code: str = "'|u1'") -> bytes:
    return raw(f"{{'descr': {code}, 'fortran_order': False, 'shape': {shape}, }}\n", bytes(768))


HOSTILE = {
    "no npy file": b"PK\x03\x04 and more than eight bytes",
    "nothing": b"",
    "another version": raw("{}", version=9),
    "a header of 4 GB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 100,
    "a long header": raw("{" + " " * 20_000),
    "brackets": raw("(" * 5000),
    "signs": raw("{'descr': '<i8', 'fortran_order': False, 'shape': " + "-" * 5000 + "1}"),
    "blanks": raw("{'descr': '<i8'" + " " * 9000),
    "a huge shape": described("(1000000000000,)"),
    "a product beyond 64 bits": described("(4294967296, 4294967296, 4294967296)"),
    "a side beyond 64 bits": described(f"({10**30}, 0)"),
    "a negative shape": described("(-4,)"),
    "two negative sides": described("(-4, -8)"),
    "more than is there": described("(769,)"),
    "a huge text": described("(4,)", "'<U536870911'"),
    "an opaque type": described("(4,)", "'|V2147483647'"),
    "objects": described("(4,)", "'|O'"),
    "a structure": described("(1,)", "[('a', 'O')]"),
    "no type": described("(1,)", "'<i3'"),
    "a date": described("(1,)", "'<M8[s]'"),
    "two shapes": raw("{'descr': '<i8', 'shape': (1,), 'shape': (2,)}\n"),
    "three shapes": raw("{'shape': (1,), 'shape': (2,), 'shape': (3,)}\n"),
}


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_arrays_are_those_that_numpy_saved(array: np.ndarray, version: tuple[int, int], tmp_path: Path) -> None:
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array(file, array, version)
    found = npy.read(tmp_path / "a.npy")
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert np.array_equal(found, array)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_members_are_those_that_numpy_saved(array: np.ndarray, save, tmp_path: Path) -> None:
    save(tmp_path / "a.npz", before=np.zeros(3), it=array)
    found = npy.member(tmp_path / "a.npz", "it")
    assert found is not None
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert np.array_equal(found, array)
    assert npy.member(tmp_path / "a.npz", "other") is None


def test_headers_of_other_writers() -> None:
    text = '{"shape":(3L, 2L),"descr":"<f4" , "fortran_order" : True}\n'
    assert npy.header(io.BytesIO(raw(text))) == npy.Header(np.dtype("<f4"), True, (3, 2))


def named(function, path: Path):
    """The reader, whose exceptions become an InputError as in every caller."""

    def call() -> None:
        try:
            function(path)
        except bounded_reading.DAMAGE as error:
            raise InputError(f"refused: {error}") from error

    return call


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_npy_files_are_refused(case: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(HOSTILE[case])
    assert refusal(named(npy.read, tmp_path / "a.npy")).startswith("refused: ")


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_hostile_npz_files_are_refused(packing: int, tmp_path: Path) -> None:
    for place, (case, content) in enumerate(HOSTILE.items()):
        path = tmp_path / f"{place}.npz"
        with zipfile.ZipFile(path, "w", packing) as archive:
            archive.writestr("a.npy", content)
        assert refusal(named(lambda path: npy.member(path, "a"), path)).startswith("refused: "), case


def zeros(path: Path, size: int) -> Path:
    """`size` zeros in an npz file of a thousandth of that."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (size,)})
        for start in range(0, size, 2**24):
            file.write(bytes(min(2**24, size - start)))
    return path


def test_decompression_bomb_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(npy, "UNPACKED", 2**20)
    path = zeros(tmp_path / "a.npz", 2**25)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"unpacks from [\d,]+ to 33,[\d,]+ bytes; use numpy\.savez"):
            npy.member(path, "a")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    np.savez_compressed(tmp_path / "c.npz", a=np.random.default_rng(0).integers(0, 9, 2**21, dtype=np.uint8))
    assert npy.member(tmp_path / "c.npz", "a") is not None


def test_a_zip_that_lies_about_sizes(tmp_path: Path) -> None:
    whole = zeros(tmp_path / "a.npz", 2**20).read_bytes()
    record = whole.index(b"PK\x01\x02")
    for place, value in ((20, 2**31), (24, 2**32 - 2)):  # compressed and plain size in the directory
        lie = bytearray(whole)
        lie[record + place : record + place + 4] = struct.pack("<I", value)
        (tmp_path / "b.npz").write_bytes(lie)
        assert refusal(named(lambda path: npy.member(path, "a"), tmp_path / "b.npz")).startswith("refused: ")


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    for name in ("loop", "zero", "pipe", ".", "missing", "x" * 300):
        said = refusal(named(lambda path: bounded_reading.content(path, 100), tmp_path / name), seconds=5)
        assert said.startswith("refused: "), name
    (tmp_path / "long").write_bytes(bytes(101))
    with pytest.raises(ValueError, match="it has 101 bytes, more than 100"):
        bounded_reading.content(tmp_path / "long", 100)
    assert bounded_reading.content(tmp_path / "long", 101) == bytes(101)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 100_000, "more than 99 values"),
        (b"[" * 100_000 + b"]" * 100_000, "more than 99 values"),
        (b"[" + b"{}," * 99 + b"{}]", "more than 99 values"),
        (b"9" * 5000, "integer string conversion"),
        (b"\xff\xfe\x00", "truncated|decode"),
        (b"[1", "Expecting"),
    ],
)
def test_json_that_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bounded_reading.json_value(text, 99)


def test_json_that_is_deep_or_read() -> None:
    with pytest.raises(ValueError, match="too deeply"):
        bounded_reading.json_value(b"[" * 100_000, 2**20)
    assert bounded_reading.json_value(b'{"a": [1, 2.5, null], "b": {"c": "d, e"}}', 12) == {
        "a": [1, 2.5, None],
        "b": {"c": "d, e"},
    }
    assert bounded_reading.json_value("\ufeff[1]".encode(), 2) == [1]


def test_names_that_no_file_has() -> None:
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(InputError, match=r"^dataset\.path=.{1,70}no file has such a name"):
            bounded_reading.place(name, "dataset.path")
    assert bounded_reading.place("~/x", "k") == Path.home() / "x"
    assert bounded_reading.place("~nobody-of-this-name/x", "k") == Path("~nobody-of-this-name/x")
