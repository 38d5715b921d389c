"""Work done ahead of its use, in the background, in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")
Note = TypeVar("Note")


def ahead(
    work: Callable[[Question], Answer], questions: Iterator[tuple[Question, Note]], workers: int
) -> Generator[tuple[Answer, Note]]:
    """`(work(question), note)` for each, in order, the next `workers` of them begun in as many threads.

    An error of the work is raised here. When the iterator is closed or dropped, work that has not begun is called off.
    """
    waiting: deque[tuple[Future[Answer], Note]] = deque()
    with ThreadPoolExecutor(workers) as threads:
        try:
            for question, note in questions:
                waiting.append((threads.submit(work, question), note))
                if len(waiting) > workers:
                    future, before = waiting.popleft()
                    yield future.result(), before
            while waiting:
                future, before = waiting.popleft()
                yield future.result(), before
        finally:
            for future, _ in waiting:
                future.cancel()
