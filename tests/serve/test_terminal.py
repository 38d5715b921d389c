"""`yayan chat` through a pipe, and in a real (pseudo) terminal."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sentencepiece_model import make_chat_model
from yayan.engine.llamacpp import open_model
from yayan.errors import UserError
from yayan.serve.terminal import Chat, system_message
from yayan.template import SYSTEM_PROMPTS
from yayan.weights.gguf_file import write_gguf

GREEDY = ("--threads", "1", "--temperature", "0", "--max-tokens", "12")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file, so that each start is fast."""
    folder = tmp_path_factory.mktemp("chat")
    write_gguf(make_chat_model(folder / "tiny-chat"), folder / "tiny.gguf", "F16")
    return folder / "tiny.gguf"


def command(model: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "yayan", "chat", str(model), *options]


def pipe(model: Path, question: bytes, *options: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(model, *options), input=question, capture_output=True, timeout=60)


def answer_of(model: Path, *turns: str, system: str = SYSTEM_PROMPTS["default"]) -> str:
    roles = ("user", "assistant") * len(turns)
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    with open_model(model, threads=1) as engine:
        chat = [{"role": "system", "content": system}, *messages]
        return "".join(engine.stream(chat, max_tokens=12, temperature=0))


def test_a_pipe_gets_the_answer_and_nothing_else(model: Path) -> None:
    result = pipe(model, "河边住着谁？\n".encode(), *GREEDY)
    assert result.returncode == 0
    assert result.stderr == b""
    assert result.stdout.decode() == answer_of(model, "河边住着谁？") + "\n"


def test_a_pipe_gets_json_if_asked(model: Path) -> None:
    result = pipe(model, b"the river", *GREEDY, "--json", "--system", "long")
    wanted = {"question": "the river", "answer": answer_of(model, "the river", system=SYSTEM_PROMPTS["long"])}
    assert json.loads(result.stdout) == wanted


