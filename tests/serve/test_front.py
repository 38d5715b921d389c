"""The front from outside: OpenAI's client, LangChain, curl, and what it refuses."""

import base64
import json
import shutil
import socket
import struct
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr

from tests.serve.running import ASK, Running, serving
from yayan.engine.llamacpp import LlamaCpp
from yayan.template import encode_prompt
from yayan.tokenizer import load_tokenizer

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ENDLESS: dict[str, Any] = {"max_tokens": 400, "logit_bias": {"2": -100}}


def test_a_chat_by_openais_client(server: Running, gguf: Path) -> None:
    answer = server.openai().chat.completions.create(**server.chat(max_tokens=12))  # type: ignore[call-overload]
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    prompt = encode_prompt(load_tokenizer(gguf.parent / "tiny-chat"), ASK)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), 12)
    with LlamaCpp(gguf, threads=1) as engine:
        assert answer.choices[0].message.content == "".join(engine.stream(ASK, max_tokens=12, temperature=0))


@pytest.mark.parametrize("usage", [True, False])
def test_a_streamed_chat(server: Running, usage: bool) -> None:
    client = server.openai()
    options = server.chat(max_tokens=12)
    whole = client.chat.completions.create(**options)  # type: ignore[call-overload]
    stream = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": usage})  # type: ignore[call-overload]
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert sum(map(bool, pieces)) > 3
    assert "".join(pieces) == whole.choices[0].message.content
    told = [chunk.usage for chunk in chunks if chunk.usage]
    assert [item.completion_tokens for item in told] == ([12] if usage else [])


@pytest.mark.parametrize("stream", [True, False])
def test_several_choices_of_a_chat(server: Running, stream: bool) -> None:
    body = server.chat(n=3, temperature=1.5, seed=7, stream=stream, stream_options={"include_usage": True})
    texts, usage = gathered(server, CHAT, body)
    assert len(set(texts.values())) == 3
    assert sorted(texts) == [0, 1, 2]
    assert usage["completion_tokens"] == 24
    one, _ = gathered(server, CHAT, body | {"n": 1})
    assert one[0] == texts[0], "the first choice has the seed itself"
    second, _ = gathered(server, CHAT, body | {"n": 1, "seed": 8})
    assert second[0] == texts[1]


def gathered(server: Running, path: str, body: dict[str, Any]) -> tuple[dict[int, str], dict[str, int]]:
    """Texts of the choices and the usage, whole or streamed."""
    answer = server.post(path, body)
    assert answer.status_code == 200, answer.text
    if not body.get("stream"):
        whole = answer.json()
        texts = {
            c["index"]: c["message"]["content"] if "message" in c else c["text"] for c in whole["choices"]
        }
        return texts, whole["usage"]
    assert answer.text.endswith("data: [DONE]\n\n")
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert len({event["id"] for event in events}) == 1
    texts = {}
    for choice in [choice for event in events for choice in event["choices"]]:
        piece = choice["delta"].get("content") if "delta" in choice else choice["text"]
        texts[choice["index"]] = texts.get(choice["index"], "") + (piece or "")
    return texts, [event["usage"] for event in events if event.get("usage")][-1]


@pytest.mark.parametrize("stream", [True, False])
def test_several_prompts_of_a_completion(server: Running, stream: bool) -> None:
    ids = [1, 300, 301]
    shared = {"model": "tiny", "max_tokens": 6, "temperature": 0, "stream": stream}
    shared["stream_options"] = {"include_usage": True}
    together, usage = gathered(server, COMPLETIONS, {**shared, "prompt": ["the river", "老人"]})
    alone = [
        gathered(server, COMPLETIONS, {**shared, "prompt": text})[0][0] for text in ("the river", "老人")
    ]
    assert [together[0], together[1]] == alone
    assert usage["completion_tokens"] == 12
    assert gathered(server, COMPLETIONS, {**shared, "prompt": ids})[0] == {
        0: gathered(server, COMPLETIONS, {**shared, "prompt": [ids]})[0][0]
    }


