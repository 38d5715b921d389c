"""Steps that rewrite: what they mend, what they leave alone, and that they have nothing left to do afterwards."""

import importlib
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yayan.corpus.rewriting import (
    MOST_ROUNDS,
    Step,
    excerpt,
    first_difference,
    mojibake_step,
    normaliser,
    remove_invisible,
    rewrite,
    simplified_step,
)
from yayan.errors import UserError

STEPS: dict[str, Step] = {
    "mojibake": mojibake_step(),
    "control": remove_invisible,
    "nfkc": normaliser("NFKC"),
    "simplified": simplified_step(),
}
# Characters that steps look for, and make each other find.
LIVELY = st.text(
    st.sampled_from(
        "中國薴苧乾后後髮é Ã©â€œ™…œ\xa0\xad\u200b\u200d\u202e\ufeff\ufffd\ue000\r\n\t\x85\x9dｶ，①e\u0301か\u3099a.👨"
    )
)


@pytest.mark.parametrize(
    ("given_text", "wanted"),
    [
        ("a\r\nb\rc\u2028d\x85e\fg", "a\nb\nc\nd\ne\ng"),
        ("\ufeff中\u200b文\u202e\xad", "中文"),
        ("a\x00\x1b\x7f\x9fb\ue000\ufdd0\U0001fffe\U0010ffffc", "abc"),
        ("中\ufffd国", "中国"),
        ("中\ufffd\ufffd国", "中\ufffd\ufffd国"),  # a hole that a filter may see
        ("ا\u200cب 👨\u200d👩 क्\u200dष", "ا\u200cب 👨\u200d👩 क्\u200dष"),  # spelling, emoji
        ("中\u200d文a\u200cb", "中文ab"),
        ("缩进\t 　保留\n", "缩进\t 　保留\n"),
        ("❤\ufe0f葛\U000e0100城", "❤\ufe0f葛\U000e0100城"),  # variation selectors say which form is meant
    ],
)
def test_invisible_characters(given_text: str, wanted: str) -> None:
    assert remove_invisible(given_text) == wanted


@pytest.mark.parametrize("encoding", ["latin-1", "windows-1252", "macroman", "cp437"])
def test_a_wrong_encoding_is_mended_in_its_line_alone(encoding: str) -> None:
    line = "它的“雅言”，就是标准的话——café"
    broken = line.encode().decode(encoding, "replace" if encoding == "windows-1252" else "strict")
    mended = STEPS["mojibake"](f"正常的“一行”……\n{broken}\nnaïve £5, 20 °C × 3")
    first, second, third = mended.split("\n")
    assert (first, third) == ("正常的“一行”……", "naïve £5, 20 °C × 3")
    if encoding == "windows-1252":  # bytes that it does not have are lost; the rest is read
        assert "雅" in second
        assert second.endswith("café")
    else:
        assert second == line


@given(LIVELY | st.text(st.sampled_from("ÃÂâ€œœ™©×²³Ø§Ùа‚Ä√±вЂ’ĎĢГўВЂВ. a中“”—\x85\xa0¡ą")) | st.text())
@settings(max_examples=1000)
def test_what_is_passed_over_is_what_ftfy_would_leave(text: str) -> None:
    fix = importlib.import_module("ftfy").fix_encoding
    assert STEPS["mojibake"](text) == "\n".join(map(fix, text.split("\n")))


def test_simplified_by_phrases() -> None:
    text = "皇后在後面，乾隆皇帝的頭髮很乾燥。English 123"
    assert STEPS["simplified"](text) == "皇后在后面，乾隆皇帝的头发很干燥。English 123"


@given(st.text())
def test_normal_forms(text: str) -> None:
    for form in ("NFC", "NFKC"):
        assert normaliser(form)(text) == unicodedata.normalize(form, text)


@given(st.one_of(LIVELY, st.text()), st.sets(st.sampled_from(sorted(STEPS))))
@settings(max_examples=1000)
def test_a_rewritten_text_has_nothing_left_to_rewrite(text: str, names: set[str]) -> None:
    steps = {name: step for name, step in STEPS.items() if name in names}
    after, changes = rewrite(text, steps)
    assert rewrite(after, steps) == (after, [])
    assert all(step(after) == after for step in steps.values())
    assert changes or after == text
    assert len({change.step for change in changes}) == len(changes)


def test_one_step_makes_work_for_another() -> None:
    after, changes = rewrite("caf\xc3\u200b\xa9", {name: STEPS[name] for name in ("mojibake", "control")})
    assert after == "café"
    assert [change.step for change in changes] == ["control", "mojibake"]


def test_steps_that_never_agree_come_to_an_end() -> None:
    calls = []

    def flip(text: str) -> str:
        calls.append(text)
        return text[::-1]

    assert rewrite("ab", {"flip": flip})[0] == "ab"
    assert len(calls) == MOST_ROUNDS


@given(st.text(st.sampled_from("ab")), st.text(st.sampled_from("ab")))
def test_first_difference(one: str, other: str) -> None:
    at = first_difference(one, other)
    assert one[:at] == other[:at]
    assert one[at : at + 1] != other[at : at + 1] or one == other


def test_excerpts_show_what_cannot_be_seen() -> None:
    assert excerpt("中\u200b文\n") == "中\\u200b文\\n"
    assert excerpt("字" * 100, 50) == "…" + "字" * 40 + "…"
    _, (change,) = rewrite("一" * 30 + "\x07" + "二" * 30, {"control": remove_invisible})
    assert change.before == "…" + "一" * 20 + "\\x07" + "二" * 19 + "…"
    assert change.after == "…" + "一" * 20 + "二" * 20 + "…"


def test_a_missing_library_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opencc", None)
    simplified_step.cache_clear()
    with pytest.raises(UserError, match=r"opencc is not installed: pip install 'yayan\[clean\]'\."):
        simplified_step()
