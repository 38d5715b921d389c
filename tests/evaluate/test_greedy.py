"""Greedy answers and their journal: a kill loses none that was given, and what comes after is what would have come."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sentencepiece_model import make_chat_model
from yayan.engine.network import Network
from yayan.errors import UserError, YayanError
from yayan.evaluate.answerers import Answerer, Prompt, look_at, open_answerer
from yayan.evaluate.greedy import JOURNAL_NAME, Answer, Journal, Question, answer_all, ask
from yayan.lineage import sha256_of
from yayan.progress import Progress
from yayan.weights.gguf_file import write_gguf

from .test_longbench import official, write_task

QUESTIONS = [
    Question(f"q/{n}", Prompt("", [1, *range(20 + n, 60 + n)]), 6 + n, truncated=n == 2) for n in range(7)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("model") / "tiny", template=None)


@pytest.fixture(params=[None, "auto"])
def engine(model: Path, request: pytest.FixtureRequest) -> Iterator[Answerer]:
    with open_answerer(model, request.param, threads=1, slots=2) as running:
        yield running


def test_answers_are_journalled_and_asked_once(engine: Answerer, tmp_path: Path) -> None:
    expected = {question.key: ask(engine, question) for question in QUESTIONS}
    with Journal(tmp_path) as journal, Progress("test") as bar:
        answer_all(engine, journal, QUESTIONS, 1, bar)
        assert journal.answers == expected
    lines = (tmp_path / JOURNAL_NAME).read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == list(expected)
    with Journal(tmp_path) as journal:
        assert journal.answers == expected
        journal.remove()
    assert not list(tmp_path.iterdir())
    assert expected["q/2"].truncated
    assert all(answer.tokens <= 6 + n for n, answer in enumerate(expected.values()))


def test_several_at_once_are_all_answered(engine: Answerer, tmp_path: Path) -> None:
    with Journal(tmp_path) as journal, Progress("test") as bar:
        answer_all(engine, journal, QUESTIONS, 2, bar)
        assert set(journal.answers) == {question.key for question in QUESTIONS}


def test_an_answer_does_not_depend_on_the_one_before(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = Network.read

    def counting(self: Network, *given: Any, **settings: Any) -> Any:
        read.extend(map(len, given[2]))
        return real(self, *given, **settings)

    monkeypatch.setattr(Network, "read", counting)
    with open_answerer(model, "auto", threads=1) as torch_engine:
        for length in (20, 30):  # the second prompt begins with the first
            read.clear()
            torch_engine.answer(Prompt("", [1, *range(20, 20 + length)]), 4)
            assert read[0] == length + 1


def test_half_a_line_is_cut_off(tmp_path: Path) -> None:
    answers = [Answer(f"k/{n}", "雅言\n\0", 3, False, 2, True) for n in range(3)]
    with Journal(tmp_path) as journal:
        for answer in answers:
            journal.add(answer)
    path = tmp_path / JOURNAL_NAME
    whole = path.read_bytes()
    for cut in range(1, len(whole) // 3):
        path.write_bytes(whole[:-cut])
        with Journal(tmp_path) as journal:
            assert journal.answers == {answer.key: answer for answer in answers[:2]}
            journal.add(answers[2])
        assert path.read_bytes() == whole


def test_an_error_ends_what_is_under_way(engine: Answerer, tmp_path: Path) -> None:
    def questions() -> Iterator[Question]:
        yield Question("long", Prompt("", [1, 30]), 500)
        yield QUESTIONS[0]
        yield QUESTIONS[1]
        yield Question("impossible", Prompt("", [10**6]), 3)

    with Journal(tmp_path) as journal, Progress("test") as bar, pytest.raises(YayanError):
        answer_all(engine, journal, questions(), 2, bar)
    with Journal(tmp_path) as journal:
        assert "impossible" not in journal.answers


def test_what_is_known_of_a_model(model: Path, tmp_path: Path) -> None:
    chat = make_chat_model(tmp_path / "chat", max_position_embeddings=96)
    write_gguf(chat, tmp_path / "chat.gguf", "F16")
    assert (look_at(model).context, look_at(model).chat) == (512, False)
    for path in (chat, tmp_path / "chat.gguf"):
        assert (look_at(path).context, look_at(path).chat) == (96, True)
        assert look_at(path, 50).context == 50
        with pytest.raises(UserError, match="give 2 to 96 tokens"):
            look_at(path, 97)
    assert look_at(chat, "auto").context == 8 * 96
    with pytest.raises(UserError, match="as the file says.*yayan stretch"):
        look_at(tmp_path / "chat.gguf", "auto")


def test_both_engines_say_the_same(model: Path) -> None:
    """In float32; the cache of llama.cpp is in 16 bits, so that a few tokens are compared.

    The space that an answer begins with and half a character at its end are text for llama.cpp alone.
    """
    said = []
    for context in (None, "auto"):
        with open_answerer(model, context, threads=1) as engine:
            said.append([engine.answer(question.prompt, 3).text.strip(" \ufffd") for question in QUESTIONS])
            assert engine.text_of(engine.text_ids("河 a")[1:]).strip() == "河 a"
    assert said[0] == said[1]


def command(task: str, inputs: Path, out: Path) -> list[str]:
    options = {
        "longbench": [f"--data={inputs / 'data'}"],
        "needle": [f"--text={inputs / 'hay.txt'}", "--lengths", "300", "600", "--facts=6"],
    }
    asked = [f"--model={inputs / 'model'}", f"--out={out}", "--threads=1", *options[task]]
    return [sys.executable, "-m", "yayan", "eval", task, *asked]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    make_chat_model(root / "model", max_position_embeddings=2048)
    texts = [f"{name} lived by the river. " * (5 + n) for n, name in enumerate("ABCDEFGH" * 2)]
    write_task(root / "data", "qasper", [official("qasper", text) for text in texts])
    (root / "hay.txt").write_text("The river was wide and slow.\n" * 400, encoding="utf-8")
    return root


@pytest.mark.slow  # six runs of a command: 25 s
@pytest.mark.parametrize("task", ["longbench", "needle"])
def test_a_killed_evaluation_goes_on_where_it_was(inputs: Path, tmp_path: Path, task: str) -> None:
    subprocess.run(command(task, inputs, tmp_path / "whole"), check=True, capture_output=True)
    journal = tmp_path / "out.partial" / JOURNAL_NAME
    child = subprocess.Popen(command(task, inputs, tmp_path / "out"), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = journal.read_bytes()
    given = before[: before.rfind(b"\n") + 1].count(b"\n")
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert 3 <= given < len(results["items"])

    marked = before.replace(b'"text": "', b'"text": "journalled ', 1)
    journal.write_bytes(marked)  # what stands there is taken, not asked again
    subprocess.run(command(task, inputs, tmp_path / "out"), check=True, capture_output=True)
    gone_on = json.loads((tmp_path / "out" / "results.json").read_text())
    assert gone_on["items"][0]["answer"] == "journalled " + results["items"][0]["answer"]
    assert [i["answer"] for i in gone_on["items"][1:]] == [i["answer"] for i in results["items"][1:]]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )

    child = subprocess.Popen(command(task, inputs, tmp_path / "again"), stderr=subprocess.DEVNULL)
    journal = tmp_path / "again.partial" / JOURNAL_NAME
    while not journal.exists() or not journal.read_bytes():
        time.sleep(0.001)
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=20) == 130
    subprocess.run(command(task, inputs, tmp_path / "again"), check=True, capture_output=True)
    assert sha256_of(tmp_path / "again") == sha256_of(tmp_path / "whole")
