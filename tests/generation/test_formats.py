"""Files that the images of a run end in: the field's layouts, read by others' code, the same bytes each time."""

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from scoreline import values
from scoreline.checkpoints import load_model
from scoreline.config.run_names import model_path
from scoreline.datasets.image_folder import ImageFolder
from scoreline.datasets.zip_archive import ZipArchive
from scoreline.errors import InputError
from scoreline.generation import npz
from scoreline.generation.batches import Sampler
from scoreline.generation.formats import FORMATS, NONE, check_format, write_format, write_manifest
from scoreline.generation.images import Entry, ShardImages, contact_sheet, no_progress
from scoreline.generation.run import Outputs, finish
from scoreline.generation.run_results import file_record
from scoreline.generation.shards import Shards
from scoreline.metrics.no_metrics import NoMetrics
from scoreline.runtime.distributed import Group
from scoreline.sampling import Progress
from scoreline.schedules.spacings import Power
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.tableau import build
from scoreline.storage.files import part_beside, remove_parts
from scoreline.storage.pictures import save_png, sheet, to_uint8

COUNT = 1003


def made(folder: Path, channels: int = 3, labels: bool = True, count: int = COUNT) -> tuple[ShardImages, Tensor]:
    """Shards that are not in order, as several processes leave them."""
    images = torch.randint(
        0, 256, (count, channels, 2, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    chosen = torch.arange(count) % 7 if labels else None
    shards = Shards(folder / "shards", "stamp", list(range(50, 50 + count)), chosen, (channels, 2, 3))
    for first in range(50):
        indices = list(range(first, count, 50))
        shards.write(indices, images[indices], 1, 1)
    return ShardImages(shards, shards.find(), 7 if labels else 0), images


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardImages, Tensor]:
    return made(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardImages, Tensor]:
    return made(tmp_path_factory.mktemp("plain"), channels=1, labels=False)


Made = tuple[ShardImages, Tensor]


def test_npz_is_what_numpy_writes_and_reads(labelled: Made, plain: Made, tmp_path: Path) -> None:
    for images, pixels in (labelled, plain):
        write_format("npz", tmp_path, images)
        arrays = {"arr_0": pixels.permute(0, 2, 3, 1).contiguous().numpy()}
        if images.labelled:
            arrays["arr_1"] = np.arange(COUNT) % 7
        with np.load(tmp_path / "samples.npz", allow_pickle=False) as read:
            assert set(read.files) == set(arrays)
            for name, array in arrays.items():
                assert read[name].dtype == array.dtype
                assert np.array_equal(read[name], array)
        np.savez(tmp_path / "numpy.npz", **arrays)
        with zipfile.ZipFile(tmp_path / "samples.npz") as ours, zipfile.ZipFile(tmp_path / "numpy.npz") as theirs:
            assert ours.namelist() == theirs.namelist()
            assert all(ours.read(name) == theirs.read(name) for name in ours.namelist())


def test_arrays_in_memory(tmp_path: Path) -> None:
    arrays = {"x": np.arange(6.0, dtype=np.float32).reshape(2, 3).T, "n": np.array([1, 2]), "empty": np.zeros((2, 0))}
    npz.write_arrays(tmp_path / "a.npz", arrays)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as read:
        for name, array in arrays.items():
            assert read[name].dtype == array.dtype
            assert np.array_equal(read[name], array)


def pixels_of(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as picture:
        array = np.asarray(picture)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def test_png_folders_of_a_thousand(labelled: Made, plain: Made, tmp_path: Path) -> None:
    for images, pixels in (labelled, plain):
        told: list[float] = []
        (tmp_path / "images" / "left").mkdir(parents=True)
        write_format("png", tmp_path, images, told.append)
        assert sum(told) == COUNT
        root = tmp_path / "images"
        names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
        assert names == [f"{i // 1000:05d}/{i:06d}.png" for i in range(COUNT)]
        assert {path.name for path in root.iterdir()} == {"00000", "00001"}
        assert {path.name for path in tmp_path.iterdir()} == {"images"}
        read = ImageFolder(str(root))
        assert torch.equal(read.read(range(COUNT))[0], pixels)


class Turns(ShardImages):
    """Images that wait before the k-th one until an event is set, and set another one then."""

    def __init__(self, images: ShardImages, k: int, mine: threading.Event, theirs: threading.Event) -> None:
        super().__init__(images.shards, images.found)
        self.k, self.mine, self.theirs = k, mine, theirs

    def one_by_one(self, progress: Progress = no_progress) -> Iterator[tuple[Entry, Tensor]]:
        for number, item in enumerate(super().one_by_one(progress)):
            if number == self.k:
                self.mine.set()
                assert self.theirs.wait(60)
            yield item


def test_two_writers_leave_every_image(tmp_path: Path) -> None:
    """The second begins when the first is half done, and goes on when that has finished."""
    images, _ = made(tmp_path, count=50)
    half, begun, done = threading.Event(), threading.Event(), threading.Event()
    seen: list[list[str]] = []

    def names() -> list[str]:
        return sorted(path.name for path in (tmp_path / "images").rglob("*.png"))

    def first() -> None:
        write_format("png", tmp_path, Turns(images, 5, half, begun))
        seen.append(names())
        done.set()

    def second() -> None:
        assert half.wait(60)
        write_format("png", tmp_path, Turns(images, 2, begun, done))
        seen.append(names())

    writers = [threading.Thread(target=writer) for writer in (first, second)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert seen == [[f"{i:06d}.png" for i in range(50)]] * 2
    assert {path.name for path in tmp_path.iterdir()} == {"images", "shards"}


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    images, _ = made(tmp_path, count=50)
    write_format("png", tmp_path, images)
    before = file_record(tmp_path / "images")

    def stop(done: float) -> None:
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        write_format("png", tmp_path, images, stop)
    assert file_record(tmp_path / "images") == before
    assert {path.name for path in tmp_path.iterdir()} == {"images", "shards"}
    shutil.rmtree(tmp_path / "images")
    (tmp_path / "images").write_text("a file")
    with pytest.raises(InputError, match="images: is in the way of the folder of images"):
        write_format("png", tmp_path, images)


def test_the_folder_of_a_dead_writer_is_removed(tmp_path: Path) -> None:
    gone, alive = (
        subprocess.Popen([sys.executable, "-c", ""]),
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1),
    )
    gone.wait()
    part = part_beside(tmp_path / "images", ".a")
    left, here = (part.with_name(part.name.replace(str(os.getpid()), str(it.pid))) for it in (gone, alive))
    for folder in (here, left):
        (folder / "00000").mkdir(parents=True)
        (folder / "00000" / "000000.png").touch()
    remove_parts(tmp_path)
    assert (here / "00000" / "000000.png").is_file()
    assert not left.exists()
    alive.kill()
    alive.communicate()


def test_zip_is_an_edm_data_set(labelled: Made, plain: Made, tmp_path: Path) -> None:
    for images, pixels in (labelled, plain):
        write_format("zip", tmp_path, images)
        read = ZipArchive(str(tmp_path / "samples.zip"), labels="file" if images.labelled else "auto")
        found, labels = read.read(range(COUNT))
        assert torch.equal(found, pixels)
        assert labels.tolist() == ([i % 7 for i in range(COUNT)] if images.labelled else [-1] * COUNT)
        with zipfile.ZipFile(tmp_path / "samples.zip") as archive:
            assert archive.namelist()[1002] == "00001/img00001002.png"
            assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
            assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
            assert json.loads(archive.read("dataset.json"))["labels"] == (
                [[f"{i // 1000:05d}/img{i:08d}.png", i % 7] for i in range(COUNT)] if images.labelled else None
            )


def test_webdataset_keeps_the_files_of_an_image_together(labelled: Made, plain: Made, tmp_path: Path) -> None:
    for images, pixels in (labelled, plain):
        write_format("webdataset", tmp_path, images)
        kinds = ["png", "cls", "json"] if images.labelled else ["png", "json"]
        with tarfile.open(tmp_path / "samples.tar") as archive:
            members = archive.getmembers()
            assert [entry.name for entry in members] == [f"{i:06d}.{kind}" for i in range(COUNT) for kind in kinds]
            assert {(entry.mtime, entry.uid, entry.uname, entry.mode) for entry in members} == {(0, 0, "", 0o644)}
            for i in (0, 1002):
                group = {
                    kind: archive.extractfile(f"{i:06d}.{kind}").read()  # type: ignore[union-attr]
                    for kind in kinds
                }
                assert np.array_equal(pixels_of(group["png"]), pixels[i].numpy())
                about = json.loads(group["json"])
                assert (about["index"], about["seed"]) == (i, 50 + i)
                assert about["label"] == (i % 7 if images.labelled else None)
                assert group.get("cls") == (str(i % 7).encode() if images.labelled else None)


def test_manifest_holds_what_anybody_can_check(labelled: Made, plain: Made, tmp_path: Path) -> None:
    for images, _ in (labelled, plain):
        write_manifest(tmp_path / "manifest.csv", images)
        text = (tmp_path / "manifest.csv").read_text()
        assert text.startswith("index,seed,label,sha256\n0,50,")
        lines = list(csv.DictReader(io.StringIO(text)))
        write_format("npz", tmp_path, images)
        array = np.load(tmp_path / "samples.npz")["arr_0"]
        assert len(lines) == COUNT
        for i, line in enumerate(lines):
            label = str(i % 7) if images.labelled else ""
            assert line == {
                **{"index": str(i), "seed": str(50 + i), "label": label},
                "sha256": hashlib.sha256(array[i].tobytes()).hexdigest(),
            }


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("choice", FORMATS)
def test_bytes_are_independent_of_time_and_shards(
    choice: str, labelled: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, pixels = labelled
    write_format(choice, tmp_path / "one", images)
    other = Shards(tmp_path / "shards", "stamp", images.shards.seeds, images.shards.labels, images.shape)
    other.write(range(COUNT), pixels, 3, 3)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e6)
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    write_format(choice, tmp_path / "two", ShardImages(other, other.find(), 7))
    first = tree(tmp_path / "one")
    assert first
    assert first == tree(tmp_path / "two")


def test_none_writes_nothing(labelled: Made, tmp_path: Path) -> None:
    write_format(NONE, tmp_path, labelled[0])
    assert list(tmp_path.iterdir()) == []


def test_names_keep_image_order_beyond_a_million(tmp_path: Path) -> None:
    from scoreline.generation.formats import _stem

    class Many:
        def __len__(self) -> int:
            return 1_000_001

    names = [_stem(i, Many()) for i in (0, 999_999, 1_000_000)]  # type: ignore[arg-type]
    assert names == sorted(names) == ["0000000", "0999999", "1000000"]


@pytest.mark.parametrize(
    ("choice", "channels", "sentence"),
    [
        ("npx", 3, "format=npx: there is no such choice; did you mean 'npz'?"),
        ("png", 2, "format=png: bytes from -1 to 1 hold images of 1 or 3 channels, these samples have 2; format=npy"),
        ("webdataset", 4, "images of 1 or 3 channels, these samples have 4; format=npy metrics=none keeps them"),
        ("npz", 16, "format=npz: bytes from -1 to 1 hold images of 1 or 3 channels, these samples have 16"),
    ],
)
def test_impossible_formats(choice: str, channels: int, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        check_format(choice, (channels, 8, 8))
    assert sentence in str(error.value)


@pytest.mark.parametrize("choice", [*FORMATS, NONE])
def test_files_of_bytes_limit_the_channels(choice: str) -> None:
    taken = []
    for channels in range(1, 17):
        with contextlib.suppress(InputError):
            check_format(choice, (channels, 8, 8))
            taken.append(channels)
    assert taken == (list(range(1, 17)) if choice in ("npy", NONE) else [1, 3])


@pytest.mark.parametrize("channels", range(1, 17))
def test_float_samples_of_any_channels(channels: int, tmp_path: Path) -> None:
    """Values beyond [-1, 1] stay as they are, and their digests are those of the array's rows."""
    samples = 3 * torch.randn(5, channels, 4, 6, generator=torch.Generator().manual_seed(1))
    shards = Shards(tmp_path / "shards", "stamp", range(5), None, (channels, 4, 6), torch.float32)
    shards.write([3, 4], samples[3:], 1, 1)
    shards.write([0, 1, 2], samples[:3], 1, 1)
    images = ShardImages(shards, shards.find())
    write_format("npy", tmp_path, images)
    array = np.load(tmp_path / "samples.npy", mmap_mode="r")
    assert array.dtype == np.float32
    assert np.array_equal(array, samples.numpy())
    assert [images.entry(i).sha256 for i in range(5)] == [hashlib.sha256(row.tobytes()).hexdigest() for row in array]
    assert torch.equal(images.read([4, 0])[0], to_uint8(samples[[4, 0]]))
    picture = contact_sheet(images)
    tiles = 1 if channels in (1, 3) else channels
    columns = min(5 * tiles, 8 if tiles == 1 else tiles * max(1, 8 // channels))
    assert picture.shape == (3 if channels == 3 else 1, -(-5 * tiles // columns) * 40, columns * 56)
    save_png(tmp_path / "grid.png", picture)
    with Image.open(tmp_path / "grid.png") as read:
        assert read.mode == ("RGB" if channels == 3 else "L")


def test_float_samples_go_on_after_a_stop(tmp_path: Path) -> None:
    """Whole shards of an unfinished run are kept, a damaged one is not, and the file is the same to the bit."""
    sampler = Sampler(
        load_model(model_path("digits_vp")).denoiser, build(DDIM(), Power(7.0), (10.0, 0.1), 2, "none"), 4, 4
    )
    files, counts = list[bytes](), list[int]()
    for name in ("whole", "stopped"):
        shards = Shards(tmp_path / name / "shards", "stamp", range(12), None, (1, 8, 8), torch.float32)
        if files:
            first, second = sorted((tmp_path / "whole" / "shards").iterdir())[:2]
            shards.folder.mkdir(parents=True)
            shutil.copy(first, shards.folder)
            (shards.folder / second.name).write_bytes(second.read_bytes()[:-1])
        result = finish(sampler, shards, Outputs("npy", NoMetrics()), Group())
        files.append((tmp_path / name / "samples.npy").read_bytes())
        counts.append(result["images_made"])
    assert counts == [12, 8]
    assert files[0] == files[1]


def test_shards_of_another_type_count_as_missing(tmp_path: Path) -> None:
    floats = Shards(tmp_path, "stamp", range(2), None, (3, 2, 2), torch.float32)
    floats.write([0, 1], torch.zeros(2, 3, 2, 2), 1, 1)
    assert not len(floats.find().missing)
    assert len(Shards(tmp_path, "stamp", range(2), None, (3, 2, 2)).find().missing) == 2


def test_tiles_of_a_sheet_are_channels() -> None:
    images = torch.arange(2 * 5 * 2 * 2, dtype=torch.uint8).reshape(2, 5, 2, 2)
    tiles = sheet(images, columns=1, scale=1)
    assert tiles.shape == (1, 2 * 3, 5 * 3)
    for image in range(2):
        for channel in range(5):
            tile = tiles[0, 3 * image : 3 * image + 2, 3 * channel : 3 * channel + 2]
            assert torch.equal(tile, images[image, channel])


class Endless(ShardImages):
    """Images that are nowhere, as many as wanted, so that only the writer's own memory is seen."""

    def __init__(self, count: int) -> None:
        self.count, self.shape = count, (3, 64, 64)
        self.shards = Shards(Path(), "", range(count), None, self.shape)

    def __len__(self) -> int:
        return self.count

    def kept(self, indices: Sequence[int]) -> Tensor:
        return torch.zeros((len(indices), *self.shape), dtype=torch.uint8)


def peak(count: int) -> int:
    tracemalloc.start()
    try:
        npz.write_images(Path(os.devnull), Endless(count))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_npz_writer_memory_is_constant(tmp_path: Path) -> None:
    """50,000 images of 64x64 in colour are 614 MB; of 4,500 more of them, those of five are the most that is held."""
    peak(1)  # what a first call leaves for later ones
    few = peak(500)
    assert few < 2**25
    assert peak(5_000) - few < 5 * 64 * 64 * 3


def test_config_choices_are_the_existing_formats() -> None:
    assert (*FORMATS, NONE) == values.FORMAT
