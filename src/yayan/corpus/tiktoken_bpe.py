"""A byte-level BPE in tiktoken, where it can be proven that it gives the same ids.

The two libraries differ in the rule: `tokenizers` joins the neighbours whose *pair* stands first in a list, tiktoken
those whose *union* has the lowest rank. Let a union R have the rank r of its pair. As long as both have done the
same, a span of the text with the bytes of R, whose borders no merge has crossed, is cut as R alone is cut by the
merges before r: merges inside it do not depend on what stands around. If that leaves just the pair that the list has
for R, both join it, and there is no other pair that tiktoken could take for R. If it leaves something else, R can be
made by neither and is not given to tiktoken. So one look at every token decides for all texts.

The pre-tokenizers may know different versions of Unicode: every character is tried in five surroundings, and texts with
one that is cut differently, or that is not assigned, are left to `tokenizers`.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import tiktoken

from yayan.pretokenizers import BYTE_OF, splitting_of
from yayan.tokenizer import Tokenizer

CHARACTERS_AT_ONCE = 64
MOST_ODD = 4096
# Without any special token tiktoken looks for the empty text behind every character: 7.9 instead of 11.4 MB/s
NEVER_THERE = "\U0010fffe\U0010ffff"
UNTRIED = ("Cn", "Co", "Cs")  # categories: not assigned, private use, surrogates
LONGEST_CHARACTERS = 1 << 22  # beyond, tiktoken's stack and time are not known


class TiktokenBpe:
    """`encode` of a text: ids uint32, or None where the text must go to `tokenizers`."""

    def __init__(
        self,
        ranks: Mapping[bytes, int],
        ids_R: np.ndarray,
        pattern: str,
        left_alone: Iterable[re.Pattern],
        nfc: bool,
    ) -> None:
        """`ids_R`: the id of each rank. `left_alone`: texts in which one of them is found are not encoded."""
        self.ranks, self.pattern = dict(ranks), pattern
        self.ids_R, self.left_alone, self.nfc = ids_R, list(left_alone), nfc

    @cached_property
    def _core(self) -> Any:
        special = {NEVER_THERE: len(self.ranks)}
        encoding = tiktoken.Encoding(
            "bpe", pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens=special
        )
        return encoding._core_bpe

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_core"}

    def encode(self, text: str) -> np.ndarray | None:
        if len(text) > LONGEST_CHARACTERS or any(pattern.search(text) for pattern in self.left_alone):
            return None
        if self.nfc and not unicodedata.is_normalized("NFC", text):
            return None
        try:
            ranks = self._core.encode_to_tiktoken_buffer(text, set())
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except (
            BaseException
        ):  # its regular expressions run out of stack on long runs; a panic is no Exception
            return None
        return self.ids_R[np.frombuffer(ranks, np.uint32)]


def open_tiktoken(tokenizer: Tokenizer) -> TiktokenBpe | None:
    """The tokenizer in tiktoken, None if it is no byte-level BPE or cannot be proven equal. Takes some seconds."""
    parts = json.loads(tokenizer.plain.to_str())
    model, pattern = parts["model"], splitting_of(parts["pre_tokenizer"])
    normaliser = parts["normalizer"]
    if model["type"] != "BPE" or pattern is None or normaliser not in (None, {"type": "NFC"}):
        return None
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return None
    ranks, ids = proven_ranks(
        model["vocab"], list(map(tuple, model["merges"])), bool(model.get("ignore_merges"))
    )
    if ranks is None:
        return None
    added = [token["content"] for token in parts["added_tokens"] if not token["special"]]
    added += [unicodedata.normalize("NFC", text) for text in added]
    alone = [re.compile("|".join(map(re.escape, added)))] if added else []
    bpe = TiktokenBpe(ranks, np.array(ids, np.uint32), pattern, alone, normaliser is not None)
    odd = odd_characters(bpe, tokenizer)
    if len(odd) > MOST_ODD:
        return None
    bpe.left_alone += one_of([*untried(), *odd])
    return bpe


def proven_ranks(
    vocab: Mapping[str, int], merges: list[tuple[str, str]], ignore_merges: bool
) -> tuple[dict[bytes, int] | None, list[int]]:
    """Ranks by bytes, and the id of each rank; None if tiktoken's rule could give other ids (see above)."""
    nothing: tuple[None, list[int]] = (None, [])
    vocab = {token: number for token, number in vocab.items() if BYTE_OF.keys() >= set(token)}
    pairs: dict[bytes, list[tuple[int, bytes, bytes]]] = {}
    as_bytes = {token: bytes(BYTE_OF[letter] for letter in token) for token in vocab}
    id_of = {raw: vocab[token] for token, raw in as_bytes.items()}
    for number, (left, right) in enumerate(merges):
        if left not in as_bytes or right not in as_bytes or left + right not in as_bytes:
            return nothing
        pairs.setdefault(as_bytes[left + right], []).append((number, as_bytes[left], as_bytes[right]))
    if any(item[-1][0] - item[0][0] != len(item) - 1 for item in pairs.values()):
        return nothing  # the pairs of one union do not follow each other: it has no one rank
    single = sorted(raw for raw in id_of if len(raw) == 1)
    ranks = {raw: rank for rank, raw in enumerate(single)}
    order = sorted(pairs, key=lambda raw: pairs[raw][0][0])
    seen = set(ranks)
    for raw in order:
        if any(left not in seen or right not in seen for _, left, right in pairs[raw]):
            return nothing  # a pair before the one that makes its part: the union may be made late
        seen.add(raw)
        parts = cut(raw, ranks)
        if len(parts) == 2:
            if not any((left, right) == tuple(parts) for _, left, right in pairs[raw]):
                return nothing
            ranks[raw] = len(ranks)
        elif len(parts) == 1:
            return nothing
    made = list(ranks)
    unmade = [raw for raw in id_of if raw not in ranks]
    if ignore_merges:  # a word that is a token is that token, whether or not merges make it
        if any(len(cut(raw, ranks | {raw: len(ranks)})) == 1 for raw in unmade):
            return nothing
        ranks |= {raw: number for number, raw in enumerate(unmade, len(ranks))}
        made += unmade
    return ranks, [id_of[raw] for raw in made]


