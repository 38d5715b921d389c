"""A training ends between two steps: the first Ctrl-C or SIGTERM is kept until then."""

import signal
import sys
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """`with Stopping() as stopping: ...; if stopping.asked: save, stopping.leave()`. A second signal acts at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Stopping":
        self._before = {number: signal.signal(number, self._take) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self.leave()
        self.asked = True
        print("  stopping behind this step; once more: at once", file=sys.stderr, flush=True)

    def leave(self) -> None:
        """End the run as an interrupted one."""
        raise KeyboardInterrupt
