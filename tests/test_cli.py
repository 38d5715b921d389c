"""The command line from outside: exit codes, one-sentence errors, speed of the help."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from yayan import __version__

SECONDS_FOR_HELP = 0.3


def yayan(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "yayan", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]


def test_help_lists_the_verbs_quickly() -> None:
    cpu_seconds = []
    for _ in range(3):
        before = os.times()
        done = yayan("--help")
        after = os.times()
        cpu_seconds.append(after.children_user + after.children_system - before[2] - before[3])
        assert done.returncode == 0
    for verb in ("run", "vocab", "grow", "pack", "pretrain", "sft", "merge", "gguf", "chat", "serve", "eval"):
        assert verb in done.stdout
    assert min(cpu_seconds) < SECONDS_FOR_HELP * 1.5, "CPU time, since the machine may be busy"


def test_version() -> None:
    assert yayan("--version").stdout.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["grwo"], "did you mean grow?"),
        (["eval", "bit"], 'Did you mean "bits"?'),
        (["grow", "--modle", "x", "--out", "o", "--tokenizer", "t"], "Did you mean --model?"),
        (["grow", "--out", "o"], "--tokenizer requires an argument"),
        (["vocab", "--out", "o", "--corpus", "c", "--size", "many"], 'unable to convert "many" into int'),
        (["pretrain", "--out", "o", "--model", "m", "--shards", "s", "--train", "half"], "Choose from"),
        (
            ["vocab", "--out", "o", "--corpus", "nowhere.txt", "--size", "300"],
            "no such file or folder (nowhere.txt)",
        ),
        (["run", "quickstrat"], "no such recipe (quickstrat)"),
        (["run", "nowhere.yaml"], "no such recipe"),
        (["chat", "nowhere"], "no such model (nowhere)"),
        (["gguf", "--out", "o", "--model", "sample:nothing"], "the built-in sample has no such file"),
    ],
)
def test_a_wrong_question_is_one_sentence_and_exit_code_2(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    done = yayan(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stderr.startswith("yayan: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_json_prints_the_record_and_nothing_else(tmp_path: Path) -> None:
    arguments = ("vocab", "--corpus", "sample:en-heldout.jsonl", "--size", 400, "--out", "out", "--json")
    for _ in range(2):
        done = yayan(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == json.loads((tmp_path / "out" / "yayan.json").read_text())
    assert "nothing to do" in done.stderr


def test_debug_shows_where(tmp_path: Path) -> None:
    done = yayan("vocab", "--corpus", "x", "--size", 400, "--out", "out", "--debug", cwd=tmp_path)
    assert "Traceback" in done.stderr


def test_ctrl_c_ends_with_130_and_nothing_of_a_final_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "yayan", "vocab", "--corpus", ".", "--size", "2000", "--out", "../out"]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "text.txt").write_text(
        "\n\n".join(f"Some words, number {i}, and others." for i in range(400_000))
    )
    child = subprocess.Popen(command, cwd=corpus, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out.partial").exists():
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(2)
    _, errors = child.communicate()
    assert child.returncode == 130, errors
    assert "interrupted; the same command goes on" in errors
    assert not (tmp_path / "out").exists()
