"""How far a packing has come, on disk: what was written, what each source gave, and what was seen of its documents.

One SQLite file, one transaction a save. What stands in the shards behind the last save is cut off and made again, so a
run that was killed anywhere goes on to the same bytes.
"""

import json
import sqlite3
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from yayan.corpus.counts import Counts
from yayan.corpus.shards import Written

JOURNAL_NAME = ".journal.sqlite"
SAVE_SECONDS = 5.0


@dataclass
class Place:
    """Where the next block is read and written: `records` of the file `source` (its number) are done."""

    source: int = 0
    records: int = 0
    position: int = 0  # bytes of that file, as it lies on the disk
    dropped_bytes: int = 0  # of the list of dropped documents
    written: Written = field(default_factory=Written)


class Journal:
    """`with Journal(folder) as journal: place = journal.place(); ...; journal.save(place, sources)`"""

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL_NAME
        self.database = sqlite3.connect(self.path, isolation_level=None)
        self.database.execute("PRAGMA journal_mode = WAL")
        self.database.execute("PRAGMA synchronous = NORMAL")
        self.database.execute("CREATE TABLE IF NOT EXISTS place (only_one INTEGER PRIMARY KEY, place)")
        self.database.execute("CREATE TABLE IF NOT EXISTS sources (number INTEGER PRIMARY KEY, counts)")
        self.database.execute("BEGIN")
        self._saved = time.monotonic()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.database.close()

    def place(self) -> Place:
        """Where the last save was made; the beginning if there was none."""
        row = self.database.execute("SELECT place FROM place").fetchone()
        if row is None:
            return Place()
        values = json.loads(row[0])
        return Place(**{**values, "written": Written(**values["written"])})

    def sources(self) -> dict[int, Counts]:
        """The counts of each source so far, by its number."""
        rows = self.database.execute("SELECT number, counts FROM sources")
        return {number: Counts.from_json(json.loads(text)) for number, text in rows}

    def clear(self) -> None:
        """Begin anew."""
        tables = self.database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in tables:
            self.database.execute(f"DELETE FROM {name}")

    @property
    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self._saved >= SAVE_SECONDS

    def save(self, place: Place, sources: dict[int, Counts]) -> None:
        """Commit; `sources` are the counts that have changed. What `place` says must be on the disk before."""
        execute = self.database.execute
        execute("INSERT OR REPLACE INTO place VALUES (0, ?)", (json.dumps(asdict(place)),))
        for number, counts in sources.items():
            execute("INSERT OR REPLACE INTO sources VALUES (?, ?)", (number, json.dumps(counts.as_json())))
        execute("COMMIT")
        execute("BEGIN")
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Delete it, when all is written."""
        self.database.close()
        for ending in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + ending).unlink(missing_ok=True)
