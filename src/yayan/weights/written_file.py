"""A file that is written in parts, and known by its hash without being read again."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from yayan import lineage


class WrittenFile:
    """A file in the making. Where it is written from its beginning to its end, it is hashed on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._digest, self._hashed, self._size = hashlib.sha256(), 0, 0
        self._hasher = ThreadPoolExecutor(1)  # hashes a block while it is written

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Put bytes at an offset."""
        assert self._descriptor is not None
        view = memoryview(data)
        hashing = self._hasher.submit(self._digest.update, view) if self._hashed == offset else None
        self._size = max(self._size, offset + len(view))
        while len(view):
            count = os.pwrite(self._descriptor, view, offset)  # at most 2 GiB at once
            view, offset = view[count:], offset + count
        if hashing:
            hashing.result()
            self._hashed = offset

    def finish(self) -> None:
        """Let all reach the disk, and the hash be remembered."""
        assert self._descriptor is not None
        os.fsync(self._descriptor)
        self.close()
        if self._hashed == self._size:
            lineage.remember(self.path, self._digest.hexdigest())

    def close(self) -> None:
        self._hasher.shutdown()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
