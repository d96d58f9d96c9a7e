"""Sources of pictures and the classes of their files."""

import io
import json
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from picture_files import encoded
from PIL import Image

from scoreline.datasets.picture_conversion import UnusableError
from scoreline.datasets.picture_labels import read_labels
from scoreline.datasets.picture_sources import open_source
from scoreline.errors import InputError

FILES = {"b/1.png": b"one", "a/0.png": b"zero", "a/deep/2.png": b"two", "notes.txt": b"words"}
HIDDEN = {".DS_Store": b"x", "a/._0.png": b"x", "__MACOSX/a/0.png": b"x"}


def folder(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return str(root)


def zipped(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)


def tarred(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return str(path)


PACKINGS = {
    "folder": lambda root, files: folder(root / "packed", files),
    "zip": lambda root, files: zipped(root / "packed.zip", files),
    "tar": lambda root, files: tarred(root / "packed.tar", files),
    "tar.gz": lambda root, files: tarred(root / "packed.tar.gz", files, "w:gz"),
    "tar.bz2": lambda root, files: tarred(root / "packed.tar.bz2", files, "w:bz2"),
    "tar.xz": lambda root, files: tarred(root / "packed.tar.xz", files, "w:xz"),
}


@pytest.fixture(params=PACKINGS)
def pack(request, tmp_path):
    return lambda files: PACKINGS[request.param](tmp_path, files)


def test_every_packing_has_the_same_files(pack, tmp_path):
    room = tmp_path / "room"
    with open_source(pack({**FILES, **HIDDEN}), None, room) as source:
        assert source.names == ["a/0.png", "a/deep/2.png", "b/1.png", "notes.txt"]
        assert [source.load(name) for name in source.names] == [b"zero", b"two", b"one", b"words"]
        assert source.left_out == {}
    assert not room.exists() or not os.listdir(room)


def test_a_folder_around_everything_does_not_count(pack, tmp_path):
    with open_source(pack({f"pets/{name}": content for name, content in FILES.items()}), None, tmp_path) as source:
        assert source.names == ["a/0.png", "a/deep/2.png", "b/1.png", "notes.txt"]
        assert source.load("b/1.png") == b"one"


def test_a_folder_of_loose_files_counts(pack, tmp_path):
    with open_source(pack({"cat/0.png": b"x", "cat/1.png": b"y"}), None, tmp_path) as source:
        assert source.names == ["cat/0.png", "cat/1.png"]


def test_a_folder_with_labels_is_around_everything(pack, tmp_path):
    with open_source(pack({"pets/0.png": b"x", "pets/dataset.json": b"{}"}), None, tmp_path) as source:
        assert source.names == ["0.png", "dataset.json"]


def test_links_are_left_out(tmp_path):
    root = tmp_path / "pictures"
    folder(root, FILES)
    (tmp_path / "private.png").write_bytes(b"secret")
    (root / "out.png").symlink_to(tmp_path / "private.png")
    (root / "up").symlink_to(tmp_path)
    (root / "inside.png").symlink_to(root / "a" / "0.png")
    with open_source(str(root), None, tmp_path) as source:
        assert source.load("inside.png") == b"zero"
        assert {"out.png", "up"} == {*source.left_out}
        assert source.left_out["out.png"].startswith("link out of the source")
        assert source.left_out["up"] == "link to a folder"
        assert "up/private.png" not in source.names


def test_links_in_a_tar_are_left_out(tmp_path):
    path = tarred(tmp_path / "x.tar", FILES)
    with tarfile.open(path, "a") as archive:
        for name, kind in (("s.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE), ("p.png", tarfile.FIFOTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
    with open_source(path, None, tmp_path) as source:
        assert {*source.left_out} == {"s.png", "h.png", "p.png"}


def test_files_without_end_are_no_pictures(tmp_path):
    folder(tmp_path / "x", {"a.png": b"a"})
    os.mkfifo(tmp_path / "x" / "pipe.png")
    (tmp_path / "x" / "large.png").touch()
    os.truncate(tmp_path / "x" / "large.png", 2**26 + 1)
    with open_source(str(tmp_path / "x"), None, tmp_path) as source:
        for name in ("pipe.png", "large.png"):
            with pytest.raises(UnusableError, match="cannot be read"):
                source.load(name)


def test_cifar10(tmp_path):
    batches = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 3072), dtype=np.uint8)
    files = {
        f"cifar-10-batches-py/{name}": pickle.dumps({b"data": rows, b"labels": [number, 9 - number]}, protocol=2)
        for number, (name, rows) in enumerate(zip(batches, pixels, strict=True))
    }
    path = tarred(tmp_path / "cifar-10-python.tar.gz", files, "w:gz")
    for split, numbers in ((None, range(5)), ("test", range(5, 6))):
        with open_source(path, split, tmp_path) as source:
            found = [np.array(Image.open(io.BytesIO(source.load(name)))) for name in source.names]
            expected = pixels[list(numbers)].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            assert np.array_equal(found, expected)
            classes = [label for number in numbers for label in (number, 9 - number)]
            assert [source.classes[name] for name in source.names] == classes


def test_an_npz_of_samples(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", arr_0=images, arr_1=np.array([0, 1, -1, 2, 0]))
    with open_source(str(tmp_path / "x.npz"), None, tmp_path) as source:
        assert np.array_equal(np.array(Image.open(io.BytesIO(source.load(source.names[2])))), images[2])
        assert [source.classes.get(name) for name in source.names] == [0, 1, None, 2, 0]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda root: str(root / "nowhere"), "nothing is there"),
        (lambda root: folder(root, {"file": b"words"}) + "/file", "is neither a zip nor a whole tar archive"),
        (lambda root: folder(root, {"file": b""}) + "/file", "is neither a zip nor a whole tar archive"),
        (lambda root: folder(root, {"cut.zip": b"PK\3\4"}) + "/cut.zip", "is not a whole zip archive"),
    ],
)
def test_what_is_no_source(make, expected, tmp_path):
    with pytest.raises(InputError, match=expected), open_source(make(tmp_path), None, tmp_path):
        pass


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_truncated_archive_is_refused(mode, tmp_path):
    path = tarred(tmp_path / "x.tar", {f"{i}.png": os.urandom(3000) for i in range(20)}, mode)
    data = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="is neither a zip nor a whole tar archive"), open_source(path, None, tmp_path):
        pass
    assert os.listdir(tmp_path) == ["x.tar"]


