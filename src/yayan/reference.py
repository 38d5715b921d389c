"""The reference page of all verbs and options, made from the dataclasses alone."""

import dataclasses
import inspect
import types
import typing

from cyclopts import App

from yayan.cli import VERBS, command_of
from yayan.stage import Stage

HEAD = """# Verbs and options

Made by `python -m yayan.reference > docs/reference.md`; a test holds this page against the code. On the command line
an option is written `--learning-rate 2e-4`, in a recipe `learning_rate: 2e-4`. Every verb that makes a folder also
takes `--out FOLDER` (a recipe names it itself), `--again` (make OUT anew even if it is finished) and `--json` (print
the record of OUT). `--debug` anywhere shows where an error came from. Exit codes: 0 done, 1 the work failed, 2 the
question was wrong, 130 interrupted.
"""


def help_of(command: type) -> dict[str, str]:
    """Field -> the docstring below it, as the parser of the command line reads it."""
    app = App()
    app.default(command)
    arguments = app.assemble_argument_collection(parse_docstring=True)
    return {argument.field_info.name: argument.parameter.help or "" for argument in arguments}


def type_words(hint: object) -> str:
    """A type in a few words: `path`, `list of path`, `lora or full`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return type_words(arguments[0])
    if origin is typing.Literal:
        return " or ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        words = [type_words(item) for item in arguments if item is not type(None)]
        return " or ".join(dict.fromkeys(words))
    if origin is list:
        return f"several: {type_words(arguments[0])}"
    if origin is dict:
        return f"by name: {type_words(arguments[1])}"
    names = {"Path": "path", "str": "text", "int": "number", "float": "number", "bool": "yes or no"}
    return names[getattr(hint, "__name__", "")]


def default_words(field: dataclasses.Field) -> str:
    """`required`, nothing, or the default value."""
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is not dataclasses.MISSING:
        value = field.default
    else:
        return "required"
    if value is None or value == [] or value == {} or value is False:
        return ""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def page() -> str:
    """The whole page, Markdown."""
    common = {field.name for field in dataclasses.fields(Stage)}
    parts = [HEAD]
    for verb in VERBS:
        command = command_of(verb)
        hints = typing.get_type_hints(command, include_extras=True)
        helps = help_of(command)
        parts += [f"## {verb}\n", inspect.cleandoc(command.__doc__ or "") + "\n"]
        parts += ["| option | value | default | |", "| --- | --- | --- | --- |"]
        for field in dataclasses.fields(command):
            if issubclass(command, Stage) and field.name in common:
                continue
            cells = (
                f"`{field.name}`",
                type_words(hints[field.name]),
                default_words(field),
                helps[field.name],
            )
            parts.append(
                "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
            )
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
