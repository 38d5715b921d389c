"""Attention inside documents against its formula in float64, at odd sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yayan.model.attention import attend_documents, attend_varlen, documents_of


def formula(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """Softmax over the tokens of the same document up to this one: [B, T, H, E]."""
    B, H, T, _ = q.shape
    out = torch.zeros(B, T, H, v.shape[-1], dtype=torch.float64)
    for b in range(B):
        for t in range(T):
            first = t - int(positions[b, t])
            first = max(first, t - window + 1) if window else first
            for h in range(H):
                group = h * k.shape[1] // H
                weights = torch.softmax(scale * (k[b, group, first : t + 1] @ q[b, h, t]), 0)
                out[b, t, h] = weights @ v[b, group, first : t + 1]
    return out


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=4), min_size=1, max_size=3),
    groups=st.sampled_from([1, 3]),
    window=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 1000),
)
def test_documents_equal_the_formula(
    rows: list[list[int]], groups: int, window: int | None, seed: int
) -> None:
    length = max(map(sum, rows))
    positions = torch.tensor([[i for size in (*row, length - sum(row)) for i in range(size)] for row in rows])
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(len(rows), length, heads, 5, dtype=torch.float64, generator=generator).transpose(1, 2)
        for heads in (3, 3 // groups, 3 // groups)
    )
    out, _ = attend_documents(
        torch.nn.Module(),
        q,
        k,
        v,
        None,
        scaling=0.3,
        sliding_window=window,
        documents=documents_of(positions),
    )
    torch.testing.assert_close(out, formula(q, k, v, positions, 0.3, window), rtol=1e-10, atol=1e-10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("window", [None, 5])
def test_one_kernel_for_all_documents_equals_one_for_each(window: int | None) -> None:
    positions = torch.tensor([[*range(9), *range(20), *range(3)], [*range(30), *range(2)]], device="cuda")
    torch.manual_seed(1)
    q, k, v = (
        torch.randn(2, 32, heads, 64, device="cuda").bfloat16().transpose(1, 2).requires_grad_()
        for heads in (4, 2, 2)
    )
    results = []
    for attend in (attend_documents, attend_varlen):
        out, _ = attend(
            torch.nn.Module(), q, k, v, None, sliding_window=window, documents=documents_of(positions)
        )
        results.append((out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)
