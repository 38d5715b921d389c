"""New pieces behind a base's own: what keeps its id, what padding is, and that all readers cut alike."""

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from transformers import AutoTokenizer

from tests.conftest import SHARED, needs_shared
from tests.vocab.conftest import NEW_PIECES
from yayan.errors import UserError
from yayan.tokenizer import Piece, load_tokenizer, read_sentencepiece
from yayan.vocab.extend import extend, open_sentencepiece_base, write_tokenizer

LLAMA2 = SHARED / "base" / "en-base-21m"
PARTS = [
    *NEW_PIECES,
    *[
        "中国人",
        "民国",
        "　",
        "，",
        " ",
        "  ",
        "    ",
        "\n",
        "\t",
        "\r\n",
        "the ",
        " of",
        "def f(x):\n    return x",
    ],
    *[
        "😀",
        "👩‍👧",
        "é",
        "ﷺ",
        "0",
        "2024",
        "<s>",
        "</s>",
        "<pad>",
        "<unk>",
        "<0x0A>",
        "“",
        "’",
        "—",
        "Ａ",
        "\x01",
    ],
]
TEXT = st.lists(st.sampled_from(PARTS) | st.text(max_size=6), max_size=15).map(
    lambda parts: "".join(parts).replace("▁", "_")
)
NO_CHINESE = TEXT.map(lambda text: "".join(c for c in text if not set("".join(NEW_PIECES)) & {c}))


def processor(folder: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def check_readers(folder: Path) -> None:
    """sentencepiece, tokenizer.json and transformers give the same ids, and the text comes back."""
    ours, native, theirs = load_tokenizer(folder), processor(folder), AutoTokenizer.from_pretrained(folder)

    @given(TEXT)
    @settings(max_examples=400, deadline=None)
    def check(text: str) -> None:
        ids = ours.encode(text)
        assert ids == native.encode(text)
        assert ours.decode(ids) == text == native.decode(ids)
        parsed = ours.encode_with_specials(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == parsed
        assert theirs(text)["input_ids"] == [ours.bos_id, *parsed]
        assert theirs.decode(ids) == text

    check()


def test_all_readers_agree(extended: Path) -> None:
    check_readers(extended)


@needs_shared
def test_all_readers_agree_on_llama2(tmp_path: Path) -> None:
    write_tokenizer(
        tmp_path, extend(open_sentencepiece_base(LLAMA2).proto, ["𠀀", "雅言", "中国", "人民", "中国人民"])
    )
    check_readers(tmp_path)


def test_text_of_the_base_keeps_its_ids(english: Path, extended: Path) -> None:
    before, after = load_tokenizer(english), load_tokenizer(extended)
    assert [after.token(number) for number in range(before.size)] == [
        before.token(number) for number in range(before.size)
    ]

    @given(NO_CHINESE)
    @settings(max_examples=300, deadline=None)
    def check(text: str) -> None:
        assert after.encode(text) == before.encode(text)

    check()


def test_new_pieces_are_used_and_rank_last(english: Path, extended: Path) -> None:
    tokenizer = load_tokenizer(extended)
    ids = tokenizer.encode("go\n中国人民雅言！")[-3:]
    assert [tokenizer.token(number) for number in ids] == ["中国人民", "雅言", "！"]
    base, proto = read_sentencepiece(english), read_sentencepiece(extended)
    scores = [item.score for item in proto.pieces[len(base.pieces) :]]
    assert len(scores) == len(NEW_PIECES)
    assert max(scores) < min(item.score for item in base.pieces)
    assert all(np.diff(np.array(scores, dtype=np.float32)) < 0)


@pytest.mark.parametrize("lowest", [-3.5, -31740.0, -1e9, -16777216.0, -(2.0**30)])
def test_scores_fall_strictly_in_single_precision(lowest: float) -> None:
    base = ModelProto()
    base.pieces.add(piece="a", score=lowest)
    pieces = [chr(0x4E00 + number) for number in range(5000)]
    copy = ModelProto()
    copy.ParseFromString(extend(base, pieces).SerializeToString())
    scores = np.array([item.score for item in copy.pieces], dtype=np.float32)
    assert all(np.diff(scores) < 0)
    assert [item.piece for item in copy.pieces[1:]] == pieces
    assert copy.trainer_spec.vocab_size == 5001
    assert len(base.pieces) == 1


def test_padding_of_its_own_is_the_first_new_row(english: Path, tmp_path: Path) -> None:
    proto = read_sentencepiece(english)
    assert proto.pieces[3].piece == "<pad>"
    proto.pieces[3].piece, proto.trainer_spec.pad_id = "<other>", -1
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    base = open_sentencepiece_base(tmp_path)
    assert base.size == len(proto.pieces)
    out = tmp_path / "out"
    out.mkdir()
    write_tokenizer(out, extend(base.proto, NEW_PIECES))
    tokenizer, native = load_tokenizer(out), processor(out)
    assert tokenizer.pad_id == native.pad_id() == base.size
    assert AutoTokenizer.from_pretrained(out).pad_token_id == base.size
    assert tokenizer.token(base.size) == "<pad>"
    assert base.size not in tokenizer.encode("<pad>")
    assert (native.unk_id(), native.bos_id(), native.eos_id()) == (0, tokenizer.bos_id, tokenizer.eos_id)


@pytest.mark.parametrize(("declared", "kept"), [("<pad>", True), ("</s>", False), ("<unk>", False)])
def test_padding_is_kept_only_if_it_is_nothing_else(
    english: Path, declared: str, kept: bool, tmp_path: Path
) -> None:
    proto = read_sentencepiece(english)
    proto.pieces[3].piece = "<pad>" if kept else "<other>"
    proto.trainer_spec.pad_id = -1
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    settings_ = {"eos_token": "</s>", "pad_token": declared}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings_), encoding="utf-8")
    base = open_sentencepiece_base(tmp_path)
    assert len(base.proto.pieces) == base.size + (not kept)
    assert base.proto.trainer_spec.pad_id == (3 if kept else base.size)
    assert base.proto.pieces[base.proto.trainer_spec.pad_id].piece == "<pad>"


