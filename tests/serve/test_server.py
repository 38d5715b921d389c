"""`yayan serve` as a user starts it, and the official OpenAI client on the other side."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.sentencepiece_model import make_chat_model
from yayan.template import encode_prompt
from yayan.tokenizer import load_tokenizer
from yayan.weights.gguf_file import write_gguf

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "河边住着谁？"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("serve") / "tiny-chat")


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file, so that each start is fast."""
    path = tmp_path_factory.mktemp("files") / "tiny.gguf"
    write_gguf(folder, path, "F16")
    return path


def start(model: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "yayan", "serve", str(model), "--port", "0", "--threads", "1", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def serving(model: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = start(model, "--json", *options)
    try:
        assert process.stdout
        yield process, json.loads(process.stdout.readline())["url"]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[openai.OpenAI]:
    with serving(folder) as (_, url):
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_a_plain_chat(client: openai.OpenAI, folder: Path) -> None:
    answer = client.chat.completions.create(model="any", messages=ASK, max_tokens=12, temperature=0)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage
    assert answer.usage.completion_tokens == 12
    assert answer.usage.prompt_tokens == len(
        encode_prompt(load_tokenizer(folder), [{"role": "user", "content": "河边住着谁？"}])
    )


def test_a_streamed_chat(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="any", messages=ASK, max_tokens=12, temperature=0)
    stream = client.chat.completions.create(
        model="any",
        messages=ASK,
        max_tokens=12,
        temperature=0,
        stream=True,
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert sum(bool(piece) for piece in pieces) > 3
    assert "".join(pieces) == whole.choices[0].message.content


def test_the_model_is_listed_by_its_name(client: openai.OpenAI) -> None:
    assert [item.id for item in client.models.list()] == ["tiny-chat"]


def test_a_wrong_key_is_refused(model: Path) -> None:
    with serving(model, "--api-key", "right") as (_, url):
        right, wrong = (
            openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) for key in ("right", "wrong")
        )
        assert right.chat.completions.create(model="any", messages=ASK, max_tokens=1)
        with pytest.raises(openai.AuthenticationError):
            wrong.chat.completions.create(model="any", messages=ASK, max_tokens=1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_cleanly_even_in_the_middle_of_an_answer(model: Path, number: int) -> None:
    with serving(model) as (process, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        stream = client.chat.completions.create(
            model="any",
            messages=ASK,
            max_tokens=400,
            temperature=2,
            stream=True,
        )
        next(iter(stream))
        process.send_signal(number)
        assert process.wait(timeout=20) == 0
        assert process.stderr
        assert process.stderr.read() == ""


def test_it_says_where_it_is_and_how_to_try_it(model: Path) -> None:
    process = start(model)
    try:
        assert process.stdout
        where, trial = process.stdout.readline(), process.stdout.readline()
        assert where.startswith("tiny is served at http://127.0.0.1:")
        answer = subprocess.run(trial, shell=True, capture_output=True, text=True, timeout=60)
        assert json.loads(answer.stdout)["choices"][0]["message"]["content"] is not None
    finally:
        process.kill()
        process.communicate()


def test_a_base_model_is_served_for_completions_and_says_so(tmp_path: Path) -> None:
    write_gguf(make_chat_model(tmp_path / "base", template=None), tmp_path / "base.gguf", "F16")
    process = start(tmp_path / "base.gguf")
    try:
        assert process.stdout
        assert "It is a base model, which continues text and cannot chat" in process.stdout.readline()
        assert "/v1/completions" in process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def fail(*arguments: str) -> str:
    """Run a command that must end with exit code 2 and one sentence, which is returned."""
    command = [sys.executable, "-m", "yayan", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_a_port_in_use_is_one_sentence(model: Path) -> None:
    with serving(model) as (_, url):
        port = url.rpartition(":")[2]
        assert f"port {port}: address already in use" in fail("serve", str(model), "--port", port)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--parallel", "0"], "--parallel 0 means nothing"),
        (["--threads", "-2"], "--threads -2 means nothing"),
        (["--context", "5000"], "was trained for 512"),
        (["--port", "eighty"], "port"),
        (["--prot", "80"], "--port"),
    ],
)
def test_bad_options_are_one_sentence(options: list[str], sentence: str, model: Path) -> None:
    assert sentence in fail("serve", str(model), *options)


def test_what_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    assert "there is no such model" in fail("serve", str(tmp_path / "none"))
