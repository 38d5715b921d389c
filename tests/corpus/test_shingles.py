"""Shingles against a plain-Python reference, which compares the pieces themselves."""

import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yayan.corpus import shingles as module
from yayan.corpus.shingles import batches, end_of_piece, pieces_of, shingle_blocks, shingles, shingles_of

UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "IDEOGRAPHIC")
GOLDEN = [0x7406FD23C333A678, 0xB8B184D204F1A0DC]
ORDINARY = "中国文字かナー한글ไทยaAbBＡｂ1１éÉx\u0301ß_-，。 \n\u3000❤\ufe0f\U000e0100нНनि"
TEXTS = st.text(st.sampled_from(ORDINARY) | st.characters(exclude_categories=["Cs"]))


def stands_alone(character: str) -> bool:
    name = unicodedata.name(character, "")
    return name.startswith(UNSPACED) and unicodedata.category(character)[0] in "LMN"


def plain_pieces(text: str) -> list[tuple[int, str]]:
    """Where each piece begins, and its folded characters, for characters of which the rule needs no exception."""
    found: list[tuple[int, str]] = []
    in_word = False
    for i, character in enumerate(text):
        folded = unicodedata.normalize("NFKC", character) if 0xFF01 <= ord(character) < 0xFF5F else character
        folded = folded.lower() if len(folded.lower()) == 1 else folded
        if stands_alone(character):
            found.append((i, folded))
            in_word = False
        elif unicodedata.category(character)[0] in "LMN" and not unicodedata.name(character, "").startswith(
            "VARIATION SELECTOR-"
        ):
            if in_word:
                found[-1] = (found[-1][0], found[-1][1] + folded)
            else:
                found.append((i, folded))
            in_word = True
        else:
            in_word = False
    return found


@given(st.text(st.sampled_from(ORDINARY)), st.integers(1, 9))
@settings(max_examples=1000)
def test_shingles_equal_those_of_the_reference(text: str, n: int) -> None:
    pieces = pieces_of([text])
    wanted = plain_pieces(text)
    assert pieces.starts.tolist() == [start for start, _ in wanted]
    assert pieces.alone.tolist() == [stands_alone(text[start]) for start, _ in wanted]
    grams = [tuple(piece for _, piece in wanted[i : i + n]) for i in range(len(wanted) - n + 1)]
    hashes = shingles(text, n).tolist()
    assert len(hashes) == len(grams)
    assert len(set(zip(grams, hashes, strict=True))) == len(set(grams)) == len(set(hashes))


@given(st.lists(TEXTS, max_size=8), st.integers(1, 6))
def test_texts_together_are_as_each_alone(texts: list[str], n: int) -> None:
    pieces = pieces_of(texts)
    hashes, offsets = shingles_of(pieces, n)
    assert len(offsets) == len(pieces.offsets) == len(texts) + 1
    begin = 0
    for i, text in enumerate(texts):
        assert np.array_equal(hashes[offsets[i] : offsets[i + 1]], shingles(text, n))
        own = slice(pieces.offsets[i], pieces.offsets[i + 1])
        assert np.array_equal(pieces.starts[own] - begin, pieces_of([text]).starts)
        begin += len(text) + 1


@given(TEXTS, st.integers(1, 7), st.integers(2, 20))
def test_a_long_text_goes_block_by_block(text: str, n: int, block: int) -> None:
    whole = shingles(text, n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_CHARACTERS", block)
        patch.setattr(module, "LONGEST_WORD", block - 1)
        words = [piece for piece in text.split() if len(piece) >= block - 1]
        blocks = list(shingle_blocks(text, n))
        if not words:  # such a run of letters is cut
            assert np.array_equal(np.concatenate([hashes for hashes, _ in blocks]), whole)
        for hashes, starts in blocks:
            assert len(hashes) == max(len(starts) - n + 1, 0)
            assert (np.diff(starts) > 0).all()


def test_long_texts_of_real_size() -> None:
    text = "雅言 is the standard speech，" * 120_000  # three blocks
    one = shingles("雅言 is the standard speech，" * 3, 5)[:6]
    assert np.array_equal(shingles(text, 5)[:600_000], np.tile(one, 100_000))
    assert len(shingles("a" * (1 << 21), 1)) == 2  # a word without an end is cut at the block's


def test_what_does_not_matter_and_what_does() -> None:
    assert np.array_equal(shingles("中国，人民。ABC", 3), shingles("中 国\n人民 abc!", 3))
    assert np.array_equal(shingles("ＡＢＣ１２", 1), shingles("abc12", 1))
    assert not np.isin(shingles("人民中国", 2), shingles("国中民人", 2)).any()
    assert len(shingles("", 1)) == len(shingles("，。！", 1)) == len(shingles("中国", 3)) == 0
    assert np.array_equal(shingles("ab ba", 1), shingles("ba ab", 1)[::-1])
    assert shingles("ab", 1)[0] != shingles("ba", 1)[0]


def test_the_values_are_the_same_everywhere() -> None:
    wanted = [int(value) for value in shingles("雅言 Standard speech", 3)]
    program = "from yayan.corpus.shingles import shingles; print(*shingles('雅言 Standard speech', 3))"
    for seed in ("1", "2"):
        surroundings = os.environ | {"PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", program], env=surroundings, capture_output=True, text=True, check=True
        )
        assert [int(word) for word in run.stdout.split()] == wanted
    assert wanted == GOLDEN


@given(st.lists(st.text("ab", max_size=40)), st.integers(1, 5))
def test_batches_hold_all_texts_in_their_order(texts: list[str], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH_CHARACTERS", 30)
        cuts = list(batches(texts, most))
    assert [text for first, last in cuts for text in texts[first:last]] == texts
    for first, last in cuts:
        assert 1 <= last - first <= most
        assert last - first == 1 or sum(map(len, texts[first:last])) <= 30


def test_end_of_piece() -> None:
    text = "中文 Standard, x"
    assert [text[start : end_of_piece(text, start)] for start in (0, 1, 3, 13)] == [
        "中",
        "文",
        "Standard",
        "x",
    ]
