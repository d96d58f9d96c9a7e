"""Shards: what counts as there, who makes what, and images read back from them."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from scoreline.datasets.base import ArrayDataset
from scoreline.generation.images import BLOCK, ShardImages
from scoreline.generation.shards import Shards, image_digests
from scoreline.runtime.collectives import from_first, largest, share
from scoreline.runtime.distributed import Group

SHAPE = (3, 4, 5)
COUNTS = (7, 14)


def pictures(count: int) -> Tensor:
    return torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def shards(folder: Path, count: int = 10, labels: bool = True, stamp: str = "mine") -> Shards:
    chosen = torch.arange(count) % 4 if labels else None
    return Shards(folder, stamp, [100 + 3 * i for i in range(count)], chosen, SHAPE)


def filled(folder: Path, count: int = 10, size: int = 4, labels: bool = True) -> tuple[Shards, Tensor]:
    kept, images = shards(folder, count, labels), pictures(count)
    for start in range(0, count, size):
        rows = range(start, min(count, start + size))
        kept.write(rows, images[start : start + size], *COUNTS)
    return kept, images


def test_digest_is_over_adms_byte_order() -> None:
    image = pictures(2)[1]
    hwc = np.ascontiguousarray(image.numpy().transpose(1, 2, 0))
    assert image_digests(pictures(2))[1].numpy().tobytes() == hashlib.sha256(hwc.tobytes()).digest()


def test_what_was_written_is_found_and_read_back(tmp_path: Path) -> None:
    kept, images = filled(tmp_path)
    found = kept.find()
    assert found.missing.tolist() == []
    assert found.shard.tolist() == [0] * 4 + [1] * 4 + [2] * 2
    assert found.counts.tolist() == [[7, 14]] * 10
    read = ShardImages(kept, found, num_classes=4)
    order = [9, 0, 5, 5, 1]
    some, labels = read.read(order)
    assert torch.equal(some, images[order])
    assert labels.tolist() == [i % 4 for i in order]
    assert read.digest == ArrayDataset("same", images, torch.arange(10) % 4).digest
    entry = read.entry(6)
    assert (entry.index, entry.seed, entry.label) == (6, 118, 2)
    assert bytes.fromhex(entry.sha256) == image_digests(images[6:7]).numpy().tobytes()
    assert torch.equal(torch.cat(list(read.blocks())), images)


def test_images_without_labels_have_none(tmp_path: Path) -> None:
    kept, _ = filled(tmp_path, labels=False)
    read = ShardImages(kept, kept.find())
    assert read.entry(0).label is None
    assert read.read([0, 3])[1].tolist() == [-1, -1]
    assert not read.labelled


def test_blocks_hold_few_images_at_a_time(tmp_path: Path) -> None:
    kept, images = filled(tmp_path, count=2 * BLOCK + 3, size=100)
    blocks = list(ShardImages(kept, kept.find()).blocks())
    assert [len(block) for block in blocks] == [BLOCK, BLOCK, 3]
    assert torch.equal(torch.cat(blocks), images)


def test_missing_images_are_told_and_not_read(tmp_path: Path) -> None:
    kept, _ = filled(tmp_path)
    (tmp_path / "000000004.safetensors").unlink()
    found = kept.find()
    assert found.missing.tolist() == [4, 5, 6, 7]
    with pytest.raises(ValueError, match="4 of 10 images are missing"):
        ShardImages(kept, found)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage")


def flipped_pixel(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def rewritten(path: Path, stamp: str = "mine", **changed: Tensor | None) -> None:
    fields = {**load_file(path), **changed}
    save_file({name: value for name, value in fields.items() if value is not None}, path, {"stamp": stamp})


DAMAGES = {
    "truncated": truncated,
    "garbage": garbage,
    "a pixel": flipped_pixel,
    "another run": lambda path: rewritten(path, stamp="other"),
    "no stamp": lambda path: save_file(load_file(path), path),
    "a field less": lambda path: rewritten(path, sha256=None),
    "a field more": lambda path: rewritten(path, more=torch.zeros(1)),
    "another seed": lambda path: rewritten(path, seed=torch.tensor([112, 115, 118, 122])),
    "another label": lambda path: rewritten(path, label=torch.tensor([0, 1, 2, 2])),
    "an index beyond": lambda path: rewritten(path, index=torch.tensor([4, 5, 6, 10])),
    "an index below": lambda path: rewritten(path, index=torch.tensor([4, 5, 6, -1])),
    "an index twice": lambda path: rewritten(path, index=torch.tensor([4, 5, 6, 6])),
    "another type": lambda path: rewritten(path, nfe=torch.zeros(4)),
    "another shape": lambda path: rewritten(path, images=torch.zeros(4, 3, 4, 4, dtype=torch.uint8)),
    "nothing": lambda path: rewritten(path, **{name: value[:0] for name, value in load_file(path).items()}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_shard_counts_as_missing(damage: str, tmp_path: Path) -> None:
    kept, images = filled(tmp_path)
    path = tmp_path / "000000004.safetensors"
    rewritten(path)
    assert kept.find().missing.tolist() == [], "the same once more is accepted"
    DAMAGES[damage](path)
    assert kept.find().missing.tolist() == [4, 5, 6, 7]
    kept.write([4, 5], images[4:6], *COUNTS)
    kept.write([6, 7], images[6:8], *COUNTS)
    again = ShardImages(kept, kept.find())
    assert torch.equal(again.read(range(10))[0], images)


def test_pixels_are_compared_on_request_only(tmp_path: Path) -> None:
    kept, _ = filled(tmp_path)
    flipped_pixel(tmp_path / "000000004.safetensors")
    assert kept.find(check=False).missing.tolist() == []
    truncated(tmp_path / "000000000.safetensors")
    assert kept.find(check=False).missing.tolist() == [0, 1, 2, 3], "lengths always are"


def test_of_two_copies_one_is_taken(tmp_path: Path) -> None:
    kept, images = filled(tmp_path)
    kept.write(range(2, 7), images[2:7], 9, 9)
    found = kept.find()
    assert found.missing.tolist() == []
    assert found.counts[:, 0].tolist() == [7, 7, 7, 7, 9, 9, 9, 7, 7, 7]
    assert torch.equal(ShardImages(kept, found).read(range(10))[0], images)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("unit", [1, 4, 64])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 300])
def test_shares_are_all_of_it_once_and_even(size: int, unit: int, count: int) -> None:
    missing = [5 * i for i in range(count)]
    shares = [share(missing, Group(rank, size), unit) for rank in range(size)]
    assert sorted(index for own in shares for index in own) == missing
    calls = [math.ceil(len(own) / unit) for own in shares]
    assert max(calls) - min(calls) <= 1
    assert sum(calls) == math.ceil(count / unit), "no network batch is cut in two"


def test_one_process_tells_itself() -> None:
    values = torch.tensor([3, 1])
    assert from_first(values, Group()) is values
    assert largest(values, Group()) is values
