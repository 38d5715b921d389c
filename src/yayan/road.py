"""`yayan run`: walk a recipe step by step, then tell what came of it."""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from yayan import lineage
from yayan.errors import UserError, WorkError
from yayan.inputs import is_there
from yayan.progress import format_seconds
from yayan.ranks import leads
from yayan.recipe import Recipe, find_recipe, read_recipe, refuse_unknown, stages_of
from yayan.stage import (
    Command,
    Stage,
    differences,
    execute,
    input_paths,
    question_of,
)


@dataclass(frozen=True, kw_only=True)
class Run(Command):
    """Walk a whole road from a recipe; finished steps are not repeated."""

    recipe: str = field(kw_only=False)
    """A recipe file, or the name of a built-in one (quickstart)."""
    changes: list[str] = field(kw_only=False, default_factory=list)
    """Changes of the recipe: NAME=VALUE of what is given, STEP.OPTION=VALUE, out=FOLDER."""
    fast: bool = False
    """Make the changes of the recipe's `fast` section: the whole road in less time, with less to show."""
    again: bool = False
    """Replace finished steps whose options or inputs have changed."""

    together: ClassVar[bool] = True

    def run(self) -> None:
        recipe = read_recipe(find_recipe(self.recipe), self.changes, fast=self.fast)
        stages = stages_of(recipe)
        refuse_missing_inputs(stages)
        records = walk(stages, again=self.again)
        if not leads():
            return
        failures = unmet(recipe, records)
        if self.json:
            print(json.dumps({"steps": records, "unmet": failures}, ensure_ascii=False))
        else:
            tell(recipe, stages, records)
        if failures:
            raise WorkError("; ".join(failures), cure="the steps are finished, look at their records")


def refuse_missing_inputs(stages: dict[str, Stage]) -> None:
    """UserError, before the first step runs, if an input neither exists nor is made by an earlier step."""
    made: list[Path] = []
    for step, stage in stages.items():
        for path in input_paths(stage):
            if not is_there(path) and not any(path == out or out in path.parents for out in made):
                raise UserError(
                    "there is no such file or folder", where=f"{step}: {path}", cure="check the path"
                )
        made.append(stage.out)


def walk(stages: dict[str, Stage], *, again: bool) -> dict[str, dict]:
    """Carry out the steps in order -> their records."""
    records = {}
    for number, (step, stage) in enumerate(stages.items(), start=1):
        mark = f"[{number}/{len(stages)}] {step}: "
        if again and stage.out.exists():
            record = lineage.read(stage.out)
            stage = replace(stage, again=record is None or bool(differences(record, question_of(stage))))

        def say(line: str, mark: str = mark) -> None:
            print(mark + line.partition(": ")[2], file=sys.stderr, flush=True)

        records[step] = execute(stage, say)
    return records


def lookup(records: dict[str, dict], dotted: str) -> Any:
    """`STEP.a.b` is records[STEP]["metrics"]["a"]["b"]."""
    step, *keys = dotted.split(".")
    refuse_unknown(step, records, where="expect")
    value: Any = records[step]["metrics"]
    for key in keys:
        refuse_unknown(key, value if isinstance(value, dict) else [], where=f"expect: {dotted}")
        value = value[key]
    return value


def unmet(recipe: Recipe, records: dict[str, dict]) -> list[str]:
    """Sentences for the expectations that the road did not meet."""
    failures = []
    for expected in recipe.expect:
        value, reference = lookup(records, expected["value"]), lookup(records, expected["of"])
        bound = expected["at_most"] * reference
        if not value <= bound:
            failures.append(
                f"{expected['value']} is {value:.3f}, more than {expected['at_most']} times the {reference:.3f} "
                f"of {expected['of']}"
            )
    return failures


def tell(recipe: Recipe, stages: dict[str, Stage], records: dict[str, dict]) -> None:
    """The end of a road on the terminal: the table of the steps, answers, what to know, what to type next."""
    from yayan.evaluate.words import describe

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in ("step", "time", "what came of it"):
        table.add_column(column)
    for step, record in records.items():
        table.add_row(step, format_seconds(record["seconds"]), escape(describe(record)))
    console.print(table)
    for step, stage in stages.items():
        if records[step]["stage"] == "eval samples":
            for item in json.loads((stage.out / "results.json").read_text(encoding="utf-8"))["items"]:
                console.print(f"> {escape(item['prompt'])}\n{escape(item['answer'])}\n", soft_wrap=True)
    if recipe.closing:
        console.print(escape(recipe.closing) + "\n", soft_wrap=True)
    for line in next_commands(stages, records):
        console.print(line, soft_wrap=True)


def next_commands(stages: dict[str, Stage], records: dict[str, dict]) -> Iterable[str]:
    """What to type now: chat, serve, look at the report."""
    for step, stage in stages.items():
        if records[step]["stage"] == "gguf":
            best = max(sorted(stage.out.glob("*.gguf")), key=lambda path: path.stat().st_size)
            yield f"chat with it:    yayan chat {best}"
            yield f"serve it:        yayan serve {best}"
        if records[step]["stage"] == "eval report":
            yield f"see the report:  {stage.out / 'report.html'}"
