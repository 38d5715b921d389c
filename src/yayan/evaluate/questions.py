"""Four-choice questions in the forms in which they are handed around: a folder or a zip archive, of CSV or of jsonl.

C-Eval   val/SUBJECT_val.csv    dev/, test/       id,question,A,B,C,D,answer[,explanation]
CMMLU    test/SUBJECT.csv       dev/              ,Question,A,B,C,D,Answer
MMLU     test/SUBJECT_test.csv  dev/              question,A,B,C,D,answer, in this order and without a header
any      val.jsonl  test.jsonl  dev.jsonl         the keys of C-Eval and `subject`; compressed or not
subject_mapping.json  {"law": ["Law", "法学", "Humanities"]}, for subjects that the benchmark does not have
"""

import csv
import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from yayan.errors import UserError
from yayan.evaluate.archive import File, files_in
from yayan.evaluate.benchmarks import Benchmark
from yayan.evaluate.subjects import Names

LETTERS = ("A", "B", "C", "D")
COLUMNS = ("question", *LETTERS)
MAPPING_NAME = "subject_mapping.json"
ALIASES = {"Question": "question", "Answer": "answer"}


@dataclass(frozen=True)
class Question:
    """A question as it stands in its file; `number` counts from 0 within its subject and split.

    `answer` is None where nobody is told (C-Eval's test split).
    """

    subject: str
    number: int
    question: str
    options: tuple[str, ...]
    answer: str | None


@dataclass(frozen=True)
class Subject:
    """A subject with its name in prompts, its groups, the questions to be asked and the worked examples."""

    key: str
    name: str
    groups: tuple[str, ...]
    questions: list[Question]
    examples: list[Question]


def read_subjects(
    benchmark: Benchmark, data: Path, wanted: list[str], shots: int, split: str
) -> list[Subject]:
    """The subjects of a folder or archive that are wanted (all if the list is empty), sorted, with `shots` examples.

    Raises UserError for an unknown subject, a missing column or file, an answer outside A-D, too few examples.
    """
    files = files_in(data)
    told = not (benchmark.task == "ceval" and split == "test")
    questions = read_split(benchmark, files, data, split, told=told)
    examples = read_split(benchmark, files, data, "dev") if shots else {}
    names = benchmark.names | read_names(files, benchmark.name_in_mapping)
    for key in wanted:
        if key not in questions:
            near = difflib.get_close_matches(key, questions, 1)
            cure = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(questions))}"
            raise UserError(f"there is no subject {key}", where=data, cure=cure)
    subjects = []
    for key in sorted(set(wanted or questions)):
        if key not in names:
            what = f"subject {key} has no name for prompts"
            raise UserError(what, where=data, cure="add subject_mapping.json")
        found = examples.get(key, [])
        if len(found) < shots:
            cure = f"pass --shots {len(found)} or less"
            what = f"{key} has {len(found)} worked examples (dev), {shots} are asked for"
            raise UserError(what, where=data, cure=cure)
        subjects.append(Subject(key, *names[key], questions[key], found[:shots]))
    return subjects


def read_names(files: dict[str, File], column: int) -> Names:
    """Names and groups that `subject_mapping.json` adds or changes."""
    file = next((file for name, file in files.items() if PurePosixPath(name).name == MAPPING_NAME), None)
    if file is None:
        return {}
    try:
        with file.open() as stream:
            mapping = json.loads(stream.read())
        rows = {key: (names, str(group)) for key, (*names, group) in mapping.items()}
        return {key: (str(names[column]), (group,)) for key, (names, group) in rows.items()}
    except (ValueError, AttributeError, TypeError, IndexError) as error:
        cure = 'write {"subject": ["English name", "Chinese name", "group"]}'
        raise UserError("this mapping of subjects cannot be read", where=file.place, cure=cure) from error


def read_split(
    benchmark: Benchmark, files: dict[str, File], data: Path, split: str, *, told: bool = True
) -> dict[str, list[Question]]:
    """All questions of `val`, `test` or `dev` by subject; UserError if there is none, or none in one of its files."""
    questions: dict[str, list[Question]] = {}
    sources: dict[str, str] = {}
    for file, subject in files_of_split(files, split):
        rows = csv_rows(file, benchmark) if subject else jsonl_rows(file)
        count = 0
        for count, (row, place) in enumerate(rows, 1):  # noqa: B007
            key = subject or row.get("subject")
            if not isinstance(key, str):
                raise UserError("this question names no subject", where=place, cure='add the key "subject"')
            if sources.setdefault(key, file.place) != file.place:
                what = f"{key} stands in two files, there is {sources[key]} as well"
                raise UserError(what, where=file.place, cure="remove one")
            own = questions.setdefault(key, [])
            own.append(make_question(key, len(own), row, place, told=told))
        if not count:
            raise UserError("there is no question in this file", where=file.place, cure="fetch it again")
    if not questions:
        cure = f"give a folder or a zip archive with {split}/SUBJECT_{split}.csv or {split}.jsonl"
        raise UserError(f"there is no question of the split {split}", where=data, cure=cure)
    return questions


def files_of_split(files: dict[str, File], split: str) -> Iterator[tuple[File, str]]:
    """The files of a split with the subject of a CSV file, nothing for a file of all subjects."""
    tables = re.compile(rf"(?:.*/)?{split}/([^/]+?)(?:_{split})?\.csv")
    lines = re.compile(rf"(?:.*/)?{split}\.jsonl(\.\w+)?")
    for name, file in files.items():
        if table := tables.fullmatch(name):
            yield file, table[1]
        elif lines.fullmatch(name):
            yield file, ""


def csv_rows(file: File, benchmark: Benchmark) -> Iterator[tuple[dict, str]]:
    with file.open_text() as stream:
        reader = csv.reader(stream)
        columns: list[str] = [] if benchmark.has_csv_header else [*COLUMNS, "answer"]
        for cells in reader:
            place = f"{file.place}:{reader.line_num}"
            if not columns:
                columns = cells
            elif cells and len(cells) > len(columns):
                what = f"this row has {len(cells)} cells instead of {len(columns)}"
                raise UserError(what, where=place, cure="put cells with a comma in quotes")
            elif cells:
                yield dict(zip(columns, cells, strict=False)), place


def jsonl_rows(file: File) -> Iterator[tuple[dict, str]]:
    with file.open() as stream:
        for number, line in enumerate(stream, 1):
            place = f"{file.place}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError("this line is no JSON in UTF-8", where=place, cure="mend it") from error
            if not isinstance(row, dict):
                raise UserError("this line is no JSON object", where=place, cure="mend it")
            yield row, place


def make_question(subject: str, number: int, row: dict, place: str, *, told: bool) -> Question:
    """A row with all its columns as a question; UserError that names what it lacks."""
    row = {ALIASES.get(name, name): value for name, value in row.items()}
    needed = (*COLUMNS, "answer") if told else COLUMNS
    for column in needed:
        if not isinstance(row.get(column), str):
            cure = f"it needs {', '.join(needed)}"
            raise UserError(f"a question without {column}", where=place, cure=cure)
    answer = str(row.get("answer") or "").strip() or None
    if (told or answer) and answer not in LETTERS:
        what = f"the answer {answer or ''!r} is none of A, B, C, D"
        raise UserError(what, where=place, cure="correct the file")
    return Question(subject, number, row["question"], tuple(row[letter] for letter in LETTERS), answer)
