"""A linear layer with a LoRA pair (arXiv:2106.09685), computed in the layer's own number format: PEFT's, but leaner.

Shapes: N positions, I inputs, O outputs, R rank.

PEFT widens its input to the pair's float32 and keeps that copy for the backward pass; here the pair is narrowed, which
is 2 R (I + O) bytes, and only x and its R products are kept. The pair stays float32 for the optimiser.
"""

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch import nn
from torch.autograd.function import once_differentiable


class LoraLinear(lora.Linear):
    """PEFT's layer; its own forward pass is used for what this one does not know (DoRA, merged pairs, several)."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        names = self.active_adapters
        if self.disable_adapters or self.merged or len(names) != 1 or self.lora_variant or args or kwargs:
            return super().forward(x, *args, **kwargs)
        (name,) = names
        base, scale = self.get_base_layer(), self.scaling[name]
        a_RI, b_OR = self.lora_A[name].weight.to(x.dtype), self.lora_B[name].weight.to(x.dtype)
        dropout: nn.Module = self.lora_dropout[name]
        dropped = self.training and not isinstance(dropout, nn.Identity)
        if dropped or type(base) is not nn.Linear:  # a quantised one has its own product
            return base(x) + F.linear(F.linear(dropout(x), a_RI), b_OR) * scale
        return lora_linear(x, base.weight, base.bias, a_RI, b_OR, scale)


def lora_linear(
    x: torch.Tensor,
    w_OI: torch.Tensor,
    bias_O: torch.Tensor | None,
    a_RI: torch.Tensor,
    b_OR: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """x [..., I] -> x W^T + bias + scale * x A^T B^T [..., O], all of one dtype. W and bias get no gradient."""
    return _LoraLinear.apply(x, w_OI, bias_O, a_RI, b_OR, scale)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        w_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        a_RI: torch.Tensor,
        b_OR: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        x_NI = x.flatten(0, -2)
        low_NR = x_NI @ a_RI.T
        y_NO = F.linear(x_NI, w_OI, bias_O).addmm_(low_NR, b_OR.T, alpha=scale)
        ctx.save_for_backward(x_NI, low_NR, w_OI, a_RI, b_OR)
        ctx.scale, ctx.shape = scale, x.shape
        return y_NO.unflatten(0, x.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_NI, low_NR, w_OI, a_RI, b_OR = ctx.saved_tensors
        dy_NO = dy.flatten(0, -2)
        dlow_NR = (dy_NO @ b_OR).mul_(ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy_NO @ w_OI).addmm_(dlow_NR, a_RI).view(ctx.shape)
        return dx, None, None, dlow_NR.T @ x_NI, (dy_NO.T @ low_NR).mul_(ctx.scale), None
