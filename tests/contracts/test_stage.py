"""Contract: a stage works in OUT.partial, keyed by its question; OUT is complete, or it is not there."""

import errno
import json
import multiprocessing
import os
import signal
import time
from dataclasses import FrozenInstanceError, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import quietly
from yayan import lineage
from yayan.errors import UserError, WorkError
from yayan.stage import InputPath, Stage, execute


@dataclass(frozen=True, kw_only=True)
class Copy(Stage):
    """Copy a text several times."""

    text: InputPath
    """The text."""
    extra: dict[str, InputPath] = field(default_factory=dict)
    """More texts."""
    times: int = 1
    """How often."""

    def check(self) -> None:
        if self.times < 0:
            raise UserError("times is negative", where="times", cure="give 0 or more")

    def run(self, work: Path) -> dict[str, object]:
        with (work / "started").open("a") as file:
            file.write("x")
        (work / "copy.txt").write_text(self.text.read_text() * self.times)
        return {"bytes": (work / "copy.txt").stat().st_size, "starts": (work / "started").stat().st_size}


class Failing(Copy):
    """The first attempt fails after it has written something."""

    def run(self, work: Path) -> dict[str, object]:
        metrics = super().run(work)
        if metrics["starts"] == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return metrics


class Endless(Copy):
    """Never ends by itself."""

    def run(self, work: Path) -> dict[str, object]:
        metrics = super().run(work)
        while metrics["starts"] == 1:
            time.sleep(0.01)
        return metrics


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    (tmp_path / "text.txt").write_text("abc")
    return Copy(out=tmp_path / "out", text=tmp_path / "text.txt", times=2)


def partial(stage: Stage) -> Path:
    return stage.out.with_name(stage.out.name + ".partial")


def test_a_finished_output_is_complete_and_recorded(copy: Copy) -> None:
    record = execute(copy, quietly)
    assert (copy.out / "copy.txt").read_text() == "abcabc"
    assert not partial(copy).exists()
    assert json.loads((copy.out / "yayan.json").read_text()) == record
    assert sorted(path.name for path in copy.out.iterdir()) == ["copy.txt", "started", "yayan.json"]


def test_the_record_has_exactly_the_keys_of_the_contract(copy: Copy) -> None:
    record = execute(copy, quietly)
    assert tuple(record) == lineage.RECORD_KEYS
    assert record["format"] == 1
    assert record["stage"] == "copy"
    assert record["options"] == {"times": 2}
    text = {"path": str(copy.text), "sha256": lineage.sha256_of(copy.text)}
    assert record["inputs"] == {"text": text, "extra": {}}
    assert record["metrics"] == {"bytes": 6, "starts": 1}
    assert record["machine"]["cores"] == os.cpu_count()


def test_the_same_question_is_not_asked_twice(copy: Copy) -> None:
    first = execute(copy, quietly)
    assert execute(copy, quietly) == first


def test_inputs_are_compared_by_content_not_by_name_or_time(copy: Copy, tmp_path: Path) -> None:
    first = execute(copy, quietly)
    (tmp_path / "other.txt").write_text("abc")
    os.utime(copy.text, (1, 1))
    assert execute(replace(copy, text=tmp_path / "other.txt"), quietly) == first


@pytest.mark.parametrize(
    ("change", "word"), [({"times": 3}, "times was 2, is 3"), ({"text": "new"}, "text is another")]
)
def test_another_question_is_one_sentence_and_changes_nothing(copy: Copy, change: dict, word: str) -> None:
    execute(copy, quietly)
    before = (copy.out / "yayan.json").read_bytes()
    if "text" in change:
        copy.text.write_text("abd")
        change = {}
    with pytest.raises(UserError, match=word) as caught:
        execute(replace(copy, **change), quietly)
    assert "--again" in str(caught.value)
    assert (copy.out / "yayan.json").read_bytes() == before
    assert not partial(copy).exists()


def test_again_replaces_the_whole_output(copy: Copy) -> None:
    execute(copy, quietly)
    (copy.out / "stray").touch()
    record = execute(replace(copy, times=3, again=True), quietly)
    assert record["options"] == {"times": 3}
    assert (copy.out / "copy.txt").read_text() == "abcabcabc"
    assert not (copy.out / "stray").exists()


def test_a_wrong_question_writes_nothing(copy: Copy) -> None:
    with pytest.raises(UserError, match="times"):
        execute(replace(copy, times=-1), quietly)
    with pytest.raises(UserError, match="no such file"):
        execute(replace(copy, text=Path("missing")), quietly)
    assert not copy.out.exists()
    assert not partial(copy).exists()


def test_a_full_disk_is_a_sentence_and_the_same_call_goes_on(copy: Copy) -> None:
    failing = Failing(**vars(copy))
    with pytest.raises(WorkError, match="disk is full"):
        execute(failing, quietly)
    assert not copy.out.exists()
    assert execute(failing, quietly)["metrics"]["starts"] == 2, "the partial folder was re-entered"


def test_a_killed_run_leaves_no_output_and_the_same_call_goes_on(copy: Copy) -> None:
    endless = Endless(**vars(copy))
    child = multiprocessing.get_context("spawn").Process(target=execute, args=(endless, quietly))
    child.start()
    wait_for(partial(copy) / "copy.txt")
    with pytest.raises(UserError, match="another run"):
        execute(endless, quietly)
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    assert not copy.out.exists()
    assert execute(endless, quietly)["metrics"]["starts"] == 2


def test_what_another_question_left_behind_is_cleared(copy: Copy) -> None:
    failing = Failing(**vars(copy))
    with pytest.raises(WorkError):
        execute(failing, quietly)
    with pytest.raises(WorkError):
        execute(replace(failing, times=5), quietly)
    assert (partial(copy) / "started").read_text() == "x", "a start of its own, not the second of the other"


def test_an_output_that_is_not_ours_is_left_alone(copy: Copy) -> None:
    copy.out.mkdir()
    (copy.out / "thesis.txt").write_text("years of work")
    for stage in (copy, replace(copy, again=True)):
        with pytest.raises(UserError, match="did not make"):
            execute(stage, quietly)
    assert (copy.out / "thesis.txt").read_text() == "years of work"


def test_an_output_on_its_input_is_refused(copy: Copy, tmp_path: Path) -> None:
    for out in (copy.text, tmp_path, copy.text / "inside"):
        with pytest.raises(UserError):
            execute(replace(copy, out=out), quietly)
    assert copy.text.read_text() == "abc"


def test_a_stage_is_frozen_and_keyword_only(copy: Copy) -> None:
    with pytest.raises(FrozenInstanceError):
        copy.times = 3  # type: ignore[misc]
    positional: Any = Copy
    with pytest.raises(TypeError):
        positional(Path("out"), Path("text"))


def wait_for(path: Path, seconds: float = 60) -> None:
    for _ in range(round(seconds / 0.01)):
        if path.exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} did not appear")
