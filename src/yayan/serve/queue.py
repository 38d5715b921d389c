"""A bounded queue: so many answers at once, so many requests that wait, and no more."""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from yayan.serve.door import Refusal

FIRST_GUESS_SECONDS = 1.0
RECENT = 0.2  # weight of the newest request in the mean of seconds


class Queue:
    """Requests take a place with `place`, each of their answers waits for one of `slots`."""

    def __init__(self, parallel: int, waiting: int) -> None:
        self.parallel, self.most = parallel, parallel + waiting
        self.slots = asyncio.Semaphore(parallel)
        self.held = 0
        self.mean_seconds = FIRST_GUESS_SECONDS

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one request. Raises Refusal (429, with the seconds after which to try again) if all are held."""
        if self.held >= self.most:
            seconds = max(1, math.ceil(self.mean_seconds * self.held / self.parallel))
            what = f"{self.held} requests are answered or wait, try again in {seconds} s"
            raise Refusal(what, 429, code="rate_limit_exceeded", retry_seconds=seconds)
        self.held += 1
        begun = time.monotonic()
        try:
            yield
        finally:
            self.held -= 1
            self.mean_seconds += RECENT * (time.monotonic() - begun - self.mean_seconds)
