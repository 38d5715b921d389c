"""Exact log-likelihoods: how many nats a causal language model needs for a text.

Shapes: B rows of a batch, T positions, D width of the hidden state, N scored positions, V rows of the output head.
Everything takes a `body` (token ids -> hidden states after the last norm) and a `head` (hidden states -> logits): the
two halves of a `transformers` model (`body_and_head`), or those of a model in training. The logits of a whole batch
are never held at once: the head sees at most `HEAD_ROWS` positions.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

HEAD_ROWS = 256  # 55,296 float32 logits for each of 256 positions are 57 MB

Body = Callable[[torch.Tensor], torch.Tensor]  # ids_BT int64 on the CPU -> h_BTD
Head = Callable[[torch.Tensor], torch.Tensor]  # h_ND -> logits_NV


@dataclass(frozen=True)
class Window:
    """A row for the model: it reads `ids`, and what follows each position from `first` on is scored."""

    sequence: int
    ids: list[int]
    first: int
    targets: list[int] = field(default_factory=list)  # what does follow, where it is one thing
    offset: int = 0  # where in its sequence the first of the targets stands

    @property
    def count(self) -> int:
        """Scored positions."""
        return len(self.ids) - self.first


def body_and_head(model: PreTrainedModel) -> tuple[Body, Head]:
    """The two halves of a causal language model of the LLaMA family, on the device where it lies."""
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    device = head.weight.device

    def body(ids_BT: torch.Tensor) -> torch.Tensor:
        return decoder(input_ids=ids_BT.to(device), use_cache=False).last_hidden_state

    return body, head


def bits_per_byte(nats: float, bytes: int) -> float:  # noqa: A002
    """Nats for a text of so many UTF-8 bytes -> bits for each byte: comparable across vocabularies."""
    return nats / math.log(2) / bytes


def slide(ids: list[int], context: int, stride: int, sequence: int = 0) -> Iterator[Window]:
    """Cut `ids` into windows of at most `context` positions so that each token but the first is scored exactly once.

    The first window scores all its tokens; each later one starts `stride` further on and scores only what is new, so
    that at least `context - stride` tokens stand before every scored token that is that far from the beginning.
    """
    scored = 1
    for start in range(0, max(len(ids) - 1, 0), stride):
        end = min(start + context, len(ids) - 1)
        yield Window(sequence, ids[start:end], scored - 1 - start, ids[scored : end + 1], scored)
        scored = end + 1
        if scored == len(ids):
            return


@torch.no_grad()
def score_sequences(
    body: Body,
    head: Head,
    sequences: Sequence[list[int]],
    *,
    context: int,
    stride: int | None = None,
    batch_tokens: int = 4096,
    on_scored: Callable[[int], None] | None = None,
) -> list[float]:
    """Nats of each sequence given its first token (BOS), in natural logarithms, summed in float64.

    `context`: positions that the model sees at once; `stride` (default half of it): how far the window moves in a
    longer sequence. `batch_tokens`: positions in one batch, padding counted. `on_scored` is told the number of tokens
    scored in each window. A sequence of one token costs 0. Dropout must be off (`model.eval()`).
    """
    nats = [0.0] * len(sequences)
    windows = windows_of(sequences, context, stride)
    for window, nats_N in score_windows(body, head, windows, batch_tokens=batch_tokens):
        nats[window.sequence] += nats_N.sum().item()
        if on_scored:
            on_scored(len(nats_N))
    return nats


def windows_of(sequences: Sequence[list[int]], context: int, stride: int | None = None) -> list[Window]:
    """All windows of some sequences (`slide`); the stride is half the context by default."""
    stride = stride or max(context // 2, 1)
    if not 0 < stride <= context:
        raise ValueError(f"stride {stride} is not between 1 and the context of {context}")
    return [window for i, ids in enumerate(sequences) for window in slide(ids, context, stride, i)]


@torch.no_grad()
def score_windows(
    body: Body, head: Head, windows: list[Window], *, batch_tokens: int = 4096
) -> Iterator[tuple[Window, torch.Tensor]]:
    """Each window, the longest first, with the nats of its targets: nats_N, float64 on the CPU."""
    for batch in _batches(windows, batch_tokens):
        targets_N = torch.tensor([target for window in batch for target in window.targets])
        nats_N = _target_nats(_hidden(body, batch), head, targets_N)
        yield from zip(batch, nats_N.split([window.count for window in batch]), strict=True)


@torch.no_grad()
def window_logits(
    body: Body, head: Head, windows: list[Window], *, batch_tokens: int = 4096
) -> Iterator[tuple[Window, int, torch.Tensor]]:
    """(window, number of its first target here, logits_NV in float32), at most `HEAD_ROWS` targets at a time."""
    for batch in _batches(windows, batch_tokens):
        h_ND = _hidden(body, batch)
        for window, own_ND in zip(batch, h_ND.split([window.count for window in batch]), strict=True):
            for at in range(0, window.count, HEAD_ROWS):
                yield window, at, head(own_ND[at : at + HEAD_ROWS]).float()


def _batches(windows: list[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Windows of similar length together, the longest first, at most `batch_tokens` positions with the padding."""
    batch: list[Window] = []
    for window in sorted(windows, key=lambda window: -len(window.ids)):
        if batch and (len(batch) + 1) * len(batch[0].ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _hidden(body: Body, batch: list[Window]) -> torch.Tensor:
    """Run the body over a batch -> h_ND of the scored positions, row after row.

    Padding stands on the right, where a causal model does not see it from the positions that count.
    """
    ids_BT = torch.zeros(len(batch), max(len(window.ids) for window in batch), dtype=torch.int64)
    for row, window in enumerate(batch):
        ids_BT[row, : len(window.ids)] = torch.tensor(window.ids)
    rows = zip(body(ids_BT), batch, strict=True)
    return torch.cat([h_TD[window.first : len(window.ids)] for h_TD, window in rows])


def _target_nats(h_ND: torch.Tensor, head: Head, targets_N: torch.Tensor) -> torch.Tensor:
    """-log p of each target, float64 on the CPU; the softmax is taken in float32."""
    parts = zip(h_ND.split(HEAD_ROWS), targets_N.to(h_ND.device).split(HEAD_ROWS), strict=True)
    return torch.cat([F.cross_entropy(head(h).float(), t, reduction="none").double().cpu() for h, t in parts])
