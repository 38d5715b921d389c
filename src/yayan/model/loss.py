"""Cross-entropy over a large vocabulary without its logits in memory, and with gradients only where they are wanted.

Shapes: N target positions, D width, V rows of the head, R rank of an update, C positions of a chunk.

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

from yayan.model.buffers import Buffers

# Of the logits that are there at once: thin matrix products are slow, and each chunk adds to the whole weight gradient.
# On two CPU cores half as many take as long (docs/log.md); a GPU's larger chunk was not measured.
LOGITS_BYTES = {"cpu": 64 << 20, "cuda": 128 << 20}
SOFTMAX_BYTES = 4 << 20  # of a wide copy of some of their rows, so that it stays in the cache
PRODUCT_BYTES = 8 << 20  # of a piece's gradient that is made at once
SMALLEST_SHARE = 1e-30  # softmax values below lose digits
IGNORED = -100  # a target that costs nothing, as in torch


def linear_cross_entropy(
    h_ND: torch.Tensor,
    pieces: Sequence[torch.Tensor],
    targets_N: torch.Tensor,
    scale: float = 1.0,
    chunk: int | None = None,
    buffers: Buffers | None = None,
    update: tuple[torch.Tensor, torch.Tensor] | None = None,
    sums: Sequence[torch.Tensor | None] = (),
) -> torch.Tensor:
    """`scale` times the sum over N positions of -log softmax(h W^T)[target], in nats; W is the pieces' rows in order.

    h_ND float; pieces: matrices [rows, D] (any float dtype, empty ones allowed), gradients go to those that require
    them; targets_N int64 in [0, V). Products run in h's dtype, softmax and sums in float32 (float64 if h is). Returns a
    scalar of that wider dtype. `scale`: 1 / the number of targets of the whole optimiser step; to scale here costs
    nothing, the gradient of a scaled result a pass over all gradients. `chunk`: positions at once, else what
    LOGITS_BYTES holds. `buffers`: where large tensors are taken from; whoever wants those of the pieces' gradients used
    again gives them back. `update`: (p_NR, u_VR), of which p u^T is added to the logits of the first piece. `sums`: for
    each piece None, or its gradient so far, to which its gradient is added now, in the forward pass, instead of being
    handed out. Can be differentiated once.
    """
    p_NR, u_VR = update or (None, None)
    places = buffers or Buffers(), list(sums) or [None] * len(pieces)
    return _LinearCrossEntropy.apply(h_ND, targets_N, scale, chunk, places, p_NR, u_VR, *pieces)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h_ND: torch.Tensor,
        targets_N: torch.Tensor,
        scale: float,
        chunk: int | None,
        places: tuple[Buffers, list[torch.Tensor | None]],
        p_NR: torch.Tensor | None,
        u_VR: torch.Tensor | None,
        *pieces: torch.Tensor,
    ) -> torch.Tensor:
        wide = torch.float64 if h_ND.dtype == torch.float64 else torch.float32
        wants_h, wants_p, *wants = (ctx.needs_input_grad[i] for i in (0, 5, *range(7, 7 + len(pieces)), 6))
        dh_ND = torch.zeros_like(h_ND) if wants_h else None
        dp_NR = torch.zeros_like(p_NR) if p_NR is not None and wants_p else None
        # What is multiplied: h with each piece, p with u
        weights = pieces if u_VR is None else (*pieces, u_VR)
        buffers, sums = places[0], [*places[1], None]
        dweights = [
            matrix(buffers, w.shape, wide, w.device) if want and held is None else held
            for w, want, held in zip(weights, wants, sums, strict=False)
        ]
        if not len(h_ND):  # then no product sets them
            for dw, held in zip(dweights, sums, strict=False):
                if dw is not None and held is None:
                    dw.zero_()
        narrow = [_narrowed(w, h_ND.dtype, buffers) for w in weights]
        rows = sum(map(len, pieces))
        chunk = chunk or max(LOGITS_BYTES[h_ND.device.type] // (rows * h_ND.itemsize), 1)
        chunk = -(-len(h_ND) // max(-(-len(h_ND) // chunk), 1)) or 1  # as many chunks of one size
        buffer = buffers.take(chunk * rows, h_ND.dtype, h_ND.device)
        nats = torch.zeros((), dtype=wide, device=h_ND.device)
        for at in range(0, len(h_ND), chunk):
            h_CD, targets_C = h_ND[at : at + chunk], targets_N[at : at + chunk]
            logits_CV = buffer[: len(h_CD) * rows].view(len(h_CD), rows)
            parts = list(logits_CV.split([len(w) for w in pieces], dim=1))
            inputs = [(h_CD, dh_ND)] * len(pieces)
            for w_VD, part_CV in zip(narrow, parts, strict=False):
                torch.mm(h_CD, w_VD.T, out=part_CV)
            if p_NR is not None:
                p_CR = p_NR[at : at + chunk]
                parts[0].addmm_(p_CR, narrow[-1].T)
                parts.append(parts[0])
                inputs.append((p_CR, dp_NR))
            nats += _to_gradients(logits_CV, targets_C, wide)
            for w, dw, held, g_CV, (x, dx) in zip(narrow, dweights, sums, parts, inputs, strict=False):
                if dx is not None:
                    dx[at : at + chunk].addmm_(g_CV, w, alpha=scale)
                if dw is not None:
                    _add_product(dw, g_CV, x, scale, first=at == 0 and held is None)
        buffers.give(buffer)
        for w, given in zip(narrow, weights, strict=True):
            if w is not given:
                buffers.give(w)
        # Kept here, not among the saved tensors: a gradient that nothing else holds becomes `.grad` without a copy
        du_VR = None if u_VR is None else dweights.pop()
        dweights = [dw if held is None else None for dw, held in zip(dweights, sums, strict=False)]
        ctx.gradients, ctx.added = [dh_ND, dp_NR, du_VR, *dweights], any(held is not None for held in sums)
        ctx.dtypes = [None if x is None else x.dtype for x in (h_ND, p_NR, u_VR, *pieces)]
        return nats * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the loss can be differentiated once")
        gradients, ctx.gradients = ctx.gradients, None
        if factor != 1:
            if ctx.added:
                raise RuntimeError("a loss whose gradient was added to a sum cannot be scaled")
            gradients = [None if g is None else g.mul_(factor) for g in gradients]
        dh, *others = [
            None if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return dh, None, None, None, None, *others


def matrix(buffers: Buffers, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A matrix out of the buffers; nothing is set."""
    return buffers.take(shape.numel(), dtype, device)[: shape.numel()].view(shape)


