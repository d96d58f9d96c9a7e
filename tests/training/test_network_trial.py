"""Each way to break the contract of networks is one sentence, before a training begins."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoreline.checkpoints import Card
from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.networks.unet import UNet
from scoreline.parameterisations import EDMPreconditioning
from scoreline.training.network_trial import check_network, try_network

PROCESS = {"_target_": "scoreline.schedules.ve.EDM"}
FORM = {"_target_": "scoreline.parameterisations.EDMPreconditioning"}


class Right(nn.Module):
    """Two convolutions; the last one begins with zeros, behind which nothing can be seen."""

    def __init__(self, channels: int = 1, num_classes: int = 0, width: int = 4) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.noise = nn.Linear(1, width)
        self.classes = nn.Embedding(max(num_classes, 1), width)
        self.out = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)

    def hidden(self, x: Tensor, noise_label: Tensor, label: Tensor | None) -> Tensor:
        label = torch.zeros(len(x), dtype=torch.int64, device=x.device) if label is None else label
        return self.stem(x) + (self.noise(noise_label[:, None]) + self.classes(label))[:, :, None, None]

    def forward(self, x: Tensor, noise_label: Tensor, label: Tensor | None = None, **condition: Any) -> Any:
        return self.out(self.hidden(x, noise_label, label).relu())


class Smaller(Right):
    def forward(self, x: Tensor, noise_label: Tensor, label: Tensor | None = None) -> Any:
        return super().forward(x, noise_label)[..., 1:]


class Doubled(Right):
    def forward(self, x: Tensor, noise_label: Tensor, label: Tensor | None = None) -> Any:
        return super().forward(x, noise_label).repeat(1, 2, 1, 1)


class AsTuple(Right):
    def forward(self, x: Tensor, noise_label: Tensor, label: Tensor | None = None) -> Any:
        return super().forward(x, noise_label), x


class AsDict(Right):
    def forward(self, x: Tensor, noise_label: Tensor, label: Tensor | None = None) -> Any:
        return {"sample": super().forward(x, noise_label)}


class Output:
    def __init__(self, sample: Tensor) -> None:
        self.sample = sample


class AsOutput(Right):
    def forward(self, x: Tensor, noise_label: Tensor, label: Tensor | None = None) -> Any:
        return Output(super().forward(x, noise_label))


class Whole(Right):
    def forward(self, x: Tensor, noise_label: Tensor, label: Tensor | None = None) -> Any:
        return super().forward(x, noise_label).long()


class Elsewhere(Right):
    def forward(self, x: Tensor, noise_label: Tensor, label: Tensor | None = None) -> Any:
        return super().forward(x, noise_label).to("meta")


class NotANumber(Right):
    def forward(self, x: Tensor, noise_label: Tensor, label: Tensor | None = None) -> Any:
        return super().forward(x, noise_label) * (noise_label - 1).log()[:, None, None, None]


class Detached(Right):
    def forward(self, x: Tensor, noise_label: Tensor, label: Tensor | None = None) -> Any:
        return super().forward(x, noise_label).detach()


class OnlyX(Right):
    def forward(self, x: Tensor) -> Any:
        return self.out(self.stem(x))


class WithoutLabel(Right):
    def forward(self, x: Tensor, noise_label: Tensor) -> Any:
        return super().forward(x, noise_label)


class WithoutAugment(Right):
    augment_dim = 9

    def forward(self, x: Tensor, noise_label: Tensor, label: Tensor | None = None) -> Any:
        return super().forward(x, noise_label, label)


class Column(Right):
    """It expects noise labels (B, 1)."""

    def forward(self, x: Tensor, noise_label: Tensor, label: Tensor | None = None) -> Any:
        return self.out(self.stem(x) + self.noise(noise_label)[:, :, None, None])


class Dropped(Right):
    """Training drops labels, and its embedding has no place for -1."""

    label_dropout = 0.1


class WrongDropout(Right):
    label_dropout = 2


class FixedClasses(Right):
    def __init__(self, channels: int = 1) -> None:
        super().__init__(channels, 10)


class Normalised(Right):
    def __init__(self, channels: int = 1) -> None:
        super().__init__(channels)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor, noise_label: Tensor, label: Tensor | None = None) -> Any:
        return self.out(self.norm(self.hidden(x, noise_label, label)).relu())


class Centred(Right):
    def forward(self, x: Tensor, noise_label: Tensor, label: Tensor | None = None) -> Any:
        return super().forward(x - x.mean(0), noise_label)


class Lazy(Right):
    def __init__(self, channels: int = 1) -> None:
        super().__init__(channels)
        self.out = nn.LazyConv2d(channels, 3)


class Hidden(nn.Module):
    """Its layers are in a plain list, of which torch does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Conv2d(1, 1, 3, padding=1)]

    def forward(self, x: Tensor, noise_label: Tensor, label: Tensor | None = None) -> Any:
        return self.layers[0](x)


class Plain:
    pass


class Nested(Right):
    def __init__(self, sizes: Any = None, channels: int = 1) -> None:
        super().__init__(channels)


