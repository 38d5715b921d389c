"""Walking a recipe: the order, what is skipped, what is made anew, what is expected and what is told."""

import json
from pathlib import Path

import pytest

from yayan import lineage
from yayan.errors import UserError, WorkError
from yayan.road import Run

RECIPE = """
out: {out}
road:
  vocab: {{corpus: ["sample:en-heldout.jsonl"], size: 400}}
  grow: {{tokenizer: $vocab, shape: {{hidden: 16, heads: 2, layers: 1, feed_forward: 24}}}}
  eval-bits: {{model: $grow, text: {{en: "sample:en-heldout.jsonl"}}, limit: 2000}}
  eval-report: {{folders: $*}}
expect:
  - {{value: grow.parameters, at_most: {factor}, of: vocab.size}}
closing: An honest word.
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "road.yaml"
    path.write_text(RECIPE.format(out=tmp_path / "out", factor=1e6))
    return path


def stamps(out: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/yayan.json")}


def test_a_road_is_walked_told_and_not_walked_twice(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Run(recipe=str(recipe)).run()
    told = capsys.readouterr()
    assert [line[:5] for line in told.err.splitlines() if "made in" in line] == [
        "[1/4]",
        "[2/4]",
        "[3/4]",
        "[4/4]",
    ]
    for words in ("vocab", "400 tokens", "bits per byte: en", "An honest word.", "see the report"):
        assert words in told.out
    assert "eval-bits" in (tmp_path / "out" / "eval-report" / "report.html").read_text()
    before = stamps(tmp_path / "out")
    assert len(before) == 4
    Run(recipe=str(recipe)).run()
    assert capsys.readouterr().err.count("nothing to do") == 4
    assert stamps(tmp_path / "out") == before


def test_only_what_depends_on_a_change_is_made_anew(recipe: Path, tmp_path: Path) -> None:
    Run(recipe=str(recipe)).run()
    before = stamps(tmp_path / "out")
    changed = Run(recipe=str(recipe), changes=["grow.seed=7"])
    with pytest.raises(UserError, match="seed was 0, is 7"):
        changed.run()
    assert stamps(tmp_path / "out") == before
    Run(recipe=str(recipe), changes=["grow.seed=7"], again=True).run()
    after = stamps(tmp_path / "out")
    assert {step for step in before if before[step] != after[step]} == {"grow", "eval-bits", "eval-report"}


def test_an_expectation_that_is_not_met_fails_the_run(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(RECIPE.format(out=tmp_path / "out", factor=0.85))
    with pytest.raises(WorkError, match=r"grow.parameters is .* more than 0.85 times") as caught:
        Run(recipe=str(recipe)).run()
    assert caught.value.exit_code == 1
    assert "An honest word." in capsys.readouterr().out, "what came of it is told all the same"


def test_json_is_all_records(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Run(recipe=str(recipe), json=True).run()
    found = json.loads(capsys.readouterr().out)
    assert found["unmet"] == []
    assert set(found["steps"]["grow"]) == set(lineage.RECORD_KEYS)


def test_a_missing_input_is_said_before_the_first_step(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="eval-bits: nowhere.txt"):
        Run(recipe=str(recipe), changes=["eval-bits.text={en: nowhere.txt}"]).run()
    assert not (tmp_path / "out").exists()
