"""Contract: the verbs and all their options. An option that creeps in, or goes, must be written down here as well."""

import dataclasses
import importlib
from pathlib import Path

import pytest

from yayan.cli import VERBS
from yayan.stage import Command, Stage, verb_of

LIST = Path(__file__).with_name("options.txt")


def command_of(verb: str) -> type:
    module, _, name = VERBS[verb][0].partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_one_definition(verb: str) -> None:
    command = command_of(verb)
    assert issubclass(command, Command | Stage)
    assert verb_of(command) == verb
    assert dataclasses.fields(command), "a verb is a dataclass"
    assert command.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert (command.__doc__ or "").strip()


def test_the_list_of_options_is_the_one_written_down() -> None:
    found = [
        f"{verb}: {' '.join(sorted(field.name for field in dataclasses.fields(command_of(verb))))}"
        for verb in VERBS
    ]
    assert LIST.read_text(encoding="utf-8").splitlines() == found
