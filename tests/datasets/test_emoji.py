import itertools
from pathlib import Path

import numpy as np
import pytest
from debian_files import write_apt, write_package
from emoji_fonts import TONES, colour, many_objects, png, write_font
from fontTools.ttLib import TTFont
from PIL import Image

from scoreline.datasets import emoji
from scoreline.datasets.bases import belongs, merge
from scoreline.datasets.color_font import read_glyphs
from scoreline.datasets.debian_package import DebianPackage
from scoreline.datasets.emoji import Emoji
from scoreline.datasets.emoji_classes import GROUPS, TABLE, group
from scoreline.datasets.emoji_groups import base
from scoreline.errors import InputError

MAN, WOMAN, PERSON, BOY, GIRL, ZWJ, VS16 = 0x1F468, 0x1F469, 0x1F9D1, 0x1F466, 0x1F467, 0x200D, 0xFE0F


def codes(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


# --- the font file ---


def test_pictures_and_texts_of_a_font(tmp_path):
    texts = {"hand": (0x1F44B,), "dark": (0x1F44B, TONES[4]), "pilot": (WOMAN, ZWJ, 0x2708), "lost": ()}
    pictures = {name: colour(seed) for seed, name in enumerate(texts)}
    path = write_font(tmp_path / "a.ttf", pictures, {name: text for name, text in texts.items() if text})
    glyphs = read_glyphs(Path(path))
    assert [glyph.png for glyph in glyphs] == [png(picture) for picture in pictures.values()]
    assert [glyph.texts for glyph in glyphs] == [[text] if text else [] for text in texts.values()]


def test_ligatures_of_ligatures(tmp_path):
    texts = {"a": (0x1F466,), "ab": (0x1F466, 0x1F467), "abc": (0xF0000, 0x1F468)}
    path = write_font(tmp_path / "a.ttf", {name: colour(i) for i, name in enumerate(texts)}, texts)
    font = TTFont(path)
    (lookup,) = font["GSUB"].table.LookupList.Lookup
    lookup.SubTable[0].ligatures["ab"] = lookup.SubTable[0].ligatures.pop("cf0000")  # now: ab + c1f468 -> abc
    font.save(tmp_path / "b.ttf")
    assert read_glyphs(tmp_path / "b.ttf")[2].texts == [(0x1F466, 0x1F467, 0x1F468)]


def test_unsuitable_fonts(tmp_path):
    with pytest.raises(InputError, match=r"apt-get install fonts-noto-color-emoji.*dataset\.font="):
        Emoji(str(tmp_path / "none.ttf"))
    (tmp_path / "text.ttf").write_bytes(b"no font")
    with pytest.raises(InputError, match="is not a font with CBDT colour bitmaps"):
        Emoji(str(tmp_path / "text.ttf"))
    path = Path(write_font(tmp_path / "a.ttf", {"a": colour(0)}, {"a": (0x1F400,)}))
    (tmp_path / "cut.ttf").write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match="is not a font with CBDT colour bitmaps"):
        Emoji(str(tmp_path / "cut.ttf"))
    with pytest.raises(InputError, match="no text selects any of its pictures"):
        Emoji(write_font(tmp_path / "b.ttf", {"a": colour(0)}, {"b": (0x20,)}))


def test_font_in_a_debian_package(tmp_path, monkeypatch):
    font = Path(write_font(tmp_path / "a.ttf", {"a": colour(0)}, {"a": (0x1F400,)}))
    files = {"usr/share/doc/copyright": b"OFL", "usr/share/fonts/a.ttf": font.read_bytes()}
    package = write_package(tmp_path / "fonts-noto-color-emoji.deb", files)
    digest = Emoji(str(font), "all").digest
    assert Emoji(str(package), "all").digest == digest
    with pytest.raises(InputError, match=r"b\.deb is not a font"):
        Emoji(str(write_package(tmp_path / "b.deb", {"a.txt": b""})))
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(emoji, "NOTO", DebianPackage(emoji.NOTO.name, str(tmp_path / "installed.ttf")))
    write_apt(tmp_path / "bin", tmp_path, monkeypatch)
    with pytest.raises(InputError, match=r"dataset\.font=null: neither .*installed.ttf nor .*dataset\.download=true"):
        Emoji(split="all")
    assert Emoji(split="all", download=True).digest == digest
    package.unlink()
    assert Emoji(split="all").digest == digest
    font.rename(tmp_path / "installed.ttf")
    (tmp_path / "cache").rename(tmp_path / "away")
    assert Emoji(split="all").digest == digest


