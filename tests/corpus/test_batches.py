"""Batches: every token a target exactly once an epoch, nothing seen across documents, resumed as if never stopped."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from yayan.corpus.batches import IGNORED, Batch, Mixture, Source
from yayan.corpus.shards import Shards
from yayan.errors import UserError

PAD = 7_777_777
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30).filter(lambda lengths: max(lengths) > 1)


def make_shards(lengths: list[int], mask: np.ndarray | None = None, tokenizer: str = "t") -> Shards:
    """Shards whose token i of all has the id i, so that an id tells where it stands."""
    ids = np.arange(sum(lengths), dtype=np.uint32)
    starts = np.cumsum(lengths) - lengths
    learned = np.ones(len(ids), bool) if mask is None else mask == 1
    learned[starts] = False
    index = {"tokenizer": tokenizer, "targets": int(learned.sum())}
    return Shards(Path("shards"), index, ids, mask, np.array(lengths, np.int64))


def mix(shards: list[Shards], shares: list[float], length: int, batch: int = 2, seed: int = 0) -> Mixture:
    return Mixture(shards, shares, sequence_length=length, batch_size=batch, seed=seed, pad_id=PAD)


def rows_of(batches: list[Batch]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    return [row for b in batches for row in zip(b.ids, b.targets, b.positions, strict=True)]


def epoch_of(mixture: Mixture, epoch: int = 0) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    count = mixture.sequences_per_epoch[0]
    steps = -(-count * (epoch + 1) // mixture.batch_size)
    return rows_of([batch for batch, _ in islice(mixture.batches(), steps)])[
        count * epoch : count * (epoch + 1)
    ]


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(1, 16), st.integers(1, 3), st.integers(0, 5), st.integers(0, 2))
def test_each_token_but_a_document_s_first_is_a_target_once_an_epoch(
    lengths: list[int], sequence_length: int, batch: int, seed: int, epoch: int
) -> None:
    mixture = mix([make_shards(lengths)], [1], sequence_length, batch, seed)
    rows = epoch_of(mixture, epoch)
    targets = Counter(int(t) for _, row, _ in rows for t in row if t != IGNORED)
    starts = set((np.cumsum(lengths) - lengths).tolist())
    assert targets == Counter(i for i in range(sum(lengths)) if i not in starts)
    assert mixture.targets_per_epoch == mixture.tokens_per_epoch == [targets.total()]
    assert mixture.steps(epoch + 1) == -(-len(rows) * (epoch + 1) // batch)


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(1, 16), st.data())
def test_under_a_mask_its_tokens_are_the_targets(
    lengths: list[int], sequence_length: int, data: st.DataObject
) -> None:
    total = sum(lengths)
    flags = data.draw(st.lists(st.integers(0, 1), min_size=total, max_size=total))
    mask = np.array(flags, np.uint8)
    starts = set((np.cumsum(lengths) - lengths).tolist())
    wanted = Counter(i for i in range(total) if flags[i] and i not in starts)
    shards = make_shards(lengths, mask)
    if not wanted:
        return
    mixture = mix([shards], [1], sequence_length)
    rows = epoch_of(mixture)
    assert Counter(int(t) for _, row, _ in rows for t in row if t != IGNORED) == wanted
    assert mixture.targets_per_epoch == [wanted.total()]
    dropped = mixture.describe()[0]["context_dropped"]
    assert mixture.tokens_per_epoch == [total - len(lengths) - int(str(dropped))]


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(1, 16))
def test_a_sequence_is_made_of_pieces_that_begin_at_position_0(
    lengths: list[int], sequence_length: int
) -> None:
    document = np.repeat(np.arange(len(lengths)), lengths)
    for ids, targets, positions in epoch_of(mix([make_shards(lengths)], [1], sequence_length)):
        assert positions[0] == 0
        begins = np.append(np.flatnonzero(positions == 0), sequence_length)
        for start, end in zip(begins[:-1], begins[1:], strict=True):
            assert positions[start:end].tolist() == list(range(end - start))
            if ids[start] == PAD:
                assert end == sequence_length
                assert set(ids[start:end]) == {PAD}
                assert set(targets[start:end]) == {IGNORED}
            else:
                assert targets[start:end].tolist() == (ids[start:end] + 1).tolist()
                assert len(set(document[ids[start] : targets[end - 1] + 1])) == 1


@settings(max_examples=100, deadline=None)
@given(LENGTHS, LENGTHS, st.integers(1, 12), st.integers(1, 4), st.integers(0, 12), st.integers(0, 3))
def test_resumed_is_uninterrupted(
    one: list[int], two: list[int], sequence_length: int, batch: int, stop: int, seed: int
) -> None:
    def build() -> Mixture:
        return mix([make_shards(one), make_shards(two)], [0.8, 0.2], sequence_length, batch, seed)

    whole = list(islice(build().batches(), stop + 9))
    state = whole[stop - 1][1] if stop else None
    resumed = list(islice(build().batches(json.loads(json.dumps(state))), 9))
    for (wanted, wanted_state), (found, found_state) in zip(whole[stop:], resumed, strict=True):
        assert wanted_state == found_state
        for name in ("ids", "targets", "positions"):
            np.testing.assert_array_equal(getattr(wanted, name), getattr(found, name))


def test_an_epoch_has_its_own_order_and_a_seed_its_own_plan() -> None:
    lengths = list(range(2, 40)) * 3
    mixture = mix([make_shards(lengths)], [1], 16)
    first, second = ([row[0].tolist() for row in epoch_of(mixture, epoch)] for epoch in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second)
    other = [row[0].tolist() for row in epoch_of(mix([make_shards(lengths)], [1], 16, seed=1))]
    assert sorted(other) != sorted(first)


def test_an_over_long_chat_keeps_its_answers() -> None:
    mask = np.zeros(100, np.uint8)
    mask[90:] = 1
    (ids, targets, _), *others = epoch_of(mix([make_shards([100], mask)], [1], 30, batch=1))
    assert not others
    assert ids.tolist() == list(range(69, 99))
    assert targets.tolist() == [IGNORED] * 20 + list(range(90, 100))
    mask[10:12] = 1  # an earlier answer has all that stands before it
    mixture = mix([make_shards([100], mask)], [1], 30, batch=1)
    rows = sorted((row[0].tolist(), row[1].tolist()) for row in epoch_of(mixture))
    assert rows[0][0] == [*range(11), *[PAD] * 19]
    assert rows[0][1] == [IGNORED] * 9 + [10, 11] + [IGNORED] * 19
    assert rows[1:] == [(ids.tolist(), targets.tolist())]
    assert mixture.describe()[0]["context_dropped"] == 99 - 11 - 30


@pytest.mark.parametrize("shares", [[0.8, 0.2], [3, 1, 1], [1, 1000]])
def test_a_mixture_keeps_the_shares_of_tokens(shares: list[float]) -> None:
    shards = [make_shards([5 + i, 40, 9, 17 * (i + 1)]) for i in range(len(shares))]
    mixture = mix(shards, shares, 32, batch=3)
    for i, item in enumerate(shards):
        item.ids[:] = i
    given = np.zeros(len(shards))
    for batch, state in islice(mixture.batches(), 400):
        given += [np.count_nonzero(batch.ids == i) for i in range(len(shards))]
        assert state["tokens"] == given.tolist()
        assert np.abs(np.array(shares) / sum(shares) * given.sum() - given).max() <= 32 * len(shares)


def test_changing_one_document_changes_no_logit_of_another() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=97, max_position_embeddings=64, **sizes)).eval()
    shards = make_shards([12, 2, 30, 7, 3, 2, 21, 18])
    shards.ids[:] = np.random.default_rng(0).integers(1, 97, len(shards.ids))
    mixture = Mixture([shards], [1], sequence_length=24, batch_size=4, seed=0, pad_id=0)
    pieces = 0
    with torch.no_grad():
        for batch, _ in islice(mixture.batches(), mixture.steps(1)):
            ids, positions = (torch.from_numpy(part).long() for part in (batch.ids, batch.positions))
            packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits
            for row in range(len(ids)):
                begins = [*torch.nonzero(positions[row] == 0).flatten().tolist(), 24]
                for start, end in zip(begins[:-1], begins[1:], strict=True):
                    alone = model(input_ids=ids[row : row + 1, start:end]).logits[0]
                    torch.testing.assert_close(packed[row, start:end], alone, atol=1e-5, rtol=0)
                    pieces += 1
    assert pieces > 10


@pytest.mark.parametrize(
    ("shares", "length", "batch", "seed", "sentence"),
    [
        ([1.0], 8, 1, 0, "2 shards folders and 1 shares"),
        ([1.0, 0.0], 8, 1, 0, "not all above 0"),
        ([1.0, float("nan")], 8, 1, 0, "not all above 0"),
        ([1.0, 1.0], 0, 1, 0, "at least 1"),
        ([1.0, 1.0], 8, 0, 0, "at least 1"),
        ([1.0, 1.0], 8, 1, -1, "the seed at least 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    shares: list[float], length: int, batch: int, seed: int, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        mix([make_shards([5]), make_shards([6])], shares, length, batch, seed)


def test_shards_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="another tokenizer than"):
        mix([make_shards([5]), make_shards([6], tokenizer="u")], [1, 1], 8)
    with pytest.raises(UserError, match="nothing to learn"):
        Source(make_shards([1, 1]), 8, [0])
    with pytest.raises(UserError, match="begun with other shards"):
        next(mix([make_shards([5])], [1], 8).batches({"sequences": [0, 0], "tokens": [0, 0]}))
