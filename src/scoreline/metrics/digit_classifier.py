"""A small classifier of digits, and the command that trains it.

python -m scoreline.metrics.digit_classifier PATH
"""

import argparse
import copy
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

import scoreline
from scoreline.datasets.base import ArrayDataset
from scoreline.datasets.digits import Digits
from scoreline.runtime.seeded_noise import seed_default, seed_generator
from scoreline.storage.pictures import to_unit

SEED, EPOCHS, BATCH = 0, 60, 50
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 1e-2


class DigitClassifier(nn.Module):
    """Three convolutions and two linear layers with SiLU between them; 30,794 parameters.

    `features` maps pixels in [-1, 1] (B, 1, 8, 8) to the last hidden layer times `scale` (B, 32), which is 1 over its
    root mean square on the training images; `forward` maps them to class scores (B, 10).

    When to use it: as the feature extractor of `Fidelity`; its accuracy is no subject of this package.
    """

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
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
        self.head = nn.Linear(32, 10)
        self.register_buffer("scale", torch.ones(()))

    def features(self, x: Tensor) -> Tensor:
        return torch.mul(self.scale, self.hidden(x))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.hidden(x))
        return scores


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image (B, C, H, W) by -1, 0 or 1 pixels down and across, with black (-1) at the border."""
    height, width = x.shape[2:]
    corner = torch.randint(0, 3, (len(x), 2), generator=generator)
    rows = (corner[:, :1] + torch.arange(height))[:, None, :, None]
    columns = (corner[:, 1:] + torch.arange(width))[:, None, None, :]
    image, channel = torch.arange(len(x))[:, None, None, None], torch.arange(x.shape[1])[None, :, None, None]
    return pad(x, (1, 1, 1, 1), value=-1.0)[image, channel, rows, columns]


def train(data: ArrayDataset, epochs: int = EPOCHS, seed: int = SEED) -> DigitClassifier:
    """Train with AdamW and a one-cycle learning rate on shifted images, `epochs` times over `data`.

    The result is a pure function of the arguments on one machine with one thread. The global generator of torch keeps
    its state.
    """
    generator = seed_generator(torch.Generator(), seed)
    with torch.random.fork_rng(devices=[]):
        seed_default(seed)
        network = DigitClassifier()
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(data) // BATCH)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(data), generator=generator), BATCH):
            loss = cross_entropy(network(shifted(to_unit(data.images[chosen]), generator)), data.labels[chosen])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            rate.step()
    return _with_unit_features(network.eval(), to_unit(data.images))


@torch.no_grad()
def _with_unit_features(network: DigitClassifier, x: Tensor) -> DigitClassifier:
    """Copy the network with features of x (B, 1, 8, 8) of mean square 1, so that kernel distances are of order 1."""
    scaled = copy.deepcopy(network)
    scaled.scale.div_(scaled.features(x).square().mean().sqrt())
    return scaled


@torch.no_grad()
def accuracy(network: DigitClassifier, data: ArrayDataset) -> float:
    """Return the share of `data` whose largest class score, in float64, is at its label."""
    scores = copy.deepcopy(network).double()(to_unit(data.images).double())
    return float((scores.argmax(1) == data.labels).double().mean())


def card(network: DigitClassifier, training: ArrayDataset, held_out: ArrayDataset) -> dict[str, str | int | float]:
    """Return the provenance and accuracy of the weights, which are stored beside them."""
    return {
        "what": "classifier of 1x8x8 digits; its 32 last hidden activations are the features of metrics=fidelity",
        "caution": "distances in these features compare only with distances in these same features, never with FID",
        "command": "python -m scoreline.metrics.digit_classifier PATH",
        "seed": SEED,
        "epochs": EPOCHS,
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "train": training.name,
        "train_digest": training.digest,
        "train_count": len(training),
        "test": held_out.name,
        "test_digest": held_out.digest,
        "test_count": len(held_out),
        "test_accuracy": accuracy(network, held_out),
        "data_source": "UCI Optical Recognition of Handwritten Digits, doi:10.24432/C50P49, CC BY 4.0",
        "scoreline": scoreline.__version__,
        "torch": str(torch.__version__),
    }


def to_safetensors(network: DigitClassifier, about: dict[str, str | int | float]) -> bytes:
    """Write weights in float32 and the card as one JSON string; equal content gives equal bytes."""
    from safetensors.torch import save

    weights = {name: weight.detach().float() for name, weight in network.state_dict().items()}
    return save(weights, metadata={"card": json.dumps(about, sort_keys=True)})


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the feature extractor of metrics=fidelity on the digits.")
    parser.add_argument("path", type=Path, help="the .safetensors file to write")
    path = parser.parse_args().path
    torch.set_num_threads(1)
    training, held_out = Digits("train"), Digits("test")
    network = train(training)
    about = card(network, training, held_out)
    path.write_bytes(to_safetensors(network, about))
    print(f"{path}: {about['test_accuracy']:.4f} of {len(held_out)} held-out digits recognised")


if __name__ == "__main__":
    main()
