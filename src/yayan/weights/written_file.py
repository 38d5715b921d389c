"""A file that is written in parts, past the page cache where that can be, and hashed on the way."""

import errno
import hashlib
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from yayan import lineage

# Written at once, from memory that begins with a page, as O_DIRECT wants it. A page cache that is filled by 14 GB which
# nobody reads soon cost more processor time than their making (8 s of 9 for 3.4 GB on a virtual machine; directly 0.3).
STAGE_BYTES = 8 << 20


class WrittenFile:
    """A file in the making. What is written from its beginning on, part after part, is hashed on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._direct = open_directly(path)
        self._stage = memoryview(mmap.mmap(-1, STAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self._staged = 0  # bytes that came last and are not written yet
        self._end, self._size = 0, 0  # of what came part after part; of the file
        self._digest = hashlib.sha256()
        self._hasher = ThreadPoolExecutor(1)  # hashes what is written meanwhile

    def append(self, data: bytes | memoryview) -> None:
        """Put bytes behind those that came part after part."""
        self.write(self._end, data)

    def align(self, size: int) -> None:
        """Put zeros behind them, up to a multiple of so many bytes."""
        self.append(bytes(-self._end % size))

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Put bytes at an offset."""
        view = memoryview(data)
        self._size = max(self._size, offset + len(view))
        if offset != self._end:
            self._put(offset, view)
            return
        self._end += len(view)
        while len(view):
            count = min(len(view), STAGE_BYTES - self._staged)
            self._stage[self._staged : self._staged + count] = view[:count]
            self._staged += count
            view = view[count:]
            if self._staged == STAGE_BYTES:
                self._flush(self._end - len(view))

    def _flush(self, end: int) -> None:
        """Write what is staged so that it ends there."""
        staged, start = self._stage[: self._staged], end - self._staged
        hashing = self._hasher.submit(self._digest.update, staged)
        count = self._put_directly(start, staged) if self._staged == STAGE_BYTES else 0
        self._put(start + count, staged[count:])
        hashing.result()
        self._staged = 0

    def _put_directly(self, offset: int, view: memoryview) -> int:
        """Write past the page cache; how many bytes, none where that cannot be."""
        if self._direct is None:
            return 0
        try:
            return os.pwrite(self._direct, view, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that wants other multiples
                raise
            os.close(self._direct)
            self._direct = None
            return 0

    def _put(self, offset: int, view: memoryview) -> None:
        assert self._descriptor is not None
        while len(view):
            count = os.pwrite(self._descriptor, view, offset)  # at most 2 GiB at once
            view, offset = view[count:], offset + count

    def finish(self) -> None:
        """Let all reach the disk, and the hash be remembered."""
        assert self._descriptor is not None
        self._flush(self._end)
        os.fsync(self._descriptor)
        self.close()
        if self._end == self._size:
            lineage.remember(self.path, self._digest.hexdigest())

    def close(self) -> None:
        self._hasher.shutdown()
        for descriptor in (self._descriptor, self._direct):
            if descriptor is not None:
                os.close(descriptor)
        self._descriptor = self._direct = None


def open_directly(path: Path) -> int | None:
    """A descriptor that writes past the page cache; None where the system or the file's place does not have it."""
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    except (AttributeError, OSError):
        return None
