"""A needle in a haystack: is a fact that was planted somewhere in a long text found again?"""

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Literal

from yayan.errors import UserError
from yayan.evaluate.answerers import look_at
from yayan.evaluate.answering import LongAnswers
from yayan.evaluate.cuts import show
from yayan.evaluate.greedy import Answer, Journal, Question, answer_all
from yayan.evaluate.haystack import FACTS, Fact, Haystack, make_fact, read_haystack
from yayan.evaluate.intervals import wilson
from yayan.evaluate.long_prompts import PromptMaker
from yayan.evaluate.long_sections import needle_picture, needle_table
from yayan.evaluate.results import Protocol, write_results
from yayan.pictures import standalone
from yayan.progress import Progress
from yayan.stage import InputPath

PROTOCOL = Protocol("needle", "planted-number", 1)
NEW_TOKENS = 32
DEFAULT_LENGTHS = 5  # equal steps up to the whole context
MOST_FACTS = len(FACTS["en"].places)


@dataclass(frozen=True, kw_only=True)
class EvalNeedle(LongAnswers):
    """Whether a fact planted in a long text is found again, by depth and by length.

    The fact gives a place a random number of five digits; the answer must hold it. The same prompts without the fact
    are asked too: what is "found" there, nobody has read. OUT/needle.svg shows it all.
    """

    text: InputPath
    """What the fact is planted in: a text, longer than the longest prompt (any form that pack reads)."""
    language: Literal["en", "zh"] = "en"
    """Language of the fact and of the question."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of a prompt, the question included; five steps up to the whole context by default."""
    depths: list[int] = field(default_factory=lambda: [0, 25, 50, 75, 100])
    """Where the fact stands: percent of the text before it."""
    facts: int = 3
    """Facts planted at each place, one a prompt."""

    def check(self) -> None:
        super().check()
        if not 1 <= self.facts <= MOST_FACTS:
            raise UserError(f"{self.facts} facts", where="facts", cure=f"give 1 to {MOST_FACTS}")
        if not self.depths or not all(0 <= depth <= 100 for depth in self.depths):
            raise UserError(f"depths are {self.depths}", where="depths", cure="give percents from 0 to 100")
        choose_lengths(self.lengths, look_at(self.model, self.context).context)
        read_haystack(self.text, 1)

    def run(self, work: Path) -> dict[str, object]:
        asked = look_at(self.model, self.context)
        lengths, depths = choose_lengths(self.lengths, asked.context), sorted(set(self.depths))
        haystack = read_haystack(self.text, lengths[-1])
        plan = plan_of(lengths, depths, self.facts, self.language, haystack)
        with Journal(work) as journal:
            with (
                self.open(self.context, self.slots) as engine,
                Progress("eval needle", total=len(plan), unit="prompts") as bar,
            ):
                bar.resume(len(journal.answers))
                questions = make_questions(
                    PromptMaker(engine), haystack, plan, asked.chat, set(journal.answers)
                )
                answer_all(engine, journal, questions, self.slots, bar)
            items = [look_for(place, journal.answers[place.key]) for place in plan]
            settings = {"context": asked.context, "chat": asked.chat, "language": self.language}
            cells = summarise(items, lengths, depths)
            metrics = engine.origin | settings | {"lengths": lengths, "depths": depths} | cells
            write_results(work, PROTOCOL, self.model, metrics | {"items": items})
            (work / "needle.svg").write_text(standalone(needle_picture(metrics)), encoding="utf-8")
            journal.remove()
        return metrics

    def tell(self, record: dict) -> None:
        show(needle_table(record["metrics"]))


@dataclass(frozen=True)
class Place:
    """A prompt to be asked: which fact, in how long a text, and how deep; `depth` None: it is not planted."""

    length: int
    depth: int | None
    number: int
    fact: Fact

    @property
    def key(self) -> str:
        return f"{self.length}/{self.depth}/{self.number}"


@dataclass(frozen=True)
class Item:
    """A prompt answered."""

    length: int
    depth: int | None
    fact: str
    answer: str
    found: bool
    prompt_tokens: int


def choose_lengths(wanted: list[int], context: int) -> list[int]:
    """Lengths of prompts in tokens, ascending. Raises UserError for one that does not fit into the context."""
    room = context - NEW_TOKENS
    if room < 1:
        what = f"answers of {NEW_TOKENS} tokens, and the model sees {context} at once"
        raise UserError(what, cure="take a model of more positions")
    for length in wanted:
        if not 1 <= length <= room:
            cure = f"of {context} tokens the answer takes {NEW_TOKENS}, give 1 to {room}"
            raise UserError(f"a prompt of {length} tokens", where="lengths", cure=cure)
    return sorted(set(wanted or [room * step // DEFAULT_LENGTHS for step in range(1, DEFAULT_LENGTHS + 1)]))


def plan_of(
    lengths: Sequence[int], depths: Sequence[int], facts: int, language: str, haystack: Haystack
) -> list[Place]:
    """All prompts, the shortest first; the last ones of each length are the same without the fact."""
    plan = []
    for length, depth, number in product(lengths, [*depths, None], range(facts)):
        fact = make_fact(language, number, seed=f"{length}/{depth}/{number}", unlike=haystack)
        plan.append(Place(length, depth, number, fact))
    return plan


def make_questions(
    maker: PromptMaker, haystack: Haystack, plan: Sequence[Place], chat: bool, answered: Set[str]
) -> Iterator[Question]:
    """The prompts that are not answered yet. Raises UserError where the text is too short, or the length."""
    facts = max(place.number for place in plan) + 1
    for place in plan:
        if place.key not in answered:
            first = (
                len(haystack.sentences) * place.number // facts
            )  # each fact in a text that begins elsewhere
            prompt = haystack.prompt(maker, place.fact, place.length, place.depth, first, chat=chat)
            yield Question(place.key, prompt, NEW_TOKENS)


def look_for(place: Place, answer: Answer) -> Item:
    """Whether an answer holds the number, and not as a part of a longer one."""
    found = re.search(rf"(?<!\d){place.fact.number}(?!\d)", answer.text) is not None
    return Item(place.length, place.depth, place.fact.sentence, answer.text, found, answer.prompt_tokens)


def summarise(items: Sequence[Item], lengths: Sequence[int], depths: Sequence[int]) -> dict[str, object]:
    """Shares of what was found: of each cell, of all, and of the control."""

    def cell(length: int, depth: int | None) -> Mapping[str, int]:
        own = [item for item in items if item.length == length and item.depth == depth]
        return {"found": sum(item.found for item in own), "asked": len(own)}

    planted = [item for item in items if item.depth is not None]
    control = [item for item in items if item.depth is None]
    found = sum(item.found for item in planted)
    return {
        "cells": [[cell(length, depth) for length in lengths] for depth in depths],
        "control": [cell(length, None) for length in lengths],
        "found": found,
        "asked": len(planted),
        "share": found / len(planted),
        "interval": wilson(found, len(planted)),
        "control_found": sum(item.found for item in control),
        "control_asked": len(control),
    }
