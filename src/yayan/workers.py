"""Work spread over processes: results in the order of the tasks, few of them waiting, nothing left behind."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from yayan.errors import WorkError

TASKS_PER_WORKER = 2  # one at work, one waiting, so that none is idle

Task = TypeVar("Task")
Result = TypeVar("Result")


def ordered(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int,
    prepare: Callable[..., None],
    arguments: tuple,
) -> Iterator[Result]:
    """`function(task)` of every task, in order, in `workers` processes that were readied by `prepare(*arguments)`.

    With one worker all is done in this process. Tasks are taken only as fast as they are worked off. An error of a task
    is raised in its place. Raises WorkError if a process dies.
    """
    if workers == 1:
        prepare(*arguments)
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    pool = ProcessPoolExecutor(workers, context, _prepare, (prepare, arguments))
    waiting: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) > TASKS_PER_WORKER * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        cure = "if the memory was full, run it with fewer workers; the same command goes on"
        raise WorkError("a worker process died", cure=cure) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def alone(function: Callable[[Task], Result], task: Task) -> Result:
    """`function(task)` in a new process, whose memory is then its own. Raises WorkError if it dies."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, _prepare, (_nothing, ())) as pool:
        try:
            return pool.submit(function, task).result()
        except BrokenProcessPool as error:
            raise WorkError("a worker process died", cure="if the memory was full, free some") from error


def _nothing() -> None:
    """What a process needs that has one task only."""


def _prepare(prepare: Callable[..., None], arguments: tuple) -> None:
    """In a new worker: Ctrl-C is the parent's affair, and the parent's death is this one's, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    prepare(*arguments)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
