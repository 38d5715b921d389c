"""A file of prompts: every one is answered once, in order, whatever happens in between."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from yayan.engine.sampling import Sampling
from yayan.errors import UserError
from yayan.serve.prompts import answer_file, read_prompts
from yayan.serve.speaker import open_speaker
from yayan.serve.terminal import Chat

SYSTEM = {"role": "system", "content": "Answer."}
GREEDY = Sampling(temperature=0, max_tokens=6)
QUESTION: dict[str, Any] = {"stage": "chat", "options": {}, "inputs": {}}


def command(model: Path, prompts: Path, out: Path, *options: str) -> list[str]:
    files = [
        "--file",
        str(prompts),
        "--out",
        str(out),
        "--threads",
        "1",
        "--parallel",
        "2",
        "--temperature",
        "0",
    ]
    return [sys.executable, "-m", "yayan", "chat", str(model), *files, *options]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("".join(f"{i} 河边住着谁？\n\n" for i in range(40)), encoding="utf-8")
    return path


def test_killed_and_gone_on_with(gguf: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    words = command(gguf, prompts, out, "--max-tokens", "100")
    for _ in range(2):  # killed with some answers there, twice
        before = out.read_bytes().count(b"\n") if out.exists() else 0
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while (
            not (out.exists() and out.read_bytes().count(b"\n") > before + 3) and time.monotonic() < deadline
        ):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert before + 3 < out.read_bytes().count(b"\n") < 40
        with out.open("ab") as stream:
            stream.write(b'{"prompt": "7 \xe6\xb2')  # half a line, as a crash of the machine leaves one
    subprocess.run(words, check=True, timeout=120, capture_output=True)
    first = out.stat().st_mtime_ns
    assert all(row["tokens"] and "answer" in row for row in lines_of(out))
    assert [row["prompt"] for row in lines_of(out)] == [f"{i} 河边住着谁？" for i in range(40)]
    result = subprocess.run(words, timeout=120, capture_output=True, text=True)
    assert result.returncode == 0
    assert "40 answers" in result.stderr
    assert "finished before" in result.stderr
    assert out.stat().st_mtime_ns == first, "nothing is left to do"


def test_chats_and_a_prompt_that_is_too_long(gguf: Path, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = [
        {"prompt": "the river"},
        {"prompt": "河边" * 600},
        {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "老人"}]},
        {"messages": [{"role": "user", "content": "the river"}]},
    ]
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in asked))
    tables: dict[str, list[dict[str, Any]]] = {}
    for engine, model in (("llamacpp", gguf), ("torch", gguf.parent / "tiny-chat")):
        out = tmp_path / f"{engine}.jsonl"
        opening = open_speaker(engine, model, threads=1, parallel=2)  # type: ignore[arg-type]
        assert answer_file(opening, read_prompts(file), out, GREEDY, SYSTEM, QUESTION) == (4, 1)
        rows = tables[engine] = lines_of(out)
        assert [{key: row[key] for key in given} for row, given in zip(rows, asked, strict=True)] == asked
        assert rows[0]["answer"] == rows[3]["answer"], "the same system prompt for both"
        assert "tokens" in rows[1]["error"]
        assert rows[0]["tokens"] == 6
        assert rows[0]["finish_reason"] == "length"
    for here, there in zip(tables["llamacpp"], tables["torch"], strict=True):
        assert here.get("answer", "").rstrip("\ufffd") == there.get("answer", "").rstrip("\ufffd")


def answered(model: Path, out: Path, prompts: str, **settings: Any) -> list[dict[str, Any]]:
    """The answers after `yayan chat` was told to answer so many prompts."""
    file = out.with_name("asked.txt")
    file.write_text(prompts)
    Chat(
        model=model, file=file, out=out, **{"threads": 1, "temperature": 0, "max_tokens": 6} | settings
    ).run()
    return lines_of(out)


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"temperature": 0.5}, "temperature was 0, is 0.5"),
        ({"seed": 3}, "seed was None, is 3"),
        ({"max_tokens": 7}, "max_tokens was 6, is 7"),
        ({"system": "Be brief."}, "system prompt is another one"),
        ({"context": 256}, "context was None, is 256"),
        ({"engine": "torch", "temperature": 1}, "engine was llamacpp, is torch; temperature was 0, is 1"),
    ],
)
def test_answers_of_two_kinds_never_come_together(
    settings: dict[str, Any], difference: str, gguf: Path, tmp_path: Path
) -> None:
    out, model = tmp_path / "answers.jsonl", gguf.parent / "tiny-chat"
    answered(model, out, "a\nb\n", engine="llamacpp")
    before = out.read_bytes()
    for asked in ("a\nb\nc\n", "a\nb\n"):  # to go on with, and finished
        with pytest.raises(UserError, match=f"asked for otherwise: {difference} .*name another file"):
            answered(model, out, asked, **{"engine": "llamacpp"} | settings)
    assert out.read_bytes() == before
    rows = answered(model, out, "a\nb\nc\n", engine="llamacpp", threads=2, parallel=1)
    assert [row["prompt"] for row in rows] == ["a", "b", "c"], "how fast they come may change"
    assert out.read_bytes().startswith(before)


def test_a_model_with_other_content_is_another_one(gguf: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "answers.jsonl", tmp_path / "model.gguf"
    shutil.copy(gguf, model)
    answered(model, out, "a\n")
    with model.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))
    with pytest.raises(UserError, match="otherwise: model is another one"):
        answered(model, out, "a\nb\n")
    shutil.copy(gguf, tmp_path / "same.gguf")
    assert len(answered(tmp_path / "same.gguf", out, "a\nb\n")) == 2, "its name does not matter"


def test_answers_that_nothing_is_told_of(gguf: Path, tmp_path: Path) -> None:
    """Whole ones stay what they are; others cannot be gone on with."""
    out = tmp_path / "answers.jsonl"
    answered(gguf, out, "a\n")
    (tmp_path / "answers.jsonl.question").unlink()
    before = out.read_bytes()
    answered(gguf, out, "a\n", temperature=1)
    with pytest.raises(UserError, match="answers.jsonl.question is not there"):
        answered(gguf, out, "a\nb\n")
    assert out.read_bytes() == before


def test_a_question_that_cannot_be_leaves_nothing(gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="context"):
        answered(gguf, tmp_path / "answers.jsonl", "a\n", context=1 << 20)
    assert [path.name for path in tmp_path.iterdir()] == ["asked.txt"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.txt", b"\n \n", "there is no prompt"),
        ("x.txt", b"\xff", "cannot be read"),
        ("x.jsonl", b"{", "x.jsonl:1.*not JSON|not JSON.*x.jsonl:1"),
        ("x.jsonl", b'{"prompt": "a"}\n{"question": "b"}\n', "x.jsonl:2"),
        ("x.jsonl", b'{"messages": [{"role": "assistant", "content": "b"}]}', "asks nothing"),
        ("x.jsonl", b'{"messages": []}', "asks nothing"),
        ("x.jsonl", b"[]", "asks nothing"),
    ],
)
def test_bad_prompts(name: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize(
    "answers",
    ['{"prompt": "other", "answer": ""}\n', "hello\n", "[]\n", '{"prompt": "0", "answer": ""}\n' * 2],
)
def test_answers_to_other_prompts_are_kept(answers: str, gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(answers)
    opening = open_speaker("llamacpp", gguf, threads=1, parallel=1)
    with pytest.raises(UserError, match="no answer to the prompt"):
        answer_file(opening, [{"prompt": "0"}], out, GREEDY, SYSTEM, QUESTION)
    assert out.read_text() == answers


def test_one_process_writes(gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    import fcntl

    with out.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        opening = open_speaker("llamacpp", gguf, threads=1, parallel=1)
        with pytest.raises(UserError, match="another process"):
            answer_file(opening, [{"prompt": "0"}], out, GREEDY, SYSTEM, QUESTION)


def test_a_file_needs_a_place_for_its_answers(gguf: Path, prompts: Path) -> None:
    given: list[dict[str, Path]] = [{"file": prompts}, {"out": prompts}]
    for options in given:
        with pytest.raises(UserError, match="belong together"):
            Chat(model=gguf, **options).run()  # type: ignore[arg-type]
