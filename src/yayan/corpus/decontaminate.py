"""Documents that share words with an evaluation set: a model that was trained on them has seen the questions.

A document is found if n pieces of it that follow each other (see `shingles`: characters of Chinese, words of English)
follow each other in one text of the evaluation set, too. Brown et al. 2020 (arXiv 2005.14165) take 13 words; for texts
of characters 20 are the default here, for 13 of them are often no more than a formula of law or a line that all quote.

K: different n-grams of the evaluation set. S: n-grams of texts that are looked at. H: those of them that are shared.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from string import ascii_uppercase

import numpy as np

from yayan.corpus.shingles import (
    BLOCK_CHARACTERS,
    Pieces,
    batches,
    end_of_piece,
    pieces_of,
    shingle_blocks,
    shingles_of,
)
from yayan.errors import UserError

DEFAULT_CHARACTERS, DEFAULT_WORDS = 20, 13
SIEVE_BITS = 16  # for each n-gram: one of 16 others passes
SHOWN_CHARACTERS = 200  # of what is shared


@dataclass(frozen=True)
class Match:
    """What a document shares with an evaluation set."""

    place: str
    """Of the evaluation text that has the longest part in common with the document."""
    shared: str
    """That part, as it stands in the document; at most SHOWN_CHARACTERS of it."""
    pieces: int
    """How many pieces that part has, n or more."""


class Decontaminator:
    """Finds documents that share n pieces with an evaluation set. Picklable; 14 to 16 bytes an n-gram."""

    def __init__(
        self,
        texts: Iterable[tuple[str, str]],
        characters: int = DEFAULT_CHARACTERS,
        words: int = DEFAULT_WORDS,
    ) -> None:
        """`texts`: (place, text), for example `ceval/val.jsonl:3` and `record_text` of the record that stands there.

        `characters`: n for the texts of which at least half the pieces are letters that stand alone, as in Chinese;
        `words`: n for the others. Raises UserError if every text has fewer than n pieces.
        """
        kinds: dict[int, tuple[list[str], list[str]]] = {n: ([], []) for n in (characters, words)}
        rows = list(texts)
        for (place, text), by_character in zip(rows, _by_character([text for _, text in rows]), strict=True):
            places, own = kinds[characters if by_character else words]
            places.append(place)
            own.append(text)
        grams = [Grams(places, own, n) for n, (places, own) in kinds.items()]
        self.texts = sum(len(item.places) for item in grams)
        self.too_short = sum(item.too_short for item in grams)
        """Texts of fewer than n pieces: they cannot be found."""
        self.grams = [item for item in grams if len(item.keys)]
        if not self.grams:
            what = f"no text of the evaluation set has {characters} characters or {words} words"
            raise UserError(what, cure="look for fewer, or leave the set out")

    def find(self, text: str) -> Match | None:
        """What a text shares with the evaluation set; for many short ones `find_all` is ten times as fast."""
        return self.find_all([text])[0]

    def find_all(self, texts: Sequence[str]) -> list[Match | None]:
        """For each text what it shares with the evaluation set, if anything."""
        matches: list[Match | None] = []
        for first, last in batches(texts):
            if len(texts[first]) > BLOCK_CHARACTERS:  # a batch of its own
                found = [[item.find_in_blocks(texts[first])] for item in self.grams]
            else:
                pieces = pieces_of(texts[first:last])
                found = [item.find_in_batch(texts[first:last], pieces) for item in self.grams]
            matches += map(_longer, *found) if len(found) > 1 else found[0]
        return matches


class Grams:
    """The n-grams of evaluation texts, for one n."""

    def __init__(self, places: list[str], texts: Sequence[str], n: int) -> None:
        self.places, self.n = places, n
        hashes, lengths = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for first, last in batches(texts):
            some, offsets = shingles_of(pieces_of(texts[first:last]), n)
            hashes.append(some)
            lengths.append(np.diff(offsets))
        count = np.concatenate(lengths)
        self.too_short = int((count == 0).sum())
        self.keys, first_of_key = np.unique(np.concatenate(hashes), return_index=True)  # uint64 [K]
        self.found_in = np.repeat(np.arange(len(texts), dtype=np.uint32), count)[first_of_key]  # [K]
        bits = max((SIEVE_BITS * len(self.keys)).bit_length(), 3)
        self._shift = np.uint64(64 - bits)
        self.sieve = np.zeros(1 << (bits - 3), np.uint8)  # a bit for each value that begins a key
        np.bitwise_or.at(self.sieve, self._byte(self.keys), self._bit(self.keys))

    def find_in_batch(self, texts: Sequence[str], pieces: Pieces) -> list[Match | None]:
        matches: list[Match | None] = [None] * len(texts)
        hashes, offsets = shingles_of(pieces, self.n)
        hits, found_in = self._shared(hashes)
        of_text = np.searchsorted(offsets, hits, "right") - 1
        begins = np.cumsum([0, *(len(text) + 1 for text in texts)])
        for i in np.unique(of_text).tolist():
            own = of_text == i
            at = hits[own] + pieces.offsets[i] - offsets[i]
            starts, lasts = pieces.starts[at] - begins[i], pieces.starts[at + self.n - 1] - begins[i]
            matches[i] = self._longest(texts[i], at, found_in[own], starts, lasts)
        return matches

    def find_in_blocks(self, text: str) -> Match | None:
        parts, before = [], 0
        for hashes, starts in shingle_blocks(text, self.n):
            hits, found_in = self._shared(hashes)
            parts.append((hits + before, found_in, starts[hits], starts[hits + self.n - 1]))
            before += len(hashes)
        at, found_in, begins, lasts = (np.concatenate(part) for part in zip(*parts, strict=True))
        return self._longest(text, at, found_in, begins, lasts) if len(at) else None

    def _longest(
        self, text: str, at: np.ndarray, found_in: np.ndarray, starts: np.ndarray, lasts: np.ndarray
    ) -> Match:
        """The longest run of neighbours in one evaluation text; an n-gram of several texts is the first one's.

        All [H]: which n-gram of the document, the evaluation text, where its first and its last piece begin.
        """
        breaks = (at[1:] != at[:-1] + 1) | (found_in[1:] != found_in[:-1])
        first = np.concatenate([[0], breaks.nonzero()[0] + 1])
        lengths = np.diff(first, append=len(at))
        run = int(lengths.argmax())
        a, b = int(first[run]), int(first[run] + lengths[run] - 1)
        shared = text[int(starts[a]) : end_of_piece(text, int(lasts[b]))]
        place = self.places[int(found_in[a])]
        return Match(place, shared[:SHOWN_CHARACTERS], int(lengths[run]) + self.n - 1)

    def _shared(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which n-grams the evaluation set has, int64 [H], and the first text that has each, uint32 [H]."""
        passed = (self.sieve[self._byte(hashes)] & self._bit(hashes)).nonzero()[0]
        where = np.minimum(np.searchsorted(self.keys, hashes[passed]), len(self.keys) - 1)
        true = self.keys[where] == hashes[passed]
        return passed[true], self.found_in[where[true]]

    def _byte(self, hashes: np.ndarray) -> np.ndarray:
        return hashes >> (self._shift + np.uint64(3))

    def _bit(self, hashes: np.ndarray) -> np.ndarray:
        return np.uint8(1) << (hashes >> self._shift & np.uint64(7)).astype(np.uint8)


