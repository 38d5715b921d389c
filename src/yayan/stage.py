"""What a stage is: one frozen dataclass whose fields are its options, and the runner that carries it out.

The command line, the recipe keys and the reference page are made from the dataclass alone. The runner works in
`OUT.partial`, keyed by options and inputs; the same question re-enters it after a crash, another one starts it anew.
It becomes `OUT` when complete. A finished `OUT` is skipped only if its `yayan.json` answers the same question.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args, get_type_hints

from yayan import __version__, lineage, ranks
from yayan.errors import UserError
from yayan.inputs import STANDARD_INPUT, real_path
from yayan.partial import finish, partial_folder, sentence_for_a_full_disk
from yayan.patterns import expand
from yayan.progress import format_seconds

SECRET_NAMES = {"api_key"}
WITHOUT_EFFECT = {"workers"}  # options that change how fast OUT is made, and nothing in it


class Input:
    """Marks a path whose content, not its name, is part of the question."""


InputPath = Annotated[Path, Input()]


@dataclass(frozen=True, kw_only=True)
class Command:
    """A verb: its fields are its options, the docstring under a field is its help."""

    json: bool = False
    """Print the result as one JSON object on standard output."""

    together: ClassVar[bool] = False  # of `torchrun`'s processes all run it, else the first alone

    def run(self) -> None:
        """Do the work of a verb that makes no folder."""
        raise TypeError(f"{type(self).__name__} has no run()")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A verb that reads finished folders and makes one new folder."""

    out: Path
    """Folder to write."""
    again: bool = False
    """Make OUT anew even if it is finished."""
    json: bool = False
    """Print the record of OUT (its yayan.json) on standard output."""

    together: ClassVar[bool] = False  # of `torchrun`'s processes all do its work, else the first alone

    def check(self) -> None:
        """Cheap checks of options and inputs; raises UserError before anything is written."""

    def run(self, work: Path) -> dict[str, object]:
        """Write the artefact into `work` and return its metrics."""
        raise TypeError(f"{type(self).__name__} has no run()")

    def tell(self, record: dict) -> None:
        """Print what came of it on standard output: at the end of the verb's own command line, without --json."""


NOT_THE_QUESTION = {field.name for field in fields(Stage)}


def verb_of(command: type[Command] | type[Stage]) -> str:
    """`Grow` is `grow`, `EvalBits` is `eval bits`."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", command.__name__).lower()


def input_fields(stage: type[Stage]) -> list[str]:
    """Names of the fields that are paths of inputs: `InputPath`, or a list, dict or option of it."""

    def marked(hint: object) -> bool:
        return any(isinstance(arg, Input) or marked(arg) for arg in get_args(hint))

    hints = get_type_hints(stage, include_extras=True)
    return [field.name for field in fields(stage) if marked(hints[field.name])]


def map_paths(value: Any, function: Callable[[Path], Any]) -> Any:
    """Apply a function to each path of an input field, keeping its shape (path, list, dict, None)."""
    if value is None:
        return None
    if isinstance(value, dict):
        return {name: map_paths(item, function) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_paths(item, function) for item in value]
    return function(Path(value))


def with_paths(stage: Stage, function: Callable[[Path], Path]) -> Stage:
    """The stage with other paths of its inputs."""
    given = {name: getattr(stage, name) for name in input_fields(type(stage))}
    return replace(stage, **{name: map_paths(value, function) for name, value in given.items()})


def expand_patterns(stage: Stage) -> Stage:
    """The stage with what patterns match in their place, in fields that are lists: each is an input of its own.

    Raises UserError if a pattern matches nothing, or if standard input is named twice.
    """
    if input_paths(stage).count(STANDARD_INPUT) > 1:
        raise UserError("standard input is named twice, and can be read once", where="-", cure="name it once")
    given = {name: getattr(stage, name) for name in input_fields(type(stage))}
    lists = {name: value for name, value in given.items() if isinstance(value, list | tuple)}
    found: dict[str, Any] = {
        name: [item for path in value for item in expand(Path(path))] for name, value in lists.items()
    }
    return replace(stage, **found)


def resolve_inputs(stage: Stage) -> Stage:
    """The stage with the paths of real files in the place of patterns, `sample:NAME` and `-`."""
    return with_paths(expand_patterns(stage), real_path)


def input_paths(stage: Stage) -> list[Path]:
    """All paths of a stage's inputs."""
    paths: list[Path] = []
    for name in input_fields(type(stage)):
        map_paths(getattr(stage, name), paths.append)
    return paths


def question_of(stage: Stage) -> dict[str, object]:
    """What a folder must answer to be taken for finished: verb, options, and the inputs' content."""
    stage = expand_patterns(stage)
    inputs = input_fields(type(stage))
    options = {
        field.name: getattr(stage, field.name)
        for field in fields(stage)
        if field.name not in NOT_THE_QUESTION | SECRET_NAMES | WITHOUT_EFFECT and field.name not in inputs
    }

    def entry(path: Path) -> dict[str, str]:
        return {"path": str(path), "sha256": lineage.sha256_of(real_path(path))}

    return make_question(
        type(stage), options, {name: map_paths(getattr(stage, name), entry) for name in inputs}
    )


