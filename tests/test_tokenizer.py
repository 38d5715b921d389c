"""The tokenizer of a folder: ids, special tokens, hash; and the conversion of SentencePiece models, against theirs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from tests.conftest import SHARED, needs_shared
from yayan.errors import UserError
from yayan.tokenizer import (
    Piece,
    Tokenizer,
    convert_sentencepiece,
    load_tokenizer,
    read_sentencepiece,
)

LLAMA2 = SHARED / "data" / "tokenizers" / "llama2-32000.tokenizer.model"
REFERENCE = SHARED / "data" / "tokenizers" / "chinese-llama-2-55296.tokenizer.model"
WORDS = ["▁", "a", "b", "c", "▁a", "ab", "bc", "▁ab", "中", "国", "中国", "<", "s", ">", "/", "</", "s>"]
SPACES = ["▁▁", "▁▁▁▁", "▁▁▁"]
TEXTS = [
    "",
    " ",
    "abc",
    " a  b   c",
    "</s> <s>",
    "a中国\n\n\tb",
    "😀é",
    "<0x0A>",
    "a" * 300,
    "\x00",
    "\u2028ﷺ",
]


def make_proto() -> ModelProto:
    """A SentencePiece BPE with byte fallback, pieces of spaces with one score as Llama-2 has them."""
    proto = ModelProto()
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    for token, kind in (("<unk>", Piece.UNKNOWN), ("<s>", Piece.CONTROL), ("</s>", Piece.CONTROL)):
        proto.pieces.add(piece=token, type=kind)
    for byte in range(256):
        proto.pieces.add(piece=f"<0x{byte:02X}>", type=Piece.BYTE)
    for rank, piece in enumerate(WORDS):
        proto.pieces.add(piece=piece, score=-rank)
    for piece in SPACES:
        proto.pieces.add(piece=piece, score=-1e9)
    return proto


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with tokenizer.json and what goes with it."""
    convert_sentencepiece(make_proto()).save(str(tmp_path / "tokenizer.json"))
    write(tmp_path / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})
    return tmp_path


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def test_plain_text_stays_text(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    text = "ab</s>"
    assert [tokenizer.token(number) for number in tokenizer.encode(text)] == ["▁ab", "</", "s>"]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_batch([text, "", "c"]) == [tokenizer.encode(t) for t in (text, "", "c")]


def test_a_rendered_template_has_its_special_tokens_parsed_and_none_added(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode_with_specials("<s>ab</s>")
    assert [tokenizer.token(number) for number in ids] == ["<s>", "▁ab", "</s>"]
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.encode_with_specials("ab") == tokenizer.encode("ab")


def test_size_and_tokens(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.size == 3 + 256 + len(WORDS) + len(SPACES)
    assert tokenizer.token(tokenizer.size - 1) == SPACES[-1]
    with pytest.raises(IndexError):
        tokenizer.token(tokenizer.size)


def test_a_limit_in_the_file_does_not_cut_texts(folder: Path) -> None:
    fast = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast.enable_truncation(2)
    fast.enable_padding(length=9)
    fast.save(str(folder / "tokenizer.json"))
    assert len(load_tokenizer(folder).encode("a b c a b c")) > 9


SPECIAL_CASES: list[tuple[dict[str, dict], tuple[int | None, int, int | None]]] = [
    ({"tokenizer_config.json": {"eos_token": "</s>"}}, (None, 2, None)),
    (
        {"tokenizer_config.json": {"eos_token": {"content": "</s>"}, "bos_token": {"content": "<s>"}}},
        (1, 2, None),
    ),
    (
        {
            "tokenizer_config.json": {"eos_token": "</s>", "pad_token": None},
            "special_tokens_map.json": {"eos_token": "<s>", "pad_token": {"content": "<unk>"}},
        },
        (None, 2, 0),
    ),
    ({"config.json": {"bos_token_id": 1, "eos_token_id": [2, 1], "pad_token_id": -1}}, (1, 2, None)),
    ({"config.json": {"eos_token_id": 2}, "generation_config.json": {"pad_token_id": 0}}, (None, 2, 0)),
]


@pytest.mark.parametrize(("files", "expected"), SPECIAL_CASES)
def test_special_tokens_are_found_where_they_are_declared(
    folder: Path, files: dict[str, dict], expected: tuple[int | None, int, int | None]
) -> None:
    (folder / "tokenizer_config.json").unlink()
    for name, value in files.items():
        write(folder / name, value)
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == expected


def test_the_template_is_found_in_its_file_or_in_the_configuration(folder: Path) -> None:
    assert load_tokenizer(folder).template is None
    named = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    write(folder / "tokenizer_config.json", {"eos_token": "</s>", "chat_template": named})
    assert load_tokenizer(folder).template == "D"
    write(folder / "tokenizer_config.json", {"eos_token": "</s>", "chat_template": "S"})
    assert load_tokenizer(folder).template == "S"
    (folder / "chat_template.jinja").write_text("F\n", encoding="utf-8")
    assert load_tokenizer(folder).template == "F\n"


def test_the_hash_is_that_of_what_decides_ids(folder: Path) -> None:
    before = load_tokenizer(folder).sha256
    value = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(value, indent=7), encoding="utf-8")
    write(folder / "tokenizer_config.json", {"eos_token": "<s>"})
    assert load_tokenizer(folder).sha256 == before
    value["model"]["merges"].pop()
    write(folder / "tokenizer.json", value)
    assert load_tokenizer(folder).sha256 != before


def test_a_folder_with_only_a_sentencepiece_model_is_converted(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "bare"
    other.mkdir()
    (other / "tokenizer.model").write_bytes(make_proto().SerializeToString())
    bare, full = load_tokenizer(other), load_tokenizer(folder)
    assert bare.sha256 == full.sha256
    assert (bare.bos_id, bare.eos_id, bare.pad_id) == (1, 2, None)
    assert bare.encode_batch(TEXTS) == full.encode_batch(TEXTS)


def test_added_tokens_of_a_sentencepiece_folder_keep_their_ids(tmp_path: Path) -> None:
    proto = make_proto()
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    size = len(proto.pieces)
    write(tmp_path / "added_tokens.json", {"<|end|>": size + 1, "<|begin|>": size})
    write(tmp_path / "tokenizer_config.json", {"eos_token": "<|end|>"})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_id == size + 1
    assert tokenizer.encode_with_specials("<|begin|>ab<|end|>")[::2] == [size, size + 1]
    assert tokenizer.decode(tokenizer.encode("<|end|>")) == "<|end|>"
    write(tmp_path / "added_tokens.json", {"<|end|>": size + 5})
    with pytest.raises(UserError, match="disagree about id"):
        load_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").unlink()
    listed = {str(size): {"content": "<|end|>", "special": False}}
    write(tmp_path / "tokenizer_config.json", {"eos_token": "</s>", "added_tokens_decoder": listed})
    with pytest.raises(UserError, match="cut out of every text"):
        load_tokenizer(tmp_path)


def test_folders_that_hold_no_tokenizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(tmp_path / "missing")
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")  # the form of Llama-3's
    with pytest.raises(UserError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path)
    for broken in (b"", b"{", b"[]", b'{"model": {"type": "Other"}}', b"\xff\xfe"):
        (tmp_path / "tokenizer.json").write_bytes(broken)
        with pytest.raises(UserError, match="cannot be read"):
            load_tokenizer(tmp_path)


def test_special_tokens_that_do_not_exist_are_refused(folder: Path) -> None:
    write(folder / "tokenizer_config.json", {"eos_token": "</s>", "pad_token": "[PAD]"})
    with pytest.raises(UserError, match=r"pad_token is \[PAD\]"):
        load_tokenizer(folder)
    write(folder / "tokenizer_config.json", {"bos_token": "<s>"})
    with pytest.raises(UserError, match="ends a text"):
        load_tokenizer(folder)


def set_unigram(proto: ModelProto) -> None:
    proto.trainer_spec.model_type = proto.trainer_spec.UNIGRAM


def drop_a_byte(proto: ModelProto) -> None:
    del proto.pieces[10]


def set_normaliser(proto: ModelProto) -> None:
    proto.normalizer_spec.precompiled_charsmap = b"x"


def set_whitespace_rule(proto: ModelProto) -> None:
    proto.normalizer_spec.remove_extra_whitespaces = True


def add_user_piece(proto: ModelProto) -> None:
    proto.pieces.add(piece="<tool>", type=Piece.USER_DEFINED)


def add_tied_piece(proto: ModelProto) -> None:
    proto.pieces.add(piece="ca", score=proto.pieces[-4].score)


def add_piece_twice(proto: ModelProto) -> None:
    proto.pieces.add(piece="ab", score=-2e9)


def add_piece_of_unknown_letters(proto: ModelProto) -> None:
    proto.pieces.add(piece="xy", score=-2e9)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (set_unigram, "of type UNIGRAM"),
        (drop_a_byte, "without byte fallback"),
        (set_normaliser, "rewrites text"),
        (set_whitespace_rule, "rewrites text"),
        (add_user_piece, "user-defined"),
        (add_tied_piece, "share a score"),
        (add_piece_twice, "defines a piece twice"),
        (add_piece_of_unknown_letters, "characters that are no pieces"),
    ],
)
def test_models_without_an_exact_form_are_refused(spoil: Callable[[ModelProto], None], reason: str) -> None:
    proto = make_proto()
    spoil(proto)
    with pytest.raises(UserError, match=reason):
        convert_sentencepiece(proto, where="there")


def converted(proto: ModelProto) -> tuple[Tokenizer, sentencepiece.SentencePieceProcessor]:
    fast = convert_sentencepiece(proto)
    plain = tokenizers.Tokenizer.from_str(fast.to_str())
    plain.encode_special_tokens = True
    ours = Tokenizer(fast=fast, plain=plain, bos_id=1, eos_id=2, pad_id=None, template=None)
    return ours, sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())


