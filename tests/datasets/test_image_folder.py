import json
import multiprocessing
import os
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from bounded import refusal
from PIL import Image

from scoreline.datasets.base import ArrayDataset
from scoreline.datasets.image_files import ImageFiles
from scoreline.datasets.image_folder import ImageFolder
from scoreline.datasets.lazy import Classes, LazyDataset
from scoreline.errors import InputError

PIXELS = np.random.default_rng(1).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
NAMES = [f"0000{i // 3}/img{i:08d}.png" for i in range(6)]
LABELS = [2, 0, 1, 1, 2, 0]


def write(root, names=NAMES, pixels=PIXELS):
    for name, image in zip(names, pixels, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / name)
    return root


def write_labels(root, labels=LABELS, names=NAMES):
    (root / "dataset.json").write_text(json.dumps({"labels": [list(pair) for pair in zip(names, labels, strict=True)]}))


def expected(labels=LABELS, classes=3):
    return ArrayDataset("x", torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy()), torch.tensor(labels), classes)


def test_edm_layout_with_labels(tmp_path):
    root = write(tmp_path / "tiny-4x4")
    write_labels(root)
    folder = ImageFolder(str(root))
    assert (folder.name, folder.shape, folder.num_classes, len(folder)) == ("tiny-4x4", (3, 4, 4), 3, 6)
    assert folder.digest == expected().digest
    images, labels = folder.read([4, 1])
    assert torch.equal(images, expected().images[[4, 1]])
    assert labels.tolist() == [2, 0]


def test_order_is_by_name_not_by_creation(tmp_path):
    write(tmp_path, NAMES[::-1], PIXELS[::-1])
    assert torch.equal(ImageFolder(str(tmp_path)).read(range(6))[0], expected().images)


@pytest.mark.parametrize("text", [None, '{"labels": null}'])
def test_without_labels(tmp_path, text):
    write(tmp_path)
    if text:
        (tmp_path / "dataset.json").write_text(text)
    folder = ImageFolder(str(tmp_path))
    assert folder.num_classes == 0
    assert folder.read([0, 3])[1].tolist() == [-1, -1]


def test_windows_names_in_labels(tmp_path):
    write(tmp_path)
    write_labels(tmp_path, names=[name.replace("/", "\\") for name in NAMES])
    assert ImageFolder(str(tmp_path)).read(range(6))[1].tolist() == LABELS


def test_folders_as_classes(tmp_path):
    write(tmp_path, ["dog/1.png", "cat/deep/2.png", "dog/0.png", "ant/x.PNG"], PIXELS[:4])
    folder = ImageFolder(str(tmp_path), labels="folders")
    assert folder.num_classes == 3
    assert folder.read(range(4))[1].tolist() == [0, 1, 2, 2]
    assert torch.equal(folder.read([2])[0], expected().images[[2]])  # dog/0.png
    assert ImageFolder(str(tmp_path)).num_classes == 0


def test_labels_none_overrules_the_file(tmp_path):
    write_labels(write(tmp_path))
    assert ImageFolder(str(tmp_path), labels="none").num_classes == 0


def test_grey_images(tmp_path):
    write(tmp_path, NAMES, PIXELS[..., 0])
    folder = ImageFolder(str(tmp_path))
    assert folder.shape == (1, 4, 4)
    assert np.array_equal(folder.read(range(6))[0][:, 0].numpy(), PIXELS[..., 0])


def test_hidden_files_do_not_count(tmp_path):
    write(tmp_path)
    (tmp_path / "00000" / "._img00000000.png").write_bytes(b"no image")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails" / "a.gif").write_bytes(b"no image")
    assert len(ImageFolder(str(tmp_path))) == 6


@pytest.mark.parametrize("cache_mib", [0, 1])
def test_cache_is_used_exactly_when_the_set_fits(tmp_path, cache_mib):
    write(tmp_path)
    folder = ImageFolder(str(tmp_path), cache_mib=cache_mib)
    folder.read(range(6))
    Image.fromarray(255 - PIXELS[2]).save(tmp_path / NAMES[2])
    image = folder.read([2])[0][0].permute(1, 2, 0).numpy()
    assert np.array_equal(image, PIXELS[2] if cache_mib else 255 - PIXELS[2])


def test_what_is_read_can_be_changed_without_harm(tmp_path):
    folder = ImageFolder(str(write(tmp_path)))
    folder.read([0])[0].zero_()
    assert torch.equal(folder.read([0])[0], expected().images[[0]])


def test_empty_request(tmp_path):
    images, labels = ImageFolder(str(write(tmp_path))).read([])
    assert images.shape == (0, 3, 4, 4)
    assert labels.shape == (0,)


