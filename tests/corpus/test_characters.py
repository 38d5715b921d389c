"""Kinds of characters, against `unicodedata` itself."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from yayan.corpus.characters import (
    LETTER,
    MARK,
    NUMBER,
    OTHER,
    SENTENCE,
    SPACE,
    SYMBOL,
    codes_of,
    kinds,
    letters_of,
)


@given(st.text())
def test_the_table_says_what_unicodedata_says(text: str) -> None:
    assert codes_of(text).tolist() == [ord(character) for character in text]
    for character, kind in zip(text, kinds()[codes_of(text)].tolist(), strict=True):
        category = unicodedata.category(character)
        assert (kind == LETTER) == (category[0] == "L")
        assert (kind == MARK) == (category[0] == "M")
        assert (kind == NUMBER) == (category[0] == "N")
        assert (kind == SPACE) == (category[0] == "Z" or character in "\t\n\v\f\r\x85")


def test_no_letter_lies_beyond_the_table() -> None:
    for code in range(0x40000, 0x110000):
        assert unicodedata.category(chr(code))[0] in "C" or 0xE0100 <= code < 0xE01F0


def test_sentences_hold_no_symbols() -> None:
    by_kind = {SENTENCE: "，。“”、；：？！《》,.'-", SYMBOL: "#*=|<>{}~$%+★→", OTHER: "\x00\x07\ue000"}
    for kind, characters in by_kind.items():
        assert set(kinds()[codes_of(characters)].tolist()) == {kind}


def test_letters_of_scripts() -> None:
    assert letters_of(["han"])[codes_of("中国龘𠀀〇々")].all()
    assert not letters_of(["han"])[codes_of("aかハ한，0 ")].any()
    assert letters_of(["han", "kana", "latin"])[codes_of("中aかハé")].all()