def test_sampling_options_reach_the_model(server: Running) -> None:
    def ask(**options: Any) -> str:
        return gathered(server, CHAT, server.chat(**options))[0][0]

    plain = ask()
    assert ask(logit_bias={"300": 100}) != plain
    letter = next(letter for letter in plain[1:] if letter.isalpha())
    assert ask(stop=letter) == ask(stop=["never", letter]) == plain[: plain.index(letter)]
    seeds = [ask(temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]
    assert ask(temperature=5.0, top_k=1) == ask(temperature=5.0, min_p=1.0) == plain
    assert ask(repetition_penalty=3.0) != plain
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "河边"}, {"type": "text", "text": "住着谁？"}]}
    ]
    assert ask(messages=parts) == plain
    developer = [{"role": "developer", "content": "Answer."}, *ASK]
    assert ask(messages=developer) == ask(messages=[{"role": "system", "content": "Answer."}, *ASK])


def test_log_probabilities(server: Running) -> None:
    chat = server.post(CHAT, server.chat(logprobs=True, top_logprobs=3)).json()["choices"][0]
    told = chat["logprobs"]["content"]
    assert all(item["logprob"] == item["top_logprobs"][0]["logprob"] <= 0 for item in told), "greedy"
    assert {len(item["top_logprobs"]) for item in told} == {3}
    body = {"model": "tiny", "prompt": "the river", "max_tokens": 4, "temperature": 0, "logprobs": 2}
    whole = server.openai().completions.create(**body).choices[0].logprobs  # type: ignore[call-overload]
    assert len(whole.tokens) == len(whole.token_logprobs) == len(whole.top_logprobs) == 4
    assert all(len(top) == 2 for top in whole.top_logprobs)
    streamed = list(server.openai().completions.create(**body, stream=True))  # type: ignore[call-overload]
    pieces = [chunk.choices[0].logprobs for chunk in streamed if chunk.choices and chunk.choices[0].logprobs]
    assert [token for piece in pieces for token in piece.tokens] == whole.tokens


def test_embeddings_by_openais_client(server: Running) -> None:
    texts = ["河边有一座小房子", "the old man", "河边有一座小房子"]
    answer = server.openai().embeddings.create(model="tiny", input=texts)
    first, other, again = (item.embedding for item in answer.data)
    assert first == again != other
    assert sum(value * value for value in first) == pytest.approx(1, abs=1e-5)
    coded = server.post("/v1/embeddings", {"model": "tiny", "input": texts[0], "encoding_format": "base64"})
    raw = base64.b64decode(coded.json()["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(first)}f", raw)) == pytest.approx(first, abs=1e-6)
    too_long = server.post("/v1/embeddings", {"model": "tiny", "input": "河边" * 600})
    assert too_long.status_code == 400
    assert "512 are possible at most" in too_long.json()["error"]["message"]


