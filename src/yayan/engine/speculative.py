"""Exact speculative decoding (arXiv:2211.17192, arXiv:2302.01318): a draft guesses, the model checks all at once.

A guess x of a draft that drew it from q is taken with probability min(1, p(x) / q(x)), p being what the model would
draw from at that place; the first one that is not taken is replaced by a draw from max(p - q, 0), and after guesses
that were all taken follows a draw from p. What comes out is distributed as draws from p. Where nothing is drawn, a
guess is taken if it is the token that the model chooses.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from yayan.engine.distribution import Chooser
from yayan.engine.lengths import DraftLengths
from yayan.engine.network import Branches

Choice = tuple[int, torch.Tensor]  # a token, and the logits_V that it was chosen by


@dataclass(frozen=True)
class Guess:
    """A token, and what it was drawn from; None where it was certain."""

    token: int
    q_V: torch.Tensor | None = None


class Draft(Protocol):
    """Guesses how a text goes on."""

    def guess(self, ids: Sequence[int], answer: Sequence[int], count: int) -> list[Guess]:
        """At most `count` tokens after `ids`, which end with `answer`."""
        ...


class ModelDraft:
    """A small model with the same vocabulary, asked with the same options."""

    def __init__(self, branches: Branches, chooser: Chooser) -> None:
        self.branches, self.chooser = branches, chooser
        self.logits_V = branches.logits_V
        self.certain = len(branches.ids)  # so many of the tokens read are no guesses

    def guess(self, ids: Sequence[int], answer: Sequence[int], count: int) -> list[Guess]:
        self._follow(ids)
        greedy = self.chooser.sampling.greedy
        said = list(answer)
        guesses: list[Guess] = []
        for _ in range(count):
            if guesses:
                self.logits_V = self.branches.read([guesses[-1].token])[-1]
            if greedy:
                guesses.append(Guess(self.chooser.choose(self.logits_V, said)))
            else:
                q_V = self.chooser.probabilities(self.logits_V, said)
                guesses.append(Guess(self.chooser.draw(q_V), q_V))
            said.append(guesses[-1].token)
        return guesses

    def _follow(self, ids: Sequence[int]) -> None:
        """Read `ids`, after taking back what was guessed wrongly."""
        known, same = self.branches.ids, self.certain
        while same < min(len(known), len(ids)) and known[same] == ids[same]:
            same += 1
        if same == len(ids):  # the logits after its last token are no longer there
            same -= 1
        self.branches.take_back(len(known) - same)
        self.logits_V = self.branches.follow(ids[same:])
        self.certain = len(ids)


class LookupDraft:
    """What followed the last time when the text read as it does at its end (prompt look-up)."""

    LONGEST, SHORTEST = 4, 2  # tokens that must agree

    def guess(self, ids: Sequence[int], answer: Sequence[int], count: int) -> list[Guess]:
        for length in range(self.LONGEST, self.SHORTEST - 1, -1):
            end = list(ids[-length:])
            for at in range(len(ids) - length - 1, -1, -1):
                if ids[at] == end[0] and list(ids[at : at + length]) == end:
                    return [Guess(token) for token in ids[at + length : at + length + count]]
        return []


def decode_plainly(branches: Branches, chooser: Chooser, limit: int) -> Iterator[Choice]:
    """At most `limit` tokens, one pass each."""
    answer: list[int] = []
    logits_V = branches.logits_V
    while True:
        answer.append(chooser.choose(logits_V, answer))
        yield answer[-1], logits_V
        if len(answer) == limit:
            return
        logits_V = branches.read(answer[-1:])[-1]


def decode_speculatively(
    branches: Branches, chooser: Chooser, limit: int, draft: Draft, lengths: DraftLengths
) -> Iterator[Choice]:
    """The same tokens, or tokens of the same distribution, in fewer passes; never more than `limit`.

    `lengths` says how many to guess and is told what became of it.
    """
    prompt = list(branches.ids)
    answer = [chooser.choose(branches.logits_V, [])]
    yield answer[0], branches.logits_V
    while len(answer) < limit:
        wanted = min(lengths.choose(), limit - len(answer) - 1)
        started = time.perf_counter()
        guesses = draft.guess(prompt + answer, answer, wanted) if wanted else []
        guessed = time.perf_counter()
        logits_NV = branches.read([answer[-1], *(guess.token for guess in guesses)])
        taken = check_guesses(guesses, logits_NV, chooser, answer)
        branches.take_back(len(guesses) + 1 - len(taken))
        lengths.learn(wanted, len(guesses), len(taken) - 1, guessed - started, time.perf_counter() - guessed)
        for token, logits_V in zip(taken, logits_NV, strict=False):
            answer.append(token)
            yield token, logits_V


def check_guesses(
    guesses: Sequence[Guess], logits_NV: torch.Tensor, chooser: Chooser, answer: Sequence[int]
) -> list[int]:
    """The guesses that are taken, and one token more; row i of the logits is what follows i guesses."""
    said = list(answer)
    for guess, logits_V in zip(guesses, logits_NV, strict=False):
        token = check_guess(guess, logits_V, chooser, said)
        said.append(token)
        if token != guess.token:
            return said[len(answer) :]
    said.append(chooser.choose(logits_NV[len(guesses)], said))
    return said[len(answer) :]


@torch.inference_mode()
def check_guess(guess: Guess, logits_V: torch.Tensor, chooser: Chooser, said: Sequence[int]) -> int:
    """The guess, or another token in its place."""
    if chooser.sampling.greedy:
        return chooser.choose(logits_V, said)
    p_V = chooser.probabilities(logits_V, said)
    q = 1.0 if guess.q_V is None else guess.q_V[guess.token].item()
    if chooser.uniform() * q < p_V[guess.token].item():
        return guess.token
    if guess.q_V is None:
        rest_V = p_V.clone()
        rest_V[guess.token] = 0
    else:
        rest_V = (p_V - guess.q_V).clamp(min=0)
    if not rest_V.any():  # p and q differ by rounding alone
        return guess.token
    return chooser.draw(rest_V)
