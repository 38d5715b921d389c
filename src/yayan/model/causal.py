"""Causal attention of one document on a CPU in bfloat16, by batched matrix products.

Shapes: K key heads (of all sequences), G query heads of each, T positions, E size of a head, R positions of a block,
S positions up to a block's end.

A block of queries sees the keys up to its end, so that little is computed in vain. Scores and softmax are float32; the
probabilities are kept in bfloat16 for the backward pass, G K (T + R) / 2 numbers a position. At 512 positions it takes
two thirds of the time of torch's flash kernel for CPUs (docs/log.md), with rounding errors of the same size.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

ROWS = 128  # of a block
LONGEST = 1024  # beyond it the probabilities take much memory, and the gain is small


def causal_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None = None
) -> torch.Tensor:
    """q [B, H, T, E], k and v [B, H / G, T, E], bfloat16 -> [B, H, T, E]. `scale`: of the scores, else E ** -0.5."""
    B, H, T, E = q.shape
    heads = B * k.shape[1]
    scale = E**-0.5 if scale is None else scale
    grouped = q.reshape(heads, -1, T, E), k.reshape(heads, T, E), v.reshape(heads, T, E)
    return _CausalAttention.apply(*grouped, scale).view(B, H, T, E)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_KGTE: torch.Tensor, k_KTE: torch.Tensor, v_KTE: torch.Tensor, scale: float
    ) -> torch.Tensor:
        K, G, T, E = q_KGTE.shape
        wide_q_KGTE, wide_k_KET = q_KGTE.float() * scale, k_KTE.float().transpose(1, 2)
        later_RR = torch.ones(min(ROWS, T), min(ROWS, T), dtype=torch.bool).triu_(1)
        buffer = torch.empty(K * G * min(ROWS, T) * T)
        out_KGTE, kept = torch.empty_like(q_KGTE, memory_format=torch.contiguous_format), []
        for start, end in blocks(T):
            rows = end - start
            scores_KNS = buffer[: K * G * rows * end].view(K, G * rows, end)
            torch.bmm(
                wide_q_KGTE[:, :, start:end].reshape(K, G * rows, E), wide_k_KET[:, :, :end], out=scores_KNS
            )
            own = scores_KNS.view(K, G, rows, end)[..., start:]
            own.masked_fill_(later_RR[:rows, :rows], -math.inf)
            p_KNS = torch.softmax(scores_KNS, -1, out=scores_KNS).to(q_KGTE.dtype, copy=True)
            out_KGTE[:, :, start:end] = torch.bmm(p_KNS, v_KTE[:, :end]).view(K, G, rows, E)
            kept.append(p_KNS)
        ctx.save_for_backward(q_KGTE, k_KTE, v_KTE, *kept)
        ctx.scale = scale
        return out_KGTE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_KGTE: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q_KGTE, k_KTE, v_KTE, *kept = ctx.saved_tensors
        K, G, T, E = q_KGTE.shape
        dq_KGTE = torch.empty_like(dout_KGTE, memory_format=torch.contiguous_format)
        dk_KTE, dv_KTE = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (k_KTE, v_KTE))
        for (start, end), p_KNS in zip(blocks(T), kept, strict=True):
            dout_KNE, q_KNE = (
                x[:, :, start:end].reshape(K, G * (end - start), E) for x in (dout_KGTE, q_KGTE)
            )
            dv_KTE[:, :end].baddbmm_(p_KNS.transpose(1, 2), dout_KNE)
            dp_KNS = torch.bmm(dout_KNE, v_KTE[:, :end].transpose(1, 2))
            ds_KNS = torch._softmax_backward_data(dp_KNS, p_KNS, -1, p_KNS.dtype)  # sums in float32
            dq_KGTE[:, :, start:end] = torch.bmm(ds_KNS, k_KTE[:, :end]).view(K, G, end - start, E)
            dk_KTE[:, :end].baddbmm_(ds_KNS.transpose(1, 2), q_KNE)
        return dq_KGTE.mul_(ctx.scale), dk_KTE.mul_(ctx.scale), dv_KTE, None


def blocks(length: int) -> Iterator[tuple[int, int]]:
    """(start, end) of each block of queries."""
    return ((start, min(start + ROWS, length)) for start in range(0, length, ROWS))
