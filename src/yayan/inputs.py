"""Inputs that are no paths: `sample:NAME` of the built-in sample, `hf:` and `ms:` of hubs, `-` for standard input."""

import atexit
import os
import shutil
import sys
import tempfile
from functools import lru_cache
from importlib import resources
from pathlib import Path

from yayan.errors import UserError, WorkError
from yayan.hubs import fetch, is_hub_name
from yayan.partial import is_full_disk
from yayan.patterns import is_pattern, matches
from yayan.progress import Progress

SAMPLE_PREFIX = "sample:"
STANDARD_INPUT = Path("-")
CHUNK_BYTES = 1 << 20


def is_there(path: Path) -> bool:
    """Whether an input can be read now: a path that exists, a pattern that matches, or standard input."""
    if path == STANDARD_INPUT or is_hub_name(path):
        return True
    return bool(matches(path)) if is_pattern(path) else sample_path(path).exists()


def real_path(path: Path) -> Path:
    """The file or folder to read: of the sample, of a hub, or for `-` a file that holds all of standard input."""
    if is_hub_name(path):
        return fetch(path)
    return spool() if path == STANDARD_INPUT else sample_path(path)


def sample_path(path: Path) -> Path:
    """`sample:NAME` is a file of the built-in sample; any other path stays what it is."""
    if not str(path).startswith(SAMPLE_PREFIX):
        return path
    root = Path(str(resources.files("yayan"))) / "sample"
    found = root / str(path).removeprefix(SAMPLE_PREFIX)
    if not found.exists():
        names = ", ".join(sorted(item.name for item in root.iterdir() if not item.name.startswith("_")))
        raise UserError("the built-in sample has no such file", where=path, cure=f"it has {names}")
    return found


@lru_cache(maxsize=1)
def spool() -> Path:
    """Standard input as a temporary file named for its kind, read once and removed when the process ends.

    Raises UserError for a terminal and for an empty input, WorkError if the disk is full.
    """
    from yayan.corpus.files import sniff

    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        cure = "send texts into the command, for example: zcat texts.jsonl.gz | yayan ..."
        raise UserError("standard input is a terminal or closed", where="-", cure=cure)
    folder = Path(tempfile.mkdtemp(prefix="yayan-"))
    atexit.register(_remove, folder, os.getpid())
    path = folder / "standard-input" / "-"
    path.parent.mkdir()
    try:
        with path.open("wb") as file, Progress("read standard input", unit="MB") as bar:
            while chunk := sys.stdin.buffer.read(CHUNK_BYTES):
                file.write(chunk)
                bar.advance(len(chunk) / 1e6)
    except OSError as error:
        if not is_full_disk(error):
            raise
        cure = "free some space, or name another folder for temporary files in TMPDIR"
        raise WorkError("the disk is full", where=folder, cure=cure) from error
    if not path.stat().st_size:
        raise UserError("standard input is empty", where="-", cure="send texts into the command")
    return path.rename(path.with_name("-" + sniff(path)))


def _remove(folder: Path, process: int) -> None:
    """A forked worker must not remove what the main process reads."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
