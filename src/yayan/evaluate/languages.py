"""The languages of a report: a sentence stands in English where it is said, and is looked up for any other language.

`report_zh.toml` holds the Chinese ones, each under its English original with the same {placeholders}.
"""

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.resources import files

ENGLISH, CHINESE = "en", "zh"
LANGUAGES = {ENGLISH: "English", CHINESE: "中文"}  # the first is that of the command line
_spoken: ContextVar[str] = ContextVar("language", default=ENGLISH)


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """What is said inside is said in a language of LANGUAGES."""
    before = _spoken.set(language)
    try:
        yield
    finally:
        _spoken.reset(before)


def say(sentence: str, /, **values: object) -> str:
    """An English sentence in the language that is spoken, its placeholders filled.

    A sentence that is not in the catalogue, such as a name out of a record, stays what it is.
    """
    sentence = catalogue(_spoken.get()).get(sentence, sentence)
    return sentence.format(**values) if values else sentence


def titles(*names: str) -> list[str]:
    """Column titles of a table."""
    return [say(name) for name in names]


def counted(number: int, noun: str) -> str:
    """`1 question`, `24 questions`; `24 道题`."""
    plural = "s" if number != 1 and _spoken.get() == ENGLISH else ""
    return say("{number:,} " + noun, number=number) + plural


def listed(items: list[str]) -> str:
    """`one, two, three`; `一，二，三`."""
    return say(", ").join(items)


def paragraph(sentences: list[str]) -> str:
    """Sentences one after another: `One. Two.`; `一。二。`."""
    return say(" ").join(sentences)


@cache
def catalogue(language: str) -> Mapping[str, str]:
    """English sentences to those of another language."""
    if language == ENGLISH:
        return {}
    return tomllib.loads((files("yayan.evaluate") / f"report_{language}.toml").read_text("utf-8"))
