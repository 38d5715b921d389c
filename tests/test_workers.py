"""Processes that work off tasks: order, bounded waiting, errors in their place, and no orphans."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from yayan.errors import UserError, WorkError
from yayan.workers import TASKS_PER_WORKER, ordered

_offset = 0


def prepare(offset: int) -> None:
    global _offset
    _offset = offset


def add_offset(task: int) -> int:
    time.sleep(0.02 * (task % 3))  # later tasks are often done before earlier ones
    if task == 7:
        raise UserError("seven is wrong", where="a.txt:7", cure="leave it out")
    return task + _offset


def end_process(task: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return task


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    tasks = [*range(7), *range(8, 20)]
    assert list(ordered(add_offset, tasks, workers, prepare, (100,))) == [100 + task for task in tasks]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_in_its_place(workers: int) -> None:
    results = ordered(add_offset, range(20), workers, prepare, (0,))
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(UserError, match=r"^seven is wrong \(a.txt:7\): leave it out\.$"):
        next(results)


def test_tasks_are_taken_only_as_fast_as_they_are_worked_off() -> None:
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        for task in range(8, 100):
            taken += 1
            yield task

    results = ordered(add_offset, tasks(), 2, prepare, (0,))
    for done in range(1, 30):
        next(results)
        assert taken <= done + 2 * TASKS_PER_WORKER + 1
    results.close()  # type: ignore[attr-defined]


def test_a_process_that_dies_is_said() -> None:
    with pytest.raises(WorkError, match="a worker process died"):
        list(ordered(end_process, range(4), 2, prepare, (0,)))


PARENT = """
import sys
from tests.test_workers import report_and_sleep, prepare
from yayan.workers import ordered
if __name__ == "__main__":
    list(ordered(report_and_sleep, range(2), 2, prepare, (0,)))
"""


def report_and_sleep(task: int) -> int:
    sys.stdout.write(f"{os.getpid()}\n")
    sys.stdout.flush()
    time.sleep(60)
    return task


def test_a_killed_parent_leaves_no_process_behind(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'src'}"}
    parent = subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [int(parent.stdout.readline()) for _ in range(2)]
    assert all(map(alive, children))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, children))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/status").read_text().split("State:\t")[1][0] != "Z"
    except FileNotFoundError:
        return False
