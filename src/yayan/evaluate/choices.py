"""Multiple choice: which of four letters does the model find likeliest after the question?"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from yayan.errors import UserError
from yayan.evaluate.intervals import wilson
from yayan.evaluate.questions import LETTERS, Question, Subject, read_subjects
from yayan.evaluate.results import Protocol, write_results
from yayan.evaluate.scorer import Scorer, context_of, open_scorer
from yayan.model.score import score_choices
from yayan.progress import Progress
from yayan.stage import InputPath, Stage
from yayan.tokenizer import Tokenizer, load_tokenizer

PROTOCOL = Protocol("ceval", "harness", 1)
CHANCE = 1 / len(LETTERS)
MAX_SHOTS = 5  # C-Eval's dev split has five examples a subject


@dataclass(frozen=True, kw_only=True)
class EvalCeval(Stage):
    """Accuracy on four-choice questions in C-Eval's form.

    Protocol `harness`: the prompts of lm-eval's `ceval-valid` as plain text, for base and chat models alike; the answer
    is the letter of the highest log-likelihood. Nothing is sampled: the same question gives the same answer.
    """

    model: InputPath
    """Model folder."""
    data: InputPath
    """Folder of val/SUBJECT_val.csv and dev/SUBJECT_dev.csv, or of val.jsonl and dev.jsonl."""
    shots: int = MAX_SHOTS
    """Worked examples before each question, 0 to 5; those that do not fit into the context are dropped."""
    subjects: list[str] = field(default_factory=list)
    """Subjects to ask; all by default."""

    def check(self) -> None:
        if not 0 <= self.shots <= MAX_SHOTS:
            raise UserError(f"{self.shots} shots", cure=f"give 0 to {MAX_SHOTS}")
        context_of(self.model)
        read_subjects(self.data, self.subjects, self.shots)

    def run(self, work: Path) -> dict[str, object]:
        subjects = read_subjects(self.data, self.subjects, self.shots)
        tokenizer, context = load_tokenizer(self.model), context_of(self.model)
        prompts = [
            fit_prompt(subject, q, tokenizer, context) for subject in subjects for q in subject.questions
        ]
        if not any(prompt.fits for prompt in prompts):
            raise UserError(f"no question fits into {context} positions", where=self.model, cure="stretch it")
        items = answer(open_scorer(self.model), prompts)
        settings: dict[str, object] = {"shots": self.shots, "context": context, "chance": CHANCE}
        totals = summarise(items) | {"groups": by_group(subjects, items)}
        by_subject = {s.key: summarise([item for item in items if item.subject == s.key]) for s in subjects}
        write_results(
            work, PROTOCOL, self.model, settings | totals | {"subjects": by_subject, "items": items}
        )
        return settings | totals


@dataclass(frozen=True)
class Prompt:
    """A question made ready: what stands before the letters, and the tokens of each letter."""

    question: Question
    context_ids: list[int]
    letter_ids: list[list[int]]
    shots: int
    dropped: int
    fits: bool


@dataclass(frozen=True)
class Item:
    """A question answered; `prediction` is None, and nothing is counted, where it is longer than the context."""

    subject: str
    number: int
    answer: str
    prediction: str | None
    scores: dict[str, float]
    shots: int
    examples_dropped: int


def header(name: str) -> str:
    return f"以下是中国关于{name}的单项选择题，请选出其中的正确答案。\n\n"


def block(question: Question) -> str:
    """The question with its options, up to where the letter stands (a space before it)."""
    options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, question.options, strict=True))
    return f"{question.question.strip()}\n{options}\n答案："


def fit_prompt(subject: Subject, question: Question, tokenizer: Tokenizer, context: int) -> Prompt:
    """The longest prompt that fits: examples go from the far end, the one that stands first before all others."""
    for dropped in range(len(subject.examples) + 1):
        kept = subject.examples[dropped:]
        worked = "".join(f"{block(example)} {example.answer}\n\n" for example in kept)
        text = header(subject.name) + worked + block(question)
        before, letters = split_ids(tokenizer, text)
        fits = len(before) + max(map(len, letters)) - 1 <= context
        if fits:
            break
    return Prompt(question, before, letters, len(kept), dropped, fits)


def split_ids(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[list[int]]]:
    """Tokens of `text` and of each letter behind it, cut where the five encodings part (a token may join both)."""
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    alone, *whole = tokenizer.encode_batch([text, *(f"{text} {letter}" for letter in LETTERS)])
    shared = 0
    for column in zip(alone, *(ids[:-1] for ids in whole), strict=False):
        if len(set(column)) > 1:
            break
        shared += 1
    return bos + alone[:shared], [ids[shared:] for ids in whole]


def answer(scorer: Scorer, prompts: list[Prompt]) -> list[Item]:
    """Ask what fits; equal scores go to the first letter."""
    asked = [prompt for prompt in prompts if prompt.fits]
    rows = sum(len({tuple(ids[:-1]) for ids in prompt.letter_ids}) for prompt in asked)
    with Progress("eval ceval", total=rows, unit="prompts") as bar:
        scores = score_choices(
            scorer.body,
            scorer.head,
            [prompt.context_ids for prompt in asked],
            [prompt.letter_ids for prompt in asked],
            on_scored=bar.advance,
        )
    scorer.refuse_nonsense(score for row in scores for score in row)
    found = {
        id(prompt): dict(zip(LETTERS, row, strict=True)) for prompt, row in zip(asked, scores, strict=True)
    }
    items = []
    for prompt in prompts:
        own, question = found.get(id(prompt), {}), prompt.question
        best = max(LETTERS, key=own.__getitem__) if own else None
        items.append(
            Item(question.subject, question.number, question.answer, best, own, prompt.shots, prompt.dropped)
        )
    return items


def summarise(items: list[Item]) -> dict[str, object]:
    """Accuracy over the questions that were asked, with Wilson's 95 % interval, and what was left out."""
    asked = [item for item in items if item.prediction is not None]
    right = sum(item.prediction == item.answer for item in asked)
    return {
        "questions": len(items),
        "asked": len(asked),
        "too_long": len(items) - len(asked),
        "examples_dropped": sum(item.examples_dropped for item in asked),
        "right": right,
        "accuracy": right / len(asked) if asked else None,
        "interval": wilson(right, len(asked)),
    }


def by_group(subjects: list[Subject], items: list[Item]) -> dict[str, dict[str, object]]:
    group_of = {subject.key: subject.group for subject in subjects}
    groups = Counter(group_of.values())
    return {g: summarise([item for item in items if group_of[item.subject] == g]) for g in sorted(groups)}
