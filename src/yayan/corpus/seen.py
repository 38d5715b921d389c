"""Which keys of documents were seen before: in a sqlite database, in flat memory, as durable as the caller's commits.

A B-tree that takes random keys a few thousand at a time writes a page of 4 KiB for nearly each of them. So new keys go
into a hash table in memory and, for a resumed run, as blobs to the end of a small table; when there are millions of
them, they go into the B-tree in its own order, and each page is written once.
"""

import sqlite3
from collections.abc import Sequence

import numpy as np

NEAR_KEYS, EXACT_KEYS = 1 << 22, 1 << 20  # kept in memory before they go into the B-tree, 16 bytes each
CACHE_KIB = 32 << 10  # of pages, for the connection
ASKED_AT_ONCE = 1 << 10  # keys in one SELECT
TABLES = """
CREATE TABLE IF NOT EXISTS {table} (key INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS {table}_new (number INTEGER PRIMARY KEY, keys BLOB NOT NULL);
"""


class Seen:
    """The exact keys (`exact_key`) and the bands (`near_bands`) of the documents that were kept.

    Makes the tables `seen_exact` and `seen_near` (and `..._new`), bounds the page cache of the connection, and writes
    in the connection's open transaction: the caller commits. After a rollback make a new `Seen`. The order of the
    documents decides: the first of equals is kept.
    """

    def __init__(
        self, connection: sqlite3.Connection, *, exact_keys: int = EXACT_KEYS, near_keys: int = NEAR_KEYS
    ) -> None:
        """`exact_keys`, `near_keys`: powers of two, how many new keys memory holds."""
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._exact = KeySet(connection, "seen_exact", exact_keys)
        self._near = KeySet(connection, "seen_near", near_keys)

    def duplicates_exact(self, keys: Sequence[int]) -> list[bool]:
        """For each key (64 bits) whether it was seen before, in an earlier call or earlier in this one."""
        return self._exact.first_seen(np.array(keys, np.uint64).reshape(-1, 1))

    def duplicates_near(self, bands: np.ndarray) -> list[bool]:
        """For each row of `bands`, uint64 [N, BANDS], whether a document that was kept has a band in common with it.

        A duplicate adds none of its bands, so that a chain of small changes does not hang together.
        """
        return self._near.first_seen(bands)


class KeySet:
    """A set of 64-bit keys that grows: a B-tree of old ones on disk, a hash table of new ones in memory."""

    def __init__(self, connection: sqlite3.Connection, table: str, capacity: int) -> None:
        self.connection, self.table = connection, table
        for statement in TABLES.format(table=table).strip().split("\n"):
            connection.execute(statement)
        (stored,) = connection.execute(
            f"SELECT coalesce(sum(length(keys)), 0) / 8 FROM {table}_new"
        ).fetchone()
        self.capacity = max(capacity, 1 << int(stored).bit_length())
        self.new = HashTable(2 * self.capacity)
        for (blob,) in connection.execute(f"SELECT keys FROM {table}_new ORDER BY number"):
            self.new.add(np.frombuffer(blob, "<u8"))
        self.has_old = connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None

    def first_seen(self, keys: np.ndarray) -> list[bool]:
        """For each row of keys uint64 [N, K] whether one of them is in the set; if none is, all are added."""
        flat = np.maximum(keys.ravel(), np.uint64(1))  # 0 marks a free slot of the hash table
        known: np.ndarray = self.new.holds(flat)
        if self.has_old:
            known = known | self._old(flat, ~known)
        known_rows = np.any(known.reshape(keys.shape), axis=1).tolist()
        fresh: dict[int, None] = {}
        duplicates = []
        for row, is_known in zip(flat.reshape(keys.shape).tolist(), known_rows, strict=True):
            is_duplicate = is_known or not fresh.keys().isdisjoint(row)
            duplicates.append(is_duplicate)
            if not is_duplicate:
                fresh.update(dict.fromkeys(row))
        self._add(np.fromiter(fresh, "<u8", len(fresh)))
        return duplicates

    def _old(self, keys: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """Which of the keys the B-tree holds; only those `asked` are looked up, in its order."""
        wanted = np.unique(keys[asked]).view(np.int64)
        wanted.sort()
        found: list[tuple[int]] = []
        for first in range(0, len(wanted), ASKED_AT_ONCE):
            some = wanted[first : first + ASKED_AT_ONCE].tolist()
            places = ",".join("?" * len(some))
            found += self.connection.execute(f"SELECT key FROM {self.table} WHERE key IN ({places})", some)
        return np.isin(keys.view(np.int64), np.array([key for (key,) in found], np.int64))

    def _add(self, keys: np.ndarray) -> None:
        for first in range(0, len(keys), self.capacity):
            some = keys[first : first + self.capacity]
            if self.new.count + len(some) > self.capacity:
                self._move()
            self.new.add(some)
            self.connection.execute(f"INSERT INTO {self.table}_new (keys) VALUES (?)", (some.tobytes(),))

    def _move(self) -> None:
        """Put all new keys into the B-tree, in its order."""
        keys = self.new.keys().view(np.int64)
        keys.sort()
        rows = (
            (key,)
            for first in range(0, len(keys), 1 << 16)
            for key in keys[first : first + (1 << 16)].tolist()
        )
        self.connection.executemany(f"INSERT INTO {self.table} VALUES (?)", rows)
        self.connection.execute(f"DELETE FROM {self.table}_new")
        self.new.clear()
        self.has_old = True


class HashTable:
    """A set of uint64 other than 0, in an array of fixed size, by linear probing; keys must be spread evenly."""

    def __init__(self, slots: int) -> None:
        """`slots`: a power of two, at least twice the number of keys that will be added."""
        self.slots = np.zeros(slots, np.uint64)
        self.count = 0
        self._shift = np.uint64(64 - (slots.bit_length() - 1))
        self._last = slots - 1

    def holds(self, keys: np.ndarray) -> np.ndarray:
        """Whether each key was added, bool [K]."""
        found = np.zeros(len(keys), bool)
        where, open_ = self._home(keys), np.arange(len(keys))
        while len(open_):
            there = self.slots[where]
            found[open_[there == keys[open_]]] = True
            on = (there != keys[open_]) & (there != 0)
            open_, where = open_[on], (where[on] + 1) & self._last
        return found

    def add(self, keys: np.ndarray) -> None:
        """Add keys that are not in the table, and differ from each other."""
        self.count += len(keys)
        where = self._home(keys)
        while len(keys):
            free = self.slots[where] == 0
            self.slots[where[free]] = keys[free]
            on = self.slots[where] != keys  # the slot was taken, or another of these keys came to it last
            keys, where = keys[on], (where[on] + 1) & self._last

    def keys(self) -> np.ndarray:
        return self.slots[self.slots != 0]

    def clear(self) -> None:
        self.slots[:] = 0
        self.count = 0

    def _home(self, keys: np.ndarray) -> np.ndarray:
        return (keys >> self._shift).astype(np.int64)
