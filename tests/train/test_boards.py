"""Figures in TensorBoard and wandb are those of metrics.jsonl."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from yayan.errors import UserError
from yayan.train import boards
from yayan.train.boards import flat, open_boards, refuse_missing
from yayan.train.metrics import Metrics

LINES: list[dict] = [
    {"step": 1, "loss": 2.5, "seconds": 0.5},
    {"step": 2, "loss": 2.0, "seconds": 1.0, "bits_per_byte": {"zh": 3.25, "en": 1.5}},
]


def test_a_line_is_flattened_by_name() -> None:
    assert flat(LINES[1])["bits_per_byte/en"] == 1.5
    assert flat({"step": 1, "bits_per_byte": {}}) == {"step": 1, "bits_per_byte": {}}


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with ExitStack() as stack:
        shown = open_boards(stack, tmp_path, tensorboard=True, wandb=None, options={})
        metrics = Metrics(tmp_path, 0, shown)
        for line in LINES:
            metrics.write(line)
    events = reader.EventAccumulator(str(tmp_path / boards.TENSORBOARD_NAME)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.5), (2, 2.0)]
    assert [(event.step, event.value) for event in events.Scalars("bits_per_byte/zh")] == [(2, 3.25)]
    assert metrics.lines() == LINES


def test_wandb_takes_them_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with ExitStack() as stack:
        for board in open_boards(stack, tmp_path, tensorboard=False, wandb="trial", options={"rank": 4}):
            for line in LINES:
                board(line)
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))


def test_a_board_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards.importlib.util, "find_spec", lambda name: None)
    refuse_missing(tensorboard=False, wandb=None)
    with pytest.raises(UserError, match=r"wandb is not installed.*yayan\[boards\]"):
        refuse_missing(tensorboard=False, wandb="p")
