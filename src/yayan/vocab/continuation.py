"""Continued BPE: the tokens that a base tokenizer's own training would have found next, had it seen this corpus.

The base cuts the corpus's runs, its tokens are the symbols of the first text, and joining goes on from there: every new
token is made of tokens. A SentencePiece base has characters as bytes that no join makes; they get pieces where these
save more tokens than the joins that compete for the rows.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers
from numpy.typing import NDArray

from yayan.progress import Progress
from yayan.vocab.base import Base
from yayan.vocab.bpe import Learner
from yayan.vocab.count import Parts, character_weights
from yayan.vocab.prove import find_changes, witnesses
from yayan.vocab.scripts import Wanted

CHUNK_CHARACTERS, CHUNKS = 4000, 256  # of runs that the base cuts at once, so that its threads are busy


@dataclass(frozen=True)
class Rules:
    """What may become a new token."""

    wanted: Wanted
    longest: int
    """Characters of a token."""
    least: int
    """Weight, in units, from which a pair is joined."""
    exclude: frozenset[str] = frozenset()
    """Texts that must not."""


@dataclass(frozen=True)
class Candidate:
    """A possible new token and the tokens that it saves, in units of weight."""

    name: str
    gain: int


def candidates_of(base: Base, parts: Parts, rules: Rules, count: int) -> list[Candidate]:
    """At least `count` candidates, if the corpus holds so many, the most useful first, each made of those before it."""
    found = character_weights(parts)
    missing = {
        character: gain
        for character, gain in base.missing_characters(found).items()
        if character not in rules.exclude
    }
    characters = sorted(missing, key=lambda character: (-missing[character], character))
    learner = make_learner(base, base.extended(characters), parts, rules)
    joins: list[Candidate] = []
    with Progress("join pairs", total=count, unit="tokens") as bar:
        for join in learner.joins():
            joins.append(Candidate(join.name, join.weight))
            bar.advance()
            if len(joins) >= count:
                break
    singles = [Candidate(character, missing[character]) for character in characters]
    return sorted(
        [*singles, *joins], key=lambda candidate: -candidate.gain
    )  # stable: characters before their joins


def make_learner(base: Base, alphabet: tokenizers.Tokenizer, parts: Parts, rules: Rules) -> Learner:
    """The runs as `alphabet` (the base, and characters behind its own tokens) cuts them, ready to be joined."""
    ids, weights = cut_runs(base, alphabet, parts)
    used = np.flatnonzero(np.bincount(ids))
    names, numbers = [""], np.zeros(used[-1] + 1, np.int32)
    for token_id in map(int, used):
        name = alphabet.id_to_token(token_id) or ""
        if b"\n" not in base.bytes_of(name) and (token_id >= base.taken or base.joinable(token_id)):
            numbers[token_id] = len(names)
            names.append(name)
    ids = numbers[ids]

    def may_join(name: str) -> bool:
        """A token that is there already is not joined in a new way: its own merges would not do it."""
        allowed = base.may_join(name, rules.wanted, rules.longest) and alphabet.token_to_id(name) is None
        return allowed and (base.text_of(name) or "").strip(" ") not in rules.exclude

    return Learner(ids, weights, names, may_join, rules.least)


def cut_runs(
    base: Base, alphabet: tokenizers.Tokenizer, parts: Parts
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Ids of all runs, line breaks between them, and the weight of each id's run."""
    names = (alphabet.id_to_token(token_id) or "" for token_id in range(size_of(alphabet)))
    breaks = np.array([base.bytes_of(name).count(b"\n") for name in names], np.int32)
    ids: list[NDArray[np.int32]] = []
    heavy: list[NDArray[np.int32]] = []
    total = sum(len(runs) for runs, _ in parts)
    with Progress("cut runs", total=total / 1e6, unit="M characters") as bar:
        for runs, weights in parts:
            done = 0
            for texts in chunks(runs):
                for cut in alphabet.encode_batch_fast(texts, add_special_tokens=False):
                    some = np.array(cut.ids, np.int32)
                    run = np.cumsum(breaks[some]) + (done - 1)
                    ids.append(some)
                    heavy.append(weights[np.clip(run, 0, len(weights) - 1)])
                    done = int(run[-1])
                bar.advance(sum(map(len, texts)) / 1e6)
    return np.concatenate(ids), np.concatenate(heavy)


def chunks(runs: str) -> Iterator[list[str]]:
    """Runs in texts of about CHUNK_CHARACTERS, each with a line break before and behind, CHUNKS at a time.

    A base that puts a space before each text puts it before the break, where it joins with no run.
    """
    texts: list[str] = []
    start = 0
    while start < len(runs):
        end = runs.find("\n", start + CHUNK_CHARACTERS)
        end = len(runs) if end < 0 else end
        texts.append(f"\n{runs[start:end]}\n")
        start = end + 1
        if len(texts) == CHUNKS:
            yield texts
            texts = []
    if texts:
        yield texts


def size_of(fast: tokenizers.Tokenizer) -> int:
    """The largest id + 1."""
    return max(fast.get_vocab(with_added_tokens=True).values()) + 1


@dataclass(frozen=True)
class Guard:
    """Texts in the base's own language, of whose tokens at most this share may change."""

    texts: Sequence[str]
    most_changed: float


def choose(base: Base, candidates: Sequence[Candidate], count: int, guard: Guard) -> dict[str, str]:
    """The first `count` candidates that some text gives, by name, with such a text for each.

    One that cannot be produced (its parts are joined otherwise) gives way to the next, and so do those that change the
    guard's texts most, until no more of these change than may. What is spelt with a character that had to go, goes too.
    """
    names = [candidate.name for candidate in candidates]
    while True:
        chosen = names[:count]
        fast = base.extended(chosen)
        found = witnesses(base, fast, chosen)
        unwanted = set(chosen) - found.keys() or too_changing(base, fast, guard)
        if not unwanted:
            return found
        lost = {text for name in unwanted if (text := base.text_of(name)) and len(text) == 1}
        names = [name for name in names if name not in unwanted and lost.isdisjoint(base.text_of(name) or "")]


def too_changing(base: Base, fast: tokenizers.Tokenizer, guard: Guard) -> set[str]:
    """New tokens to leave out, the most used first, so that the guard's texts change no more than they may."""
    changes = find_changes(base, fast, guard.texts)
    excess = changes.changed_tokens - int(guard.most_changed * changes.tokens)
    if excess <= 0:
        return set()
    cuts = fast.encode_batch_fast(list(guard.texts), add_special_tokens=False)
    used = Counter(number for cut in cuts for number in cut.ids if number >= base.taken)
    unwanted = set()
    for number, count in used.most_common():
        unwanted.add(fast.id_to_token(number) or "")
        excess -= count
        if excess <= 0:
            break
    return unwanted
