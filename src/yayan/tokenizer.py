"""Text to ids and back: the tokenizer of a model folder, and what a SentencePiece BPE model means as `tokenizer.json`.

`tokenizer.json` decides; a folder that holds only `tokenizer.model` is converted when it is opened. The conversion
is exact: it gives the ids of `sentencepiece` itself, or refuses. (That of transformers 5 is not: it ranks the pieces
of spaces first and rebuilds its own pre-tokenizer, so that indented code is cut differently.)
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import AddedToken, decoders, models, normalizers, processors

from yayan.errors import UserError
from yayan.model.folder import TEMPLATE_FILE, read_json

SPACE = "▁"  # U+2581: how SentencePiece writes a space, and the prefix of every text
SPECIAL_KINDS = ("bos", "eos", "pad")
Piece = ModelProto.SentencePiece


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Ids of a text and text of ids."""

    fast: tokenizers.Tokenizer
    """The native tokenizer. It parses special tokens in a text."""
    plain: tokenizers.Tokenizer
    """The same, but text that looks like a special token stays text."""
    bos_id: int | None
    eos_id: int
    pad_id: int | None
    template: str | None

    @property
    def begin(self) -> list[int]:
        """What stands before a prompt: BOS, where the model has one."""
        return [] if self.bos_id is None else [self.bos_id]

    @property
    def before(self) -> int:
        """What stands before a text's first token: BOS, and EOS for the families that have no BOS (GPT-2, Qwen)."""
        return self.eos_id if self.bos_id is None else self.bos_id

    @cached_property
    def size(self) -> int:
        """Number of rows that have a token: the largest id + 1."""
        return max(self.fast.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def sha256(self) -> str:
        """`deciding_hash` of it."""
        return deciding_hash(self.fast)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: no BOS or EOS is added, and text that looks like a special token stays text."""
        return self.plain.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts at once, on all cores that the native tokenizer may use."""
        return [item.ids for item in self.plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_with_specials(self, text: str) -> list[int]:
        """Ids of a rendered template: special tokens in the text are parsed, none is added."""
        return self.fast.encode(text, add_special_tokens=False).ids

    def encode_batch_with_specials(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_with_specials` of many texts at once."""
        return [item.ids for item in self.fast.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out: what was encoded, but for a literal U+2581, which becomes a space."""
        return self.fast.decode(list(ids), skip_special_tokens=True)

    def token(self, token_id: int) -> str:
        """The piece of an id, as the vocabulary writes it. Raises IndexError where there is none."""
        piece = self.fast.id_to_token(token_id)
        if piece is None:
            raise IndexError(f"no token has the id {token_id}")
        return piece


def deciding_hash(fast: tokenizers.Tokenizer) -> str:
    """Hash (hex) of what decides the ids of a text: pieces, merges, normaliser, added tokens; not of formatting."""
    parts = json.loads(fast.to_str())
    deciding = {name: parts[name] for name in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
    canonical = json.dumps(deciding, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model or tokenizer folder, with its special tokens and its chat template.

    Raises UserError if there is no tokenizer, if it cannot be read, or if it names special tokens that it lacks.
    """
    if (folder / "tokenizer.json").is_file():
        fast = read_fast(folder / "tokenizer.json")
        ids: dict[str, int] = {}
    elif (folder / "tokenizer.model").is_file():
        proto = read_sentencepiece(folder)
        fast = convert_sentencepiece(proto, where=folder)
        ids = special_ids_of_model(proto)
    else:
        cure = "name a folder that holds tokenizer.json or tokenizer.model"
        raise UserError("there is no tokenizer", where=folder, cure=cure)
    ids |= special_ids_of_folder(folder, fast)
    if "eos" not in ids:
        cure = "name eos_token in tokenizer_config.json"
        raise UserError("no token that ends a text is declared", where=folder, cure=cure)
    return Tokenizer(
        fast=fast,
        plain=_without_specials(fast),
        bos_id=ids.get("bos"),
        eos_id=ids["eos"],
        pad_id=ids.get("pad"),
        template=read_template(folder),
    )


def read_fast(path: Path) -> tokenizers.Tokenizer:
    """A `tokenizer.json`, without limits of length. Raises UserError if it cannot be read."""
    try:
        fast = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the native library raises the bare class
        what = f"this tokenizer cannot be read, {' '.join(str(error).split())}"
        raise UserError(what, where=path, cure="fetch or make the folder again") from error
    fast.no_truncation()
    fast.no_padding()
    return fast


def _without_specials(fast: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    plain = tokenizers.Tokenizer.from_str(fast.to_str())
    plain.encode_special_tokens = True
    return plain


def special_ids_of_folder(folder: Path, fast: tokenizers.Tokenizer) -> dict[str, int]:
    """Ids of bos, eos and pad as far as the folder's small files name them: the tokenizer's first, then the model's.

    Raises UserError for a special token that the tokenizer does not have.
    """
    found: dict[str, int] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        declared = _read_json_if_there(folder / name)
        for kind in SPECIAL_KINDS:
            value = declared.get(f"{kind}_token")
            token = value.get("content") if isinstance(value, dict) else value
            if token is None or kind in found:
                continue
            number = fast.token_to_id(token) if isinstance(token, str) else None
            if number is None:
                what = f"{kind}_token is {token}, which the tokenizer does not have"
                raise UserError(what, where=folder / name, cure="correct the file")
            found[kind] = number
    for name in ("config.json", "generation_config.json"):
        declared = _read_json_if_there(folder / name)
        for kind in SPECIAL_KINDS:
            value = declared.get(f"{kind}_token_id")
            first = value[0] if isinstance(value, list) and value else value
            if isinstance(first, int) and first >= 0 and fast.id_to_token(first) is not None:
                found.setdefault(kind, first)
    return found


def read_template(folder: Path) -> str | None:
    """The chat template of a folder: `chat_template.jinja`, or the one inside `tokenizer_config.json`."""
    file = folder / TEMPLATE_FILE
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError("the chat template is not UTF-8", where=file, cure="save it as UTF-8") from error
    template = _read_json_if_there(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        template = next((item["template"] for item in template if item.get("name") == "default"), None)
    return template


def _read_json_if_there(path: Path) -> dict:
    return read_json(path) if path.is_file() else {}


def read_sentencepiece(path: Path) -> ModelProto:
    """The SentencePiece model of a folder, or of a `tokenizer.model` file itself.

    Tokens that the folder adds behind its pieces (`<|im_end|>` and the like) become control pieces with the same ids.
    Raises UserError if it is no such model, or if the folder's files contradict each other.
    """
    file = path / "tokenizer.model" if path.is_dir() else path
    proto = ModelProto()
    try:
        proto.ParseFromString(file.read_bytes())
    except (OSError, DecodeError):
        proto.Clear()
    if not proto.pieces:
        cure = "bases with a SentencePiece BPE model, such as Llama-2's, are supported"
        raise UserError("this is not a SentencePiece model", where=file, cure=cure)
    if path.is_dir():
        _append_added_tokens(proto, path)
    return proto


def _append_added_tokens(proto: ModelProto, folder: Path) -> None:
    added: dict[int, dict] = {}  # id to {"content": ..., "special": ...}
    for item in _read_json_if_there(folder / "tokenizer.json").get("added_tokens", []):
        added[item["id"]] = item
    for number, item in (
        _read_json_if_there(folder / "tokenizer_config.json").get("added_tokens_decoder", {}).items()
    ):
        added[int(number)] = item
    for token, number in _read_json_if_there(folder / "added_tokens.json").items():
        added.setdefault(number, {"content": token})
    for number, item in sorted(added.items()):
        token = item["content"]
        if number < len(proto.pieces) and proto.pieces[number].piece == token:
            continue
        if number != len(proto.pieces):
            what = f"tokenizer.model and the added token {token} disagree about id {number}"
            raise UserError(what, where=folder, cure="use the files of one model")
        if not item.get("special", True):
            what = f"the added token {token} is cut out of every text, which tokenizer.model cannot express"
            raise UserError(what, where=folder, cure="such tokenizers are not supported")
        proto.pieces.add(piece=token, score=0.0, type=Piece.CONTROL)


def special_ids_of_model(proto: ModelProto) -> dict[str, int]:
    """Ids of bos, eos and pad as a SentencePiece model declares them."""
    spec = proto.trainer_spec
    declared = {"bos": spec.bos_id, "eos": spec.eos_id, "pad": spec.pad_id}
    return {kind: number for kind, number in declared.items() if 0 <= number < len(proto.pieces)}


def convert_sentencepiece(proto: ModelProto, *, where: object = None) -> tokenizers.Tokenizer:
    """A native tokenizer with the very ids of a SentencePiece BPE model with byte fallback.

    SentencePiece joins the two neighbours whose union is the piece with the best score. A merge list says the same
    when it holds every split of every piece into two pieces, ranked by (score, id, id of the left part, of the right).
    BOS is put first when special tokens are asked for. Raises UserError for models that a merge list cannot express.
    """
    _require_exact(proto, where)
    vocab = {item.piece: number for number, item in enumerate(proto.pieces)}
    scores = {item.piece: item.score for item in proto.pieces if item.type == Piece.NORMAL}
    merges = [
        (-score, vocab[piece], vocab[piece[:cut]], vocab[piece[cut:]], piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    unknown = next(item.piece for item in proto.pieces if item.type == Piece.UNKNOWN)
    ranked = [merge[-2:] for merge in sorted(merges)]
    fast = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=ranked, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = proto.normalizer_spec.add_dummy_prefix
    prepend: list[normalizers.Normalizer] = [normalizers.Prepend(SPACE)] if prefix else []
    fast.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", SPACE)])
    strip: list[decoders.Decoder] = [decoders.Strip(" ", 1, 0)] if prefix else []
    spaces = decoders.Replace(SPACE, " ")
    fast.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), *strip])
    specials = [item.piece for item in proto.pieces if item.type in (Piece.CONTROL, Piece.UNKNOWN)]
    fast.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    _begin_with_bos(fast, proto)
    return fast


def _begin_with_bos(fast: tokenizers.Tokenizer, proto: ModelProto) -> None:
    bos_id = special_ids_of_model(proto).get("bos")
    if bos_id is not None:
        bos = proto.pieces[bos_id].piece
        fast.post_processor = processors.TemplateProcessing(
            single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1", special_tokens=[(bos, bos_id)]
        )


def _require_exact(proto: ModelProto, where: object) -> None:
    """Refuse what a merge list with byte fallback cannot express exactly."""
    kinds = Counter(item.type for item in proto.pieces)
    spec, rules = proto.trainer_spec, proto.normalizer_spec
    normal = [item for item in proto.pieces if item.type == Piece.NORMAL]
    ranked = Counter(item.score for item in normal if len(item.piece) > 1 and item.piece.strip(SPACE))
    letters = {item.piece for item in normal if len(item.piece) == 1}
    refusals = {
        f"a SentencePiece model of type {spec.ModelType.Name(spec.model_type)}": spec.model_type != spec.BPE,
        "a SentencePiece model without byte fallback": kinds[Piece.BYTE] != 256,
        "a SentencePiece model that rewrites text": bool(rules.precompiled_charsmap)
        or rules.remove_extra_whitespaces
        or not rules.escape_whitespaces
        or spec.treat_whitespace_as_suffix,
        "a SentencePiece model with user-defined pieces": kinds[Piece.USER_DEFINED] + kinds[Piece.UNUSED] > 0,
        "a SentencePiece model that defines a piece twice": len({item.piece for item in proto.pieces})
        < len(proto.pieces),
        "a SentencePiece model whose pieces share a score": any(count > 1 for count in ranked.values()),
        "a SentencePiece model whose pieces hold characters that are no pieces": any(
            not letters.issuperset(item.piece) for item in normal
        ),
    }
    for what, refused in refusals.items():
        if refused:
            cure = "BPE with byte fallback and distinct scores, such as Llama-2's, is"
            raise UserError(f"{what} is not supported", where=where, cure=cure)