def test_a_font_without_png_pictures(tmp_path):
    path = write_font(tmp_path / "a.ttf", {"a": colour(0)}, {"a": (0x1F400,)})
    data = Path(path).read_bytes().replace(b"\x89PNG", b"\x89GIF")
    Path(path).write_bytes(data)
    with pytest.raises(InputError, match="holds no PNG bitmaps"):
        Emoji(path)


def test_damaged_picture_names_the_font(tmp_path):
    path = write_font(tmp_path / "a.ttf", {"a": colour(0)}, {"a": (0x1F400,)})
    data = Path(path).read_bytes()
    Path(path).write_bytes(data.replace(b"IHDR", b"IHDX"))
    with pytest.raises(InputError, match=r"dataset\.font=.*a\.ttf cannot be read as PNG"):
        Emoji(path)


# --- the data set ---


def test_flattened_on_the_background_and_centred(tmp_path):
    picture = np.zeros((8, 16, 4), np.uint8)
    picture[:, :8] = (200, 100, 0, 255)
    picture[:, 8:] = (0, 0, 0, 51)  # a fifth of black
    path = write_font(tmp_path / "a.ttf", {"a": picture}, {"a": (0x1F400,)})
    image = Emoji(path, "all", resolution=16, background=250).read([0])[0][0].permute(1, 2, 0).numpy()
    assert (image[:4] == 250).all()
    assert (image[12:] == 250).all()
    assert (image[4:12, :8] == (200, 100, 0)).all()
    assert (image[4:12, 8:] == 200).all()


def test_resized_by_lanczos(tmp_path):
    picture = colour(5, 24, 24)
    path = write_font(tmp_path / "a.ttf", {"a": picture}, {"a": (0x1F400,)})
    want = Image.fromarray(picture[..., :3]).resize((8, 8), Image.Resampling.LANCZOS)
    data = Emoji(path, "all", resolution=8)
    assert (data.name, data.shape, data.num_classes) == ("emoji-all", (3, 8, 8), 0)
    assert np.array_equal(data.read([0])[0][0].permute(1, 2, 0).numpy(), np.array(want))
    assert data.read([0])[1].tolist() == [-1]


def test_split_parts_the_pictures_by_base(tmp_path):
    pictures, texts = many_objects(60)
    path = write_font(tmp_path / "a.ttf", pictures, texts)
    sets = {split: Emoji(path, split, resolution=4) for split in ("train", "test", "all")}
    rows = {split: [image.numpy().tobytes() for image in data.images] for split, data in sets.items()}
    assert len(set(rows["all"])) == 360
    assert sorted(rows["train"] + rows["test"]) == sorted(rows["all"])
    assert not set(sets["train"].bases) & set(sets["test"].bases)
    assert all(sets[split].bases.count(name) == 6 for split in ("train", "test") for name in sets[split].bases)
    assert 2 <= len(set(sets["test"].bases)) <= 12


def test_split_depends_on_nothing_but_the_base(tmp_path):
    pictures, texts = many_objects(40)
    first = Emoji(write_font(tmp_path / "a.ttf", pictures, texts), "test", resolution=4)
    fewer = {name: texts[name] for name in list(texts)[::-1][:170]}
    second = Emoji(write_font(tmp_path / "b.ttf", {n: pictures[n] for n in fewer}, fewer), "test", resolution=9)
    assert set(second.bases) == set(first.bases)
    assert set(first.bases) == {"1f40d", "1f411"}  # by coreutils: printf 1f40d | sha256sum, modulo 10 in bc


def test_one_base_in_ten_is_held_out():
    held_out = sum(belongs(f"{code:x}", "test") for code in range(20_000))
    assert abs(held_out - 2000) < 5 * (20_000 * 0.1 * 0.9) ** 0.5


