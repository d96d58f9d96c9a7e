import hashlib
import json
import runpy

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file

from scoreline.config.compose import build_object, complete_config
from scoreline.datasets.base import ArrayDataset
from scoreline.datasets.digits import Digits
from scoreline.errors import InputError
from scoreline.metrics import features
from scoreline.metrics.classifier import (
    DigitClassifier,
    EmojiClassifier,
    accuracy,
    card,
    jittered,
    main,
    mirrored,
    shifted,
    to_safetensors,
    train,
)
from scoreline.metrics.features import DigitFeatures, EmojiFeatures
from scoreline.metrics.reference_set import ReferenceSet
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
    return features._read(None, DigitFeatures.shipped)


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
    first, second = train(DigitClassifier, unseen, epochs=2), train(DigitClassifier, unseen, epochs=2)
    assert torch.equal(before, torch.random.get_rng_state())
    about = card(first, unseen, unseen)
    assert to_safetensors(first, about) == to_safetensors(second, about)
    other = train(DigitClassifier, unseen, epochs=2, seed=1)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_training_learns_digits_it_has_not_seen(unseen):
    torch.set_num_threads(1)
    network = train(DigitClassifier, unseen, epochs=30)
    assert accuracy(network, Digits("train")) > 0.85
    assert next(network.parameters()).dtype == torch.float32


OF_A_MACHINE = ("test_accuracy", "torch", "scoreline", "command")
"""Entries of the card that differ elsewhere; the command has a new name, and the old one starts it."""


def test_the_command_in_the_card_trains_digits(shipped, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("scoreline.metrics.classifier.main", made.append)
    module = shipped.card["command"].split()[2]
    monkeypatch.setattr("sys.argv", [module, "PATH"])
    runpy.run_module(module, run_name="__main__")
    assert made == [["digits", "PATH"]]


@pytest.mark.slow
def test_the_command_makes_the_shipped_file_again(tmp_path, shipped):
    threads = torch.get_num_threads()
    main(["digits", str(tmp_path / "again.safetensors")])
    torch.set_num_threads(threads)
    again = DigitFeatures(str(tmp_path / "again.safetensors"))
    ours = {key: value for key, value in shipped.card.items() if key not in OF_A_MACHINE}
    assert ours.items() <= again.card.items()
    assert again.card["test_accuracy"] >= 0.97


def test_shifts_move_one_pixel_and_fill_black():
    x = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3).repeat(200, 1, 1, 1)
    moved = shifted(x, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x[:1], (1, 1, 1, 1), value=-1.0)[0, 0]
    windows = {tuple(padded[i : i + 3, j : j + 3].flatten().tolist()) for i in range(3) for j in range(3)}
    assert {tuple(image.flatten().tolist()) for image in moved} == windows


@pytest.fixture(scope="module")
def emoji():
    return EmojiFeatures()


@pytest.fixture(scope="module")
def pictures():
    """Ten classes of coloured discs, 3 x 32 x 32."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % 10
    colours = torch.rand(10, 3, generator=generator)[labels][:, :, None, None]
    axis = torch.linspace(-1, 1, 32)
    disc = axis[:, None].square() + axis.square() < 0.6
    images = torch.where(disc, 255 * colours, 255 * torch.ones(())).to(torch.uint8)
    return ArrayDataset("discs-train", images, labels, 10)


def test_the_emoji_card_states_accuracy_beside_guessing(emoji):
    about = emoji.card
    p, n = about["test_accuracy"], about["test_count"]
    assert (about["train_count"], n, about["parameters"]) == (3598, 318, 142_266)
    assert about["test_accuracy_error"] == pytest.approx((p * (1 - p) / n) ** 0.5)
    assert p - 5 * about["test_accuracy_error"] > about["test_majority"] > about["test_chance"] == 0.1
    assert "do not penalise a model that repeats them" in about["memory"]


@pytest.mark.parametrize(
    ("name", "count"),
    [("emoji-train", 3598), ("emoji-test", 318), ("openclipart-train", 6228), ("openclipart-test", 579)],
)
def test_statistics_that_ship_are_of_the_weights_that_ship(emoji, name, count):
    found = ReferenceSet.open(name, emoji.name)
    found.check_extractor(name, emoji.digest, unknown="unknown")
    assert (found.count, found.split) == (count, name.partition("-")[2])
    if name == "emoji-train":
        gaussian = found.statistics.gaussian
        second_moment = gaussian.mean.square() + gaussian.covariance.diagonal() * (count - 1) / count
        assert float(second_moment.mean()) == pytest.approx(1, rel=1e-5)


def test_metrics_emoji_compares_with_training_emoji(pictures):
    metrics = build_object(complete_config(["metrics=emoji"]).metrics)
    assert metrics.protocol["reference"].startswith("emoji-train:")
    assert metrics(pictures)["frechet_distance"]["value"] > 1
    with pytest.raises(InputError, match="extractor emoji-cnn takes 3x32x32 images"):
        metrics.check((1, 8, 8), 100)


def test_the_emoji_file_is_small_and_in_half_precision():
    content = features._read(None, EmojiFeatures.shipped)
    weights = load(content)
    assert len(content) < 300_000
    assert {value.dtype for name, value in weights.items() if name != "scale"} == {torch.float16}


def test_features_of_emoji_are_those_of_the_stored_weights(emoji, pictures):
    found = emoji(pictures.images)
    assert (found.shape, found.dtype) == ((100, 64), torch.float64)
    assert bool((found > 0).any(0).all()), "no feature is dead"
    network = EmojiClassifier()
    network.load_state_dict(load(features._read(None, EmojiFeatures.shipped)))
    with torch.no_grad():
        single = network.eval().features(to_unit(pictures.images[3:4]))
    torch.testing.assert_close(found[3:4].float(), single, rtol=1e-4, atol=1e-5)


def test_emoji_training_is_pure_and_ends_with_stored_weights(pictures):
    torch.set_num_threads(1)
    first, second = (train(EmojiClassifier, pictures, epochs=3) for _ in range(2))
    content = to_safetensors(first, card(first, pictures, pictures))
    assert content == to_safetensors(second, card(second, pictures, pictures))
    assert all(torch.equal(value.float(), first.state_dict()[name]) for name, value in load(content).items())
    assert accuracy(first, pictures) > 0.3
    with torch.no_grad():
        assert float(first.features(to_unit(pictures.images)).square().mean()) == pytest.approx(1, rel=1e-4)


def test_mirrors_and_jitter_are_of_the_stated_size():
    x = torch.linspace(-0.8, 0.8, 3 * 8 * 8).reshape(1, 3, 8, 8).repeat(400, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    turned = (mirrored(x, generator) != x).flatten(1).any(1)
    assert 150 < int(turned.sum()) < 250
    assert torch.equal(mirrored(x, generator).sort(3).values, x)
    changed = jittered(x, generator)
    assert 0.1 < float((changed - x).abs().max()) <= 0.1 * 0.8 + 0.1 + 1e-6
    assert float(changed.abs().max()) <= 1


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
    assert "python -m scoreline.metrics.classifier digits" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.extractor\.weights=.*nowhere: no such file"):
        DigitFeatures(str(tmp_path / "nowhere"))
