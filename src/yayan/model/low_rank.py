"""Old rows of an end that move together: W + s U V, without a gradient and moments for each number of W.

Shapes: V old rows, R rank, D width. LoRA (arXiv:2106.09685) on the frozen rows of a matrix whose last rows, those of
new tokens, are trained whole (`ends.py`).
"""

import torch
import torch.nn.functional as F
from torch import nn


class LowRankUpdate(nn.Module):
    """`u` [V, R] begins at 0, `v` [R, D] as LoRA's A does; both float32. Products run in the model's own dtype."""

    def __init__(self, rows: int, rank: int, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.u = nn.Parameter(torch.zeros(rows, rank))
        self.v = nn.Parameter(torch.zeros(rank, width))

    def of(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """What is added to the rows of these tokens, [..., D]."""
        return F.embedding(ids, self.u).to(dtype) @ self.down(dtype)

    def project(self, h_ND: torch.Tensor) -> torch.Tensor:
        """p_NR, of which p u^T is what is added to the logits of h."""
        return h_ND @ self.down(h_ND.dtype).T

    def down(self, dtype: torch.dtype) -> torch.Tensor:
        """s V."""
        return (self.scale * self.v).to(dtype)
