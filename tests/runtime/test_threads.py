import threading

import pytest
import torch
from tiny_inception import write

from scoreline.datasets.base import ArrayDataset
from scoreline.datasets.digits import Digits
from scoreline.metrics.fidelity import Fidelity
from scoreline.metrics.frechet import GaussianStatistics, frechet_replicates
from scoreline.metrics.inception_features import InceptionFeatures
from scoreline.runtime.threads import one_core_each
from scoreline.storage.files import sha256


@pytest.fixture(params=[("1", 2), ("3", 1)], ids=lambda it: f"{it[0]} cores, {it[1]} threads")
def machine(request, monkeypatch):
    """A number of usable cores, and of PyTorch's threads."""
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", request.param[0])
    torch.set_num_threads(request.param[1])
    yield request.param
    torch.set_num_threads(before)


def test_pieces_run_on_one_thread_in_order(machine):
    def work(piece):
        return 2 * piece, torch.get_num_threads()

    assert one_core_each(work, range(20)) == [(2 * piece, 1) for piece in range(20)]
    assert one_core_each(work, []) == []
    assert torch.get_num_threads() == machine[1]


def test_pieces_run_in_parallel_on_the_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    meeting = threading.Barrier(3, timeout=30)
    assert one_core_each(lambda piece: meeting.wait() >= 0, range(3)) == [True] * 3
    alone = one_core_each(lambda piece: threading.current_thread() is threading.main_thread(), range(3), most=1)
    assert alone == [True] * 3


def test_errors_of_a_piece_pass_and_threads_stay(machine):
    def work(piece):
        if piece == 2:
            raise ValueError("piece 2")
        return piece

    with pytest.raises(ValueError, match="piece 2"):
        one_core_each(work, range(5))
    assert torch.get_num_threads() == machine[1]


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    file = write(tmp_path_factory.mktemp("networks") / "tiny.pt")
    return InceptionFeatures(str(file), sha256=sha256(file), device="cpu")


def images(n, shape):
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


@pytest.fixture(scope="module")
def alone(extractor):
    """Features, error bars and scores on one core and one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        return extractor(images(150, (3, 32, 32)), spatial=True), error_bars(), scores()


def error_bars():
    rows = torch.randn(400, 300, generator=torch.Generator().manual_seed(1))
    reference = GaussianStatistics.of(torch.randn(500, 300, generator=torch.Generator().manual_seed(2)) + 0.1)
    found = frechet_replicates(rows, reference)
    return found.full, found.second, *found.without.tolist()


def scores():
    return Fidelity(Digits("test"))(ArrayDataset("x", images(300, (1, 8, 8))))


def test_features_have_the_same_bits_on_any_machine(machine, extractor, alone):
    features = extractor(images(150, (3, 32, 32)), spatial=True)
    assert features.keys() == alone[0].keys()
    assert all(torch.equal(value, alone[0][name]) for name, value in features.items())


def test_scores_and_errors_are_bit_equal_across_cores(monkeypatch, alone):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(1)
    assert error_bars() == alone[1]
    assert scores() == alone[2]


def test_features_need_no_gradients_in_any_thread(machine, extractor):
    assert not extractor(images(130, (3, 8, 8)), spatial=False)["features"].requires_grad
