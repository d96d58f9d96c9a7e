"""Rules for the layers of our U-Nets."""

from collections.abc import Mapping

from scoreline.foreign.imported import Rule


def layer(ours: str, theirs: str) -> dict[str, Rule]:
    """Weight and bias as they are."""
    return {f"{ours}.{kind}": Rule((f"{theirs}.{kind}",)) for kind in ("weight", "bias")}


def layers(ours: str, theirs: str, parts: Mapping[str, str]) -> dict[str, Rule]:
    """The same for parts of a block, our name -> its name there."""
    rules: dict[str, Rule] = {}
    for mine, other in parts.items():
        rules |= layer(f"{ours}.{mine}", f"{theirs}.{other}")
    return rules


def level_and_kind(name: str, resolution: int) -> tuple[int, str]:
    """Of a layer called {R}x{R}_{kind}: how often the images were halved there, and the kind."""
    size, _, kind = name.partition("_")
    return (resolution // int(size.partition("x")[0])).bit_length() - 1, kind
