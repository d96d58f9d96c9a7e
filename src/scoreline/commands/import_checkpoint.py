"""scoreline import SOURCE DEST [--from FAMILY] [KEY=VALUE ..]
Convert another project's checkpoint to a model file, without running its code.

  scoreline import edm-cifar10-32x32-uncond-vp.pkl models/edm
  scoreline import checkpoint_26.pth models/vp model=cifar10_ddpmpp_vp
  scoreline import ckpt.pth models/celeba model=celeba64_ddpm weights=raw
  scoreline import https://HOST/FILE.pt models/adm model=imagenet64_guided
  scoreline import ddpm-cifar10-32 models/ddpm

SOURCE   a file, a diffusers folder, or a URL, which is downloaded to the cache
DEST     a .safetensors file, or a directory for model.safetensors; it must not
         exist yet
--from   edm | score_sde | ddpm | guided_diffusion | diffusers | lightning |
         lucidrains (default: recognised by the content)
model    a choice of conf/model, for files that do not describe their network;
         model.KEY=VALUE changes it; --config-dir has networks of your own
weights  ema (default) | raw
allow    [names] of classes in its pickle that scoreline does not know; they
         are kept as inert records and never called
sha256   the expected SHA-256 of SOURCE
size     64 or [64,96], height first: the images of a diffusers folder or a file
         of lucidrains that does not say it

Then check it: scoreline verify DEST
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoreline.commands.words import names, parse
from scoreline.config.compose import described_model
from scoreline.config.script import checkpoint_words, command
from scoreline.descriptions.specs import Spec
from scoreline.errors import InputError
from scoreline.foreign import diffusers_settings
from scoreline.values import image_size

if TYPE_CHECKING:
    from scoreline.foreign.translation import ForeignModel

MODEL_PARTS = ("network", "parameterisation", "noise_schedule", "decoder")
OWN = {"from": "", "model": "", "weights": "ema", "allow": "", "sha256": "", "size": ""}


def main(words: list[str]) -> None:
    """Import a checkpoint, write it, and print the conventions of the model.

    Raises:
        InputError: for a file that cannot be imported.
    """
    from scoreline.foreign.conversion import Options, convert

    (source, destination), own, overrides = arguments(words)
    target = Path(destination)
    if target.suffix != ".safetensors":
        target = target / "model.safetensors"
    options = Options(
        family=own["from"] or None,
        model=described_model(own["model"], overrides) if own["model"] else None,
        weights=own["weights"],
        allow=names(own["allow"]),
        sha256=own["sha256"] or None,
        size=image_size("size", _plain(own["size"])),
    )
    family, imported = convert(source, target, options)
    print(f"{source}: {family}, {options.weights} weights -> {target}")
    for line in _conventions(imported):
        print(f"  {line}")
    _, *trust = checkpoint_words(target, imported.model)
    print(f"check it: {command('verify', str(target), *trust)}")


def _plain(word: str) -> Any:
    """Return the number or list of numbers that a word spells, None for an empty word, else the word."""
    try:
        return json.loads(word) if word else None
    except ValueError:
        return word


def arguments(words: Sequence[str]) -> tuple[list[str], dict[str, str], list[str]]:
    """Return SOURCE and DEST, the command's keys, and overrides of the model; `--key value` means key=value.

    Raises:
        InputError: for a wrong number of paths, or an unknown key.
    """
    pairs, rest = [], iter(words)
    for word in rest:
        option = word.removeprefix("--")
        spaced = word != option and "=" not in word
        pairs.append(f"{option}={next(rest, '')}" if spaced else option)
    places, own, overrides = parse(pairs, OWN, ("model",))
    if overrides and not own["model"]:
        raise InputError(f"{overrides[0]}: changes a model; give model=... of conf/model first")
    if len(places) != 2:
        raise InputError(f"{len(places)} places: give two, as in scoreline import SOURCE DEST --from edm")
    return places, own, overrides


def _conventions(imported: "ForeignModel") -> list[str]:
    """Return the conventions of the model in lines, for comparison with its paper."""
    weights, model = imported.weights, imported.model
    numbers = sum(weight.numel() for weight in weights.values())
    size, classes = "x".join(map(str, imported.shape)), imported.num_classes or "no"
    return [
        f"images {size}, {classes} classes, {numbers:,} numbers in {len(weights)} tensors",
        *(f"{part.replace('_', ' ')}: {_spelled(model[part])}" for part in MODEL_PARTS if part in model),
        *(f"note: {sentence}" for sentence in diffusers_settings.sentences(imported.notes)),
    ]


def _spelled(spec: Spec) -> str:
    arguments = (f"{key}={value}" for key, value in spec.items() if key != "_target_" and not isinstance(value, dict))
    return f"{spec['_target_'].rpartition('.')[2]}({', '.join(arguments)})"
