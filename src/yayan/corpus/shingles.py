"""Shingles: hashes of every n pieces of a text that follow each other, by numpy alone, the same on every machine.

A piece is one letter of a script that is written without spaces, or of Hangul; elsewhere a word, that is, a run of
letters, marks and digits. Everything else separates. Letters count in lower case, full-width ones as plain ones.
Which letters those are is what the `unicodedata` of the Python says, so that letters newer than it separate.

N: texts. L: characters. P: pieces of all texts. S: shingles of all texts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from yayan.corpus.characters import ASSIGNED, CODE_POINTS, LETTER, MARK, NUMBER, codes_of, kinds, letters_of

BLOCK_CHARACTERS = 1 << 20  # of a long text that are looked at at once
BATCH_CHARACTERS = 1 << 17  # of short texts: what numpy then holds fits the cache
LONGEST_WORD = 1 << 12  # characters; a run of letters over the end of a block may be cut if it is longer
# Lao, Tibetan, Burmese and Khmer are written without spaces as Thai is.
UNSPACED_RANGES = ((0x0E80, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF))
HALF_WIDTH_RANGES = ((0xFF66, 0xFF9D), (0xFFA0, 0xFFDC))  # of kana and Hangul
VARIATION_SELECTORS = (range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))
FULL_WIDTH, FULL_WIDTH_OFFSET = range(0xFF01, 0xFF5F), 0xFEE0
ALONE = np.uint64(1)  # lowest bit of a character's key: it is a piece by itself
BASE = 0x9E3779B97F4A7C15 | 1  # odd: multiplication by it loses nothing modulo 2**64


@dataclass(frozen=True, eq=False)
class Pieces:
    """Pieces of texts, in their order."""

    hashes: np.ndarray
    """uint64 [P]."""
    starts: np.ndarray
    """Where each begins, int64 [P], in characters of the texts joined by one character."""
    alone: np.ndarray
    """Which are one letter by rule, and no word, bool [P]."""
    offsets: np.ndarray
    """Pieces `offsets[i]` to `offsets[i + 1]` are those of text i, int64 [N + 1]."""


def shingles(text: str, n: int) -> np.ndarray:
    """uint64 [S] of one text, in its order, repeated ones included; none if it has fewer than n pieces."""
    return np.concatenate([hashes for hashes, _ in shingle_blocks(text, n)])


def shingles_of(pieces: Pieces, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Shingles uint64 [S] of several texts, and offsets int64 [N + 1] as in `Pieces`."""
    counts = np.maximum(np.diff(pieces.offsets) - n + 1, 0)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    if len(counts) == 1:
        return windows(pieces.hashes, n), offsets
    where = np.repeat(pieces.offsets[:-1] - offsets[:-1], counts) + np.arange(offsets[-1])
    return windows(pieces.hashes, n)[where], offsets


