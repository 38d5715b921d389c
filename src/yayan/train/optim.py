"""AdamW or Muon with a learning rate for each kind of parameter, and the schedule of the rates."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.optim.adamw import adamw

from yayan.model.sharding import whole

BETAS = (0.9, 0.95)
MAX_GRADIENT_NORM = 1.0
DENSE_BYTES = 8 << 20  # of a sparse gradient that are made dense at once

Schedule = Literal["cosine", "wsd"]


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate. `decay`: decoupled weight decay (arXiv:1711.05101) of its matrices.

    `muon`: its matrices are stepped by Muon, the rest by AdamW as everywhere.
    """

    parameters: dict[str, torch.nn.Parameter]
    learning_rate: float
    decay: float = 0.0
    muon: bool = False


@torch.no_grad()
def step_sparse_rows(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Before a step of torch's fused AdamW: step the matrices whose gradients are sparse, with the same results.

    Some rows at a time are made dense: all rows move at each step, by what their moments are, but a gradient as large
    as the matrix is never there.
    """
    for group in optimizer.param_groups:
        for value in group["params"]:
            if value.grad is not None and value.grad.is_sparse:
                gradient, value.grad = value.grad, None
                step_rows(value, gradient, optimizer.state[value], group)


def step_rows(
    value_VD: torch.nn.Parameter,
    gradient_VD: torch.Tensor,
    state: dict[str, torch.Tensor],
    group: Mapping[str, Any],
) -> None:
    """AdamW's step with a coalesced gradient of U rows; `state` is begun as torch begins it."""
    if not state:
        state["step"] = torch.zeros((), device=value_VD.device)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(value_VD), torch.zeros_like(value_VD)
    rows_U, values_UD = gradient_VD.indices()[0], gradient_VD.values()
    each = max(DENSE_BYTES // value_VD[0].nbytes, 1)
    parts = [x.split(each) for x in (value_VD, state["exp_avg"], state["exp_avg_sq"])]
    borders = torch.arange(0, len(value_VD) + each, each, device=rows_U.device)
    ends = torch.searchsorted(rows_U, borders).tolist()
    dense_RD = torch.zeros_like(parts[0][0])
    beta1, beta2 = group["betas"]
    for i, (part_RD, mean_RD, square_RD) in enumerate(zip(*parts, strict=True)):
        own = slice(ends[i], ends[i + 1])
        places = rows_U[own] - i * each
        dense_RD[places] = values_UD[own]
        adamw(
            [part_RD],
            [dense_RD[: len(part_RD)]],
            [mean_RD],
            [square_RD],
            [],
            [state["step"].clone()],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        dense_RD[places] = 0
    state["step"] += 1


def make_optimizers(groups: Mapping[str, Group]) -> list[torch.optim.Optimizer]:
    """AdamW over the groups, in torch's fused form (one pass over each tensor); norms and biases do not decay.

    Muon (Jordan et al. 2024) with the scale that gives its steps the size of AdamW's (arXiv:2502.16982), so that both
    take the same learning rate.
    """
    adamw: list[dict] = []
    muon: list[dict] = []
    for name, group in groups.items():
        matrices = [value for value in group.parameters.values() if value.ndim > 1]
        vectors = [value for value in group.parameters.values() if value.ndim <= 1]
        for label, values, decay in ((name, matrices, group.decay), (f"{name} vectors", vectors, 0.0)):
            rate = group.learning_rate
            settings = {"params": values, "lr": rate, "peak": rate, "weight_decay": decay, "name": label}
            if values:
                (muon if group.muon and values is matrices else adamw).append(settings)
    optimizers: list[torch.optim.Optimizer] = []
    if adamw:
        optimizers.append(torch.optim.AdamW(adamw, betas=BETAS, fused=True))
        optimizers[0].register_step_pre_hook(step_sparse_rows)
    if muon:
        optimizers.append(torch.optim.Muon(muon, adjust_lr_fn="match_rms_adamw"))
    return optimizers


@dataclass(frozen=True)
class Rates:
    """Share of the peak rate at each of `steps` steps: a linear warm-up, then down to `floor`.

    `cosine`: along a cosine from the warm-up on. `wsd` (arXiv:2404.06395): at the peak until the last `decay` share of
    the steps, then along a line.
    """

    steps: int
    warmup_steps: int
    schedule: Schedule = "cosine"
    decay: float = 0.2
    floor: float = 0.1

    def factor(self, step: int) -> float:
        """At a step counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        falling = self.warmup_steps
        if self.schedule == "wsd":
            falling = max(falling, self.steps - round(self.steps * self.decay))
        progress = min(max((step - falling) / max(self.steps - falling, 1), 0.0), 1.0)
        shape = 1 - progress if self.schedule == "wsd" else 0.5 * (1 + math.cos(math.pi * progress))
        return self.floor + (1 - self.floor) * shape


def set_rates(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor


@torch.no_grad()
def clip_gradients(parameters: list[torch.nn.Parameter]) -> float:
    """Scale all gradients down to a joint norm of at most MAX_GRADIENT_NORM; returns the norm before.

    Sparse ones must be coalesced, as for a step.
    """
    gradients = []
    for value in parameters:
        if value.grad is not None:
            gradients.append(value.grad.values() if value.grad.is_sparse else value.grad)
    norm = float(whole(torch.nn.utils.get_total_norm(gradients)))
    if norm > MAX_GRADIENT_NORM:
        torch._foreach_mul_(gradients, MAX_GRADIENT_NORM / norm)
    return norm