def test_a_file_twice_in_an_archive_is_refused(tmp_path):
    path = tarred(tmp_path / "x.tar", {"a.png": b"1", "./a.png": b"2"})
    with pytest.raises(InputError, match=r"holds a\.png twice"), open_source(path, None, tmp_path):
        pass


def test_splits_are_those_of_cifar10_alone(tmp_path):
    with pytest.raises(InputError, match="split=test"), open_source(folder(tmp_path, FILES), "test", tmp_path):
        pass


def labels_of(path, choice, room):
    with open_source(path, None, room) as source:
        return read_labels(choice, source)


def listed(*pairs):
    return json.dumps({"labels": [list(pair) for pair in pairs]}).encode()


def test_classes_from_every_file_of_labels(pack, tmp_path):
    expected = {"a/0.png": 3, "b/1.png": 0}
    path = pack({**FILES, "dataset.json": listed(("a/0.png", 3), ("b\\1.png", 0))})
    for choice in ("auto", "file"):
        assert labels_of(path, choice, tmp_path).by_name == expected
    path = pack({**FILES, "dataset.json": b'{"labels": null}'})
    assert labels_of(path, "auto", tmp_path).by_name is None


def test_classes_of_webdataset(pack, tmp_path):
    shard = {"000.png": b"x", "000.cls": b"4", "001.jpg": b"y", "001.cls": b"2\n", "001.json": b"{}", "002.png": b"z"}
    labels = labels_of(pack(shard), "auto", tmp_path)
    assert {"000.png": 4, "001.jpg": 2}.items() <= labels.by_name.items()
    assert "002.png" not in labels.by_name
    assert labels.files == {"000.cls", "001.cls"}
    assert labels_of(pack(shard), "none", tmp_path).by_name is None


def test_classes_of_a_table(tmp_path):
    path = folder(
        tmp_path / "pictures", {**FILES, "labels.csv": b"file,class\na/0.png,cat\nb/1.png,ant\nother.png,zoo\n"}
    )
    labels = labels_of(path, "labels.csv", tmp_path)
    assert labels.by_name == {"a/0.png": "cat", "b/1.png": "ant"}
    assert labels.numbers(["cat", "ant", "cat"]) == {"ant": 0, "cat": 1}
    assert labels.files == {"labels.csv"}
    (tmp_path / "numbers.csv").write_text("a/0.png,7,more\nb/1.png,2\n")
    assert labels_of(path, str(tmp_path / "numbers.csv"), tmp_path).by_name == {"a/0.png": 7, "b/1.png": 2}


def test_classes_of_folders(pack, tmp_path):
    labels = labels_of(pack(FILES), "folders", tmp_path)
    assert labels.by_name == {"a/0.png": "a", "a/deep/2.png": "a", "b/1.png": "b"}


@pytest.mark.parametrize(
    ("choice", "files", "expected"),
    [
        ("auto", {"dataset.json": listed(("a/0.png", 0), ("a/./0.png", 1))}, "labels a/0.png twice"),
        ("auto", {"dataset.json": listed(("a/0.png", [0, 1]))}, "one integer from 0"),
        ("auto", {"dataset.json": listed(("a/0.png", -1))}, "one integer from 0"),
        ("auto", {"dataset.json": listed(("a/0.png", 10**9))}, "classes"),
        ("auto", {"dataset.json": b"{"}, "not of the form"),
        ("auto", {"a/dataset.json": b"{}"}, "lies in a folder"),
        ("auto", {"a/0.cls": b"cat"}, "one integer from 0"),
        ("file", {}, "there is no dataset.json"),
        ("cls", {}, "no .cls file"),
        ("x.csv", {"x.csv": b"a/0.png,1\na/0.png,2\n"}, "labels a/0.png twice"),
        ("x.csv", {"x.csv": b"z.png,1\n"}, "names no file"),
        ("x.csv", {"x.csv": b"\xff\xfe\xff"}, "no CSV file"),
        ("x.csv", {}, "cannot be read"),
        ("nosuch", {}, "choose auto"),
    ],
)
def test_unusable_labels(choice, files, expected, tmp_path):
    with pytest.raises(InputError, match=expected):
        labels_of(zipped(tmp_path / "x.zip", {**FILES, **files}), choice, tmp_path)


def test_a_picture_of_the_files_above_is_one(tmp_path):
    """The fixtures hold words in place of pictures; a real one passes through unchanged."""
    data = encoded(Image.new("L", (4, 4), 7))
    with open_source(tarred(tmp_path / "x.tar.gz", {"0.png": data}, "w:gz"), None, tmp_path) as source:
        assert source.load("0.png") == data