def shingle_blocks(text: str, n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Shingles uint64 [S] of a text of any length, block by block in bounded memory, and where pieces begin, int64.

    Shingle i of a block is that of its pieces i to i + n - 1. All blocks together, at least one, are the text's.
    """
    hashes, starts = np.empty(0, np.uint64), np.empty(0, np.int64)
    for first, last in _cuts(text):
        pieces = pieces_of([text[first:last]])
        hashes = np.concatenate([hashes, pieces.hashes])
        starts = np.concatenate([starts, pieces.starts + first])
        yield windows(hashes, n), starts
        keep = min(n - 1, len(hashes))
        hashes, starts = hashes[len(hashes) - keep :], starts[len(starts) - keep :]


def pieces_of(texts: Sequence[str]) -> Pieces:
    """Pieces of texts; temporary memory is some 100 bytes a character."""
    keys = character_keys()[codes_of("\0".join(texts))]
    where = keys.nonzero()[0]
    keys = keys[where]
    begins = np.ones(len(keys), bool)
    alone = (keys & ALONE).astype(bool)
    if not alone.all():  # a word goes on where the character just before belongs to a word, too
        begins[1:] = alone[1:] | alone[:-1] | (where[1:] != where[:-1] + 1)
        first = begins.nonzero()[0]
        lengths = np.diff(first, append=len(keys))
        place = np.arange(len(keys)) - np.repeat(first, lengths)
        keys = np.add.reduceat(keys * _powers(int(lengths.max()))[place], first)
        where, alone = where[first], alone[first]
    ends = np.cumsum([len(text) + 1 for text in texts])
    return Pieces(keys, where, alone, np.concatenate([[0], np.searchsorted(where, ends)]))


def batches(texts: Sequence[str], most: int = 1 << 14) -> Iterator[tuple[int, int]]:
    """First and last + 1 of texts that are looked at at once: at most BATCH_CHARACTERS and `most`, or a long one."""
    first = characters = 0
    for i, text in enumerate(texts):
        if i > first and (i - first == most or characters + len(text) > BATCH_CHARACTERS):
            yield first, i
            first, characters = i, 0
        characters += len(text)
    if first < len(texts):
        yield first, len(texts)


def end_of_piece(text: str, start: int) -> int:
    """Where the piece that begins at `start` ends."""
    keys, end = character_keys(), start + 1
    if keys[ord(text[start])] & ALONE:
        return end
    while end < len(text) and keys[ord(text[end])] and not keys[ord(text[end])] & ALONE:
        end += 1
    return end


def windows(hashes: np.ndarray, n: int) -> np.ndarray:
    """A hash for each n neighbours, uint64 [max(P - n + 1, 0)]: sum of hash[i + j] BASE**(n - 1 - j), mixed.

    Put together from windows of 1, 2, 4, ..., as n is from powers of two.
    """
    if len(hashes) < n:
        return np.empty(0, np.uint64)
    whole: np.ndarray | None = None
    size, doubled, doubled_size = 0, hashes, 1
    while True:
        if n & doubled_size:
            whole = doubled if whole is None else _joined(whole, size, doubled, doubled_size)
            size += doubled_size
        if size == n and whole is not None:
            return mixed(whole)
        doubled = _joined(doubled, doubled_size, doubled, doubled_size)
        doubled_size *= 2


def _joined(left: np.ndarray, size: int, right: np.ndarray, right_size: int) -> np.ndarray:
    """Windows of `size + right_size`: those of `size` before those of `right_size`."""
    count = len(right) - size
    return left[:count] * np.uint64(pow(BASE, right_size, 1 << 64)) + right[size:]


def mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of uint64 whose bits all depend on all bits: the finaliser of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@cache
def character_keys() -> np.ndarray:
    """For each code point 0 if it separates, else a random number whose lowest bit is ALONE; uint64 [CODE_POINTS]."""
    folded = np.arange(CODE_POINTS, dtype=np.uint64)
    for code in range(ASSIGNED):
        lower = chr(code).lower()
        if len(lower) == 1:
            folded[code] = ord(lower)
    for code in FULL_WIDTH:
        folded[code] = ord(chr(code - FULL_WIDTH_OFFSET).lower())
    counts = np.isin(kinds(), (LETTER, MARK, NUMBER))
    for selectors in VARIATION_SELECTORS:
        counts[selectors.start : selectors.stop] = False
    alone = letters_of(("han", "kana", "hangul", "thai"))  # all of them, assigned yet or not
    for first, last in (*UNSPACED_RANGES, *HALF_WIDTH_RANGES):
        alone[first : last + 1] = counts[first : last + 1]
    keys = mixed(folded + np.uint64(BASE)) & ~ALONE | alone.astype(np.uint64)
    keys[~(counts | alone)] = 0
    keys.setflags(write=False)
    return keys


def _powers(count: int) -> np.ndarray:
    """BASE**0, BASE**1, ...: uint64 [count]."""
    powers = np.full(count, BASE, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


def _cuts(text: str) -> Iterator[tuple[int, int]]:
    """Where to cut a long text: at the ends of blocks, moved back behind the last character that ends a piece."""
    first = 0
    while len(text) - first > BLOCK_CHARACTERS:
        last = first + BLOCK_CHARACTERS
        tail = character_keys()[codes_of(text[last - LONGEST_WORD : last])]
        ends = ((tail == 0) | (tail & ALONE).astype(bool)).nonzero()[0]
        last -= LONGEST_WORD - 1 - int(ends[-1]) if len(ends) else 0
        yield first, last
        first = last
    yield first, len(text)
