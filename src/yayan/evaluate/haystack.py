"""A long text, a fact to plant in it, and the question about it."""

import random
import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from yayan.corpus.read import documents
from yayan.errors import UserError
from yayan.evaluate.answerers import Prompt
from yayan.evaluate.long_prompts import PromptMaker

CHARACTERS_PER_TOKEN = 20  # more than any tokenizer's mean: what is read of a corpus suffices
DIGITS = 5
SENTENCE_ENDS = re.compile(r"(?<=\n)|(?<=[。！？])(?![”’」』）])|(?<=[。！？][”’」』）])|(?<=[.!?])(?=\s)")


@dataclass(frozen=True)
class Wording:
    """How a language says the fact, begins it again (for a base model to go on), and asks for it (a chat model)."""

    fact: str
    beginning: str
    question: str
    places: tuple[str, ...]


FACTS = {
    "en": Wording(
        fact=" The secret number of {place} is {number}.",
        beginning="\n\nThe secret number of {place} is",
        question="\n\nWhat is the secret number of {place}? Answer with the number alone.",
        places=(
            "Lisbon",
            "Nairobi",
            "Toronto",
            "Jakarta",
            "Dublin",
            "Lima",
            "Oslo",
            "Athens",
            "Manila",
            "Havana",
        ),
    ),
    "zh": Wording(
        fact="{place}的密码是{number}。",
        beginning="\n\n{place}的密码是",
        question="\n\n{place}的密码是多少？只回答数字。",
        places=("洛阳", "泉州", "敦煌", "大理", "喀什", "扬州", "兰州", "桂林", "绍兴", "拉萨"),
    ),
}


@dataclass(frozen=True)
class Fact:
    """A place and its number."""

    wording: Wording
    place: str
    number: int

    @property
    def sentence(self) -> str:
        return self.wording.fact.format(place=self.place, number=self.number)

    def ask(self, *, chat: bool) -> str:
        """What stands behind the text: for a base model the beginning of the fact, which it is to complete."""
        form = self.wording.question if chat else self.wording.beginning
        return form.format(place=self.place)


@dataclass(frozen=True)
class Haystack:
    """A text as sentences that give it when they are joined."""

    sentences: list[str]
    path: Path

    @cached_property
    def free_numbers(self) -> list[int]:
        """Numbers of five digits that the text does not hold."""
        held = set(re.findall(r"\d+", "".join(self.sentences)))
        return [number for number in range(10 ** (DIGITS - 1), 10**DIGITS) if str(number) not in held]

    def prompt(
        self, maker: PromptMaker, fact: Fact, length: int, depth: int | None, first: int, *, chat: bool
    ) -> Prompt:
        """The longest prompt of at most `length` tokens: sentences from number `first` on (the last is
        followed by number 0), the fact behind `depth` percent of them, and the question.

        Raises UserError if the text is too short for it, or if the length holds no sentence.
        """
        turned = self.sentences[first:] + self.sentences[:first]

        def prompt(count: int) -> Prompt:
            before = count if depth is None else round(count * depth / 100)
            planted = "" if depth is None else fact.sentence
            text = "".join(turned[:before]) + planted + "".join(turned[before:count])
            return maker.prompt(text + fact.ask(chat=chat), chat=chat)

        most = min(len(turned), length)  # a sentence has a token at least
        count = bisect_right(range(most + 1), length, key=lambda number: len(prompt(number).ids)) - 1
        if count < 1:
            what = f"{length} tokens do not hold a sentence, the fact and the question"
            raise UserError(what, where="lengths", cure="ask for longer prompts")
        if count == len(turned):
            what = f"the text has fewer tokens than a prompt of {length}"
            raise UserError(what, where=self.path, cure="give a longer text, or ask for shorter prompts")
        return prompt(count)


def read_haystack(path: Path, tokens: int) -> Haystack:
    """As much of a corpus as prompts of `tokens` tokens can need. Raises UserError for what is no text."""
    parts: list[str] = []
    characters = 0
    for document in documents([path]):
        parts.append(document.text)
        characters += len(document.text)
        if characters >= CHARACTERS_PER_TOKEN * tokens:
            break
    text = "\n".join(parts)
    if not text.strip():
        raise UserError("all its documents are empty", where=path, cure="give a text")
    return Haystack([part for part in SENTENCE_ENDS.split(text) if part], path)


def make_fact(language: str, number: int, *, seed: str, unlike: Haystack) -> Fact:
    """Fact `number` of a language, with a number that the text does not hold, drawn from a seed.

    Raises UserError if the text holds them all.
    """
    free = unlike.free_numbers
    if not free:
        what = f"this text holds every number of {DIGITS} digits"
        raise UserError(what, where=unlike.path, cure="give another")
    wording = FACTS[language]
    return Fact(wording, wording.places[number % len(wording.places)], random.Random(seed).choice(free))
