"""What must hold of a continued tokenizer, proved on texts: new ids are produced, old ones kept, all readers agree."""

import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import ucd_3_2_0

import numpy as np
import sentencepiece
import tokenizers
from numpy.typing import NDArray
from transformers import AutoTokenizer

from yayan.errors import UserError, WorkError
from yayan.tokenizer import SPACE, Tokenizer
from yayan.vocab.base import Base
from yayan.vocab.scripts import characters_of
from yayan.weights.gguf_ids import llamacpp_ids

PROBES = 10_000
HARD_TEXTS = (
    "",
    " ",
    "  two  spaces,\ttabs\n\n\nand lines \r\n",
    " leading and trailing ",
    "def f(x):\n    if x:\n\n        return {'a': [1, 2.5e-3]}\n",
    "雅言：诗、书、执礼，皆雅言也。",
    "子曰：“学而时习之，不亦说乎？”——《论语》……　全角　空格",
    "中文English混排123，標點。２０２６年",
    "<s>[INST] 你好 [/INST]</s><unk><pad><0x0A><|endoftext|><|im_end|>",
    "naïve café Ærøskøbing Ελληνικά русский עברית العربية हिन्दी ไทย 한국어 日本語かな",
    "emoji 🙂👩‍👩‍👧‍👦🇨🇳, rare 𠮷𪚥, private \ue000, zero\u200bwidth, e\u0301",
)
SNIPPET = 40  # characters of a corpus in one probe


def candidate_texts(base: Base, name: str) -> list[str]:
    """Texts in which a token may appear: its own, or the characters that begin with its bytes."""
    text = base.text_of(name)
    if text is not None:
        return list(dict.fromkeys([text, text.lstrip(" "), f"\n{text}", f"a{text}"]))
    raw = base.bytes_of(name)
    space = " " if raw.startswith(b" ") else ""
    return [f"{before}{space}{c}" for c in characters_of(raw.removeprefix(b" ")) for before in ("", "\n")]


def witnesses(base: Base, fast: tokenizers.Tokenizer, names: Sequence[str]) -> dict[str, str]:
    """For each token that some text gives, the first such text that is tried."""
    found: dict[str, str] = {}
    waiting = {name: candidate_texts(base, name) for name in names}
    while waiting:
        texts = [texts[0] for texts in waiting.values()]
        cuts = fast.encode_batch_fast(texts, add_special_tokens=False)
        for name, text, cut in zip(list(waiting), texts, cuts, strict=True):
            if fast.token_to_id(name) in cut.ids:
                found[name] = text
                del waiting[name]
            elif len(waiting[name]) == 1:
                del waiting[name]
            else:
                waiting[name] = waiting[name][1:]
    return {name: found[name] for name in names if name in found}


@dataclass
class Changes:
    """What a continued tokenizer changes in texts. Tokens are the base's."""

    texts: int = 0
    tokens: int = 0
    changed_tokens: int = 0
    """Those that are now part of a new token."""
    changed_texts: int = 0
    changed_outside: int = 0
    """Texts whose ids differ elsewhere than in new tokens: must be 0."""

    @property
    def share(self) -> float:
        return self.changed_tokens / max(self.tokens, 1)


def find_changes(base: Base, fast: tokenizers.Tokenizer, texts: Iterable[str]) -> Changes:
    """Compare the ids of texts before and after.

    New merges come after all old ones, so a text may differ only by old tokens put together into new ones: the borders
    after must be among the borders before, and each token between equal borders must be the same.
    """
    changes, widths = Changes(), widths_of(base, fast)
    for text in texts:
        old = np.array(base.plain.encode(text, add_special_tokens=False).ids, np.int64)
        new = np.array(fast.encode(text, add_special_tokens=False).ids, np.int64)
        changes.texts += 1
        changes.tokens += len(old)
        if np.array_equal(old, new):
            continue
        kept = new[new < base.size]
        starts_old, starts_new = np.cumsum(widths[old]) - widths[old], np.cumsum(widths[new]) - widths[new]
        before = dict(zip(starts_old.tolist(), old.tolist(), strict=True))
        same = all(
            before.get(start) == token or (token >= base.size and start in before)
            for start, token in zip(starts_new.tolist(), new.tolist(), strict=True)
        )
        changes.changed_texts += 1
        changes.changed_tokens += len(old) - len(kept)
        changes.changed_outside += not (same and widths[old].sum() == widths[new].sum())
    return changes


