"""The tokenizer of a model folder as GGUF metadata: tokens, types, what orders merges, special ids, chat template."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from yayan.errors import UserError
from yayan.pretokenizers import EXPRESSIONS, TAKES_WORDS, pre_name_of
from yayan.template import encode_prompt
from yayan.tokenizer import Tokenizer, load_tokenizer, read_sentencepiece
from yayan.tokenizer_files import require_byte_level

UNUSED_SCORE = -1e6  # of rows that have no token


@dataclass(frozen=True)
class TokenTable:
    """A tokenizer in llama.cpp's terms. Rows without a token are None."""

    model: str
    """`llama` joins the neighbours whose piece has the best score, as SentencePiece does; `gpt2` is byte-level."""
    pre: str
    tokens: list[str | None]
    types: list[int]
    add_space_prefix: bool
    scores: list[float] | None = None
    merges: list[str] | None = None
    unknown_id: int | None = None


def write_tokens(writer: GGUFWriter, tokenizer: Tokenizer, table: TokenTable, rows: int) -> None:
    """Add a tokenizer, padded to the `rows` of the embedding."""
    empty = range(len(table.tokens), rows)
    tokens = [*table.tokens, *(None for _ in empty)]
    writer.add_tokenizer_model(table.model)
    writer.add_tokenizer_pre(table.pre)
    writer.add_token_list([f"[PAD{row}]" if token is None else token for row, token in enumerate(tokens)])
    writer.add_token_types([*table.types, *(TokenType.UNUSED for _ in empty)])
    if table.scores is not None:
        writer.add_token_scores([*table.scores, *(UNUSED_SCORE for _ in empty)])
    if table.merges is not None:
        writer.add_token_merges(table.merges)
    writer.add_add_space_prefix(table.add_space_prefix)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_add_eos_token(False)
    writer.add_add_bos_token(tokenizer.bos_id is not None)
    if tokenizer.bos_id is not None:
        writer.add_bos_token_id(tokenizer.bos_id)
    if tokenizer.pad_id is not None:
        writer.add_pad_token_id(tokenizer.pad_id)
    if table.unknown_id is not None:
        writer.add_unk_token_id(table.unknown_id)
    if tokenizer.template is not None:
        writer.add_chat_template(tokenizer.template)


def read_tokenizer(model: Path, rows: int | None = None) -> tuple[Tokenizer, TokenTable]:
    """The tokenizer of a folder, and the same in llama.cpp's terms.

    Raises UserError if it is neither SentencePiece's BPE nor a byte-level BPE that llama.cpp cuts alike, if files of
    the folder differ, or if there are more tokens than `rows`.
    """
    if (model / "tokenizer.model").is_file() or not (model / "tokenizer.json").is_file():
        tokenizer, table = _read_pieces(model)
    else:
        tokenizer = load_tokenizer(model)
        table = byte_level_table(tokenizer, model)
    if rows is not None and len(table.tokens) > rows:
        what = f"the tokenizer has {len(table.tokens)} tokens, the embedding {rows} rows"
        raise UserError(what, where=model, cure="grow the model to its tokenizer first")
    if tokenizer.template is not None:
        encode_prompt(tokenizer, [{"role": "user", "content": "1"}])  # refuses a template that is none
    return tokenizer, table


def _read_pieces(model: Path) -> tuple[Tokenizer, TokenTable]:
    """Both forms of a SentencePiece tokenizer, which must agree."""
    proto, tokenizer = read_sentencepiece(model), load_tokenizer(model)
    names = [item.piece for item in proto.pieces]
    odd = [index for index, name in enumerate(names) if tokenizer.fast.id_to_token(index) != name]
    if odd or tokenizer.size > len(names):
        index = odd[0] if odd else len(names)
        what = f"tokenizer.json and tokenizer.model disagree about token {index}"
        raise UserError(what, where=model, cure="bring the two that belong together")
    return tokenizer, piece_table(proto)


def piece_table(proto: ModelProto) -> TokenTable:
    """A SentencePiece BPE. Its types of pieces are llama.cpp's, number for number."""
    return TokenTable(
        model="llama",
        pre="default",
        tokens=[item.piece for item in proto.pieces],
        types=[item.type for item in proto.pieces],
        scores=[item.score for item in proto.pieces],
        add_space_prefix=proto.normalizer_spec.add_dummy_prefix,
        unknown_id=proto.trainer_spec.unk_id if proto.trainer_spec.unk_id >= 0 else None,
    )


def byte_level_table(tokenizer: Tokenizer, where: Path) -> TokenTable:
    """A byte-level BPE. Raises UserError for one that llama.cpp would cut otherwise."""
    parts = json.loads(tokenizer.fast.to_str())
    if parts["model"].get("byte_fallback"):
        cure = "models with a SentencePiece tokenizer.model, or with a byte-level BPE, can be written"
        raise UserError("there is no tokenizer.model, which GGUF needs", where=where, cure=cure)
    require_byte_level(tokenizer.fast, where)
    pre = pre_name_of(tokenizer.fast)
    _refuse_inexact(parts, pre, where)
    if pre is None:
        what = "llama.cpp has no exact name for the pre-tokenizer of this tokenizer"
        raise UserError(
            what, where=where, cure=f"those that it calls {', '.join(EXPRESSIONS)} can be written"
        )
    tokens: list[str | None] = [tokenizer.fast.id_to_token(row) for row in range(tokenizer.size)]
    types = [int(TokenType.UNUSED if token is None else TokenType.NORMAL) for token in tokens]
    for item in parts["added_tokens"]:
        types[item["id"]] = TokenType.CONTROL if item["special"] else TokenType.USER_DEFINED
    merges = [" ".join(pair) for pair in parts["model"]["merges"]]
    return TokenTable("gpt2", pre, tokens, types, add_space_prefix=False, merges=merges)


def only_nfc(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer brings text into NFC, which llama.cpp does not: other texts are cut otherwise there."""
    return json.loads(tokenizer.fast.to_str())["normalizer"] == {"type": "NFC"}


def _refuse_inexact(parts: dict[str, Any], pre: str | None, where: Path) -> None:
    """Refuse what a `tokenizer.json` can say and llama.cpp's byte-level BPE cannot, NFC apart (`only_nfc`)."""
    rules = ("lstrip", "rstrip", "single_word")
    odd = next((item["content"] for item in parts["added_tokens"] if any(item[rule] for rule in rules)), None)
    merges = [tuple(pair) for pair in parts["model"]["merges"]]
    whole = bool(parts["model"].get("ignore_merges"))
    refusals = {
        "a byte-level BPE that rewrites text": parts["normalizer"] not in (None, {"type": "NFC"}),
        "a byte-level BPE that takes whole words without merging": whole and pre != TAKES_WORDS,
        "a byte-level BPE that cuts as Llama 3 and merges whole words": not whole and pre == TAKES_WORDS,
        "a byte-level BPE that has a merge twice": len(set(merges)) < len(merges),
        f"the added token {odd}, which takes the text around it into account,": odd is not None,
    }
    for what, refused in refusals.items():
        if refused:
            cure = "llama.cpp would cut some texts otherwise"
            raise UserError(f"{what} cannot be written as GGUF", where=where, cure=cure)
