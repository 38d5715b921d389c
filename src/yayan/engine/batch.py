"""Many answers at once: rows side by side in one cache, and a finished row makes place for the next prompt.

Shapes: B answers under way, W branches of each (2 with guidance), V rows of the output head.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import torch

from yayan.engine.answers import Answer, FinishReason, Logprob, Piece
from yayan.engine.cache import Cache
from yayan.engine.distribution import Chooser, guide
from yayan.engine.network import Network

PROMPT_TOKENS = 2048  # of prompts that are read in one pass


@dataclass(frozen=True)
class Question:
    """A prompt, the negative prompt of its guidance, what chooses its tokens and what takes them, and how many tokens
    it may come to have.
    """

    number: int
    prompt: Sequence[int]
    negative: Sequence[int]
    chooser: Chooser
    answer: Answer
    tokens: int


@dataclass(frozen=True)
class Finished:
    """A whole answer."""

    text: str
    ids: list[int]
    finish_reason: FinishReason
    logprobs: list[Logprob] = field(default_factory=list)


@dataclass
class Row:
    """An answer under way."""

    question: Question
    pieces: list[Piece] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)

    def finished(self) -> Finished:
        reason = self.pieces[-1].finish_reason
        assert reason is not None
        logprobs = [item for piece in self.pieces for item in piece.logprobs]
        return Finished("".join(piece.text for piece in self.pieces), self.ids, reason, logprobs)


def answer_together(
    network: Network, questions: Sequence[Question], rows: int, scale: float
) -> Generator[tuple[int, Finished]]:
    """Numbers of questions and their answers, as they are finished; at most `rows` at once."""
    waiting = list(reversed(questions))
    width = 1 if scale == 1 else 2
    cache = network.cache(rows * width)
    running: list[Row] = []
    while waiting or running:
        logits_BV = None
        if running:
            slots = range(len(running) * width)
            new = [row.ids[-1:] for row in running for _ in range(width)]
            logits_BV = combine(network.read(cache, slots, new, every=False), width, scale)
        fresh = take_next(waiting, rows - len(running))
        if fresh:
            first = len(running) * width
            prompts = [ids for item in fresh for ids in beginnings(item, width)]
            slots = range(first, first + len(prompts))
            for slot, item in zip(slots, (item for item in fresh for _ in range(width)), strict=True):
                cache.begin(slot, network.turning(item.tokens))
            begun_BV = combine(network.read(cache, slots, prompts, every=False), width, scale)
            logits_BV = begun_BV if logits_BV is None else torch.cat([logits_BV, begun_BV])
            running += [Row(item) for item in fresh]
        assert logits_BV is not None
        choose_for_all(running, logits_BV)
        for row in [row for row in running if row.question.answer.done]:
            yield row.question.number, row.finished()
        running = close_gaps(running, cache, width)


def take_next(waiting: list[Question], free: int) -> list[Question]:
    """The next questions for free rows, so many that their prompts make one pass."""
    taken: list[Question] = []
    tokens = 0
    while waiting and len(taken) < free and (not taken or tokens + len(waiting[-1].prompt) <= PROMPT_TOKENS):
        taken.append(waiting.pop())
        tokens += len(taken[-1].prompt)
    return taken


def beginnings(question: Question, width: int) -> list[Sequence[int]]:
    return [question.prompt, question.negative or question.prompt[-1:]][:width]


@torch.inference_mode()
def combine(logits_RV: torch.Tensor, width: int, scale: float) -> torch.Tensor:
    """Branches to rows: the logits themselves, or guided ones."""
    return logits_RV if width == 1 else guide(logits_RV[::2], logits_RV[1::2], scale)


def choose_for_all(running: list[Row], logits_BV: torch.Tensor) -> None:
    """The next token of each row."""
    if running[0].question.chooser.argmax:
        tokens = logits_BV.argmax(-1).tolist()
    else:
        rows = zip(running, logits_BV, strict=True)
        tokens = [row.question.chooser.choose(logits_V, row.ids) for row, logits_V in rows]
    for row, token, logits_V in zip(running, tokens, logits_BV, strict=True):
        row.ids.append(token)
        row.pieces.append(row.question.answer.add((token, logits_V)))


def close_gaps(running: list[Row], cache: Cache, width: int) -> list[Row]:
    """Rows that go on, the last ones moved into the places of finished ones."""
    rows = list(running)
    place = 0
    while place < len(rows):
        if not rows[place].question.answer.done:
            place += 1
            continue
        last = rows.pop()
        if place < len(rows):
            for branch in range(width):
                cache.move(len(rows) * width + branch, place * width + branch)
            rows[place] = last
    return rows
