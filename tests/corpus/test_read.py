"""Reading: every shape that is promised, and a sentence with file and line for everything else."""

import bz2
import gzip
import json
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from yayan.corpus.bad import SHOWN_PLACES, Bad
from yayan.corpus.chats import Chat, chats
from yayan.corpus.read import documents
from yayan.errors import UserError

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def messages(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_paragraphs_of_a_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    text = "\ufeff\n\n一\r\n  two\u2028three\n \t \nfour\x0bfive\n\n\nsix"
    path.write_bytes(COMPRESS[suffix](text.encode()))
    found = [(document.text, document.line) for document in documents([path])]
    assert found == [("一\n  two\u2028three", 3), ("four\x0bfive", 6), ("six", 9)]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_lines_of_json(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix]('{"text": "一\\n二"}\n\n{"n": 1, "text": ""}'.encode()))
    found = [(document.text, document.line) for document in documents([path])]
    assert found == [("一\n二", 1), ("", 3)]


def test_another_field(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "a", "body": "b"})
    assert [document.text for document in documents([path], "body")] == ["b"]


def test_a_folder_stands_for_its_text_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write(tmp_path / "c.jsonl", {"text": "3"})
    (tmp_path / "b" / "x.txt").write_text("2")
    (tmp_path / "a.txt").write_text("1")
    for name in ("README.md", "notes.md", ".hidden.txt", "yayan.json"):
        (tmp_path / name).write_text("not this")
    assert [document.text for document in documents([tmp_path])] == ["1", "2", "3"]
    assert [document.source.name for document in documents([tmp_path])] == ["a.txt", "x.txt", "c.jsonl"]


def test_memory_is_that_of_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    line = json.dumps({"text": "x" * 1000}) + "\n"
    path.write_text(line * 8_000)
    tracemalloc.start()
    assert sum(len(document.text) for document in documents([path])) == 8_000_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000


