"""A base tokenizer, new pieces behind its own, and the folder that says the same to every program that reads it.

New pieces rank after all old ones and no two share a score, so that `sentencepiece`, `tokenizer.json` and llama.cpp cut
alike. Padding is a control piece of its own, `<pad>`, the first new row unless the base has one: it is padding in
`tokenizer.model`, `tokenizer.json` and a GGUF alike, never comes out of a text, and masking it masks neither the end of
a text nor unknown characters.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import tokenizers
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from yayan.errors import UserError, WorkError
from yayan.model.folder import TEMPLATE_FILE, read_json, write_json
from yayan.tokenizer import (
    SPACE,
    Piece,
    Tokenizer,
    convert_sentencepiece,
    read_sentencepiece,
    read_template,
    special_ids_of_folder,
    special_ids_of_model,
)

PAD = "<pad>"
SUPPORTED = "a base needs tokenizer.model, a SentencePiece BPE with byte fallback such as Llama-2's"


@dataclass(frozen=True)
class Base:
    """A tokenizer to be extended. `proto` has its pieces and the padding piece; `size` counts its own ids alone."""

    proto: ModelProto
    plain: tokenizers.Tokenizer  # as it is, special tokens in a text not parsed
    size: int
    template: str | None
    model_max_length: int | None


def open_base(path: Path) -> Base:
    """The tokenizer of a model or tokenizer folder, or of a `tokenizer.model` file.

    Raises UserError, naming the kind, for a tokenizer that cannot be extended, and for files that contradict each
    other.
    """
    if path.is_dir() and not (path / "tokenizer.model").is_file():
        _refuse(path / "tokenizer.json")
    if path.suffix == ".json":
        _refuse(path)
    if not path.exists():
        raise UserError("there is no such file or folder", where=path, cure="check the path")
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
    _declare(proto, declared)
    fast.encode_special_tokens = True
    return Base(
        proto=proto,
        plain=fast,
        size=size,
        template=read_template(path) if path.is_dir() else None,
        model_max_length=config.get("model_max_length"),
    )


def _refuse(file: Path) -> None:
    """Say what kind of tokenizer this is that cannot be extended."""
    if not file.is_file():
        raise UserError("there is no tokenizer", where=file.parent, cure=SUPPORTED)
    parts = read_json(file)
    kind = (parts.get("model") or {}).get("type", "unknown")
    if kind == "BPE":
        bytewise = "ByteLevel" in json.dumps([parts.get("pre_tokenizer"), parts.get("decoder")])
        kind = "byte-level BPE" if bytewise else "BPE without its tokenizer.model"
    raise UserError(f"a tokenizer of kind {kind} cannot be extended", where=file, cure=SUPPORTED)


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


def unproducible(fast: tokenizers.Tokenizer, pieces: Sequence[str]) -> set[str]:
    """Those pieces whose own text, in the middle of a text, is not cut into that one id."""
    before = "\n"  # no piece of a run joins with a line break
    start = fast.encode(before, add_special_tokens=False).ids
    cuts = fast.encode_batch_fast(
        [before + piece.replace(SPACE, " ") for piece in pieces], add_special_tokens=False
    )
    return {
        piece for piece, cut in zip(pieces, cuts, strict=True) if cut.ids != [*start, fast.token_to_id(piece)]
    }


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


def require_agreement(folder: Path, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Raises WorkError unless `tokenizer.model`, read by sentencepiece, and `tokenizer.json` cut all texts alike."""
    native = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for text, ids, other in zip(
        texts, native.encode(list(texts)), tokenizer.encode_batch(texts), strict=True
    ):
        if ids != other:
            what = f"sentencepiece and tokenizer.json cut a text differently, {text[:40]!r}"
            raise WorkError(what, where=folder, cure="please report it with the base tokenizer")
