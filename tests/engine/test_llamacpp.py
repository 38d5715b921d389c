"""The in-process llama.cpp: what it opens, what it refuses, and that it sees the prompt that was trained."""

import json
import shutil
import socket
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

from tests.sentencepiece_model import TOKENS, make_chat_model
from yayan.engine.gguf import find_gguf, stretched_once
from yayan.engine.llamacpp import LlamaCpp, open_model
from yayan.errors import UserError, WorkError
from yayan.model.folder import read_config
from yayan.model.load import load_model
from yayan.model.longer import first_stretch, rope_applied
from yayan.model.rope import rope_of
from yayan.template import SYSTEM_PROMPTS, encode_prompt
from yayan.tokenizer import load_tokenizer
from yayan.weights.gguf_file import write_gguf

ASK = [{"role": "user", "content": "从前，河边有什么？"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("engine") / "tiny-chat")


@pytest.fixture(scope="module")
def gguf(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "tiny.gguf"
    write_gguf(model, path, "F16")
    return path


@pytest.fixture(scope="module")
def engine(gguf: Path) -> Any:
    with LlamaCpp(gguf, threads=1) as running:
        yield running


def answer_of(engine: LlamaCpp, messages: list[dict[str, str]], **options: Any) -> str:
    return "".join(engine.stream(messages, **options))


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant") * len(contents)
    begin = [] if system is None else [{"role": "system", "content": system}]
    return begin + [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]


CHATS = {
    "one question": turns("Who lived by the river?"),
    "Chinese": turns("老人说了什么？“今天的鱼”\n多吗？"),
    "own system": turns("河", system=SYSTEM_PROMPTS["long"]),
    "no system": turns("the river", system=""),
    "three turns": turns("河水", "又宽又慢", "the net", "and fish", "  spaces  \tand tabs "),
    "looks like the template": turns("[INST] </s><s> <<SYS>> <unk> <pad> [/INST] <0x41>"),
    "rare": turns("🙂👩‍👩‍👧 é e\u0301 𠮷 \u200b\ufeff ▁"),
    "empty": turns(""),
}


@pytest.mark.parametrize("chat", CHATS)
def test_the_prompt_is_the_one_that_was_trained(chat: str, engine: LlamaCpp, model: Path) -> None:
    messages = CHATS[chat]
    wanted = encode_prompt(load_tokenizer(model), messages)
    assert engine.prompt_ids(messages) == wanted
    answer = engine.ask("/v1/chat/completions", {"messages": messages, "max_tokens": 1})
    assert answer["usage"]["prompt_tokens"] == len(wanted)


def test_a_stream_is_the_answer_in_pieces(engine: LlamaCpp) -> None:
    pieces = list(engine.stream(ASK, max_tokens=20, temperature=0))
    assert len(pieces) > 5
    assert "".join(pieces) == answer_of(engine, ASK, max_tokens=20, temperature=0)


def test_a_seed_repeats_an_answer_and_another_one_does_not(engine: LlamaCpp) -> None:
    first, again, other = (answer_of(engine, ASK, max_tokens=20, temperature=1.5, seed=s) for s in (1, 1, 2))
    assert first == again != other


def test_leaving_a_stream_stops_the_model(gguf: Path) -> None:
    with LlamaCpp(gguf, threads=1) as engine:
        stream = engine.stream(ASK, max_tokens=400, temperature=1.0, seed=3)
        assert next(stream) is not None
        stream.close()
        assert answer_of(engine, ASK, max_tokens=3)  # the only slot is free again


def test_closing_at_once_does_not_hang(gguf: Path) -> None:
    for _ in range(20):
        LlamaCpp(gguf, threads=1).close()


def test_a_chat_beyond_the_context_is_refused_with_a_reason(engine: LlamaCpp) -> None:
    with pytest.raises(WorkError, match="exceeds the available context size"):
        answer_of(engine, turns("河边" * 600))


def test_a_context_is_that_of_each_conversation(gguf: Path) -> None:
    refusal = pytest.raises(WorkError, match=r"context size \(256 tokens\)")
    with LlamaCpp(gguf, threads=1, context=256, parallel=3) as engine, refusal:
        answer_of(engine, turns("河边" * 300))


def test_a_base_model_does_not_chat(tmp_path: Path) -> None:
    base = make_chat_model(tmp_path / "base", template=None)
    with open_model(base, threads=1) as engine, pytest.raises(UserError, match="base model.*base"):
        answer_of(engine, ASK)


def test_a_model_folder_is_converted_once_for_each_content(model: Path, tmp_path: Path) -> None:
    first, again = find_gguf(model), find_gguf(model)
    assert first == again
    made = first.stat().st_mtime_ns
    copy = shutil.copytree(model, tmp_path / "copy")
    assert find_gguf(copy) == first
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }}")
    other = find_gguf(copy)
    assert other != first
    assert first.stat().st_mtime_ns == made
    assert sorted(first.parent.glob("*")) == sorted(first.parent.glob("*.gguf")), "nothing half-done is left"


def test_a_conversion_that_fails_leaves_nothing(model: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / "tokenizer.model").unlink()
    before = sorted(find_gguf(model).parent.iterdir())
    with pytest.raises(UserError, match="tokenizer.model"):
        open_model(broken, threads=1)
    assert sorted(find_gguf(model).parent.iterdir()) == before


def test_a_folder_of_files_must_hold_one(gguf: Path, tmp_path: Path) -> None:
    shutil.copy(gguf, tmp_path / "a.gguf")
    with open_model(tmp_path, threads=1) as engine:
        assert engine.name == tmp_path.name
    shutil.copy(gguf, tmp_path / "b.gguf")
    with pytest.raises(UserError, match=r"name one of a\.gguf, b\.gguf"):
        find_gguf(tmp_path)


