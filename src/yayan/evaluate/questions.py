"""Four-choice questions in the forms in which C-Eval is handed around: a folder of CSV files, or two jsonl files.

val/SUBJECT_val.csv   dev/SUBJECT_dev.csv   (id,question,A,B,C,D,answer[,explanation])
val.jsonl             dev.jsonl             (the same keys and `subject`; compressed or not)
subject_mapping.json  {"law": ["Law", "法学", "Humanities"]}, for subjects that C-Eval does not have
"""

import csv
import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from yayan.corpus.files import BROKEN, kind_of, open_bytes
from yayan.errors import UserError
from yayan.evaluate.subjects import CEVAL_SUBJECTS

LETTERS = ("A", "B", "C", "D")
COLUMNS = ("question", *LETTERS, "answer")


@dataclass(frozen=True)
class Question:
    """A question as it stands in its file; `number` counts from 0 within its subject and split."""

    subject: str
    number: int
    question: str
    options: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Subject:
    """A subject with its Chinese name, the questions to be asked and the worked examples."""

    key: str
    name: str
    group: str
    questions: list[Question]
    examples: list[Question]


def read_subjects(folder: Path, wanted: list[str], shots: int) -> list[Subject]:
    """The subjects of a folder that are wanted (all if the list is empty), sorted, each with `shots` examples.

    Raises UserError for an unknown subject, a missing column or file, an answer outside A-D, too few examples.
    """
    questions, examples = read_split(folder, "val"), read_split(folder, "dev") if shots else {}
    names = read_names(folder)
    for key in wanted:
        if key not in questions:
            near = difflib.get_close_matches(key, questions, 1)
            cure = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(questions))}"
            raise UserError(f"there is no subject {key}", where=folder, cure=cure)
    subjects = []
    for key in sorted(set(wanted or questions)):
        if key not in names:
            raise UserError(
                f"subject {key} has no Chinese name", where=folder, cure="add subject_mapping.json"
            )
        found = examples.get(key, [])
        if len(found) < shots:
            cure = f"pass --shots {len(found)} or less"
            what = f"{key} has {len(found)} worked examples (dev), {shots} are asked for"
            raise UserError(what, where=folder, cure=cure)
        subjects.append(Subject(key, *names[key], questions[key], found[:shots]))
    return subjects


def read_names(folder: Path) -> dict[str, tuple[str, str]]:
    """Chinese name and group by subject: C-Eval's own, and what `subject_mapping.json` adds or changes."""
    path = folder / "subject_mapping.json"
    if not path.is_file():
        return CEVAL_SUBJECTS
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))
        return CEVAL_SUBJECTS | {key: (str(name), str(group)) for key, (_, name, group) in mapping.items()}
    except (ValueError, AttributeError, TypeError) as error:
        cure = 'write {"subject": ["English name", "Chinese name", "group"]}'
        raise UserError("this mapping of subjects cannot be read", where=path, cure=cure) from error


def read_split(folder: Path, split: str) -> dict[str, list[Question]]:
    """All questions of `val` or `dev` by subject; UserError if there is none."""
    questions: dict[str, list[Question]] = {}
    for subject, row, place in rows_of(folder, split):
        own = questions.setdefault(subject, [])
        own.append(make_question(subject, len(own), row, place))
    if not questions:
        cure = f"give a folder with {split}/SUBJECT_{split}.csv or {split}.jsonl"
        raise UserError(f"there is no question of the split {split}", where=folder, cure=cure)
    return questions


def rows_of(folder: Path, split: str) -> Iterator[tuple[str, dict, str]]:
    """(subject, row, place) of each question of a split, whichever form the folder has."""
    for path in sorted((folder / split).glob(f"*_{split}.csv")):
        for row, place in csv_rows(path):
            yield path.name.removesuffix(f"_{split}.csv"), row, place
    for path in sorted(path for path in folder.glob(f"{split}.*") if kind_of(path) == ".jsonl"):
        for row, place in jsonl_rows(path):
            if not isinstance(row.get("subject"), str):
                raise UserError("this question names no subject", where=place, cure='add the key "subject"')
            yield row["subject"], row, place


def csv_rows(path: Path) -> Iterator[tuple[dict, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            for row in reader:
                yield row, f"{path}:{reader.line_num}"
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"this file is no UTF-8 CSV, {error}", where=path, cure="save it as UTF-8") from error


def jsonl_rows(path: Path) -> Iterator[tuple[dict, str]]:
    try:
        with open_bytes(path) as stream:
            for number, line in enumerate(stream, 1):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError("this line is no JSON object", where=f"{path}:{number}", cure="mend it")
                yield row, f"{path}:{number}"
    except (ValueError, OSError, *BROKEN) as error:
        raise UserError(f"this file is no UTF-8 jsonl, {error}", where=path, cure="fetch it again") from error


def make_question(subject: str, number: int, row: dict, place: str) -> Question:
    """A row with all its columns as a question; UserError that names what it lacks."""
    for column in COLUMNS:
        if not isinstance(row.get(column), str):
            raise UserError(
                f"a question without {column}", where=place, cure=f"it needs {', '.join(COLUMNS)}"
            )
    answer = row["answer"].strip()
    if answer not in LETTERS:
        raise UserError(f"the answer {answer!r} is none of A, B, C, D", where=place, cure="correct the file")
    return Question(subject, number, row["question"], tuple(row[letter] for letter in LETTERS), answer)
