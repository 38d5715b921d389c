"""A recipe: a whole road in one YAML file.

    about: From an English model to a Chinese one.
    out: runs/my-road                     # the folder of the road; each step writes OUT/STEP
    given: {base: models/llama, zh: [texts/zh.jsonl]}
    road:
      vocab: {base: $base, corpus: $zh, size: 40960}
      grow: {model: $base, tokenizer: $vocab}
      pack-zh: {tokenizer: $vocab, corpus: $zh}
    fast: {vocab.size: 33000}             # changes that --fast makes
    expect:                               # else the run ends with exit code 1
      - {value: sft.loss_last, at_most: 0.5, of: sft.loss_first}
    closing: What the reader should know of the result.

A step is named VERB or VERB-LABEL; its keys are the options of the verb, read by the parser of the command line.
`$name` is what `given` holds under that name, or the folder of an earlier step; `$name/FILE` is a file in it, and `$*`
is the folders of all earlier steps.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import yaml

from yayan.cli import VERBS, command_of, parse
from yayan.errors import UserError
from yayan.inputs import SAMPLE_PREFIX, sample_path
from yayan.stage import Stage

RECIPE_KEYS = ("about", "out", "given", "road", "fast", "expect", "closing")
EXPECTATION = {"value", "at_most", "of"}
STEP = re.compile(r"[a-z][\w-]*")
OWN_OPTIONS = ("out", "again", "json")
REFERENCE = re.compile(r"\$(?P<name>[\w-]+|\*)(?P<rest>/.*)?")


class Mapping(dict):
    """A YAML mapping that knows the line of each key."""

    lines: dict[Any, int]


class Loader(yaml.SafeLoader):
    """Safe YAML whose mappings know their lines and refuse a key that stands twice."""


def _construct_mapping(loader: Loader, node: yaml.MappingNode) -> Mapping:
    mapping = Mapping()
    mapping.lines = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node)
        line = key_node.start_mark.line + 1
        if not isinstance(key, str | int | float | None):
            raise UserError(f"{key} is no key", where=f"line {line}", cure="write a word before the colon")
        if key in mapping:
            raise UserError(
                f"{key} stands here twice", where=f"line {line}", cure="give each step its own label"
            )
        mapping[key] = loader.construct_object(value_node, deep=True)
        mapping.lines[key] = line
    return mapping


Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


@dataclass(frozen=True)
class Recipe:
    """A recipe as it was written, with the changes of the command line; nothing is resolved yet."""

    path: Path
    about: str
    out: Path
    given: dict[str, Any]
    road: dict[str, dict[str, Any]]
    lines: dict[str, int]
    expect: list[dict[str, Any]]
    closing: str


def find_recipe(name: str) -> Path:
    """A file, or a built-in recipe by its name. Raises UserError naming the built-in ones."""
    if Path(name).is_file():
        return Path(name)
    folder = sample_path(Path(SAMPLE_PREFIX))
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name in known:
        return folder / f"{name}.yaml"
    raise UserError("there is no such recipe", where=name, cure=f"name a file, or one of {', '.join(known)}")


def read_recipe(path: Path, changes: Iterable[str] = (), *, fast: bool = False) -> Recipe:
    """Read a recipe and apply `key=value` changes. Raises UserError with file and line for what it cannot be."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except UnicodeDecodeError as error:
        raise UserError("the recipe is not UTF-8", where=path, cure="save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(
            f"this is not YAML, {error.problem}", where=f"{path}, line {line}", cure="mend it"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"this is not YAML, {one_line(error)}", where=path, cure="mend it") from error
    except UserError as error:
        raise UserError(f"{path}, {error}") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("road"), Mapping):
        raise UserError("a recipe is a mapping with a `road`", where=path, cure="see recipes/ for examples")
    for key in content:
        refuse_unknown(key, RECIPE_KEYS, where=f"{path}, line {content.lines[key]}")
    refuse_bad_form(content, path)
    if fast and "fast" not in content:
        raise UserError("this recipe has no `fast` section", where=path, cure="run it without --fast")
    road = {step: dict(options or {}) for step, options in content["road"].items()}
    recipe = Recipe(
        path=path,
        about=str(content.get("about", "")).strip(),
        out=Path(content.get("out", f"runs/{path.stem}")),
        given=dict(content.get("given") or {}),
        road=road,
        lines=content["road"].lines,
        expect=list(content.get("expect") or []),
        closing=str(content.get("closing", "")).strip(),
    )
    for key, value in (content.get("fast") or {}).items() if fast else ():
        recipe = changed(recipe, key, value)
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise UserError(f"{change} is no change", where=path, cure="write key=value")
        try:
            recipe = changed(recipe, key, yaml.safe_load(text))
        except yaml.YAMLError as error:
            what = f"this is not YAML, {one_line(error)}"
            raise UserError(what, where=change, cure="put the value into quotes") from error
    return recipe


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def refuse_bad_form(content: Mapping, path: Path) -> None:
    """UserError unless each key of a recipe holds what it should: mappings, steps with options, expectations."""

    def refuse(key: str, what: str) -> NoReturn:
        raise UserError(what, where=f"{path}, {key}", cure="see recipes/ for examples")

    if not isinstance(content.get("out", ""), str):
        refuse("out", "this is not the path of a folder")
    for key in ("given", "fast"):
        if not isinstance(content.get(key) or {}, dict):
            refuse(key, "this is not a mapping of names to values")
    if not content["road"]:
        refuse("road", "the road has no step")
    for step, options in content["road"].items():
        if not STEP.fullmatch(str(step)):
            refuse(f"line {content['road'].lines[step]}", f"{step} is no name of a step")
        if not isinstance(options or {}, dict):
            refuse(f"line {content['road'].lines[step]}", f"the options of {step} are not a mapping")
    expected = content.get("expect") or []
    if not isinstance(expected, list):
        refuse("expect", "this is not a list of expectations")
    for item in expected:
        if not isinstance(item, dict) or set(item) != EXPECTATION or isinstance(item["at_most"], str):
            refuse("expect", f"{item} is no expectation, which has {', '.join(sorted(EXPECTATION))}")
        for key in ("value", "of"):
            refuse_unknown(str(item[key]).partition(".")[0], content["road"], where=f"{path}, expect")


