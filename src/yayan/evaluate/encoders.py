"""Tokenizers of any make as `eval tokens` sees them: ids of a text, text of ids, and the bytes behind each id."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import sentencepiece
import tokenizers

from yayan.errors import UserError
from yayan.pretokenizers import BYTE_OF
from yayan.tokenizer import SPACE, Piece, read_fast, read_sentencepiece
from yayan.tokenizer_files import MERGES, VOCAB, read_byte_level

BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
CURE = (
    "name a folder that holds tokenizer.json, tokenizer.model or vocab.json, or such a file, or a GGUF file"
)


@dataclass(frozen=True, slots=True)
class Token:
    """What an id stands for. `kind`: `byte` is one of the 256 that any text falls back to, `special` is never text."""

    piece: str
    """As the vocabulary writes it."""
    data: bytes
    """UTF-8 of what it adds to a text; empty where it is special or unknown."""
    kind: Literal["text", "byte", "special", "unknown"]

    @property
    def text(self) -> str | None:
        """Its text, or None where it is a part of a character."""
        try:
            return self.data.decode("utf-8")
        except UnicodeDecodeError:
            return None


class Encoder(Protocol):
    """A tokenizer opened for measuring. Text that looks like a special token is text; no BOS or EOS is added."""

    @property
    def kind(self) -> str:
        """Its family in a few words."""

    @property
    def tokens(self) -> list[Token | None]:
        """By id; None where an id has no token."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""

    def decode_batch(self, ids: Sequence[list[int]]) -> list[str]:
        """Text of each list of ids."""


def open_tokenizer(path: Path) -> Encoder:
    """The tokenizer of a folder or of a file. `tokenizer.json` decides where a folder has both.

    This is the one place that knows which file is read by what. Raises UserError for what is not there, not readable,
    or of a kind whose pieces do not tell their text (WordPiece).
    """
    if not path.exists():
        raise UserError("there is no such file or folder", where=path, cure="check the path")
    names = ("tokenizer.json", "tokenizer.model", "vocab.json") if path.is_dir() else ()
    file = next((path / name for name in names if (path / name).is_file()), path)
    if file.is_dir():
        raise UserError("there is no tokenizer in this folder", where=path, cure=CURE)
    if file.suffix == ".gguf" or file.name.endswith((VOCAB, MERGES)):
        return NativeEncoder(read_byte_level(file), file)
    if file.suffix == ".json":
        return NativeEncoder(read_fast(file), file)
    if file.suffix == ".model":
        return SentencePieceEncoder(path)
    raise UserError("this kind of tokenizer is not read", where=path, cure=CURE)


class NativeEncoder:
    """A tokenizer of the `tokenizers` library: byte-level BPE, or pieces in SentencePiece's manner."""

    def __init__(self, native: tokenizers.Tokenizer, where: object = None) -> None:
        native.encode_special_tokens = True
        self.native = native
        parts = json.loads(native.to_str())
        name = parts["model"]["type"]
        if name not in ("BPE", "Unigram"):
            what = f"a tokenizer of type {name} cannot be measured"
            raise UserError(what, where=where, cure="BPE and Unigram can")
        byte_level = "ByteLevel" in json.dumps([parts["pre_tokenizer"], parts["decoder"]])
        self.kind = f"byte-level {name}" if byte_level else name
        self.tokens = native_tokens(native, parts, byte_level=byte_level)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [item.ids for item in self.native.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode_batch(self, ids: Sequence[list[int]]) -> list[str]:
        return self.native.decode_batch(list(ids), skip_special_tokens=True)


def native_tokens(
    native: tokenizers.Tokenizer, parts: dict[str, Any], *, byte_level: bool
) -> list[Token | None]:
    """The tokens of a `tokenizer.json`, whose content is `parts`."""
    vocabulary = native.get_vocab(with_added_tokens=True)
    added = {item["content"]: item["special"] for item in parts["added_tokens"]}
    unknown = parts["model"].get("unk_token")
    if parts["model"].get("unk_id") is not None:
        unknown = native.id_to_token(parts["model"]["unk_id"])
    byte_of = BYTE_OF if byte_level else {}
    tokens: list[Token | None] = [None] * (max(vocabulary.values()) + 1)
    for piece, number in vocabulary.items():
        if piece == unknown:
            tokens[number] = Token(piece, b"", "unknown")
        elif piece in added:
            special = added[piece]
            tokens[number] = Token(
                piece, b"" if special else piece.encode(), "special" if special else "text"
            )
        elif byte_level:
            data = bytes(byte_of[sign] for sign in piece) if byte_of.keys() >= set(piece) else piece.encode()
            tokens[number] = Token(piece, data, "byte" if len(piece) == 1 and piece in byte_of else "text")
        else:
            tokens[number] = spelled_token(piece, byte_fallback=bool(parts["model"].get("byte_fallback")))
    return tokens


def spelled_token(piece: str, *, byte_fallback: bool) -> Token:
    """A piece in SentencePiece's manner: a space is `▁`, a byte is `<0xNN>`."""
    byte = BYTE_PIECE.fullmatch(piece) if byte_fallback else None
    if byte:
        return Token(piece, bytes.fromhex(byte[1]), "byte")
    return Token(piece, piece.replace(SPACE, " ").encode(), "text")


class SentencePieceEncoder:
    """A SentencePiece model measured by `sentencepiece` itself: any type, also with pieces that share a score."""

    def __init__(self, path: Path) -> None:
        proto = read_sentencepiece(path)
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        except RuntimeError as error:
            what = f"sentencepiece refuses this model, {' '.join(str(error).split())}"
            raise UserError(what, where=path, cure="fetch or make it again") from error
        spec = proto.trainer_spec
        self.kind = f"SentencePiece {spec.ModelType.Name(spec.model_type)}"
        self.tokens: list[Token | None] = [sentencepiece_token(item) for item in proto.pieces]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self.processor.encode(list(texts)) if texts else []

    def decode_batch(self, ids: Sequence[list[int]]) -> list[str]:
        return self.processor.decode(list(ids)) if ids else []


def sentencepiece_token(item: Piece) -> Token:
    if item.type == Piece.UNKNOWN:
        return Token(item.piece, b"", "unknown")
    if item.type == Piece.CONTROL:
        return Token(item.piece, b"", "special")
    return spelled_token(item.piece, byte_fallback=item.type == Piece.BYTE)
