"""Which engine is chosen, and why."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_base
from yayan.engine.choose import choose_engine, open_engine
from yayan.engine.llamacpp import LlamaCpp
from yayan.engine.sampling import Sampling
from yayan.engine.torch import TorchEngine
from yayan.errors import UserError
from yayan.weights.gguf_file import write_gguf

GREEDY = Sampling(temperature=0, max_tokens=8)
ASK = [{"role": "user", "content": "河"}]


def test_llamacpp_where_it_can(chat_model: Path, tmp_path: Path) -> None:
    write_gguf(chat_model, tmp_path / "model.gguf", "F16")
    assert choose_engine(tmp_path / "model.gguf").why == "this is a GGUF file"
    for _ in range(2):  # before it is converted, and after
        engine, choice = open_engine(chat_model, threads=1, context=None)
        with engine:
            assert isinstance(engine, LlamaCpp)
            assert choice.engine == "llamacpp"
            assert choice.why == "this folder can be converted, once"
            assert "".join(engine.stream(ASK, GREEDY))


@pytest.mark.parametrize("asked", [{"guidance": True}, {"quantize": "8bit"}, {"dtype": "bfloat16"}])
def test_torch_for_what_only_it_has(asked: dict[str, Any], chat_model: Path) -> None:
    choice = choose_engine(chat_model, **asked)
    assert (choice.engine, choice.why) == ("torch", f"only torch has {next(iter(asked))}")


def test_a_draft_is_for_both(chat_model: Path, sibling: Path) -> None:
    assert choose_engine(chat_model, draft=sibling).engine == "torch"
    assert choose_engine(chat_model, "llamacpp", draft=sibling).engine == "llamacpp"
    assert choose_engine(chat_model, draft="lookup").why == "only torch has look-up"


def test_torch_where_each_request_is_to_be_stretched(chat_model: Path) -> None:
    choice = choose_engine(chat_model, context="auto")
    assert (choice.engine, choice.why) == ("torch", "only torch stretches each request by what it needs")
    assert choose_engine(chat_model, context=100).engine == "llamacpp"
    assert choose_engine(chat_model, "llamacpp", context="auto").engine == "llamacpp"


def test_torch_where_a_folder_cannot_be_converted(tmp_path: Path) -> None:
    make_base(tmp_path)
    choice = choose_engine(tmp_path)
    assert choice.engine == "torch"
    assert choice.why.startswith("llama.cpp cannot have this folder, ")
    assert "tokenizer.model" in choice.why


def test_what_is_asked_for_is_opened(chat_model: Path) -> None:
    engine, choice = open_engine(chat_model, "torch", draft="lookup", context=100)
    with engine:
        assert isinstance(engine, TorchEngine)
        assert (choice.why, engine.context, engine.draft) == ("it was asked for", 100, "lookup")
        assert "".join(engine.stream(ASK, GREEDY))


@pytest.mark.parametrize(
    ("engine", "settings", "sentence"),
    [
        ("vulkan", {}, "no engine vulkan"),
        ("llamacpp", {"quantize": "4bit"}, "llama.cpp has no quantize"),
        ("llamacpp", {"guidance": True}, "llama.cpp has no guidance"),
        ("torch", {"port": 8080}, "the torch engine has no port"),
        ("auto", {"port": 8080, "draft": "lookup"}, "the torch engine has no port"),
    ],
)
def test_what_does_not_go_together(
    engine: Any, settings: dict[str, Any], sentence: str, chat_model: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        choose_engine(chat_model, engine, **settings)


def test_a_gguf_file_is_nothing_for_torch(chat_model: Path, tmp_path: Path) -> None:
    write_gguf(chat_model, tmp_path / "model.gguf", "F16")
    given: list[dict[str, Any]] = [{"engine": "torch"}, {"guidance": True}]
    for asked in given:
        with pytest.raises(UserError, match="the torch engine opens model folders"):
            choose_engine(tmp_path / "model.gguf", **asked)


def test_a_folder_of_another_kind_is_named(chat_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(chat_model, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(UserError, match="type bert is not supported"):
        open_engine(folder)
