"""Batches out of shards: endless, mixed by token share, and resumable to the bit.

The contract of the iterator: it yields `(batch, state)`, where the state holds all that is needed to go on after that
batch; resuming is building it again from the state. A state is a few numbers, because the plan of an epoch is a pure
function of the documents' lengths, the seed, the epoch and the sequence length.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from yayan.corpus.plan import Plan, make_plan
from yayan.corpus.shards import Shards
from yayan.errors import UserError

IGNORED = -100  # a target that costs nothing, torch's ignore_index

State = dict[str, list[int]]  # JSON: {"sequences": taken from each source, "tokens": taken from each source}


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
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def sequence(self, number: int) -> int:
        """Which sequence of the plan comes as `number`-th, counted from 0 over all epochs."""
        epoch, place = divmod(number, self.plan.sequences)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([*self.seed, 1 + epoch]).permutation(self.plan.sequences)
        return int(self._order[place])

    def fill(self, batch: Batch, row: int, sequence: int, pad_id: int) -> int:
        """Write a sequence of the plan into a row of the batch; returns how many of its positions are no padding."""
        plan, at = self.plan, 0
        for piece in range(plan.first[sequence], plan.first[sequence + 1]):
            start, size = int(plan.start[piece]), int(plan.size[piece])
            end = at + size
            batch.ids[row, at:end] = self.shards.ids[start : start + size]
            batch.targets[row, at:end] = self.shards.ids[start + 1 : start + size + 1]
            if self.shards.mask is not None:
                batch.targets[row, at:end][self.shards.mask[start + 1 : start + size + 1] == 0] = IGNORED
            batch.positions[row, at:end] = np.arange(size)
            at = end
        batch.ids[row, at:] = pad_id
        batch.targets[row, at:] = IGNORED
        batch.positions[row, at:] = np.arange(self.sequence_length - at)
        return at


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

    def batches(self, state: State | None = None) -> Iterator[tuple[Batch, State]]:
        """Endless batches, each with the state after it. `state`: go on where such a one was given out."""
        count = len(self.sources)
        state = state or {"sequences": [0] * count, "tokens": [0] * count}
        if len(state["sequences"]) != count:
            raise UserError("the data were mixed of other sources before", cure="resume with the same ones")
        sequences, tokens = list(state["sequences"]), list(state["tokens"])
        shape = (self.batch_size, self.sequence_length)
        while True:
            batch = Batch(*(np.empty(shape, np.int32) for _ in range(3)))
            for row in range(self.batch_size):
                i = self._most_behind(tokens)
                which = self.sources[i].sequence(sequences[i])
                tokens[i] += self.sources[i].fill(batch, row, which, self.pad_id)
                sequences[i] += 1
            yield batch, {"sequences": list(sequences), "tokens": list(tokens)}

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
