"""Multiple choice: which of four letters does the model find likeliest after the question?"""

import json
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from yayan.errors import UserError
from yayan.evaluate.answering import check_endpoint, refuse_stretching
from yayan.evaluate.answers import Item, Kept, by_group, by_subject, digest, submission, summarise
from yayan.evaluate.benchmarks import CEVAL, CMMLU, MMLU, Benchmark
from yayan.evaluate.letters import LetterScorer
from yayan.evaluate.prompts import Asker, style_of
from yayan.evaluate.questions import LETTERS, Subject, read_subjects
from yayan.evaluate.results import write_results
from yayan.evaluate.thoughts import Thinker
from yayan.evaluate.words import describe, percent, span
from yayan.model.folder import Context, context_of
from yayan.progress import Progress
from yayan.stage import InputPath, Stage
from yayan.tokenizer import load_tokenizer

CHANCE = 1 / len(LETTERS)
MAX_SHOTS = 5  # the benchmarks have five worked examples a subject
SUBMISSION_NAME = "submission.json"


@dataclass(frozen=True, kw_only=True)
class Choices(Stage):
    """Options of an evaluation on four-choice questions; the verbs `eval ceval`, `eval cmmlu`, `eval mmlu` are it.

    Nothing is sampled: the same question gives the same answer.
    """

    benchmark: ClassVar[Benchmark]

    model: InputPath
    """Model folder."""
    data: InputPath
    """Folder or zip archive of the benchmark: its CSV files, or one jsonl file a split."""
    shots: int = MAX_SHOTS
    """Worked examples before each question, 0 to 5; those that do not fit into the context are dropped."""
    subjects: list[str] = field(default_factory=list)
    """Subjects to ask; all by default."""
    protocol: Literal["harness", "cla2"] = "harness"
    """Rules: lm-eval's prompts and log-likelihoods, or the prompts of Chinese-LLaMA-Alpaca-2 without its randomness."""
    prompt: Literal["auto", "base", "chat"] = "auto"
    """Prompts of cla2: for chat models if the model has a chat template, or as you say."""
    context: Context = None
    """Tokens of a prompt: all positions of the model by default; auto: up to 8 times as many, each question stretched
    by what it needs."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Numbers that the model computes in; the softmax is always float32."""
    cot: bool = False
    """Let a chat model reason (cla2, by llama.cpp in F16, greedily); the letter is taken from what it writes."""
    max_tokens: int = 512
    """Tokens of a reasoning at most."""
    endpoint: str | None = None
    """Let an OpenAI-compatible server reason (with --cot): its URL, such as http://127.0.0.1:8000/v1 (key:
    OPENAI_API_KEY). The model's tokenizer and template count what it is asked."""
    endpoint_model: str | None = None
    """Name that the endpoint is asked for; the only one that it lists by default."""

    @property
    def split_asked(self) -> str:
        """Where the questions stand."""
        return "test"

    def check(self) -> None:
        if not 0 <= self.shots <= MAX_SHOTS:
            raise UserError(f"{self.shots} shots", cure=f"give 0 to {MAX_SHOTS}")
        if self.protocol == "cla2" and not self.benchmark.has_cla2:
            what = f"the protocol cla2 has no prompts for {self.benchmark.task}"
            raise UserError(what, where="protocol", cure="leave it out")
        if self.max_tokens < 1:
            raise UserError(f"reasonings of {self.max_tokens} tokens", cure="give at least 1")
        if self.endpoint is not None and not self.cot:
            what = "an endpoint does not tell how likely each letter is"
            raise UserError(what, where="endpoint", cure="let it reason with --cot, or leave it out")
        refuse_stretching(self.endpoint, self.context)
        self.make_asker()
        self.read()
        check_endpoint(self.endpoint, self.endpoint_model)

    def run(self, work: Path) -> dict[str, object]:
        subjects, asker = self.read(), self.make_asker()
        settings = self.settings(asker)
        kept = Kept(work, str(settings.get("endpoint_model", "")))
        with closing(self.open_model()) as model:
            items, speed = answer_subjects(asker, subjects, kept, model)
        if all(item.prediction is None for item in items):
            what = f"no question fits into {asker.context} positions"
            raise UserError(what, where=self.model, cure="stretch it")
        totals = settings | summarise(items) | {"groups": by_group(subjects, items)}
        totals |= left_out(self.benchmark, self.subjects, subjects, items)
        full = (
            {"questions_sha256": digest(subjects)}
            | totals
            | {"subjects": by_subject(subjects, items), "items": items}
        )
        write_results(work, asker.protocol, self.model, full)
        if self.split_asked == "test" and self.benchmark is CEVAL:
            text = json.dumps(submission(items), ensure_ascii=False, indent=1)
            (work / SUBMISSION_NAME).write_text(text + "\n", encoding="utf-8")
        kept.remove()
        return {"protocol": asker.rules, "protocol_version": asker.protocol.version} | totals | speed

    def tell(self, record: dict) -> None:
        metrics = record["metrics"]
        print(describe(record))
        for group, part in metrics["groups"].items():
            if part["accuracy"] is not None:
                share = f"{percent(part['accuracy'])} ({span(part['interval'], percent)})"
                print(f"  {group}: {share} of {part['asked']:,}")

    def read(self) -> list[Subject]:
        return read_subjects(self.benchmark, self.data, self.subjects, self.shots, self.split_asked)

    def make_asker(self) -> Asker:
        context, tokenizer = context_of(self.model, self.context), load_tokenizer(self.model)
        style = style_of(self.protocol, self.prompt, tokenizer)
        if not self.cot:
            return Asker(self.benchmark, self.protocol, style, tokenizer, context)
        if style != "chat":
            cure = "name a chat model and pass --protocol cla2, or leave --cot out"
            raise UserError("reasoning is for chat models with chat prompts", where="cot", cure=cure)
        return Asker(self.benchmark, "cla2-cot", style, tokenizer, context, room=self.max_tokens)

    def open_model(self) -> LetterScorer | Thinker:
        if self.cot:
            endpoint = (self.endpoint, self.endpoint_model) if self.endpoint else None
            return Thinker(self.model, self.max_tokens, self.context, endpoint)
        return LetterScorer(self.model, self.dtype, stretching=self.context == "auto")

    def settings(self, asker: Asker) -> dict[str, object]:
        dtype = "float16" if self.cot else self.dtype
        return {
            "prompt": asker.style,
            "shots": self.shots,
            "split": self.split_asked,
            **({"dtype": dtype} if self.endpoint is None else self.origin()),
            "context": asker.context,
            "stretching": self.context == "auto",
            "chance": CHANCE,
        }

    def origin(self) -> dict[str, object]:
        """What answered, where that is an endpoint."""
        assert self.endpoint is not None
        from yayan.evaluate.endpoint import find_name, origin_of

        return dict(origin_of(self.endpoint, find_name(self.endpoint, self.endpoint_model)))


