"""Byte-level tokenizers made in a moment, and texts that are hard to cut."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from unicodedata import ucd_3_2_0

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.sentencepiece_model import TEXTS
from yayan.pretokenizers import pre_tokenizer

TOKENS = 400
SPACES = [*" \t\n\r\v\f\x1c\x85\xa0\u1680\u2000\u2028\u2029\u202f\u205f\u3000", "  ", "\r\n", "\n\n\n"]
SIGNS = [
    *"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~，。！？：“”‘’（）《》、…—·€™£©",
    "'s",
    "'S",
    "'ll",
    "'re",
    "...",
]
DIGITS = [*"0123456789０９½²Ⅷ٣९①", "2026", "3.14", "1e-5"]
WORDS = [
    *("Hello", "world", "don't", "naïve", "Ærøskøbing", "Ελληνικά", "русский", "עברית", "العربية", "हिन्दी"),
    *("ไทย", "한국어", "日本語", "ひらがな", "中文", "诗书", "標點", "e\u0301", "ǅ", "ß", "İ", "ﬁ", "𝐀", "𐐀"),
    *("🙂", "👩‍👩‍👧‍👦", "🇨🇳", "𠮷", "\ue000", "\u200b", "\ufeff", "\U000e0001", "\x00", "\x7f", "\uffff"),
]
LARGEST = 0x10FFFF


def fuzzed_texts(count: int, seed: int, pieces: Sequence[str] = ("a",)) -> list[str]:
    """Random texts of white space, signs, digits, words of many scripts, `pieces` and any characters of Unicode 3.2.

    Letters of the last years are in the tables of some programs and not yet in those of others.
    """
    rng = random.Random(seed)

    def any_of(limit: int) -> str:
        letter = chr(rng.randrange(limit))
        return letter if ucd_3_2_0.category(letter) not in ("Cn", "Cs") else "?"

    def part() -> str:
        kind = rng.random()
        for share, choices in ((0.2, SPACES), (0.35, SIGNS), (0.45, DIGITS), (0.6, WORDS), (0.75, pieces)):
            if kind < share:
                return rng.choice(choices)
        return any_of(LARGEST + 1 if kind < 0.85 else 0x3100 if kind < 0.92 else 0xA000)

    return ["".join(part() for _ in range(rng.randint(1, 25))) for _ in range(count)]


def pairs_tokenizer(pre: str) -> Tokenizer:
    """A byte-level BPE that joins any two bytes, so that ids show where words begin."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(left, right) for left in letters for right in letters]
    tokens = ["</s>", *letters, *(left + right for left, right in pairs)]
    tokenizer = Tokenizer(models.BPE(vocab={token: row for row, token in enumerate(tokens)}, merges=pairs))
    return finish(tokenizer, pre)


def tiny_tokenizer(pre: str = "gpt-2") -> Tokenizer:
    """A byte-level BPE learnt from a few sentences; <s> </s> <pad> come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer(pre)
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return finish(tokenizer, pre)


def finish(tokenizer: Tokenizer, pre: str) -> Tokenizer:
    tokenizer.pre_tokenizer = pre_tokenizer(pre)
    tokenizer.model.ignore_merges = pre == "llama-bpe"
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("</s>", normalized=False, special=True)])
    return tokenizer


def write_folder(folder: Path, tokenizer: Tokenizer, **specials: str) -> Path:
    """A tokenizer folder; `specials` such as `bos_token="<s>"` go into its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", **specials}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
