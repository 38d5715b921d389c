"""A base tokenizer, new pieces behind its own, and the folder that says the same to every program that reads it.

New pieces rank after all old ones and no two share a score, so that `sentencepiece`, `tokenizer.json` and llama.cpp cut
alike. Padding is a control piece of its own, `<pad>`, the first new row unless the base has one: it is padding in
`tokenizer.model`, `tokenizer.json` and a GGUF alike, never comes out of a text, and masking it masks neither the end of
a text nor unknown characters.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from yayan.errors import UserError
from yayan.model.folder import TEMPLATE_FILE, read_json, write_json
from yayan.tokenizer import (
    SPACE,
    Piece,
    convert_sentencepiece,
    read_sentencepiece,
    read_template,
    special_ids_of_folder,
    special_ids_of_model,
)
from yayan.vocab.base import PAD, Base, require_end
from yayan.vocab.scripts import Wanted


@dataclass(frozen=True, eq=False)
class SentencePieceBase(Base):
    """A SentencePiece BPE with byte fallback. `proto` has its pieces and the padding piece."""

    proto: ModelProto

    @property
    def taken(self) -> int:
        return len(self.proto.pieces)

    @cached_property
    def old_pieces(self) -> set[str]:
        return {item.piece for item in self.proto.pieces}

    def text_of(self, name: str) -> str | None:
        return name.replace(SPACE, " ")

    @cached_property
    def _byte_pieces(self) -> dict[str, bytes]:
        pieces = (item.piece for item in self.proto.pieces if item.type == Piece.BYTE)
        return {piece: bytes([int(piece[3:5], 16)]) for piece in pieces}  # <0x0A>

    def bytes_of(self, name: str) -> bytes:
        return self._byte_pieces.get(name) or name.replace(SPACE, " ").encode("utf-8")

    def joinable(self, token_id: int) -> bool:
        return self.proto.pieces[token_id].type == Piece.NORMAL

    def may_join(self, name: str, wanted: Wanted, longest: int) -> bool:
        text = name.replace(SPACE, " ")
        return len(text.strip(" ")) <= longest and wanted.holds_own(text) and wanted.is_part_of_run(text)

    def missing_characters(self, weights: Mapping[str, int]) -> dict[str, int]:
        """Those that are several bytes so far: a piece of their own saves all of their tokens but one."""
        return {
            character: (len(character.encode("utf-8")) - 1) * weight
            for character, weight in weights.items()
            if character not in self.old_pieces and not character.isascii()
        }

    def extended(self, names: Sequence[str]) -> tokenizers.Tokenizer:
        fast = convert_sentencepiece(extend(self.proto, names))
        fast.encode_special_tokens = True
        return fast

    def write(self, folder: Path, names: Sequence[str]) -> None:
        write_tokenizer(
            folder, extend(self.proto, names), template=self.template, model_max_length=self.model_max_length
        )


def open_sentencepiece_base(path: Path) -> SentencePieceBase:
    """The SentencePiece tokenizer of a model or tokenizer folder, or of a `tokenizer.model` file.

    Raises UserError for a model that cannot be extended exactly, and for files that contradict each other.
    """
    proto = read_sentencepiece(path)
    size = len(proto.pieces)
    fast = convert_sentencepiece(proto, where=path)
    declared = special_ids_of_model(proto)
    config: dict = {}
    if path.is_dir():
        _require_same_ids(path, fast)
        declared |= special_ids_of_folder(path, fast)
        if (path / "tokenizer_config.json").is_file():
            config = read_json(path / "tokenizer_config.json")
    require_end(declared, path)
    _declare(proto, declared)
    fast.encode_special_tokens = True
    return SentencePieceBase(
        plain=fast,
        size=size,
        template=read_template(path) if path.is_dir() else None,
        model_max_length=config.get("model_max_length"),
        proto=proto,
    )


def _require_same_ids(folder: Path, fast: tokenizers.Tokenizer) -> None:
    """`tokenizer.json` of a base must hold the very ids that its `tokenizer.model` has."""
    if not (folder / "tokenizer.json").is_file():
        return
    listed = (read_json(folder / "tokenizer.json").get("model") or {}).get("vocab")
    vocab = fast.get_vocab(with_added_tokens=True)
    if not isinstance(listed, dict) or any(vocab.get(token) != number for token, number in listed.items()):
        what = "tokenizer.json and tokenizer.model have different ids"
        raise UserError(what, where=folder, cure="use the files of one model")


def _declare(proto: ModelProto, specials: dict[str, int]) -> None:
    """Write the ids of bos, eos and pad into the model itself, with a padding piece of its own."""
    pad_id = specials.get("pad")
    taken = {specials.get("bos"), specials.get("eos")}
    if pad_id is None or pad_id in taken or proto.pieces[pad_id].type != Piece.CONTROL:
        if any(item.piece == PAD for item in proto.pieces):
            what = f"{PAD} is an ordinary piece of this tokenizer"
            raise UserError(what, cure="declare another pad_token in its tokenizer_config.json")
        specials = specials | {"pad": len(proto.pieces)}
        proto.pieces.add(piece=PAD, score=0.0, type=Piece.CONTROL)
    for kind, number in specials.items():
        setattr(proto.trainer_spec, f"{kind}_id", number)
        setattr(proto.trainer_spec, f"{kind}_piece", proto.pieces[number].piece)
    proto.trainer_spec.vocab_size = len(proto.pieces)


def extend(base: ModelProto, pieces: Iterable[str]) -> ModelProto:
    """A copy of the model with pieces that it has not behind its own, each with a lower score than all before it.

    Llama-2's lowest score is -1e9, where neighbouring float32 values are 64 apart: the step is what float32 can hold.
    """
    proto = ModelProto()
    proto.CopyFrom(base)
    score = np.float32(min(item.score for item in base.pieces))
    for piece in pieces:
        score = min(score - np.float32(1), np.nextafter(score, np.float32(-np.inf)))
        proto.pieces.add(piece=piece, score=float(score), type=Piece.NORMAL)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto


def write_tokenizer(
    folder: Path, proto: ModelProto, *, template: str | None = None, model_max_length: int | None = None
) -> None:
    """Write `tokenizer.model`, `tokenizer.json`, `tokenizer_config.json` and the chat template, if there is one.

    The class in the configuration is PreTrainedTokenizerFast, the one that takes `tokenizer.json` as it stands.
    """
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString(deterministic=True))
    convert_sentencepiece(proto).save(str(folder / "tokenizer.json"), pretty=False)
    ids = special_ids_of_model(proto)
    unknown = next(item.piece for item in proto.pieces if item.type == Piece.UNKNOWN)
    config: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": unknown}
    config |= {f"{kind}_token": proto.pieces[number].piece for kind, number in ids.items()}
    config |= {"add_bos_token": "bos" in ids, "add_eos_token": False, "clean_up_tokenization_spaces": False}
    if model_max_length is not None:
        config["model_max_length"] = model_max_length
    write_json(folder / "tokenizer_config.json", config)
    if template is not None:
        (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")
