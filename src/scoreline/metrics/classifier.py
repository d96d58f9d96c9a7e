"""Small classifiers of digits and of emoji, and the command that trains them.

python -m scoreline.metrics.classifier digits PATH
python -m scoreline.metrics.classifier emoji PATH [--font FONT]
"""

import argparse
import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

import scoreline
from scoreline.datasets.base import ArrayDataset
from scoreline.datasets.digits import Digits
from scoreline.datasets.emoji import Emoji
from scoreline.runtime.seeded_noise import seed_default, seed_generator
from scoreline.storage.pictures import to_unit

SEED = 0
CLASSES = 10
CHUNK = 512
Card = dict[str, str | int | float]


class Classifier(nn.Module, ABC):
    """A stack of layers, of which the last is the feature vector, and a linear map from it to class scores (B, 10).

    `features` maps pixels in [-1, 1] (B, C, H, W) to the last hidden layer times `scale` (B, d), which is 1 over its
    root mean square on the training images; `forward` maps them to class scores.

    When to use it: as the feature extractor of `Fidelity`; its accuracy is no subject of this package.

    Attributes:
        shape: (C, H, W) of the images.
        dimension: d.
        epochs: passes over the training images.
        batch: images a step.
        rate: highest learning rate of AdamW.
        decay: its weight decay.
        storage: precision of the weights in a file; training ends with weights rounded to it.
        facts: entries of the card that no training changes.
    """

    shape: ClassVar[tuple[int, int, int]]
    dimension: ClassVar[int]
    epochs: ClassVar[int]
    batch: ClassVar[int] = 50
    rate: ClassVar[float] = 3e-3
    decay: ClassVar[float] = 1e-2
    storage: ClassVar[torch.dtype] = torch.float32
    facts: ClassVar[Card]

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.hidden = self._layers()
        self.head = nn.Linear(self.dimension, CLASSES)
        self.register_buffer("scale", torch.ones(()))

    @staticmethod
    @abstractmethod
    def _layers() -> nn.Sequential:
        """Build the layers up to the feature vector."""

    @staticmethod
    @abstractmethod
    def augment(x: Tensor, generator: torch.Generator) -> Tensor:
        """Change images (B, C, H, W) in ways that keep their class."""

    def features(self, x: Tensor) -> Tensor:
        return torch.mul(self.scale, self.hidden(x))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.hidden(x))
        return scores


class DigitClassifier(Classifier):
    """Three convolutions and two linear layers with SiLU between them, for digits (B, 1, 8, 8); 30,794 parameters."""

    shape = (1, 8, 8)
    dimension = 32
    epochs = 60
    facts: ClassVar[Card] = {
        "what": "classifier of 1x8x8 digits; its 32 last hidden activations are the features of metrics=fidelity",
        "command": "python -m scoreline.metrics.classifier digits PATH",
        "data_source": "UCI Optical Recognition of Handwritten Digits, doi:10.24432/C50P49, CC BY 4.0",
    }

    @staticmethod
    def _layers() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 32),
            nn.SiLU(),
        )

    @staticmethod
    def augment(x: Tensor, generator: torch.Generator) -> Tensor:
        return shifted(x, generator)


class EmojiClassifier(Classifier):
    """Five convolutions, each with a group norm, and two linear layers, for emoji (B, 3, 32, 32); 142,266 parameters.

    The classes are Unicode's groups. Training shifts the images by up to 3 pixels, mirrors half of them, since the
    mirror image of a face, a fruit or a flag is of the same group, and changes contrast and colours a little.
    """

    shape = (3, 32, 32)
    dimension = 64
    epochs = 30
    decay = 5e-2
    storage = torch.float16
    facts: ClassVar[Card] = {
        "what": "classifier of 3x32x32 emoji in Unicode's ten groups; its 64 last hidden activations are the features "
        "of metrics=emoji",
        "command": "python -m scoreline.metrics.classifier emoji PATH",
        "memory": "trained on the training pictures themselves: distances in these features do not penalise a model "
        "that repeats them",
        "data_source": "Noto Color Emoji, SIL Open Font License 1.1",
    }

    @staticmethod
    def _layers() -> nn.Sequential:
        return nn.Sequential(
            *_normalised(3, 32, stride=1),
            *_normalised(32, 48, stride=2),
            *_normalised(48, 64, stride=2),
            *_normalised(64, 64, stride=1),
            *_normalised(64, 96, stride=2),
            nn.AvgPool2d(4),
            nn.Flatten(),
            nn.Linear(96, 64),
            nn.SiLU(),
        )

    @staticmethod
    def augment(x: Tensor, generator: torch.Generator) -> Tensor:
        return jittered(mirrored(shifted(x, generator, reach=3, border=1.0), generator), generator)


def _normalised(channels: int, outputs: int, stride: int) -> Sequence[nn.Module]:
    return nn.Conv2d(channels, outputs, 3, padding=1, stride=stride), nn.GroupNorm(8, outputs), nn.SiLU()


def shifted(x: Tensor, generator: torch.Generator, reach: int = 1, border: float = -1.0) -> Tensor:
    """Shift each image (B, C, H, W) by up to `reach` pixels down and across, with `border` beyond the edge."""
    height, width = x.shape[2:]
    corner = torch.randint(0, 2 * reach + 1, (len(x), 2), generator=generator)
    rows = (corner[:, :1] + torch.arange(height))[:, None, :, None]
    columns = (corner[:, 1:] + torch.arange(width))[:, None, None, :]
    image, channel = torch.arange(len(x))[:, None, None, None], torch.arange(x.shape[1])[None, :, None, None]
    return pad(x, (reach,) * 4, value=border)[image, channel, rows, columns]


def mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image (B, C, H, W) left to right, with probability 1/2."""
    chosen = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(chosen[:, None, None, None], x.flip(3), x)


def jittered(x: Tensor, generator: torch.Generator, size: float = 0.1) -> Tensor:
    """Scale each image (B, C, H, W) in [-1, 1] by 1 + a and add b to each channel, a and b uniform in +-`size`."""
    a, b = (size * (2 * torch.rand(len(x), count, 1, 1, generator=generator) - 1) for count in (1, x.shape[1]))
    return ((1 + a) * x + b).clip(-1, 1)


def train(kind: type[Classifier], data: ArrayDataset, epochs: int | None = None, seed: int = SEED) -> Classifier:
    """Train a classifier with AdamW and a one-cycle learning rate on augmented images.

    The result is a pure function of the arguments on one machine with one thread. The global generator of torch keeps
    its state.

    Args:
        kind: the class of the network, which holds the settings.
        data: the training images, with labels.
        epochs: passes over `data`; None for the network's own number.
        seed: of initialisation, order and augmentation.
    """
    epochs = kind.epochs if epochs is None else epochs
    generator = seed_generator(torch.Generator(), seed)
    with torch.random.fork_rng(devices=[]):
        seed_default(seed)
        network = kind()
    optimiser = torch.optim.AdamW(network.parameters(), kind.rate, weight_decay=kind.decay)
    steps = epochs * -(-len(data) // kind.batch)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, kind.rate, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(data), generator=generator), kind.batch):
            images = kind.augment(to_unit(data.images[chosen]), generator)
            loss = cross_entropy(network(images), data.labels[chosen])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            rate.step()
    return _with_unit_features(network.to(kind.storage).float().eval(), data)


@torch.no_grad()
def _with_unit_features(network: Classifier, data: ArrayDataset) -> Classifier:
    """Copy the network with features of `data` of mean square 1, so that kernel distances are of order 1."""
    scaled = copy.deepcopy(network)
    x = torch.cat([scaled.features(to_unit(part)) for part in torch.split(data.images, CHUNK)])
    scaled.scale.div_(x.square().mean().sqrt())
    return scaled


@torch.no_grad()
def accuracy(network: Classifier, data: ArrayDataset) -> float:
    """Return the share of `data` whose largest class score, in float64, is at its label."""
    exact = copy.deepcopy(network).double()
    scores = torch.cat([exact(to_unit(part).double()) for part in torch.split(data.images, CHUNK)])
    return float((scores.argmax(1) == data.labels).double().mean())


def card(network: Classifier, training: ArrayDataset, held_out: ArrayDataset) -> Card:
    """Return the provenance and accuracy of the weights, which are stored beside them.

    The error of the accuracy is that of a binomial, sqrt(p (1 - p) / n); `test_majority` is the accuracy of always
    guessing the commonest class of the training images.
    """
    share = accuracy(network, held_out)
    commonest = training.labels.mode().values
    return {
        **network.facts,
        "caution": "distances in these features compare only with distances in these same features, never with FID",
        "seed": SEED,
        "epochs": network.epochs,
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "train": training.name,
        "train_digest": training.digest,
        "train_count": len(training),
        "test": held_out.name,
        "test_digest": held_out.digest,
        "test_count": len(held_out),
        "test_accuracy": share,
        "test_accuracy_error": (share * (1 - share) / len(held_out)) ** 0.5,
        "test_majority": float((held_out.labels == commonest).double().mean()),
        "test_chance": 1 / CLASSES,
        "scoreline": scoreline.__version__,
        "torch": str(torch.__version__),
    }


def to_safetensors(network: Classifier, about: Card) -> bytes:
    """Write weights in their precision and the card as one JSON string; equal content gives equal bytes."""
    from safetensors.torch import save

    weights = {name: value.detach().to(network.storage) for name, value in network.state_dict().items()}
    weights["scale"] = network.scale.detach()
    return save(weights, metadata={"card": json.dumps(about, sort_keys=True)})


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the feature extractor of metrics=digits or metrics=emoji.")
    parser.add_argument("kind", choices=["digits", "emoji"])
    parser.add_argument("path", type=Path, help="the .safetensors file to write")
    parser.add_argument("--font", help="NotoColorEmoji.ttf; by default the installed one or the one in the cache")
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    kind, (training, held_out) = _subject(asked.kind, asked.font)
    network = train(kind, training)
    about = card(network, training, held_out)
    asked.path.write_bytes(to_safetensors(network, about))
    right = f"{about['test_accuracy']:.4f} +- {about['test_accuracy_error']:.4f}"
    print(f"{asked.path}: {right} of {len(held_out)} held-out {asked.kind} recognised")


def _subject(kind: str, font: str | None) -> tuple[type[Classifier], list[ArrayDataset]]:
    if kind == "digits":
        return DigitClassifier, [Digits("train"), Digits("test")]
    return EmojiClassifier, [Emoji(font, split, labels="groups") for split in ("train", "test")]


if __name__ == "__main__":
    main()
