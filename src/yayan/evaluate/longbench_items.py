"""LongBench's items in their official form: one TASK.jsonl a task, compressed or not."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from yayan.corpus.files import kind_of
from yayan.corpus.read import check_text, names_of, object_of
from yayan.corpus.records import Records
from yayan.errors import UserError
from yayan.evaluate.longbench_metrics import PARAGRAPHS, paragraph_number
from yayan.evaluate.longbench_tasks import TASKS, Task

KEYS = ("input", "context", "answers", "all_classes")


@dataclass(frozen=True)
class Item:
    """An item as it stands in its file; `number` counts from 0."""

    number: int
    input: str
    context: str
    answers: list[str]
    classes: list[str]
    """All classes of the task, of a classification; else nothing."""


def find_tasks(folder: Path, wanted: list[str]) -> dict[str, Path]:
    """The files of the tasks that are wanted (of all that are there if the list is empty), in the protocol's order.

    Raises UserError for a task that LongBench does not have or the folder lacks, and for a folder without any.
    """
    if not folder.is_dir():
        raise UserError(
            "there is no such folder", where=folder, cure="name the folder of the TASK.jsonl files"
        )
    files = {task_of(path): path for path in sorted(folder.iterdir()) if kind_of(path) == ".jsonl"}
    there = [name for name in TASKS if name in files]
    for name in wanted:
        if name not in TASKS:
            near = difflib.get_close_matches(name, TASKS, 1)
            cure = f"did you mean {near[0]}?" if near else f"its tasks are {', '.join(TASKS)}"
            raise UserError(f"LongBench has no task {name}", cure=cure)
        if name not in files:
            cure = f"it has {', '.join(there) or 'none'}"
            raise UserError(f"there is no {name}.jsonl in this folder", where=folder, cure=cure)
    if not there:
        cure = "name the folder of multifieldqa_zh.jsonl and its like, compressed or not"
        raise UserError("this folder holds no task of LongBench", where=folder, cure=cure)
    return {name: files[name] for name in there if name in wanted or not wanted}


def task_of(path: Path) -> str:
    """`lcc` for `lcc.jsonl.xz`."""
    return path.name.partition(".jsonl")[0]


def read_items(path: Path, task: Task, limit: int | None) -> list[Item]:
    """The items of a task's file, from its beginning. Raises UserError (file and line) for one that is not whole."""
    items: list[Item] = []
    for item in items_of(path, task):
        if len(items) == limit:
            break
        items.append(item)
    if not items:
        raise UserError("there is no item in this file", where=path, cure="fetch it again, or leave it out")
    return items


def items_of(path: Path, task: Task) -> Iterator[Item]:
    number = 0
    for record in Records(path):
        where = f"{path}:{record.line}"
        row = object_of(record, where)
        if row is not None:
            yield make_item(row, task, number, where)
            number += 1


def make_item(row: dict, task: Task, number: int, where: str) -> Item:
    """A row of the official form as an item; UserError that says what is wrong with it."""
    for key in KEYS:
        if key not in row:
            raise UserError(
                f"an item without {key!r}, it has {names_of(row)}", where=where, cure="mend the file"
            )
    if row.get("dataset", task.name) != task.name:
        raise UserError(f"this item is one of {row['dataset']}", where=where, cure=f"keep {task.name} apart")
    classes = texts(row["all_classes"] or [], "all_classes", where)
    answers = texts(row["answers"], "answers", where)
    if not answers:
        raise UserError("an item without a right answer", where=where, cure="mend the file")
    if task.metric == "classification" and not classes:
        raise UserError("an item without classes", where=where, cure="name them in all_classes")
    if task.metric in PARAGRAPHS and not all(paragraph_number(answer, task.metric) for answer in answers):
        what = f"the right answer {answers} names no paragraph"
        raise UserError(what, where=where, cure=f"write it as {PARAGRAPHS[task.metric]}")
    context, question = (text_of(row[key], key, where) for key in ("context", "input"))
    return Item(number, question, context, answers, classes)


def texts(value: object, name: str, where: str) -> list[str]:
    if not isinstance(value, list):
        raise UserError(f"{name!r} is a {type(value).__name__}", where=where, cure="write a list of texts")
    return [text_of(item, name, where) for item in value]


def text_of(value: object, name: str, where: str) -> str:
    """A text as it is: NUL characters stand in the official data (passage_retrieval_zh, its 22nd item)."""
    check_text(value.replace("\0", "") if isinstance(value, str) else value, name, where)
    return str(value)
