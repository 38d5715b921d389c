"""By position: nothing is lost or counted twice, and a model that forgets shows it."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yayan.evaluate.positions import picture, place, summarise
from yayan.model.score import bits_per_byte


@dataclass(frozen=True)
class Document:
    text: str


@dataclass(frozen=True)
class Costs:
    ids: list[int]
    nats: np.ndarray


SIZES = [0, 1, 2, 3, 4]  # bytes of the tokens 0 to 4
documents = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=30), min_size=1, max_size=6)


@given(documents=documents, parts=st.integers(1, 12), prefixed=st.booleans())
def test_the_parts_are_the_whole(documents: list[list[int]], parts: int, prefixed: bool) -> None:
    """Nats, tokens and bytes of the parts add up, also where a token holds a space that is not in the text."""
    surplus = 1 if prefixed else 0
    texts = [Document("x" * max(sum(SIZES[i] for i in ids) - surplus, 1)) for ids in documents]
    costs = [Costs(ids, np.arange(1.0, len(ids) + 1)) for ids in documents]
    rows = summarise(place(texts, costs, SIZES), parts)
    total = sum(len(text.text) for text in texts)
    assert sum(row["tokens"] for row in rows) == sum(map(len, documents))
    assert sum(row["bytes"] for row in rows) == pytest.approx(total, abs=parts)
    nats = sum(cost.nats.sum() for cost in costs)
    if parts == 1:
        assert rows[0]["bits_per_byte"] == pytest.approx(bits_per_byte(nats, total))
        assert rows[0]["documents"] == len(documents)
    assert rows[-1]["to_byte"] <= max(len(text.text) for text in texts)


def test_cheaper_tokens_far_on_make_a_falling_curve() -> None:
    texts, ids = [Document("x" * 100), Document("x" * 40)], [[1] * 100, [1] * 40]
    costs = [Costs(own, 8 - np.arange(len(own)) / 20) for own in ids]
    rows = summarise(place(texts, costs, SIZES), 5)
    assert [row["documents"] for row in rows] == [2, 2, 1, 1, 1]
    assert [(row["from_byte"], row["to_byte"]) for row in rows][1] == (20, 40)
    bits = [row["bits_per_byte"] for row in rows]
    assert bits == sorted(bits, reverse=True)
    assert bits[4] == pytest.approx(bits_per_byte(float((8 - np.arange(80, 100) / 20).mean()), 1))
    assert rows[4]["interval"] is None  # one document tells nothing of its spread
    assert "<svg" in picture({"zh": rows})


def test_a_token_belongs_where_it_begins() -> None:
    rows = summarise(place([Document("x" * 8)], [Costs([4, 4], np.array([1.0, 3.0]))], SIZES), 4)
    assert [(row["from_byte"], row["tokens"], row["bytes"]) for row in rows] == [(0, 1, 4), (4, 1, 4)]