@dataclass(frozen=True, kw_only=True)
class EvalCeval(Choices):
    """Accuracy on the four-choice questions of C-Eval, or on your own in its form.

    The test split has no answers: OUT/submission.json is then what its site wants. Nothing is sampled.
    """

    benchmark: ClassVar[Benchmark] = CEVAL

    split: Literal["val", "test"] = "val"
    """Questions with answers (val), or those of the test, whose answers nobody is told."""

    @property
    def split_asked(self) -> str:
        return self.split


@dataclass(frozen=True, kw_only=True)
class EvalCmmlu(Choices):
    """Accuracy on the four-choice questions of CMMLU, over 67 subjects in Chinese. Nothing is sampled."""

    benchmark: ClassVar[Benchmark] = CMMLU


@dataclass(frozen=True, kw_only=True)
class EvalMmlu(Choices):
    """Accuracy on the four-choice questions of MMLU, over 57 subjects in English. Nothing is sampled."""

    benchmark: ClassVar[Benchmark] = MMLU


def answer_subjects(
    asker: Asker, subjects: list[Subject], kept: Kept, model: LetterScorer | Thinker
) -> tuple[list[Item], dict[str, object]]:
    """Ask all that an earlier run has not finished -> items in order, and how fast (opening the model left out)."""
    total = sum(len(subject.questions) for subject in subjects)
    before = sum(map(len, kept.items.values()))
    begun = time.monotonic()
    with Progress(f"eval {asker.benchmark.task}", total=total, unit="questions") as bar:
        bar.resume(before)
        for subject in subjects:
            if subject.key not in kept.items:
                bar.note(subject.key)
                kept.put(subject.key, model.answer(asker.ready(subject), bar))
    seconds = max(time.monotonic() - begun - model.opening_seconds, 1e-9)
    speed: dict[str, object] = {
        "answer_seconds": round(seconds, 3),
        "questions_per_second": round((total - before) / seconds, 1),
    }
    return [item for subject in subjects for item in kept.items[subject.key]], speed


def left_out(
    benchmark: Benchmark, wanted: list[str], subjects: list[Subject], items: list[Item]
) -> dict[str, object]:
    """Names of what the figures do not cover: subjects that the data lacks, questions that do not fit; said at once."""
    keys = {subject.key for subject in subjects}
    official = not wanted and not keys.isdisjoint(benchmark.names)
    missing = sorted(set(benchmark.names) - keys) if official else []
    too_long = [f"{item.subject} {item.number}" for item in items if item.prediction is None]
    for names, what in (
        (missing, "missing subjects"),
        (too_long, "questions longer than the context, not asked"),
    ):
        if names:
            print(f"eval {benchmark.task}: {len(names)} {what}: {', '.join(names)}", file=sys.stderr)
    return {"missing_subjects": missing, "too_long_questions": too_long}
