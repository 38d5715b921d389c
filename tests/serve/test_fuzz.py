"""Thousands of malformed requests: each gets a 4xx in OpenAI's form, and the server is as well as before."""

import json
import random
from http.client import HTTPConnection
from typing import Any

import pytest

from tests.serve.running import ASK, Running

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
GOOD: tuple[dict[str, Any], ...] = (
    {"model": "tiny", "messages": ASK, "max_tokens": 1},
    {"model": "tiny", "prompt": "the river", "max_tokens": 1},
    {"model": "tiny", "input": "the river"},
)
JUNK: tuple[Any, ...] = (
    *(-1, 0.5, 1e308, 2**70, True, "", "x", "\x00", "河" * 5000, [], {}, [[]], [{}], {"a": 1}, [None]),
    *(
        [-1],
        [2**40],
        ["x", 5],
        [[1], "x"],
        [[[1]]],
        {"300": "x"},
        [{"role": "user"}],
        [{"role": 5, "content": []}],
    ),
)
NAMES = (
    "temperature",
    "max_tokens",
    "stop",
    "n",
    "seed",
    "logit_bias",
    "stream",
    "logprobs",
    "top_p",
    "extra",
)
MOST_GROWTH_BYTES = 8 << 20


def malformed(chance: random.Random) -> tuple[str, bytes]:
    """A path and a body that is a good one with something broken in it: a field, or its bytes."""
    number = chance.randrange(len(PATHS))
    body = json.loads(json.dumps(GOOD[number]))
    kind = chance.randrange(4)
    if kind == 0:
        if chance.random() < 0.3:
            return PATHS[number], json.dumps(body | {"model": "gpt-4"}).encode()
        body[list(GOOD[number])[1]] = chance.choice([None, 5, {}, [{}], [None], [], [[]]])
    elif kind == 1:
        body[chance.choice([*body, *NAMES])] = chance.choice(JUNK)
        body[chance.choice(["tools", "héllo", "\x00"])] = chance.choice(JUNK)
    raw = json.dumps(body, ensure_ascii=chance.random() < 0.5).encode()
    if kind == 2:
        raw = raw[: chance.randrange(len(raw))]
    elif kind == 3:
        place = chance.randrange(len(raw))
        raw = raw[:place] + chance.choice([b"\xff", b"\xc3", b"\x00", b'"\\ud800"']) + raw[place:]
    return PATHS[number], raw


def fuzz(server: Running, count: int, seed: int) -> None:
    """Send so many; the answers' form, then the server's health and memory, are checked."""
    chance, seen = random.Random(seed), {400: 0, 404: 0}
    host, _, port = server.url.removeprefix("http://").partition(":")
    connection = HTTPConnection(host, int(port), timeout=60)
    before = 0
    for done in range(count):
        path, body = malformed(chance)
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status in seen, (answer.status, content, body)
        seen[answer.status] += 1
        assert json.loads(content)["error"]["message"]
        if done == count // 5:  # what is taken once is taken now
            before = server.anonymous_bytes()
    assert server.anonymous_bytes() - before < MOST_GROWTH_BYTES
    assert all(seen.values())
    assert server.post(PATHS[0], server.chat()).status_code == 200
    assert server.metric("yayan_requests_held") == 0


def test_some_malformed_requests(server: Running) -> None:
    fuzz(server, 400, seed=1)


@pytest.mark.slow
def test_ten_thousand_malformed_requests(server: Running) -> None:
    fuzz(server, 10_000, seed=2)
