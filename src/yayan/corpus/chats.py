"""Chats out of files, in the three usual shapes, one at a time."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yayan.corpus.bad import Bad, BadLineError, take
from yayan.corpus.files import CHAT_KINDS, text_files
from yayan.corpus.read import check_text, names_of, object_of
from yayan.corpus.records import Record, Records
from yayan.errors import UserError

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
MEND = "mend or remove it"

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


@dataclass(frozen=True)
class Chat:
    """Messages: at most one of the system first, then user and assistant in turn, the user first."""

    messages: list[Message]
    source: Path
    line: int


def chats(paths: Iterable[Path], bad: Bad | None = None) -> Iterator[Chat]:
    """Chats of files: `messages`, Alpaca's `instruction`, `input`, `output`, ShareGPT's `conversations`.

    Alpaca's user turn is the instruction, or the instruction, a line break and the input (as in the reference
    project). A chat may end with the user: it has no answer to learn. Raises UserError as `documents` does, and for an
    unknown role, turns that do not alternate, and contents that are not text; `bad` may take these.
    """
    for path in text_files(paths, CHAT_KINDS):
        found, before = False, bad.lines if bad else 0
        for record in Records(path, bad=bad):
            chat = chat_of(record, path, bad)
            if chat is not None:
                found = True
                yield chat
        if not found and (bad is None or bad.lines == before):
            raise UserError("there is no chat in this file", where=path, cure="leave it out")


def chat_of(record: Record, source: Path, bad: Bad | None) -> Chat | None:
    """The chat of a record of the file `source`; None if it is a blank line, or broken and taken by `bad`."""
    where = f"{source}:{record.line}"
    try:
        row = object_of(record, where)
        if row is None:
            return None
        messages = [_message(item, where) for item in _turns(row, where)]
        _check_order(messages, where)
    except BadLineError as error:
        take(error, bad)
        return None
    return Chat(messages, source, record.line)


def _turns(row: dict[str, Any], where: str) -> list[Any]:
    """The row as a list of messages, whichever of the three shapes it has."""
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for name in ("messages", "conversations"):
        if row.get(name) is not None or (name in row and "instruction" not in row):
            if not isinstance(row[name], list):
                what = f"{name!r} is not a list of messages"
                raise BadLineError("no messages", what, where=where, cure=MEND)
            return system + row[name]
    missing = [name for name in ("instruction", "output") if name not in row]
    if missing:
        what = (
            f"there is neither 'messages' nor {' nor '.join(map(repr, missing))}, there are {names_of(row)}"
        )
        cure = "write 'messages', a list of role and content"
        raise BadLineError("no messages", what, where=where, cure=cure)
    question = check_text(row["instruction"], "instruction", where)
    extra = check_text(row.get("input") or "", "input", where)
    user = {"role": "user", "content": f"{question}\n{extra}" if extra else question}
    return [*system, user, {"role": "assistant", "content": row["output"]}]


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        what = f"a message is a {type(item).__name__}, not an object"
        raise BadLineError("not a message", what, where=where, cure=MEND)
    for role_name, content_name in (("role", "content"), ("from", "value")):
        if role_name in item and content_name in item:
            role = check_text(item[role_name], role_name, where)
            content = check_text(item[content_name], content_name, where)
            return {"role": SHAREGPT_ROLES.get(role, role), "content": content}
    what = f"a message lacks 'role' and 'content', it has {names_of(item)}"
    raise BadLineError("not a message", what, where=where, cure=MEND)


def _check_order(messages: list[Message], where: str) -> None:
    roles = [message["role"] for message in messages]
    for role in roles:
        if role not in ("system", "user", "assistant"):
            what, cure = f"the role {role!r} is unknown", "use system, user, assistant"
            raise BadLineError("unknown role", what, where=where, cure=cure)
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns:
        raise BadLineError("no turn", "the chat has no turn", where=where, cure="remove it")
    expected = ["user", "assistant"] * len(turns)
    if turns != expected[: len(turns)]:
        wrong = next(i for i, role in enumerate(turns) if role != expected[i])
        what = f"turn {wrong + 1} is the {turns[wrong]}'s, not the {expected[wrong]}'s"
        cure = "user and assistant must take turns, the user first"
        raise BadLineError("turns out of order", what, where=where, cure=cure)
