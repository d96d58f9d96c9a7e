import zipfile

import numpy as np
import pytest
import torch
from bounded import refusal

from scoreline.datasets import generated_images
from scoreline.datasets.base import ArrayDataset
from scoreline.datasets.npz_archive import NpzArchive
from scoreline.errors import InputError


def pixels(n=7, shape=(5, 4, 3)):
    return np.random.Generator(np.random.PCG64(0)).integers(0, 256, (n, *shape), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("labels", [None, np.arange(7) % 3])
def test_reads_what_numpy_saved(tmp_path, save, labels):
    arrays = {"arr_0": pixels()} | ({} if labels is None else {"arr_1": labels})
    save(tmp_path / "x.npz", **arrays)
    data = NpzArchive(str(tmp_path / "x.npz"))
    want = ArrayDataset(
        "x", torch.from_numpy(pixels()).permute(0, 3, 1, 2), None if labels is None else torch.from_numpy(labels)
    )
    assert (len(data), data.shape, data.name) == (7, (3, 5, 4), "x")
    assert data.num_classes == (0 if labels is None else 3)
    for found, wanted in zip(data.read([6, 0, 3]), want.read([6, 0, 3]), strict=True):
        assert torch.equal(found, wanted)
    assert data.digest == want.digest


def test_other_arrays_and_fortran_order_are_read(tmp_path):
    np.savez(tmp_path / "x.npz", mu=np.zeros(9), arr_0=np.asfortranarray(pixels()), sigma=np.eye(9))
    data = NpzArchive(str(tmp_path / "x.npz"))
    assert torch.equal(data.read(range(7))[0], torch.from_numpy(pixels()).permute(0, 3, 1, 2))


def test_an_uncompressed_file_is_mapped_and_not_loaded(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=pixels())
    assert isinstance(NpzArchive(str(tmp_path / "x.npz"))._images, np.memmap)


BAD = {
    "nothing": ({"other": np.zeros(3)}, "holds no arr_0"),
    "floats": ({"arr_0": np.zeros((2, 4, 4, 3))}, r"holds arr_0 of float64"),
    "flat": ({"arr_0": np.zeros((2, 4), np.uint8)}, r"holds arr_0 of uint8 \(2, 4\)"),
    "none": ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, "holds arr_0"),
    "channels first": ({"arr_0": np.zeros((2, 3, 8, 8), np.uint8)}, "put the channels last"),
    "labels": (
        {"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "arr_1": np.zeros(3, int)},
        "does not give one class to each of 2 images",
    ),
    "pickle": ({"arr_0": np.array([{}], dtype=object)}, "cannot be read as an npz file"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_other_content_is_refused(tmp_path, case, save):
    arrays, message = BAD[case]
    save(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=message):
        NpzArchive(str(tmp_path / "x.npz"))


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        NpzArchive(str(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(InputError, match="cannot be read as an npz file"):
        NpzArchive(str(tmp_path / "text.npz"))


def test_given_images_are_read_by_what_they_are(tmp_path):
    import zipfile

    from PIL import Image

    folder = tmp_path / "folder"
    folder.mkdir()
    for k, image in enumerate(pixels()):
        Image.fromarray(image).save(folder / f"{k}.png")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    np.savez(tmp_path / "x.npz", arr_0=pixels())
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.json").write_text("{}")
    (tmp_path / "x.npz").rename(run / "samples.npz")
    found = [generated_images.images(str(place)) for place in (folder, tmp_path / "x.zip", run / "samples.npz", run)]
    assert len({data.digest for data in found}) == 1
    assert [len(data) for data in found] == [7] * 4


def test_unfinished_runs_and_runs_without_images_are_named(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(InputError, match="this run is not finished"):
        generated_images.images(str(tmp_path))
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match="kept no images as npz, png or zip; sample again with format=npz"):
        generated_images.images(str(tmp_path))


def test_other_places_are_named(tmp_path):
    (tmp_path / "x.tar").write_text("")
    with pytest.raises(InputError, match=r"x\.tar: neither \.npz nor \.zip \(scoreline dataset .*\); give a folder"):
        generated_images.images(str(tmp_path / "x.tar"))
    with pytest.raises(InputError, match="nothing is there; give a folder"):
        generated_images.images(str(tmp_path / "none"))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            np.full(7, 2**64 - 1, np.uint64),
            r"arr_1: class 18446744073709551615 makes 18446744073709551616 classes of 7",
        ),
        (np.arange(7) * 10**9, r"arr_1: class 6000000000 makes 6000000001 classes of 7 images"),
        (np.arange(7) - 2, "arr_1 holds class -2; classes are 0, 1, .., and -1 is none"),
    ],
)
def test_classes_that_cannot_be(tmp_path, save, labels, message):
    save(tmp_path / "x.npz", arr_0=pixels(), arr_1=labels)
    with pytest.raises(InputError, match=message):
        NpzArchive(str(tmp_path / "x.npz"))


def test_few_images_of_many_classes(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=pixels(), arr_1=np.array([999, 3, -1, 0, 0, 0, 0], np.int16))
    data = NpzArchive(str(tmp_path / "x.npz"))
    assert data.num_classes == 1000
    assert data.read(range(3))[1].tolist() == [999, 3, -1]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_declared_sizes_take_no_memory(tmp_path, save):
    save(tmp_path / "x.npz", arr_0=pixels())
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        content, packing = archive.read("arr_0.npy"), archive.infolist()[0].compress_type
    for shape in (b"(7000000, 5000, 4, 3)", b"(7, -5, -4, 3)", b"(7, 5, 4, 4)"):
        header = content.replace(b"(7, 5, 4, 3)", shape).replace(b" " * (len(shape) - 12) + b"\n", b"\n", 1)
        with zipfile.ZipFile(tmp_path / "y.npz", "w", packing) as archive:
            archive.writestr("arr_0.npy", header)
        assert "cannot be read as an npz file" in refusal(lambda: NpzArchive(str(tmp_path / "y.npz")), room=2**25)