def test_equal_pictures_stay_once_and_join_their_bases(tmp_path):
    pictures = {"a": colour(0), "b": colour(1), "c": colour(0), "c2": colour(2), "d": colour(3)}
    texts = {"a": (0x1F402,), "b": (0x1F403,), "c": (0x1F404,), "c2": (0x1F404, TONES[0]), "d": (0x1F401,)}
    data = Emoji(write_font(tmp_path / "a.ttf", pictures, texts), "all", resolution=16)
    assert data.bases == ["1f402", "1f403", "1f402", "1f401"]  # c goes; c2, a variant of c, follows a
    assert [tuple(image[:, -1, -1].tolist()) for image in data.images] == [
        tuple(pictures[name][-1, -1, :3].tolist()) for name in ("a", "b", "c2", "d")
    ]


def test_pictures_without_a_text_are_left_out(tmp_path):
    path = write_font(tmp_path / "a.ttf", {"a": colour(0), "lost": colour(1)}, {"a": (0x1F400,)})
    data = Emoji(path, "all")
    assert (len(data), data.left_out) == (1, 1)


def test_unusable_arguments(tmp_path):
    path = write_font(tmp_path / "a.ttf", {"a": colour(0)}, {"a": (0x1F400,)})
    with pytest.raises(InputError, match=r"dataset\.split=valid: .*all, test, train"):
        Emoji(path, "valid")
    with pytest.raises(InputError, match=r"dataset\.labels=folders: .*groups, none"):
        Emoji(path, labels="folders")
    with pytest.raises(InputError, match=r"dataset\.resolution=0"):
        Emoji(path, resolution=0)
    with pytest.raises(InputError, match=r"dataset\.background=256"):
        Emoji(path, background=256)
    with pytest.raises(InputError, match=r"no picture for dataset\.split=(train|test)"):
        [Emoji(path, split) for split in ("train", "test")]


# --- which emoji are variants of one another ---

VARIANTS = {
    "skin tones": ["👋", "👋🏻", "👋🏽", "👋🏿"],
    "professions": ["🧑‍🚒", "👨‍🚒", "👩🏿‍🚒", "🧑🏽‍🚒"],
    "gender signs": ["🏃", "🏃‍♀️", "🏃🏾‍♂️", "🏃🏾‍♂️‍➡️"],
    "right to left": ["🏃🏾‍♂️", "\u2642\u200d\U0001f3c3\U0001f3fe"],
    "hair": ["🧑", "👨", "👩🏼", "👩🏼‍🦰", "🧑‍🦲", "👱🏻‍♀️"],
    "children": ["🧒", "👦", "👧🏿"],
    "older people": ["🧓", "👴🏻", "👵"],
    "two or more people": ["👪", "👨‍👩‍👧‍👦", "👩‍👦", "👫", "👬🏻", "👩🏻‍🤝‍👩🏿", "💏", "👩‍❤️‍💋‍👨", "💑🏽", "👨🏻‍❤️‍👨🏿"],
    "emoji presentation": ["❤", "❤️", "❤︎"],
    "recoloured": ["🐈", "🐈‍⬛"],
    "handshakes": ["🤝", "🤝🏽", "🫱🏻‍🫲🏿"],
    "Christmas": ["🎅", "🤶🏽", "🧑🏽‍🎄"],
    "crowns": ["🤴", "👸🏿", "🫅"],
    "clock faces": ["🕐", "🕧"],
    "swatches": ["🏻", "🏿"],
}


@pytest.mark.parametrize("kind", VARIANTS)
def test_variants_share_a_base(kind):
    assert len({base(codes(text)) for text in VARIANTS[kind]}) == 1


def test_different_pictures_have_different_bases():
    singles = ["🇫🇷", "🇩🇪", "🇦🇺", "🇺🇦", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "🏴", "🏴‍☠️", "🏳️", "🏳️‍🌈", "🏳️‍⚧️", "1️⃣", "2️⃣", "#️⃣"]
    singles += ["♀", "♂", "🦰", "⬛", "🟩", "➡", "❤️‍🔥", "🔥", "👶", "🧑‍🍼", "😀", "😃"]
    singles += [texts[0] for kind, texts in VARIANTS.items() if kind != "right to left"]
    for one, other in itertools.combinations(singles, 2):
        assert base(codes(one)) != base(codes(other)), (one, other)


