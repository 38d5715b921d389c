"""What characters are, as tables that numpy looks up: one gather for a text instead of a Python loop over it.

L: characters of a text. Categories are those of the `unicodedata` that Python carries.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import cache

import numpy as np

from yayan.vocab.scripts import LETTERS, Script

CODE_POINTS = 0x110000
ASSIGNED = (
    0x40000  # no letter, mark, digit, space, punctuation mark or symbol has a higher code point, but VARIANTS
)
VARIANTS = range(0xE0100, 0xE01F0)  # variation selectors: marks
OTHER, LETTER, MARK, NUMBER, SPACE, SENTENCE, SYMBOL = range(7)
KINDS = 7
SENTENCE_MARKS = ",.;:?!'\"()-、。，；：？！“”‘’（）《》〈〉【】「」『』—…·"
OF_CATEGORY = {"L": LETTER, "M": MARK, "N": NUMBER, "Z": SPACE, "P": SYMBOL, "S": SYMBOL, "C": OTHER}


def codes_of(text: str) -> np.ndarray:
    """Code points, uint32 [L]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


@cache
def kinds() -> np.ndarray:
    """The kind of every code point, uint8 [CODE_POINTS]; SENTENCE is punctuation that ordinary sentences hold."""
    table = np.full(CODE_POINTS, OTHER, np.uint8)
    for code in (*range(ASSIGNED), *VARIANTS):
        table[code] = OF_CATEGORY[unicodedata.category(chr(code))[0]]
    table[[ord(character) for character in "\t\n\v\f\r\x85"]] = SPACE
    table[[ord(character) for character in SENTENCE_MARKS]] = SENTENCE
    table.setflags(write=False)
    return table


def letters_of(scripts: Iterable[Script]) -> np.ndarray:
    """Which code points are letters of the scripts, or signs that combine with them, bool [CODE_POINTS]."""
    table = np.zeros(CODE_POINTS, bool)
    for script in scripts:
        for first, last in re.findall("(.)-(.)", LETTERS[script]):
            table[ord(first) : ord(last) + 1] = True
        for character in re.sub("(.)-(.)", "", LETTERS[script]):
            table[ord(character)] = True
    return table
