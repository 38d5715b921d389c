"""LongBench's metrics against a table of what its own functions give.

The expected values were computed once by a transcription of THUDM/LongBench's metrics.py (without its unreachable
branch) with the packages that its requirements name: jieba 0.42.1, rouge 1.0.1, fuzzywuzzy 0.18.0 (without
python-Levenshtein, so with difflib). Those that are marked can be had by hand.
"""

import sys
from collections.abc import Sequence

import pytest

from yayan.errors import UserError
from yayan.evaluate import longbench_metrics
from yayan.evaluate.longbench_metrics import METRICS, library, rouge, rouge_zh

LAZY = "The quick brown fox. It jumps over the lazy dog. The end"
HUMAN = ["Human", "Location"]
F1 = [
    ("f1", "The Answer is: a Black cat!", "black cat", 0.6666666666666666),  # 2 of 4 words, 2 of 2
    ("f1", "", "anything", 0.0),
    ("f1", "the a an", "the", 0.0),  # articles are nothing
    ("f1", "New York, New York", "new york", 0.6666666666666666),  # a bag: 2 of 4, 2 of 2
    ("f1", "don't know", "dont know", 1.0),
    ("f1_zh", "答案是：厦门大学。", "厦门大学。", 0.5),
    ("f1_zh", "我不知道", "厦门大学", 0.0),
    ("f1_zh", "2016年11月，GPT-4 发布", "2016年11月", 0.7272727272727273),
    ("f1_zh", "。，！", "厦门", 0.0),
    ("f1_zh", "今天天气很好，今天", "今天天气好", 0.6666666666666666),
]
ROUGE = [
    ("rouge", "the cat sat on the mat", "a cat sat on a mat", 0.7999999950000002),  # sets: 4 of 5, 4 of 5
    ("rouge", "The lazy dog jumps. A quick fox. The end.", LAZY, 0.6315789424930748),
    ("rouge", "", "the cat", 0.0),
    ("rouge", "...", "the cat", 0.0),
    ("rouge", "   ", "the cat", 0.0),
    ("rouge", "one two one two one two", "two one", 0.999999995),
    ("rouge", ". a . b", "b. a", 0.999999995),
    (
        "rouge_zh",
        "会议讨论了明年的预算，并决定下周再议。",
        "会议决定下周再讨论明年预算。",
        0.4999999952000001,
    ),
    ("rouge_zh", "今天天气好", "今天天气好", 0.999999995),
    ("rouge_zh", "", "今天", 0.0),
]
NUMBERS = [
    ("count", "There are 12 unique paragraphs out of 30.", "12", 0.5),
    ("count", "012", "12", 0.0),
    ("count", "none", "12", 0.0),
    ("count", "7, 7, 8", "7", 0.6666666666666666),
    ("retrieval", "Paragraph 5", "Paragraph 5", 1.0),
    ("retrieval", "It is Paragraph 15, not 5", "Paragraph 5", 0.5),
    ("retrieval", "", "Paragraph 5", 0.0),
    ("retrieval_zh", "段落27", "段落27", 1.0),
    ("retrieval_zh", "段落2或段落27", "段落27", 0.5),
]
CODE = [
    ("edit_similarity", "\n\nreturn a + b\nmore", "return a+b", 0.91),  # 2 * 10 of 22 characters
    ("edit_similarity", "# a comment\n```python\n    x = foo(1)", "    x = bar(1)", 0.79),  # 2 * 11 of 28
    ("edit_similarity", "// only\n# comments", "int x;", 0.0),
    ("edit_similarity", "", "", 1.0),
    (
        "edit_similarity",
        "self.assertEqual(response.status_code, 200)",
        "self.assertTrue(response.status == 200)",
        0.8,
    ),
    ("edit_similarity", "abcdefghij", "jihgfedcba", 0.1),
    ("edit_similarity", "for name in names:", "self.name = name", 0.35),  # by Levenshtein 0.65
    (
        "edit_similarity",
        "x" * 150 + "abc" + "y" * 60,
        "y" * 60 + "abc" + "x" * 150,
        0.01,
    ),  # difflib's junk rule
]
CLASSES: list[tuple[str, str, Sequence[str], float]] = [
    ("Type: Human", "Human", HUMAN, 1.0),
    ("Human or Location", "Human", HUMAN, 0.5),
    ("no idea", "Human", HUMAN, 0.0),
    ("City name", "City name", ["City", "City name", "name"], 1.0),
    ("City name", "City name", ["City", "name", "City name"], 0.5),  # the list is shortened under the loop
    ("Other location", "Other", ["Other", "Other location"], 0.5),
]


@pytest.mark.parametrize(("metric", "answer", "right", "expected"), [*F1, *ROUGE, *NUMBERS, *CODE])
def test_a_metric_gives_what_the_published_one_gives(
    metric: str, answer: str, right: str, expected: float
) -> None:
    assert METRICS[metric](answer, right, ()) == expected


@pytest.mark.parametrize(("answer", "right", "classes", "expected"), CLASSES)
def test_classification(answer: str, right: str, classes: Sequence[str], expected: float) -> None:
    assert METRICS["classification"](answer, right, classes) == expected


def test_every_metric_is_in_the_table() -> None:
    assert {row[0] for row in [*F1, *ROUGE, *NUMBERS, *CODE]} | {"classification"} == set(METRICS)


def test_a_long_text_is_scored_where_python_would_give_up() -> None:
    """The published function gives 0 here: `rouge` recurses once for each word, and its error is swallowed."""
    words = [f"word{number}" for number in range(1500)]
    limit = sys.getrecursionlimit()
    assert rouge(" ".join(words[:15]), " ".join(words)) == pytest.approx(2 * 0.01 / 1.01, abs=1e-8)
    assert rouge_zh("今天", "今天的会议" + "甲，乙，丙，丁，" * 300) > 0
    assert sys.getrecursionlimit() == limit


def test_a_missing_library_is_said_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    library.cache_clear()
    monkeypatch.setattr(longbench_metrics.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"rouge is not installed: pip install 'yayan\[eval\]'"):
        rouge("a", "a")


def test_nothing_is_said_about_dictionaries(capfd: pytest.CaptureFixture[str]) -> None:
    library.cache_clear()
    METRICS["f1_zh"]("今天", "今天", ())
    assert capfd.readouterr() == ("", "")
