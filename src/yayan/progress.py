"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere, nothing for short work."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

SILENT_SECONDS = 2.0
PLAIN_INTERVAL_SECONDS = 10.0


def format_seconds(seconds: float) -> str:
    """`8.1 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """Counts units of work on stderr with rate and time left; says nothing in the first two seconds.

    `with Progress("pack", total=1200, unit="docs") as bar: bar.advance(10)`
    """

    def __init__(self, label: str, total: float | None = None, unit: str = "it") -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0.0
        self.remark = ""
        self.started = time.monotonic()
        self.skipped = 0.0  # units that an earlier run had done: they do not count for the rate
        self._spoken = self.started
        self._bar: RichProgress | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def resume(self, units: float) -> None:
        """Start the count at `units` that were done before."""
        self.done = self.skipped = units

    def note(self, remark: str) -> None:
        """A word beside the count, such as the loss."""
        self.remark = remark

    def advance(self, units: float = 1) -> None:
        self.done += units
        now = time.monotonic()
        if now - self.started < SILENT_SECONDS:
            return
        if sys.stderr.isatty():
            self._draw(now)
        elif now - self._spoken >= PLAIN_INTERVAL_SECONDS:
            self._spoken = now
            print(self.line(now), file=sys.stderr, flush=True)

    def line(self, now: float) -> str:
        """One plain line: what, how far, how fast, how long still."""
        rate = (self.done - self.skipped) / max(now - self.started, 1e-9)
        parts = [f"{self.label}: {self.done:,.0f}"]
        if self.total:
            parts[0] += f" of {self.total:,.0f} {self.unit} ({self.done / self.total:.0%})"
        else:
            parts[0] += f" {self.unit}"
        parts.append(f"{rate:,.1f} {self.unit}/s")
        if self.total and rate > 0:
            parts.append(f"{format_seconds((self.total - self.done) / rate)} left")
        if self.remark:
            parts.append(self.remark)
        return "  " + ", ".join(parts)

    def _draw(self, now: float) -> None:
        if self._bar is None:
            self._bar = RichProgress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[remark]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.add_task(self.label, total=self.total, rate="", remark="")
            self._bar.start()
        rate = (self.done - self.skipped) / (now - self.started)
        self._bar.update(
            self._bar.task_ids[0],
            completed=self.done,
            rate=f"{rate:,.0f} {self.unit}/s",
            remark=self.remark,
        )
