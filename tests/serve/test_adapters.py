"""Adapters asked for by name from a server that holds one model."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.sentencepiece_model import make_chat_model
from tests.serve.running import ASK, Running, serving
from tests.weights.test_merge import make_adapter
from yayan.template import LLAMA2_TEMPLATE

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model without a template, and two adapters: `law`, which was tuned on chats, and `old`."""
    folder = tmp_path_factory.mktemp("adapters")
    base = make_chat_model(folder / "base", template=None)
    for seed, name in enumerate(("law", "old")):
        make_adapter(base, folder / name, seed=seed)
    (folder / "law" / "chat_template.jinja").write_text(LLAMA2_TEMPLATE, encoding="utf-8")
    return base


@pytest.fixture(scope="module")
def server(base: Path) -> Iterator[Running]:
    with serving(base, "--parallel", "2", *words(base, law="law", old="old")) as running:
        yield running


def words(base: Path, **adapters: str) -> list[str]:
    return [word for name, at in adapters.items() for word in (f"--adapter.{name}", str(base.parent / at))]


def told(server: Running, model: str, **options: object) -> str:
    body = {"model": model, "prompt": "从前，河边", "max_tokens": 12, "temperature": 0, **options}
    answer = server.post(COMPLETIONS, body).json()
    assert answer["model"] == model
    return answer["choices"][0]["text"]


def test_they_are_listed(server: Running) -> None:
    assert [item.id for item in server.openai().models.list()] == ["base", "law", "old"]


def test_each_answers_as_its_merged_model_does_also_beside_the_others(
    server: Running, base: Path, tmp_path: Path
) -> None:
    texts = {name: told(server, name) for name in ("base", "law", "old")}
    assert len(set(texts.values())) == 3
    for name in ("law", "old"):
        command = [sys.executable, "-m", "yayan", "merge", "--base", str(base), "--out", str(tmp_path / name)]
        subprocess.run([*command, "--adapter", str(base.parent / name)], check=True, capture_output=True)
        with serving(tmp_path / name) as merged:
            assert told(merged, name) == texts[name]
    names = ["law", "base", "old"] * 6
    with ThreadPoolExecutor(6) as clients:
        assert list(clients.map(lambda name: told(server, name), names)) == [texts[name] for name in names]


@pytest.mark.parametrize("count", [1, 2])
def test_events_name_the_adapter(server: Running, count: int) -> None:
    client = server.openai()
    options = {"model": "law", "messages": ASK, "max_tokens": 8, "temperature": 0, "n": count}
    whole = client.chat.completions.create(**options)  # type: ignore[call-overload]
    chunks = list(client.chat.completions.create(**options, stream=True))  # type: ignore[call-overload]
    assert {chunk.model for chunk in chunks} == {whole.model} == {"law"}
    for index, choice in enumerate(whole.choices):
        pieces = [c for chunk in chunks for c in chunk.choices if c.index == index]
        assert "".join(piece.delta.content or "" for piece in pieces) == choice.message.content


def test_only_the_adapter_with_a_template_chats(server: Running) -> None:
    for name, status in (("law", 200), ("old", 400), ("base", 400), ("new", 404)):
        answer = server.post(CHAT, server.chat(model=name))
        assert answer.status_code == status
    assert "'base', 'law', 'old' are served" in answer.json()["error"]["message"]


def test_an_adapter_has_no_embeddings(server: Running) -> None:
    answer = server.post("/v1/embeddings", {"model": "law", "input": "河"})
    assert answer.status_code == 400
    assert "ask 'base' for them" in answer.json()["error"]["message"]


def test_it_says_what_can_be_asked_for(base: Path) -> None:
    command = [sys.executable, "-m", "yayan", "serve", str(base), "--port", "0", *words(base, law="law")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(2)]
        process.terminate()
    assert "cannot chat. Adapters by name: law." in lines[0]
    assert '"model": "law"' in lines[1]
    assert "/v1/chat/completions" in lines[1]


def refused(base: Path, *options: str) -> str:
    command = [sys.executable, "-m", "yayan", "serve", str(base), "--port", "0", *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    return result.stderr


def test_what_cannot_be_served_is_one_sentence(base: Path, tmp_path: Path) -> None:
    assert "the model is called base itself" in refused(base, "--adapter.base", str(base.parent / "law"))
    assert "the torch engine has no adapters" in refused(base, "--engine", "torch", *words(base, law="law"))
    assert "there is no adapter_config.json" in refused(base, "--adapter.law", str(tmp_path))
    chatty = make_chat_model(tmp_path / "chatty", template="{{ messages }}")
    assert "another chat template" in refused(chatty, *words(base, law="law"))
    config = base.parent / "old" / "adapter_config.json"
    (tmp_path / "rows").mkdir()
    changed = json.loads(config.read_text()) | {"use_dora": True}
    (tmp_path / "rows" / "adapter_config.json").write_text(json.dumps(changed))
    (tmp_path / "rows" / "adapter_model.safetensors").write_bytes(
        (config.parent / "adapter_model.safetensors").read_bytes()
    )
    assert "lengths" in refused(base, "--adapter.law", str(tmp_path / "rows"))