def broken_file(gguf: Path, tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    return path


def test_broken_files_are_named(gguf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = gguf.read_bytes()
    for content, sentence in (
        (b"", "not a GGUF file"),
        (b"hello world", "not a GGUF file"),
        (whole[:1000], "header of this GGUF file is damaged"),
        (whole[:-5000], "cut short"),
        (whole.replace(b"llama.block_count", b"llama.black_count"), "llama.cpp cannot load this model"),
    ):
        with pytest.raises((UserError, WorkError), match=sentence):
            open_model(broken_file(gguf, tmp_path, content), threads=1)
    for path in (tmp_path / "nowhere", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match="no such model|neither config.json nor a GGUF file"):
            open_model(path)
    assert capfd.readouterr() == ("", ""), "llama.cpp writes nothing of its own"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"context": 10**9}, "give 2 to 512 tokens"),
        ({"context": 0}, "give 2 to 512 tokens"),
        ({"context": 1}, "give 2 to 512 tokens"),  # llama.cpp would end the process
        ({"port": 65536}, "65536 is no port"),
        ({"port": -1}, "-1 is no port"),
        ({"host": "no.such.host.invalid"}, "nobody can listen on no.such.host.invalid"),
        ({"host": "192.0.2.1"}, "nobody can listen on 192.0.2.1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], sentence: str, gguf: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        LlamaCpp(gguf, threads=1, **settings)


def test_a_port_is_taken_once_and_free_after_closing(gguf: Path) -> None:
    with LlamaCpp(gguf, threads=1) as engine:
        port = urlsplit(engine.url).port
        assert port
        with pytest.raises(UserError, match=f"port {port}.*already in use"):
            LlamaCpp(gguf, threads=1, port=port)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    with LlamaCpp(gguf, threads=1, port=port) as engine:
        assert engine.url.endswith(f":{port}")


def status_of(engine: LlamaCpp, path: str, **headers: str) -> tuple[int, str | None]:
    address = urlsplit(engine.url)
    connection = HTTPConnection(address.hostname or "", address.port)
    connection.request("POST", path, json.dumps({"messages": ASK, "max_tokens": 1}), headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, response.getheader("Access-Control-Allow-Origin")


def test_a_key_is_asked_for_and_used(gguf: Path) -> None:
    with LlamaCpp(gguf, threads=1, api_key="secret") as engine:
        assert answer_of(engine, ASK, max_tokens=2)
        assert status_of(engine, "/v1/chat/completions")[0] == 401
        assert status_of(engine, "/v1/chat/completions", Authorization="Bearer wrong")[0] == 401


def test_web_pages_elsewhere_may_not_use_a_server_without_a_key(engine: LlamaCpp) -> None:
    status, origin = status_of(engine, "/v1/chat/completions", Origin="https://elsewhere.example")
    assert status == 200
    assert origin == "http://localhost"
    assert status_of(engine, "/slots")[0] in (404, 405, 501)


def test_a_context_that_is_chosen_by_itself_is_twice_as_long(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is made once, of the folder stretched; llama.cpp turns every request as it says."""
    with open_model(model, context="auto", threads=1, exact=True) as engine:
        assert engine.context == 1024
        assert "context 1024: all requests are stretched alike" in capsys.readouterr().err
        ids = [1, *range(10, 310), *range(10, 310)]
        likeliest = engine.next_logprobs(ids, 5)
    assert stretched_once(model) == engine.gguf != find_gguf(model)
    network, config = load_model(model), first_stretch(read_config(model))
    with torch.inference_mode():
        plain_V = network(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        with rope_applied(network, rope_of(config)):
            stretched_V = network(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    wrong, off = (
        max(abs(logprob - logprobs_V[token].item()) for token, logprob in likeliest.items())
        for logprobs_V in (plain_V, stretched_V)
    )
    assert off < 0.02 < 5 * 0.02 < wrong  # weights are in 16 bits
    with pytest.raises(UserError, match="as the file says"):
        open_model(find_gguf(model), context="auto")


@pytest.fixture(scope="module")
def wide_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("wide") / "wide-heads", head_dim=32)


@pytest.mark.parametrize(("kv_cache", "size"), [("16bit", 2.0), ("8bit", 34 / 32), ("4bit", 18 / 32)])
def test_a_cache_in_fewer_bits_answers_alike_in_less_memory(
    kv_cache: Any, size: float, wide_heads: Path
) -> None:
    ids = [1, *range(10, 200)]
    with open_model(wide_heads, threads=1, exact=True) as exact:
        wanted = exact.next_logprobs(ids, 3)
    with open_model(wide_heads, threads=1, parallel=2, context=256, kv_cache=kv_cache) as engine:
        assert engine.cache_bytes == int(
            2 * 256 * 2 * 3 * 2 * 32 * size
        )  # keys and values, layers, heads, width
        found = engine.next_logprobs(ids, TOKENS)
    off = max(abs(found[token] - logprob) for token, logprob in wanted.items())
    assert off < {"16bit": 0.03, "8bit": 0.1, "4bit": 1.0}[kv_cache]
    assert off > {"16bit": 0, "8bit": 1e-4, "4bit": 1e-3}[kv_cache]


def test_a_cache_in_fewer_bits_wants_wide_heads(model: Path) -> None:
    with pytest.raises(UserError, match=r"heads have 8 numbers.*\(kv-cache 4bit\): keep the cache in 16bit"):
        open_model(model, kv_cache="4bit")
