"""Documents out of files, one at a time: memory is that of the longest one.

Nothing is repaired: what is broken stops the reading with its file and line, or is left out and counted where that is
asked for.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yayan.corpus.bad import Bad, BadLineError, take
from yayan.corpus.files import kind_of, text_files
from yayan.corpus.records import LONGEST_RECORD_BYTES, Record, Records, Split
from yayan.errors import UserError

FIELDS = ("text", "content", "body", "document", "article", "passage")  # that hold the text, if none is named


@dataclass(frozen=True)
class Document:
    """A text and where it begins: `line` counts from 1."""

    text: str
    source: Path
    line: int


def documents(
    paths: Iterable[Path], field: str | None = None, bad: Bad | None = None, split: Split = "paragraph"
) -> Iterator[Document]:
    """Documents of files and folders, in the order of `paths`; an empty text is handed on as it is.

    `field`: name of the text in an object or row; by default the first of FIELDS that is there, or the only one that is
    text. `split`: what is a document in a .txt file. Raises UserError (file and line) for bad UTF-8, NUL, bad JSON, a
    missing field; for a path that does not exist or cannot be read; for a file without any document. With `bad.skip`
    what is broken is left out (a paragraph goes on without its broken lines), and a file may hold nothing else.
    """
    for path in text_files(paths):
        found, before = False, bad.lines if bad else 0
        for record in Records(path, split, bad, field):
            text = text_of(record, path, field, bad)
            if text is not None:
                found = True
                yield Document(text, path, record.line)
        if not found and (bad is None or bad.lines == before):
            raise UserError("there is no document in this file", where=path, cure="leave it out")


def text_of(record: Record, source: Path, field: str | None, bad: Bad | None) -> str | None:
    """The text of a record of the file `source`; None if it is a blank line, or broken and taken by `bad`."""
    try:
        if kind_of(source) == ".txt":
            assert isinstance(record.raw, bytes)
            return _lines_of(record.raw, source, record.line, bad)
        where = f"{source}:{record.line}"
        row = object_of(record, where)
        return None if row is None else _field_of(row, field, where)
    except BadLineError as error:
        take(error, bad)
        return None


def object_of(record: Record, where: str) -> dict[str, Any] | None:
    """The object of a record, None for a blank line. Raises BadLineError."""
    if isinstance(record.raw, dict):
        return record.raw
    line = _decode(record.raw, where)
    if not line.strip():
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        what = f"this line is not JSON, {error}"
        raise BadLineError("not JSON", what, where=where, cure="mend or remove it") from error
    if not isinstance(row, dict):
        what = f"this line is a {type(row).__name__}, not a JSON object"
        raise BadLineError("not a JSON object", what, where=where, cure="write one object a line")
    return row


def check_text(value: object, name: str, where: str) -> str:
    """A string that can be written as UTF-8 and holds no NUL. Raises BadLineError."""
    if not isinstance(value, str):
        what = f"{name!r} is a {type(value).__name__}, not text"
        raise BadLineError("not text", what, where=where, cure="write it as a string")
    if "\0" in value:
        raise BadLineError("NUL", f"a NUL character is in {name!r}", where=where, cure="remove it")
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError as error:
        if "\udc80" <= value[error.start] <= "\udcff":
            byte = ord(value[error.start]) - 0xDC00
            what = f"this is not UTF-8, a byte of {name!r} is 0x{byte:02x}"
            raise BadLineError("not UTF-8", what, where=where, cure=CONVERT) from error
        what = f"half a surrogate pair is in {name!r}"
        raise BadLineError("half a surrogate pair", what, where=where, cure="remove it") from error
    if size > LONGEST_RECORD_BYTES:
        what = f"{name!r} has more than {LONGEST_RECORD_BYTES >> 20} MB"
        raise BadLineError("too long", what, where=where, cure="cut it into documents")
    return value


def names_of(row: dict[str, Any]) -> str:
    return ", ".join(map(str, row)) or "none"


CONVERT = "convert it, for example iconv -f GB18030 -t UTF-8"


def _lines_of(raw: bytes, source: Path, line: int, bad: Bad | None) -> str | None:
    """Text of a record of a .txt file, without its broken lines."""
    try:
        return _decode(raw, f"{source}:{line}")
    except BadLineError:
        kept = []
    for number, part in enumerate(raw.split(b"\n"), line):
        try:
            kept.append(_decode(part, f"{source}:{number}"))
        except BadLineError as error:
            take(error, bad)
    text = "\n".join(kept)
    return text if text.strip() else None


def _field_of(row: dict[str, Any], field: str | None, where: str) -> str:
    if field is None:
        texts = [name for name, value in row.items() if isinstance(value, str)]
        known = [name for name in FIELDS if name in texts] or [name for name in FIELDS if name in row]
        if not known and len(texts) != 1:
            what = f"no field is called {' or '.join(FIELDS[:2])}, there are {names_of(row)}"
            raise BadLineError("no such field", what, where=where, cure="name the one that holds the text")
        field = (known or texts)[0]
    elif field not in row:
        what = f"there is no field {field!r}, there are {names_of(row)}"
        raise BadLineError("no such field", what, where=where, cure="give the line this field")
    return check_text(row[field], field, where)


def _decode(raw: bytes, where: str) -> str:
    if b"\0" in raw:
        cure = "remove it, or convert UTF-16 to UTF-8"
        raise BadLineError("NUL", "a NUL byte is in this line", where=where, cure=cure)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"this is not UTF-8, byte {error.start + 1} of the line is 0x{raw[error.start]:02x}"
        raise BadLineError("not UTF-8", what, where=where, cure=CONVERT) from error
