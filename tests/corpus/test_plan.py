"""The plan: pieces that cover the documents, packed as Johnson packs, in little time and memory."""

import time
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yayan.corpus import plan as module
from yayan.corpus.plan import Plan, best_fit, cut_chats, make_plan

SIZES = st.integers(1, 20).flatmap(
    lambda capacity: st.tuples(st.just(capacity), st.lists(st.integers(1, capacity), max_size=60))
)


@settings(max_examples=500, deadline=None)
@given(SIZES)
def test_best_fit_is_johnson_s(question: tuple[int, list[int]]) -> None:
    capacity, sizes = question
    sizes = sorted(sizes, reverse=True)
    rooms: list[int] = []
    for size in sizes:
        fitting = [room for room in rooms if room >= size]
        if fitting:
            rooms[rooms.index(min(fitting))] -= size
        else:
            rooms.append(capacity - size)
    found, placed = [], []
    for bins in best_fit(np.bincount(np.array(sizes, int), minlength=capacity + 1), capacity):
        for b in range(bins.count):
            items = [range(first + b * each, first + (b + 1) * each) for _, first, each in bins.parts]
            assert all(
                sizes[i] == part[0] for part, some in zip(bins.parts, items, strict=True) for i in some
            )
            placed += list(chain(*items))
            found.append(capacity - sum(sizes[i] for i in chain(*items)))
            assert found[-1] == bins.room >= 0
    assert sorted(placed) == list(range(len(sizes)))
    assert sorted(found) == sorted(rooms)


def pieces_of(plan: Plan) -> list[tuple[int, int]]:
    return [piece for sequence in range(plan.sequences) for piece in plan.pieces(sequence)]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 20), st.integers(1, 9))
def test_pieces_are_whole_documents_as_far_as_they_fit(
    lengths: list[int], sequence_length: int, at_once: int
) -> None:
    wanted = [
        (offset + begin, min(length - 1 - begin, sequence_length))
        for offset, length in zip((np.cumsum(lengths) - lengths).tolist(), lengths, strict=True)
        for begin in range(0, length - 1, sequence_length)
    ]
    with pytest.MonkeyPatch.context() as patch:
        plan = make_plan(np.array(lengths, np.uint32), None, sequence_length, [0])
        patch.setattr(module, "STRETCHES_AT_ONCE", at_once)
        again = make_plan(np.array(lengths, np.int64), None, sequence_length, [0])
    assert sorted(pieces_of(plan)) == wanted
    assert pieces_of(again) == pieces_of(plan)
    for sequence in range(plan.sequences):
        assert plan.filled(sequence) == sum(size for _, size in plan.pieces(sequence)) <= sequence_length
    assert plan.positions == sum(lengths) - len(lengths)
    assert plan.continued_documents == sum(length - 1 > sequence_length for length in lengths)


def test_rests_of_equal_size_are_shuffled() -> None:
    plan = make_plan(np.full(1000, 9), None, 16, [0])
    pairs = [[start // 9 for start, _ in plan.pieces(sequence)] for sequence in range(plan.sequences)]
    assert np.mean([abs(one - other) for one, other in pairs]) > 250  # 333 at random, 1 in their order
    assert [start for start, _ in pieces_of(make_plan(np.full(1000, 9), None, 16, [1]))] != sum(pairs, [])


def cut_one_chat(offset: int, mask: list[int], sequence_length: int) -> list[tuple[int, int]]:
    """The definition: from the end, a piece ends with the last target that is not in one yet."""
    targets = [i for i, flag in enumerate(mask) if flag and i]
    pieces = []
    while targets:
        start = max(targets[-1] - sequence_length, 0)
        pieces.append((offset + start, targets[-1] - start))
        targets = [target for target in targets if target <= start]
    return pieces


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 16), st.data())
def test_over_long_chats_are_cut_from_their_end(
    lengths: list[int], sequence_length: int, data: st.DataObject
) -> None:
    total = sum(lengths)
    mask = np.array(data.draw(st.lists(st.integers(0, 1), min_size=total, max_size=total)), np.uint8)
    offsets = np.cumsum(lengths) - lengths
    long = np.flatnonzero(np.array(lengths) - 1 > sequence_length)
    if not len(long):
        return
    wanted = []
    for offset, length in zip(offsets[long].tolist(), np.array(lengths)[long].tolist(), strict=True):
        wanted += cut_one_chat(offset, mask[offset : offset + length].tolist(), sequence_length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHAT_TOKENS_BETWEEN", data.draw(st.integers(0, 50)))
        patch.setattr(module, "CHAT_TOKENS_AT_ONCE", data.draw(st.integers(1, 200)))
        start, size = cut_chats(offsets[long], np.array(lengths)[long], mask, sequence_length)
    assert sorted(zip(start.tolist(), size.tolist(), strict=True)) == sorted(wanted)


def test_two_million_documents_are_planned_in_a_moment_and_in_20_bytes_each() -> None:
    rng = np.random.default_rng(0)
    lengths = 1 + rng.lognormal(5, 1.3, 2_000_000).astype(np.uint32)
    started = time.process_time()
    plan = make_plan(lengths, None, 512, [0])
    assert time.process_time() - started < 2  # 0.1 s on an idle core
    assert plan.start.nbytes + plan.whole.nbytes + plan.order.nbytes < 17 * len(lengths)
    assert len(plan.bins) < 4 * 512
    assert plan.positions == lengths.sum() - len(lengths)
    assert plan.positions / (plan.sequences * 512) > 0.999
    assert plan.continued_documents == np.count_nonzero(lengths > 513)


def test_a_hundred_thousand_over_long_chats_are_cut_in_a_moment() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(100, 400, 100_000).astype(np.uint32)
    mask = (rng.random(lengths.sum()) < 0.5).astype(np.uint8)
    started = time.process_time()
    plan = make_plan(lengths, mask, 64, [0])
    assert time.process_time() - started < 5  # 0.3 s on an idle core
    assert plan.continued_documents == len(lengths)
