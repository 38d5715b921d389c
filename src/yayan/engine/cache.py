"""Keys and values of the tokens that a model has seen, and the attention of new tokens to them.

Shapes: R slots of sequences, K key heads, H query heads, G = H / K, C positions of room, E size of a head, N new
tokens.

A pass takes the new tokens of any number of sequences one after another, without padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig

from yayan.engine.turning import Turning
from yayan.model.attention import attend

ROOM = 256  # positions that a cache grows by
ONE_BY_ONE = 16  # new tokens of a pass that attend by calls of their own
# Tokens of the rest of a prompt in one masked call: bounds the mask, and skips most of what is ahead
BLOCK = 256


class Cache:
    """Room for keys and values, [R, K, C, E] in each layer; it grows as needed.

    On a CPU both are float32: SDPA of one bfloat16 query took 6 times as long as of a float32 one.
    """

    def __init__(
        self, config: PreTrainedConfig, slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        heads = config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        dtype = torch.float32 if device.type == "cpu" else dtype
        empty = torch.zeros(slots, heads, 0, size, dtype=dtype, device=device)
        self.keys = [empty] * config.num_hidden_layers
        self.values = [empty] * config.num_hidden_layers
        self.ids: list[list[int]] = [[] for _ in range(slots)]
        """The tokens whose keys and values each slot holds."""
        self.turnings: list[Turning | None] = [None] * slots
        """What each sequence is turned by; None: as the model says."""

    @property
    def token_bytes(self) -> int:
        """Of the keys and values of one token of one sequence."""
        return sum(held.shape[1] * held.shape[3] * held.element_size() for held in self.keys + self.values)

    def begin(self, slot: int, turning: Turning | None) -> None:
        """Let a new sequence begin in a slot, turned so to its end."""
        self.ids[slot], self.turnings[slot] = [], turning

    def make_room(self, positions: int, most: int) -> None:
        """Hold at least so many positions, of which there will be `most` at most.

        New room is zero, for what is masked must still be a number.
        """
        room = self.values[-1].shape[2]  # the last that grows: where Ctrl-C came between, it is done again
        if positions <= room:
            return
        wanted = -(-max(positions, 2 * room) // ROOM) * ROOM
        room = max(min(wanted, most), positions)
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                tensors[layer] = F.pad(old, (0, 0, 0, room - old.shape[2]))

    def crop(self, slot: int, length: int) -> None:
        """Forget what a slot holds from position `length` on."""
        del self.ids[slot][length:]

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Put the sequence of one slot into another."""
        self.ids[target] = list(self.ids[source])
        length = len(self.ids[target])
        self.turnings[target] = self.turnings[source]
        for tensors in (self.keys, self.values):
            for held in tensors:
                held[target, :, :length] = held[source, :, :length]


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens that both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@dataclass(frozen=True)
class Part:
    """New tokens of one sequence: `count` of them at `first` of the pass, from position `start` of their slot on."""

    slot: int
    start: int
    first: int
    count: int


@dataclass(frozen=True)
class Step:
    """One pass: where its new tokens stand, and whether what follows each of them is asked for."""

    cache: Cache
    parts: list[Part]
    every: bool

    @cached_property
    def together(self) -> bool:
        """Many sequences with one new token each, in the slots 0, 1, 2, ...: they attend in one masked call."""
        slots = [part.slot for part in self.parts]
        single = all(part.count == 1 for part in self.parts)
        return single and len(slots) > ONE_BY_ONE and slots == list(range(len(slots)))

    def mask(self, window: int | None) -> torch.Tensor:
        """What each of many sequences sees, bool [R, 1, 1, positions]."""
        device = self.cache.keys[0].device
        ends = torch.tensor([part.start for part in self.parts], device=device)[:, None]
        at = torch.arange(int(ends.max()) + 1, device=device)[None]
        seen = at <= ends
        if window is not None:
            seen &= at > ends - window
        return seen[:, None, None]

    @cached_property
    def masks(self) -> dict[int | None, torch.Tensor]:
        return {}


def attend_to_cache(
    q_NHE: torch.Tensor, k_NKE: torch.Tensor, v_NKE: torch.Tensor, step: Step, layer: int, window: int | None
) -> torch.Tensor:
    """Attention of the new tokens, [N, H E]; their keys and values are kept in the cache.

    With a window each token sees itself and `window` - 1 before it. All are of the cache's type.
    """
    keys, values = step.cache.keys[layer], step.cache.values[layer]
    for part in step.parts:
        new, end = slice(part.first, part.first + part.count), part.start + part.count
        keys[part.slot, :, part.start : end] = k_NKE[new].transpose(0, 1)
        values[part.slot, :, part.start : end] = v_NKE[new].transpose(0, 1)
    if step.together:
        return attend_together(q_NHE, keys, values, step, window)
    outs = [attend_part(q_NHE, keys, values, part, window, blocks=not step.every) for part in step.parts]
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def attend_part(
    q_NHE: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    part: Part,
    window: int | None,
    *,
    blocks: bool,
) -> torch.Tensor:
    """[count, H E] of one sequence.

    New tokens after others attend one by one, each by the very call that it would make alone: what is computed for a
    token does not depend on how many came with it. In `blocks` they are faster, as the rest of a prompt is read.
    """
    q = q_NHE[part.first : part.first + part.count]
    k, v = keys[part.slot : part.slot + 1], values[part.slot : part.slot + 1]
    K = k.shape[1]
    if part.start == 0 and part.count > 1:
        k, v = k[:, :, : part.count], v[:, :, : part.count]
        out = attend(q.transpose(0, 1)[None], k, v, window, {"enable_gqa": q.shape[1] != K})
        return out[0].transpose(0, 1).flatten(1)
    if blocks and part.count > 1:
        return attend_in_blocks(q, k, v, part.start, window)
    outs = []
    for i in range(part.count):
        end = part.start + i + 1
        begin = 0 if window is None else max(end - window, 0)
        grouped = q[i : i + 1].view(
            1, K, -1, q.shape[-1]
        )  # [1, K, G, E]: the heads of a key head as its rows
        out = F.scaled_dot_product_attention(grouped, k[:, :, begin:end], v[:, :, begin:end])
        outs.append(out.flatten(1))
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def attend_in_blocks(
    q_NHE: torch.Tensor, k: torch.Tensor, v: torch.Tensor, start: int, window: int | None
) -> torch.Tensor:
    """[N, H E] of N tokens that stand from position `start` on; k and v [1, K, C, E] hold theirs and those before."""
    outs = []
    for q in q_NHE.split(BLOCK):
        end = start + len(q)
        begin = 0 if window is None else max(start + 1 - window, 0)
        seen = torch.ones(len(q), end - begin, dtype=torch.bool, device=q.device).tril_(start - begin)
        if window is not None:
            seen.triu_(start - begin + 1 - window)
        own = k[:, :, begin:end], v[:, :, begin:end]
        gqa = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(q.transpose(0, 1)[None], *own, attn_mask=seen, enable_gqa=gqa)
        outs.append(out[0].transpose(0, 1).flatten(1))
        start = end
    return torch.cat(outs)


def attend_together(
    q_NHE: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: Step, window: int | None
) -> torch.Tensor:
    """[N, H E] of N sequences with a new token each."""
    N = len(q_NHE)
    mask = step.masks.get(window)
    if mask is None:
        mask = step.masks[window] = step.mask(window)
    k, v = keys[:N, :, : mask.shape[-1]], values[:N, :, : mask.shape[-1]]
    grouped = q_NHE.reshape(N, keys.shape[1], -1, q_NHE.shape[-1])
    return F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask).flatten(1)
