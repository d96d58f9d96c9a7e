"""The base picture of which an emoji is a variant, derived from its text alone."""

from scoreline.datasets.color_font import Text

# What varies a picture without making another one: Unicode Technical Standard 51, version 16, sections 1.4 and 2.
SKIN_TONES = range(0x1F3FB, 0x1F400)
VARIATION = {
    *(0x200D, 0xFE0E, 0xFE0F),  # joiner, text and emoji presentation
    *SKIN_TONES,
    *(0x2640, 0x2642),  # gender signs
    *range(0x1F9B0, 0x1F9B4),  # hair
    *(0x2B1B, 0x2B1C, *range(0x1F7E5, 0x1F7EC)),  # squares that recolour: black cat, lime
    0x27A1,  # the arrow that turns a person to the right
}
PERSON, CHILD, TOGETHER = 0x1F9D1, 0x1F9D2, 0x1F46A

# Characters drawn as one picture with another gender, hair, grouping or hand of the clock; the first names all.
SAME: list[tuple[int, ...]] = [
    (PERSON, 0x1F468, 0x1F469, 0x1F471),
    (CHILD, 0x1F466, 0x1F467),
    (0x1F9D3, 0x1F474, 0x1F475),  # older person
    (0x1FAC5, 0x1F934, 0x1F478),  # crown
    (0x1F930, 0x1FAC3, 0x1FAC4),  # pregnant
    (0x1F385, 0x1F936),  # Christmas
    (TOGETHER, 0x1F46B, 0x1F46C, 0x1F46D, 0x1F48F, 0x1F491),  # family, hands held, kiss, couple with heart
    tuple(SKIN_TONES),
    tuple(range(0x1F550, 0x1F568)),  # clock faces
    (0x1F508, 0x1F509, 0x1F50A),  # loudspeakers
    (0x2603, 0x26C4),  # snowmen
    (0x2721, 0x1F52F),  # hexagrams
]
STANDS_FOR = {code: group[0] for group in SAME for code in group}

# Sequences drawn as another character: person + Christmas tree, hand + hand = handshake.
SPELLED: dict[Text, Text] = {(0x1F384, PERSON): (0x1F385,), (0x1FAF1, 0x1FAF2): (0x1F91D,)}


def base(text: Text) -> Text:
    """Return the base picture of an emoji's text, the same for all its skin tones, genders, hair and directions.

    All groups of two or more people (couple, family, kiss, hands held) are one base; each flag and each keycap is its
    own. The parts are sorted, since fonts also spell sequences from right to left, except in flags, where the order is
    the meaning.
    """
    kept = tuple(STANDS_FOR.get(code, code) for code in text if code not in VARIATION)
    kept = kept or tuple(STANDS_FOR.get(code, code) for code in text)
    if any(spells_a_flag(code) for code in kept):
        return kept
    if TOGETHER in kept or sum(code in (PERSON, CHILD) for code in kept) > 1:
        return (TOGETHER,)
    return SPELLED.get(tuple(sorted(kept)), tuple(sorted(kept)))


def spells_a_flag(code: int) -> bool:
    """Return whether a character is a regional indicator or a tag, of which flags are spelt."""
    return 0x1F1E6 <= code <= 0x1F1FF or 0xE0020 <= code <= 0xE007F
