"""LongBench: questions about long texts, answered greedily and scored as its own functions score them."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from yayan.errors import UserError, refuse_less_than_one
from yayan.evaluate.answerers import Asked, look_at
from yayan.evaluate.answering import LongAnswers
from yayan.evaluate.cuts import show
from yayan.evaluate.greedy import Answer, Journal, Question, answer_all
from yayan.evaluate.intervals import bootstrap_ratio
from yayan.evaluate.long_prompts import LEAST_KEPT, PromptMaker
from yayan.evaluate.long_sections import longbench_tables
from yayan.evaluate.longbench_items import Item, find_tasks, read_items
from yayan.evaluate.longbench_metrics import LIBRARIES, METRICS, library
from yayan.evaluate.longbench_tasks import COLUMNS, LANGUAGES, TASKS, Task
from yayan.evaluate.results import Protocol, write_results
from yayan.progress import Progress
from yayan.stage import InputPath

PROTOCOL = Protocol("longbench", "official", 1)
FULL_SCORE = 100


@dataclass(frozen=True, kw_only=True)
class EvalLongbench(LongAnswers):
    """LongBench: question answering, summaries, few-shot learning, retrieval and code over long texts.

    The official prompts, limits and metrics, greedily. What is too long keeps its first and its last half; a chat model
    is asked in its template, but for the six tasks that are continued.
    """

    data: InputPath
    """Folder of TASK.jsonl files in the official form, compressed or not."""
    tasks: list[str] = field(default_factory=list)
    """Tasks to ask; all that the folder has by default."""
    length: int | None = None
    """Tokens of a prompt that are kept, template not counted; as many as the context has room for by default."""
    limit: int | None = None
    """Items of each task, from its beginning; all by default."""

    def check(self) -> None:
        super().check()
        refuse_less_than_one(limit=self.limit)
        for name in LIBRARIES:
            library(name)
        asked = look_at(self.model, self.context)
        for name, path in find_tasks(self.data, self.tasks).items():
            refuse_no_room(self.model, asked, TASKS[name], self.length)
            read_items(path, TASKS[name], self.limit)

    def run(self, work: Path) -> dict[str, object]:
        paths = find_tasks(self.data, self.tasks)
        data = {TASKS[name]: read_items(path, TASKS[name], self.limit) for name, path in paths.items()}
        asked = look_at(self.model, self.context)
        with Journal(work) as journal:
            with (
                self.open(self.context, self.slots) as engine,
                Progress("eval longbench", total=sum(map(len, data.values())), unit="items") as bar,
            ):
                bar.resume(len(journal.answers))
                questions = make_questions(
                    PromptMaker(engine), asked, self.length, data, set(journal.answers)
                )
                answer_all(engine, journal, questions, self.slots, bar)
            items = score_answers(data, journal.answers)
            settings = {
                "context": asked.context,
                "length": self.length,
                "chat": asked.chat,
                "limit": self.limit,
            }
            metrics = engine.origin | settings | summarise(items)
            write_results(work, PROTOCOL, self.model, metrics | {"items": items})
            journal.remove()
        return metrics

    def tell(self, record: dict) -> None:
        for table in longbench_tables(record["metrics"]):
            show(table)


@dataclass(frozen=True)
class Scored:
    """An item answered: 0 to 1, and what the score rests on."""

    task: str
    number: int
    score: float
    answer: str
    prompt_tokens: int
    truncated: bool
    tokens: int
    complete: bool


def refuse_no_room(
    model: object, asked: Asked, task: Task, length: int | None, template_tokens: int = 0
) -> None:
    """UserError unless some of a prompt, or the `length` that is asked for, fits into the context with its answer."""
    room = asked.context - task.new_tokens - template_tokens
    if room < LEAST_KEPT:
        what = f"{task.name} wants answers of {task.new_tokens} tokens, and the model sees {asked.context} at once"
        raise UserError(what, where=model, cure="name other tasks with --tasks")
    if length is not None and not LEAST_KEPT <= length <= room:
        what = f"prompts of {length} tokens: of {asked.context}, {task.name} leaves {room}"
        raise UserError(what, where="length", cure=f"give {LEAST_KEPT} to {room}, or leave it out")


def make_questions(
    maker: PromptMaker,
    asked: Asked,
    length: int | None,
    data: Mapping[Task, Sequence[Item]],
    answered: Set[str],
) -> Iterator[Question]:
    """The items that are not answered yet as prompts. Raises UserError if a template leaves too little room."""
    for task in data:
        refuse_no_room(
            maker.engine.name, asked, task, length, maker.template_tokens if asked.chat and task.chat else 0
        )
    for task, items in data.items():
        room, chat = asked.context - task.new_tokens, asked.chat and task.chat
        for item in items:
            if key_of(task, item) not in answered:
                text = task.prompt.format(context=item.context, input=item.input)
                prompt, truncated = maker.fit(text, chat=chat, room=room, length=length)
                yield Question(key_of(task, item), prompt, task.new_tokens, truncated)


def key_of(task: Task, item: Item) -> str:
    return f"{task.name}/{item.number}"


def score_answers(data: Mapping[Task, Sequence[Item]], answers: Mapping[str, Answer]) -> list[Scored]:
    """The best score of each answer over the item's right answers."""
    found = []
    total = sum(map(len, data.values()))
    with Progress("eval longbench: scores", total=total, unit="items") as bar:
        for task, items in data.items():
            for item in items:
                answer = answers[key_of(task, item)]
                part = task.scored_part(answer.text)
                score = max(METRICS[task.metric](part, right, item.classes) for right in item.answers)
                given = (answer.text, answer.prompt_tokens, answer.truncated, answer.tokens, answer.complete)
                found.append(Scored(task.name, item.number, score, *given))
                bar.advance()
    return found


def summarise(items: Sequence[Scored]) -> dict[str, object]:
    """Scores 0 to 100 of the tasks, with 95 % intervals over their items, and of the columns."""
    tasks: dict[str, dict[str, object]] = {}
    means: dict[str, float] = {}
    for name in dict.fromkeys(item.task for item in items):
        own = [item for item in items if item.task == name]
        scores = [FULL_SCORE * item.score for item in own]
        means[name] = sum(scores) / len(own)
        tasks[name] = {
            "column": TASKS[name].column,
            "metric": TASKS[name].metric,
            "items": len(own),
            "truncated": sum(item.truncated for item in own),
            "score": means[name],
            "interval": bootstrap_ratio(scores, [1.0] * len(own)),
        }
    return {"tasks": tasks, "languages": {language: columns(means, language) for language in LANGUAGES}}


def columns(scores: Mapping[str, float], language: str) -> dict[str, object]:
    """The six columns of the published tables for a language: each the mean of its tasks, and their own mean.

    None where a task of it was not asked: a mean of fewer tasks is another figure.
    """
    found: dict[str, float | None] = {}
    for column in COLUMNS:
        names = [t.name for t in TASKS.values() if t.column == column and t.language in (language, "code")]
        whole = all(name in scores for name in names)
        found[column] = sum(scores[name] for name in names) / len(names) if whole else None
    values = [value for value in found.values() if value is not None]
    average = sum(values) / len(values) if len(values) == len(COLUMNS) else None
    return {"columns": found, "average": average}
