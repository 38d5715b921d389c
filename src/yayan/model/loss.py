"""Cross-entropy over a large vocabulary without its logits in memory, and with gradients only where they are wanted.

Shapes: N target positions, D width, V rows of the head, C positions of a chunk.

The head is given in pieces, matrices of rows that together are the vocabulary: frozen rows, trained rows. For each
chunk of positions the logits of all pieces are formed side by side in one buffer, and become their own gradient in
place, so that nothing of size N x V ever exists. The gradients are computed in the same pass (logits are formed once,
not twice); `backward` only hands them out. The idea is that of Liger's fused linear cross-entropy (arXiv:2410.10989);
nothing is filtered, so rare new tokens get their whole gradient (compare arXiv:2411.09009, whose default drops small
ones).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

# Of the logits that are there at once: thin matrix products are slow, and each chunk adds to the whole weight gradient
LOGITS_BYTES = 128 << 20
SOFTMAX_BYTES = 2 << 20  # of a wide copy of some of their rows, so that it stays in the cache
SMALLEST_SHARE = 1e-30  # softmax values below lose digits
IGNORED = -100  # a target that costs nothing, as in torch


def linear_cross_entropy(
    h_ND: torch.Tensor,
    pieces: Sequence[torch.Tensor],
    targets_N: torch.Tensor,
    scale: float = 1.0,
    chunk: int | None = None,
) -> torch.Tensor:
    """`scale` times the sum over N positions of -log softmax(h W^T)[target], in nats; W is the pieces' rows in order.

    h_ND float; pieces: matrices [rows, D] (any float dtype, empty ones allowed), gradients go to those that require
    them; targets_N int64 in [0, V). Products run in h's dtype, softmax and sums in float32 (float64 if h is). Returns a
    scalar of that wider dtype. `scale`: 1 / the number of targets of the whole optimiser step; to scale here costs
    nothing, the gradient of a scaled result a pass over all gradients. `chunk`: positions at once, else what
    LOGITS_BYTES holds. Can be differentiated once.
    """
    return _LinearCrossEntropy.apply(h_ND, targets_N, scale, chunk, *pieces)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h_ND: torch.Tensor,
        targets_N: torch.Tensor,
        scale: float,
        chunk: int | None,
        *pieces: torch.Tensor,
    ) -> torch.Tensor:
        wide = torch.float64 if h_ND.dtype == torch.float64 else torch.float32
        wants_h, wants = ctx.needs_input_grad[0], ctx.needs_input_grad[4:]
        dh_ND = torch.zeros_like(h_ND) if wants_h else None
        dpieces: list[torch.Tensor | None] = [
            torch.zeros_like(w, dtype=wide) if want and not len(h_ND) else None
            for w, want in zip(pieces, wants, strict=True)
        ]
        narrow = [w.to(h_ND.dtype) for w in pieces]
        rows = sum(map(len, pieces))
        chunk = max(min(chunk or LOGITS_BYTES // (rows * h_ND.itemsize), len(h_ND)), 1)
        buffer_CV = h_ND.new_empty(chunk, rows)
        nats = torch.zeros((), dtype=wide, device=h_ND.device)
        for at in range(0, len(h_ND), chunk):
            h_CD, targets_C = h_ND[at : at + chunk], targets_N[at : at + chunk]
            logits_CV = buffer_CV[: len(h_CD)]
            parts = logits_CV.split([len(w) for w in narrow], dim=1)
            for w_VD, part_CV in zip(narrow, parts, strict=True):
                torch.mm(h_CD, w_VD.T, out=part_CV)
            nats += _to_gradients(logits_CV, targets_C, scale, wide)
            for i, (w_VD, g_CV) in enumerate(zip(narrow, parts, strict=True)):
                if dh_ND is not None:
                    dh_ND[at : at + chunk].addmm_(g_CV, w_VD)
                if wants[i]:
                    dpieces[i] = _with_product(dpieces[i], g_CV.T, h_CD, wide)
        # Kept here, not among the saved tensors: a gradient that nothing else holds becomes `.grad` without a copy
        ctx.gradients = [dh_ND, *dpieces]
        ctx.dtypes = [h_ND.dtype, *(w.dtype for w in pieces)]
        return nats * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the loss can be differentiated once")
        gradients, ctx.gradients = ctx.gradients, None
        if factor != 1:
            gradients = [None if g is None else g.mul_(factor) for g in gradients]
        dh, *dws = [
            None if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return dh, None, None, None, *dws


def _with_product(
    total: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor, wide: torch.dtype
) -> torch.Tensor:
    """total + a b, in place, in the wide dtype."""
    if total is None:
        return (a @ b).to(wide)
    return total.addmm_(a, b) if total.dtype == a.dtype else total.add_(a @ b)


def _to_gradients(
    logits_CV: torch.Tensor, targets_C: torch.Tensor, scale: float, wide: torch.dtype
) -> torch.Tensor:
    """Turn logits into scale * (softmax - onehot), in place, a few rows at a time; returns their loss in nats."""
    rows = max(SOFTMAX_BYTES // (logits_CV.shape[1] * wide.itemsize), 1)
    nats = torch.zeros((), dtype=wide, device=logits_CV.device)
    # Allocated once: memory that is new each time costs more than what is computed in it
    wide_RV, softmax_RV = torch.empty(2, rows, logits_CV.shape[1], dtype=wide, device=logits_CV.device)
    for x_RV, target_R1 in zip(logits_CV.split(rows), targets_C[:, None].split(rows), strict=True):
        p_RV = softmax_RV[: len(x_RV)]
        torch.softmax(wide_RV[: len(x_RV)].copy_(x_RV), 1, out=p_RV)
        own_R1 = p_RV.gather(1, target_R1)
        lost_R = (own_R1[:, 0] < SMALLEST_SHARE).nonzero()[:, 0]
        nats_R1 = -own_R1.log()
        if len(lost_R):
            lost_RV = x_RV[lost_R].to(wide)
            nats_R1[lost_R] = lost_RV.logsumexp(1, keepdim=True) - lost_RV.gather(1, target_R1[lost_R])
        nats += nats_R1.sum()
        torch.mul(p_RV, scale, out=x_RV)
        x_RV.scatter_(1, target_R1, (own_R1.sub_(1).mul_(scale)).to(x_RV.dtype))
    return nats
