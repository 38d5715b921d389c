"""GGUF files of models with a byte-level tokenizer: the same ids, prompts and log-probabilities in llama.cpp."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from tests.byte_level import TOKENS, tiny_tokenizer, write_folder
from tests.sentencepiece_model import TOKENS as ROWS
from tests.sentencepiece_model import make_chat_model
from yayan.errors import UserError
from yayan.pretokenizers import EXPRESSIONS
from yayan.stage import execute
from yayan.tokenizer import load_tokenizer
from yayan.tokenizer_files import open_byte_level
from yayan.weights.gguf import Gguf
from yayan.weights.gguf_file import write_gguf
from yayan.weights.gguf_tokens import read_tokenizer


def make_byte_level_model(folder: Path, tokenizer: Tokenizer | None = None, **config: Any) -> Path:
    """A random chat model of 500 rows whose tokenizer is a byte-level BPE."""
    make_chat_model(folder, **config)
    (folder / "tokenizer.model").unlink()
    specials = {"bos_token": "<s>", "pad_token": "<pad>"}
    return write_folder(folder, tokenizer or tiny_tokenizer(), **specials)


@pytest.mark.parametrize("pre", EXPRESSIONS)
def test_the_stage_proves_a_byte_level_model(pre: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(pre)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False, special=False)])
    model = make_byte_level_model(tmp_path / "model", tokenizer)
    record = execute(Gguf(model=model, type=["F32"], out=tmp_path / "out"))
    entry = record["metrics"]["files"]["model-F32.gguf"]
    assert entry["texts_with_equal_tokens"] > 200
    assert entry["chats_with_equal_prompts"] == 2
    assert entry["positions_compared"] == 100
    assert entry["positions_with_same_first_token"] >= 98
    assert entry["largest_difference_of_logprobs"] < 1e-3
    assert record["tokenizer"] == load_tokenizer(model).sha256


def test_a_tokenizer_that_normalises_is_proved_on_normal_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Qwen's: NFC, which llama.cpp does not know."""
    tokenizer = tiny_tokenizer("qwen2")
    tokenizer.normalizer = normalizers.NFC()
    model = make_byte_level_model(tmp_path / "model", tokenizer, family="qwen2")
    record = execute(Gguf(model=model, type=["F32"], out=tmp_path / "out"))
    assert record["metrics"]["files"]["model-F32.gguf"]["texts_with_equal_tokens"] > 200
    assert "does not bring texts into NFC" in capsys.readouterr().err


def test_the_file_says_what_the_tokenizer_is(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False, special=False)])
    tokenizer.add_special_tokens([AddedToken("<|end|>", normalized=False, special=True)])
    folder = make_byte_level_model(tmp_path / "model", tokenizer)
    path = tmp_path / "model.gguf"
    write_gguf(folder, path, "F16")
    said = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
    tokens, types = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    assert tokens[: TOKENS + 2] == [tokenizer.id_to_token(row) for row in range(TOKENS + 2)]
    assert tokens[TOKENS : TOKENS + 2] == ["<tool>", "<|end|>"]
    assert tokens[TOKENS + 2 :] == [f"[PAD{row}]" for row in range(TOKENS + 2, ROWS)]
    assert types[:3] == [TokenType.CONTROL] * 3
    assert set(types[3:TOKENS]) == {TokenType.NORMAL}
    assert types[TOKENS : TOKENS + 2] == [TokenType.USER_DEFINED, TokenType.CONTROL]
    assert types[TOKENS + 2 :] == [TokenType.UNUSED] * (ROWS - TOKENS - 2)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    assert said["tokenizer.ggml.merges"] == [" ".join(pair) for pair in merges]
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert "tokenizer.ggml.scores" not in said
    special = {name: said[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")}
    assert special == {"bos": 0, "eos": 1, "padding": 2}
    switches = ("add_bos_token", "add_eos_token", "add_space_prefix")
    assert [said[f"tokenizer.ggml.{name}"] for name in switches] == [True, False, False]
    assert said["tokenizer.chat_template"] == (folder / "chat_template.jinja").read_text()
    again = open_byte_level(path)
    assert again.special_ids == special_ids_of(folder)
    assert again.fast.get_vocab() == tokenizer.get_vocab()
    assert again.template == said["tokenizer.chat_template"]


def special_ids_of(folder: Path) -> dict[str, int | None]:
    tokenizer = load_tokenizer(folder)
    return {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}


def test_ids_without_a_token_are_rows_without_a_token(tmp_path: Path) -> None:
    parts = json.loads(tiny_tokenizer().to_str())
    last = max(parts["model"]["vocab"], key=parts["model"]["vocab"].get)
    parts["model"]["vocab"][last] += 7
    _, table = read_tokenizer(write_folder(tmp_path, Tokenizer.from_str(json.dumps(parts))))
    assert len(table.tokens) == TOKENS + 7
    assert table.tokens[TOKENS - 1 : TOKENS + 6] == [None] * 7
    assert table.types[TOKENS - 2 :] == [TokenType.NORMAL, *[TokenType.UNUSED] * 7, TokenType.NORMAL]


def set_normalizer(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.NFKC()


def set_prefix(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def set_ignore_merges(tokenizer: Tokenizer) -> None:
    tokenizer.model.ignore_merges = True


def add_stripping_token(tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])


def add_many_tokens(tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens([f"<{number}>" for number in range(101)])


REFUSALS: list[tuple[Callable[[Tokenizer], None], str]] = [
    (set_normalizer, "rewrites text cannot be written"),
    (set_prefix, "no exact name for the pre-tokenizer.*gpt-2, llama-bpe"),
    (set_ignore_merges, "whole words without merging"),
    (add_stripping_token, "the added token <mask>"),
    (add_many_tokens, "501 tokens, the embedding 500 rows"),
]


@pytest.mark.parametrize(("spoil", "sentence"), REFUSALS)
def test_what_llama_cpp_would_cut_otherwise_is_refused(
    spoil: Callable[[Tokenizer], None], sentence: str, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    spoil(tokenizer)
    model = make_byte_level_model(tmp_path / "model", tokenizer)
    with pytest.raises(UserError, match=sentence):
        execute(Gguf(model=model, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
