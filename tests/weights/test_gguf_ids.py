"""llama.cpp's own ids of texts against those of the folder's tokenizer."""

import json
import random
import shutil
from pathlib import Path

import pytest
from tokenizers import AddedToken

from tests.byte_level import fuzzed_texts, pairs_tokenizer, tiny_tokenizer, write_folder
from tests.conftest import SHARED, needs_shared
from tests.mended import FOLDER, mend, vectors
from tests.sentencepiece_model import TEXTS, make_chat_model
from yayan.errors import UserError, WorkError
from yayan.pretokenizers import EXPRESSIONS
from yayan.tokenizer import load_tokenizer
from yayan.tokenizer_files import open_byte_level
from yayan.weights.gguf_ids import (
    LONGEST_TEXT,
    MODEL_DEFAULTS,
    llamacpp_ids,
    model_parameters,
    opened_vocabulary,
    write_vocabulary,
)


def with_specials(folder: Path, count: int, seed: int) -> list[str]:
    """Fuzzed texts, some with tokens of the vocabulary and with what looks like its special tokens."""
    tokenizer, rng = load_tokenizer(folder), random.Random(seed)
    pieces = [tokenizer.decode([row]) for row in range(tokenizer.size) if row % 7 == 0]
    whole = [piece for piece in pieces if piece and "\N{REPLACEMENT CHARACTER}" not in piece]
    added = [item.content for item in tokenizer.fast.get_added_tokens_decoder().values() if item.special]
    texts = fuzzed_texts(count, seed, whole)
    return [text + rng.choice(added) + rng.choice(texts) if rng.random() < 0.2 else text for text in texts]


def compare(folder: Path, count: int, seed: int = 0) -> None:
    tokenizer, texts = load_tokenizer(folder), with_specials(folder, count, seed)
    ours = tokenizer.encode_batch(texts)
    parsed = [tokenizer.encode_with_specials(text) for text in texts]
    assert ours != parsed
    assert llamacpp_ids(folder, texts) == ours
    assert llamacpp_ids(folder, texts, parse_specials=True) == parsed


@pytest.mark.slow
@pytest.mark.parametrize("pre", EXPRESSIONS)
def test_words_begin_where_llama_cpp_begins_them(pre: str, tmp_path: Path) -> None:
    compare(write_folder(tmp_path, pairs_tokenizer(pre)), 1000)


@pytest.mark.parametrize("pre", EXPRESSIONS)
def test_a_byte_level_folder(pre: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(pre)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<tool>", "  ", "\n\n\n", "é")])
    compare(write_folder(tmp_path, tokenizer, bos_token="<s>"), 1000)


def test_a_sentencepiece_folder(tmp_path: Path) -> None:
    folder = make_chat_model(tmp_path)
    texts = [text.replace("\x00", "") for text in with_specials(folder, 1000, 1)]
    assert llamacpp_ids(folder, texts) == load_tokenizer(folder).encode_batch(texts)


def test_another_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not model_parameters().no_alloc
    monkeypatch.setitem(MODEL_DEFAULTS, "lazy_mode", 7)
    with pytest.raises(WorkError, match="lays out lazy_mode otherwise"):
        model_parameters()


def test_texts_by_hand(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, tiny_tokenizer(), bos_token="<s>")
    tokenizer = load_tokenizer(folder)
    texts = ["", " ", "\n", "</s>", "a</s>b"]
    assert llamacpp_ids(folder, texts) == [tokenizer.encode(text) for text in texts]
    assert llamacpp_ids(folder, texts)[0] == []
    parsed = llamacpp_ids(folder, texts, parse_specials=True)
    assert parsed[3:] == [[1], [*tokenizer.encode("a"), 1, *tokenizer.encode("b")]]
    assert llamacpp_ids(folder, []) == []


def test_another_order_of_merges_is_seen(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one", tiny_tokenizer())
    other = shutil.copytree(folder, tmp_path / "other")
    parts = json.loads((other / "tokenizer.json").read_text())
    parts["model"]["merges"].reverse()
    (other / "tokenizer.json").write_text(json.dumps(parts))
    assert llamacpp_ids(folder, TEXTS) == load_tokenizer(folder).encode_batch(TEXTS)
    assert llamacpp_ids(folder, TEXTS) != llamacpp_ids(other, TEXTS)


def test_what_cannot_be_cut_or_opened(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "folder", tiny_tokenizer("deepseek-llm"))
    longest = "a" * LONGEST_TEXT
    assert llamacpp_ids(folder, [longest]) == [load_tokenizer(folder).encode(longest)]
    with pytest.raises(UserError, match="8,193 characters"):
        llamacpp_ids(folder, [longest + "a"])
    write_vocabulary(folder, tmp_path / "v.gguf")
    (tmp_path / "v.gguf").write_bytes((tmp_path / "v.gguf").read_bytes()[:2000])
    with (
        pytest.raises(WorkError, match="cannot open this file"),
        opened_vocabulary(tmp_path / "v.gguf"),
    ):
        pass
    assert capfd.readouterr() == ("", ""), "llama.cpp writes nothing of its own"


@needs_shared
def test_llama_cpp_itself_passes_its_vectors(tmp_path: Path) -> None:
    mend("deepseek-llm", tmp_path / "v.gguf")
    found = open_byte_level(tmp_path / "v.gguf")
    folder = write_folder(tmp_path / "folder", found.fast, eos_token="<｜end▁of▁sentence｜>")
    texts, wanted = zip(*vectors("deepseek-llm"), strict=True)
    assert llamacpp_ids(folder, texts) == list(wanted)


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["llama-2", "minimind-6400.tokenizer.json", "gpt2.vocab.json", "deepseek-llm", "deepseek-coder"]
)
def test_ten_thousand_texts(name: str, tmp_path: Path) -> None:
    if name == "llama-2":
        return compare(SHARED / "base" / "en-base-21m", 10_000)
    path = FOLDER / name
    if name in EXPRESSIONS:
        mend(name, path := tmp_path / "v.gguf")
    found = open_byte_level(path)
    eos = found.fast.id_to_token(found.special_ids["eos"]) or ""
    return compare(write_folder(tmp_path / "folder", found.fast, eos_token=eos), 10_000)
