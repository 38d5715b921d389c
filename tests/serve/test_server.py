"""`yayan serve` as a user starts it, and stops it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import openai
import pytest

from tests.serve.running import ASK, Running, make_gguf, serving, start


def test_the_model_is_listed_by_its_name(server: Running) -> None:
    assert [item.id for item in server.openai().models.list()] == ["tiny"]


def test_keys(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YAYAN_API_KEY", "never used")
    with serving(gguf, "--api-key", "right", "--api-key", "also") as server:
        for key in ("right", "also"):
            assert list(server.openai(key).models.list())
        for key in ("wrong", "righ", "never used", "é"):
            status = httpx2.get(
                f"{server.url}/v1/models", headers={b"Authorization": f"Bearer {key}".encode()}
            )
            assert status.status_code == 401
        with pytest.raises(openai.AuthenticationError, match="key is missing or wrong"):
            server.openai("wrong").chat.completions.create(model="tiny", messages=ASK)  # type: ignore[arg-type]
        assert httpx2.get(f"{server.url}/health").json() == {"status": "ok"}
        assert httpx2.get(f"{server.url}/metrics").status_code == 401


def test_a_key_of_the_environment(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YAYAN_API_KEY", "one two")
    with serving(gguf) as server:
        assert list(server.openai("two").models.list())
        with pytest.raises(openai.AuthenticationError):
            server.openai("one two").models.list()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_an_answer_end_and_takes_no_new_one(gguf: Path, number: int) -> None:
    with serving(gguf) as server:
        options = {"max_tokens": 400, "logit_bias": {"2": -100}, "stream_options": {"include_usage": True}}
        answer = server.openai().chat.completions.create(**server.chat(stream=True, **options))  # type: ignore[call-overload]
        chunks = iter(answer)
        next(chunks)
        server.process.send_signal(number)
        time.sleep(0.3)
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{server.url}/health")
        last = list(chunks)[-1]
        assert last.usage
        assert last.usage.completion_tokens == 400
        assert server.process.wait(timeout=20) == 0
        assert server.process.stderr
        assert server.process.stderr.read() == ""


def test_grace_has_an_end(gguf: Path) -> None:
    with serving(gguf, "--grace-seconds", "1", "--parallel", "1") as server:

        def ask() -> None:
            body = server.chat(max_tokens=400, n=64, temperature=1, logit_bias={"2": -100})
            for _ in range(6):
                try:
                    server.post("/v1/chat/completions", body)
                except httpx2.TransportError:
                    return

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.5)
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) == 0
        assert time.monotonic() - begun < 5
        asking.join()


def test_it_says_where_it_is_and_how_to_try_it(gguf: Path) -> None:
    process = start(gguf)
    try:
        assert process.stdout
        where, trial = process.stdout.readline(), process.stdout.readline()
        assert where.startswith("tiny is served at http://127.0.0.1:")
        answer = subprocess.run(trial, shell=True, capture_output=True, text=True, timeout=60)
        assert json.loads(answer.stdout)["choices"][0]["message"]["content"] is not None
    finally:
        process.kill()
        process.communicate()


def test_an_open_address_without_a_key_is_said(gguf: Path) -> None:
    process = start(gguf, "--host", "0.0.0.0")
    try:
        assert process.stderr
        assert "this is a GGUF file" in process.stderr.readline()
        assert "anyone who reaches this address can use the model" in process.stderr.readline()
    finally:
        process.kill()
        process.communicate()


def test_a_base_model_is_served_for_completions_and_says_so(tmp_path: Path) -> None:
    base = make_gguf(tmp_path, template=None)
    process = start(base)
    try:
        assert process.stdout
        where, trial = process.stdout.readline(), process.stdout.readline()
        assert "It is a base model, which continues text and cannot chat" in where
        answer = subprocess.run(trial, shell=True, capture_output=True, text=True, timeout=60)
        assert json.loads(answer.stdout)["choices"][0]["text"]
    finally:
        process.kill()
        process.communicate()
    with serving(base) as server:
        answer_ = server.post("/v1/chat/completions", server.chat())
        assert answer_.status_code == 400
        assert "cannot chat" in answer_.json()["error"]["message"]


def fail(*arguments: str) -> str:
    """Run a command that must end with exit code 2 and one sentence, which is returned."""
    command = [sys.executable, "-m", "yayan", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)
    assert result.returncode == 2
    assert result.stdout == ""
    return result.stderr


def test_a_port_in_use_is_one_sentence(gguf: Path, server: Running) -> None:
    port = server.url.rpartition(":")[2]
    assert f"port {port}: address already in use" in fail("serve", str(gguf), "--port", port)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--parallel", "0"], "--parallel 0 means nothing"),
        (["--threads", "-2"], "--threads -2 means nothing"),
        (["--queue", "-1"], "--queue -1 means nothing"),
        (["--grace-seconds", "-1"], "--grace-seconds -1 means nothing"),
        (["--context", "5000"], "give 2 to 512 tokens"),
        (["--context", "auto"], "as the file says"),
        (["--context", "long"], "--context"),
        (["--port", "eighty"], "port"),
        (["--prot", "80"], "--port"),
        (["--engine", "exllama"], "engine"),
        (["--engine", "vllm"], "vLLM is given a model folder"),
    ],
)
def test_bad_options_are_one_sentence(options: list[str], sentence: str, gguf: Path) -> None:
    assert sentence in fail("serve", str(gguf), *options)


def test_what_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    assert "there is no such model" in fail("serve", str(tmp_path / "none"))
