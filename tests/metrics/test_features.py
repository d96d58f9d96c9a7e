import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scoreline.datasets.digits import Digits
from scoreline.errors import InputError
from scoreline.metrics import digit_classifier, features
from scoreline.metrics.digit_classifier import DigitClassifier, accuracy, card, shifted, to_safetensors, train
from scoreline.metrics.features import DigitFeatures
from scoreline.storage.pictures import to_unit


@pytest.fixture(scope="module")
def shipped():
    torch.set_num_threads(1)
    return DigitFeatures()


@pytest.fixture(scope="module")
def unseen():
    return Digits("test")


@pytest.fixture(scope="module")
def shipped_bytes():
    return features._read(None)


def test_the_card_names_training_and_test_data(shipped, unseen):
    train_digits = Digits("train")
    assert (shipped.card["train_digest"], shipped.card["train_count"]) == (train_digits.digest, len(train_digits))
    assert (shipped.card["test_digest"], shipped.card["test_count"]) == (unseen.digest, len(unseen))


def test_the_card_states_the_accuracy_of_the_weights(shipped, unseen):
    logits = shipped._network(to_unit(unseen.images).double())
    right = int((logits.argmax(1) == unseen.labels).sum())
    assert right / len(unseen) == shipped.card["test_accuracy"]
    assert shipped.card["test_accuracy"] >= 0.97


def test_the_network_is_small(shipped, shipped_bytes):
    count = sum(weight.numel() for weight in shipped._network.parameters())
    assert count == shipped.card["parameters"] < 60_000
    assert len(shipped_bytes) < 300_000
    assert shipped.digest == hashlib.sha256(shipped_bytes).hexdigest()


def test_training_features_have_mean_square_one(shipped):
    of_train = shipped(Digits("train").images)
    assert of_train.dtype == torch.float64
    assert of_train.shape == (1500, shipped.dimension)
    assert float(of_train.square().mean()) == pytest.approx(1, rel=1e-5)


def test_features_carry_the_class(shipped, unseen):
    # One nearest neighbour among the training digits, in features: no head involved.
    train_digits = Digits("train")
    near = torch.cdist(shipped(unseen.images), shipped(train_digits.images)).argmin(1)
    assert float((train_digits.labels[near] == unseen.labels).double().mean()) > 0.95


def test_features_do_not_depend_on_the_batch(shipped, unseen, monkeypatch):
    whole = shipped(unseen.images)
    for size in (1, 7, 64):
        monkeypatch.setattr(features, "CHUNK", size)
        np.testing.assert_allclose(shipped(unseen.images), whole, rtol=0, atol=1e-12)


def test_training_is_pure_and_leaves_the_global_generator(unseen):
    torch.set_num_threads(1)
    before = torch.random.get_rng_state()
    first, second = train(unseen, epochs=2), train(unseen, epochs=2)
    assert torch.equal(before, torch.random.get_rng_state())
    about = card(first, unseen, unseen)
    assert to_safetensors(first, about) == to_safetensors(second, about)
    other = train(unseen, epochs=2, seed=1)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_training_learns_digits_it_has_not_seen(unseen):
    torch.set_num_threads(1)
    network = train(unseen, epochs=30)
    assert accuracy(network, Digits("train")) > 0.85
    assert next(network.parameters()).dtype == torch.float32


@pytest.mark.slow
def test_the_command_makes_the_shipped_file_again(tmp_path, shipped, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr("sys.argv", ["digit_classifier", str(tmp_path / "again.safetensors")])
    digit_classifier.main()
    torch.set_num_threads(threads)
    again = DigitFeatures(str(tmp_path / "again.safetensors"))
    ours = {key: value for key, value in shipped.card.items() if key not in ("test_accuracy", "torch", "scoreline")}
    assert ours.items() <= again.card.items()
    assert again.card["test_accuracy"] >= 0.97


def test_shifts_move_one_pixel_and_fill_black():
    x = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3).repeat(200, 1, 1, 1)
    moved = shifted(x, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x[:1], (1, 1, 1, 1), value=-1.0)[0, 0]
    windows = {tuple(padded[i : i + 3, j : j + 3].flatten().tolist()) for i in range(3) for j in range(3)}
    assert {tuple(image.flatten().tolist()) for image in moved} == windows


def test_a_file_of_the_users_own_is_read(tmp_path, unseen, shipped_bytes, shipped):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(shipped_bytes)
    mine = DigitFeatures(str(path))
    assert mine.digest == shipped.digest
    assert torch.equal(mine(unseen.images), shipped(unseen.images))


def broken(kind, path, shipped_bytes):
    weights = DigitClassifier().state_dict()
    about = {"card": json.dumps({})}
    if kind == "text":
        path.write_text("not weights at all")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut short":
        path.write_bytes(shipped_bytes[: len(shipped_bytes) // 2])
    elif kind == "no card":
        save_file(weights, path)
    elif kind == "card of no JSON":
        save_file(weights, path, metadata={"card": "{"})
    elif kind == "other shape":
        save_file({**weights, "head.bias": torch.zeros(11)}, path, metadata=about)
    elif kind == "missing tensor":
        save_file({name: weights[name] for name in list(weights)[1:]}, path, metadata=about)


@pytest.mark.parametrize(
    "kind", ["text", "empty", "cut short", "no card", "card of no JSON", "other shape", "missing tensor"]
)
def test_other_files_are_refused_in_one_sentence(kind, tmp_path, shipped_bytes):
    path = tmp_path / "bad.safetensors"
    broken(kind, path, shipped_bytes)
    with pytest.raises(InputError, match=r"metrics\.extractor\.weights=.*bad\.safetensors: not the weights") as caught:
        DigitFeatures(str(path))
    assert "\n" not in str(caught.value)
    assert "python -m scoreline.metrics.digit_classifier" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.extractor\.weights=.*nowhere: no such file"):
        DigitFeatures(str(tmp_path / "nowhere"))
