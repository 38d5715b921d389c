"""Contract: the verbs and all their options. One that creeps in, or goes, must be written down in docs/reference.md."""

import dataclasses
from pathlib import Path

import pytest

from yayan.cli import VERBS, command_of
from yayan.reference import help_of, page
from yayan.stage import Command, Stage, verb_of

REFERENCE = Path(__file__).parents[2] / "docs" / "reference.md"


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_one_definition(verb: str) -> None:
    command = command_of(verb)
    assert issubclass(command, Command | Stage)
    assert verb_of(command) == verb
    assert getattr(command, "__dataclass_params__").frozen  # noqa: B009 (mypy does not know it)
    assert (command.__doc__ or "").strip()
    helps = help_of(command)
    for field in dataclasses.fields(command):
        assert helps[field.name].endswith("."), f"{field.name} needs a docstring below it"


def test_the_reference_page_is_up_to_date() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == page(), "python -m yayan.reference > docs/reference.md"
