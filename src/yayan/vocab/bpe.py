"""Byte-pair encoding that goes on from symbols that exist, with weighted counts and a rule for what may be joined.

A text is an array of symbols, 0 where nothing may be joined across. The heaviest pair of neighbours is joined again and
again (Gage 1994; Sennrich et al. 2016) without a loop over the text: a join touches the places of its own pair alone,
and a pair is weighed anew only when it comes to the top, since joins elsewhere can only have made it lighter.
A symbol is its string: with "abc" there, `a bc` and `ab c` are both joined into it, as SentencePiece does.

Shapes: T places of the text, P places of one pair, K pairs of one block.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SYMBOL_BITS, PLACE_BITS = 17, 29  # two symbols and a place are one int64 while the first pairs are sorted
MAX_SYMBOLS, MAX_PLACES = 1 << SYMBOL_BITS, 1 << PLACE_BITS
GONE = -1  # a place that is inside of a symbol

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


@dataclass(frozen=True)
class Join:
    """A new symbol: its string, the pair of strings that it was joined from, and the weight of that pair's places."""

    name: str
    left: str
    right: str
    weight: int


@dataclass(frozen=True, eq=False)
class Block:
    """K pairs of `symbol` and its neighbours on one side (all pairs of the text if it is 0), where they were seen."""

    symbol: int
    before: bool
    """The symbol is the left one of its pairs."""
    keys: Ints | Longs
    """The neighbours (both symbols in one number if `symbol` is 0), ascending."""
    offsets: Longs
    """[K + 1]: pair k was seen at places[offsets[k] : offsets[k + 1]]."""
    places: Ints
    weights: Longs
    order: Longs
    """Pairs from the heaviest to the lightest, equal ones by key."""

    def pair(self, index: int) -> tuple[int, int]:
        key = int(self.keys[index])
        if not self.symbol:
            return key >> SYMBOL_BITS, key & (MAX_SYMBOLS - 1)
        return (self.symbol, key) if self.before else (key, self.symbol)

    def places_of(self, key: int) -> Ints:
        index = int(np.searchsorted(self.keys, key))
        if index == len(self.keys) or self.keys[index] != key:
            return self.places[:0]
        return self.places[self.offsets[index] : self.offsets[index + 1]]


def make_block(
    symbol: int, before: bool, pairs_P: Ints | Longs, places_P: Ints, weights_P: Ints, least: int
) -> Block:
    """Group places by key (sorted already); pairs lighter than `least` are left out."""
    first = np.flatnonzero(np.diff(pairs_P, prepend=GONE))
    weights = np.add.reduceat(weights_P, first, dtype=np.int64) if len(first) else first
    sizes_K = np.diff(first, append=len(pairs_P))
    kept_K = weights >= least
    if not kept_K.all():
        places_P = places_P[np.repeat(kept_K, sizes_K)]
        first, weights, sizes_K = first[kept_K], weights[kept_K], sizes_K[kept_K]
    offsets = np.concatenate([[0], np.cumsum(sizes_K)])
    keys = pairs_P[first]
    return Block(symbol, before, keys, offsets, places_P, weights, np.lexsort((keys, -weights)))


