"""Patterns and standard input as inputs of stages: expanded and spooled before the question is made."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import make_tokenizer
from yayan.corpus.pack import Pack
from yayan.corpus.shards import Shards
from yayan.errors import UserError
from yayan.stage import execute

CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bc"}]}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    make_tokenizer(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def pack(
    tokenizer: Path, out: Path, given: bytes, option: str = "--corpus=-"
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "yayan", "pack", f"--tokenizer={tokenizer}", option, f"--out={out}"]
    return subprocess.run(command, input=given, capture_output=True, check=False)


def test_a_pattern_is_its_files(tmp_path: Path, tokenizer: Path) -> None:
    for name in ("b.txt", "a.txt", "deep/c.txt", "d.md"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text("a bc")
    flat = execute(Pack(tokenizer=tokenizer, corpus=[tmp_path / "texts" / "*.txt"], out=tmp_path / "flat"))
    assert [source["name"] for source in flat["metrics"]["sources"]] == ["texts/a.txt", "texts/b.txt"]
    assert [Path(entry["path"]).name for entry in flat["inputs"]["corpus"]] == ["a.txt", "b.txt"]
    deep = execute(Pack(tokenizer=tokenizer, corpus=[tmp_path / "texts/**/*.txt"], out=tmp_path / "deep"))
    assert deep["metrics"]["documents"] == 3
    with pytest.raises(UserError, match="no file matches this pattern"):
        execute(Pack(tokenizer=tokenizer, corpus=[tmp_path / "*.parquet"], out=tmp_path / "none"))
    strange = tmp_path / "texts" / "e[1].txt"
    strange.write_text("a")
    assert (
        execute(Pack(tokenizer=tokenizer, corpus=[strange], out=tmp_path / "e"))["metrics"]["documents"] == 1
    )


@pytest.mark.parametrize(
    ("given", "option"),
    [
        (b"a\n\nbc\n", "--corpus=-"),
        (b'{"text": "a"}\n{"text": "bc"}\n', "--corpus=-"),
        (b'[{"text": "a"}, {"text": "bc"}]', "--corpus=-"),
        (gzip.compress(b'{"text": "a"}\n{"text": "bc"}\n'), "--corpus=-"),
        ((json.dumps(CHAT) + "\n").encode() * 2, "--chats=-"),
    ],
)
def test_standard_input_of_each_kind(tmp_path: Path, tokenizer: Path, given: bytes, option: str) -> None:
    out = tmp_path / "out"
    done = pack(tokenizer, out, given, option)
    assert done.returncode == 0, done.stderr
    assert len(Shards.open(out).lengths) == 2
    record = json.loads((out / "yayan.json").read_text())
    assert record["inputs"][option[2:].split("=")[0]][0]["path"] == "-"
    again = pack(tokenizer, out, given, option)
    assert b"nothing to do" in again.stderr
    other = pack(tokenizer, out, given + given if given[:1] == b"{" else given + b"\n", option)
    assert other.returncode == (2 if given[:1] != b"\x1f" else other.returncode)


def test_standard_input_that_is_none(tmp_path: Path, tokenizer: Path) -> None:
    assert b"standard input is empty" in pack(tokenizer, tmp_path / "out", b"").stderr
    command = [sys.executable, "-m", "yayan", "pack", f"--tokenizer={tokenizer}", f"--out={tmp_path / 'out'}"]
    twice = subprocess.run(
        [*command, "--corpus=-", "--corpus=-"], input=b"a", capture_output=True, check=False
    )
    assert twice.returncode == 2
    assert b"named twice" in twice.stderr
    leader, follower = os.openpty()
    typed = subprocess.run([*command, "--corpus=-"], stdin=follower, capture_output=True, check=False)
    os.close(leader)
    os.close(follower)
    assert typed.returncode == 2
    assert b"is a terminal" in typed.stderr
    assert not list(tmp_path.glob("out*"))
