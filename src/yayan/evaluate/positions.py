"""Bits per byte by position in the document: whether what stands far before still helps.

Positions are bytes of the document, not tokens, so that models with different vocabularies can be compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from yayan.evaluate.intervals import bootstrap_ratio
from yayan.evaluate.languages import say
from yayan.model.score import bits_per_byte
from yayan.pictures import Curve, draw_curves

PICTURE_NAME = "by-position.svg"


class _Text(Protocol):
    @property
    def text(self) -> str: ...


class _Cost(Protocol):
    @property
    def ids(self) -> list[int]: ...
    @property
    def nats(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Placed:
    """A document's tokens: where each begins, how much of the text it is (both in bytes, float64), what it cost."""

    starts: np.ndarray
    sizes: np.ndarray
    nats: np.ndarray
    bytes: int


def place(texts: Sequence[_Text], costs: Sequence[_Cost], token_bytes: list[int]) -> list[Placed]:
    """Where the tokens of each document stand.

    Their sizes are stretched to the text's own: a space that SentencePiece puts before a text is none of its bytes.
    """
    sizes_V = np.array(token_bytes, np.float64)
    placed = []
    for text, cost in zip(texts, costs, strict=True):
        sizes, length = sizes_V[cost.ids], len(text.text.encode("utf-8"))
        sizes *= length / max(sizes.sum(), 1)
        placed.append(Placed(np.cumsum(sizes) - sizes, sizes, cost.nats, length))
    return placed


def summarise(documents: list[Placed], parts: int) -> list[dict[str, Any]]:
    """Bits per byte of each of `parts` equal parts of the longest document, over the documents that reach into it.

    A token belongs where it begins. Parts that no token begins in are left out.
    """
    longest = max(document.bytes for document in documents)
    edges = np.linspace(0, longest, parts + 1)
    rows = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = [(document.starts >= low) & (document.starts < high) for document in documents]
        pairs = [
            (document.nats[own].sum(), document.sizes[own].sum())
            for document, own in zip(documents, inside, strict=True)
            if own.any()
        ]
        nats, sizes = (list(column) for column in zip(*pairs, strict=True)) if pairs else ([], [])
        if sum(sizes) > 0:
            rows.append(
                {
                    "from_byte": round(low),
                    "to_byte": round(high),
                    "documents": len(pairs),
                    "tokens": int(sum(map(np.count_nonzero, inside))),
                    "bytes": round(sum(sizes)),
                    "bits_per_byte": bits_per_byte(float(sum(nats)), 1) / float(sum(sizes)),
                    "interval": bootstrap_ratio([bits_per_byte(float(cost), 1) for cost in nats], sizes),
                }
            )
    return rows


def picture(texts: Mapping[str, list[dict[str, Any]]]) -> str:
    """A curve for each text, its 95 % intervals as a band, as an `<svg>` element."""
    curves = {
        name: Curve(
            [(row["from_byte"] + row["to_byte"]) / 2 for row in rows],
            [row["bits_per_byte"] for row in rows],
            [row["interval"] for row in rows],
        )
        for name, rows in texts.items()
    }
    return draw_curves(curves, say("position in the document, bytes"), say("bits per byte"))