SMALL = converted(make_proto())
LETTERS = st.sampled_from(["a", "b", "c", " ", "  ", "中", "国", "<s>", "</", "s>", "\n", "x", "😀"])


@given(st.one_of(st.lists(LETTERS, max_size=40).map("".join), st.text(max_size=40)))
@settings(max_examples=500, deadline=None)
def test_a_small_model_is_converted_exactly(text: str) -> None:
    ours, theirs = SMALL
    text = text.replace("▁", "_")
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == text


def test_without_the_dummy_prefix(tmp_path: Path) -> None:
    proto = make_proto()
    proto.normalizer_spec.add_dummy_prefix = False
    ours, theirs = converted(proto)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text


def test_bos_is_put_first_when_special_tokens_are_asked_for(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.fast.encode("ab").ids == [1, *tokenizer.encode("ab")]


@needs_shared
def test_llama2_is_converted_exactly() -> None:
    proto = read_sentencepiece(LLAMA2)
    ours, theirs = converted(proto)
    pieces = [item.piece.replace("▁", " ") for item in proto.pieces if item.type == Piece.NORMAL]
    code = ["    ", "\n", "\t", "  ", "def f(x):", "return", "=", "中文", "，", "😀", "<s>", "<0x0A>", "0123"]
    parts = st.sampled_from(pieces) | st.sampled_from(code) | st.text(max_size=8)

    @given(st.lists(parts, max_size=15).map(lambda found: "".join(found).replace("▁", "_")))
    @settings(max_examples=800, deadline=None)
    def check(text: str) -> None:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text

    check()


@needs_shared
def test_the_reference_tokenizer_has_no_exact_form() -> None:
    with pytest.raises(UserError, match="share a score"):
        convert_sentencepiece(read_sentencepiece(REFERENCE), where=REFERENCE)
