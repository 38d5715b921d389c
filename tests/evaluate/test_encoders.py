"""The bytes behind every id, for each make of tokenizer, and what is refused."""

from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel

from tests.conftest import SHARED, needs_shared
from tests.sentencepiece_model import TEXTS, sentencepiece_bytes
from tests.tiny import make_tokenizer
from yayan.errors import UserError
from yayan.evaluate.encoders import NativeEncoder, open_tokenizer
from yayan.pretokenizers import BYTE_OF
from yayan.tokenizer import convert_sentencepiece, read_sentencepiece

ODD = ["", " a", "a  b\n\tc", "雅言", "🐈‍⬛ é", "<s> </s> <unk> <0x41>", "\u00a0\u3000x", "ẩ𠀀"]


@pytest.fixture(scope="module")
def spelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of `sentencepiece`."""
    path = tmp_path_factory.mktemp("spelled") / "tokenizer.model"
    path.write_bytes(sentencepiece_bytes())
    return path


def said(encoder: object, text: str) -> bytes:
    """The bytes of all tokens of a text."""
    (ids,) = encoder.encode_batch([text])  # type: ignore[attr-defined]
    return b"".join(encoder.tokens[number].data for number in ids)  # type: ignore[attr-defined]


@settings(deadline=None)
@given(text=st.text())
def test_a_byte_level_tokenizer_says_the_bytes_of_a_text(model_folder: Path, text: str) -> None:
    encoder = open_tokenizer(model_folder)
    text = text.encode("utf-8", "replace").decode()
    assert said(encoder, text) == text.encode()
    assert encoder.decode_batch(encoder.encode_batch([text])) == [text]


@pytest.mark.parametrize("text", [*ODD, *TEXTS])
def test_sentencepiece_says_the_same_behind_a_space(spelled: Path, text: str) -> None:
    native = NativeEncoder(convert_sentencepiece(read_sentencepiece(spelled)))
    for encoder in (open_tokenizer(spelled), open_tokenizer(spelled.parent), native):
        assert said(encoder, text) == (b" " + text.encode() if text else b"")
        assert encoder.decode_batch(encoder.encode_batch([text])) == [text]


def test_kinds_of_tokens(spelled: Path, model_folder: Path) -> None:
    for encoder in (
        open_tokenizer(spelled),
        NativeEncoder(convert_sentencepiece(read_sentencepiece(spelled))),
    ):
        found = {token.piece: token for token in encoder.tokens if token}
        assert (found["<unk>"].kind, found["<s>"].kind, found["<pad>"].kind) == (
            "unknown",
            "special",
            "special",
        )
        assert (found["<0x0A>"].kind, found["<0x0A>"].text, found["<0xE4>"].text) == ("byte", "\n", None)
        assert (found["▁the"].kind, found["▁the"].text) == ("text", " the")
    byte_level = open_tokenizer(model_folder)
    assert byte_level.kind == "byte-level BPE"
    assert sum(token.kind == "byte" for token in byte_level.tokens if token) == 256
    assert [token.kind for token in byte_level.tokens[:2] if token] == ["special", "special"]
    assert sorted(BYTE_OF.values()) == list(range(256))
    assert BYTE_OF.keys() == set(ByteLevel.alphabet())


def test_a_model_with_equal_scores_is_measured_by_sentencepiece(tmp_path: Path) -> None:
    proto = ModelProto()
    proto.ParseFromString(sentencepiece_bytes())
    for item in proto.pieces:
        item.score = 0
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match="share a score"):
        convert_sentencepiece(proto)
    itself = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert open_tokenizer(tmp_path).encode_batch(TEXTS) == itself.encode(TEXTS)
    assert open_tokenizer(tmp_path).encode_batch([]) == open_tokenizer(tmp_path).decode_batch([]) == []


@needs_shared
def test_a_unigram_model_is_measured() -> None:
    encoder = open_tokenizer(SHARED / "data/tokenizers/chinese_sp_20000.model")
    assert encoder.kind == "SentencePiece UNIGRAM"
    assert encoder.decode_batch(encoder.encode_batch(["雅言是标准"])) == ["雅言是标准"]


def test_tokenizer_json_decides(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_bytes())
    assert open_tokenizer(tmp_path).kind == "BPE"
    assert open_tokenizer(tmp_path / "tokenizer.model").kind == "SentencePiece BPE"


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text('{"model": ')
    (tmp_path / "broken.model").write_bytes(b"not a model")
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    Tokenizer(models.WordPiece(vocab={"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(
        str(tmp_path / "bert.json")
    )
    for name, sentence in {
        "empty": "there is no tokenizer in this folder",
        "missing": "there is no such file or folder",
        "broken.json": "cannot be read",
        "broken.model": "not a SentencePiece model",
        "vocab.txt": "this kind of tokenizer is not read",
        "bert.json": "type WordPiece cannot be measured",
    }.items():
        with pytest.raises(UserError, match=sentence) as caught:
            open_tokenizer(tmp_path / name)
        assert name in str(caught.value)