def make_question(
    command: type[Command] | type[Stage], options: dict[str, Any], inputs: dict[str, Any]
) -> dict[str, Any]:
    """What was asked, as `differences` compares it: options by name, inputs by their content; as JSON gives it back."""
    record = {"stage": verb_of(command), "options": options, "inputs": inputs}
    return json.loads(json.dumps(record, default=str))


def differences(record: dict, question: dict) -> list[str]:
    """What another question was asked, in words: `size 4096 instead of 2048`, `another corpus`."""
    if record["stage"] != question["stage"]:
        return [f"it was made by {record['stage']}"]
    found = []
    for name in sorted({*record["options"], *question["options"]}):
        old, new = record["options"].get(name), question["options"].get(name)
        if old != new:
            found.append(f"{name} was {old}, is {new}")

    def hashes(entry: Any) -> Any:
        if isinstance(entry, dict) and "sha256" not in entry:
            return {name: hashes(item) for name, item in entry.items()}
        return [hashes(item) for item in entry] if isinstance(entry, list) else entry and entry["sha256"]

    for name in sorted({*record["inputs"], *question["inputs"]}):
        if hashes(record["inputs"].get(name)) != hashes(question["inputs"].get(name)):
            found.append(f"{name} is another one")
    return found


def execute(stage: Stage, say: Callable[[str], None] | None = None) -> dict:
    """Carry out a stage, or find it done, and return its record (`yayan.json`).

    Raises UserError before anything is written if the question is wrong; after any other end (error, full disk,
    interrupt, kill) the same call goes on. Of several ranks the first does this, and the others follow it.
    """
    if not ranks.leads():
        follow(stage)
        return {}
    tell = say or (lambda line: print(line, file=sys.stderr))
    verb = verb_of(type(stage))
    stage = expand_patterns(stage)
    question = question_of(stage)
    record = finished_record(stage.out, question, again=stage.again)
    if record is not None:
        tell(f"{verb}: {stage.out} is finished, nothing to do")
        ranks.tell(None)
        return record
    resolved = resolve_inputs(stage)
    refuse_output_on_input(resolved)
    resolved.check()
    with partial_folder(stage.out, question) as work:
        tell(f"{verb}: begins")
        started, clock = datetime.now(UTC), time.monotonic()
        with sentence_for_a_full_disk(stage.out):
            ranks.tell(str(work) if stage.together else None)
            metrics = resolved.run(work)
            record = make_record(resolved, question, metrics, started, time.monotonic() - clock, work)
            lineage.write(work, record)
            finish(work, stage.out)
    tell(f"{verb}: {stage.out} made in {format_seconds(record['seconds'])}")
    return record


def follow(stage: Stage) -> None:
    """Do this rank's part of a stage, if the first rank says that it is to be done together."""
    work = ranks.hear()
    if work is not None:
        with redirect_stderr(StringIO()):  # the first one tells
            resolve_inputs(expand_patterns(stage)).run(Path(work))


def finished_record(out: Path, question: dict, *, again: bool) -> dict | None:
    """The record of a finished OUT that answers this question, None if OUT is to be made; else UserError."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise UserError("the output is a file", where=out, cure="name a folder that does not exist yet")
    if not any(out.iterdir()):
        return None
    record = lineage.read(out)
    if record is None:
        raise UserError("the output exists and yayan did not make it", where=out, cure="name another folder")
    if again:
        return None
    found = differences(record, question)
    if found:
        raise UserError(
            f"the output exists and answers another question: {'; '.join(found)}",
            where=out,
            cure="name another folder, or pass --again to replace it",
        )
    return record


def refuse_output_on_input(stage: Stage) -> None:
    """An output must not lie on, inside or around an input, nor inside another finished output."""
    out = stage.out.resolve()
    for folder in out.parents:
        if (folder / lineage.RECORD_NAME).is_file():
            what = f"the output would lie inside the finished folder {folder}"
            raise UserError(what, where=stage.out, cure="move it")
    for path in input_paths(stage):
        there = path.resolve()
        if out == there or out in there.parents or (there.is_dir() and there in out.parents):
            raise UserError(f"the output would touch its own input {path}", where=stage.out, cure="move it")


def make_record(
    stage: Stage, question: dict, metrics: dict, started: datetime, seconds: float, work: Path
) -> dict:
    """The whole `yayan.json` (its keys are a contract: lineage.RECORD_KEYS)."""
    licences = {name for path in input_paths(stage) for name in lineage.licences_of(path)}
    template = work / "chat_template.jinja"
    return {
        "format": lineage.RECORD_FORMAT,
        "stage": question["stage"],
        "version": __version__,
        "options": question["options"],
        "inputs": question["inputs"],
        "tokenizer": tokenizer_hash(work) or metrics.get("tokenizer"),
        "template": lineage.sha256_of(template) if template.exists() else metrics.get("template"),
        "licences": sorted(licences),
        "metrics": metrics,
        "seconds": round(seconds, 3),
        "started": started.isoformat(timespec="seconds"),
        "machine": lineage.machine(),
    }


def tokenizer_hash(folder: Path) -> str | None:
    """What decides the ids of a folder's tokenizer, the same hash that shards carry; None if it has none."""
    if not (folder / "tokenizer.json").exists():
        return None
    from yayan.tokenizer import load_tokenizer

    return load_tokenizer(folder).sha256
