"""How LongBench scores an answer against a right one, 0 to 1: the same numbers as its own functions (metrics.py).

They are written anew from their definitions; tests hold a table of what the published ones give. Where those catch an
error and score 0 this file does not follow them: see `rouge`.
"""

import difflib
import importlib
import logging
import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from yayan.errors import UserError

CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》"
    "「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
PUNCTUATION = set(string.punctuation)
ALL_PUNCTUATION = PUNCTUATION | set(CHINESE_PUNCTUATION)
ARTICLES = re.compile(r"\b(a|an|the)\b")
PARAGRAPHS = {"retrieval": r"Paragraph (\d+)", "retrieval_zh": r"段落(\d+)"}
COMMENT_SIGNS = ("`", "#", "//")
LIBRARIES = ("jieba", "rouge")
SPARE_FRAMES = 200

Metric = Callable[[str, str, Sequence[str]], float]  # (answer, right answer, all classes of the task)


@cache
def library(name: str) -> Any:
    """A module of the extra `eval`. Raises UserError if it is not installed."""
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name} is not installed", cure="pip install 'yayan[eval]'") from error
    if name == "jieba":
        module.setLogLevel(logging.ERROR)  # else it tells of its dictionary
    return module


def words_zh(text: str) -> list[str]:
    """jieba's words, in its exact mode."""
    return list(library("jieba").cut(text, cut_all=False))


def without(text: str, signs: set[str]) -> str:
    return "".join(sign for sign in text if sign not in signs)


def f1_of_words(answer: list[str], right: list[str]) -> float:
    """Harmonic mean of precision and recall over two bags of words; 0 where they share none."""
    shared = (Counter(answer) & Counter(right)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(answer), shared / len(right)
    return 2 * precision * recall / (precision + recall)


def f1(answer: str, right: str, classes: Sequence[str] = ()) -> float:
    """F1 of words, as SQuAD normalises them: lower case, no ASCII punctuation, no articles."""

    def words(text: str) -> list[str]:
        return ARTICLES.sub(" ", without(text.lower(), PUNCTUATION)).split()

    return f1_of_words(words(answer), words(right))


def f1_zh(answer: str, right: str, classes: Sequence[str] = ()) -> float:
    """F1 of jieba's words in lower case, less punctuation and white space."""

    def words(text: str) -> list[str]:
        plain = ("".join(without(word.lower(), ALL_PUNCTUATION).split()) for word in words_zh(text))
        return [word for word in plain if word]

    return f1_of_words(words(answer), words(right))


def rouge(answer: str, right: str, classes: Sequence[str] = ()) -> float:
    """F of ROUGE-L (summary level) by the package `rouge`; 0 for an answer of nothing but full stops.

    It recurses once for each word; the published function scores 0 where Python's limit ends that, this one goes on.
    """
    if not answer.replace(".", "") or not right.replace(".", ""):
        return 0.0
    scorer = library("rouge").Rouge(metrics=["rouge-l"])
    with room_for_calls(len(answer) + len(right)):
        return scorer.get_scores(answer, right)[0]["rouge-l"]["f"]


def rouge_zh(answer: str, right: str, classes: Sequence[str] = ()) -> float:
    """`rouge` of jieba's words."""
    return rouge(" ".join(words_zh(answer)), " ".join(words_zh(right)))


@contextmanager
def room_for_calls(depth: int) -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + depth + SPARE_FRAMES)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def classification(answer: str, right: str, classes: Sequence[str]) -> float:
    """1 over the number of classes that the answer names, if the right one is among them.

    A name that is a part of the right one does not count; of two such names side by side only the first is taken off,
    since the published function shortens the list that it walks.
    """
    named = [name for name in classes if name in answer]
    for name in named:
        if name in right and name != right:
            named.remove(name)
    return 1 / len(named) if right in named else 0.0


def count(answer: str, right: str, classes: Sequence[str] = ()) -> float:
    """The share of the answer's numbers that are the right one."""
    numbers = re.findall(r"\d+", answer)
    return numbers.count(right) / len(numbers) if numbers else 0.0


def retrieval(answer: str, right: str, classes: Sequence[str] = ()) -> float:
    """`count` of the number in `Paragraph 7`."""
    return count(answer, paragraph_number(right, "retrieval") or "")


def retrieval_zh(answer: str, right: str, classes: Sequence[str] = ()) -> float:
    """`count` of the number in `段落7`."""
    return count(answer, paragraph_number(right, "retrieval_zh") or "")


def paragraph_number(right: str, metric: str) -> str | None:
    """The number of the paragraph that a right answer of one of the two metrics names."""
    found = re.search(PARAGRAPHS[metric], right)
    return found and found[1]


def edit_similarity(answer: str, right: str, classes: Sequence[str] = ()) -> float:
    """How alike the first line of code and the right one are, in whole percent: fuzzywuzzy's `ratio`.

    LongBench's requirements name fuzzywuzzy alone, which then computes with Python's `difflib` (Ratcliff-Obershelp),
    not with Levenshtein distances.
    """
    lines = answer.lstrip("\n").split("\n")
    code = next((line for line in lines if not any(sign in line for sign in COMMENT_SIGNS)), "")
    return round(100 * difflib.SequenceMatcher(None, code, right).ratio()) / 100


METRICS: dict[str, Metric] = {
    "f1": f1,
    "f1_zh": f1_zh,
    "rouge": rouge,
    "rouge_zh": rouge_zh,
    "classification": classification,
    "count": count,
    "retrieval": retrieval,
    "retrieval_zh": retrieval_zh,
    "edit_similarity": edit_similarity,
}
