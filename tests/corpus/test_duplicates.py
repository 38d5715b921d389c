"""Keys of duplicates: which texts are equal, how well a sketch estimates Jaccard's similarity, what bands find."""

import random
import sys

import numpy as np
import pytest

from tests.conftest import SHARED, needs_shared
from yayan.corpus import duplicates, shingles
from yayan.corpus.duplicates import BAND_VALUES, BANDS, exact_key, minhash, near_bands
from yayan.corpus.read import documents
from yayan.errors import UserError

CHARACTERS = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]


def random_text(rng: random.Random, characters: int) -> str:
    return "".join(rng.choices(CHARACTERS, k=characters))


def edited(rng: random.Random, text: str, share: float) -> str:
    """A text in which a share of the characters are replaced."""
    places = set(rng.sample(range(len(text)), round(share * len(text))))
    return "".join(rng.choice(CHARACTERS) if i in places else text[i] for i in range(len(text)))


def jaccard(one: str, other: str) -> float:
    a, b = (set(shingles.shingles(text, duplicates.SHINGLE_PIECES).tolist()) for text in (one, other))
    return len(a & b) / len(a | b)


def share_a_band(one: str, other: str) -> bool:
    keys = near_bands([one, other])
    return bool((keys[0] == keys[1]).any())


def test_exact_keys() -> None:
    assert exact_key("中国\n人民 \u3000a") == exact_key(" 中国人民a\t")
    assert exact_key("中国人民") != exact_key("中国人民。")
    assert exact_key("") == 0xE4A6A0577479B2B4  # BLAKE2b-64 of nothing
    assert len({exact_key(str(i)) for i in range(10_000)}) == 10_000


@pytest.mark.parametrize("characters", [40, 400, 4000])
def test_sketches_estimate_the_similarity_of_jaccard(characters: int) -> None:
    rng = random.Random(1)
    errors, truth = [], []
    for share in np.linspace(0, 0.3, 100):
        one = random_text(rng, characters)
        other = edited(rng, one, share)
        hashes = [shingles.shingles(text, 5) for text in (one, other)]
        sketch = minhash(np.concatenate(hashes), np.cumsum([0, *map(len, hashes)]))
        truth.append(jaccard(one, other))
        errors.append((sketch[0] == sketch[1]).mean() - truth[-1])
    # The standard error of one estimate is sqrt(J (1 - J) / 112), 0.047 at most.
    assert abs(np.mean(errors)) < 0.02
    assert np.std(errors) < 1.2 * np.sqrt(np.mean([j * (1 - j) for j in truth]) / (BANDS * BAND_VALUES))


def test_a_sketch_is_of_a_set_and_of_a_union_the_least() -> None:
    rng = np.random.default_rng(1)
    for count in (3, 100, 5000):
        hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
        (whole,) = minhash(hashes, np.array([0, count]))
        twice = rng.permutation(np.concatenate([hashes, hashes[: count // 2]]))
        assert np.array_equal(minhash(twice, np.array([0, len(twice)]))[0], whole)
        parts = minhash(hashes, np.array([0, count // 3, count]))
        assert np.array_equal(parts.min(0), whole)


def test_bands_find_as_often_as_the_formula_says() -> None:
    rng = random.Random(2)
    for share, low, high in ((0.0, 0.7, 1.0), (0.02, 0.7, 1.0), (0.05, 0.4, 0.8), (0.3, 0.0, 0.2)):
        pairs = []
        for _ in range(100):
            one = random_text(rng, 500)
            pairs += [one, edited(rng, one, share)]
        keys = near_bands(pairs)
        found = (keys[0::2] == keys[1::2]).any(1).mean()
        true = [jaccard(one, other) for one, other in zip(pairs[0::2], pairs[1::2], strict=True)]
        assert low <= min(true) <= max(true) <= high
        assert abs(found - np.mean([1 - (1 - j**BAND_VALUES) ** BANDS for j in true])) < 0.15


def test_bands_of_a_text_do_not_depend_on_its_company() -> None:
    rng = random.Random(3)
    texts = [random_text(rng, rng.randrange(0, 60)) for _ in range(600)] + ["", "短", "，。", "雅言"]
    together = near_bands(texts)
    assert together.shape == (len(texts), BANDS)
    assert together.dtype == np.uint64
    for i in (0, 1, 254, 255, 256, 599, 600, 601, 602, 603):
        assert np.array_equal(near_bands([texts[i]])[0], together[i])
    assert near_bands([]).shape == (0, BANDS)


def test_short_texts_are_duplicates_of_their_equals_alone() -> None:
    short = ["", "，", "。", "短", "长", "短长", "长短", "短长短", "短长短长", "a b c", "a b d", "ab c"]
    keys = near_bands(short)
    assert len(np.unique(keys)) == keys.size  # no band in common, of one text or of two
    assert share_a_band("短，长。", "短 长")


def test_a_long_text_goes_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    text = random_text(random.Random(4), 3000)
    whole = near_bands([text])
    for size in (1000, 2999):
        monkeypatch.setattr(shingles, "BLOCK_CHARACTERS", size)
        monkeypatch.setattr(shingles, "LONGEST_WORD", 100)
        monkeypatch.setattr(duplicates, "BLOCK_CHARACTERS", size)
        assert np.array_equal(near_bands([text]), whole)
    monkeypatch.setattr(duplicates, "BLOCK_CHARACTERS", 3)
    assert np.array_equal(near_bands(["，，，，，", "短，，，"]), near_bands(["，，，，，", "短"]))


def test_the_values_are_those_that_were_stored_before() -> None:
    assert near_bands(["雅言，是古人读书时说的标准话。"])[0, :2].tolist() == [
        9501693896375623855,
        8794391565742292624,
    ]


@needs_shared
def test_provinces_copy_each_others_laws() -> None:
    texts = [item.text for item in documents([SHARED / "data/zh-laws/heldout.jsonl.xz"])]
    keys = near_bands(texts)
    for i, one in enumerate(texts):
        for j in range(i):
            if (keys[i] == keys[j]).any():
                assert jaccard(one, texts[j]) > 0.4, (i, j)
            else:
                assert jaccard(one, texts[j]) < 0.85, (i, j)


def test_a_missing_library_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(UserError, match=r"rensa is not installed: pip install 'yayan\[clean\]'\."):
        near_bands(["雅言"])
