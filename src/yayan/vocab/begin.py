"""A new tokenizer from nothing, learnt by SentencePiece itself, in Llama-2's manner."""

import io
import re
from collections.abc import Iterable, Iterator

import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from yayan.errors import UserError

# This share of the corpus's characters gets pieces (SentencePiece's advice for Chinese); the rest stays bytes.
COVERAGE = 0.9995
BYTES_AND_SPECIALS = 256 + 4


def begin(texts: Iterable[str], size: int, longest: int, *, split_digits: bool = True) -> ModelProto:
    """A BPE with byte fallback and `<pad>` as id 3. Deterministic: one thread.

    It is smaller than `size` if the texts hold no more. Raises UserError if `size` does not hold their characters.
    """
    result = io.BytesIO()
    lines = 0

    def sentences() -> Iterator[str]:
        nonlocal lines
        for text in texts:
            for line in filter(None, text.split("\n")):
                lines += 1
                yield line

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences(),
            model_writer=result,
            model_type="bpe",
            vocab_size=size,
            hard_vocab_limit=False,
            byte_fallback=True,
            character_coverage=COVERAGE,
            max_sentencepiece_length=longest,
            max_sentence_length=1 << 30,  # bytes; longer lines would be left out
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=split_digits,
            pad_id=3,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        if "KeyboardInterrupt" in str(error):  # what SentencePiece makes of one inside of its iterator
            raise KeyboardInterrupt from error
        if not lines:
            raise UserError("the corpus is empty", cure="give documents that hold text") from error
        too_small = re.search(r"smaller than required_chars. (\d+) vs (\d+)", str(error))
        if too_small is None:
            raise
        what = f"size is {size}, but bytes, special tokens and single characters need {too_small[2]}"
        raise UserError(what, cure="ask for more") from error
    proto = ModelProto()
    proto.ParseFromString(result.getvalue())
    return proto
