"""Work ahead of its use: in order, errors and the end passed on, nothing left running."""

import threading
import time
from collections.abc import Iterator
from itertools import count, islice

import pytest

from yayan.ahead import ahead


def square(number: int) -> int:
    time.sleep(0.002 * (number % 3))  # so that later ones are often ready first
    if number == 13:
        raise ValueError("13")
    return number * number


def numbered(numbers: Iterator[int]) -> Iterator[tuple[int, str]]:
    return ((number, str(number)) for number in numbers)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_answers_come_in_order_with_their_notes(workers: int) -> None:
    wanted = [(n * n, str(n)) for n in range(12)]
    assert list(ahead(square, numbered(iter(range(12))), workers)) == wanted
    assert list(islice(ahead(square, numbered(count()), workers), 12)) == wanted
    assert list(ahead(square, numbered(iter(())), workers)) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_is_raised_where_its_answer_was_due(workers: int) -> None:
    answers = ahead(square, numbered(count(10)), workers)
    assert [next(answers)[0] for _ in range(3)] == [100, 121, 144]
    with pytest.raises(ValueError, match="13"):
        next(answers)


def test_no_more_is_begun_than_was_asked_and_no_thread_stays() -> None:
    before = threading.active_count()
    begun = []
    answers = ahead(lambda number: begun.append(number), numbered(count()), 2)
    next(answers)
    assert threading.active_count() > before
    answers.close()
    assert threading.active_count() == before
    assert len(begun) <= 3