BROKEN = {
    "not UTF-8": ("a.txt", b"good\n\n\xb4\xf3\n", "a.txt:3", "byte 1 of the line is 0xb4"),
    "UTF-16": ("a.txt", "好".encode("utf-16"), "a.txt:1", "not UTF-8"),
    "NUL": ("a.txt", b"a\n\nb\0c\n", "a.txt:3", "NUL"),
    "NUL in a string": ("a.jsonl", b'{"text": "a\\u0000"}\n', "a.jsonl:1", "NUL"),
    "surrogate": ("a.jsonl", b'{"text": "\\ud800"}\n', "a.jsonl:1", "surrogate"),
    "not JSON": ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl:2", "not JSON"),
    "deep JSON": ("a.jsonl", b"[" * 100_000 + b"\n", "a.jsonl:1", "not JSON"),
    "list": ("a.jsonl", b'["text"]\n', "a.jsonl:1", "is a list"),
    "missing field": (
        "a.jsonl",
        b'{"body": 1, "id": 2}\n',
        "a.jsonl:1",
        "'body' is a int",
    ),
    "number": ("a.jsonl", b'{"text": 5}\n', "a.jsonl:1", "'text' is a int"),
    "empty": ("a.txt", b"", "a.txt", "no document"),
    "blank": ("a.jsonl", b"\n \n", "a.jsonl", "no document"),
    "cut gz": ("a.txt.gz", gzip.compress(b"abc\n" * 1000)[:-20], "a.txt.gz:1", "is broken"),
    "no gz": ("a.txt.gz", b"plain", "a.txt.gz:1", "is broken"),
    "cut xz": ("a.txt.xz", lzma.compress(b"abc")[:-20], "a.txt.xz:1", "is broken"),
    "no xz": ("a.txt.xz", b"plain", "a.txt.xz:1", "is broken"),
    "no bz2": ("a.txt.bz2", b"plain", "a.txt.bz2:1", "is broken"),
    "other kind": ("a.pdf", b"x", "a.pdf", "it must end in .txt, .jsonl, .json"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named(tmp_path: Path, case: str) -> None:
    name, data, place, sentence = BROKEN[case]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        list(documents([tmp_path / name]))
    assert place in str(caught.value)
    assert sentence in str(caught.value)
    assert str(caught.value).count("\n") == 0


LINES = [case for case in BROKEN if BROKEN[case][2].rpartition(":")[2].isdigit()]


@pytest.mark.parametrize("case", LINES)
def test_a_broken_line_stops_the_reading_or_is_counted(tmp_path: Path, case: str) -> None:
    name, data, place, sentence = BROKEN[case]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        list(documents([path], bad=Bad(skip=False)))
    assert place in str(caught.value)
    assert sentence in str(caught.value)
    assert str(caught.value).endswith(", or pass --skip-bad.")
    bad = Bad(skip=True)
    list(documents([path], bad=bad))
    assert bad.lines == 1
    (reason,) = bad.reasons
    assert bad.places == [f"{tmp_path / place}: {reason}"]


def test_what_is_good_is_read_around_what_is_bad(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes("一\n".encode() + b"\xff\n" + "二\n\n".encode() + b"a\0\n\n" + "三".encode())
    rows = ['{"text": "四"}', "{", "[]", '{"id": 1}', '{"text": 5}', "", '{"text": "五"}', "}"]
    objects = tmp_path / "b.jsonl.xz"
    objects.write_bytes(lzma.compress("\n".join(rows).encode()))
    bad = Bad(skip=True)
    found = [(document.text, document.line) for document in documents([text, objects], bad=bad)]
    assert found == [("一\n二", 1), ("三", 7), ("四", 1), ("五", 7)]
    assert bad.figures() == {
        "lines": 7,
        "reasons": {
            "not UTF-8": 1,
            "NUL": 1,
            "not JSON": 2,
            "not a JSON object": 1,
            "no such field": 1,
            "not text": 1,
        },
        "places": [
            f"{text}:2: not UTF-8",
            f"{text}:5: NUL",
            f"{objects}:2: not JSON",
            f"{objects}:3: not a JSON object",
            f"{objects}:4: no such field",
        ],
    }
    assert len(bad.places) == SHOWN_PLACES


STREAMS = [case for case in BROKEN if case not in LINES]


@pytest.mark.parametrize("case", STREAMS)
def test_what_is_no_bad_line_is_not_skipped(tmp_path: Path, case: str) -> None:
    name, data, _, sentence = BROKEN[case]
    (tmp_path / name).write_bytes(data)
    bad = Bad(skip=True)
    with pytest.raises(UserError, match=sentence):
        list(documents([tmp_path / name], bad=bad))
    assert bad.lines == 0


def test_paths_that_hold_nothing_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        list(documents([tmp_path / "missing.txt"]))
    with pytest.raises(UserError, match="no .txt, .jsonl, .*file is in this folder"):
        list(documents([tmp_path]))
    with pytest.raises(UserError, match="no file was named"):
        list(documents([]))


def test_the_three_shapes_of_a_chat_are_one(tmp_path: Path) -> None:
    wanted = messages(("user", "ask\nmore"), ("assistant", "say"))
    path = write(
        tmp_path / "a.jsonl",
        {"messages": wanted},
        {"instruction": "ask", "input": "more", "output": "say"},
        {"conversations": [{"from": "human", "value": "ask\nmore"}, {"from": "gpt", "value": "say"}]},
    )
    assert list(chats([path])) == [Chat(wanted, path, line) for line in (1, 2, 3)]


def test_a_system_message_and_an_open_end(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {"messages": messages(("system", "be"), ("user", "a"))},
        {"system": "be", "instruction": "a", "input": "", "output": "b"},
        {"system": "be", "conversations": [{"from": "human", "value": "a"}]},
    )
    found = [chat.messages for chat in chats([path])]
    assert found[0] == found[2] == messages(("system", "be"), ("user", "a"))
    assert found[1] == messages(("system", "be"), ("user", "a"), ("assistant", "b"))


BROKEN_CHATS = {
    "unknown role": ({"messages": messages(("tool", "a"))}, "role 'tool' is unknown"),
    "two users": (
        {"messages": messages(("user", "a"), ("user", "b"))},
        "turn 2 is the user's, not the assistant's",
    ),
    "assistant first": ({"messages": messages(("assistant", "a"))}, "turn 1 is the assistant's"),
    "late system": ({"messages": messages(("user", "a"), ("system", "b"))}, "turn 2 is the system's"),
    "no turn": ({"messages": []}, "has no turn"),
    "only system": ({"messages": messages(("system", "a"))}, "has no turn"),
    "no content": ({"messages": [{"role": "user"}]}, "lacks 'role' and 'content', it has role"),
    "null content": ({"messages": [{"role": "user", "content": None}]}, "'content' is a NoneType"),
    "list as role": ({"messages": [{"role": [], "content": "a"}]}, "'role' is a list"),
    "text as message": ({"messages": ["hello"]}, "a message is a str"),
    "text as messages": ({"messages": "hello"}, "'messages' is not a list"),
    "no output": ({"instruction": "a"}, "nor 'output', there are instruction"),
    "other object": ({"text": "a"}, "neither 'messages' nor 'instruction' nor 'output', there are text"),
    "number as input": ({"instruction": "a", "input": 5, "output": "b"}, "'input' is a int"),
}


@pytest.mark.parametrize("case", BROKEN_CHATS)
def test_a_broken_chat_is_named(tmp_path: Path, case: str) -> None:
    row, sentence = BROKEN_CHATS[case]
    path = write(tmp_path / "a.jsonl", {"messages": messages(("user", "good"))}, row)
    with pytest.raises(UserError) as caught:
        list(chats([path]))
    assert f"{path}:2" in str(caught.value)
    assert sentence in str(caught.value)


def test_chats_are_no_text_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(UserError, match="it must end in .jsonl"):
        list(chats([tmp_path / "a.txt"]))
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no chat in this file"):
        list(chats([tmp_path / "a.jsonl"]))
