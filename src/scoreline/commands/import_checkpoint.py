"""`scoreline import SOURCE DEST`: a checkpoint of another project as one of ours, without running its code.

scoreline import edm-cifar10-32x32-uncond-vp.pkl models/edm                        describes itself
scoreline import checkpoint_26.pth models/vp --from score_sde model=cifar10_ddpmpp_vp
scoreline import ckpt.pth models/celeba --from ddpm model=celeba64_ddpm weights=raw
scoreline import https://HOST/FILE.pt models/adm model=imagenet64_guided sha256=...
scoreline import ddpm-cifar10-32 models/ddpm                                       a diffusers folder

SOURCE    a file, a diffusers folder, or a URL, which is downloaded into the cache
DEST      a .safetensors file, or a directory that gets a model.safetensors; nothing is overwritten
--from    edm | score_sde | ddpm | guided_diffusion | diffusers | lightning; told by the content if left out
model     a choice of conf/model, for files that do not say which network they hold; model.KEY=.. changes it
weights   ema (default) | raw
allow     [names] of classes in its pickle that are unknown to us: kept as inert records, never called
sha256    that the source must have

Then: scoreline verify DEST
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scoreline.commands.composition import described_model, split
from scoreline.errors import InputError, did_you_mean
from scoreline.specs import Spec

if TYPE_CHECKING:
    from scoreline.foreign.translation import ForeignModel

MODEL_PARTS = ("network", "parameterisation", "noise_schedule")
OWN = {"from": "", "model": "", "weights": "ema", "allow": "", "sha256": ""}


def main(words: list[str]) -> None:
    """Import, write, and say what the file is taken for.

    Raises:
        InputError: for what cannot be imported, as one sentence.
    """
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return
    from scoreline.foreign.conversion import Options, convert

    (source, destination), own, overrides = arguments(words)
    target = Path(destination)
    if target.suffix != ".safetensors":
        target = target / "model.safetensors"
    options = Options(
        family=own["from"] or None,
        model=described_model(own["model"], overrides) if own["model"] else None,
        weights=own["weights"],
        allow=tuple(part.strip() for part in own["allow"].strip("[]").split(",") if part.strip()),
        sha256=own["sha256"] or None,
    )
    family, imported = convert(source, target, options)
    print(f"{source}: {family}, {options.weights} weights -> {target}")
    for line in conventions(imported):
        print(f"  {line}")
    print(f"check it: scoreline verify {target}")


def arguments(words: Sequence[str]) -> tuple[list[str], dict[str, str], list[str]]:
    """SOURCE and DEST, our keys, and overrides of the model; `--key value` and `--key=value` are key=value.

    Raises:
        InputError: for another number of places, or an unknown key.
    """
    places, pairs = [], []
    rest = iter(words)
    for word in rest:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            pairs.append(f"{key}={value if equals else next(rest, '')}")
        elif "=" in word and "://" not in word and not Path(word).exists():
            pairs.append(word)
        else:
            places.append(word)
    own, overrides = split(pairs, OWN)
    for word in overrides:
        key = word.partition("=")[0]
        if not key.lstrip("+~").startswith("model."):
            raise InputError(f"{key}: there is no such key{did_you_mean(key, OWN)}")
    if overrides and not own["model"]:
        raise InputError(f"{overrides[0]}: changes a model; give model=... of conf/model first")
    if len(places) != 2:
        raise InputError(f"{len(places)} places: give two, as in scoreline import SOURCE DEST --from edm")
    return places, own, overrides


def conventions(imported: "ForeignModel") -> list[str]:
    """What the checkpoint is taken for, in words a reader can check against its paper."""
    weights, model = imported.weights, imported.model
    numbers = sum(weight.numel() for weight in weights.values())
    size, classes = "x".join(map(str, imported.shape)), imported.num_classes or "no"
    return [
        f"images {size}, {classes} classes, {numbers:,} numbers in {len(weights)} tensors",
        *(f"{part.replace('_', ' ')}: {_spelled(model[part])}" for part in MODEL_PARTS),
    ]


def _spelled(spec: Spec) -> str:
    arguments = (f"{key}={value}" for key, value in spec.items() if key != "_target_" and not isinstance(value, dict))
    return f"{spec['_target_'].rpartition('.')[2]}({', '.join(arguments)})"