def make(**arguments: Any) -> Right:
    return Right(**arguments)


BAD: list[tuple[Any, dict[str, Any], str]] = [
    (Smaller, {}, r"Smaller.forward returned \(2, 1, 8, 7\) for x of \(2, 1, 8, 8\); return \(2, 1, 8, 8\)"),
    (Doubled, {}, r"returned \(2, 2, 8, 8\).*output_factor=2"),
    (AsTuple, {}, r"returned a tuple.*the first entry"),
    (AsDict, {}, r"returned a dict"),
    (AsOutput, {}, r"returned a Output.*its \.sample"),
    (Whole, {}, r"torch\.int64.*return floats"),
    (Elsewhere, {}, r"a tensor on meta for x on cpu.*device=x\.device"),
    (NotANumber, {}, r"not finite.*-0\.173, 0\.173"),
    (Detached, {}, r"does not depend on its parameters.*detach"),
    (OnlyX, {}, r"forward\(x, noise_label, label=\.\.\): too many positional"),
    (WithoutLabel, {}, r"unexpected keyword argument 'label'.*label=None, \*\*condition"),
    (WithoutAugment, {}, r"unexpected keyword argument 'augment'"),
    (Column, {}, r"test_network_trial\.py:\d+: RuntimeError: mat1 and mat2.*noise_label=float32 \(2,\)"),
    (Dropped, {"num_classes": 2}, r"test_network_trial\.py:\d+: IndexError.*label=int64 \(2,\) \[-1, 0\]"),
    (WrongDropout, {}, r"label_dropout is 2; it must be a number from 0 to 1"),
    (FixedClasses, {}, r"model\.network\.num_classes=0: its attribute num_classes is 10.*set the key to 10"),
    (Normalised, {}, r"other images of its batch in training: norm \(BatchNorm2d\) normalises.*GroupNorm"),
    (Centred, {}, r"other images of its batch.*dimension of the batch"),
    (Lazy, {}, r"weight out\.weight has no shape"),
    (Hidden, {}, r"no parameters that need a gradient.*nn\.ModuleList"),
    (Plain, {}, r"gives a Plain, not a torch\.nn\.Module"),
    (
        Nested,
        {"sizes": [[1, 2], [3]]},
        r"checkpoints could not be loaded.*sizes=\[\[1, 2\], \[3\]\].*not a plain value",
    ),
    (Nested, {"sizes": {"a": 1}}, r"checkpoints could not be loaded.*without a class"),
    (make, {}, r"checkpoints could not be loaded.*make is not a network"),
]


def trial(kind: Callable[..., Any], classes: int = 0, **arguments: Any) -> list[str]:
    """What train.py does with a network of this class and these arguments."""
    spec = {"_target_": f"{kind.__module__}.{kind.__name__}", **arguments}
    network = kind(**arguments)
    model = {"network": spec, "noise_schedule": PROCESS, "parameterisation": FORM}
    check_network(network, spec, model)
    card = Card(model, (1, 8, 8), classes, {}, {})
    return try_network(Denoiser(network, EDMPreconditioning()), card, torch.device("cpu"))


@pytest.mark.parametrize(("kind", "arguments", "sentence"), BAD, ids=lambda value: getattr(value, "__name__", ""))
def test_each_mistake_is_one_sentence(kind: Any, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as refused:
        trial(kind, arguments.get("num_classes", 0), **arguments)
    assert str(refused.value).startswith("model.network")
    assert "\n" not in str(refused.value)


class Unused(Right):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


class Dropping(Right):
    def forward(self, x: Tensor, noise_label: Tensor, label: Tensor | None = None) -> Any:
        return super().forward(nn.functional.dropout(x, 0.5), noise_label)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [(Unused, r"does not depend on spare\.weight and 1 more"), (Dropping, r"two calls in evaluation mode differ")],
)
def test_what_is_unusual_is_said(kind: Any, sentence: str) -> None:
    (note,) = trial(kind)
    assert re.search(sentence, note)


class Forced(Right):
    """It normalises its own weights in training, as EDM2's networks do."""

    def forward(self, x: Tensor, noise_label: Tensor, label: Tensor | None = None, **condition: Any) -> Any:
        with torch.no_grad():
            self.stem.weight /= self.stem.weight.norm()
        return super().forward(x, noise_label, label)


@pytest.mark.parametrize(
    "network",
    [
        Right(num_classes=3),
        UNet(channels=1, resolution=8, width=8, blocks=1, dropout=0.5, num_classes=3, augment_dim=9),
        Forced(num_classes=3),
    ],
)
def test_a_right_network_is_left_as_it_was(network: nn.Module) -> None:
    """Weights, buffers, mode and random numbers, to the bit."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    mode, state = network.training, torch.random.get_rng_state()
    card = Card({}, (1, 8, 8), 3, {}, {})
    assert try_network(Denoiser(network, EDMPreconditioning()), card, torch.device("cpu")) == []
    assert torch.equal(torch.random.get_rng_state(), state)
    assert network.training == mode
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
