"""The torch engine behind the front gives what it gives alone, and what llama.cpp gives."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.serve.running import ASK, Running, serving
from tests.serve.test_front import CHAT, COMPLETIONS, gathered
from yayan.engine.sampling import Sampling
from yayan.engine.torch import TorchEngine


@pytest.fixture(scope="module")
def folder(gguf: Path) -> Path:
    return gguf.parent / "tiny-chat"


@pytest.fixture(scope="module")
def local(folder: Path) -> Iterator[Running]:
    with serving(folder, "--engine", "torch") as running:
        yield running


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TorchEngine]:
    with TorchEngine(folder, threads=1) as running:
        yield running


@pytest.mark.parametrize("stream", [True, False])
def test_a_chat(stream: bool, local: Running, engine: TorchEngine) -> None:
    body = local.chat(stream=stream, stream_options={"include_usage": True})
    text, usage = gathered(local, CHAT, body)
    assert text == {0: "".join(engine.stream(ASK, Sampling(temperature=0, max_tokens=8)))}
    assert usage == {
        "prompt_tokens": len(engine.prompt_ids(ASK)),
        "completion_tokens": 8,
        "total_tokens": len(engine.prompt_ids(ASK)) + 8,
    }


def test_guidance_with_a_negative_prompt(local: Running, engine: TorchEngine) -> None:
    options: dict[str, Any] = {"guidance_scale": 3.0, "negative_prompt": "the river"}
    text, _ = gathered(local, CHAT, local.chat(**options))
    assert text == {0: "".join(engine.stream(ASK, Sampling(temperature=0, max_tokens=8, **options)))}
    assert text != gathered(local, CHAT, local.chat())[0]


def test_several_choices_and_log_probabilities(local: Running, server: Running) -> None:
    many, usage = gathered(local, CHAT, local.chat(n=3, temperature=1.5, seed=3))
    assert len(set(many.values())) == 3
    assert usage["completion_tokens"] == 24
    body = {
        "model": local.model,
        "prompt": ["the river", "老人"],
        "max_tokens": 4,
        "temperature": 0,
        "logprobs": 2,
    }
    ours = local.post(COMPLETIONS, body).json()["choices"]
    theirs = server.post(COMPLETIONS, body | {"model": server.model}).json()["choices"]
    for here, there in zip(ours, theirs, strict=True):
        assert here["text"].rstrip("\ufffd") == there["text"].rstrip("\ufffd"), "but for half a character"
        told = there["logprobs"]["token_logprobs"]
        found = here["logprobs"]["token_logprobs"][: len(told)]
        assert found == pytest.approx(told, abs=0.02), "F16 weights there"


def test_what_it_refuses(local: Running) -> None:
    for change, reason in (
        ({"messages": [{"role": "user", "content": "河边" * 600}]}, "511 are possible at most"),
        ({"negative_prompt": "x"}, "no effect with guidance_scale 1"),
        ({"logit_bias": {"99999": 1}}, "no token"),
        ({"messages": [*ASK, {"role": "system", "content": "x"}, *ASK]}, "only the first message"),
    ):
        answer = local.post(CHAT, local.chat(**change))
        assert answer.status_code == 400
        assert reason in answer.json()["error"]["message"]
    answer = local.post("/v1/embeddings", {"model": local.model, "input": "x"})
    assert (answer.status_code, "llamacpp" in answer.text) == (400, True)


def test_a_client_that_leaves_stops_the_model(local: Running) -> None:
    body = local.chat(stream=True, max_tokens=400, logit_bias={"2": -100})
    with httpx2.stream("POST", local.url + CHAT, json=body) as answer:
        next(answer.iter_raw())
    assert local.post(CHAT, local.chat()).status_code == 200
    assert local.metric('yayan_tokens_total{kind="generated"}') < 400
    assert local.metric("yayan_requests_held") == 0
