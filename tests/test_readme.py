"""The READMEs: their commands parse, their trees name every file, and both say the same."""

import re
import shlex
from pathlib import Path

import pytest

from yayan.cli import parse
from yayan.recipe import read_recipe, stages_of

ROOT = Path(__file__).parents[1]
COMMAND = re.compile(r"^(?:yayan|make) .*$", re.M)
READMES = [ROOT / "README.md", ROOT / "README_zh.md"]


def blocks(readme: Path, language: str = "") -> list[str]:
    """What stands between fences of a language."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```\n", readme.read_text(encoding="utf-8"), re.M | re.S)
    return [text for kind, text in fences if kind == language]


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_every_command_is_one(readme: Path) -> None:
    lines = [line for block in blocks(readme) for line in block.splitlines() if line.startswith("yayan ")]
    assert len(lines) >= 5
    for line in lines:
        assert parse(shlex.split(line, comments=True)[1:]) is not None, line


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_the_tree_names_every_file(readme: Path) -> None:
    tree = next(block for block in blocks(readme) if "src/yayan/" in block)
    for path in (ROOT / "src" / "yayan").rglob("*.py"):
        if not path.name.startswith("__"):
            assert re.search(rf"\b{path.name}\b", tree), path


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_links_lead_somewhere(readme: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", readme.read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target


def test_the_recipe_of_the_readme_parses_and_is_the_same_in_both(tmp_path: Path) -> None:
    english, chinese = (blocks(readme, "yaml") for readme in READMES)
    assert english == chinese
    (tmp_path / "my-road.yaml").write_text(english[0], encoding="utf-8")
    recipe = read_recipe(tmp_path / "my-road.yaml", ["pretrain.epochs=2"])
    assert len(stages_of(recipe)) == 7


def test_both_have_the_same_sections_and_commands() -> None:
    texts = [readme.read_text(encoding="utf-8") for readme in READMES]
    assert len({len(re.findall(r"^## ", text, re.M)) for text in texts}) == 1
    commands = [
        [line.split("#")[0].strip() for line in re.findall(r"^(?:yayan|make) .*$", text, re.M)]
        for text in texts
    ]
    assert commands[0] == commands[1]
    assert len({len(re.findall(r"^- ", text, re.M)) for text in texts}) == 1
