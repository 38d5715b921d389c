"""Greedy answers to many prompts, each written down at once: an interrupted evaluation goes on."""

import json
import os
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from yayan.evaluate.answerers import Answerer, Prompt
from yayan.evaluate.answers import refuse_another
from yayan.partial import whole_lines
from yayan.progress import Progress

JOURNAL_NAME = ".answers.jsonl"
AHEAD = 2  # prompts for each slot that are made and waiting, so that none stands idle


@dataclass(frozen=True)
class Question:
    """A prompt under a name of its own."""

    key: str
    prompt: Prompt
    new_tokens: int
    """Tokens of the answer at most."""
    truncated: bool = False
    """Whether the prompt was cut to fit."""


@dataclass(frozen=True)
class Answer:
    """What was said; `complete` is False where the limit cut it."""

    key: str
    text: str
    prompt_tokens: int
    truncated: bool
    tokens: int
    complete: bool
    by: str = ""
    """Name of what said it."""


class Journal:
    """The answers so far, in the work folder. `with Journal(work) as journal: ...` goes on where another one ended."""

    def __init__(self, work: Path) -> None:
        self.path = work / JOURNAL_NAME
        self.answers: dict[str, Answer] = {}
        self.file: IO[bytes] = self.path.open("ab+")
        for line in whole_lines(self.file):
            answer = Answer(**json.loads(line))
            self.answers[answer.key] = answer

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, answer: Answer) -> None:
        """Write an answer down; when this returns a kill does not lose it."""
        self.file.write(json.dumps(asdict(answer), ensure_ascii=False).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.answers[answer.key] = answer

    def remove(self) -> None:
        """Delete it, when the results are written."""
        self.file.close()
        self.path.unlink()


def answer_all(
    engine: Answerer, journal: Journal, questions: Iterable[Question], slots: int, bar: Progress
) -> None:
    """Ask what `journal` does not hold yet, `slots` at a time; `questions` are made when they are needed.

    With one slot an answer depends on its prompt alone. With several, products of other shapes are computed, and where
    two tokens are as good as equal the other one may be taken. Raises WorkError if the journal is another model's.
    """
    others = {answer.by for answer in journal.answers.values()} - {engine.name, ""}
    if others:
        refuse_another(min(others), engine.name, journal.path)
    todo = iter(questions)
    with ThreadPoolExecutor(slots) as pool:
        try:
            waiting = {pool.submit(ask, engine, question) for question in islice(todo, AHEAD * slots)}
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for item in done:
                    journal.add(item.result())
                    bar.advance()
                waiting |= {pool.submit(ask, engine, question) for question in islice(todo, len(done))}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            engine.close()  # ends the requests under way, which the pool would wait for
            raise


def ask(engine: Answerer, question: Question) -> Answer:
    """One greedy answer to a prompt that is taken as it is."""
    said = engine.answer(question.prompt, question.new_tokens)
    return Answer(
        key=question.key,
        text=said.text,
        prompt_tokens=len(question.prompt.ids),
        truncated=question.truncated,
        tokens=said.tokens,
        complete=said.complete,
        by=engine.name,
    )