def _narrowed(w: torch.Tensor, dtype: torch.dtype, buffers: Buffers) -> torch.Tensor:
    """The matrix itself where it has the type, else a copy out of the buffers."""
    return w if w.dtype == dtype else matrix(buffers, w.shape, dtype, w.device).copy_(w)


def _add_product(
    dw_VD: torch.Tensor, g_CV: torch.Tensor, h_CD: torch.Tensor, scale: float, *, first: bool
) -> None:
    """dw (+)= scale g^T h, in dw's dtype; it is set where it is the first one.

    A narrow product is made for some rows of dw at a time, so that it is widened and added where it still is in the
    cache: a fifth to a third less time (docs/log.md).
    """
    if dw_VD.dtype == h_CD.dtype:
        torch.addmm(dw_VD, g_CV.T, h_CD, beta=0 if first else 1, alpha=scale, out=dw_VD)
        return
    rows = max(PRODUCT_BYTES // (h_CD.shape[1] * h_CD.itemsize), 1)
    narrow_RD = h_CD.new_empty(min(rows, len(dw_VD)), h_CD.shape[1])
    wide_RD = torch.empty_like(narrow_RD, dtype=dw_VD.dtype)
    for dw_RD, g_CR in zip(dw_VD.split(rows), g_CV.split(rows, dim=1), strict=True):
        product_RD = torch.mm(g_CR.T, h_CD, out=narrow_RD[: len(dw_RD)])
        if first:
            dw_RD.copy_(product_RD).mul_(scale)
        else:  # to add numbers of another format without widening them by a copy first takes six times as long
            dw_RD.add_(wide_RD[: len(dw_RD)].copy_(product_RD), alpha=scale)


def _to_gradients(logits_CV: torch.Tensor, targets_C: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    """Turn logits into softmax - onehot, in place, a few rows at a time; returns their loss in nats."""
    rows = max(SOFTMAX_BYTES // (logits_CV.shape[1] * wide.itemsize), 1)
    # Allocated once: memory that is new each time costs more than what is computed in it
    wide_RV = torch.empty(rows, logits_CV.shape[1], dtype=wide, device=logits_CV.device)
    own_C = torch.empty(len(targets_C), dtype=wide, device=logits_CV.device)
    lost_nats: dict[int, torch.Tensor] = {}
    # What is done for each of these blocks is little: a short operation costs as much as a row of its softmax
    for at in range(0, len(logits_CV), rows):
        x_RV, target_R = logits_CV[at : at + rows], targets_C[at : at + rows]
        p_RV = wide_RV[: len(x_RV)].copy_(x_RV)
        torch.softmax(p_RV, 1, out=p_RV)
        own_R = torch.gather(p_RV, 1, target_R[:, None], out=own_C[at : at + rows, None])[:, 0]
        if own_R.min() < SMALLEST_SHARE:
            for lost in (own_R < SMALLEST_SHARE).nonzero()[:, 0].tolist():
                x_V = x_RV[lost].to(wide)
                lost_nats[at + lost] = x_V.logsumexp(0) - x_V[target_R[lost]]
        x_RV.copy_(p_RV)
    nats_C = -own_C.log()
    for place, value in lost_nats.items():
        nats_C[place] = value
    logits_CV[torch.arange(len(own_C), device=own_C.device), targets_C] = (own_C - 1).to(logits_CV.dtype)
    return nats_C.sum()