def record_text(record: object) -> str:
    """All strings of a record of an evaluation file as one text, as a page would print them.

    The letter of a choice stands before it: a key of one character, or A, B, ... for a list of strings. Without the
    letters, a page that prints them shares only the question with the record.
    """
    return "\n".join(_strings(record))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            letter = f"{key} " if isinstance(item, str) and len(key) == 1 else ""
            yield from (letter + string for string in _strings(item))
    elif isinstance(value, list):
        are_choices = 1 < len(value) <= len(ascii_uppercase) and all(isinstance(item, str) for item in value)
        for letter, item in zip(ascii_uppercase if are_choices else repeat(""), value, strict=False):
            yield from (f"{letter} {string}" if letter else string for string in _strings(item))


def _by_character(texts: Sequence[str]) -> Iterator[bool]:
    """For each text whether at least half of its pieces are letters that stand alone."""
    for first, last in batches(texts):
        pieces = pieces_of(texts[first:last])
        alone = np.concatenate([[0], np.cumsum(pieces.alone)])[pieces.offsets]
        yield from (2 * np.diff(alone) >= np.diff(pieces.offsets)).tolist()


def _longer(one: Match | None, other: Match | None) -> Match | None:
    if one is None or other is None:
        return one or other
    return one if one.pieces >= other.pieces else other
