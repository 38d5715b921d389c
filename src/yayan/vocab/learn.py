"""`yayan vocab`: continue a base tokenizer's merges into Chinese, or begin a tokenizer from nothing."""

import io
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from yayan.corpus.read import documents, text_files
from yayan.errors import UserError
from yayan.progress import Progress
from yayan.stage import InputPath, Stage
from yayan.tokenizer import Piece, Tokenizer, load_tokenizer
from yayan.vocab.extend import Base, extend, open_base, require_agreement, unproducible, write_tokenizer
from yayan.vocab.merges import COVERAGE, continue_base

BYTES_AND_SPECIALS = 256 + 4
LONGEST_CONTINUED, LONGEST_NEW = 8, 16
LARGEST_SIZE, LARGEST_LENGTH = 1 << 20, 1000  # beyond any tokenizer in use
SAMPLE_CHARACTERS = 1_000_000
SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Vocab(Stage):
    """Learn a vocabulary: continue a base tokenizer into Chinese, or begin one from nothing."""

    base: InputPath | None = None
    """Tokenizer or model folder (or tokenizer.model) to continue; without it a new tokenizer is learnt."""
    corpus: list[InputPath]
    """Files or folders of documents to learn from."""
    field: str = "text"
    """Name of the text in a .jsonl object."""
    size: int
    """Ids of the finished tokenizer, those of the base included."""
    longest: int | None = None
    """Longest new piece in characters (8 with a base, 16 without)."""
    smallest_count: int = 2
    """How often the corpus must hold what becomes a new word (with a base; characters need only occur)."""

    def check(self) -> None:
        for name, value, least, most in (
            ("longest", self.longest, 2, LARGEST_LENGTH),
            ("smallest_count", self.smallest_count, 1, None),
            ("size", self.size, 1, LARGEST_SIZE),
        ):
            if value is not None and value < least:
                raise UserError(f"{name} is {value}", cure=f"ask for {least} or more")
            if value is not None and most is not None and value > most:
                raise UserError(f"{name} is {value}", cure=f"ask for {most} or less")
        text_files(self.corpus)
        taken = len(open_base(self.base).proto.pieces) if self.base else BYTES_AND_SPECIALS
        if self.size <= taken:
            what = f"size is {self.size}, but {taken} ids are taken before the first new piece"
            raise UserError(what, where=self.base, cure="ask for more")

    def run(self, work: Path) -> dict[str, object]:
        survey = take_survey(self.texts())
        base = open_base(self.base) if self.base else None
        if base is None:
            proto = begin(self.texts(), self.size, self.longest or LONGEST_NEW)
            write_tokenizer(work, proto)
        else:
            pieces = continue_base(
                base.proto,
                self.texts(),
                survey.counts,
                wanted=self.size - len(base.proto.pieces),
                longest=self.longest or LONGEST_CONTINUED,
                smallest_count=self.smallest_count,
            )
            proto = extend(base.proto, pieces)
            write_tokenizer(work, proto, template=base.template, model_max_length=base.model_max_length)
        tokenizer = load_tokenizer(work)
        require_agreement(work, tokenizer, survey.sample)
        if tokenizer.size < self.size:
            what = f"the corpus holds enough for {tokenizer.size:,} ids, not for {self.size:,}"
            print(f"  vocab: {what}: the tokenizer is smaller than asked", file=sys.stderr)
        return {"asked_size": self.size} | describe(tokenizer, proto, base, survey)

    def texts(self) -> Iterator[str]:
        return (document.text for document in documents(self.corpus, self.field))


@dataclass
class Survey:
    """What one pass over a corpus shows. `sample`: the beginnings of every n-th document, all over the corpus."""

    counts: Counter[str]
    sample: list[str]
    documents: int = 0
    characters: int = 0


def take_survey(texts: Iterable[str]) -> Survey:
    """Count the characters of a corpus, and keep a sample of about SAMPLE_CHARACTERS at most."""
    survey, stride, kept = Survey(Counter(), []), 1, 0
    with Progress("count characters", unit="docs") as bar:
        for text in texts:
            survey.counts.update(text)
            survey.characters += len(text)
            if survey.documents % stride == 0:
                survey.sample.append(text[: SAMPLE_CHARACTERS // 100])
                kept += len(survey.sample[-1])
            survey.documents += 1
            if kept > SAMPLE_CHARACTERS:
                survey.sample, stride = survey.sample[::2], stride * 2
                kept = sum(map(len, survey.sample))
            bar.advance()
    if not survey.characters:
        raise UserError("the corpus is empty", cure="give documents that hold text")
    return survey


def begin(texts: Iterable[str], size: int, longest: int) -> ModelProto:
    """A new SentencePiece BPE tokenizer in Llama-2's manner, with `<pad>` as id 3. Deterministic: one thread.

    It is smaller than `size` if the texts hold no more. Raises UserError if `size` does not hold their characters.
    """
    result = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in texts for line in text.split("\n") if line),
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
            split_digits=True,
            pad_id=3,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        too_small = re.search(r"smaller than required_chars. (\d+) vs (\d+)", str(error))
        if too_small is None:
            raise
        what = f"size is {size}, but bytes, special tokens and single characters need {too_small[2]}"
        raise UserError(what, cure="ask for more") from error
    proto = ModelProto()
    proto.ParseFromString(result.getvalue())
    return proto


def describe(tokenizer: Tokenizer, proto: ModelProto, base: Base | None, survey: Survey) -> dict[str, object]:
    """The figures of a finished tokenizer. Tokens per character are those of the survey's sample."""
    first = base.size if base else 0
    new = [item.piece for item in proto.pieces[first:] if item.type == Piece.NORMAL]
    words = [piece for piece in new if len(piece) > 1]
    characters = sum(map(len, survey.sample))
    before = None
    if base:
        cuts = base.plain.encode_batch_fast(survey.sample, add_special_tokens=False)
        before = sum(len(cut.ids) for cut in cuts) / characters
    after = sum(map(len, tokenizer.encode_batch(survey.sample))) / characters
    return {
        "size": tokenizer.size,
        "base_size": first,
        "new_pieces": len(new),
        "new_characters": len(new) - len(words),
        "dead_pieces": len(unproducible(tokenizer.plain, new)),
        "tokens_per_character_before": before and round(before, 4),
        "tokens_per_character_after": round(after, 4),
        "sample_characters": characters,
        "corpus_characters": survey.characters,
        "corpus_documents": survey.documents,
        "first_pieces": words[:SHOWN],
        "longest_pieces": sorted(words, key=len, reverse=True)[:SHOWN],
    }
