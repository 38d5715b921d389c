"""Answered questions: what is kept of each, what they sum up to, and how an interrupted evaluation goes on."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from yayan.errors import WorkError
from yayan.evaluate.intervals import wilson
from yayan.evaluate.questions import Subject
from yayan.partial import whole_lines

KEPT_NAME = ".answered-by.jsonl"
NOT_EXTRACTED = ""  # the prediction where a reply names no letter


@dataclass(frozen=True)
class Item:
    """A question answered; `prediction` is None, and nothing is counted, where it is longer than the context.

    `answer` is None where the right one is not told. `reply` is the text of a model that reasons.
    """

    subject: str
    number: int
    answer: str | None
    prediction: str | None
    scores: dict[str, float]
    shots: int
    examples_dropped: int
    reply: str | None = None


class Kept:
    """The items of finished subjects, in the folder that is worked in: a line a subject, an unfinished line cut off.

    `by`: the name of what answers, where another could have answered before. Raises WorkError if another one did.
    """

    def __init__(self, work: Path, by: str = "") -> None:
        self.path, self.by = work / KEPT_NAME, by
        self.items: dict[str, list[Item]] = {}
        with self.path.open("ab+") as file:
            for subject, before, *items in map(json.loads, whole_lines(file)):
                refuse_another(before, by, self.path)
                self.items[subject] = [Item(**item) for item in items]

    def put(self, subject: str, items: list[Item]) -> None:
        self.items[subject] = items
        line = json.dumps([subject, self.by, *map(asdict, items)], ensure_ascii=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def remove(self) -> None:
        self.path.unlink()


def refuse_another(before: str, now: str, place: Path) -> None:
    """WorkError if one name gave the answers so far and another one would give the others."""
    if before != now:
        what = f"{before} gave the answers so far, and {now} would give the others"
        raise WorkError(what, where=place, cure=f"serve {before} again, or name another OUT")


def digest(subjects: list[Subject]) -> str:
    """SHA-256 (hex) of what is asked, examples among it, in whichever files it stood."""
    text = json.dumps([asdict(subject) for subject in subjects], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def summarise(items: list[Item]) -> dict[str, object]:
    """Accuracy over the questions that were answered, with Wilson's 95 % interval, and what was left out.

    Where no right answer is told, `right` and `accuracy` are None.
    """
    answered = [item for item in items if item.prediction is not None]
    told = [item for item in answered if item.answer is not None]
    right = sum(item.prediction == item.answer for item in told)
    return {
        "questions": len(items),
        "asked": len(answered),
        "too_long": len(items) - len(answered),
        "not_extracted": sum(item.prediction == NOT_EXTRACTED for item in answered),
        "examples_dropped": sum(item.examples_dropped for item in answered),
        "right": right if told else None,
        "accuracy": right / len(told) if told else None,
        "interval": wilson(right, len(told)),
    }


def by_subject(subjects: list[Subject], items: list[Item]) -> dict[str, dict[str, object]]:
    return {
        subject.key: summarise([item for item in items if item.subject == subject.key])
        for subject in subjects
    }


def by_group(subjects: list[Subject], items: list[Item]) -> dict[str, dict[str, object]]:
    """Each group over its questions; a subject of two groups counts in both."""
    groups_of = {subject.key: subject.groups for subject in subjects}
    groups = sorted({group for found in groups_of.values() for group in found})
    return {
        group: summarise([item for item in items if group in groups_of[item.subject]]) for group in groups
    }


def submission(items: list[Item]) -> dict[str, dict[str, str]]:
    """C-Eval's form for a test split: {"law": {"0": "A"}}; what has no letter is left out."""
    found: dict[str, dict[str, str]] = {}
    for item in items:
        if item.prediction:
            found.setdefault(item.subject, {})[str(item.number)] = item.prediction
    return found
