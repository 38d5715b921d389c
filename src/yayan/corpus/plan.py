"""Which tokens stand in which sequence: documents cut into pieces, pieces best-fit packed.

Legend: D documents, P pieces, S sequences, T positions of a sequence. A document of n + 1 tokens fills n positions: at
each stands a token, and the target is the next one. A document that is longer than T is cut from its end into pieces of
T positions, the first one shorter; the token on the border is the last target of one piece and, as context only,
the first token of the next. So every token is a target once, except a document's first.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Plan:
    """Sequence s is made of the pieces `first[s]` up to `first[s + 1]`; each epoch has its own order of sequences."""

    start: np.ndarray  # [P] int64, index of the piece's first token among all tokens of the shards
    size: np.ndarray  # [P] int64, positions of the piece, 1..T
    first: np.ndarray  # [S + 1] int64
    continued_documents: int  # longer than a sequence
    context_dropped: int  # positions in pieces of over-long chats that hold no target, left out

    @property
    def sequences(self) -> int:
        return len(self.first) - 1

    @property
    def positions(self) -> int:
        """Positions that are filled, that is, not padding."""
        return int(self.size.sum())


def make_plan(lengths: np.ndarray, mask: np.ndarray | None, sequence_length: int, seed: list[int]) -> Plan:
    """Plan an epoch over documents of `lengths` [D] tokens. Pure: the same arguments give the same plan.

    `mask` [N] (chats): pieces of an over-long chat that hold no target are left out; so an answer stays, with as much
    of the end of its prompt as the sequence has room for. A document of one token has no target and no place.
    """
    start_P, size_P, continued_P = cut(lengths, sequence_length)
    continued_documents = int(np.count_nonzero(lengths - 1 > sequence_length))
    context_dropped = 0
    if mask is not None:
        kept_P = np.ones(len(start_P), bool)
        for p in np.flatnonzero(continued_P):
            kept_P[p] = mask[start_P[p] + 1 : start_P[p] + size_P[p] + 1].any()
        context_dropped = int(size_P[~kept_P].sum())
        start_P, size_P = start_P[kept_P], size_P[kept_P]
    shuffled_P = np.random.default_rng(seed).permutation(len(size_P))
    start_P, size_P = start_P[shuffled_P], size_P[shuffled_P]
    bin_P = best_fit(size_P, sequence_length)
    by_bin_P = np.argsort(bin_P, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(bin_P))])
    return Plan(start_P[by_bin_P], size_P[by_bin_P], first, continued_documents, context_dropped)


def cut(lengths: np.ndarray, sequence_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths in tokens [D] -> of each piece [P] the first token, the positions, whether its document has others."""
    positions_D = lengths - 1
    pieces_D = -(-positions_D // sequence_length)
    document_P = np.repeat(np.arange(len(lengths)), pieces_D)
    number_P = np.arange(len(document_P)) - np.repeat(np.cumsum(pieces_D) - pieces_D, pieces_D)
    short_P = (positions_D - (pieces_D - 1) * sequence_length)[document_P]
    inside_P = np.where(number_P == 0, 0, short_P + (number_P - 1) * sequence_length)
    start_P = (np.cumsum(lengths) - lengths)[document_P] + inside_P
    size_P = np.where(number_P == 0, short_P, sequence_length)
    return start_P, size_P, (pieces_D > 1)[document_P]


def best_fit(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """Best-fit decreasing bin packing: sizes [P] (1..capacity) -> the bin of each, bins numbered from 0.

    The result of Johnson's algorithm (1974): the largest first, each into the fullest bin that has room. Equal sizes
    and bins with equal room are moved together, so the cost grows with `capacity`, not with P.
    """
    bin_P = np.empty(len(sizes), np.int64)
    bins = 0
    rooms: dict[int, list[np.ndarray]] = {}  # room -> bins that have just that much
    free: list[int] = []  # the keys of `rooms`, sorted

    def put(room: int, which: np.ndarray) -> None:
        if room and len(which):
            if room not in rooms:
                insort(free, room)
            rooms.setdefault(room, []).append(which)

    order = np.argsort(-sizes, kind="stable")
    ends = np.flatnonzero(np.diff(sizes[order])) + 1
    for items in np.split(order, ends) if len(order) else []:
        size = int(sizes[items[0]])
        while len(items):
            at = bisect_left(free, size)
            if at < len(free):
                room = free.pop(at)
                which = np.concatenate(rooms.pop(room))
            else:
                room = capacity
                which = np.arange(bins, bins - (-len(items) // (capacity // size)))
                bins += len(which)
            each = room // size  # a bin that took one is the fullest with room, so it takes the next as well
            used = min(len(which), -(-len(items) // each))
            now = items[: used * each]
            bin_P[now] = np.repeat(which[:used], each)[: len(now)]
            put(room - each * size, which[: used - 1])
            put(room - (len(now) - (used - 1) * each) * size, which[used - 1 : used])
            put(room, which[used:])
            items = items[len(now) :]
    return bin_P
