"""Attention that stays inside documents, without a mask of length squared.

Shapes: B sequences, T positions, H query heads, K key heads, E size of a head, N = B T.

Registered with `transformers` under the names below; its models call it in every layer. `documents` computes one causal
attention for each document (on a CPU 2 to 9 times as fast as a mask: docs/log.md), `varlen` hands all of them to one
flash kernel of a GPU. The documents are given to the model once, as the keyword `documents`.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel

from yayan.model.causal import LONGEST, causal_attention

Attention = Literal["auto", "documents", "varlen", "mask"]
NAMES = {"documents": "yayan_documents", "varlen": "yayan_varlen", "mask": "sdpa"}


@dataclass(frozen=True)
class Documents:
    """The pieces of documents in a batch, its rows one after another."""

    borders: list[int]  # where each piece begins, and at last N
    device: torch.device

    @cached_property
    def lengths(self) -> list[int]:
        return [end - start for start, end in pairwise(self.borders)]

    @cached_property
    def cumulative(self) -> torch.Tensor:
        """The borders as a kernel wants them: int32 on the device."""
        return torch.tensor(self.borders, dtype=torch.int32, device=self.device)


def documents_of(positions_BT: torch.Tensor) -> Documents:
    """Pieces begin where a row does, and where the position is 0."""
    begins_BT = positions_BT == 0
    begins_BT[:, 0] = True
    starts = begins_BT.flatten().nonzero()[:, 0].tolist()
    return Documents([*starts, positions_BT.numel()], positions_BT.device)


def use_attention(model: PreTrainedModel, attention: Attention) -> None:
    """Let the model attend by `documents`, `varlen` (CUDA, 16-bit numbers) or `mask`, transformers' own way.

    `auto` is varlen where it can be, else documents.
    """
    if attention == "auto":
        half = model.dtype in (torch.bfloat16, torch.float16)
        attention = "varlen" if model.device.type == "cuda" and half else "documents"
    model.set_attn_implementation(NAMES[attention])


def attend_documents(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    documents: Documents | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """query [B, H, T, E], key and value [B, K, T, E] -> [B, T, H, E]; without `documents` each row is one."""
    refuse_softcap(others)
    B, H, T, _ = query.shape
    settings: dict[str, Any] = {"dropout_p": dropout, "scale": scaling, "enable_gqa": key.shape[1] != H}
    if documents is None or len(documents.lengths) == B:
        out = attend(query, key, value, sliding_window, settings)
        return out.transpose(1, 2).contiguous(), None
    # split and cat are one operation each, forwards and backwards; a slice's gradient would be as long as all
    parts = zip(*(joined(x).split(documents.lengths, dim=2) for x in (query, key, value)), strict=True)
    outs = [attend(q, k, v, sliding_window, settings).transpose(1, 2) for q, k, v in parts]
    out = torch.cat(outs, dim=1)
    return out.view(B, T, H, -1), None


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None, settings: dict[str, Any]
) -> torch.Tensor:
    """Causal attention of whole documents; with a window each position sees itself and window - 1 before it."""
    length = q.shape[2]
    if window is None or length <= window:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q.dtype
        plain = length <= LONGEST and not settings.get("dropout_p")
        if q.device.type == "cpu" and dtype == torch.bfloat16 and plain:
            return causal_attention(q.to(dtype), k.to(dtype), v.to(dtype), settings.get("scale"))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, **settings)
    near = torch.ones(length, length, dtype=torch.bool, device=q.device).tril_().triu_(1 - window)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=near, **settings)


def attend_varlen(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    documents: Documents | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """As `attend_documents`, in one flash kernel; that has no dropout."""
    if documents is None or dropout:
        return attend_documents(
            module, query, key, value, attention_mask, dropout, scaling, sliding_window, documents, **others
        )
    refuse_softcap(others)
    B, H, T, _ = query.shape
    q, k, v = (joined(x)[0].transpose(0, 1) for x in (query, key, value))
    border, longest = documents.cumulative, max(documents.lengths)
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    out = varlen_attn(
        q,
        k,
        v,
        border,
        border,
        longest,
        longest,
        scale=scaling,
        window_size=window,
        enable_gqa=key.shape[1] != H,
    )
    assert isinstance(out, torch.Tensor)
    return out.reshape(B, T, H, -1), None


def joined(x: torch.Tensor) -> torch.Tensor:
    """[B, H, T, E] -> [1, H, N, E], the rows one after another: a view, for in memory it is [B, T, H, E]."""
    return x.transpose(1, 2).flatten(0, 1)[None].transpose(1, 2)


def refuse_softcap(others: dict[str, Any]) -> None:
    if others.get("softcap") is not None:
        raise ValueError("this attention knows no softcap")


AttentionInterface.register(NAMES["documents"], attend_documents)
AttentionInterface.register(NAMES["varlen"], attend_varlen)
