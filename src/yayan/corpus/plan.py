"""Which tokens stand in which sequence: documents cut into pieces, pieces best-fit packed.

Legend: D documents, U stretches, R rests, S sequences, T positions of a sequence. A document of n + 1 tokens fills n
positions: at each stands a token, and the target is the next one. A document that is longer than T is cut into pieces:
the token on the border is the last target of one piece and, as context only, the first token of the next. So every
token is a target once, except a document's first. An over-long chat is cut so that each answer has before it as much as
fits.

A plan holds stretches, not pieces: all pieces of a stretch but its last have T positions and fill a sequence each. The
last ones, the rests, are packed together; since rests of equal size are alike, bins are planned many at a time and
stand in a list whose length depends on T, not on the corpus. It takes 16 bytes a document.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

STRETCHES_AT_ONCE = 1 << 18
CHAT_TOKENS_AT_ONCE = 1 << 23  # of the mask, where over-long chats are cut
CHAT_TOKENS_BETWEEN = 1 << 16  # so far apart, over-long chats are looked at alone


@dataclass(frozen=True)
class Bins:
    """Bins filled alike: of each part (size, first, each), bin b takes `each` items from first + b * each on."""

    count: int
    room: int
    parts: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, eq=False)
class Plan:
    """The sequences of an epoch: first those that rests are packed into, then the whole ones."""

    sequence_length: int
    start: np.ndarray  # [U] int64, index of the stretch's first token among all tokens of the shards
    whole: np.ndarray  # [U + 1] unsigned, sequences that the stretches before this one fill alone
    order: np.ndarray  # [R] unsigned, stretches by size of their rest, the largest first; equal ones shuffled
    bins: list[Bins]
    positions: int  # that are filled, that is, not padding
    continued_documents: int  # longer than a sequence
    context_dropped: int  # positions of over-long chats that are left out; none of them has a target

    @cached_property
    def first(self) -> list[int]:
        """The first sequence of each entry of `bins`, and at last the number of packed sequences."""
        return [0, *accumulate(bins.count for bins in self.bins)]

    @property
    def sequences(self) -> int:
        return self.first[-1] + int(self.whole[-1])

    def filled(self, sequence: int) -> int:
        """Positions of the sequence that are not padding."""
        if sequence >= self.first[-1]:
            return self.sequence_length
        return self.sequence_length - self.bins[bisect_right(self.first, sequence) - 1].room

    def pieces(self, sequence: int) -> Iterator[tuple[int, int]]:
        """The pieces that stand in the sequence: index of the first token, number of positions (1..T)."""
        if sequence >= self.first[-1]:
            number = sequence - self.first[-1]
            stretch = int(np.searchsorted(self.whole, self.whole.dtype.type(number), "right")) - 1
            inside = (number - int(self.whole[stretch])) * self.sequence_length
            yield int(self.start[stretch]) + inside, self.sequence_length
            return
        entry = bisect_right(self.first, sequence) - 1
        for size, first, each in self.bins[entry].parts:
            at = first + (sequence - self.first[entry]) * each
            for stretch in self.order[at : at + each].tolist():
                before = int(self.whole[stretch + 1]) - int(self.whole[stretch])
                yield int(self.start[stretch]) + before * self.sequence_length, size


def make_plan(lengths: np.ndarray, mask: np.ndarray | None, sequence_length: int, seed: list[int]) -> Plan:
    """Plan an epoch over documents of `lengths` [D] tokens. Pure: the same arguments give the same plan.

    `mask` [N] (chats): 1 where a token is a target. A document of one token has no target and no place.
    """
    start_U, tokens_U = np.cumsum(lengths, dtype=np.int64), lengths
    start_U -= lengths
    long = np.flatnonzero(lengths - 1 > sequence_length)
    if mask is not None and len(long):
        cut = cut_chats(start_U[long], lengths[long], mask, sequence_length)
        start_U = np.concatenate([np.delete(start_U, long), cut[0]])
        tokens_U = np.concatenate([np.delete(lengths, long), cut[1] + 1])
    placed = int(tokens_U.sum(dtype=np.int64)) - len(tokens_U)
    wanted = int(lengths.sum(dtype=np.int64)) - len(lengths)
    whole, order, counts = divide(tokens_U, placed, sequence_length, seed)
    bins = best_fit(counts, sequence_length)
    return Plan(sequence_length, start_U, whole, order, bins, placed, len(long), wanted - placed)


def divide(
    tokens_U: np.ndarray, positions: int, sequence_length: int, seed: list[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `Plan` calls whole and order, and the number of rests of each size, of stretches of so many tokens.

    The order is one sort of 64-bit numbers, each made of size, random bits and index: four times as fast as numpy's
    permutation of as many. A block at a time, since what costs most is memory that is touched for the first time.
    """
    size_bits, index_bits = sequence_length.bit_length(), len(tokens_U).bit_length()
    random = np.random.PCG64(seed)
    whole = np.zeros(len(tokens_U) + 1, np.min_scalar_type(positions // sequence_length))
    key_U = np.empty(len(tokens_U), np.uint64)
    counts = np.zeros(sequence_length + 1, np.int64)
    for begin in range(0, len(tokens_U), STRETCHES_AT_ONCE):
        block = slice(begin, begin + STRETCHES_AT_ONCE)
        whole[1:][block], rest_B = np.divmod(tokens_U[block] - 1, sequence_length)
        counts += np.bincount(rest_B, minlength=sequence_length + 1)
        key_B = random.random_raw(len(rest_B)) >> np.uint64(size_bits + index_bits) << np.uint64(index_bits)
        key_B |= np.arange(begin, begin + len(rest_B), dtype=np.uint64)
        key_B |= (sequence_length - rest_B).astype(np.uint64) << np.uint64(64 - size_bits)
        key_U[block] = key_B
    np.cumsum(whole, dtype=whole.dtype, out=whole)
    key_U.sort()
    key_R = key_U[: counts[1:].sum()]
    key_R &= np.uint64((1 << index_bits) - 1)
    return whole, key_R.astype(np.min_scalar_type(len(tokens_U))), counts


def cut_chats(
    start_L: np.ndarray, length_L: np.ndarray, mask: np.ndarray, sequence_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """First token [P] and positions [P] of the pieces of L over-long chats, given by first token and length.

    From the end: a piece ends with the last target that is not in one yet, and begins as far before it as fits.
    """
    end_L = start_L + length_L
    far_L = np.append(False, start_L[1:] - end_L[:-1] > CHAT_TOKENS_BETWEEN)
    far_L[1:] |= np.diff(start_L // CHAT_TOKENS_AT_ONCE) > 0
    pieces = []
    for near in np.split(np.arange(len(start_L)), np.flatnonzero(far_L)):
        first, bound = start_L[near], end_L[near] - 1
        target_M = np.flatnonzero(mask[first[0] : end_L[near[-1]]]) + first[0]
        while len(first):
            last = target_M[np.searchsorted(target_M, bound, "right") - 1] if len(target_M) else first
            there = (last > first) & (
                last <= bound
            )  # else the last target up to the bound is of a chat before
            first, last = first[there], last[there]
            bound = np.maximum(last - sequence_length, first)
            pieces.append((bound, last - bound))
    return np.concatenate([start for start, _ in pieces]), np.concatenate([size for _, size in pieces])


def best_fit(counts: np.ndarray, capacity: int) -> list[Bins]:
    """Best-fit decreasing bin packing of `counts[size]` items of each size (1..capacity), numbered the largest first.

    The result of Johnson's algorithm (1974): the largest first, each into the fullest bin that has room. Bins of equal
    room are filled together: a bin that took an item is then the fullest, so it takes the next as well.
    """
    open_bins: dict[int, list[Bins]] = {}  # by room
    rooms: list[int] = []  # the keys, sorted
    item = 0

    def put(bins: Bins) -> None:
        if bins.count and bins.room not in open_bins:
            insort(rooms, bins.room)
        if bins.count:
            open_bins.setdefault(bins.room, []).append(bins)

    for size in (np.flatnonzero(counts[1:])[::-1] + 1).tolist():
        left = int(counts[size])
        while left:
            at = bisect_left(rooms, size)
            room = rooms[at] if at < len(rooms) else capacity
            if at == len(rooms):
                put(Bins(-(-left // (capacity // size)), capacity))
            bins = open_bins[room].pop()
            if not open_bins[room]:
                del open_bins[room], rooms[at]
            each = min(room // size, left)
            used = min(bins.count, left // each)
            shifted = tuple((part, first + used * taken, taken) for part, first, taken in bins.parts)
            put(Bins(bins.count - used, room, shifted))
            put(Bins(used, room - each * size, (*bins.parts, (size, item, each))))
            item, left = item + used * each, left - used * each
    return [bins for group in open_bins.values() for bins in group]
