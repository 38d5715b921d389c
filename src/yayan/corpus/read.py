"""Documents and chats out of files, one at a time: memory is that of the longest line or paragraph.

`.txt`: a document is a paragraph, that is, lines up to a blank one. `.jsonl`: a line is an object; blank lines do not
count. Either may be compressed (`.gz`, `.xz`, `.bz2`). A folder stands for all such files in it, sorted by name; other
files there are passed over. Nothing is repaired: a broken line stops the reading with its file and line, or is left out
and counted where that is asked for.
"""

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from yayan import lineage
from yayan.corpus.bad import Bad, BadLineError
from yayan.errors import UserError

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
KINDS = (".jsonl", ".txt")
CHAT_KINDS = (".jsonl",)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}

T = TypeVar("T")
Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


@dataclass(frozen=True)
class Document:
    """A text and where it begins: `line` counts from 1."""

    text: str
    source: Path
    line: int


@dataclass(frozen=True)
class Chat:
    """Messages: at most one of the system first, then user and assistant in turn, the user first."""

    messages: list[Message]
    source: Path
    line: int


def documents(paths: Iterable[Path], field: str = "text", bad: Bad | None = None) -> Iterator[Document]:
    """Documents of files and folders, in the order of `paths`; an empty text is handed on as it is.

    `field`: name of the text in a jsonl object. Raises UserError (file and line) for bad UTF-8, NUL, bad JSON, a
    missing field; for a path that does not exist or cannot be read; for a file without any document. With `bad.skip`
    broken lines are left out (a paragraph goes on without them), and a file may hold nothing else.
    """
    for path in text_files(paths):
        found, before = False, bad.lines if bad else 0
        for document in _paragraphs(path, bad) if kind_of(path) == ".txt" else _texts(path, field, bad):
            found = True
            yield document
        if not found and (bad is None or bad.lines == before):
            raise UserError("there is no document in this file", where=path, cure="leave it out")


def chats(paths: Iterable[Path]) -> Iterator[Chat]:
    """Chats of jsonl files: `messages`, Alpaca's `instruction`, `input`, `output`, ShareGPT's `conversations`.

    Alpaca's user turn is the instruction, or the instruction, a line break and the input (as in the reference
    project). A chat may end with the user: it has no answer to learn. Raises UserError as `documents` does, and for an
    unknown role, turns that do not alternate, and contents that are not text.
    """
    for path in text_files(paths, CHAT_KINDS):
        found = False
        for line, row in _readings(path, _object):
            if row is None:
                continue
            found = True
            where = f"{path}:{line}"
            messages = [_message(item, where) for item in _turns(row, where)]
            _check_order(messages, where)
            yield Chat(messages, path, line)
        if not found:
            raise UserError("there is no chat in this file", where=path, cure="leave it out")


def text_files(paths: Iterable[Path], kinds: Sequence[str] = KINDS) -> list[Path]:
    """The files that `paths` stand for. Raises UserError for a path that is missing or of another kind."""
    files: list[Path] = []
    names = " or ".join(kinds)
    for path in paths:
        if path.is_dir():
            inside = [file for file in lineage.files_of(path) if kind_of(file) in kinds]
            if not inside:
                raise UserError(f"no {names} file is in this folder", where=path, cure="name another")
            files += inside
        elif not path.exists():
            raise UserError("there is no such file or folder", where=path, cure="check the path")
        elif kind_of(path) not in kinds:
            cure = f"it must end in {names}, with .gz, .xz or .bz2 behind it if it is compressed"
            raise UserError("this kind of file is not read", where=path, cure=cure)
        else:
            files.append(path)
    if not files:
        raise UserError("no file was named", cure="name files or folders of texts")
    return files


def kind_of(path: Path) -> str:
    """`.jsonl` for `a.jsonl` and `a.jsonl.xz`."""
    return Path(path.stem).suffix if path.suffix in OPENERS else path.suffix


def _paragraphs(path: Path, bad: Bad | None) -> Iterator[Document]:
    lines: list[str] = []
    first = 0
    for number, line in _readings(path, _decode, bad):
        if line.strip():
            first = first if lines else number
            lines.append(line)
        elif lines:
            yield Document("\n".join(lines), path, first)
            lines = []
    if lines:
        yield Document("\n".join(lines), path, first)


def _texts(path: Path, field: str, bad: Bad | None) -> Iterator[Document]:
    def read(raw: bytes, where: str) -> str | None:
        row = _object(raw, where)
        if row is None:
            return None
        if field not in row:
            what = f"there is no field {field!r}, there are {_names(row)}"
            raise BadLineError("no such field", what, where=where, cure="give the line this field")
        return _text(row[field], field, where)

    for line, text in _readings(path, read, bad):
        if text is not None:
            yield Document(text, path, line)


