"""How many tokens to guess, against a machine whose costs are known."""

import random
from typing import Any

import pytest

from yayan.engine.lengths import LONGEST, DraftLengths


def decode(
    tokens: int,
    share: float,
    *,
    row: float,
    guess: float,
    seed: int = 0,
    behind: float = 0.0,
    lengths: DraftLengths | None = None,
    hiccups: bool = False,
) -> tuple[float, DraftLengths]:
    """Seconds for so many tokens, where a pass over n tokens costs 1 + row (n - 1) and a guess costs `guess`.

    `behind`: what the draft needs for each token that was said without it, before it guesses. `hiccups`: the clock
    shows the first round three times as long, others by up to a tenth, some twice.
    """
    draw = random.Random(seed)
    lengths = lengths or DraftLengths()
    made, seconds, unread = 0, 0.0, 0
    while made < tokens:
        count, unread_before = lengths.choose(), unread
        taken = 0
        while taken < count and draw.random() < share:
            taken += 1
        unread = 0 if count else unread + 1
        halves = count * guess + bool(count) * unread_before * behind, 1 + row * count
        slow = 1.0
        if hiccups:
            slow = draw.uniform(1, 1.1) * (2 if draw.random() < 0.05 else 1) if made else 3.0
        lengths.learn(count, count, taken, *(half * slow for half in halves))
        made += taken + 1
        seconds += sum(halves)
    return seconds, lengths


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize(("row", "guess"), [(1.0, 0.3), (0.02, 0.9), (0.1, 0.3), (1.0, 0.0)])
def test_never_five_percent_slower_than_plain(share: float, row: float, guess: float) -> None:
    for seed in range(5):
        seconds, _ = decode(1000, share, row=row, guess=guess, seed=seed)
        assert seconds < 1050


@pytest.mark.parametrize("row", [0.12, 1.0])
def test_a_clock_with_hiccups_changes_little(row: float) -> None:
    """A slow first round must not let plain decoding look slow for ever."""
    for seed in range(20):
        assert decode(1000, 0.0, row=row, guess=0.06, seed=seed, hiccups=True)[0] < 1050
        assert decode(128, 0.0, row=row, guess=0.06, seed=seed, hiccups=True)[0] < 128 * 1.05 + 3
        assert decode(1000, 0.9, row=0.12, guess=0.06, seed=seed, hiccups=True)[0] < 600


@pytest.mark.parametrize("share", [0.6, 0.8, 0.95])
def test_near_the_best_fixed_length(share: float) -> None:
    """A pass over five tokens costs what one costs, and a guess a tenth, as for a large model in bfloat16."""
    costs: dict[str, Any] = {"row": 0.01, "guess": 0.1}
    fixed = [decode(3000, share, **costs, lengths=DraftLengths(k))[0] for k in range(1, LONGEST + 1)]
    assert decode(3000, share, **costs)[0] < 1.1 * min(fixed)
    assert decode(3000, share, **costs)[0] < 3000 / 1.3


def test_what_changes_is_found_out() -> None:
    _, lengths = decode(2000, 0.0, row=0.01, guess=0.1)
    seconds, _ = decode(4000, 0.9, row=0.01, guess=0.1, lengths=lengths)
    assert seconds < 2500
    seconds, _ = decode(2000, 0.0, row=0.01, guess=0.1, lengths=lengths)
    assert seconds < 2300


def test_a_draft_that_has_to_catch_up_does_not_look_slow_for_ever() -> None:
    costs: dict[str, Any] = {"row": 0.01, "guess": 0.1, "behind": 0.02}
    seconds, lengths = decode(2000, 0.0, **costs)
    assert seconds < 2100
    assert decode(4000, 0.9, **costs, lengths=lengths)[0] < 2500


def test_a_fixed_length_is_kept() -> None:
    lengths = DraftLengths(3)
    assert lengths.choose() == 3
    decode(100, 0.0, row=1.0, guess=1.0, lengths=lengths)
    assert lengths.choose() == 3