def test_merge_joins_chains_to_their_least_member():
    joined = merge([[(5,)], [(3,), (4,)], [(9,), (4,)], [(9,), (2,)], [(7,), (8,)]])
    assert joined == {(5,): (5,), (2,): (2,), (3,): (2,), (4,): (2,), (9,): (2,), (7,): (7,), (8,): (7,)}


# --- classes ---

LISTED = {
    "Smileys & Emotion": [
        "😀",
        "🤩",
        "☺️",
        "☹️",
        "😶‍🌫️",
        "😮‍💨",
        "😵‍💫",
        "❤️‍🔥",
        "❤️‍🩹",
        "👁️‍🗨️",
        "💋",
        "💤",
        "🙈",
        "😺",
        "☠️",
        "🖤",
    ],
    "People & Body": [
        "👋🏽",
        "🫱🏻‍🫲🏿",
        "👁️",
        "👨🏿‍🚒",
        "🧑‍⚕️",
        "🧑‍🎄",
        "🏄‍♀️",
        "⛹🏽‍♂️",
        "👪",
        "👩‍❤️‍💋‍👨",
        "🕺",
        "👣",
        "🧗",
        "🧑‍🦯‍➡️",
    ],
    "Component": ["🏻", "🏿", "🦰", "🦳"],
    "Animals & Nature": ["🐈‍⬛", "🐕‍🦺", "🐻‍❄️", "🐦‍⬛", "🐦‍🔥", "🌵", "☘️", "🪻", "🍄", "💐"],
    "Food & Drink": ["🍎", "🍋‍🟩", "🦀", "☕", "🔪", "🏺", "🥢", "🧊"],
    "Travel & Places": ["🌍", "⛰️", "🚒", "⏰", "🕧", "☀️", "⭐", "❄️", "🔥", "💧", "🪨", "🏰"],
    "Activities": ["🎃", "⚽", "♟️", "🀄", "🔫", "🧩", "✨", "🔮"],
    "Objects": ["👑", "🔊", "✂️", "⛓️‍💥", "⛏️", "🗿", "🪦", "🔑"],
    "Symbols": ["♀️", "⬛", "🟩", "➡️", "#️⃣", "1️⃣", "🔯", "🆗", "©️", "💠", "⚧️", "🇦"],
    "Flags": ["🏳️‍🌈", "🏴‍☠️", "🏳️‍⚧️", "🇫🇷", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🎌", "🏁", "🚩"],
}
"""Emoji of emoji-test.txt by group: single, and sequences whose parts are of other groups."""


def test_group_of_every_kind_of_sequence():
    assert list(LISTED) == list(GROUPS)
    wrong = [(text, name) for name in LISTED for text in LISTED[name] if GROUPS[group(base(codes(text)))] != name]
    assert wrong == []


def test_characters_that_unicode_does_not_list_have_a_group():
    assert {group((code,)) for code in (0, 0x1FAE9, 0x10FFFF)} <= set(range(len(GROUPS)))
    assert GROUPS[group((0x1FAE9,))] == "Smileys & Emotion"  # a face of Unicode 16


def test_the_table_names_its_licence_and_every_group():
    text = TABLE.read_text("ascii")
    assert "Unicode, Inc. All rights reserved" in text
    assert [line.split(":")[0] for line in text.splitlines() if not line.startswith("#")] == list(GROUPS)


def test_labels_leave_the_images_alone(tmp_path):
    texts = {"dog": (0x1F415,), "vest": (0x1F415, ZWJ, 0x1F9BA), "pilot": (WOMAN, ZWJ, 0x2708), "france": codes("🇫🇷")}
    path = write_font(tmp_path / "a.ttf", {name: colour(i) for i, name in enumerate(texts)}, texts)
    plain, labelled = Emoji(path, "all"), Emoji(path, "all", labels="groups")
    assert [GROUPS[label] for label in labelled.labels] == [*["Animals & Nature"] * 2, "People & Body", "Flags"]
    assert (labelled.num_classes, plain.num_classes) == (10, 0)
    assert plain.labels.tolist() == [-1] * 4
    assert labelled.images.equal(plain.images)
    assert labelled.bases == plain.bases