def test_an_ordinary_piece_that_is_called_padding_is_refused(english: Path, tmp_path: Path) -> None:
    proto = read_sentencepiece(english)
    proto.pieces[3].type = Piece.UNKNOWN
    proto.pieces[0].type, proto.trainer_spec.pad_id = Piece.CONTROL, -1
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match="ordinary piece"):
        open_sentencepiece_base(tmp_path)


def test_template_end_and_length_of_the_base_are_carried_over(english: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    proto = read_sentencepiece(english)
    (source / "tokenizer.model").write_bytes(proto.SerializeToString())
    (source / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    settings_ = {"eos_token": "<|end|>", "model_max_length": 512}
    (source / "tokenizer_config.json").write_text(json.dumps(settings_), encoding="utf-8")
    (source / "added_tokens.json").write_text(json.dumps({"<|end|>": len(proto.pieces)}), encoding="utf-8")
    base = open_sentencepiece_base(source)
    grown = extend(base.proto, NEW_PIECES)
    write_tokenizer(out, grown, template=base.template, model_max_length=base.model_max_length)
    tokenizer, theirs = load_tokenizer(out), AutoTokenizer.from_pretrained(out)
    assert tokenizer.template == theirs.chat_template == "{{ messages }}"
    assert tokenizer.eos_id == theirs.eos_token_id == len(proto.pieces)
    assert theirs.model_max_length == 512
    assert theirs("a<|end|>", add_special_tokens=False)["input_ids"][-1] == tokenizer.eos_id


def test_what_is_no_base_is_refused(english: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((english / "tokenizer.model").read_bytes()[:-100])
    with pytest.raises(UserError, match="not a SentencePiece model"):
        open_sentencepiece_base(tmp_path / "tokenizer.model")


def test_files_of_two_tokenizers_are_refused(english: Path, extended: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((english / "tokenizer.model").read_bytes())
    (tmp_path / "tokenizer.json").write_bytes((extended / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="different ids"):
        open_sentencepiece_base(tmp_path)
