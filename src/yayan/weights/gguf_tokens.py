"""The tokenizer of a model folder as GGUF metadata: pieces, scores, types, special ids, chat template."""

from pathlib import Path

from gguf import GGUFWriter, TokenType
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from yayan.errors import UserError
from yayan.template import encode_prompt
from yayan.tokenizer import Tokenizer, load_tokenizer, read_sentencepiece

UNUSED_SCORE = -1e6  # of rows that have no token


def write_tokens(writer: GGUFWriter, tokenizer: Tokenizer, proto: ModelProto, rows: int) -> None:
    """Add a tokenizer, padded to the `rows` of the embedding.

    llama.cpp's tokenizer `llama` joins the neighbours whose piece has the best score, as SentencePiece's BPE does; its
    piece types are SentencePiece's, number for number.
    """
    pieces, empty = proto.pieces, range(len(proto.pieces), rows)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*(item.piece for item in pieces), *(f"[PAD{index}]" for index in empty)])
    writer.add_token_scores([*(item.score for item in pieces), *(UNUSED_SCORE for _ in empty)])
    writer.add_token_types([*(item.type for item in pieces), *(TokenType.UNUSED for _ in empty)])
    writer.add_add_space_prefix(proto.normalizer_spec.add_dummy_prefix)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_add_eos_token(False)
    writer.add_add_bos_token(tokenizer.bos_id is not None)
    if tokenizer.bos_id is not None:
        writer.add_bos_token_id(tokenizer.bos_id)
    if tokenizer.pad_id is not None:
        writer.add_pad_token_id(tokenizer.pad_id)
    if proto.trainer_spec.unk_id >= 0:
        writer.add_unk_token_id(proto.trainer_spec.unk_id)
    if tokenizer.template is not None:
        writer.add_chat_template(tokenizer.template)


def read_tokenizer(model: Path, rows: int) -> tuple[Tokenizer, ModelProto]:
    """Both forms of a model folder's tokenizer.

    Raises UserError if it has no SentencePiece model, if the two differ, or if they have more tokens than `rows`.
    """
    if not (model / "tokenizer.model").is_file():
        cure = "models with a SentencePiece tokenizer.model can be written so far"
        raise UserError("there is no tokenizer.model, which GGUF needs", where=model, cure=cure)
    proto, tokenizer = read_sentencepiece(model), load_tokenizer(model)
    names = [item.piece for item in proto.pieces]
    odd = [index for index, name in enumerate(names) if tokenizer.fast.id_to_token(index) != name]
    if odd or tokenizer.size > len(names):
        index = odd[0] if odd else len(names)
        what = f"tokenizer.json and tokenizer.model disagree about token {index}"
        raise UserError(what, where=model, cure="bring the two that belong together")
    if len(names) > rows:
        what = f"the tokenizer has {len(names)} tokens, the embedding {rows} rows"
        raise UserError(what, where=model, cure="grow the model to its tokenizer first")
    if tokenizer.template is not None:
        encode_prompt(tokenizer, [{"role": "user", "content": "1"}])  # refuses a template that is none
    return tokenizer, proto
