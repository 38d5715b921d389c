import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import yayan.model.loss as loss_module
from yayan.model.buffers import Buffers
from yayan.model.loss import linear_cross_entropy


@settings(max_examples=40, deadline=None)
@given(
    twice=st.booleans(),
    n=st.integers(0, 37),
    d=st.integers(1, 9),
    split=st.tuples(st.integers(0, 23), st.integers(0, 11)).filter(lambda rows: sum(rows) > 0),
    rank=st.integers(0, 3),
    chunk=st.integers(1, 50),
    seed=st.integers(0, 10_000),
)
def test_loss_and_gradients_equal_full_logits_in_float64(
    twice: bool, n: int, d: int, split: tuple[int, int], rank: int, chunk: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    h, frozen, trained = normal(n, d), normal(split[0], d), normal(split[1], d)
    targets = torch.randint(0, sum(split), (n,), generator=generator)
    p, u = normal(n, rank), normal(split[0], rank)
    moved = [h, trained] + ([p, u] if rank else [])
    for value in moved:
        value.requires_grad_()
    update = (p, u) if rank else None
    ours = linear_cross_entropy(h, [frozen, trained], targets, 0.37, chunk, update=update)
    logits = torch.cat([h @ frozen.T + p @ u.T, h @ trained.T], dim=1)
    plain = F.cross_entropy(logits, targets, reduction="sum") * 0.37
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    if twice:  # a result that is scaled once more
        ours, plain = ours * 2, plain * 2
    for got, want in zip(torch.autograd.grad(ours, moved), torch.autograd.grad(plain, moved), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_it_is_differentiated_once() -> None:
    h = torch.randn(5, 3, requires_grad=True)
    loss = linear_cross_entropy(h, [torch.randn(4, 3)], torch.tensor([0, 3, 3, 2, 1]))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


def test_a_target_that_is_out_of_reach_has_its_whole_loss() -> None:
    """Its softmax is 0 in float32; the others of its row and chunk are not touched."""
    h, w = torch.tensor([[1.0], [0.1]]), torch.tensor([[-200.0], [0.0], [3.0]])
    targets = torch.tensor([0, 0])
    want = F.cross_entropy((h @ w.T).double(), targets, reduction="sum")
    torch.testing.assert_close(linear_cross_entropy(h, [w], targets).double(), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softmax_and_sum_are_wide(dtype: torch.dtype) -> None:
    """Large logits do not overflow, and the sum of many losses keeps its digits in bfloat16."""
    h = torch.full((3000, 2), 30.0, dtype=dtype)
    w = torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]], dtype=dtype)
    nats = linear_cross_entropy(h, [w], torch.zeros(3000, dtype=torch.int64))
    assert nats.dtype == torch.float32
    assert nats.item() == pytest.approx(3000 * 0.6931472, rel=1e-4)


@pytest.mark.parametrize("chunk", [7, 64])
def test_a_narrow_gradient_is_made_in_blocks_and_summed_wide(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several chunks and blocks that do not divide, in memory in which other numbers stand."""
    monkeypatch.setattr(loss_module, "PRODUCT_BYTES", 5 * 6 * 2)
    generator = torch.Generator().manual_seed(3)
    h = torch.randn(50, 6, generator=generator).bfloat16()
    frozen = torch.randn(8, 6, generator=generator).bfloat16()
    targets = torch.randint(0, 31, (50,), generator=generator)
    buffers = Buffers()
    for size in (23 * 6, 50 * 31, 7 * 31):
        for dtype in (torch.bfloat16, torch.float32):
            buffers.give(torch.full((size,), torch.nan, dtype=dtype))
    for seed in range(2):
        trained = torch.randn(23, 6, generator=torch.Generator().manual_seed(seed), requires_grad=True)
        linear_cross_entropy(h, [frozen, trained], targets, chunk=chunk, buffers=buffers).backward()
        rows = torch.cat([frozen.double(), trained.detach().bfloat16().double()]).requires_grad_()
        F.cross_entropy(h.double() @ rows.T, targets, reduction="sum").backward()
        assert trained.grad is not None
        assert rows.grad is not None
        torch.testing.assert_close(trained.grad.double(), rows.grad[8:], rtol=0.02, atol=0.02)


def test_frozen_rows_get_no_gradient() -> None:
    h, frozen = torch.randn(4, 3), torch.randn(5, 3)
    trained = torch.randn(2, 3, requires_grad=True)
    linear_cross_entropy(h, [frozen, trained], torch.tensor([0, 6, 5, 2])).backward()
    assert frozen.grad is None
    assert trained.grad is not None
    assert h.grad is None
