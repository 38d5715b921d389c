"""Batches: every token a target exactly once an epoch, nothing seen across documents, resumed as if never stopped."""

import json
import threading
from collections import Counter
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import make_model, make_shards
from yayan.corpus.batches import IGNORED, Batch, Mixture, Source
from yayan.corpus.shards import Shards
from yayan.errors import UserError
from yayan.model.ends import TwoEnds
from yayan.model.load import load_model

PAD = 7_777_777
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30).filter(lambda lengths: max(lengths) > 1)


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


def same_batch(one: Batch, other: Batch) -> None:
    for name, array in vars(one).items():
        np.testing.assert_array_equal(array, getattr(other, name))


RANKS = st.sampled_from([(1, 1), (2, 2), (2, 1), (3, 3), (4, 2), (6, 3), (6, 6), (6, 1)])  # batch size, ranks


@settings(max_examples=100, deadline=None)
@given(LENGTHS, LENGTHS, st.integers(1, 12), RANKS, st.integers(0, 2), st.integers(0, 12), st.integers(0, 3))
def test_resumed_is_uninterrupted_whatever_the_ranks_and_workers(
    one: list[int],
    two: list[int],
    sequence_length: int,
    batch_and_ranks: tuple[int, int],
    workers: int,
    stop: int,
    seed: int,
) -> None:
    batch, ranks = batch_and_ranks

    def build() -> Mixture:
        return mix([make_shards(one), make_shards(two)], [0.8, 0.2], sequence_length, batch, seed)

    whole = list(islice(build().batches(), stop + 9))
    state = json.loads(json.dumps(whole[stop - 1][1])) if stop else None
    streams = [build().batches(state, rank=rank, ranks=ranks, workers=workers) for rank in range(ranks)]
    for (wanted, wanted_state), *parts in zip(whole[stop:], *streams, strict=False):
        assert all(found_state == wanted_state for _, found_state in parts)
        assert all(len(part.ids) == batch // ranks for part, _ in parts)
        arrays = [np.concatenate([getattr(part, name) for part, _ in parts]) for name in vars(wanted)]
        same_batch(wanted, Batch(*arrays))


def test_of_two_streams_of_one_mixture_neither_disturbs_the_other() -> None:
    mixture = mix([make_shards([9, 4, 30, 12, 7] * 9)], [1], 8)
    wanted = [batch for batch, _ in islice(mixture.batches(), 40)]
    for one, other, batch in zip(mixture.batches(), mixture.batches(workers=2), wanted, strict=False):
        same_batch(one[0], batch)
        same_batch(other[0], batch)


def test_workers_pass_errors_on_and_end_with_the_stream() -> None:
    before = threading.active_count()  # other tests' libraries may have one that watches
    shards = make_shards([9, 4, 30, 12, 7] * 9)
    with closing(mix([shards], [1], 8).batches(workers=2)) as stream:
        next(stream)
        assert threading.active_count() > before
    assert threading.active_count() == before
    shards.ids.resize(150, refcheck=False)  # as if the file were shorter than its index
    with pytest.raises(ValueError, match="broadcast"):
        list(islice(mix([shards], [1], 8).batches(workers=2), 100))
    assert threading.active_count() == before


def test_a_state_of_other_data_is_refused() -> None:
    def build(**changes: Any) -> Mixture:
        options: dict[str, Any] = {"shards": [make_shards([5, 9]), make_shards([6])], "shares": [8, 2]}
        options |= {"sequence_length": 8, "batch_size": 2, "seed": 0, "pad_id": PAD} | changes
        return Mixture(options.pop("shards"), options.pop("shares"), **options)

    state = next(build().batches())[1]
    build(shares=[0.8, 0.2]).batches(state)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"sequence_length": 9}, "with another sequence length, 8 and not 9"),
        ({"batch_size": 4}, "with another batch size, 2 and not 4"),
        ({"seed": 1}, "with another seed, 0 and not 1"),
        ({"shares": [7, 3]}, r"with other shares, \[0.8, 0.2\] and not \[0.7, 0.3\]"),
        ({"shards": [make_shards([9, 5]), make_shards([6])]}, "with other shards:"),
        ({"shards": [make_shards([6]), make_shards([5, 9])]}, "with other shards:"),
    ]
    for changes, words in cases:
        with pytest.raises(UserError, match=words):
            build(**changes).batches(state)
    with pytest.raises(UserError, match="3 sequences .* rank 0 of 2"):
        build(batch_size=3).batches(ranks=2)
    with pytest.raises(UserError, match="2 sequences .* rank 2 of 2"):
        build().batches(rank=2, ranks=2)


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


