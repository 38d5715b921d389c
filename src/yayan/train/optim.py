"""AdamW with a learning rate for each kind of parameter, and the schedule of the rates."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

BETAS = (0.9, 0.95)
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate. `decay`: decoupled weight decay (arXiv:1711.05101) of its matrices."""

    parameters: dict[str, torch.nn.Parameter]
    learning_rate: float
    decay: float = 0.0


def make_optimizer(groups: Mapping[str, Group]) -> torch.optim.AdamW:
    """AdamW over the groups, in torch's fused form (one pass over each tensor); norms and biases do not decay."""
    settings = []
    for name, group in groups.items():
        matrices = [value for value in group.parameters.values() if value.ndim > 1]
        vectors = [value for value in group.parameters.values() if value.ndim <= 1]
        for label, values, decay in ((name, matrices, group.decay), (f"{name} vectors", vectors, 0.0)):
            if values:
                rate = group.learning_rate
                settings.append(
                    {"params": values, "lr": rate, "peak": rate, "weight_decay": decay, "name": label}
                )
    return torch.optim.AdamW(settings, betas=BETAS, fused=True)


def rate_factor(step: int, steps: int, warmup_steps: int, floor: float = 0.1) -> float:
    """Share of the peak rate at a step counted from 0: linear warm-up, then a cosine down to `floor`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(steps - warmup_steps, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def clip_gradients(parameters: list[torch.nn.Parameter]) -> float:
    """Scale all gradients down to a joint norm of at most MAX_GRADIENT_NORM; returns the norm before."""
    return float(torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM))
