"""Joining: the array learner against a plain one that recounts all pairs after each join."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yayan.vocab.bpe import MAX_SYMBOLS, Learner

Text = Sequence[Sequence[str]]


def learner_of(
    text: Text, weights: Sequence[int], may_join: Callable[[str], bool] = lambda _: True, least: int = 1
) -> Learner:
    names = ["", *sorted({symbol for run in text for symbol in run})]
    symbols = [number for run in text for number in (*map(names.index, run), 0)]
    heavy = [
        weight for run, weight in zip(text, weights, strict=True) for weight in [weight] * (len(run) + 1)
    ]
    return Learner(np.array(symbols, np.int32), np.array(heavy, np.int32), names, may_join, least)


def pairs_of(run: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of neighbours; of overlapping equal ones every second."""
    found: list[tuple[str, str]] = []
    last = -2
    for place, pair in enumerate(zip(run, run[1:], strict=False)):
        overlaps = pair[0] == pair[1] and place == last + 1 and found[-1] == pair
        if not overlaps:
            found.append(pair)
            last = place
    return found


def put_together(run: Sequence[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    place = 0
    while place < len(run):
        joined = tuple(run[place : place + 2]) == pair
        out.append("".join(pair) if joined else run[place])
        place += 2 if joined else 1
    return out


def plain_joins(
    text: Text, weights: Sequence[int], may_join: Callable[[str], bool]
) -> list[tuple[str, str, str, int]]:
    """What the learner must find, by recounting everything after each join."""
    names = ["", *sorted({symbol for run in text for symbol in run})]
    runs: list[list[str]] = [list(run) for run in text]
    found: list[tuple[str, str, str, int]] = []
    while True:
        counts: Counter[tuple[str, str]] = Counter()
        for run, weight in zip(runs, weights, strict=True):
            for pair in pairs_of(run):
                counts[pair] += weight
        allowed = [pair for pair in counts if counts[pair] and may_join("".join(pair))]
        if not allowed:
            return found
        best = min(allowed, key=lambda pair: (-counts[pair], *map(names.index, pair)))
        name = "".join(best)
        if name not in names:
            names.append(name)
            found.append((name, *best, counts[best]))
            cuts = [best, *((name[:cut], name[cut:]) for cut in range(1, len(name)) if cut != len(best[0]))]
        else:
            cuts = [best]
        for cut in cuts:
            runs = [put_together(run, cut) for run in runs]


RUNS = st.lists(st.lists(st.sampled_from(["a", "b", "c", "ab", "bca"]), max_size=12), min_size=1, max_size=8)


@given(RUNS, st.data())
@settings(max_examples=300, deadline=None)
def test_the_joins_are_those_of_a_plain_learner(text: list[list[str]], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(0, 5), min_size=len(text), max_size=len(text)))
    longest = data.draw(st.integers(2, 20))

    def may_join(name: str) -> bool:
        return len(name) <= longest

    found = [
        (join.name, join.left, join.right, join.weight)
        for join in learner_of(text, weights, may_join).joins()
    ]
    assert found == plain_joins(text, weights, may_join)


@pytest.mark.parametrize(("run", "weight"), [("aa", 1), ("aaa", 1), ("aaaa", 2), ("aaaaa", 2)])
def test_overlapping_pairs_count_once(run: str, weight: int) -> None:
    first = next(learner_of([list(run)], [1]).joins())
    assert (first.name, first.weight) == ("aa", weight)


def test_nothing_is_joined_across_a_break_or_against_the_rule() -> None:
    text = [["a"], ["b"], ["a", "c"], ["c", "a"]]
    assert [join.name for join in learner_of(text, [9, 9, 1, 1], lambda name: name != "ca").joins()] == ["ac"]
    assert not list(learner_of([[], []], [1, 1]).joins())


def test_light_pairs_are_left_alone() -> None:
    text = [["a", "b"], ["c", "d"], ["c", "d"]]
    assert [join.name for join in learner_of(text, [2, 1, 1], least=2).joins()] == ["ab", "cd"]
    assert [join.name for join in learner_of(text, [2, 1, 2], least=3).joins()] == ["cd"]


def test_weights_decide_not_occurrences() -> None:
    text = [["a", "b"]] * 3 + [["c", "d"]]
    assert next(learner_of(text, [1, 1, 1, 4]).joins()).name == "cd"


def test_a_text_beyond_the_limits_is_refused() -> None:
    symbols = np.ones(3, np.int32)
    with pytest.raises(ValueError, match="too many"):
        Learner(symbols, symbols, [""] * (MAX_SYMBOLS + 1), lambda _: True)
