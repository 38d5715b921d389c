"""Batches out of shards: endless, mixed by token share, and resumable to the bit.

The contract of the iterator: it yields `(batch, state)`, where the state holds all that is needed to go on after that
batch; resuming is building it again from the state. A state is a few numbers, because the plan of an epoch is a pure
function of the documents' lengths, the seed, the epoch and the sequence length.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yayan.ahead import ahead
from yayan.corpus.plan import Plan, make_plan
from yayan.corpus.shards import Shards
from yayan.corpus.shuffle import shuffled
from yayan.errors import UserError

IGNORED = -100  # a target that costs nothing, torch's ignore_index

PLACES_AT_ONCE = 1024  # of the order of sequences

State = dict[
    str, Any
]  # JSON: {"sequences": taken from each source, "tokens": taken from each, "of": the mixture}
Row = tuple[int, int]  # source, sequence of its plan


@dataclass(frozen=True, eq=False)
class Batch:
    """B sequences of T positions; all int32 [B, T]."""

    ids: np.ndarray
    targets: np.ndarray  # the next token of the same document, IGNORED where nothing is learned
    positions: np.ndarray  # 0, 1, 2, ... again from 0 for every piece of a document, and for the padding


class Source:
    """One shards folder and the way through it, epoch after epoch."""

    def __init__(self, shards: Shards, sequence_length: int, seed: list[int]) -> None:
        self.shards, self.sequence_length, self.seed = shards, sequence_length, seed
        self.plan: Plan = make_plan(shards.lengths, shards.mask, sequence_length, [*seed, 0])
        if not self.plan.sequences:
            raise UserError("these shards have nothing to learn", where=shards.folder, cure="leave them out")
        self._counting_T = np.arange(sequence_length, dtype=np.int32)
        self._block = (-1, -1)
        self._order: list[int] = []

    def sequence(self, number: int) -> int:
        """Which sequence of the plan comes as `number`-th, counted from 0 over all epochs."""
        epoch, place = divmod(number, self.plan.sequences)
        block, inside = divmod(place, PLACES_AT_ONCE)
        if (epoch, block) != self._block:
            self._block = epoch, block
            begin = block * PLACES_AT_ONCE
            places = np.arange(begin, min(begin + PLACES_AT_ONCE, self.plan.sequences))
            self._order = shuffled(places, self.plan.sequences, [*self.seed, 1 + epoch]).tolist()
        return self._order[inside]

    def fill(self, batch: Batch, row: int, sequence: int, pad_id: int) -> None:
        """Write a sequence of the plan into a row of the batch."""
        ids_T, targets_T, positions_T = batch.ids[row], batch.targets[row], batch.positions[row]
        at = 0
        for start, size in self.plan.pieces(sequence):
            end = at + size
            ids_T[at:end] = self.shards.ids[start : start + size]
            targets_T[at:end] = self.shards.ids[start + 1 : start + size + 1]
            if self.shards.mask is not None:
                targets_T[at:end][self.shards.mask[start + 1 : start + size + 1] == 0] = IGNORED
            positions_T[at:end] = self._counting_T[:size]
            at = end
        ids_T[at:] = pad_id
        targets_T[at:] = IGNORED
        positions_T[at:] = self._counting_T[: self.sequence_length - at]


class Mixture:
    """Sequences of several shards folders in given shares of tokens, each going through its own epochs."""

    def __init__(
        self,
        shards: Sequence[Shards],
        shares: Sequence[float],
        *,
        sequence_length: int,
        batch_size: int,
        seed: int,
        pad_id: int,
    ) -> None:
        """`shares`: positive, in any unit (8 and 2 are 80 % and 20 %).

        Raises UserError for numbers that make no sense, for shards of different tokenizers, and for shards without a
        target.
        """
        _check(shards, shares, sequence_length, batch_size, seed)
        self.sequence_length, self.batch_size, self.pad_id = sequence_length, batch_size, pad_id
        self.shares = [share / math.fsum(shares) for share in shares]
        self.sources = [Source(item, sequence_length, [seed, i]) for i, item in enumerate(shards)]
        self.identity = {  # what a state belongs to
            "shards": [item.sha256 for item in shards],
            "shares": self.shares,
            "sequence_length": sequence_length,
            "batch_size": batch_size,
            "seed": seed,
        }

    @property
    def sequences_per_epoch(self) -> list[int]:
        """For each source, the same in every epoch."""
        return [source.plan.sequences for source in self.sources]

    @property
    def tokens_per_epoch(self) -> list[int]:
        """Positions that hold a token and no padding, for each source."""
        return [source.plan.positions for source in self.sources]

    @property
    def targets_per_epoch(self) -> list[int]:
        """Tokens that are learned, for each source: all but each document's first, or those under the mask."""
        return [source.shards.targets for source in self.sources]

    def steps(self, epochs: float) -> int:
        """Batches after which the first source has been gone through `epochs` times.

        Exact where it is the only one (the last batch may begin the next epoch); else as exact as the shares are.
        """
        return math.ceil(epochs * self.sequences_per_epoch[0] / (self.shares[0] * self.batch_size))

    def describe(self) -> list[dict[str, object]]:
        """For each source, what an epoch holds and what the sequence length did to it (JSON values)."""
        return [
            {
                "share": share,
                "sequences": source.plan.sequences,
                "tokens": source.plan.positions,
                "targets": source.shards.targets,
                "padding": round(1 - source.plan.positions / source.plan.sequences / self.sequence_length, 5),
                "continued_documents": source.plan.continued_documents,
                "context_dropped": source.plan.context_dropped,
            }
            for share, source in zip(self.shares, self.sources, strict=True)
        ]

    def batches(
        self, state: State | None = None, *, rank: int = 0, ranks: int = 1, workers: int = 0
    ) -> Generator[tuple[Batch, State]]:
        """Endless batches, each with the state after it. `state`: go on where such a one was given out.

        `rank` of `ranks`: only these rows of the batch, B / ranks of them; all ranks' together are the batch, and the
        state is the same for all. `workers`: threads that fill batches ahead of their use. Neither changes what comes.
        Raises UserError for a state of other shards, shares or sizes, and for ranks that do not divide the batch.
        """
        if not 0 <= rank < ranks or self.batch_size % ranks:
            what = f"{self.batch_size} sequences cannot be shared out, this is rank {rank} of {ranks}"
            raise UserError(what, cure="give a batch size that the number of ranks divides")
        if state is not None:
            self._refuse_misfit(state)
        size = self.batch_size // ranks
        chosen = ((rows[rank * size : (rank + 1) * size], after) for rows, after in self._choose(state))
        if workers:
            return ahead(self._build, chosen, workers)
        return ((self._build(rows), after) for rows, after in chosen)

    def documents(self, state: State | None) -> tuple[list[str], State]:
        """The documents of the batch that comes behind `state`, each by its source and number, and the state after."""
        rows, after = next(self._choose(state))
        named: dict[str, None] = {}
        for i, sequence in rows:
            shards = self.sources[i].shards
            ends = np.cumsum(shards.lengths, dtype=np.int64)
            for start, _ in self.sources[i].plan.pieces(sequence):
                named[shards.name_of(int(np.searchsorted(ends, start, "right")))] = None
        return list(named), after

    def _choose(self, state: State | None) -> Iterator[tuple[list[Row], State]]:
        """For each batch its rows and the state after it; every rank does all of it, which costs next to nothing."""
        zeros = [0] * len(self.sources)
        sequences, tokens = (list(state[name]) if state else zeros.copy() for name in ("sequences", "tokens"))
        while True:
            rows = []
            for _ in range(self.batch_size):
                i = self._most_behind(tokens)
                rows.append((i, self.sources[i].sequence(sequences[i])))
                sequences[i] += 1
                tokens[i] += self.sources[i].plan.filled(rows[-1][1])
            yield rows, {"sequences": list(sequences), "tokens": list(tokens), "of": self.identity}

    def _build(self, rows: list[Row]) -> Batch:
        shape = (len(rows), self.sequence_length)
        batch = Batch(*(np.empty(shape, np.int32) for _ in range(3)))
        for row, (i, sequence) in enumerate(rows):
            self.sources[i].fill(batch, row, sequence, self.pad_id)
        return batch

    def _refuse_misfit(self, state: State) -> None:
        before = state.get("of", {})
        for name, now in self.identity.items():
            if before.get(name) != now:
                told = "" if name == "shards" else f", {before.get(name)} and not {now}"
                other = "other" if name in ("shards", "shares") else "another"
                what = f"the training was begun with {other} {name.replace('_', ' ')}{told}"
                raise UserError(what, cure="go on with the same, or begin anew")

    def _most_behind(self, tokens: list[int]) -> int:
        """The source that would be furthest behind its share after the next sequence; the first of equals."""
        total = sum(tokens) + self.sequence_length
        owed = [share * total - taken for share, taken in zip(self.shares, tokens, strict=True)]
        return owed.index(max(owed))


def _check(
    shards: Sequence[Shards], shares: Sequence[float], sequence_length: int, batch_size: int, seed: int
) -> None:
    if not shards or len(shards) != len(shares):
        what = f"there are {len(shards)} shards folders and {len(shares)} shares"
        raise UserError(what, cure="give a share for each folder, at least one")
    if not all(math.isfinite(share) and share > 0 for share in shares):
        raise UserError(f"the shares {list(shares)} are not all above 0", cure="leave out what has no share")
    if sequence_length < 1 or batch_size < 1 or seed < 0:
        raise UserError("the sequence length and the batch size must be at least 1, the seed at least 0")
    for item in shards[1:]:
        if item.index["tokenizer"] != shards[0].index["tokenizer"]:
            what = f"these shards have another tokenizer than {shards[0].folder}"
            raise UserError(what, where=item.folder, cure="pack them again with the same one")
