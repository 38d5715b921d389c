"""Time, CPU time and anonymous memory of a command with all its processes (Linux), and who measures them."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

INTERVAL_SECONDS = 0.2


@dataclass
class Usage:
    """What a command took. Memory: the sum over its processes of what no file stands behind (`RssAnon`)."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    samples: list[tuple[float, int]] = field(default_factory=list)  # seconds since the start, bytes
    killed: bool = False


def parser_of(text: str | None) -> argparse.ArgumentParser:
    """The options that such benchmarks have in common; `text`: what the file says of itself."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=text, formatter_class=form)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--most-load", type=float, default=0.5, help="load of the machine at which to begin")
    return parser


def refuse_busy_machine(most_load: float) -> None:
    """End the program where other work would be measured with it."""
    load = os.getloadavg()[0]
    if load > most_load:
        sys.exit(f"the machine is busy (load {load:.1f}): wait, or pass --most-load")


def measure(command: Sequence[object], *, kill_after: float | None = None) -> Usage:
    """Run a command and watch it. `kill_after`: seconds after which it is killed (SIGKILL, the parent only).

    Ends the program if the command fails.
    """
    words = list(map(str, command))
    begun, before = time.monotonic(), os.times()
    samples: list[tuple[float, int]] = []
    killed = False
    with tempfile.TemporaryFile("w+") as errors:  # a pipe that nobody empties would stop the command
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            seconds = time.monotonic() - begun
            samples.append((seconds, anonymous_bytes(process.pid)))
            if kill_after is not None and seconds > kill_after:
                process.send_signal(signal.SIGKILL)
                killed = True
            time.sleep(INTERVAL_SECONDS)
        if process.returncode and not killed:
            errors.seek(0)
            sys.exit(f"{' '.join(words)} failed:\n{errors.read()}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    peak = max((size for _, size in samples), default=0)
    return Usage(time.monotonic() - begun, cpu, peak, samples, killed)


def yayan(*words: object) -> Usage:
    """`measure` of one of our verbs."""
    return measure([sys.executable, "-m", "yayan", *words])


def step_ends(folder: Path) -> list[float]:
    """Seconds at which the steps of a training ended."""
    return [json.loads(line)["seconds"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def anonymous_bytes(pid: int) -> int:
    """Of a process and all that come from it; 0 for one that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    own = next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)
    return own + sum(anonymous_bytes(int(child)) for child in children)
