"""A file of prompts: every one is answered once, in order, whatever happens in between."""

import json
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
        with open_speaker(engine, model, threads=1, parallel=2) as speaker:  # type: ignore[arg-type]
            assert answer_file(speaker, read_prompts(file), out, GREEDY, SYSTEM) == 1
        rows = tables[engine] = lines_of(out)
        assert [{key: row[key] for key in given} for row, given in zip(rows, asked, strict=True)] == asked
        assert rows[0]["answer"] == rows[3]["answer"], "the same system prompt for both"
        assert "tokens" in rows[1]["error"]
        assert rows[0]["tokens"] == 6
        assert rows[0]["finish_reason"] == "length"
    for here, there in zip(tables["llamacpp"], tables["torch"], strict=True):
        assert here.get("answer", "").rstrip("\ufffd") == there.get("answer", "").rstrip("\ufffd")


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
    with (
        open_speaker("llamacpp", gguf, threads=1, parallel=1) as speaker,
        pytest.raises(UserError, match="no answer to the prompt"),
    ):
        answer_file(speaker, [{"prompt": "0"}], out, GREEDY, SYSTEM)
    assert out.read_text() == answers


def test_one_process_writes(gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    import fcntl

    with (
        out.open("w") as other,
        open_speaker("llamacpp", gguf, threads=1, parallel=1) as speaker,
    ):
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"):
            answer_file(speaker, [{"prompt": "0"}], out, GREEDY, SYSTEM)


def test_a_file_needs_a_place_for_its_answers(gguf: Path, prompts: Path) -> None:
    given: list[dict[str, Path]] = [{"file": prompts}, {"out": prompts}]
    for options in given:
        with pytest.raises(UserError, match="belong together"):
            Chat(model=gguf, **options).run()  # type: ignore[arg-type]
