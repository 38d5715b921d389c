import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from yayan.model.attention import attend
from yayan.model.causal import LONGEST, ROWS, causal_attention

LENGTHS = [1, 2, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS + 44]
HEADS = [(3, 3), (4, 2), (6, 1)]


def make(
    dtype: torch.dtype, length: int, heads: tuple[int, int], batch: int = 1
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """q, k, v as a model has them, [B, T, H, E] in memory, and the gradient of what comes out."""
    generator = torch.Generator().manual_seed(length)

    def normal(count: int) -> torch.Tensor:
        return torch.randn(batch, length, count, 24, generator=generator).to(dtype).transpose(1, 2)

    return [normal(count).requires_grad_() for count in (heads[0], heads[1], heads[1])], normal(heads[0])


def plain(qkv: list[torch.Tensor], dout: torch.Tensor, scale: float | None) -> list[torch.Tensor]:
    """What comes out, and the gradients, by the formula in float64."""
    q, k, v = (x.detach().double().requires_grad_() for x in qkv)
    with sdpa_kernel(SDPBackend.MATH):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), dout.double())]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("batch", [1, 2])
def test_it_is_the_formula(length: int, heads: tuple[int, int], batch: int) -> None:
    qkv, dout = make(torch.float32, length, heads, batch)
    out = causal_attention(qkv[0], qkv[1], qkv[2], 0.3)
    for got, want in zip([out, *torch.autograd.grad(out, qkv, dout)], plain(qkv, dout, 0.3), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [129, 512, LONGEST])
def test_it_rounds_no_more_than_torchs_kernel(length: int) -> None:
    qkv, dout = make(torch.bfloat16, length, (4, 2))
    wanted = plain(qkv, dout, None)
    errors = []
    for ours in (True, False):
        if ours:
            out = attend(qkv[0], qkv[1], qkv[2], None, {"dropout_p": 0.0, "scale": None, "enable_gqa": True})
        else:
            out = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True, enable_gqa=True)
        results = [out.detach(), *torch.autograd.grad(out, qkv, dout)]
        errors.append(
            [
                ((got.double() - want).norm() / want.norm()).item()
                for got, want in zip(results, wanted, strict=True)
            ]
        )
    for our, their in zip(*errors, strict=True):
        assert our < 1.5 * their + 1e-4
        assert our < 0.01


def test_under_autocast_it_is_what_it_is_in_bfloat16() -> None:
    """Where the rotary embedding has left queries and keys wide."""
    settings = {"dropout_p": 0.0, "scale": None, "enable_gqa": True}
    qkv, dout = make(torch.float32, 150, (4, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(qkv[0], qkv[1], qkv[2], None, settings)
    narrow = [x.detach().bfloat16().requires_grad_() for x in qkv]
    wanted = attend(narrow[0], narrow[1], narrow[2], None, settings)
    assert torch.equal(out, wanted)
    dout = dout.bfloat16()
    for got, want in zip(
        torch.autograd.grad(out, qkv, dout), torch.autograd.grad(wanted, narrow, dout), strict=True
    ):
        assert torch.equal(got.bfloat16(), want)
