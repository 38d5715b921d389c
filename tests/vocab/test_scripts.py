"""Scripts: which characters are whose, what a run is, and which bytes begin characters of a script alone."""

import re
import unicodedata
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yayan.vocab.scripts import LETTERS, MARKS, SCRIPTS, SINGLES, Script, Wanted, characters_of

EVERY = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
WORD_SIGNS = "\u05f3\u05f4"  # geresh and gershayim stand inside of Hebrew words
SUBSETS = st.lists(st.sampled_from(SCRIPTS), min_size=1, max_size=4, unique=True).map(tuple)


def own_characters(*scripts: Script) -> set[str]:
    """What the tables say, read without the code under test: all of them but ASCII."""
    tables = "".join(table.get(script, "") for table in (LETTERS, MARKS, SINGLES) for script in scripts)
    return {character for character in re.findall(f"[{tables}]", EVERY) if not character.isascii()}


@pytest.fixture(scope="module")
def beginnings() -> dict[bytes, str]:
    """All assigned characters by each beginning of their bytes."""
    found: dict[bytes, list[str]] = defaultdict(list)
    for character in EVERY:
        if unicodedata.category(character) != "Cn":
            raw = character.encode("utf-8")
            for end in range(1, len(raw)):
                found[raw[:end]].append(character)
    return {start: "".join(characters) for start, characters in found.items()}


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_own_character_is_found_and_no_other(script: Script) -> None:
    wanted, own = Wanted((script,)), own_characters(script)
    assert {character for character in EVERY if wanted.holds_own(character)} == own
    assert {character for run in wanted.parts.findall(EVERY) for character in run if character in own} == own
    assert all(map(wanted.is_part_of_run, own))


@pytest.mark.parametrize("script", SCRIPTS)
def test_beginnings_are_owned_if_all_their_characters_are(
    script: Script, beginnings: dict[bytes, str]
) -> None:
    wanted, own = Wanted((script,)), own_characters(script)
    starts = {start for start, characters in beginnings.items() if not own.isdisjoint(characters)}
    for start in starts:
        assert wanted.owns_prefix(start) == own.issuperset(beginnings[start]), start.hex()


def test_no_other_bytes_are_owned(beginnings: dict[bytes, str]) -> None:
    wanted, own = Wanted(("han", "kana", "latin")), own_characters("han", "kana", "latin")
    starts = [bytes([one]) for one in range(256)]
    starts += [
        bytes([one, two]) for one in range(256) for two in range(256) if one not in (0xF0, 0xF1, 0xF2, 0xF3)
    ]
    starts += [bytes([0xF0, 0xA0]), bytes([0xF0, 0x9F, 0x98]), b"\xe4\xb8\xad", b"\xe4\xb8\xad\xe5", b""]
    for start in starts:
        expected = start in beginnings and own.issuperset(beginnings[start])
        assert wanted.owns_prefix(start) == expected, start.hex()


@pytest.mark.parametrize(
    "start", [b"\xc3", b"\xe0", b"\xed", b"\xe4\xb8", b"\xf0\x9f\x98", b"\xf4", b"\xf4\x8f"]
)
def test_characters_of_a_beginning(start: bytes) -> None:
    expected = [character for character in EVERY if character.encode().startswith(start)]
    assert list(characters_of(start)) == expected


@pytest.mark.parametrize("script", ["thai", "devanagari"])
def test_small_scripts_can_be_joined_out_of_bytes(script: Script) -> None:
    """All their first two bytes are theirs alone, or a byte-level base without them could never be continued."""
    assert all(Wanted((script,)).owns_prefix(character.encode()[:2]) for character in own_characters(script))
    assert all(Wanted(("hangul",)).owns_prefix(chr(code).encode()[:2]) for code in range(0xAC00, 0xD7A4))


@pytest.mark.parametrize("script", SCRIPTS)
def test_letters_are_no_digits_and_no_punctuation(script: Script) -> None:
    letters = re.findall(f"[{LETTERS[script]}]", EVERY)
    kinds = {letter: unicodedata.category(letter) for letter in letters}
    assert not [
        letter
        for letter, kind in kinds.items()
        if kind == "Nd" or (kind[0] == "P" and letter not in WORD_SIGNS)
    ]
    digits = [character for character in own_characters(script) if unicodedata.category(character) == "Nd"]
    wanted = Wanted((script,))
    for digit in digits:
        assert not wanted.is_part_of_run(digit * 2)
        assert wanted.parts.findall(digit * 3) == [digit] * 3


def test_digits_join_nothing() -> None:
    every = Wanted(SCRIPTS)
    for digit in (character for character in EVERY if unicodedata.category(character) == "Nd"):
        for beside in ("a", "é", "中", "か", "ก", "क", " ", "，", "1"):
            assert not every.is_part_of_run(digit + beside)
            assert not every.is_part_of_run(beside + digit)


def test_a_latin_piece_needs_a_letter_beyond_ascii() -> None:
    latin = Wanted(("latin",))
    assert not latin.holds_own("".join(map(chr, range(128))))
    assert latin.parts.findall("Le café, 2 × à côté; don't") == ["Le", " café", " à", " côté", " don", "t"]
    assert latin.is_part_of_run(" café")
    assert not latin.is_part_of_run("le café")


def test_runs_of_several_scripts() -> None:
    wanted = Wanted(("han", "cyrillic", "latin"))
    found = wanted.parts.findall("На 中文　、。Ａ１ été是и")
    assert found == ["На", "中文", "　、。", "Ａ", "１", " été", "是", "и"]
    assert Wanted(("kana", "han")).parts.findall("人々のジョン・スミス") == [
        "人々",
        "のジョン",
        "・",
        "スミス",
    ]


@given(SUBSETS, st.data())
@settings(max_examples=300, deadline=None)
def test_runs_cover_each_own_character_once(scripts: tuple[Script, ...], data: st.DataObject) -> None:
    wanted, alphabet = (
        Wanted(scripts),
        st.sampled_from("中、々ー・カかк Кéa Zأ؟٣שं।५กๆ๑한ㄱΑά12 \n\t  Ａ１“’😀"),
    )
    text = data.draw(st.text(alphabet, max_size=40) | st.text(max_size=20))
    runs = wanted.parts.findall(text)
    assert [c for run in runs for c in run if wanted.holds_own(c)] == [c for c in text if wanted.holds_own(c)]
    place = 0
    for run in runs:
        place = text.index(run, place) + len(run)  # in order, and none overlaps another
        assert " " not in run[1:]
        ends = [(start, end) for start in range(len(run)) for end in range(start + 1, len(run) + 1)]
        assert all(wanted.is_part_of_run(run[start:end]) for start, end in ends)