def widths_of(base: Base, fast: tokenizers.Tokenizer) -> NDArray[np.int64]:
    """How many UTF-8 bytes each token stands for."""
    vocab = fast.get_vocab(with_added_tokens=True)
    widths = np.zeros(max(vocab.values()) + 1, np.int64)
    for name, number in vocab.items():
        widths[number] = len(base.bytes_of(name))
    return widths


def probe_texts(
    tokenizer: Tokenizer, first_new: int, sample: Sequence[str], count: int = PROBES
) -> list[str]:
    """Hard texts, pieces of a sample, and random old and new tokens, special ones and characters put together."""
    rng = random.Random(0)
    broken = "\N{REPLACEMENT CHARACTER}"
    shown = [tokenizer.plain.decode([number], skip_special_tokens=False) for number in range(tokenizer.size)]
    whole = [text for text in shown if broken not in text]
    new = [text for text in shown[first_new:] if broken not in text] or whole
    makers: Sequence[Callable[[], str]] = (
        lambda: rng.choice(new),
        lambda: rng.choice(whole),
        lambda: rng.choice((" ", "  ", "\n", "\t", "\r\n", "，", "。", "“", "—", "1", "a", "，\n")),
        lambda: random_character(rng),
        lambda: snippet(rng, sample),
        lambda: rng.choice(HARD_TEXTS),
    )
    texts = list(HARD_TEXTS)
    while len(texts) < count:
        parts = [rng.choices(makers, (6, 3, 3, 2, 1, 0.3))[0]() for _ in range(rng.randint(1, 10))]
        texts.append("".join(parts).replace(SPACE, "_").replace("\0", ""))
    return texts


def random_character(rng: random.Random) -> str:
    """Any character of Unicode 3.2, from the first planes more often than evenly.

    Letters of later years are in the tables of some programs and not yet in those of others, which then split words
    otherwise, whatever the vocabulary.
    """
    while True:
        character = chr(rng.randrange(1, rng.choice((0x80, 0x800, 0x3000, 0x10000, 0x20000, 0x110000))))
        if ucd_3_2_0.category(character) not in ("Cn", "Cs"):
            return character


def snippet(rng: random.Random, sample: Sequence[str]) -> str:
    text = rng.choice(sample) if sample else ""
    start = rng.randrange(max(len(text) - SNIPPET, 1))
    return text[start : start + rng.randint(1, SNIPPET)]


def prove_readers(folder: Path, tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, int]:
    """Raises WorkError unless all programs that read this folder give the ids that we give.

    Returns the number of texts that each was asked: `sentencepiece` (if there is a tokenizer.model), `transformers`,
    llama.cpp through a GGUF.
    """
    plain, parsed = tokenizer.encode_batch(texts), [tokenizer.encode_with_specials(text) for text in texts]
    theirs = AutoTokenizer.from_pretrained(folder)
    answers = {"transformers": (parsed, theirs(list(texts), add_special_tokens=False)["input_ids"])}
    pieces = (folder / "tokenizer.model").is_file()
    if pieces:
        native = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        answers["sentencepiece"] = (plain, native.encode(list(texts)))
    try:
        answers["llama.cpp"] = (plain, llamacpp_ids(folder, texts))
    except UserError as error:  # GGUF cannot say this tokenizer
        print(f"  vocab: llama.cpp was not asked: {error}", file=sys.stderr)
    for reader, (ours, ids) in answers.items():
        for text, mine, other in zip(texts, ours, ids, strict=True):
            if mine != other:
                what = f"{reader} cuts {text[:60]!r} into other tokens than tokenizer.json"
                raise WorkError(what, where=folder, cure="please report it with the base tokenizer")
    return {reader: len(texts) for reader in answers}


def prove_round_trip(folder: Path, tokenizer: Tokenizer, texts: Sequence[str], base: Base | None) -> int:
    """How many texts come back from their ids. Raises WorkError for one that does not, and did from the base's.

    A base may lose some itself: one that brings text into NFC, or DeepSeek's, whose added tokens (`ø`) are decoded
    as bytes.
    """
    kept = 0
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        back = tokenizer.decode(ids)
        kept += back == text
        if back != text and (base is None or back != _through(base, text)):
            raise WorkError(f"{text[:60]!r} does not come back from its ids", where=folder)
    return kept


def _through(base: Base, text: str) -> str:
    return base.plain.decode(base.plain.encode(text, add_special_tokens=False).ids, skip_special_tokens=True)
