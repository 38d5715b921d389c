"""Evaluation texts planted in documents are found, with their place; documents without them are not."""

import json
import lzma
import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import SHARED, needs_shared
from yayan.corpus import decontaminate, shingles
from yayan.corpus.decontaminate import SHOWN_CHARACTERS, Decontaminator, Match, record_text
from yayan.corpus.read import documents
from yayan.errors import UserError

QUESTION = "下列关于雅言的说法，正确的是哪一项？\nA 它是标准话\nB 它是方言\nC 它是文字\nD 它是乐曲"
ENGLISH = (
    "Which of the following statements about the standard speech of ancient readers is correct and complete?"
)
SET = [("zh.jsonl:1", QUESTION), ("en.jsonl:7", ENGLISH), ("zh.jsonl:2", "太短了")]


def test_what_is_shared_is_told_with_its_place() -> None:
    found = Decontaminator(SET)
    assert (found.texts, found.too_short) == (3, 1)
    assert found.find(f"题目：{QUESTION.replace('正确', '正 确')}。答案是甲。") == Match(
        "zh.jsonl:1", QUESTION.replace("正确", "正 确"), 37
    )
    english = found.find(f"今天的题：{ENGLISH.upper()} 请回答")
    assert english == Match("en.jsonl:7", ENGLISH.upper().rstrip("?"), 16)
    assert found.find("下列关于雅言的说法，正确的是。它是标准话，它是文字，它是方言。太短了") is None
    assert found.find("") is None
    assert found.find_all([]) == []


def test_as_many_pieces_as_asked_and_no_fewer() -> None:
    text = "甲乙丙丁戊己庚辛壬癸"
    for n in range(1, 11):
        found = Decontaminator([("x", text)], characters=n)
        assert found.find("子" + text[:n] + "丑") == Match("x", text[:n], n)
        assert found.find("子" + text[: n - 1] + "丑" + text[n:][: n - 1]) is None
    words = ["one", "two", "three", "four", "five", "six"]
    found = Decontaminator([("x", " ".join(words))], words=4)
    assert found.find("zero " + " ".join(words[:4])) == Match("x", "one two three four", 4)
    assert found.find(" ".join(words[:3] + words[4:])) is None


def test_the_longest_shared_part_is_shown() -> None:
    found = Decontaminator([("short", "甲乙丙丁戊"), ("long", "子丑寅卯辰巳午未" * 60)], characters=4)
    match = found.find("甲乙丙丁戊，一二三" + "子丑寅卯辰巳午未" * 50)
    assert match is not None
    assert (match.place, match.pieces, len(match.shared)) == ("long", 400, SHOWN_CHARACTERS)


@given(
    st.lists(st.text("甲乙丙 ，a", max_size=12), min_size=1, max_size=6),
    st.lists(st.text("甲乙丙 ，a", max_size=30), max_size=6),
    st.integers(1, 5),
)
@settings(max_examples=300)
def test_it_equals_a_search_by_hand(texts: list[str], looked_at: list[str], n: int) -> None:
    def grams(text: str) -> set[int]:
        return set(shingles.shingles(text, n).tolist())

    known = set().union(*map(grams, texts))
    if not known:
        with pytest.raises(UserError, match="no text of the evaluation set has"):
            Decontaminator([("x", text) for text in texts], n, n)
        return
    found = Decontaminator([(str(i), text) for i, text in enumerate(texts)], n, n)
    assert found.too_short == sum(not grams(text) for text in texts)
    for text, match in zip(looked_at, found.find_all(looked_at), strict=True):
        assert (match is not None) == bool(grams(text) & known)
        assert match == found.find(text)
        if match is not None:
            assert match.shared in text
            assert len(shingles.shingles(match.shared, 1)) == match.pieces >= n
            assert grams(match.shared) <= grams(texts[int(match.place)])


def test_a_long_document_goes_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    filler = "".join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(5000))
    found = Decontaminator(SET)
    texts = [filler[:at] + QUESTION + filler[at:] for at in (0, 990, 999, 2500, 5000)] + [filler]
    whole = found.find_all(texts)
    for module in (shingles, decontaminate):
        monkeypatch.setattr(module, "BLOCK_CHARACTERS", 1000)
    monkeypatch.setattr(shingles, "BATCH_CHARACTERS", 1000)
    monkeypatch.setattr(shingles, "LONGEST_WORD", 100)
    assert found.find_all(texts) == whole == [Match("zh.jsonl:1", QUESTION, 37)] * 5 + [None]


def test_it_goes_to_another_process() -> None:
    found = pickle.loads(pickle.dumps(Decontaminator(SET)))
    assert found.find(QUESTION).place == "zh.jsonl:1"


def test_nothing_to_look_for() -> None:
    for texts in ([], [("x", "短")], [("x", "，。")]):
        with pytest.raises(UserError, match="no text of the evaluation set has 20 characters or 13 words"):
            Decontaminator(texts)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (
            {"question": "何为雅言？", "A": "方言", "B": "标准话", "answer": "B"},
            "何为雅言？\nA 方言\nB 标准话\nB",
        ),
        ({"question": "Q", "choices": ["x", "y"], "answer": 1}, "Q\nA x\nB y"),
        ({"context": "一", "answers": ["二"]}, "一\n二"),
        (
            {"turns": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]},
            "user\n问\nassistant\n答",
        ),
        ("text", "text"),
        ({"a": None, "b": 3.5, "c": [[], {}]}, ""),
    ],
)
def test_text_of_a_record(record: object, text: str) -> None:
    assert record_text(record) == text


@needs_shared
def test_questions_planted_in_real_documents_are_found_and_no_others() -> None:

    with lzma.open(SHARED / "data/eval-ceval/val.jsonl.xz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    found = Decontaminator((f"val:{i}", record_text(row)) for i, row in enumerate(rows))
    hosts = [item.text for item in documents([SHARED / "data/zh-weekly/heldout.jsonl.xz"])]
    hosts += [item.text for item in documents([SHARED / "data/zh-lctt-tech/heldout.jsonl.xz"])]
    assert found.find_all(hosts) == [None] * len(hosts)
    rng = random.Random(0)
    planted = []
    for row in rows:
        host = rng.choice(hosts)
        choices = "  ".join(f"{letter}. {row[letter]}" for letter in "ABCD")
        page = f"\n{rng.randrange(1, 99)}. {row['question']}\n{choices}\n"
        at = rng.randrange(len(host))
        planted.append(host[:at] + page + host[at:])
    matches = found.find_all(planted)
    assert sum(match is not None for match in matches) > 0.98 * len(rows)
    same = [match.place == f"val:{i}" for i, match in enumerate(matches) if match]
    assert sum(same) > 0.98 * len(same)  # some questions begin alike
