"""AdamW or Muon with a learning rate for each kind of parameter, and the schedule of the rates."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from yayan.model.sharding import whole

BETAS = (0.9, 0.95)
MAX_GRADIENT_NORM = 1.0

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


def clip_gradients(parameters: list[torch.nn.Parameter]) -> float:
    """Scale all gradients down to a joint norm of at most MAX_GRADIENT_NORM; returns the norm before."""
    return float(whole(torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)))
