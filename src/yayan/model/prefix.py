"""Choices after contexts that begin alike: what all have in common goes through the model once.

Shapes: H query heads, K key heads, E size of a head, P positions of the shared beginning, L those of one row behind it,
N positions of all rows of a batch, one after another, S those that are scored, D width, V rows of the output head.

The rows of a batch stand one after another without padding, so that each matrix product of the body is one large one;
only the attention goes row by row: the shared keys and values lie in a buffer with room behind them, into which each
row's own are written in turn. So nothing is expanded or copied for a row, and no row sees another. Registered with
`transformers` under NAME, whose models call it in every layer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PreTrainedModel

from yayan.model.attention import attend, refuse_softcap
from yayan.model.rope import LENGTH_DEPENDENT
from yayan.model.score import HEAD_ROWS

NAME = "yayan_prefix"


@dataclass(frozen=True)
class Row:
    """What the model reads: a context (its number) and how some choices begin; what follows `first` on is scored."""

    context: int
    ids: list[int]
    first: int


@dataclass
class Prefix:
    """Keys and values of the shared beginning in each layer, [1, K, P + room, E], and the rows that read on."""

    length: int
    room: int
    lengths: list[int] = field(default_factory=list)  # of a pass's rows; none: it reads the beginning itself
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    masks: dict[tuple[int, int | None], torch.Tensor] = field(default_factory=dict)

    def keep(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """The beginning's own keys and values [1, K, P, E], given room behind them."""
        self.keys[layer], self.values[layer] = (F.pad(x, (0, 0, 0, self.room)) for x in (k, v))

    def behind(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A row's keys and values [1, K, L, E] behind those of the beginning, until the next row's are."""
        end = self.length + k.shape[2]
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def mask(self, length: int, window: int | None, device: torch.device) -> torch.Tensor:
        """[L, P + L], True where a position sees: all before it and itself, of a window that many at most."""
        if (length, window) not in self.masks:
            seen = torch.ones(length, self.length + length, dtype=torch.bool, device=device)
            seen = seen.tril_(self.length)
            self.masks[length, window] = seen if window is None else seen.triu_(self.length + 1 - window)
        return self.masks[length, window]


def attend_behind_prefix(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    prefix: Prefix | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, H, N, E], key and value [1, K, N, E] -> [1, N, H, E]; without `prefix` each row of a batch is alone."""
    refuse_softcap(others)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    settings: dict[str, Any] = {"scale": scaling, "enable_gqa": key.shape[1] != query.shape[1]}
    if prefix is None or not prefix.lengths:
        if prefix is not None:
            prefix.keep(layer, key, value)
        return attend(query, key, value, sliding_window, settings).transpose(1, 2).contiguous(), None
    outs = []
    for q, k, v in zip(*(x.split(prefix.lengths, dim=2) for x in (query, key, value)), strict=True):
        if prefix.length:
            seen = prefix.mask(q.shape[2], sliding_window, q.device)
            own = prefix.behind(layer, k, v)
            outs.append(F.scaled_dot_product_attention(q, *own, attn_mask=seen, **settings))
        else:
            outs.append(attend(q, k, v, sliding_window, settings))
    return torch.cat(outs, dim=2).transpose(1, 2).contiguous(), None


@torch.no_grad()
def score_choices(
    model: PreTrainedModel,
    contexts: Sequence[list[int]],
    choices: Sequence[Sequence[list[int]]],
    *,
    batch_tokens: int = 4096,
    on_scored: Callable[[int], None] | None = None,
) -> list[list[float]]:
    """Log-likelihood (nats, at most 0) of each choice after its context: `choices[i][j]` after `contexts[i]`.

    Choices of one token share one row; a choice of several tokens needs a row for each different beginning. The
    softmax is taken in float32. `batch_tokens`: positions in one pass behind the shared ones. `on_scored` is told the
    number of rows done in each pass. The model stays with the attention that is registered here; dropout must be off.
    """
    scores = [[0.0] * len(options) for options in choices]
    rows = [row for i, options in enumerate(choices) for row in rows_of(i, contexts[i], options)]
    if not rows:
        return scores
    model.set_attn_implementation(NAME)
    alone = model.config.rope_parameters.get("rope_type") in LENGTH_DEPENDENT
    prefix = read_prefix(model, rows, shared=not alone)
    for batch in batches(rows, prefix.length, 1 if alone else batch_tokens):
        with forgetful_angles(model) if alone else nullcontext():
            h_SD = read_rows(model, batch, prefix)
        picks = list(picks_of(batch, choices))
        for start in range(0, len(h_SD), HEAD_ROWS):
            logprobs_SV = (
                model.get_output_embeddings()(h_SD[start : start + HEAD_ROWS]).float().log_softmax(-1)
            )
            here = [pick for pick in picks if start <= pick[0] < start + HEAD_ROWS]
            where = torch.tensor([pick[:2] for pick in here], device=h_SD.device).T
            values = logprobs_SV[where[0] - start, where[1]].tolist()
            for (_, _, i, j), value in zip(here, values, strict=True):
                scores[i][j] += value
        if on_scored:
            on_scored(len(batch))
    return scores


@contextmanager
def forgetful_angles(model: PreTrainedModel) -> Iterator[None]:
    """`transformers` keeps the angles of the longest pass so far (`dynamic`): each row shall have those of its own."""
    decoder = model.get_decoder()
    untouched = decoder.rotary_emb
    decoder.rotary_emb = deepcopy(untouched)
    try:
        yield
    finally:
        decoder.rotary_emb = untouched


def rows_of(context: int, ids: list[int], options: Sequence[list[int]]) -> Iterator[Row]:
    """A row for each different beginning of the options (all but their last token)."""
    for opening in sorted({tuple(option[:-1]) for option in options}):
        yield Row(context, [*ids, *opening], len(ids) - 1)


def shared_length(rows: Sequence[Row]) -> int:
    """Tokens that all rows begin with, as many as stand before what is scored."""
    shortest = min(row.first for row in rows)
    columns = zip(*(row.ids[:shortest] for row in rows), strict=True)
    return next((i for i, column in enumerate(columns) if len(set(column)) > 1), shortest)


def read_prefix(model: PreTrainedModel, rows: Sequence[Row], *, shared: bool) -> Prefix:
    """What all rows begin with, gone through the model."""
    length = shared_length(rows) if shared else 0
    prefix = Prefix(length, max(len(row.ids) for row in rows) - length)
    if length:
        ids_1P = torch.tensor([rows[0].ids[:length]], device=model.device)
        model.get_decoder()(input_ids=ids_1P, use_cache=False, prefix=prefix)
    return prefix


def batches(rows: Sequence[Row], shared: int, batch_tokens: int) -> Iterator[list[Row]]:
    """Rows of similar length together, the longest first, at most `batch_tokens` positions behind the shared ones."""
    batch: list[Row] = []
    tokens = 0
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        own = len(row.ids) - shared
        if batch and tokens + own > batch_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += own
    yield batch


def read_rows(model: PreTrainedModel, batch: list[Row], prefix: Prefix) -> torch.Tensor:
    """The rows of a batch behind the shared beginning -> hidden states h_SD of the scored positions, row after row."""
    P = prefix.length
    prefix.lengths = [len(row.ids) - P for row in batch]
    ids_N = torch.tensor([token for row in batch for token in row.ids[P:]], device=model.device)
    positions_N = torch.cat([torch.arange(P, len(row.ids), device=model.device) for row in batch])
    decoder = model.get_decoder()
    h_1ND = decoder(
        input_ids=ids_N[None], position_ids=positions_N[None], use_cache=False, prefix=prefix
    ).last_hidden_state
    rows = zip(h_1ND[0].split(prefix.lengths), batch, strict=True)
    return torch.cat([h_LD[row.first - P :] for h_LD, row in rows])


def picks_of(batch: list[Row], choices: Sequence[Sequence[list[int]]]) -> Iterator[tuple[int, int, int, int]]:
    """(scored position, token, context, choice) of each token of the choices that a batch scores."""
    start = 0
    for row in batch:
        opening = row.ids[row.first + 1 :]
        for j, option in enumerate(choices[row.context]):
            if option[:-1] == opening:
                yield from ((start + i, token, row.context, j) for i, token in enumerate(option))
        start += len(opening) + 1


AttentionInterface.register(NAME, attend_behind_prefix)
