"""What a corpus holds: counts, the weights of sources and runs, and what is forgotten."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yayan.errors import UserError
from yayan.vocab import count
from yayan.vocab.count import (
    HEAVIEST,
    UNIT,
    Source,
    character_weights,
    count_source,
    trim_sources,
    weigh_runs,
    weigh_sources,
)
from yayan.vocab.scripts import Wanted

HAN = Wanted(("han",))
RUNS = st.lists(st.text("天地玄黄 éa\U00020000", min_size=1, max_size=5), max_size=8)


def source_of(size: int) -> Source:
    return Source("", np.zeros(0, np.int64), size, 0)


def test_runs_are_counted_once_each() -> None:
    source = count_source(["天地，玄黄 abc 天地", "天地。", "", "no"], HAN)
    assert dict(zip(source.runs.split("\n"), source.counts.tolist(), strict=True)) == {
        "天地": 3,
        "，": 1,
        "玄黄": 1,
        "。": 1,
    }
    assert (source.characters, source.forgotten) == (10, 0)
    nothing = count_source(["no", ""], HAN)
    assert (nothing.runs, len(nothing.counts), nothing.characters) == ("", 0, 0)


@pytest.mark.parametrize(
    ("weights", "temperature", "shares"),
    [
        (None, 1.0, [0.9, 0.1, 0]),
        (None, 2.0, [0.75, 0.25, 0]),
        (None, float("inf"), [0.5, 0.5, 0]),
        ([1.0, 3.0, 4.0], 2.0, [0.25, 0.75, 0]),  # nothing is there of the third, whatever it weighs
        ([0.0, 2.0, 0.0], 2.0, [0, 1, 0]),
    ],
)
def test_sources_have_their_shares(
    weights: list[float] | None, temperature: float, shares: list[float]
) -> None:
    sizes = [900, 100, 0]
    factors = weigh_sources([source_of(size) for size in sizes], weights, temperature)
    found = np.array(factors) * sizes
    assert found.sum() == pytest.approx(sum(sizes))  # the mean over all characters is 1
    assert found / sum(sizes) == pytest.approx(shares)
    assert all(np.isfinite(factors))


def test_sources_of_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="no character of the wanted scripts"):
        weigh_sources([source_of(0)], None, 2.0)
    with pytest.raises(UserError, match="only sources of weight 0"):
        weigh_sources([source_of(5), source_of(0)], [0.0, 1.0], 2.0)


def test_runs_weigh_at_least_one_unit_and_never_too_much() -> None:
    source = Source("a\nb\nc\nd", np.array([1, 3, 10**9, 10**15]), 0, 0)
    assert weigh_runs(source, 1.0).tolist() == [UNIT, 3 * UNIT, HEAVIEST, HEAVIEST]
    assert weigh_runs(source, 1e-9).tolist()[:2] == [1, 1]
    assert weigh_runs(source, 1e12).tolist() == [HEAVIEST] * 4
    assert weigh_runs(source, 0.0).tolist() == [0] * 4
    assert weigh_runs(source, 1.0).dtype == np.int32


@given(st.lists(RUNS, min_size=1, max_size=3), st.data())
@settings(max_examples=150, deadline=None)
def test_characters_weigh_what_their_runs_do(sources: list[list[str]], data: st.DataObject) -> None:
    expected: Counter[str] = Counter()
    parts = []
    for runs in sources:
        number = st.integers(0, HEAVIEST)
        weights = data.draw(st.lists(number, min_size=len(runs), max_size=len(runs)))
        parts.append(("\n".join(runs), np.array(weights, np.int32)))
        for run, weight in zip(runs, weights, strict=True):
            for character in run:
                expected[character] += weight
    assert character_weights(parts) == {character: total for character, total in expected.items() if total}


def test_rare_runs_are_forgotten_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count, "MOST_RUNS", 8)
    texts = ["天地"] * 5 + [chr(0x4E00 + number) for number in range(30)] + ["天地", "玄黄", "玄黄"]
    source = count_source(texts, HAN)
    found = dict(zip(source.runs.split("\n"), source.counts.tolist(), strict=True))
    assert (found["天地"], found["玄黄"]) == (6, 2)
    assert len(found) <= 8
    assert len(found) + source.forgotten == 32
    assert source.characters == sum(len(run) * number for run, number in found.items())


def test_runs_that_were_all_seen_twice_are_forgotten_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or each further document would look through all of them in vain."""
    monkeypatch.setattr(count, "MOST_RUNS", 10)
    calls: list[int] = []
    forget = count.forget_rarest

    def watched(counts: Counter[str]) -> Counter[str]:
        calls.append(len(counts))
        return forget(counts)

    monkeypatch.setattr(count, "forget_rarest", watched)
    texts = [chr(0x4E00 + number) * 3 + "，" + chr(0x4E00 + number) * 3 for number in range(200)]
    source = count_source(texts, HAN)
    assert len(source.counts) <= 10
    assert "，" in source.runs.split("\n")
    assert 200 / 10 <= len(calls) <= 200 / 5 + 1


def test_sources_are_trimmed_to_what_can_be_joined() -> None:
    large = Source("\n".join(["天地", "玄黄", "宇宙洪荒"]), np.array([1, 5, 1], np.int64), 0, 0)
    small = Source("雅言", np.array([1], np.int64), 0, 0)
    trim_sources([large, small], most_characters=15)
    assert large.runs == "天地\n玄黄\n宇宙洪荒"
    trim_sources([large, small], most_characters=11)
    assert (large.runs, large.counts.tolist(), large.forgotten) == ("玄黄", [5], 2)
    assert (small.runs, small.forgotten) == ("雅言", 0)