def changed(recipe: Recipe, key: str, value: Any) -> Recipe:
    """The recipe with `out`, a `given` name, or `step.option` set to another value."""
    if key == "out":
        if not isinstance(value, str):
            raise UserError(f"{value} is no path of a folder", where=recipe.path, cure="write out=FOLDER")
        return replace(recipe, out=Path(value))
    step, dot, option = key.partition(".")
    if not dot:
        refuse_unknown(key, [*recipe.given, "out", *recipe.road], where=recipe.path)
        if key in recipe.road:
            raise UserError(f"{key} is a step", where=recipe.path, cure=f"write {key}.option=value")
        return replace(recipe, given={**recipe.given, key: value})
    refuse_unknown(step, recipe.road, where=recipe.path)
    return replace(recipe, road={**recipe.road, step: {**recipe.road[step], option: value}})


def refuse_unknown(key: str, known: Iterable[str], where: object) -> None:
    known = list(known)
    if key not in known:
        near = difflib.get_close_matches(str(key), known, n=1)
        cure = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        raise UserError(f"{key} is not known here", where=where, cure=cure)


def stages_of(recipe: Recipe) -> dict[str, Stage]:
    """Each step as the dataclass of its verb, in order. Raises UserError with the line of a step that is wrong."""
    stages: dict[str, Stage] = {}
    for step, options in recipe.road.items():
        where = f"{recipe.path}, line {recipe.lines[step]}, {step}"
        folders = {name: str(stage.out) for name, stage in stages.items()}
        names = dict(recipe.given) | folders | {"*": list(folders.values())}
        for key in options:
            if key in OWN_OPTIONS:
                raise UserError(f"a step has no {key} of its own", where=where, cure="leave it out")
        tokens = verb_tokens(step, where)
        try:
            for key, value in options.items():
                tokens += flags(str(key), resolve(value, names, where))
            stage = parse([*tokens, f"--out={recipe.out / step}"])
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        assert isinstance(stage, Stage)
        stages[step] = stage
    return stages


def verb_tokens(step: str, where: str) -> list[str]:
    """`eval-bits-after` -> ["eval", "bits"]: the longest verb that the name begins with."""
    words = step.split("-")
    verb = next((verb for length in (2, 1) if (verb := " ".join(words[:length])) in VERBS), None)
    if verb is None:
        raise UserError(
            f"no verb is called {words[0]}", where=where, cure=f"the verbs are {', '.join(VERBS)}"
        )
    if not issubclass(command_of(verb), Stage):
        raise UserError(f"{verb} makes no folder, it is no step of a road", where=where, cure="drop it")
    return verb.split()


def resolve(value: Any, names: dict[str, Any], where: str) -> Any:
    """Replace `$name`; a list in a list becomes part of it."""
    if isinstance(value, dict):
        return {key: resolve(item, names, where) for key, item in value.items()}
    if isinstance(value, list):
        parts = [resolve(item, names, where) for item in value]
        return [item for part in parts for item in (part if isinstance(part, list) else [part])]
    found = REFERENCE.fullmatch(value) if isinstance(value, str) else None
    if not found:
        return value
    refuse_unknown(found["name"], names, where=f"{where}, ${found['name']}")
    target = names[found["name"]]
    return f"{target}{found['rest']}" if found["rest"] else resolve(target, {}, where)


def flags(key: str, value: Any) -> list[str]:
    """An option as the command line writes it: `--learning-rate=2e-4`, `--text.zh=FILE`, `--no-flag`."""
    name = key.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list):
        return [token for item in value for token in flags(key, item)]
    if isinstance(value, dict):
        if odd := [item for item, inner in value.items() if isinstance(inner, list | dict)]:
            raise UserError(f"{key}.{odd[0]} holds several values", cure="give it one")
        return [f"--{name}.{item}={inner}" for item, inner in value.items()]
    return [f"--{name}={value}"]