def cut(raw: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """Bytes as tiktoken's rule cuts them, without the shortcut for whole words."""
    parts = [raw[i : i + 1] for i in range(len(raw))]
    while len(parts) > 1:
        best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], sys.maxsize))
        if parts[best] + parts[best + 1] not in ranks:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def untried() -> list[int]:
    """Code points that are not assigned in Python's Unicode, or have no meaning of their own."""
    return [code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) in UNTRIED]


def odd_characters(bpe: TiktokenBpe, tokenizer: Tokenizer) -> list[int]:
    """Assigned characters around which the two cut differently."""
    codes = [c for c in range(1, sys.maxunicode + 1) if unicodedata.category(chr(c)) not in UNTRIED]
    groups = [codes[i : i + CHARACTERS_AT_ONCE] for i in range(0, len(codes), CHARACTERS_AT_ONCE)]
    suspects = [code for group in differing(groups, bpe, tokenizer) for code in group]
    return [code for (code,) in differing([[code] for code in suspects], bpe, tokenizer)]


def differing(groups: list[list[int]], bpe: TiktokenBpe, tokenizer: Tokenizer) -> list[list[int]]:
    """Groups of characters that are cut differently in some surroundings."""
    texts = ["".join(surrounded(chr(code)) for code in group) for group in groups]
    wanted = tokenizer.encode_batch(texts)
    found = [bpe.encode(text) for text in texts]
    return [
        group
        for group, mine, theirs in zip(groups, found, wanted, strict=True)
        if mine is not None and mine.tolist() != theirs
    ]


def surrounded(character: str) -> str:
    return f"a{character}1{character} {character}{character}.{character}\n{character}'s "


def one_of(codes: Iterable[int]) -> list[re.Pattern]:
    """Regular expressions that find one of these characters.

    Those of the first plane are looked up in a table. The others are tried range after range, hundreds of them: only
    where a character is beyond the first plane at all, or Chinese is searched at 2.5 MB/s.
    """
    codes = set(codes)
    first = {code for code in codes if code <= 0xFFFF}
    beyond = codes - first
    patterns = [character_class(first)] if first else []
    if beyond:
        patterns.append(rf"(?=[\U00010000-\U{sys.maxunicode:08x}]){character_class(beyond)}")
    return [re.compile(pattern) for pattern in patterns]


def character_class(codes: Iterable[int]) -> str:
    """A regular expression for one of these characters."""
    ranges: list[list[int]] = []
    for code in sorted(codes):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "[" + "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges) + "]"