def test_an_empty_source_is_refused():
    with pytest.raises(InputError, match="x: the data set holds no image"):
        LazyDataset("x", ImageFiles("x", [], str.encode), Classes.none(0))


def test_survives_pickling(tmp_path):
    folder = ImageFolder(str(write(tmp_path)))
    folder.read(range(6))
    assert len(pickle.dumps(folder)) < 3000
    assert pickle.loads(pickle.dumps(folder)).digest == folder.digest


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # Python 3.12 and later
def test_forked_reader(tmp_path):
    folder = ImageFolder(str(write(tmp_path)))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        sums = pool.map(_sum, [(folder, [i]) for i in range(6)])
    assert sums == PIXELS.reshape(6, -1).sum(1).tolist()


def _sum(job):
    folder, indices = job
    return int(folder.read(indices)[0].sum())


@pytest.mark.parametrize("shape", [(4, 5, 3), (4, 4)], ids=["size", "colour"])
def test_an_image_that_differs_is_named(tmp_path, shape):
    write(tmp_path)
    Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / NAMES[3])
    folder = ImageFolder(str(tmp_path))
    with pytest.raises(InputError, match=rf"{NAMES[3]} is 4x. \w+, but .*{NAMES[0]} is 4x4 RGB: scoreline dataset"):
        folder.digest  # noqa: B018


def test_resolution_is_demanded_never_made(tmp_path):
    write(tmp_path)
    assert ImageFolder(str(tmp_path), resolution=4).shape == (3, 4, 4)
    with pytest.raises(InputError, match=r"dataset\.resolution=8: .* are 4x4; drop .*resolution=8 resizes"):
        ImageFolder(str(tmp_path), resolution=8)


def test_jpeg_is_taken_with_a_warning(tmp_path):
    write(tmp_path)
    Image.fromarray(PIXELS[0]).save(tmp_path / "00000" / "zzz.JPG")
    with pytest.warns(UserWarning, match="1 of 7 images are JPEG, whose losses change FID"):
        folder = ImageFolder(str(tmp_path))
    assert folder.read([3])[0].shape == (1, 3, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (tmp_path / "00000" / "zzz.JPG").unlink()
        ImageFolder(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"dataset\.json is not of the form"),
        ("[]", "not of the form"),
        ('{"classes": 3}', "not of the form"),
        ('{"labels": [["a.png"]]}', "not of the form"),
        ('{"labels": [["a.png", 0]]}', rf"gives no label for {NAMES[0]}"),
        ("onehot", rf"labels {NAMES[1]} with \[0, 1\]; one integer"),
        ("negative", rf"labels {NAMES[1]} with -1"),
        ("true", rf"labels {NAMES[1]} with True"),
    ],
)
def test_unusable_label_files(tmp_path, text, message):
    write(tmp_path)
    odd = {"onehot": [0, 1], "negative": -1, "true": True}
    if text in odd:
        write_labels(tmp_path, [0, odd[text], 0, 0, 0, 0])
    else:
        (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=message):
        ImageFolder(str(tmp_path))


def test_unusable_label_rules(tmp_path):
    write(tmp_path)
    with pytest.raises(InputError, match=r"dataset\.labels=folder: .*folders"):
        ImageFolder(str(tmp_path), labels="folder")
    with pytest.raises(InputError, match=r"labels=file: there is no dataset\.json"):
        ImageFolder(str(tmp_path), labels="file")
    write(tmp_path, ["loose.png"], PIXELS[:1])
    with pytest.raises(InputError, match=r"loose\.png in .* lies in no folder"):
        ImageFolder(str(tmp_path), labels="folders")


def test_misplaced_label_file_is_not_overlooked(tmp_path):
    write_labels(write(tmp_path / "inner"))
    with pytest.raises(InputError, match=r"found inner/dataset\.json, but .* top"):
        ImageFolder(str(tmp_path))
    assert ImageFolder(str(tmp_path), labels="none").num_classes == 0


def test_unusable_folders(tmp_path):
    with pytest.raises(InputError, match=r"dataset\.path=.*missing: no such folder"):
        ImageFolder(str(tmp_path / "missing"))
    with pytest.raises(InputError, match=r"no \.png or \.jpg file inside"):
        ImageFolder(str(tmp_path))
    (tmp_path / "file.zip").write_bytes(b"")
    with pytest.raises(InputError, match=r"is a file; .*dataset=zip"):
        ImageFolder(str(tmp_path / "file.zip"))


