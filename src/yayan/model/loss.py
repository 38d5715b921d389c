"""Cross-entropy over a large vocabulary without its logits in memory, and with gradients only where they are wanted.

Shapes: N target positions, D width, V rows of the head, C positions of a chunk.

The head is given in pieces, matrices of rows that together are the vocabulary: frozen rows, trained rows. For each
chunk of positions the logits of one piece at a time are formed, and the log-normaliser is combined over the pieces, so
that nothing of size N x V ever exists. The gradients are computed in the same pass (logits are formed once, not twice);
`backward` only scales them. The idea is that of Liger's fused linear cross-entropy (arXiv:2410.10989); nothing is
filtered, so rare new tokens get their whole gradient (compare arXiv:2411.09009, whose default drops small ones).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

# 256 positions x 55,296 rows in float32 are 57 MB. Smaller chunks make thinner, slower matrix products.
CHUNK_POSITIONS = 256
IGNORED = -100  # a target that costs nothing, as in torch


def linear_cross_entropy(
    h_ND: torch.Tensor,
    pieces: Sequence[torch.Tensor],
    targets_N: torch.Tensor,
    chunk: int = CHUNK_POSITIONS,
) -> torch.Tensor:
    """Sum over the N positions of -log softmax(h W^T)[target], in nats; W is the pieces' rows, one after the other.

    h_ND float; pieces: matrices [rows, D] (any float dtype, empty ones allowed), gradients go to those that require
    them; targets_N int64 in [0, V). Products run in h's dtype, softmax and sums in float32 (float64 if h is). Returns a
    scalar of that wider dtype; divide it by the number of targets of the whole optimiser step.
    """
    return _LinearCrossEntropy.apply(h_ND, targets_N, chunk, *pieces)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h_ND: torch.Tensor, targets_N: torch.Tensor, chunk: int, *pieces: torch.Tensor
    ) -> torch.Tensor:
        wide = torch.float64 if h_ND.dtype == torch.float64 else torch.float32
        wants_h, wants = ctx.needs_input_grad[0], ctx.needs_input_grad[3:]
        dh_ND = torch.zeros_like(h_ND) if wants_h else None
        dpieces = [
            torch.zeros_like(w, dtype=wide) if want else None for w, want in zip(pieces, wants, strict=True)
        ]
        narrow = [w.to(h_ND.dtype) for w in pieces]
        nats = torch.zeros((), dtype=wide, device=h_ND.device)
        for at in range(0, len(h_ND), chunk):
            h_CD, targets_C = h_ND[at : at + chunk], targets_N[at : at + chunk]
            dlogits = _chunk_gradients(h_CD, targets_C, narrow, wide, nats)
            for w_VD, g_CV, dw_VD in zip(narrow, dlogits, dpieces, strict=True):
                if dh_ND is not None:
                    dh_ND[at : at + chunk] += g_CV @ w_VD
                if dw_VD is not None:
                    dw_VD += g_CV.T @ h_CD
        ctx.h_dtype, ctx.piece_dtypes = h_ND.dtype, [w.dtype for w in pieces]
        ctx.save_for_backward(dh_ND, *dpieces)
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dh_ND, *dpieces = ctx.saved_tensors
        dh = None if dh_ND is None else (dh_ND * scale).to(ctx.h_dtype)
        dws = [
            None if dw is None else (dw * scale).to(dtype)
            for dw, dtype in zip(dpieces, ctx.piece_dtypes, strict=True)
        ]
        return dh, None, None, *dws


def _chunk_gradients(
    h_CD: torch.Tensor,
    targets_C: torch.Tensor,
    pieces: list[torch.Tensor],
    wide: torch.dtype,
    nats: torch.Tensor,
) -> list[torch.Tensor]:
    """softmax - onehot for each piece, in h's dtype; adds the chunk's loss to `nats` in place.

    Each piece is exponentiated once, against its own maximum, and scaled when the normaliser of all pieces is known.
    """
    logits = [(h_CD @ w_VD.T).to(wide) for w_VD in pieces]
    own = [_own_targets(targets_C, *span) for span in _spans(logits)]
    for x_CV, (row, column) in zip(logits, own, strict=True):
        nats -= x_CV[row, column].sum()
    peaks = [x_CV.amax(1) if x_CV.shape[1] else x_CV.new_full((len(x_CV),), -torch.inf) for x_CV in logits]
    sums = [x_CV.sub_(peak_C[:, None]).exp_().sum(1) for x_CV, peak_C in zip(logits, peaks, strict=True)]
    lse_C = torch.stack([p_C + s_C.log() for p_C, s_C in zip(peaks, sums, strict=True)]).logsumexp(0)
    nats += lse_C.sum()
    for x_CV, peak_C, (row, column) in zip(logits, peaks, own, strict=True):
        x_CV.mul_((peak_C - lse_C).exp_()[:, None])
        x_CV[row, column] -= 1
    return [x_CV.to(h_CD.dtype) for x_CV in logits]


def _spans(logits: list[torch.Tensor]) -> list[tuple[int, int]]:
    """First row and number of rows of each piece."""
    rows = [x_CV.shape[1] for x_CV in logits]
    return [(sum(rows[:i]), count) for i, count in enumerate(rows)]


def _own_targets(targets_C: torch.Tensor, first: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions whose target lies in a piece, and the target's row there."""
    row = ((targets_C >= first) & (targets_C < first + rows)).nonzero()[:, 0]
    return row, targets_C[row] - first
