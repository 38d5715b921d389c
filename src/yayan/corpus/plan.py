"""Which tokens stand in which sequence: documents cut into pieces, pieces best-fit packed.

Legend: D documents, P pieces, S sequences, T positions of a sequence. A document of n + 1 tokens fills n positions: at
each stands a token, and the target is the next one. A document that is longer than T is cut into pieces: the token on
the border is the last target of one piece and, as context only, the first token of the next. So every token is a target
once, except a document's first. An over-long chat is cut so that each answer has before it as much as fits.
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
    context_dropped: int  # positions of over-long chats that are left out; none of them has a target

    @property
    def sequences(self) -> int:
        return len(self.first) - 1

    @property
    def positions(self) -> int:
        """Positions that are filled, that is, not padding."""
        return int(self.size.sum())


def make_plan(lengths: np.ndarray, mask: np.ndarray | None, sequence_length: int, seed: list[int]) -> Plan:
    """Plan an epoch over documents of `lengths` [D] tokens. Pure: the same arguments give the same plan.

    `mask` [N] (chats): 1 where a token is a target. A document of one token has no target and no place.
    """
    offset_D = np.cumsum(lengths) - lengths
    long_D = lengths - 1 > sequence_length
    if mask is None:
        start_P, size_P = cut_documents(offset_D, lengths, sequence_length)
    else:
        whole = cut_documents(offset_D[~long_D], lengths[~long_D], sequence_length)
        spans = zip(offset_D[long_D], lengths[long_D], strict=True)
        parts = [
            cut_chat(offset, mask[offset : offset + length], sequence_length) for offset, length in spans
        ]
        start_P, size_P = (np.concatenate(arrays) for arrays in zip(whole, *parts, strict=True))
    context_dropped = int((lengths - 1).sum() - size_P.sum())
    shuffled_P = np.random.default_rng(seed).permutation(len(size_P))
    start_P, size_P = start_P[shuffled_P], size_P[shuffled_P]
    bin_P = best_fit(size_P, sequence_length)
    by_bin_P = np.argsort(bin_P, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(bin_P))])
    return Plan(start_P[by_bin_P], size_P[by_bin_P], first, int(long_D.sum()), context_dropped)


def cut_documents(
    offset_D: np.ndarray, lengths_D: np.ndarray, sequence_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """First token [P] and positions [P] of the pieces of documents: all positions, the last piece the shorter one."""
    positions_D = lengths_D - 1
    pieces_D = -(-positions_D // sequence_length)
    document_P = np.repeat(np.arange(len(lengths_D)), pieces_D)
    before_P = np.arange(len(document_P)) - np.repeat(np.cumsum(pieces_D) - pieces_D, pieces_D)
    inside_P = before_P * sequence_length
    return offset_D[document_P] + inside_P, np.minimum(positions_D[document_P] - inside_P, sequence_length)


def cut_chat(offset: int, mask_N: np.ndarray, sequence_length: int) -> tuple[np.ndarray, np.ndarray]:
    """First token [P] and positions [P] of the pieces of one over-long chat; its own first token is the `offset`-th.

    From the end: a piece ends with the last target that is not in one yet, and begins as far before it as fits.
    """
    targets = np.flatnonzero(mask_N[1:]) + 1
    pieces = []
    while len(targets):
        start = max(int(targets[-1]) - sequence_length, 0)
        pieces.append((offset + start, int(targets[-1]) - start))
        targets = targets[targets <= start]
    starts_and_sizes = np.array(pieces, np.int64).reshape(-1, 2)
    return starts_and_sizes[:, 0], starts_and_sizes[:, 1]


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
