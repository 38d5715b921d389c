"""OUT.partial: locked while it is worked in, re-entered by the same question, renamed to OUT when it is complete."""

import errno
import fcntl
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from yayan.errors import UserError, WorkError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: beyond the allowed size of a file


@contextmanager
def partial_folder(out: Path, question: dict) -> Iterator[Path]:
    """OUT.partial, locked; what a crashed run of the same question left is kept, anything else is cleared."""
    work = out.with_name(out.name + ".partial")
    new_parents = [folder for folder in work.parents if not folder.exists()]
    lock = lock_folder(work, out)
    try:
        asked = work / ".question"
        text = json.dumps(question, ensure_ascii=False, sort_keys=True)
        if not asked.exists() or asked.read_text(encoding="utf-8") != text:
            clear(work)
            asked.write_text(text, encoding="utf-8")
        yield work
    except UserError:
        shutil.rmtree(work)  # the question was wrong: nothing of its answer stays
        for folder in new_parents:
            with suppress(OSError):  # somebody else may have put something there
                folder.rmdir()
        raise
    finally:
        os.close(lock)


def lock_folder(work: Path, out: Path) -> int:
    """Make the partial folder and take its lock, which ends with this process -> the lock's file descriptor."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work / ".lock", os.O_CREAT | os.O_RDWR)
    except OSError as error:
        what = f"the output cannot be written, {error.strerror or error}"
        raise UserError(what, where=out, cure="choose another") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise UserError("another run is making this output", where=out, cure="wait for it") from error
    return lock


def clear(work: Path) -> None:
    """Empty a partial folder, but for the lock that is held."""
    for item in work.iterdir():
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        elif item.name != ".lock":
            item.unlink()


@contextmanager
def sentence_for_a_full_disk(out: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_full_disk(error):
            raise
        cure = "free some space, the same command goes on"
        raise WorkError("the disk is full", where=out, cure=cure) from error


def whole_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file that is only appended to, from its beginning; what a kill left of the last one is cut off."""
    stream.seek(0)
    end = 0
    for line in stream:
        if not line.endswith(b"\n"):
            break
        end += len(line)
        yield line
    if stream.seek(0, os.SEEK_END) > end:
        stream.truncate(end)


def is_full_disk(error: Exception) -> bool:
    """Whether an error says so: by its number, or in the words of a native library (`... (os error 28)`)."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL_DISK
    if isinstance(error, sqlite3.OperationalError):  # an I/O error: where its index or log could not grow
        return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
    return any(f"(os error {number})" in str(error) for number in FULL_DISK)


def finish(work: Path, out: Path) -> None:
    """Give a complete partial folder its final name, everything on the disk first."""
    for name in (".lock", ".question"):
        (work / name).unlink()
    for file in [*work.rglob("*"), work]:
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    work.rename(out)
    shutil.rmtree(old, ignore_errors=True)