def test_images_that_would_go_missing_are_refused(tmp_path):
    write(tmp_path)
    Image.fromarray(PIXELS[0]).save(tmp_path / "00001" / "extra.webp")
    with pytest.raises(InputError, match=r"00001/extra\.webp is neither PNG nor JPEG"):
        ImageFolder(str(tmp_path))
    (tmp_path / "00001" / "extra.webp").unlink()
    (tmp_path / "00002").symlink_to(tmp_path / "00001", target_is_directory=True)
    with pytest.raises(InputError, match="00002 is a link to a folder"):
        ImageFolder(str(tmp_path))


def test_an_image_that_vanishes_is_named(tmp_path):
    folder = ImageFolder(str(write(tmp_path)))
    (tmp_path / NAMES[5]).unlink()
    with pytest.raises(InputError, match=rf"{NAMES[5]} cannot be read \(No such file"):
        folder.read([5])


def test_sizes_are_those_of_the_upright_pictures(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    tall = np.zeros((4, 2, 3), np.uint8)
    Image.fromarray(tall).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(tall.transpose(1, 0, 2)).save(tmp_path / "b.png")
    data = ImageFolder(str(tmp_path))
    assert data.shape == (3, 2, 4)
    assert data.read([0, 1])[0].shape == (2, 3, 2, 4)


def listed(root, *pairs):
    (root / "dataset.json").write_text(json.dumps({"labels": [list(pair) for pair in pairs]}))
    return str(root)


def test_an_image_with_two_classes_is_named(tmp_path):
    write(tmp_path, ["x/a.png", "b.png"], PIXELS[:2])
    for other in ("x/a.png", "./x/a.png", "x//a.png", "x\\a.png", "y/../x/a.png"):
        path = listed(tmp_path, ("x/a.png", 0), ("b.png", 0), (other, 1))
        with pytest.raises(InputError, match=r"dataset\.json labels x/a\.png twice, with different classes"):
            ImageFolder(path)
        assert ImageFolder(listed(tmp_path, ("b.png", 0), ("b.png", 0), (other, 1))).labels.tolist() == [0, 1]


def test_numbers_of_classes_are_plausible(tmp_path):
    write(tmp_path, ["a.png", "b.png"], PIXELS[:2])
    assert ImageFolder(listed(tmp_path, ("a.png", 0), ("b.png", 999))).num_classes == 1000
    for label in (10**5, 10**9, 2**40, 2**64, 10**30):
        with pytest.raises(InputError, match=rf"class {label} makes {label + 1} classes of 2 images"):
            ImageFolder(listed(tmp_path, ("a.png", 0), ("b.png", label)))


def test_an_empty_class_folder_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / ".hidden").mkdir()
    ImageFolder(str(tmp_path), labels="folders")
    (tmp_path / "00000b" / "inner").mkdir(parents=True)
    with pytest.raises(InputError, match=r"folder 00000b in .* holds no image; remove it"):
        ImageFolder(str(tmp_path), labels="folders")
    (tmp_path / "00000b" / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"folder 00000b in .* holds no image"):
        ImageFolder(str(tmp_path), labels="folders")
    assert ImageFolder(str(tmp_path)).num_classes == 0


def test_an_unreadable_folder_hides_no_images(tmp_path, monkeypatch):
    write(tmp_path)
    real = os.scandir

    def scandir(path):
        if str(path).endswith("00001"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"00001 cannot be read \(Permission denied\)"):
        ImageFolder(str(tmp_path))


def test_files_without_end_and_oversized_ones(tmp_path):
    write(tmp_path, ["a.png"], PIXELS[:1])
    (tmp_path / "b.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "c.png")
    (tmp_path / "d.png").touch()
    os.truncate(tmp_path / "d.png", 2**26 + 1)
    data = ImageFolder(str(tmp_path))
    for index, reason in enumerate(("no regular file", "no regular file", "more than"), start=1):
        said = refusal(lambda index=index: data.read([index]), room=2**25, seconds=5)
        assert re.search(rf"{'abcd'[index]}\.png cannot be read \(it .*{reason}", said)
    (tmp_path / "dataset.json").symlink_to("/dev/zero")
    assert "dataset.json cannot be read" in refusal(lambda: ImageFolder(str(tmp_path)), room=2**25, seconds=5)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"labels": [' + "{}," * 3_000_000 + "{}]}", " " * (3 * 2**24 + 2000)])
def test_label_files_that_exhaust(tmp_path, text):
    write(tmp_path, ["a.png"], PIXELS[:1])
    (tmp_path / "dataset.json").write_text(text)
    said = refusal(lambda: ImageFolder(str(tmp_path)), room=2**28)
    assert "dataset.json is not of the form" in said
    assert len(said) < 600


def test_a_path_that_no_file_has():
    with pytest.raises(InputError, match=r"^dataset\.path=x{59}\.\.: no file has such a name"):
        ImageFolder("x" * 5000)