@settings(max_examples=200, deadline=None)
@given(LENGTHS, LENGTHS, st.integers(1, 20), st.floats(0.01, 0.99), st.data())
def test_of_two_sources_every_stretch_of_the_stream_has_its_share_within_a_sequence(
    one: list[int], two: list[int], sequence_length: int, share: float, data: st.DataObject
) -> None:
    mixture = mix([make_shards(one), make_shards(two)], [share, 1 - share], sequence_length, batch=1)
    taken = np.array([[0, 0], *(state["tokens"] for _, state in islice(mixture.batches(), 60))])
    ahead = taken[:, 0] - mixture.shares[0] * taken.sum(1)
    assert ahead.max() - ahead.min() <= sequence_length * (1 + 1e-9)  # so between any two places


@pytest.mark.parametrize("shares", [[0.8, 0.2], [3, 1, 1], [1, 1000], [4, 3, 2, 1]])
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


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> TwoEnds:
    """A tiny model as training holds it: attention by torch's SDPA, the rows of the ends in two parts."""
    folder = tmp_path_factory.mktemp("model")
    make_model(folder, rows=97)
    torch.set_num_threads(1)
    return TwoEnds(load_model(folder), 80).eval()


def logits_of(ends: TwoEnds, batch: Batch, dtype: torch.dtype, *, restart: bool = True) -> np.ndarray:
    """Logits [B, T, V] of a batch, computed as a step of training computes them."""
    ids, positions = (torch.from_numpy(part).long() for part in (batch.ids, batch.positions))
    if not restart:
        positions = torch.arange(ids.shape[1]).expand_as(ids)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        return ends.logits(ends.hidden(ids, positions)).float().numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_changing_one_document_changes_no_logit_of_another(ends: TwoEnds, dtype: torch.dtype) -> None:
    """Bitwise: what stands before and behind in the sequence has a weight of exactly 0 in the attention."""
    lengths = [12, 2, 30, 7, 3, 2, 8, 4, 60, 6, 5, 9]
    document = np.repeat(np.arange(len(lengths)), lengths)
    places, before = make_shards(lengths), make_shards(lengths)
    before.ids[:] = np.random.default_rng(0).integers(1, 97, len(document))
    crossed = 0
    for changed in range(len(lengths)):
        after = make_shards(lengths)
        after.ids[:] = np.where(document == changed, 97 - before.ids, before.ids)
        streams = [
            Mixture([shards], [1], sequence_length=24, batch_size=4, seed=0, pad_id=0).batches()
            for shards in (places, before, after)
        ]
        for (where, _), (one, _), (other, _) in islice(zip(*streams, strict=True), 2):
            padding = (where.ids == 0) & (where.targets == IGNORED)
            own = (document[where.ids] == changed) & ~padding
            same = (logits_of(ends, one, dtype) == logits_of(ends, other, dtype)).all(-1)
            assert same[~own].all()
            assert not same[own].any()
            leaking = [logits_of(ends, batch, dtype, restart=False) for batch in (one, other)]
            crossed += int((leaking[0] != leaking[1]).any(-1)[~own].sum())
    assert crossed > 100  # one document for each sequence: the instrument shows what leaks


def test_a_packed_document_has_the_logits_it_has_alone(ends: TwoEnds) -> None:
    shards = make_shards([12, 2, 30, 7, 3, 2, 21, 18])
    shards.ids[:] = np.random.default_rng(0).integers(1, 97, len(shards.ids))
    mixture = Mixture([shards], [1], sequence_length=24, batch_size=4, seed=0, pad_id=0)
    pieces = 0
    for batch, _ in islice(mixture.batches(), mixture.steps(1)):
        packed = logits_of(ends, batch, torch.float32)
        for row in range(len(packed)):
            begins = [*np.flatnonzero(batch.positions[row] == 0), 24]
            for start, end in zip(begins[:-1], begins[1:], strict=True):
                piece = Batch(*(part[row : row + 1, start:end] for part in vars(batch).values()))
                alone = logits_of(ends, piece, torch.float32)[0]
                np.testing.assert_allclose(packed[row, start:end], alone, atol=1e-5, rtol=0)
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