def _readings(path: Path, read: Callable[[bytes, str], T], bad: Bad | None = None) -> Iterator[tuple[int, T]]:
    """Numbered lines as `read(line, where)` understands them; `bad` takes those for which it raises BadLineError."""
    for number, raw in _lines(path):
        try:
            value = read(raw, f"{path}:{number}")
        except BadLineError as line:
            if bad is None:
                raise
            bad.take(line)
        else:
            yield number, value


def _object(raw: bytes, where: str) -> dict[str, Any] | None:
    """The JSON object of a line, None for a blank line."""
    line = _decode(raw, where)
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


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines without their ends (LF or CRLF)."""
    number = 0
    try:
        with _open(path) as stream:
            for number, raw in enumerate(stream, start=1):
                if number == 1:
                    raw = raw.removeprefix(BYTE_ORDER_MARK)
                yield number, raw.removesuffix(b"\n").removesuffix(b"\r")
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        cure = "copy it again"
        raise UserError(
            f"the compressed file is broken, {error}", where=f"{path}:{number + 1}", cure=cure
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"the file cannot be read, {reason}", where=path, cure="copy it again") from error


def _open(path: Path) -> IO[bytes]:
    return OPENERS.get(path.suffix, open)(path, "rb")


def _decode(raw: bytes, where: str) -> str:
    if b"\0" in raw:
        cure = "remove it, or convert UTF-16 to UTF-8"
        raise BadLineError("NUL", "a NUL byte is in this line", where=where, cure=cure)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"this is not UTF-8, byte {error.start + 1} of the line is 0x{raw[error.start]:02x}"
        cure = "convert it, for example iconv -f GB18030 -t UTF-8"
        raise BadLineError("not UTF-8", what, where=where, cure=cure) from error


def _text(value: object, name: str, where: str) -> str:
    """A string that can be written as UTF-8 and holds no NUL."""
    if not isinstance(value, str):
        what = f"{name!r} is a {type(value).__name__}, not text"
        raise BadLineError("not text", what, where=where, cure="write it as a string")
    if "\0" in value:
        raise BadLineError("NUL", f"a NUL character is in {name!r}", where=where, cure="remove it")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        what = f"half a surrogate pair is in {name!r}"
        raise BadLineError("half a surrogate pair", what, where=where, cure="remove it") from error
    return value


def _names(row: dict[str, Any]) -> str:
    return ", ".join(row) or "none"


def _turns(row: dict[str, Any], where: str) -> list[Any]:
    """The row as a list of messages, whichever of the three shapes it has."""
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for name in ("messages", "conversations"):
        if name in row:
            if not isinstance(row[name], list):
                raise UserError(f"{name!r} is not a list of messages", where=where)
            return system + row[name]
    missing = [name for name in ("instruction", "output") if name not in row]
    if missing:
        what = f"there is neither 'messages' nor {' nor '.join(map(repr, missing))}, there are {_names(row)}"
        raise UserError(what, where=where, cure="write 'messages', a list of role and content")
    question = _text(row["instruction"], "instruction", where)
    extra = _text(row.get("input") or "", "input", where)
    user = {"role": "user", "content": f"{question}\n{extra}" if extra else question}
    return [*system, user, {"role": "assistant", "content": row["output"]}]


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise UserError(f"a message is a {type(item).__name__}, not an object", where=where)
    for role_name, content_name in (("role", "content"), ("from", "value")):
        if role_name in item and content_name in item:
            role = _text(item[role_name], role_name, where)
            content = _text(item[content_name], content_name, where)
            return {"role": SHAREGPT_ROLES.get(role, role), "content": content}
    raise UserError(f"a message lacks 'role' and 'content', it has {_names(item)}", where=where)


def _check_order(messages: list[Message], where: str) -> None:
    roles = [message["role"] for message in messages]
    for role in roles:
        if role not in ("system", "user", "assistant"):
            raise UserError(f"the role {role!r} is unknown", where=where, cure="use system, user, assistant")
    turns = roles[1:] if roles[:1] == ["system"] else roles
    expected = ["user", "assistant"] * len(turns)
    if not turns:
        raise UserError("the chat has no turn", where=where, cure="remove it")
    if turns != expected[: len(turns)]:
        wrong = next(i for i, role in enumerate(turns) if role != expected[i])
        what = f"turn {wrong + 1} is the {turns[wrong]}'s, not the {expected[wrong]}'s"
        raise UserError(what, where=where, cure="user and assistant must take turns, the user first")
