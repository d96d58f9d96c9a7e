"""The classes of emoji: the groups in which Unicode lists them."""

from bisect import bisect_right
from functools import cache
from pathlib import Path

from scoreline.datasets.color_font import Text
from scoreline.datasets.emoji_groups import spells_a_flag

TABLE = Path(__file__).parents[1] / "assets" / "emoji_groups.txt"

GROUPS = (
    *("Smileys & Emotion", "People & Body", "Component", "Animals & Nature", "Food & Drink", "Travel & Places"),
    *("Activities", "Objects", "Symbols", "Flags"),
)
"""The groups in Unicode's order; the position of a name is the number of its class."""

FLAGS = GROUPS.index("Flags")
LEADING = (FLAGS, *(GROUPS.index(name) for name in ("People & Body", "Smileys & Emotion", "Animals & Nature")))
"""Groups that decide for a picture of several characters: a dog with a vest is an animal, a pirate's flag a flag."""

OTHERS: dict[Text, str] = {
    (0x1F441, 0x1F5E8): "Smileys & Emotion",  # an eye (People) in a speech bubble
    (0x26D3, 0x1F4A5): "Objects",  # a chain and a collision (Smileys): a broken chain
}
"""Base pictures that are not of the group that the rule gives."""


def group(base: Text) -> int:
    """Return the class of a base picture (see `emoji_groups.base`), a position in `GROUPS`.

    A character that Unicode 15 does not list has the group of its predecessor, since neighbours are of a kind.

    Source: Unicode, Inc., emoji-test.txt, version 15.0 (Unicode licence, in assets/emoji_groups.txt).
    """
    if len(base) > 1 and any(spells_a_flag(code) for code in base):
        return FLAGS
    if base in OTHERS:
        return GROUPS.index(OTHERS[base])
    groups = [_of_character(code) for code in base]
    return next((leading for leading in LEADING if leading in groups), groups[0])


def _of_character(code: int) -> int:
    starts, groups = _runs()
    return groups[max(bisect_right(starts, code) - 1, 0)]


@cache
def _runs() -> tuple[list[int], list[int]]:
    """Read the first characters of all runs in increasing order, and the group of each."""
    lines = [line.split(": ") for line in TABLE.read_text("ascii").splitlines() if not line.startswith("#")]
    runs = sorted((int(start, 16), GROUPS.index(name)) for name, starts in lines for start in starts.split())
    return [start for start, _ in runs], [number for _, number in runs]
