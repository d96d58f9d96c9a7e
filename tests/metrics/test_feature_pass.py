import pytest
import torch
from processes import printed

from scoreline.datasets.base import ArrayDataset, ImageDataset
from scoreline.datasets.digits import Digits
from scoreline.errors import InputError
from scoreline.metrics import feature_pass
from scoreline.metrics.base import Score
from scoreline.metrics.feature_pass import extract, share_scores, spread
from scoreline.metrics.fidelity import Fidelity
from scoreline.storage.resumable import Parts


class Counted(ImageDataset):
    """1x2x2 images of their own index, and the indices that were read."""

    name, shape, num_classes = "counted", (1, 2, 2), 0

    def __init__(self, n):
        self.n, self.seen = n, []

    def __len__(self):
        return self.n

    def read(self, indices):
        self.seen += list(indices)
        values = torch.as_tensor(list(indices))
        images = torch.stack([values % 256, values // 256, 0 * values, 0 * values], 1).to(torch.uint8)
        return images.reshape(-1, 1, 2, 2), torch.full((len(values),), -1)


def make(images):
    x = images.flatten(1).double()
    return {"index": x[:, :1] + 256 * x[:, 1:2], "square": x.square()}


def test_rows_come_in_order_from_one_read():
    images, told = Counted(1300), []
    found = extract(images, make, "d" * 64, Parts(), told.append)
    assert torch.equal(found.all("index").flatten(), torch.arange(1300).double())
    assert images.seen == list(range(1300))
    assert told == [512, 512, 276]
    assert [len(part) for part in found.stream("square")] == [512, 512, 276]


@pytest.mark.parametrize(("n", "count"), [(1300, 7), (1300, 1300), (1300, 5000), (10, 3)])
def test_some_rows_are_evenly_over_all(n, count):
    found = extract(Counted(n), make, "d" * 64, Parts(), lambda images: None)
    want = [k * n // min(n, count) for k in range(min(n, count))]
    assert found.rows("index", count).flatten().tolist() == want
    assert spread(n, count).tolist() == want


def test_features_are_kept_by_extractor_data_and_stamp(tmp_path):
    def pass_over(images, digest="d" * 64, stamp=""):
        told = []
        extract(images, make, digest, Parts(tmp_path, stamp), told.append)
        return sum(told)

    assert pass_over(Counted(600)) == 600
    assert pass_over(Counted(600)) == 0
    assert pass_over(Counted(601)) == 601
    assert pass_over(Counted(601), "e" * 64) == 601
    assert pass_over(Counted(601)) == 0
    assert pass_over(Counted(601), stamp="s") == 601


def test_memory_layout_leaves_features_unchanged():
    class ChannelsLast(ArrayDataset):
        def read(self, indices):
            images, labels = super().read(indices)
            return images.to(memory_format=torch.channels_last), labels

    metric = Fidelity(Digits("train"))
    assert metric(ChannelsLast("x", Digits("test").images)) == metric(Digits("test"))


def test_a_pass_that_was_stopped_goes_on(tmp_path):
    class Stops(Counted):
        def read(self, indices):
            if self.stops and indices[0] >= 512:
                raise KeyboardInterrupt
            return super().read(indices)

        stops = False

    images = Stops(1300)
    assert images.digest
    images.stops = True
    with pytest.raises(KeyboardInterrupt):
        extract(images, make, "d" * 64, Parts(tmp_path), lambda images: None)
    told = []
    found = extract(Counted(1300), make, "d" * 64, Parts(tmp_path), told.append)
    assert told == [512, 276]
    assert torch.equal(found.all("index").flatten(), torch.arange(1300).double())


def test_parts_are_read_when_they_are_asked_for(tmp_path):
    kept = Parts(tmp_path).lazily(3, lambda number: {"value": torch.full((1,), float(number))})
    assert [float(part["value"]) for part in kept] == [0, 1, 2]
    assert [float(part["value"]) for part in kept[1:]] == [1, 2]
    assert (len(kept), float(kept[-1]["value"])) == (3, 2)
    with pytest.raises(IndexError):
        kept[3]
    (tmp_path / "000001.safetensors").unlink()
    assert float(kept[0]["value"]) == 0
    with pytest.raises(InputError, match="choose a directory that all of them share"):
        kept[1]


def test_moved_parts_keep_their_processes(tmp_path):
    moved = Parts(tmp_path, "a", 1, 3).at(tmp_path / "b", "c")
    assert (moved.folder, moved.stamp, moved.rank, moved.size) == (tmp_path / "b", "c", 1, 3)


def test_one_process_computes_scores_and_another_reads_them(tmp_path):
    scores = {"zeta": Score(value=1 / 3, error=0.1, n=7), "alpha": Score(value=float("nan"), error=0.0, n=2)}
    images = Counted(5)
    first = share_scores(images, Parts(tmp_path, rank=0, size=2), "s", lambda: scores)
    second = share_scores(images, Parts(tmp_path, rank=1, size=2), "s", lambda: pytest.fail("computed"))
    assert str(first) == str(second) == str(scores)
    with pytest.raises(InputError, match="which this one cannot read"):
        share_scores(images, Parts(tmp_path, rank=1, size=2), "other", lambda: scores)


PROCESSES = """
from scoreline.datasets.digits import Digits
from scoreline.metrics.fidelity import Fidelity

scores = Fidelity(Digits("train"))(ArrayDataset("all", Digits("all").images), parts, calls.append)
print(json.dumps([scores, calls]))
"""


def test_two_processes_share_the_pass_bit_for_bit(tmp_path):
    (one, first), (two, second) = printed(PROCESSES, tmp_path, 2)
    assert (first, second) == ([512, 512], [512, 261])
    assert one == two == Fidelity(Digits("train"))(ArrayDataset("all", Digits("all").images))


def test_part_size_changes_features_by_rounding_only(monkeypatch):
    images = ArrayDataset("test", Digits("test").images)
    metric = Fidelity(Digits("train"))
    whole = metric(images)
    monkeypatch.setattr(feature_pass, "PART", 37)
    for name, score in metric(images).items():
        assert score["value"] == pytest.approx(whole[name]["value"], rel=1e-9)
