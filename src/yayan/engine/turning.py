"""What queries and keys are turned by (RoPE): the model's own angles, or those of the step that a request needs.

Shapes: N new tokens of a pass, E size of a head, K = E / 2 frequencies.

The angles belong to a sequence, from its first token to its last: a cache then holds what a full pass would compute.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from yayan.model.folder import STEPS
from yayan.model.longer import choose_stretch, positions_of
from yayan.model.rope import frequencies, head_width


@dataclass(frozen=True, eq=False)
class Turning:
    """Frequencies of a head, [K] in float32, and what cosine and sine are multiplied by."""

    freqs_K: torch.Tensor
    attention: float


class Turnings:
    """The angles of a model for requests of any length up to `longest` tokens, one for each step (`model/longer`)."""

    def __init__(self, config: Mapping[str, Any], device: torch.device) -> None:
        self.config, self.device = config, device
        self.longest = STEPS[-1] * positions_of(config)
        self.known: dict[int, Turning] = {}

    def of(self, tokens: int) -> Turning:
        """What a request of so many tokens is turned by. Raises UserError beyond the last step."""
        step = choose_stretch(self.config, tokens)
        if step.times not in self.known:
            freqs_K, attention = frequencies(step.rope, head_width(self.config), positions_of(self.config))
            self.known[step.times] = Turning(freqs_K.to(self.device), attention)
        return self.known[step.times]


def angles(
    turnings: Sequence[Turning], counts: Sequence[int], positions_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [N, E] of new tokens: `counts` of them are of the first sequence, turned so, and so on."""
    first = turnings[0]
    if all(turning is first for turning in turnings):
        freqs_NK, attention_N = first.freqs_K[None], torch.full_like(first.freqs_K[:1], first.attention)
    else:
        counts_P = torch.tensor(counts, device=positions_N.device)
        freqs_NK = torch.stack([turning.freqs_K for turning in turnings]).repeat_interleave(counts_P, 0)
        attention_N = first.freqs_K.new_tensor([turning.attention for turning in turnings])
        attention_N = attention_N.repeat_interleave(counts_P)
    half_NK = positions_N[:, None].float() * freqs_NK
    both_NE = torch.cat([half_NK, half_NK], -1)
    return both_NE.cos() * attention_N[:, None], both_NE.sin() * attention_N[:, None]
