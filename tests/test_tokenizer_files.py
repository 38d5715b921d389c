"""Byte-level tokenizers out of the files in which they are published, and files that are something else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from tests.byte_level import fuzzed_texts, tiny_tokenizer, write_folder
from tests.conftest import SHARED, needs_shared
from tests.mended import FOLDER, SPECIALS, mend, vectors
from yayan.errors import UserError
from yayan.tokenizer_files import open_byte_level, read_byte_level, read_merges, utf8_letters

TEXTS = fuzzed_texts(300, seed=0)


def ids(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [item.ids for item in tokenizer.encode_batch(texts, add_special_tokens=False)]


def write_pair(folder: Path, prefix: str = "", **changes: Any) -> Path:
    """GPT-2's form of the tiny tokenizer; its vocab.json is returned."""
    model = json.loads(tiny_tokenizer().to_str())["model"]
    lines = [" ".join(pair) for pair in model["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{prefix}merges.txt").write_text(changes.get("head", "") + "\n".join(lines) + "\n")
    (folder / f"{prefix}vocab.json").write_text(json.dumps(model["vocab"]))
    return folder / f"{prefix}vocab.json"


def test_the_letters_of_utf8() -> None:
    impossible = {0xC0, 0xC1, *range(0xF5, 0x100)}
    assert len(utf8_letters()) == 256 - len(impossible)
    assert set(pre_tokenizers.ByteLevel.alphabet()) - utf8_letters() == {chr(byte) for byte in impossible}


def test_a_folder_and_a_file_with_tokenizer_json(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", tiny_tokenizer(), pad_token="<pad>")
    (folder / "chat_template.jinja").write_text("T")
    whole = open_byte_level(folder)
    assert (whole.special_ids, whole.pre_name, whole.template) == (
        {"bos": 0, "eos": 1, "pad": 2},
        "gpt-2",
        "T",
    )
    assert ids(whole.fast, TEXTS) == ids(tiny_tokenizer(), TEXTS)
    assert open_byte_level(folder / "tokenizer.json").special_ids == whole.special_ids
    shutil.copy(folder / "tokenizer.json", tmp_path / "tiny.tokenizer.json")
    alone = open_byte_level(tmp_path / "tiny.tokenizer.json")
    assert (alone.special_ids, alone.template) == ({"bos": 0, "eos": 1}, None)


@pytest.mark.parametrize("prefix", ["", "tiny."])
def test_the_pair_of_files(prefix: str, tmp_path: Path) -> None:
    vocab = write_pair(tmp_path / "pair", prefix, head="#version: 0.2\n")
    for path in (vocab, vocab.with_name(f"{prefix}merges.txt"), *([vocab.parent] if not prefix else [])):
        found = open_byte_level(path)
        assert (found.special_ids, found.pre_name) == ({"bos": 0, "eos": 1}, "gpt-2")
        assert ids(found.fast, TEXTS) == ids(tiny_tokenizer(), TEXTS)
        assert found.fast.encode("a</s>").ids[-1] == 1


def test_merges_that_begin_with_a_hash_are_merges(tmp_path: Path) -> None:
    file = tmp_path / "merges.txt"
    file.write_text("# #\n## #\n\n#version a\n")
    assert read_merges(file) == [("#", "#"), ("##", "#"), ("#version", "a")]
    file.write_text("#version: 0.2\r\n# #\r\n")
    assert read_merges(file) == [("#", "#")]
    file.write_text("a b\na b c\n")
    with pytest.raises(UserError, match=r"merges.txt:2"):
        read_merges(file)


def test_files_of_another_pre_tokenizer_are_not_taken_for_gpt2(tmp_path: Path) -> None:
    folder = write_pair(tmp_path).parent
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with pytest.raises(UserError, match="Qwen2Tokenizer cuts text"):
        read_byte_level(folder)
    (folder / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    assert open_byte_level(folder).pre_name is None
    (folder / "added_tokens.json").write_text('{"<x>": 400}')
    with pytest.raises(UserError, match="tokens added beside"):
        read_byte_level(folder)


def write_vocabulary(path: Path, model: str, pre: str | None, tokens: list[str], types: list[int]) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["h e", "he l"])
    writer.add_eos_token_id(len(tokens) - 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())


def test_types_of_a_gguf_vocabulary(tmp_path: Path) -> None:
    tokens = [*LETTERS, "he", "hel", "[PAD258]", "<tool>", "<end>"]
    path = write_vocabulary(tmp_path / "v.gguf", "gpt2", "gpt-2", tokens, [1] * 258 + [5, 4, 3])
    found = open_byte_level(path)
    assert found.special_ids == {"eos": 260}
    assert found.fast.id_to_token(258) is None
    assert found.fast.encode("hel<tool>he<end>").ids == [257, 259, 256, 260]
    found.fast.encode_special_tokens = True
    assert found.fast.encode("<tool>he<end>").ids[:2] == [259, 256]
    assert 260 not in found.fast.encode("<tool>he<end>").ids


GGUF_REFUSALS: list[tuple[str, str | None, list[str], str]] = [
    ("llama", "default", LETTERS, "kind SentencePiece BPE"),
    ("bert", None, LETTERS, "kind WordPiece"),
    ("t5", None, LETTERS, "kind Unigram"),
    ("rwkv", None, LETTERS, "kind rwkv"),
    ("gpt2", "gpt-4o", LETTERS, "pre-tokenizer gpt-4o is not supported.*gpt-2, llama-bpe"),
    ("gpt2", None, LETTERS, "without a name"),
    ("gpt2", "gpt-2", [*LETTERS, "a"], "a token twice"),
    ("gpt2", "gpt-2", LETTERS[:99], "do not fit together"),
]


@pytest.mark.parametrize(("model", "pre", "tokens", "sentence"), GGUF_REFUSALS)
def test_gguf_vocabularies_that_are_refused(
    model: str, pre: str | None, tokens: list[str], sentence: str, tmp_path: Path
) -> None:
    tokens = [*tokens, "he", "hel"] if len(tokens) > 99 else tokens
    path = write_vocabulary(tmp_path / "v.gguf", model, pre, tokens, [1] * len(tokens))
    with pytest.raises(UserError, match=sentence):
        read_byte_level(path)


def set_dropout(tokenizer: Tokenizer) -> None:
    tokenizer.model.dropout = 0.1


def drop_bytes(tokenizer: Tokenizer) -> None:
    tokenizer.model = models.BPE(vocab={"a": 0, "b": 1}, merges=[])


def set_suffix(tokenizer: Tokenizer) -> None:
    tokenizer.model.end_of_word_suffix = "</w>"


def set_unigram(tokenizer: Tokenizer) -> None:
    tokenizer.model = models.Unigram([("a", 0.0)], 0)


def set_wordpiece(tokenizer: Tokenizer) -> None:
    tokenizer.model = models.WordPiece({"a": 0}, unk_token="a")


def drop_byte_level(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()


REFUSALS: list[tuple[Callable[[Tokenizer], None], str]] = [
    (set_unigram, "kind Unigram is no"),
    (set_wordpiece, "kind WordPiece is no"),
    (drop_byte_level, "kind BPE without bytes"),
    (drop_bytes, "241 of the bytes"),
    (set_dropout, "with dropout"),
    (set_suffix, "marks parts of words"),
]


@pytest.mark.parametrize(("spoil", "sentence"), REFUSALS)
def test_other_kinds_are_refused_by_name(
    spoil: Callable[[Tokenizer], None], sentence: str, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    spoil(tokenizer)
    with pytest.raises(UserError, match=sentence):
        read_byte_level(write_folder(tmp_path, tokenizer))


def test_what_rewrites_text_is_read(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.normalizer = normalizers.NFC()
    assert read_byte_level(write_folder(tmp_path, tokenizer)).normalizer is not None


def test_paths_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_byte_level(tmp_path / "missing.gguf")
    with pytest.raises(UserError, match="there is no vocab.json"):
        read_byte_level(tmp_path)
    write_pair(tmp_path, "x.")
    (tmp_path / "x.merges.txt").unlink()
    with pytest.raises(UserError, match="there is no x.merges.txt"):
        read_byte_level(tmp_path / "x.vocab.json")
    (tmp_path / "v.gguf").write_bytes(b"GGUF and no more")
    with pytest.raises(UserError, match="damaged"):
        read_byte_level(tmp_path / "v.gguf")


@needs_shared
def test_minimind() -> None:
    found = open_byte_level(FOLDER / "minimind-6400.tokenizer.json")
    assert (found.special_ids, found.pre_name) == ({"bos": 1, "eos": 2}, "gpt-2")


@needs_shared
def test_gpt2_and_its_vectors() -> None:
    found = open_byte_level(FOLDER / "gpt2.vocab.json")
    assert (found.special_ids, found.pre_name) == ({"bos": 50256, "eos": 50256}, "gpt-2")
    assert found.fast.get_vocab_size() == 50257
    for text, wanted in vectors("gpt-2"):
        assert found.fast.encode(text).ids == wanted


@needs_shared
@pytest.mark.parametrize("name", SPECIALS)
def test_vocabularies_of_llama_cpp_and_their_vectors(name: str, tmp_path: Path) -> None:
    fields = mend(name, tmp_path / "v.gguf")
    found = open_byte_level(tmp_path / "v.gguf")
    assert found.pre_name == name
    bos, eos = (found.fast.token_to_id(token) for token in SPECIALS[name])
    assert found.special_ids == {"bos": bos, "eos": eos}
    tokens = fields["tokenizer.ggml.tokens"]
    named = {token: row for row, token in enumerate(tokens) if token != f"[PAD{row}]"}
    assert found.fast.get_vocab(with_added_tokens=True) == named
    pairs = vectors(name)
    assert len(pairs) == 46
    assert ids(found.fast, [text for text, _ in pairs]) == [wanted for _, wanted in pairs]


@needs_shared
def test_the_two_forms_of_gpt2_are_one(tmp_path: Path) -> None:
    mend("gpt-2", tmp_path / "v.gguf")
    pair, file = read_byte_level(FOLDER / "gpt2.vocab.json"), read_byte_level(tmp_path / "v.gguf")
    assert pair.to_str() == file.to_str()


@needs_shared
@pytest.mark.parametrize("name", ["gpt-2", "llama-spm"])
def test_files_that_were_saved_as_text_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="header of this GGUF file is damaged"):
        read_byte_level(SHARED / "data" / "tokenizers" / f"ggml-vocab-{name}.gguf")
