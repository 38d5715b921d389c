"""From chosen tokens to an answer: its text in pieces, where it ends and why, and what is told of its tokens."""

from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass, field
from typing import Literal

from yayan.engine.distribution import top_logprobs
from yayan.engine.sampling import Sampling
from yayan.engine.speculative import Choice
from yayan.engine.text import StopFinder, TextStream
from yayan.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Logprob:
    """Natural log-probabilities at one token, by the model itself: before bias, penalties and cuts."""

    token: int
    logprob: float
    top: dict[int, float]
    """The likeliest tokens there."""


@dataclass(frozen=True)
class Piece:
    """What came since the last piece: text that is certain, and the tokens chosen.

    Tokens may be ahead of the text. Those that end an answer are among the tokens, not in the text.
    """

    text: str
    ids: list[int]
    logprobs: list[Logprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    """In the last piece: "stop" at an end token or a stop string, "length" where the answer was cut."""


class Answer:
    """An answer in the making: takes tokens, gives pieces."""

    def __init__(self, tokenizer: Tokenizer, ends: Collection[int], sampling: Sampling, limit: int) -> None:
        self.text, self.stops = TextStream(tokenizer), StopFinder(sampling.stop)
        self.ends, self.sampling, self.left = ends, sampling, limit
        self.done = False

    def add(self, choice: Choice) -> Piece:
        """The piece that a token makes; the last one if `done` is True then."""
        token, logits_V = choice
        self.left -= 1
        text = ""
        reason: FinishReason | None = None
        if token in self.ends:
            reason = "stop"
        else:
            text = self.stops.add(self.text.add(token))
            if self.stops.found:
                reason = "stop"
            elif not self.left:
                reason = "length"
        if reason and not self.stops.found:
            text += self.stops.add(self.text.finish())
            if self.stops.found:
                reason = "stop"
            text += self.stops.finish()
        self.done = reason is not None
        logprobs = []
        if self.sampling.logprobs is not None:
            logprobs = [Logprob(token, *top_logprobs(logits_V, token, self.sampling.logprobs))]
        return Piece(text, [token], logprobs, reason)


def pieces(choices: Iterator[Choice], answer: Answer) -> Generator[Piece]:
    """The pieces of an answer; a piece without text is kept until one with text comes, or the end."""
    ids: list[int] = []
    logprobs: list[Logprob] = []
    for choice in choices:
        piece = answer.add(choice)
        ids += piece.ids
        logprobs += piece.logprobs
        if piece.text or answer.done:
            yield Piece(piece.text, ids, logprobs, piece.finish_reason)
            ids, logprobs = [], []
        if answer.done:
            return
