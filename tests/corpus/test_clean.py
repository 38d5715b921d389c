"""One text cleaned: steps in their order, filters after them, each drop told in words."""

import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yayan.corpus.clean import Cleaner, Cleaning, percent
from yayan.errors import UserError

PROSE = "雅言，是古人读书时说的标准话。孔子诵诗、读书，都用雅言。"
CODE = "if (a[i] == b[j]) { x += y * z; } // <<< ### >>>"
EVERYTHING = Cleaning(
    mojibake=True,
    control=True,
    normal_form="nfc",
    simplified=True,
    min_characters=5,
    max_characters=10_000,
    max_symbols=0.3,
    script=("han",),
    max_lost=0.01,
)


def test_nothing_asked_nothing_done() -> None:
    text = "a\x00\u200b國\ufffd\ufffd"
    cleaned = Cleaner(Cleaning()).clean(text)
    assert (cleaned.text, cleaned.changes, cleaned.filter) == (text, [], None)
    assert Cleaner(Cleaning()).clean("").text == ""


@pytest.mark.parametrize(
    ("options", "text", "name", "reason"),
    [
        ({"min_characters": 5}, "短", "characters", "it has 1 character"),
        ({"max_characters": 5}, PROSE, "characters", f"it has {len(PROSE)} characters"),
        ({"max_symbols": 0.3}, CODE, "symbols", "65 % of its characters are symbols"),
        ({"script": ("han",)}, "English only.", "script", "0 % of its letters are han"),
        (
            {"script": ("han", "kana"), "min_script": 0.9},
            "中文abc",
            "script",
            "40 % of its letters are han or kana",
        ),
        ({"script": ("han",)}, "123, 456", "script", "it has no letters"),
        ({"max_lost": 0}, "锟斤拷烫", "lost", "75 % of its characters were lost to a wrong encoding"),
        (
            {"max_lost": 0.1},
            "中\ufffd\ufffd文",
            "lost",
            "50 % of its characters were lost to a wrong encoding",
        ),
    ],
)
def test_filters_say_why(options: dict[str, Any], text: str, name: str, reason: str) -> None:
    cleaned = Cleaner(Cleaning(**options)).clean(text)
    assert (cleaned.text, cleaned.filter, cleaned.reason) == (None, name, reason)
    assert Cleaner(Cleaning()).clean(text).text == text


@pytest.mark.parametrize(
    "options",
    [
        {"min_characters": len(PROSE), "max_characters": len(PROSE)},
        {"max_symbols": 0.0},  # punctuation of sentences is no symbol
        {"script": ("han",), "min_script": 1.0},
        {"max_lost": 0.0},
    ],
)
def test_prose_passes_at_the_border(options: dict[str, Any]) -> None:
    assert Cleaner(Cleaning(**options)).clean(PROSE).text == PROSE


def test_filters_look_at_what_the_steps_left() -> None:
    assert Cleaner(Cleaning(control=True, min_characters=3)).clean("a\x00\x01b").filter == "characters"
    assert Cleaner(Cleaning(control=True, max_lost=0.0)).clean("中\ufffd文").text == "中文"
    assert (
        Cleaner(Cleaning(mojibake=True, script=("han",))).clean("你好".encode().decode("latin-1")).text
        == "你好"
    )


def test_the_steps_come_in_one_order() -> None:
    assert EVERYTHING.steps == ["mojibake", "control", "nfc", "simplified"]
    assert Cleaning(normal_form="nfkc").steps == ["nfkc"]
    assert Cleaning().steps == []


def test_changes_are_told_even_of_a_text_that_is_dropped() -> None:
    cleaned = Cleaner(EVERYTHING).clean("國\u200b")
    assert cleaned.text is None
    assert [(change.step, change.before, change.after) for change in cleaned.changes] == [
        ("control", "國\\u200b", "國"),
        ("simplified", "國", "国"),
    ]


@given(st.text(st.characters() | st.sampled_from("國的，#\u200b\ufffdÃ©\r\n\xa0")))
@settings(max_examples=500)
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    cleaner = Cleaner(EVERYTHING)
    cleaned = cleaner.clean(text)
    assert (cleaned.text is None) == (cleaned.filter is not None) == (cleaned.reason is not None)
    if cleaned.text is not None:
        again = cleaner.clean(cleaned.text)
        assert (again.text, again.changes) == (cleaned.text, [])


@given(st.text(st.sampled_from("中a1,#　 \n\x07"), min_size=1), st.floats(0, 1))
def test_the_share_of_symbols_is_the_one_that_is_counted_by_hand(text: str, most: float) -> None:
    symbols, visible = sum(c in "#\x07" for c in text), sum(not c.isspace() for c in text)
    cleaned = Cleaner(Cleaning(max_symbols=most)).clean(text)
    assert (cleaned.text is None) == (visible > 0 and symbols / visible > most)


def test_cleaning_goes_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(EVERYTHING)) == EVERYTHING
    cleaned = Cleaner(EVERYTHING).clean("短\u200b")
    assert pickle.loads(pickle.dumps(cleaned)) == cleaned


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_symbols": 30}, "max_symbols is 30: give a share from 0 to 1."),
        ({"min_script": -0.1}, "min_script is -0.1: give a share from 0 to 1."),
        ({"min_characters": -1}, "min_characters is -1: give a number of characters."),
        ({"min_characters": 9, "max_characters": 8}, "no text has at least 9 and at most 8 characters: "),
        ({"script": ("klingon",)}, "the script 'klingon' is unknown: choose from han, kana"),
        ({"normal_form": "nfd"}, "the normal form 'nfd' is unknown: choose nfc or nfkc."),
    ],
)
def test_values_that_make_no_sense(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        Cleaner(Cleaning(**options))
    assert str(error.value).startswith(sentence)


def test_percent() -> None:
    assert [percent(share) for share in (0.41, 1, 0.014, 0.0042, 0)] == [
        "41 %",
        "100 %",
        "1 %",
        "0.42 %",
        "0 %",
    ]