class Learner:
    """A text on which pairs are joined: `for join in learner.joins(): ...` until the caller has enough.

    `symbols`: ids from 1, or 0 for a break. `weights`: what each of them counts, from 0. `names[id]`: the string of a
    symbol (`names[0]` is unused). `may_join(name)`: whether a string may become a symbol. Pairs lighter than `least`
    when they are first seen are forgotten. Deterministic: ties go by the symbols' ids. Raises ValueError for a text of
    2^29 characters or more.
    """

    def __init__(
        self,
        symbols: Ints,
        weights: Ints,
        names: Sequence[str],
        may_join: Callable[[str], bool],
        least: int = 1,
    ) -> None:
        if len(names) > MAX_SYMBOLS:
            raise ValueError(f"{len(names):,} symbols are too many")
        self.names = list(names)
        self.ids = {name: number for number, name in enumerate(self.names) if number}
        self.lengths = np.ones(MAX_SYMBOLS, np.int32)  # of each symbol's string, in places; a break is one
        self.lengths[1 : len(names)] = [len(name) for name in names[1:]]
        self.may_join, self.least = may_join, max(least, 1)
        self.heap: list[tuple[int, int, int, int, Block | None, int]] = []
        self.serial = 0  # keeps the heap from comparing blocks
        self._lay_out(symbols, weights)
        self.first_new = len(self.names)
        self.first_block = self._all_pairs()
        self.blocks: dict[int, list[Block]] = {}
        self._push_from(self.first_block, 0)

    def joins(self) -> Iterator[Join]:
        """New symbols, the heaviest pair first, until no pair is left or the ids run out."""
        while self.heap and len(self.names) < MAX_SYMBOLS:
            claimed, left, right, _, block, rank = heapq.heappop(self.heap)
            if block is not None:
                self._push_from(block, rank + 1)
            name = self.names[left] + self.names[right]
            if not self.may_join(name):
                continue
            places_P = self._living_places(left, right)
            weight = int(self.weights_T[places_P].sum(dtype=np.int64))
            if weight < -claimed:
                if weight >= self.least:
                    self._push(weight, left, right, None, 0)
                continue
            new = name not in self.ids
            if new:
                self.ids[name] = len(self.names)
                self.lengths[len(self.names)] = len(name)
                self.names.append(name)
            self._join(self.ids[name], left, places_P)
            if new:
                self._join_other_splits(self.ids[name], name, len(self.names[left]))
                yield Join(name, self.names[left], self.names[right], weight)

    def _lay_out(self, symbols: Ints, weights: Ints) -> None:
        """One place for each character, a wall before and behind."""
        lengths = self.lengths[symbols]
        places = int(lengths.sum(dtype=np.int64)) + 2
        if places > MAX_PLACES:
            raise ValueError(f"{places:,} characters are too many")
        first = np.cumsum(lengths, dtype=np.int32)
        first += 1 - lengths
        self.starts_T = np.full(places, GONE, np.int32)  # the symbol that starts here
        self.ends_T = np.full(places, GONE, np.int32)  # the symbol that ends here
        self.weights_T = np.zeros(places, np.int32)  # of the symbol that starts here
        self.starts_T[[0, -1]] = self.ends_T[[0, -1]] = 0
        self.starts_T[first] = symbols
        self.weights_T[first] = weights
        self.ends_T[first + lengths - 1] = symbols

    def _all_pairs(self) -> Block:
        here = np.flatnonzero(self.starts_T > 0).astype(np.int32)
        after = self.starts_T[here + self.lengths[self.starts_T[here]]]
        here, after = here[after > 0], after[after > 0]
        pairs_P = self.starts_T[here].astype(np.int64)
        pairs_P <<= SYMBOL_BITS
        pairs_P |= after
        pairs_P <<= PLACE_BITS
        pairs_P |= here
        del here, after
        pairs_P.sort()
        places_P = (pairs_P & (MAX_PLACES - 1)).astype(np.int32)
        pairs_P >>= PLACE_BITS
        return make_block(0, True, pairs_P, places_P, self.weights_T[places_P], self.least)

    def _push(self, weight: int, left: int, right: int, block: Block | None, rank: int) -> None:
        self.serial += 1
        heapq.heappush(self.heap, (-weight, left, right, self.serial, block, rank))

    def _push_from(self, block: Block, rank: int) -> None:
        """Of each block only the heaviest pair is in the heap; the next one follows when that is taken."""
        if rank < len(block.order):
            index = int(block.order[rank])
            self._push(int(block.weights[index]), *block.pair(index), block, rank)

    def _living_places(self, left: int, right: int) -> Ints:
        """Where the pair stands now, ascending; of overlapping ones (`a a a`) every second."""
        seen = [block.places_of(right) for block in self.blocks.get(left, ()) if block.before]
        seen += [block.places_of(left) for block in self.blocks.get(right, ()) if not block.before]
        if max(left, right) < self.first_new:
            seen.append(self.first_block.places_of((left << SYMBOL_BITS) | right))
        seen = [places for places in seen if len(places)]
        if not seen:
            return np.zeros(0, np.int32)
        places_P = seen[0] if len(seen) == 1 else np.unique(np.concatenate(seen))
        length = len(self.names[left])
        places_P = places_P[(self.starts_T[places_P] == left) & (self.starts_T[places_P + length] == right)]
        if left == right and len(places_P) > 1:
            number = np.arange(len(places_P))
            opens_chain = np.diff(places_P, prepend=-2 * length) != length
            places_P = places_P[(number - np.maximum.accumulate(np.where(opens_chain, number, 0))) % 2 == 0]
        return places_P

    def _join_other_splits(self, symbol: int, name: str, done: int) -> None:
        """Join all other pairs of symbols that spell this string."""
        for cut in range(1, len(name)):
            left, right = self.ids.get(name[:cut]), self.ids.get(name[cut:])
            if cut != done and left and right:
                self._join(symbol, left, self._living_places(left, right))

    def _join(self, symbol: int, left: int, places_P: Ints) -> None:
        """Put `symbol` where a pair that begins with `left` stands, and note its new neighbours."""
        middle, end = len(self.names[left]), len(self.names[symbol])
        self.starts_T[places_P], self.starts_T[places_P + middle] = symbol, GONE
        self.ends_T[places_P + end - 1], self.ends_T[places_P + middle - 1] = symbol, GONE
        after_P, before_P = self.starts_T[places_P + end], self.ends_T[places_P - 1]
        again = symbol in self.blocks or symbol < self.first_new
        self._note(symbol, True, after_P, places_P, again=again)
        starts_P = places_P - self.lengths[before_P]
        if (before_P == symbol).any():  # of two that were joined side by side the pair is noted already
            before_P = np.where((before_P == symbol) & np.isin(starts_P, places_P), 0, before_P)
        self._note(symbol, False, before_P, starts_P, again=again)

    def _note(self, symbol: int, before: bool, neighbours_P: Ints, places_P: Ints, *, again: bool) -> None:
        """Keep where a symbol stands beside its neighbours. `again`: it has pairs elsewhere already."""
        order = np.argsort(neighbours_P, kind="stable")
        order = order[np.searchsorted(neighbours_P[order], 1) :]
        places_P = places_P[order]
        block = make_block(
            symbol, before, neighbours_P[order], places_P, self.weights_T[places_P], self.least
        )
        self.blocks.setdefault(symbol, []).append(block)
        if not again:
            self._push_from(block, 0)
            return
        for pair in map(block.pair, range(len(block.keys))):
            weight = int(self.weights_T[self._living_places(*pair)].sum(dtype=np.int64))
            self._push(weight, *pair, None, 0)
