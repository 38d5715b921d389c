"""A tensor of the base with its adapters added, a few rows at a time on each core: they stay in the processor's cache.

Shapes: N rows of a block, `out` and `in` those of the tensor, r the rank of a pair.
"""

import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from yayan.ahead import ahead
from yayan.errors import WorkError
from yayan.weights.adapter import Adapter

BLOCK_NUMBERS = 1 << 20  # of the rows that are made at once: 4 MB in float32 stay in the cache
# Products of very few rows are summed in another order than the whole one (seen with 1 to 3 rows, with 5 in the last
# block, by two threads with 95), and a row would come out otherwise than PEFT's
WHOLE_ROWS = 64


def merge_tensor(
    name: str, weight: torch.Tensor, adapters: Sequence[Adapter], dtype: torch.dtype, workers: int = 1
) -> Iterator[torch.Tensor]:
    """One tensor of the base with all adapters added, in `dtype`, in blocks of rows, made by so many threads.

    Low-rank products are added in float32 and rounded once, at the end; rows are taken as they are. Bit for bit what
    PEFT's `merge_and_unload` gives in float32. Raises WorkError if the tensor holds NaN or infinity.
    """
    for adapter in adapters:
        if name in adapter.whole:
            weight = adapter.tensors.read(adapter.whole[name])
    changes = [change for adapter in adapters for change in changes_of(name, adapter)]
    yield from changed_blocks(name, weight, changes, dtype, workers)


def changed_blocks(
    name: str, weight: torch.Tensor, changes: Sequence["Pair | Rows"], dtype: torch.dtype, workers: int
) -> Iterator[torch.Tensor]:
    """A tensor with changes made, in `dtype`, in blocks of rows; errors as `merge_tensor`."""
    low_rank = any(isinstance(change, Pair) for change in changes)
    starts = block_starts(len(weight), math.prod(weight.shape[1:]))
    scratch = Scratch()

    def make(rows: slice) -> torch.Tensor:
        block = weight[rows]
        if not changes:
            return finite(name, block.to(dtype))
        if not low_rank:
            block = block.to(dtype, copy=True)  # the source is a mapped file
            for change in changes:
                change.apply(block, rows.start, scratch)
            return finite(name, block)
        sums = scratch.take("sums", block.shape).copy_(block)
        for change in changes:
            change.apply(sums, rows.start, scratch)
        return finite(name, sums.to(dtype, copy=True))

    questions = ((slice(*ends), None) for ends in itertools.pairwise([*starts, len(weight)]))
    yield from (block for block, _ in ahead(make, questions, workers))


class Scratch(threading.local):
    """Memory of each thread that is used again: new memory for each block took a third of the time of the products."""

    def take(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """Float32 of a shape, with whatever was there."""
        size = math.prod(shape)
        held = self.__dict__.get(name)
        if held is None or held.numel() < size:
            held = self.__dict__[name] = torch.empty(size)
        return held[:size].view(*shape)


def block_starts(rows: int, width: int) -> list[int]:
    """Where blocks of rows begin; the last one takes what would be too little for one of its own."""
    step = max(BLOCK_NUMBERS // width // WHOLE_ROWS, 1) * WHOLE_ROWS
    return [start for start in range(0, rows, step) if start == 0 or rows - start >= WHOLE_ROWS]


def finite(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself. WorkError if it holds NaN or infinity: its extremes show both, and need no memory."""
    low, high = torch.aminmax(tensor)
    if not (low.isfinite() and high.isfinite()):
        cure = "check base and adapters, or choose --dtype bfloat16 if float16 overflows"
        raise WorkError("the merged tensor holds NaN or infinity", where=name, cure=cure)
    return tensor


@dataclass(frozen=True)
class Pair:
    """W + B A with A [r, in] and B [out, r] in float32 and a scale, each row brought to a length [out] if there is
    one.
    """

    a_RI: torch.Tensor
    b_OR: torch.Tensor
    scale: float
    lengths_O: torch.Tensor | None

    def apply(self, block_NI: torch.Tensor, start: int, scratch: "Scratch") -> None:
        """Change N rows from `start` on."""
        some = slice(start, start + len(block_NI))
        product_NI = torch.mm(self.b_OR[some], self.a_RI, out=scratch.take("product", block_NI.shape))
        block_NI += product_NI.mul_(self.scale)
        if self.lengths_O is not None:
            block_NI *= (self.lengths_O[some] / torch.linalg.norm(block_NI, dim=1))[:, None]


@dataclass(frozen=True)
class Rows:
    """Values [n, in] that take the place of rows, by their ids in ascending order."""

    ids_n: torch.Tensor
    order_n: torch.Tensor
    values: torch.Tensor

    def apply(self, block_NI: torch.Tensor, start: int, _: "Scratch") -> None:
        """Change N rows from `start` on."""
        first, end = torch.searchsorted(self.ids_n, torch.tensor([start, start + len(block_NI)])).tolist()
        block_NI[self.ids_n[first:end] - start] = self.values[self.order_n[first:end]].to(block_NI.dtype)


def changes_of(name: str, adapter: Adapter) -> Iterator[Pair | Rows]:
    """What an adapter does to a tensor of the base."""
    if name in adapter.pairs:
        a_RI, b_OR, scale = adapter.pair(name)
        lengths_O = adapter.lengths(name)
        yield Pair(a_RI.float(), b_OR.float(), scale, None if lengths_O is None else lengths_O.float())
    if name in adapter.rows:
        key, ids = adapter.rows[name]
        yield Rows(*torch.sort(ids), adapter.tensors.read(key))
