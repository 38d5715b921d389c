"""Recipes: what is written becomes the stages' options; what cannot be is one sentence with file and line."""

from pathlib import Path

import pytest

from yayan.errors import UserError
from yayan.recipe import find_recipe, read_recipe, stages_of
from yayan.vocab.grow import Grow
from yayan.vocab.learn import Vocab

GOOD = """
about: A road.
out: runs/test
given: {base: models/base, texts: [a.txt, b.txt], size: 400}
road:
  vocab: {base: $base, corpus: [$texts, c.txt], size: $size}
  grow-zh: {model: $base, tokenizer: $vocab, init: mean, seed: 3}
  grow-new:
    tokenizer: $vocab
    shape: {hidden: 64, heads: 2}
  pretrain:
    model: $grow-zh
    shards: [$vocab/inner]
    learning_rate: 2e-4
    heldout: {zh: x.txt}
fast: {out: runs/fast, vocab.size: 300, size: 350}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "road.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_keys_become_options_and_references_folders(tmp_path: Path) -> None:
    stages = stages_of(read_recipe(write(tmp_path, GOOD)))
    out = Path("runs/test")
    assert stages["vocab"] == Vocab(
        out=out / "vocab",
        base=Path("models/base"),
        corpus=[Path("a.txt"), Path("b.txt"), Path("c.txt")],
        size=400,
    )
    assert stages["grow-zh"] == Grow(
        out=out / "grow-zh", model=Path("models/base"), tokenizer=out / "vocab", init="mean", seed=3
    )
    assert stages["grow-new"].shape == {"hidden": 64, "heads": 2}  # type: ignore[attr-defined]
    assert stages["pretrain"].shards == [out / "vocab" / "inner"]  # type: ignore[attr-defined]
    assert stages["pretrain"].learning_rate == 2e-4  # type: ignore[attr-defined]
    assert stages["pretrain"].heldout == {"zh": Path("x.txt")}  # type: ignore[attr-defined]


def test_changes_of_the_command_line_and_of_the_fast_section(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    fast = stages_of(read_recipe(path, fast=True))
    assert fast["vocab"].size == 300  # type: ignore[attr-defined]
    assert fast["vocab"].out == Path("runs/fast/vocab")
    changed = read_recipe(path, ["base=other", "grow-zh.init=noise", "texts=[d.txt]", "out=elsewhere"])
    stages = stages_of(changed)
    assert stages["grow-zh"].model == Path("other")  # type: ignore[attr-defined]
    assert stages["grow-zh"].init == "noise"  # type: ignore[attr-defined]
    assert stages["vocab"].corpus == [Path("d.txt"), Path("c.txt")]  # type: ignore[attr-defined]
    assert stages["vocab"].out == Path("elsewhere/vocab")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("init: mean", "innit: mean", r"line 7, grow-zh: Unknown option: --innit. Did you mean --init\?"),
        ("init: mean", "init: meen", 'line 7, grow-zh: Invalid value "meen" for --init'),
        ("seed: 3", "seed: three", 'line 7, grow-zh: .*unable to convert "three" into int'),
        ("tokenizer: $vocab, init", "tokenizer: $vocap, init", r"line 7.*did you mean vocab\?"),
        ("  grow-zh:", "  grwo-zh:", r"no verb is called grwo \(.*line 7, grwo-zh\): the verbs are"),
        ("  grow-zh:", "  chat:", "chat makes no folder.*line 7"),
        ("  grow-zh:", "  vocab:", "vocab stands here twice .line 7."),
        ("seed: 3", "out: here", "a step has no out of its own"),
        ("about:", "abuot:", r"line 2.*did you mean about\?"),
        ("road:", "steps:", "a mapping with a `road`"),
        ("size: 400}", "size: 400", "this is not YAML, .*, line 5"),
        ("heldout: {zh: x.txt}", "heldout: {zh: [x.txt, y.txt]}", "heldout.zh holds several values"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in GOOD
    with pytest.raises(UserError, match=words):
        stages_of(read_recipe(write(tmp_path, GOOD.replace(old, new))))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("bsae=x", r"did you mean base\?"),
        ("gorw-zh.init=mean", r"did you mean grow-zh\?"),
        ("grow-zh=x", "grow-zh is a step"),
        ("nonsense", "write key=value"),
    ],
)
def test_wrong_changes_name_the_nearest(tmp_path: Path, change: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_recipe(write(tmp_path, GOOD), [change])


def test_not_utf8_and_no_fast_section(tmp_path: Path) -> None:
    path = tmp_path / "road.yaml"
    path.write_bytes(b"road: \xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_recipe(path)
    with pytest.raises(UserError, match="no `fast` section"):
        read_recipe(write(tmp_path, "road: {vocab: {}}"), fast=True)


def test_built_in_recipes_are_found_by_name_and_hold_together() -> None:
    for fast in (False, True):
        stages = stages_of(read_recipe(find_recipe("quickstart"), fast=fast))
        assert len(stages) > 10
    with pytest.raises(UserError, match="quickstart"):
        find_recipe("quickstarted")