def test_what_the_system_option_means(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Answer as a fisherman.\n", encoding="utf-8")
    (tmp_path / "latin1.txt").write_bytes("é".encode("latin-1"))
    meanings = {
        "default": SYSTEM_PROMPTS["default"],
        "long": SYSTEM_PROMPTS["long"],
        str(tmp_path / "prompt.txt"): "Answer as a fisherman.",
        "Answer in verse. " * 100: "Answer in verse. " * 100,
        "": "",
    }
    for wanted, content in meanings.items():
        assert system_message(wanted) == {"role": "system", "content": content}
    with pytest.raises(UserError, match="not UTF-8"):
        system_message(str(tmp_path / "latin1.txt"))


def test_a_base_model_is_one_sentence(tmp_path: Path) -> None:
    write_gguf(make_chat_model(tmp_path / "base", template=None), tmp_path / "base.gguf", "F16")
    result = pipe(tmp_path / "base.gguf", b"hello", *GREEDY)
    assert result.returncode == 2
    assert result.stdout == b""
    assert result.stderr.decode().count("\n") == 1
    assert "base model" in result.stderr.decode()


@pytest.mark.parametrize(
    ("question", "sentence"), [(b" \n", "nothing was asked"), (b"\xff\xfe", "not UTF-8")]
)
def test_bad_questions_are_one_sentence(question: bytes, sentence: str, model: Path) -> None:
    result = pipe(model, question, "--threads", "1")
    assert result.returncode == 2
    assert result.stdout == b""
    assert result.stderr.decode().count("\n") == 1
    assert sentence in result.stderr.decode()


@pytest.mark.parametrize(
    "option",
    [{"max_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"seed": -1}, {"threads": 0}],
)
def test_numbers_that_mean_nothing_are_refused(option: dict[str, Any], model: Path) -> None:
    name = next(iter(option)).replace("_", "-")
    with pytest.raises(UserError, match=f"--{name} .* means nothing"):
        Chat(model=model, **option).run()


class Terminal:
    """A chat in a pseudo-terminal."""

    def __init__(self, model: Path, *options: str) -> None:
        self.hand, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "dumb"}
        self.process = subprocess.Popen(
            command(model, *options),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)

    def read_until(self, ending: str, seconds: float = 40) -> str:
        """What is shown until a text appears."""
        shown, deadline = b"", time.monotonic() + seconds
        while ending.encode() not in shown.replace(b"\r\n", b"\n") and time.monotonic() < deadline:
            if select.select([self.hand], [], [], 0.2)[0]:
                try:
                    shown += os.read(self.hand, 4096)
                except OSError:  # Linux's way to say that the other side is gone
                    break
        text = shown.decode(errors="replace").replace("\r\n", "\n")
        assert ending in text, text
        return text

    def interrupt_until(self, ending: str) -> None:
        """Press Ctrl-C until a text appears: between the prompt and readline's own handler one is not seen."""
        for _ in range(10):
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(AssertionError):
                self.read_until(ending, seconds=3)
                return
        raise AssertionError(f"{ending} never appeared")

    def ask(self, line: str) -> str:
        """Type a line; what is shown until the next prompt, without the echo."""
        os.write(self.hand, line.encode() + b"\n")
        return self.read_until("\n> ").removeprefix(line + "\n").removesuffix("\n> ").removesuffix("\n")


@pytest.fixture
def terminal(model: Path) -> Iterator[Terminal]:
    running = Terminal(model, *GREEDY)
    running.read_until("\n> ")
    yield running
    running.process.kill()
    running.process.wait()
    os.close(running.hand)


def plain(text: str) -> str:
    """Without the control sequences with which readline redraws, and the characters a terminal may not show."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_turns_build_on_each_other_until_cleared(terminal: Terminal, model: Path) -> None:
    first = answer_of(model, "the old man")
    second = answer_of(model, "the old man", first, "the river")
    assert second != answer_of(model, "the river")
    shown = plain(terminal.ask("the old man"))
    assert first.strip() in shown
    assert re.search(r"\(\d+ tokens, [\d.]+ tokens/s\)", shown)
    assert second.strip() in plain(terminal.ask("the river"))
    terminal.ask("/clear")
    assert answer_of(model, "the river").strip() in plain(terminal.ask("the river"))
    os.write(terminal.hand, b"/quit\n")
    assert terminal.process.wait(timeout=20) == 0


def test_ctrl_d_leaves(terminal: Terminal) -> None:
    os.write(terminal.hand, b"\x04")
    assert terminal.process.wait(timeout=20) == 0


def test_sigterm_ends_it(terminal: Terminal) -> None:
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.process.wait(timeout=20) == -signal.SIGTERM


def test_ctrl_c_stops_an_answer_and_not_the_chat(model: Path) -> None:
    running = Terminal(model, "--threads", "1", "--temperature", "3", "--max-tokens", "100000", "--seed", "5")
    try:
        running.read_until("\n> ")
        os.write(running.hand, b"hello\n")
        running.read_until("hello\n")  # typed, and perhaps not yet answered
        running.process.send_signal(signal.SIGINT)
        running.read_until("\n> ")
        os.write(running.hand, b"hello\n")
        running.read_until("hello\n")
        assert os.read(running.hand, 1), "the answer has begun"
        running.process.send_signal(signal.SIGINT)
        running.read_until("\n> ")
        running.interrupt_until("Ctrl-C stops an answer.\n\n> ")
        os.write(running.hand, b"\x04")
        assert running.process.wait(timeout=20) == 0
    finally:
        running.process.kill()
        running.process.wait()
        os.close(running.hand)


def test_a_conversation_that_outgrows_the_context_goes_on(terminal: Terminal) -> None:
    assert "512 are possible at most" in terminal.ask("河边 " * 600)
    assert terminal.ask("the river")


def test_the_model_comes_first(model: Path) -> None:
    assert Chat(model=model).system == "default"
    result = subprocess.run(
        [sys.executable, "-m", "yayan", "chat"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert "MODEL" in result.stderr.upper()
