"""Initialisations against plain float64 computations on random rows, at odd sizes."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from tests.tiny import PIECES, make_tokenizer
from tests.vocab.conftest import texts_of
from yayan.errors import UserError
from yayan.tokenizer import Tokenizer, load_tokenizer
from yayan.vocab import init
from yayan.vocab import sample as sample_module
from yayan.vocab.init import Mixes, cut_new_tokens, make_mixes, new_rows, sample_texts

NEW = ["<pad>", "你好", "bcd", "▁a世", "猫", "好好"]
SIZE = len(PIECES)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# "你好" is used as 世 and 界 are, between a and b.
TEXTS = ["a你好ba世ba界ba你好b" * 3, "ea世ba你好ba界b" * 4, "c好d e好c d好e " * 5]


@pytest.fixture(params=[1, 3, 1 << 20])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of all sizes must give the same."""
    monkeypatch.setattr(init, "BLOCK_ROWS", request.param)
    monkeypatch.setattr(init, "BLOCK_WEIGHTS", request.param)


def some_rows(rows: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return (torch.randn(rows, 5, generator=generator) * 0.3 + 0.1).to(dtype)


def some_mixes(tokens: int, rows: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mixes of 0 to 8 rows, the last token's of none."""
    rng = np.random.default_rng(tokens)
    lengths = [*rng.integers(0, 9, tokens - 1), 0]
    return [(rng.integers(0, rows, n), rng.random(n).astype(np.float32) + 0.01) for n in lengths]


def all_rows(*arguments: object, **options: object) -> torch.Tensor:
    return torch.cat(list(new_rows(*arguments, **options)))  # type: ignore[arg-type]


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("dtype", DTYPES)
def test_mixes_are_weighted_means(dtype: torch.dtype) -> None:
    """Also where tokens have weights of any sum, or none: these start as the mean of the rows that have a token."""
    rows, mixes, ids = some_rows(23, dtype), some_mixes(17, 23), np.array([*range(5), *range(7, 21)])
    found = all_rows(rows, ids, 17, "similar", mixes=Mixes.join(mixes))
    assert found.dtype == torch.float32
    for row, (places, weights) in zip(found, mixes, strict=True):
        wanted = rows.double()[ids].mean(0)
        if len(places):
            shares = torch.from_numpy(weights).double() / float(weights.astype(float).sum())
            wanted = (shares[:, None] * rows.double()[places]).sum(0)
        torch.testing.assert_close(row.double(), wanted, rtol=1e-6, atol=1e-6)


def test_mixes_of_no_token_at_all() -> None:
    mixes = Mixes.join([(np.empty(0), np.empty(0))] * 3)
    rows = some_rows(4)
    wanted = rows.double().mean(0).float().expand(3, -1)
    torch.testing.assert_close(all_rows(rows, np.arange(4), 3, "similar", mixes=mixes), wanted)


@pytest.mark.usefixtures("blocks")
def test_mean() -> None:
    rows, ids = some_rows(31, torch.bfloat16), np.array([0, 2, 3, 29])
    found = all_rows(rows, ids, 7, "mean")
    torch.testing.assert_close(found.double(), rows.double()[ids].mean(0).expand(7, -1), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["noisy_mean", "noise"])
def test_noise_has_its_mean_and_deviation_in_each_dimension(name: str) -> None:
    rows = some_rows(41) * torch.tensor([1.0, 2.0, 5.0, 0.1, 0.0])
    ids, count = np.arange(37), 20_001
    found = all_rows(rows, ids, count, name, deviation=0.4, seed=3).double()
    old = rows[:37].double()
    mean, deviation = torch.zeros(5).double(), torch.full((5,), 0.4).double()
    if name == "noisy_mean":
        mean, deviation = old.mean(0), init.NOISE_SHARE * old.std(0, correction=0)
    assert ((found.mean(0) - mean).abs() <= 5 * deviation / count**0.5 + 1e-7).all()
    torch.testing.assert_close(found.std(0), deviation, rtol=0.03, atol=1e-7)
    correlation = torch.corrcoef(found[:, :4].T) - torch.eye(4)
    assert correlation.abs().max() < 0.04
    assert torch.equal(found, all_rows(rows, ids, count, name, deviation=0.4, seed=3).double())
    assert not torch.equal(found, all_rows(rows, ids, count, name, deviation=0.4, seed=4).double())


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Tokenizer, Tokenizer]:
    make_tokenizer(tmp_path / "old")
    make_tokenizer(tmp_path / "new", NEW)
    return load_tokenizer(tmp_path / "old"), load_tokenizer(tmp_path / "new")


def parts(mixes: Mixes | None) -> list[tuple[list[int], list[float]]]:
    """Ids and weights, token by token."""
    assert mixes is not None
    ranges = [slice(a, b) for a, b in zip(mixes.first, mixes.first[1:], strict=False)]
    return [(mixes.ids[where].tolist(), mixes.weights[where].tolist()) for where in ranges]


def test_pieces_weigh_alike_or_by_their_rarity(pair: tuple[Tokenizer, Tokenizer]) -> None:
    """SIF weights a / (a + p) with p counted in the text as the old tokenizer cuts it."""
    old, new = pair
    cuts = cut_new_tokens(old, new)
    assert parts(make_mixes("mean_of_pieces", old, new, (), 0)) == [(cut, [1.0] * len(cut)) for cut in cuts]
    counts = Counter(number for text in TEXTS for number in old.encode(text))
    found = parts(make_mixes("weighted_mean_of_pieces", old, new, TEXTS, 0))
    for (ids, weights), cut in zip(found, cuts, strict=True):
        assert ids == cut
        wanted = [1e-3 / (1e-3 + counts[number] / counts.total()) for number in cut]
        assert weights == pytest.approx(wanted, rel=1e-6)
    you, good = found[1][1]
    assert you != good


def test_what_the_sample_does_not_hold_starts_from_its_pieces(pair: tuple[Tokenizer, Tokenizer]) -> None:
    old, _ = pair
    new = with_word(pair[1])
    pieces = parts(make_mixes("mean_of_pieces", old, new, (), 0))
    found = parts(make_mixes("similar", old, new, TEXTS, 0))
    assert [mix for i, mix in enumerate(found) if i != 1] == [mix for i, mix in enumerate(pieces) if i != 1]
    ids, weights = found[1]
    share = dict(zip(ids, weights, strict=True))
    assert sum(weights) == pytest.approx(1, abs=1e-5)
    assert share[PIECES.index("世")] + share[PIECES.index("界")] > 0.5
    again = make_mixes("similar", old, new, TEXTS, 0)
    assert parts(again) == found


def with_word(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a merge that makes 你好, so that texts hold it."""
    state = json.loads(tokenizer.fast.to_str())
    state["model"]["merges"].append(["你", "好"])
    fast = FastTokenizer.from_str(json.dumps(state))
    return Tokenizer(fast=fast, plain=fast, bos_id=1, eos_id=2, pad_id=SIZE, template=None)


@pytest.mark.parametrize("name", ["mean", "noisy_mean", "noise"])
def test_noise_and_mean_have_no_mixes(pair: tuple[Tokenizer, Tokenizer], name: init.Init) -> None:
    assert make_mixes(name, *pair, (), 0) is None


def test_byte_level_tokens_are_cut_by_their_bytes() -> None:
    """Tokens are in the byte alphabet, not in the text's: Ġ is a space, and 中 is three letters."""
    old_fast, new_fast = byte_level(300), byte_level(380)
    old, new = (Tokenizer(f, f, None, 0, None, None) for f in (old_fast, new_fast))
    assert (old.size, new.size) == (300, 380)
    cuts = cut_new_tokens(old, new)
    assert all(len(cut) > 1 for cut in cuts)
    vocab = {number: token for token, number in old_fast.get_vocab().items()}
    for number, cut in enumerate(cuts, start=300):
        assert "".join(vocab[piece] for piece in cut) == new.token(number)
        if new.token(number).startswith("Ġ") and new.decode([number]).strip().isascii():
            assert cut == old.encode(new.decode([number]))
    assert any("\u4e00" <= new.decode([number]) <= "\u9fff" for number in range(300, 380))


def byte_level(size: int) -> FastTokenizer:
    """A BPE in GPT-2's manner; a larger one goes on where a smaller one stopped."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    texts = [text for name in ("en-train.jsonl", "zh-train.jsonl") for text in texts_of(name)[:20]]
    fast.train_from_iterator(texts, trainer)
    return fast


def test_a_sample_is_spread_over_the_corpus_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps({"body": f"{i:03}" + "x" * 50}) + "\n" for i in range(300)))
    assert len(sample_texts([file], "body")) == 300
    monkeypatch.setattr(init, "SAMPLE_CHARACTERS", 200)
    monkeypatch.setattr(sample_module, "LONGEST_SHARE", 10)
    sample = sample_texts([file], "body")
    assert [text[:3] for text in sample] == [
        "000",
        "032",
        "064",
        "096",
        "128",
        "160",
        "192",
        "224",
        "256",
        "288",
    ]
    assert {len(text) for text in sample} == {20}
    file.write_text(json.dumps({"body": ""}) + "\n")
    with pytest.raises(UserError, match="the corpus is empty"):
        sample_texts([file], "body")
