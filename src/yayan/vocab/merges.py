"""Continued BPE: the pieces that a base tokenizer's own training would have found next, had it seen this corpus.

The base cuts the corpus's runs of Chinese characters, its pieces become symbols of one character each (private-use ones
where a piece is longer), and the native BPE trainer merges on from there: every new piece is made of pieces.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator

import tokenizers
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import models, pre_tokenizers, trainers

from yayan.errors import UserError
from yayan.progress import Progress
from yayan.tokenizer import convert_sentencepiece
from yayan.vocab.extend import extend, unproducible

LETTERS = "々〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han: these grow into words
MARKS = "\u3001-\u3003\u3008-\u3011\u3014-\u301f\uff01-\uff5e￥"  # punctuation, full width: never merged
RUN = re.compile(f"[{LETTERS}]+")
CHARACTER = re.compile(f"[{LETTERS}{MARKS}]")
PRIVATE_USE = [*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE)]
# This share of the corpus's Chinese characters gets pieces (SentencePiece's advice for Chinese); the rest stays bytes.
COVERAGE = 0.9995
# Single characters take no more of the new rows. Tokens a character on the sample's held-out part, 2,096 new rows:
# 1.057 with 0.50, 1.033 with 0.66, 1.027 with 0.75, 1.031 with 0.85.
CHARACTER_SHARE = 0.75
RESERVE = 1.02  # merges learnt for each one wanted: a few are too long or cannot be produced
BATCH_CHARACTERS = 1_000_000


def continue_base(
    base: ModelProto,
    texts: Iterable[str],
    counts: Counter[str],
    *,
    wanted: int,
    longest: int,
    smallest_count: int,
) -> list[str]:
    """New pieces for a base, `wanted` of them if the corpus holds so many: single characters first, then words.

    `counts`: how often the texts hold each character. Each piece is what its own text is cut into; one that is not
    gives way to the next candidate. Raises UserError for a corpus without Chinese.
    """
    if not any(RUN.match(character) for character in counts):
        cure = "a base is continued into Chinese, so the corpus must hold some"
        raise UserError("the corpus has no Chinese character", cure=cure)
    characters = choose_characters(base, counts, wanted)
    alphabet = convert_sentencepiece(extend(base, characters))
    reserve = round((wanted - len(characters)) * RESERVE) + 32
    merges = learn_merges(alphabet, texts, reserve, longest, smallest_count)
    old = {item.piece for item in base.pieces}
    candidates = [piece for piece in [*characters, *merges] if piece not in old]
    while True:
        chosen = candidates[:wanted]
        dead = unproducible(convert_sentencepiece(extend(base, chosen)), chosen)
        if not dead:
            return chosen
        candidates = [piece for piece in candidates if piece not in dead]


def choose_characters(base: ModelProto, counts: Counter[str], wanted: int) -> list[str]:
    """Chinese characters that the base has only as bytes, the most frequent first, until COVERAGE is reached."""
    chinese = {character: count for character, count in counts.items() if CHARACTER.match(character)}
    old = {item.piece for item in base.pieces}
    uncovered = sum(chinese.values())
    enough = uncovered * (1 - COVERAGE)
    chosen = []
    for character in sorted(chinese, key=lambda c: (-chinese[c], c)):
        if uncovered <= enough:
            break
        uncovered -= chinese[character]
        if character not in old:
            chosen.append(character)
    return chosen[: max(1, round(wanted * CHARACTER_SHARE))]


def learn_merges(
    alphabet: tokenizers.Tokenizer, texts: Iterable[str], count: int, longest: int, smallest_count: int
) -> list[str]:
    """The first merges, `count` or a few more, that BPE finds in the runs of Chinese as `alphabet` cuts them, in order.

    Counting and merging are native; ties go by the symbols' order, so that the same corpus gives the same merges.
    """
    symbols, words = make_symbols(alphabet)
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=len(set(symbols)) + count,
        min_frequency=smallest_count,
        max_token_length=longest + 1,  # the trainer's limit is exclusive
        show_progress=sys.stderr.isatty(),
    )
    learner.train_from_iterator(cut_runs(alphabet, symbols, texts), trainer)
    vocab = learner.get_vocab()
    found = (piece.translate(words) for piece in sorted(vocab, key=vocab.__getitem__) if len(piece) > 1)
    return [piece for piece in dict.fromkeys(found) if len(piece) <= longest]


def make_symbols(alphabet: tokenizers.Tokenizer) -> tuple[list[str], dict[int, str]]:
    """One character for each id that may take part in a merge, a space for all others; and the way back to texts.

    A piece of one character stands for itself, a longer one gets a private-use character.
    """
    vocab = alphabet.get_vocab()
    chinese = [piece for piece in sorted(vocab, key=vocab.__getitem__) if RUN.fullmatch(piece)]
    words = dict(zip(PRIVATE_USE, (piece for piece in chinese if len(piece) > 1), strict=False))
    symbols = [" "] * (max(vocab.values()) + 1)
    for piece in chinese:
        symbols[vocab[piece]] = piece
    for code, piece in words.items():
        symbols[vocab[piece]] = chr(code)
    return symbols, words


def cut_runs(alphabet: tokenizers.Tokenizer, symbols: list[str], texts: Iterable[str]) -> Iterator[str]:
    """Documents as symbols: their runs of Chinese as the tokenizer cuts them, broken where a character is bytes."""
    with Progress("cut runs of Chinese", unit="docs") as bar:
        for batch in in_batches(texts):
            runs = ["\n".join(RUN.findall(text)) for text in batch]  # a line break joins with no piece
            for cut in alphabet.encode_batch_fast(runs, add_special_tokens=False):
                yield "".join([symbols[number] for number in cut.ids])
            bar.advance(len(batch))


def in_batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in lists of about BATCH_CHARACTERS, so that the native tokenizer can use its threads."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    yield batch