def test_langchain(server: Running) -> None:
    key, url = SecretStr("none"), f"{server.url}/v1"
    chat = ChatOpenAI(model="tiny", base_url=url, api_key=key, temperature=0, max_retries=0)
    plain = server.post(CHAT, server.chat(max_tokens=512)).json()["choices"][0]["message"]["content"]
    answer = chat.invoke([HumanMessage(ASK[0]["content"])])
    assert answer.content == plain
    assert answer.usage_metadata
    assert "".join(str(piece.content) for piece in chat.stream(ASK[0]["content"])) == plain
    vectors = OpenAIEmbeddings(
        model="tiny", base_url=url, api_key=key, check_embedding_ctx_length=False, max_retries=0
    )
    assert len(vectors.embed_documents(["河边", "the river"])) == 2
    assert vectors.embed_query("河边") == pytest.approx(vectors.embed_documents(["河边"])[0], abs=1e-6)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl(server: Running) -> None:
    command = ["curl", "-sN", server.url + CHAT, "-H", "Content-Type: application/json", "-d"]
    shown = subprocess.run(
        [*command, json.dumps(server.chat(stream=True))], capture_output=True, text=True, timeout=60
    ).stdout
    assert shown.startswith("data: {")
    assert shown.endswith("data: [DONE]\n\n")
    command[-3:] = ["-w", "%{http_code}", "-d"]
    assert subprocess.run([*command, "{}"], capture_output=True, text=True, timeout=60).stdout.endswith("415")


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "unknown model": ({"model": "gpt-4"}, 404, "'tiny' is served"),
    "no messages": ({"messages": []}, 400, "messages: List should have at least 1 item"),
    "no user last": ({"messages": [*ASK, {"role": "assistant", "content": "x"}]}, 400, "must be the user's"),
    "unknown role": ({"messages": [{"role": "bishop", "content": "x"}]}, 400, "messages.0.role"),
    "system later": (
        {"messages": [*ASK, {"role": "system", "content": ""}, *ASK]},
        400,
        "only the first message",
    ),
    "no content": ({"messages": [{"role": "user"}]}, 400, "messages.0.content"),
    "pictures": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "messages.0.content",
    ),
    "text as number": ({"temperature": "0.5"}, 400, "temperature: Input should be a valid number"),
    "number as text": ({"messages": [{"role": "user", "content": 5}]}, 400, "valid string"),
    "truth as number": ({"max_tokens": True}, 400, "max_tokens"),
    "fraction": ({"max_tokens": 1.5}, 400, "max_tokens"),
    "cold": ({"temperature": -0.1}, 400, "temperature -0.1 means nothing"),
    "no tokens": ({"max_tokens": 0}, 400, "max_tokens 0 means nothing"),
    "top_p": ({"top_p": 1.1}, 400, "top_p 1.1 means nothing"),
    "seed": ({"seed": -1}, 400, "seed -1 means nothing"),
    "too many choices": ({"n": 65}, 400, "n: Input should be less than or equal to 64"),
    "no choice": ({"n": 0}, 400, "n: Input should be greater"),
    "bias of no token": ({"logit_bias": {"one": 1}}, 400, "logit_bias"),
    "empty stop": ({"stop": [""]}, 400, "stop"),
    "top_logprobs": ({"logprobs": True, "top_logprobs": 21}, 400, "logprobs 21 means nothing"),
    "top_logprobs alone": ({"top_logprobs": 2}, 400, "without logprobs"),
    "tools": ({"tools": []}, 400, "tools: Extra inputs are not permitted"),
    "guidance": ({"guidance_scale": 1.5}, 400, "torch"),
    "beyond the context": (
        {"messages": [{"role": "user", "content": "河边" * 600}]},
        400,
        "512 are possible at most",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_with_a_reason(case: str, server: Running) -> None:
    change, status, reason = REFUSED[case]
    for stream in (False, True):
        answer = server.post(CHAT, server.chat(stream=stream) | change)
        assert answer.status_code == status
        error = answer.json()["error"]
        assert reason in error["message"]
        assert set(error) == {"message", "type", "param", "code"}


def test_openais_client_raises_its_own_errors(server: Running) -> None:
    client = server.openai().chat.completions
    with pytest.raises(openai.NotFoundError):
        client.create(**server.chat(model="gpt-4"))  # type: ignore[call-overload]
    with pytest.raises(openai.BadRequestError) as caught:
        client.create(**server.chat(messages=[{"role": "user", "content": "河边" * 600}]))  # type: ignore[call-overload]
    assert caught.value.code == "context_length_exceeded"


BROKEN = {
    "not JSON": (b'{"model": ', "Invalid JSON"),
    "nothing": (b"", "Invalid JSON"),
    "no object": (b"[]", "should be an object"),
    "bad UTF-8": (b'{"model": "\xff"}', "Invalid JSON"),
    "half a surrogate": (b'{"model": "\\ud800"}', "Invalid JSON"),
    "NaN": (
        b'{"model": "tiny", "temperature": NaN, "messages": [{"role": "user", "content": "x"}]}',
        "temperature",
    ),
    "deep": (b"[" * 100_000, "Invalid JSON"),
    "a long number": (b'{"max_tokens": ' + b"9" * 100_000 + b"}", "number out of range"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/v1/embeddings"])
def test_broken_bodies(case: str, path: str, server: Running) -> None:
    body, reason = BROKEN[case]
    answer = httpx2.post(server.url + path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    if path == CHAT:
        assert reason in answer.json()["error"]["message"]


def test_routes_that_are_none(server: Running) -> None:
    assert httpx2.get(server.url + "/v2/nothing").status_code == 404
    assert httpx2.get(server.url + CHAT).status_code == 405
    assert httpx2.get(server.url + CHAT).json()["error"]["type"] == "invalid_request_error"
    described = httpx2.get(server.url + "/openapi.json").json()["paths"][CHAT]["post"]["requestBody"]
    assert "messages" in described["content"]["application/json"]["schema"]["required"]


@pytest.mark.parametrize("head", ["Content-Length: 10000000", "Transfer-Encoding: chunked"])
def test_a_large_body_is_refused_before_it_is_read(head: str, server: Running) -> None:
    """Only a part of it is ever sent."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{head}\r\n\r\n".encode()
        )
        if head.startswith("Transfer"):
            client.sendall(b"200000\r\n" + b" " * 0x200000)  # 2 MiB of a chunk that goes on
        assert client.recv(1000).startswith(b"HTTP/1.1 413")


def test_a_client_that_hangs_in_the_middle_of_its_body_keeps_nobody_waiting(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    hanging = [socket.create_connection((host, int(port)), timeout=10) for _ in range(30)]
    for client in hanging:
        client.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n".encode()
        )
    assert server.post(CHAT, server.chat()).status_code == 200
    for client in hanging:
        client.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(stream: bool, gguf: Path) -> None:
    with serving(gguf, "--parallel", "1", "--queue", "0") as server:
        body = server.chat(stream=stream, **ENDLESS | {"n": 64})
        patience = httpx2.Timeout(60, read=0.5)
        with (
            suppress(httpx2.ReadTimeout),
            httpx2.stream("POST", server.url + CHAT, json=body, timeout=patience),
        ):
            assert stream, "a whole answer takes longer than this client waits"
            assert server.post(CHAT, server.chat()).status_code == 429, "the only place is held"
        deadline = time.monotonic() + 5
        while server.metric("llamacpp:requests_processing") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.post(CHAT, server.chat()).status_code == 200
        assert server.metric("yayan_requests_held") == 0
        assert server.metric('yayan_requests_total{status="499"}') == 1


def test_the_queue_is_bounded_and_says_when_to_come_again(gguf: Path) -> None:
    with serving(gguf, "--parallel", "1", "--queue", "2") as server:
        with ThreadPoolExecutor(12) as clients:
            body = server.chat(**ENDLESS)
            answers = list(clients.map(lambda _: server.post(CHAT, body), range(12)))
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {200, 429}
        assert codes.count(200) >= 3
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert server.metric('yayan_requests_total{status="429"}') == codes.count(429)


def test_answers_at_once_are_not_mixed_up(server: Running) -> None:
    """Each is made to say a token of its own. (Other texts may differ: the sums of a batch round otherwise.)"""
    bodies = [server.chat(logit_bias={str(token): 100}) for token in range(300, 308)]
    alone = [gathered(server, CHAT, body)[0] for body in bodies]
    with ThreadPoolExecutor(8) as clients:
        assert list(clients.map(lambda body: gathered(server, CHAT, body)[0], bodies)) == alone
    assert len({text[0] for text in alone}) == 8


def test_metrics(server: Running) -> None:
    before = server.metric('yayan_tokens_total{kind="generated"}')
    asked = server.metric('yayan_requests_total{status="200"}')
    server.post(CHAT, server.chat())
    assert server.metric('yayan_tokens_total{kind="generated"}') == before + 8
    assert server.metric('yayan_requests_total{status="200"}') > asked
    assert server.metric("yayan_requests_possible") == 10
    assert server.metric("llamacpp:tokens_predicted_total") == before + 8


def test_long_requests_do_not_hold_up_the_door(server: Running) -> None:
    body = server.chat(**ENDLESS)
    asking = [threading.Thread(target=server.post, args=(CHAT, body)) for _ in range(4)]
    for thread in asking:
        thread.start()
    begun = time.monotonic()
    assert httpx2.get(f"{server.url}/health").status_code == 200
    assert server.post(CHAT, {}).status_code == 400
    assert time.monotonic() - begun < 2
    for thread in asking:
        thread.join()


def test_log_probabilities_of_the_chosen_tokens_alone(server: Running) -> None:
    told = server.post(CHAT, server.chat(logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    assert told
    assert all(item["logprob"] <= 0 for item in told)
