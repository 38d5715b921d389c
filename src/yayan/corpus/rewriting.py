"""Steps that rewrite a text: a broken encoding mended, invisible characters taken out, one form for each character."""

import importlib
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from yayan.errors import UserError

Step = Callable[[str], str]
AROUND = 20  # characters that an excerpt shows before and after a change
MOST_ROUNDS = 8  # of all steps over one text; two are usual, the second of which changes nothing

# Controls (but \t and \n), zero-width and bidi marks, soft hyphens, tags, surrogates, private use, noncharacters.
INVISIBLE = (
    "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\ufeff\ufff0-\ufffb\ufffe\uffff\U000e0000-\U000e007f"
    + "".join(chr(plane << 16 | last) for plane in range(1, 15) for last in (0xFFFE, 0xFFFF))
    + "\U000f0000-\U0010ffff"
)
LINE_ENDS = "\v\f\x85\u2028\u2029"
# A zero-width (non-)joiner is spelling after Arabic and Indic letters, and part of an emoji.
JOINED = "\u0600-\u061b\u061d-\u0dff\u1000-\u109f\u1780-\u17ff\ufe0f\u2600-\u27bf\U0001f000-\U0001faff"
SUSPECT = re.compile(f"[\r\u200c\u200d\ufffd{LINE_ENDS}{INVISIBLE}]")
LINE_END = re.compile(f"\r\n?|[{LINE_ENDS}]")
REMOVED = re.compile(f"[{INVISIBLE}]|(?<![{JOINED}])[\u200c\u200d]|(?<!\ufffd)\ufffd(?!\ufffd)")


@dataclass(frozen=True)
class Change:
    """What a step did to a text: excerpts around the first place that it changed, with invisible characters escaped."""

    step: str
    before: str
    after: str


def rewrite(text: str, steps: dict[str, Step]) -> tuple[str, list[Change]]:
    """The text after all steps, and the first change of each step that changed it.

    The steps go round until none of them changes anything: what one mends may be what another looks for.
    """
    changes: dict[str, Change] = {}
    quiet = 0  # steps in a row that changed nothing
    for name in [*steps] * MOST_ROUNDS:
        if quiet == len(steps):
            break
        after = steps[name](text)
        quiet = quiet + 1 if after == text else 0
        if not quiet:
            at = first_difference(text, after)
            changes.setdefault(name, Change(name, excerpt(text, at), excerpt(after, at)))
        text = after
    return text, list(changes.values())


def remove_invisible(text: str) -> str:
    """Without invisible characters, with `\\n` at the end of each line.

    A lone U+FFFD is taken out; a run of them stays, for there the text has a hole.
    """
    if not SUSPECT.search(text):
        return text
    return REMOVED.sub("", LINE_END.sub("\n", text))


def normaliser(form: str) -> Step:
    """A step to Unicode's normal form `NFC` or `NFKC` (Unicode Standard Annex 15)."""

    def normalise(text: str) -> str:
        return text if unicodedata.is_normalized(form, text) else unicodedata.normalize(form, text)  # type: ignore[arg-type]

    return normalise


@cache
def mojibake_step() -> Step:
    """ftfy's `fix_encoding` for each line: UTF-8 that was read as Latin-1, Windows-125x, Mac Roman, code page 437.

    Raises UserError if ftfy is not installed. A line is looked at if it holds one of the characters without which ftfy
    finds nothing wrong: its test alone runs at 10 MB/s on Chinese, a search for one character at 300.
    """
    fix_encoding: Callable[[str], str] = library("ftfy").fix_encoding
    categories: dict[str, str] = library("ftfy.badness").MOJIBAKE_CATEGORIES
    ordinary = ("common", "start_punctuation", "end_punctuation", "kaomoji")
    telling = re.compile(f"[ÂÃØÙŒœ{''.join(v for k, v in categories.items() if k not in ordinary)}]")

    def mend(text: str) -> str:
        if not telling.search(text):
            return text
        return "\n".join(fix_encoding(line) if telling.search(line) else line for line in text.split("\n"))

    return mend


@cache
def simplified_step() -> Step:
    """OpenCC's conversion from traditional to simplified characters, by phrases where it knows them.

    Raises UserError if OpenCC is not installed.
    """
    return library("opencc").OpenCC("t2s").convert


def first_difference(before: str, after: str) -> int:
    """How many characters two texts begin with alike; by halving, so that slices are compared in C."""
    low, high = 0, min(len(before), len(after))
    while low < high:
        middle = (low + high + 1) // 2
        if before[low:middle] == after[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def excerpt(text: str, at: int = 0) -> str:
    """A few characters around a place, invisible ones as Python writes them (`\\u200b`)."""
    first, last = max(at - AROUND, 0), at + AROUND
    shown = "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text[first:last]
    )
    return f"{'…' if first else ''}{shown}{'…' if last < len(text) else ''}"


def library(name: str) -> Any:
    """A module of the extra `clean`. Raises UserError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        what = f"{name.split('.')[0]} is not installed"
        raise UserError(what, cure="pip install 'yayan[clean]'") from error
