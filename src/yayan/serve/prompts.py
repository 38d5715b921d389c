"""A file of prompts in, a file of answers out, in the same order; gone on with wherever it was stopped.

What was asked of whom stands beside the answers, in OUT.question: no answers of different kinds come together.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from io import BufferedRandom
from pathlib import Path
from typing import Any

from yayan.engine.llamacpp import Message
from yayan.engine.sampling import Sampling
from yayan.errors import UserError
from yayan.model.folder import read_json
from yayan.partial import whole_lines
from yayan.progress import Progress
from yayan.serve.speaker import Speaker
from yayan.stage import differences

ROLES = {"system", "user", "assistant"}
Asked = dict[str, Any]  # {"prompt": text} or {"messages": [...]}


def read_prompts(path: Path) -> list[Asked]:
    """The lines of a text file, or the objects of a .jsonl file with `prompt` or `messages`. Raises UserError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("the prompts cannot be read", where=path, cure="name a UTF-8 file") from error
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if path.suffix == ".jsonl":
        found = [asked_by(line, f"{path}:{number}") for number, line in numbered]
    else:
        found = [{"prompt": line.strip()} for _, line in numbered]
    if not found:
        raise UserError("there is no prompt in this file", where=path, cure="write one a line")
    return found


def asked_by(line: str, where: str) -> Asked:
    """What a line of JSON asks."""
    cure = 'write {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}'
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError("this is not JSON", where=where, cure=cure) from error
    if isinstance(row, dict) and isinstance(row.get("prompt"), str):
        return {"prompt": row["prompt"]}
    messages = row.get("messages") if isinstance(row, dict) else None
    whole = isinstance(messages, list) and messages and all(is_message(item) for item in messages)
    if messages is None or not whole or messages[-1]["role"] != "user":
        raise UserError("this line asks nothing", where=where, cure=cure)
    return {"messages": messages}


def is_message(item: object) -> bool:
    return isinstance(item, dict) and item.get("role") in ROLES and isinstance(item.get("content"), str)


def answer_file(
    opening: AbstractContextManager[Speaker],
    prompts: list[Asked],
    out: Path,
    sampling: Sampling,
    system: Message,
    question: dict[str, Any],
) -> tuple[int, int]:
    """Append the answers that are missing, each as one line as soon as its turn comes; how many, and how many of all
    failed. The model is opened only if one is missing.

    `question`: what the answers depend on besides the prompts, in the form of a stage's (`stage.make_question`). Raises
    UserError for answers to other prompts or to another question.
    """
    with opened(out) as stream:
        failed = done = 0
        for record in kept(stream, prompts, out):
            failed += "error" in record
            done += 1
        if done:
            refuse_other_question(out, question, whole=done == len(prompts))
        if done == len(prompts):
            return 0, failed
        with opening as speaker, Progress("chat", total=len(prompts), unit="answers") as bar:
            question_file(out).write_text(json.dumps(question, ensure_ascii=False) + "\n", encoding="utf-8")
            bar.resume(done)
            chats = [messages_of(asked, system) for asked in prompts[done:]]
            for asked, reply in zip(prompts[done:], speaker.many(chats, sampling), strict=True):
                told = {name: value for name, value in asdict(reply).items() if value is not None}
                stream.write(json.dumps(asked | told, ensure_ascii=False).encode() + b"\n")
                stream.flush()
                failed += reply.error is not None
                bar.advance()
    return len(prompts) - done, failed


def question_file(out: Path) -> Path:
    return out.with_name(out.name + ".question")


def refuse_other_question(out: Path, question: dict[str, Any], *, whole: bool) -> None:
    """UserError if the answers that are there were not made as these would be, or if nothing tells how; what is `whole`
    and without a word on it stays what it is.
    """
    cure = "name another file for the answers, or remove this one"
    path = question_file(out)
    if not path.exists():
        if whole:
            return
        raise UserError(f"{path.name} is not there to tell how these answers were made", where=out, cure=cure)
    found = differences(read_json(path), question)
    if found:
        raise UserError(f"these answers were asked for otherwise: {'; '.join(found)}", where=out, cure=cure)


@contextmanager
def opened(out: Path) -> Iterator[BufferedRandom]:
    """The file of answers, ours alone. Raises UserError if another process writes it."""
    try:
        stream = out.open("a+b")
    except OSError as error:
        raise UserError("the answers cannot be written", where=out, cure="name another file") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError("another process writes these answers", where=out, cure="let it end") from error
        try:
            yield stream
        except UserError:  # what was asked cannot be: an empty file would be all that came of it
            if not stream.seek(0, os.SEEK_END):
                out.unlink()
            raise


def kept(stream: BufferedRandom, prompts: list[Asked], out: Path) -> Iterator[dict[str, Any]]:
    """The whole lines that are there; half a line at the end is cut off. Raises UserError for answers to others."""
    for number, line in enumerate(whole_lines(stream), 1):
        try:
            record = json.loads(line)
            fits = number <= len(prompts) and prompts[number - 1].items() <= record.items()
        except (ValueError, AttributeError):
            fits = False
        if not fits:
            what = "this is no answer to the prompt of the same number"
            raise UserError(what, where=f"{out}:{number}", cure="name another file for the answers")
        yield record


def messages_of(asked: Asked, system: Message) -> list[Message]:
    """The chat, which begins with a system message unless it brings its own."""
    messages = asked.get("messages") or [{"role": "user", "content": asked["prompt"]}]
    return messages if messages[0]["role"] == "system" else [system, *messages]
