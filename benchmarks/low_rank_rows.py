"""`yayan` with the old rows of both ends trained by a low-rank update beside the whole new rows (for rows.py).

W_old + U V alpha / rank: U [old rows, rank] begins at 0, V [rank, width] as LoRA's A does; both are stepped at the
body's rate. rows.py measures it; what it hands out is only its record, the adapter lacks the update.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from yayan.cli import main
from yayan.model import adapters
from yayan.model.ends import TwoEnds
from yayan.train import training

OLD_ROWS_RANK, ALPHA_PER_RANK = 64, 2


class LowRankEnds(TwoEnds):
    """Two ends whose frozen rows move by U V."""

    def begin(self, seed: int) -> None:
        """Set U and V of each end, as parameters of its module."""
        random = torch.Generator().manual_seed(seed)
        for end in self.ends():
            width = end.weight.shape[1]
            v_RD = torch.empty(OLD_ROWS_RANK, width)
            nn.init.kaiming_uniform_(v_RD, a=math.sqrt(5), generator=random)
            end.old_u = nn.Parameter(torch.zeros(self.first, OLD_ROWS_RANK))
            end.old_v = nn.Parameter(v_RD)

    def ends(self) -> list[nn.Module]:
        ends = [self.model.get_input_embeddings()]
        return ends if self.tied else [*ends, self.model.get_output_embeddings()]

    def embed(self, ids_BT: torch.Tensor) -> torch.Tensor:
        end, x_BTD = self.ends()[0], super().embed(ids_BT)
        u_BTR = F.embedding(ids_BT.clamp(max=self.first - 1), end.old_u)
        update_BTD = ALPHA_PER_RANK * u_BTR @ end.old_v
        return torch.where((ids_BT < self.first)[..., None], x_BTD + update_BTD, x_BTD).to(x_BTD.dtype)

    def head_pieces(self) -> list[torch.Tensor]:
        end, (old_VD, new_VD) = self.ends()[-1], super().head_pieces()
        return [old_VD + ALPHA_PER_RANK * end.old_u @ end.old_v, new_VD]


def add_lora(ends: LowRankEnds, config: adapters.LoraConfig, seed: int) -> dict[str, torch.nn.Parameter]:
    pairs = adapters.add_lora(ends, config, seed)
    ends.begin(seed)
    return pairs


if __name__ == "__main__":
    training.TwoEnds, training.add_lora = LowRankEnds, add_lora
    main()
