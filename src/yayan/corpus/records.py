"""Records of a file, one at a time and not yet understood: cheap enough for one process to feed many.

`.txt`: a record is a paragraph (lines up to a blank one), a line, or the whole file. `.jsonl`: a line. `.json`: an
object of a list (a file that begins with an object is read as `.jsonl`). `.csv`, `.tsv`: a row, named by the first one.
`.parquet`: a row. Memory is that of the longest record; one of more than LONGEST_RECORD_BYTES is refused.
"""

import csv
import io
import itertools
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import ijson

from yayan.corpus.bad import Bad, BadLineError, take
from yayan.corpus.files import BROKEN, is_broken, kind_of, unpacked
from yayan.errors import UserError

LONGEST_RECORD_BYTES = 64 << 20
PARQUET_ROWS = 256  # at once
SHORT_BYTES = 64  # a line this short may be blank though it has bytes: spaces of other scripts

Split = Literal["paragraph", "line", "file"]


@dataclass(frozen=True, slots=True)
class Record:
    """Where it begins (`line` counts from 1; in .json and .parquet it is the number of the object), and what it is."""

    line: int
    raw: bytes | dict[str, Any]


class Records:
    """The records of a file, in order, to be gone through once.

    Broken ones go to `bad`, which raises UserError unless it skips; without one BadLineError is raised. A file that
    cannot be read on is one such place, at the last record that was whole. Raises UserError for one that cannot be
    opened.
    """

    def __init__(
        self, path: Path, split: Split = "paragraph", bad: Bad | None = None, field: str | None = None
    ) -> None:
        """`field`: the only one that is needed, where others need not be read."""
        self.path, self.split, self.bad, self.field = path, split, bad, field
        self.number = 0  # of the line or record that is read
        # Bytes of the file, as it lies on the disk, that are read, for progress; to be asked between two records
        self.position: Callable[[], int] = int

    def __iter__(self) -> Iterator[Record]:
        kinds = {".csv": ",", ".tsv": "\t"}
        kind = kind_of(self.path)
        try:
            with self.path.open("rb") as file:
                stream, self.position = unpacked(file, self.path.suffix), file.tell
                if kind == ".parquet":
                    yield from self._parquet(stream)
                elif kind in kinds:
                    yield from self._rows(stream, kinds[kind])
                elif kind == ".json" and (stream := _Peeked(stream)).first == b"[":
                    yield from self._objects(stream)
                elif kind == ".txt" and self.split == "file":
                    yield from self._whole(stream)
                elif kind == ".txt" and self.split == "paragraph":
                    yield from self._paragraphs(stream)
                else:
                    yield from (Record(number, raw) for number, raw in self._lines(stream))
        except UserError:
            raise
        except _ERRORS as error:
            if isinstance(error, OSError) and not is_broken(error):
                reason = error.strerror or str(error)
                raise UserError(
                    f"the file cannot be read, {reason}", where=self.path, cure="copy it again"
                ) from error
            what = f"the file is broken, {' '.join(str(error).split()) or type(error).__name__}"
            self._refuse("broken file", what, self.number + 1, "copy it again")

    def _refuse(self, reason: str, what: str, line: int, cure: str) -> None:
        take(BadLineError(reason, what, where=f"{self.path}:{line}", cure=cure), self.bad)

    def _too_long(self, what: str, line: int) -> None:
        size = (
            f"{LONGEST_RECORD_BYTES >> 20} MB"
            if LONGEST_RECORD_BYTES >> 20
            else f"{LONGEST_RECORD_BYTES} bytes"
        )
        self._refuse("too long", f"this {what} has more than {size}", line, "cut it into documents")

    def _lines(self, stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
        """Numbered lines without their ends (LF or CRLF)."""
        while raw := stream.readline(LONGEST_RECORD_BYTES):
            self.number += 1
            if self.number == 1:
                raw = raw.removeprefix(BOM_UTF8)
            if len(raw) >= LONGEST_RECORD_BYTES and not raw.endswith(b"\n"):
                while raw and not raw.endswith(b"\n"):
                    raw = stream.readline(1 << 20)
                self._too_long("line", self.number)
                continue
            yield self.number, raw.removesuffix(b"\n").removesuffix(b"\r")

    def _paragraphs(self, stream: IO[bytes]) -> Iterator[Record]:
        lines: list[bytes] = []
        first = size = 0
        for number, raw in itertools.chain(self._lines(stream), [(0, b"")]):
            if not _is_blank(raw):
                first = first if size else number
                size += len(raw) + 1
                if size <= LONGEST_RECORD_BYTES:
                    lines.append(raw)
            elif size:
                if size <= LONGEST_RECORD_BYTES:
                    yield Record(first, b"\n".join(lines))
                else:
                    self._too_long("paragraph", first)
                lines, size = [], 0

    def _whole(self, stream: IO[bytes]) -> Iterator[Record]:
        raw = stream.read(LONGEST_RECORD_BYTES + 1)
        if len(raw) > LONGEST_RECORD_BYTES:
            self._too_long("file", 1)
        elif raw:
            yield Record(1, raw.removeprefix(BOM_UTF8).replace(b"\r\n", b"\n"))

    def _objects(self, stream: IO[bytes]) -> Iterator[Record]:
        for item in ijson.items(stream, "item", use_float=True):
            self.number += 1
            if isinstance(item, dict):
                yield Record(self.number, item)
            else:
                what = f"this item is a {type(item).__name__}, not a JSON object"
                self._refuse("not a JSON object", what, self.number, "make the file a list of objects")

    def _rows(self, stream: IO[bytes], delimiter: str) -> Iterator[Record]:
        csv.field_size_limit(LONGEST_RECORD_BYTES)
        # bytes that are not UTF-8 become lone surrogates, which are refused where the text is looked at
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        names = next(rows, [])
        self.number = rows.line_num
        for row in rows:
            line, self.number = self.number + 1, rows.line_num
            if len(row) == len(names):
                yield Record(line, dict(zip(names, row, strict=True)))
            elif row:
                what = f"this row has {len(row)} fields, not the {len(names)} of the first"
                self._refuse("wrong number of fields", what, line, "mend or remove it")

    def _parquet(self, stream: IO[bytes]) -> Iterator[Record]:
        import pyarrow.parquet  # 0.2 s, which most readings need not spend

        table = pyarrow.parquet.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)
        size, rows = self.path.stat().st_size, table.metadata.num_rows
        self.position = lambda: size * self.number // rows  # it is not read from the front
        columns = [self.field] if self.field in table.schema_arrow.names else None
        for batch in table.iter_batches(PARQUET_ROWS, columns=columns, use_threads=False):
            for row in batch.to_pylist():
                self.number += 1
                yield Record(self.number, row)


class _Peeked(io.BufferedReader):
    """A stream of which the first byte that is no white space is known."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream)  # type: ignore[arg-type]
        head = self.peek(4096).removeprefix(BOM_UTF8)
        if self.peek(3).startswith(BOM_UTF8):
            self.read(len(BOM_UTF8))
        self.first = head.lstrip()[:1]


# Arrow's and UTF-8's errors are ValueErrors
_ERRORS = (ijson.JSONError, csv.Error, OSError, ValueError, *BROKEN)


def _is_blank(raw: bytes) -> bool:
    return not raw.strip() or (len(raw) < SHORT_BYTES and not raw.decode(errors="replace").strip())
