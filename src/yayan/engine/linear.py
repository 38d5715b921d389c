"""Matrices of a model packed for oneDNN: on a CPU a token then costs what reading the weights once costs.

`torch.nn.functional.linear` hands oneDNN a bfloat16 matrix as it lies, and MKL a float32 one. Against that a packed
matrix takes a third of the time in bfloat16, and in float32 several rows of tokens cost hardly more than one.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

Linear = Callable[[torch.Tensor], torch.Tensor]  # x [N, in] -> [N, out]
ROWS = (
    8  # what the layout is chosen for: 1 to 16 rows are about as fast, and hundreds no slower than unpacked
)
FEWEST = 4
KINDS = (torch.float32, torch.bfloat16)


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN is there, and has the type."""
    if device.type != "cpu" or dtype not in KINDS or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def take_linear(parent: nn.Module, *names: str) -> Linear:
    """One function for the named matrices of a module, their outputs side by side; the module loses them.

    Quantised matrices stay what they are. Without gradients.
    """
    modules = [getattr(parent, name) for name in names]
    for name in names:
        delattr(parent, name)
    if any(type(module) is not nn.Linear for module in modules):
        return modules[0] if len(modules) == 1 else lambda x: torch.cat([module(x) for module in modules], -1)
    weight = torch.cat([module.weight.detach() for module in modules])
    biases = [module.bias for module in modules if module.bias is not None]
    bias = torch.cat([item.detach() for item in biases]) if len(biases) == len(modules) else None
    if can_pack(weight.dtype, weight.device):
        return packed(weight, bias)
    return lambda x: F.linear(x, weight, bias)


def packed(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """x W^T + b by oneDNN, for any number of rows.

    In bfloat16 fewer than four rows are computed as four: oneDNN sums a row alone in another order, so that the same
    row alone and among others would differ in the last bit; and four take 3 to 14 % less time than two (docs/log.md).
    """
    matrix = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
    multiply = torch.ops.mkldnn._linear_pointwise.default
    if weight.dtype != torch.bfloat16:
        return lambda x: multiply(x, matrix, bias, "none", [], "")

    def multiply_some(x: torch.Tensor) -> torch.Tensor:
        count = x.shape[0]
        if 0 < count < FEWEST:
            return multiply(F.pad(x, (0, 0, 0, FEWEST - count)), matrix, bias, "none", [], "")[:count]
        return multiply(x, matrix, bias, "none", [], "")

    return multiply_some
