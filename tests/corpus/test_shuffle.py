"""An order that is computed: each number once, as good as random, the same block by block."""

from collections import Counter
from itertools import permutations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from yayan.corpus.shuffle import shuffled


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 600), st.lists(st.integers(0, 2**40), min_size=1, max_size=3), st.integers(20, 500))
def test_each_number_comes_once_in_whatever_blocks(count: int, seed: list[int], block: int) -> None:
    whole = shuffled(np.arange(count), count, seed)
    assert sorted(whole.tolist()) == list(range(count))
    places = np.split(np.arange(count), range(block, count, block))
    assert np.concatenate([shuffled(some, count, seed) for some in places]).tolist() == whole.tolist()


def test_all_orders_of_five_are_about_equally_frequent() -> None:
    seeds = 5_000
    found = Counter(tuple(shuffled(np.arange(5), 5, [seed]).tolist()) for seed in range(seeds))
    expected = seeds / 120
    squares = sum((found[order] - expected) ** 2 / expected for order in permutations(range(5)))
    assert squares < 180  # chi-squared of 119 degrees of freedom: 180 in 1 of 4,000 draws


def test_neighbours_of_many_are_no_neighbours_afterwards() -> None:
    count = 10**12 + 39
    found = shuffled(np.arange(7 * 10**11, 7 * 10**11 + 100_000), count, [1, 2]).astype(np.float64)
    assert found.max() < count
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    counts, _ = np.histogram(found, 100, (0, count))
    assert ((counts - 1000) ** 2 / 1000).sum() < 160  # 99 degrees of freedom: 1 of 10,000 draws
